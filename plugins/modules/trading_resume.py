#!/usr/bin/python
# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: trading_resume
short_description: Resume trading step by step with the current generation of the halt latch, and halt it again when anything is wrong
version_added: "0.1.0"
author: [Titan DR maintainers (@titan-dr)]
description:
  - Refuses unless every gate passed and was looked at within the last 60 seconds.
  - Then it goes through O(stages). For each it writes into the latch what the services may do at most, or takes the latch away, makes the resume call with
    the mode in its body, confirms its effect, and watches. An order in V(observe), one that is not in our book, one that makes a position larger in
    V(reduce_only), a health check that does not pass twice in a row or an exchange that cannot be read halts trading again, with a new generation and by all
    rungs of M(titan.disaster_recovery.trading_halt).
  - So does a process that was started anew meanwhile, or that has not been up for O(window) seconds before everything is allowed, or left to a person. What is
    missing of them is waited for.
  - On a server of several that does not trade itself O(call) is empty. There it judges the same gates and takes the latch away, after the resume elsewhere.
  - In the end it records the recovery on the server and closes the lease of the run. After that the run changes nothing more.
  - A run that dies in between leaves a latch that allows what was proven until then and no more. The next one halts first and begins again.
options:
  latch:
    description: Path of the latch.
    type: path
    required: true
  generation:
    description: Generation that M(titan.disaster_recovery.trading_halt) returned.
    type: int
    required: true
  run_id:
    description: The run that resumes.
    type: str
    required: true
  environment_id:
    description: The environment that was recovered, for C(recovered.json).
    type: str
    required: true
  call:
    description:
      - The resume call of the services with C(url), C(method), C(body) and C(confirm), which is what confirms the last step.
      - With none the services of this server are not what trades. There are no steps, and nothing is said of trading.
    type: dict
    required: true
  halt_call:
    description: The halt call, made when trading has to be halted again. Needed with O(call).
    type: dict
    required: true
  gates:
    description:
      - What was checked, each with C(name), C(verdict) and C(at), the moment in seconds since the epoch, and C(host) where several servers were.
      - Those with C(of) set to V(reconcile) may be overruled by O(force_reason).
    type: list
    elements: dict
    required: true
  hosts:
    description: Each of these must have gates (C(host)) that are not of the reconciliation, or the resume is refused. All servers of the Titan.
    type: list
    elements: str
    default: []
  judged_at:
    description:
      - With O(call) empty, the C(judged_at) of the resume that went before, on the server that trades. The gates were fresh then, and are that old now as its
        steps took. Without it nothing is done.
    type: float
    default: 0
  force_reason:
    description:
      - Why a person resumes although gates of the reconciliation did not pass. At least 15 characters. It stands in the report and the journal.
      - No other gate can be overruled.
    type: str
    default: ""
  mode:
    description: With V(manual) everything is checked and recorded, and trading stays halted until a person runs the playbook C(resume.yml).
    type: str
    choices: [auto, manual]
    default: auto
  stages:
    description:
      - The steps, each with C(mode) (V(observe), V(reduce_only), V(full)) and the C(seconds) it is watched for. The services must take C(mode) in the
        body of O(call) and tell it under C(mode) in the body that C(call.confirm) asks for.
      - Without any, one full step.
    type: list
    elements: dict
    default: []
  probes:
    description: What has to pass while a step is watched, each with C(name), C(url), C(status) and C(expect).
    type: list
    elements: dict
    default: []
  components:
    description: The components. The health and the processes of those on this server are watched too.
    type: list
    elements: dict
    default: []
  server:
    description: Name of this server, as O(components) use it, where they are on several.
    type: str
    default: ""
  pm2_home:
    description: The PM2_HOME of their daemon. Without it the processes are not watched.
    type: path
  window:
    description: Seconds that each process must have been up for, without a restart, before everything is allowed.
    type: float
    default: 10
  redis:
    description: The Redis server with C(config) and C(username), or on another server with C(host), C(port) and C(username), to look for orders in our book.
    type: dict
    default: {}
  redis_password:
    description: Password for Redis, where its configuration does not hold it in clear.
    type: str
    default: ""
  book:
    description: Where the services keep their orders in Redis, with C(db) and C(order), a key with C({id}) in it.
    type: dict
    default: {}
  venues:
    description: Resume only these exchanges, which were halted alone. The halt latch is not touched and there are no steps.
    type: list
    elements: str
    default: []
  keep_halted:
    description: Exchanges that stay halted alone. They are not watched.
    type: list
    elements: str
    default: []
  timeout:
    description: Seconds until the effect of each call must be confirmed.
    type: float
    default: 10
extends_documentation_fragment:
  - titan.disaster_recovery.attributes
  - titan.disaster_recovery.halt
  - titan.disaster_recovery.lease
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
    details: Trading that is confirmed already is left alone.
"""

EXAMPLES = r"""
- name: Resume trading
  titan.disaster_recovery.trading_resume:
    latch: /var/lib/titan-dr/halt
    generation: "{{ halted.generation }}"
    run_id: 20260101T000000Z-1234
    environment_id: production
    call: "{{ titan_resume_call }}"
    halt_call: "{{ titan_halt_call }}"
    gates: "{{ validate_gates + reconcile_gates }}"
    hosts: "{{ ansible_play_hosts_all }}"
    stages: "{{ titan_resume_stages }}"
    user: titan
    unit: pm2-titan
    exchanges: "{{ titan_venues }}"
    redis: "{{ titan_redis }}"
    book: "{{ titan_book }}"

- name: On a server that does not trade itself, after that
  titan.disaster_recovery.trading_resume:
    latch: /var/lib/titan-dr/halt
    generation: "{{ halted.generation }}"
    run_id: 20260101T000000Z-1234
    environment_id: production-phases
    call: {}
    halt_call: {}
    gates: "{{ all_gates }}"
    hosts: "{{ ansible_play_hosts_all }}"
    judged_at: "{{ resumed.judged_at }}"
    user: titan
    unit: pm2-titan
"""

RETURN = r"""
judged_at:
  description: When the gates were judged, in seconds since the epoch.
  type: float
  returned: success
titan_dr:
  description: Rows for the ledger.
  type: dict
  returned: always
"""

import json
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _halt, _latch, _lease, _probe, _redis, _resume, _state
from ansible_collections.titan.disaster_recovery.plugins.module_utils._components import Component, ComponentError, here, parse_components
from ansible_collections.titan.disaster_recovery.plugins.module_utils._pm2 import Watcher

AWAITING = "awaiting resume"


def record(command: _lease.Command, params: dict[str, t.Any], **more: str) -> list[str]:
    """Write down that the server is recovered and end the lease; a note where that failed: it is no reason to halt trading again."""
    text = json.dumps({"environment_id": params["environment_id"], "run_id": params["run_id"], **more}) + "\n"
    try:
        _lease.write_file(_state.path("recovered.json"), text, 0o644)
        command.close("recovered")
    except (OSError, _lease.LeaseError) as exc:
        return [f"that could not be recorded on the server: {exc}"]
    return []


class Resume:
    """One resume on this server."""

    def __init__(self, params: dict[str, t.Any], nft: str | None) -> None:
        self.params, self.nft = params, nft
        self.stages = _resume.stages_of(params["stages"])
        watched = [spec for spec in params["exchanges"] if spec.get("name") not in params["keep_halted"]]
        components = here(parse_components(params["components"], params["server"])) if params["components"] else []
        probes = [*params["probes"], *(spec for component in components if (spec := component.probe_spec()))]
        self.wires = _resume.Tripwires(_halt.Venues(watched), probes, self.ours, params["venue_timeout"])
        self.processes = self.processes_of([component for component in components if component.kind == "pm2"])
        self.timings: dict[str, float] = {}
        self.forced: list[str] = []
        self.before: _probe.Verdict | None = None

    def processes_of(self, components: list[Component]) -> _resume.Processes | None:
        params = self.params
        if not components or not params["pm2_home"]:
            return None
        uid = _halt.uid_of(params["user"])
        if uid is None:
            raise _resume.ResumeError(f"there is no user {params['user']} on this host")
        return _resume.Processes(Watcher(params["pm2_home"], uid, prober=None), components, params["window"])

    def settle(self) -> None:
        """Whatever is allowed, or left to a person: first each process has been up for long enough."""
        if self.processes:
            self.processes.settled()

    def goes_on(self) -> bool:
        """Whether trading was resumed before: no latch is there and the services trade. A run that died right after its resume only has to write that down."""
        params = self.params
        if params["call"] and not params["venues"] and _latch.read(params["latch"]) is None:
            self.before = _probe.probe(params["call"]["confirm"], params["timeout"])
        return self.before is not None and self.before.verdict == _probe.PASS

    def ours(self, ids: t.Iterable[str]) -> set[str]:
        """Those of these orders that are in our book."""
        params, ids = self.params, set(ids) - {""}
        if not params["book"].get("order"):
            return ids
        try:
            client = _redis.connect(_redis.conf_of(params["redis"], params["redis_password"]))
            client.call("SELECT", params["book"].get("db", 0))
            found = {name for name in ids if client.call("EXISTS", params["book"]["order"].replace("{id}", name))}
            client.close()
        except (_redis.RedisError, OSError, ValueError, KeyError) as exc:
            raise _resume.ResumeError(f"our book of orders cannot be read: {exc}") from exc
        return found

    def rows(self, gate: dict[str, t.Any], **more: t.Any) -> dict[str, t.Any]:
        forced = {"forced": {"reason": self.params["force_reason"].strip(), "gates": self.forced}} if self.forced else {}
        return {"gates": [gate], "timings": self.timings, **forced, **more}

    def step(self, stage: _resume.Stage) -> dict[str, str]:
        """One step with its watch; the gate of its call. ResumeError when it did not go well."""
        params, began = self.params, time.monotonic()
        call = _resume.call_for(params["call"], stage, bool(params["stages"]))
        if stage.seconds:
            self.wires.begin()
        if stage.mode == _resume.FULL:
            self.settle()
            _latch.release_venues(params["latch"], set(_latch.venues(params["latch"])) - set(params["keep_halted"]))
            _latch.release(params["latch"], params["generation"])
        else:
            _latch.loosen(params["latch"], params["generation"], stage.mode)
        done = _probe.call(call, params["timeout"])
        if done.verdict != _probe.PASS:
            raise _resume.ResumeError(f"the step {stage.mode} was not confirmed: {done.evidence}")
        self.wires.watch(stage)
        self.timings[f"resume:{stage.mode}"] = round(time.monotonic() - began, 2)
        return done.gate("resumed")

    def halt_again(self, why: str) -> dict[str, t.Any]:
        """By all rungs; the rows that say so."""
        params = self.params
        _latch.fasten(params["latch"], f"a resume was stopped: {why}"[:500], params["run_id"], time.time())
        ladder = _halt.ladder(params, params["halt_call"], params["latch"], self.nft)
        halted = ladder.climb()
        rows = self.rows({"name": "resumed", "verdict": "fail", "evidence": f"{why}; halted again"}, **ladder.rows())
        rows["gates"].append(halted)
        if halted["verdict"] == _probe.PASS:
            rows["trading"] = "halted"
        return rows

    def elsewhere(self) -> dict[str, t.Any]:
        """Take the latch of a server away that does not trade itself; the gate, and whether anything was changed."""
        params = self.params
        if params["venues"]:
            released = _latch.release_venues(params["latch"], params["venues"])
            evidence = f"nothing halts {', '.join(params['venues'])} on this server any more"
        else:
            released = _latch.release_venues(params["latch"], set(_latch.venues(params["latch"])) - set(params["keep_halted"]))
            taken = _latch.release(params["latch"], params["generation"])
            released = [*released, "latch"] if taken else released
            evidence = f"the latch of generation {params['generation']} was taken away" if taken else "there is no latch on this server"
        return {"gate": {"name": "resumed", "verdict": "pass", "evidence": evidence}, "changed": bool(released)}

    def single(self) -> dict[str, t.Any]:
        """Only exchanges that were halted alone; the gate, and whether anything was changed."""
        params = self.params
        try:
            self.settle()
        except _resume.ResumeError as exc:
            return {"gate": {"name": "resumed", "verdict": "fail", "evidence": str(exc)}, "changed": False}
        released = _latch.release_venues(params["latch"], params["venues"])
        end = time.monotonic() + params["timeout"]
        while True:
            told = _halt.told(params["call"]["confirm"], params["timeout"]).get("halted_venues")
            if (isinstance(told, list) and not set(told) & set(params["venues"])) or time.monotonic() > end:
                break
            time.sleep(0.1)
        good = isinstance(told, list) and not set(told) & set(params["venues"])
        evidence = f"the services list {told!r} as halted" if isinstance(told, list) else "the services do not tell which exchanges are halted"
        return {"gate": {"name": "resumed", "verdict": "pass" if good else "fail", "evidence": evidence}, "changed": bool(released)}


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "latch": {"type": "path", "required": True},
            "generation": {"type": "int", "required": True},
            "run_id": {"type": "str", "required": True},
            "environment_id": {"type": "str", "required": True},
            "call": {"type": "dict", "required": True},
            "halt_call": {"type": "dict", "required": True},
            "gates": {"type": "list", "elements": "dict", "required": True},
            "hosts": {"type": "list", "elements": "str", "default": []},
            "judged_at": {"type": "float", "default": 0},
            "force_reason": {"type": "str", "default": ""},
            "mode": {"type": "str", "choices": ["auto", "manual"], "default": "auto"},
            "stages": {"type": "list", "elements": "dict", "default": []},
            "probes": {"type": "list", "elements": "dict", "default": []},
            "components": {"type": "list", "elements": "dict", "default": []},
            "server": {"type": "str", "default": ""},
            "pm2_home": {"type": "path"},
            "window": {"type": "float", "default": 10},
            "redis": {"type": "dict", "default": {}},
            "redis_password": {"type": "str", "default": "", "no_log": True},
            "book": {"type": "dict", "default": {}},
            "venues": {"type": "list", "elements": "str", "default": []},
            "keep_halted": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "float", "default": 10},
            **_halt.SPEC,
        },
        supports_check_mode=True,
    )
    params = module.params
    if module.check_mode:
        module.exit_json(changed=True, titan_dr={"notes": ["would resume trading if every gate passed"]})
    begun = {"generation": params["generation"], **({"force_reason": params["force_reason"]} if params["force_reason"] else {})}
    with _lease.command(module, "trading_resume", begun) as command:
        now = time.time() if params["call"] else params["judged_at"]
        try:
            if params["call"]:
                _probe.check_call(params["call"], "call")
                _probe.check_call(params["halt_call"], "halt_call")
            resume = Resume(params, module.get_bin_path("nft"))
            if not params["call"] and not params["judged_at"]:
                raise _resume.ResumeError("titan_resume_call is empty here, and no server that trades has resumed before this one")
            resume.forced = _resume.judge(params["gates"], now, params["force_reason"], params["hosts"], reconciled=not resume.goes_on())
        except (_probe.ProbeSpecError, ComponentError, _resume.ResumeError, OSError) as exc:
            # nothing was done: whether trading is halted is what the halt said
            module.fail_json(msg=f"Trading must not be resumed: {exc}", titan_dr={"gates": [{"name": "resumed", "verdict": "fail", "evidence": str(exc)}]})
        if params["call"]:
            go(module, command, resume, now)
        go_elsewhere(module, command, resume, now)


def go_elsewhere(module: AnsibleModule, command: _lease.Command, resume: Resume, now: float) -> t.NoReturn:
    """With every gate passed, where nothing trades."""
    params = module.params
    try:
        resume.settle()
        if params["mode"] == "manual":
            found = _latch.read(params["latch"])
            if found is None:
                raise _latch.LatchError("there is no halt latch that could wait for a person; halt first")
            _latch.same(found, params["generation"])
            gate = {"name": "resumable", "verdict": "pass", "evidence": f"the latch of generation {found['generation']} waits for playbooks/resume.yml"}
            module.exit_json(changed=True, judged_at=now, titan_dr=resume.rows(gate, notes=record(command, params, trading=AWAITING)))
        done = resume.elsewhere()
    except (_resume.ResumeError, _latch.LatchError, OSError) as exc:
        gate = {"name": "resumed", "verdict": "fail", "evidence": str(exc)}
        module.fail_json(msg=f"The latch was not taken away: {exc}", titan_dr=resume.rows(gate))
    module.exit_json(changed=done["changed"], judged_at=now, titan_dr=resume.rows(done["gate"], notes=record(command, params)))


def go(module: AnsibleModule, command: _lease.Command, resume: Resume, now: float) -> t.NoReturn:
    """With every gate passed."""
    params = module.params
    if params["venues"]:
        done = resume.single()
        if done["gate"]["verdict"] != _probe.PASS:
            rows = resume.halt_again(f"{', '.join(params['venues'])}: {done['gate']['evidence']}")
            module.fail_json(msg=f"The resume was not confirmed: {done['gate']['evidence']}", titan_dr=rows)
        module.exit_json(changed=done["changed"], judged_at=now, titan_dr=resume.rows(done["gate"], trading="resumed", notes=record(command, params)))
    try:
        found = _latch.read(params["latch"])
        if found is None:
            if resume.before is not None and resume.before.verdict == _probe.PASS:
                rows = resume.rows(resume.before.gate("resumed"), trading="resumed", notes=record(command, params))
                module.exit_json(changed=False, judged_at=now, titan_dr=rows)
            raise _latch.LatchError("there is no halt latch, so nothing bounds what the services may do; halt first")
        _latch.same(found, params["generation"])
        if params["mode"] == "manual":
            resume.settle()
    except (_resume.ResumeError, _latch.LatchError, OSError) as exc:
        rows = resume.rows({"name": "resumed", "verdict": "fail", "evidence": str(exc)}, **({"trading": "halted"} if found_halted(params) else {}))
        module.fail_json(msg=f"Trading stays halted: {exc}", titan_dr=rows)
    if params["mode"] == "manual":
        if found.get("mode"):
            rows = resume.halt_again("a resume of another run was under way")
            module.fail_json(msg="A resume of another run was under way: halted again.", titan_dr=rows)
        evidence = f"everything passed; the latch of generation {found['generation']} waits for playbooks/resume.yml"
        gate = {"name": "resumable", "verdict": "pass", "evidence": evidence}
        notes = [*record(command, params, trading=AWAITING), "Trading waits for a person: playbooks/resume.yml"]
        module.exit_json(changed=True, judged_at=now, titan_dr=resume.rows(gate, trading=AWAITING, notes=notes))
    gate = {}
    try:
        if resume.processes:
            resume.processes.begin()
        for stage in resume.stages:
            gate = resume.step(stage)
    except Exception as exc:
        # whatever it was: what is not proven to go well is halted
        why = str(exc) if isinstance(exc, (_resume.ResumeError, _latch.LatchError, OSError)) else f"{type(exc).__name__}: {exc}"
        module.fail_json(msg=f"Trading was halted again: {why}", titan_dr=resume.halt_again(why))
    module.exit_json(changed=True, judged_at=now, titan_dr=resume.rows(gate, trading="resumed", notes=record(command, params)))


def found_halted(params: dict[str, t.Any]) -> bool:
    """Whether a latch that allows nothing is fastened, whosesoever."""
    try:
        found = _latch.read(params["latch"])
    except OSError:
        return True
    return found is not None and not found.get("mode")


if __name__ == "__main__":
    main()
