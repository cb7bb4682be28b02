#!/usr/bin/python
# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: config_swap
short_description: Replace damaged configuration files by their newest proven version, and keep what was there
version_added: "0.3.0"
author: [Titan DR maintainers (@titan-dr)]
description:
  - With O(state=staged) it checks the files as M(titan.disaster_recovery.config_verify) does, takes the newest proven version of each damaged one from the
    git history on the server, else from the restore points in O(candidates), else from copies that earlier recoveries kept, and checks the whole as it will
    be. Nothing that lives is touched.
  - Files that may be used stay as they are, also where they differ from every revision.
  - With O(state=swapped) it exchanges what was staged. Each file gets its name by one rename, complete, with owner and mode. What was there is kept as
    C(<path>.before-<run id>). A file that somebody changed since it was looked at stops the exchange before it begins.
  - Where C(redis.conf) was exchanged, or Redis runs with an older one, Redis is restarted, and it is proven that no key was lost.
options:
  state:
    description: How far to go.
    type: str
    choices: [staged, swapped]
    required: true
  run_id:
    description: Names the stage and the kept files.
    type: str
    required: true
  whole:
    description: Replace the files too that are valid and differ from the proven revision. Their edits are lost, copies are kept.
    type: bool
    default: false
  incident_at:
    description: When the incident began, in seconds since the epoch, for the statement of what is lost.
    type: float
    default: 0
  timeout:
    description: Seconds for all of it.
    type: float
    required: true
  candidates:
    description: The configuration in restore points, as for M(titan.disaster_recovery.tree_restore). Only used where the server holds no proven version.
    default: []
    required: false
  identity:
    default: ""
    required: false
extends_documentation_fragment:
  - titan.disaster_recovery.attributes
  - titan.disaster_recovery.lease
  - titan.disaster_recovery.configuration
  - titan.disaster_recovery.candidates
attributes:
  check_mode:
    support: full
    details: Checks and chooses, and says what would be replaced. Nothing is staged.
  diff_mode:
    support: none
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Choose and prove
  titan.disaster_recovery.config_swap:
    state: staged
    configuration: "{{ config_restore_configuration }}"
    run_id: 20260101T000000Z-1234
    timeout: 30
  register: staged

- name: Exchange
  titan.disaster_recovery.config_swap:
    state: swapped
    configuration: "{{ config_restore_configuration }}"
    run_id: 20260101T000000Z-1234
    timeout: 30
"""

RETURN = r"""
replaced:
  description: Files that are, or are to be, replaced, each with C(path) and C(revision), after the exchange with C(kept) and C(at).
  type: list
  elements: dict
  returned: success
unproven:
  description: Damaged files without a proven version, with the reason. Not empty only where O(candidates) is.
  type: dict
  returned: when O(state=staged)
affected:
  description: Components that must start anew.
  type: list
  elements: str
  returned: success
not_before:
  description: Files that were exchanged and when, as M(titan.disaster_recovery.config_verify) takes it.
  type: dict
  returned: when O(state=swapped)
titan_dr:
  description: Rows for the ledger.
  type: dict
  returned: always
"""

import os
import shutil
import subprocess
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import (
    _config,
    _config_history,
    _config_live,
    _config_plan,
    _config_restart,
    _fetch,
    _lease,
    _redis,
    _redis_unit,
    _state,
)
from ansible_collections.titan.disaster_recovery.plugins.module_utils._components import ComponentError
from ansible_collections.titan.disaster_recovery.plugins.module_utils._config_options import CONFIGURATION


class Work:
    """The configuration of this server and everything that is known of it."""

    def __init__(self, params: dict[str, t.Any]) -> None:
        self.params, self.raw = params, params["configuration"]
        self.settings = _config.parse_settings(self.raw)
        self.deadline = time.time() + params["timeout"]
        self.tools = _config_live.tools(self.settings)
        self.wanted = _config_live.wanted(self.settings.paths)
        self.notes: list[str] = []

    # --- choosing ----------------------------------------------------------------------------------------------------------

    def choose(self) -> tuple[_config_plan.Plan, list[str]]:
        """The plan, and the components that must start anew."""
        revisions, notes = _config_history.read_history(self.settings.history, self.settings.repository, self.wanted, self.deadline)
        self.notes += notes
        running = _config_live.look(self.settings, self.raw["pm2_home"], min(3.0, self.params["timeout"]))
        tree = _config_live.read_tree(self.settings.paths)
        plan, proof = self._plan(revisions, tree, running)
        for candidate in self.params["candidates"]:
            if not plan.unproven:
                break
            revisions += self._fetched(candidate)
            plan, proof = self._plan(revisions, tree, running)
        if plan.unproven and self.params["candidates"]:
            plan, proof = self._plan(revisions, tree, running, copies=True)
        composed = {**_config_live.contents(tree), **plan.content}
        rest = _config.check_all(composed, proof.reference(), proof.expected(), self.settings, self.tools)
        for finding in rest.findings:
            if finding.replaces and finding.path not in plan.unproven:
                plan.unproven[finding.path] = f"with what would be there: {finding.text()}"
        for text in rest.unknown:
            plan.unproven.setdefault(text.partition(":")[0], f"cannot be checked: {text}")
        stale = _config_live.stale(running, tree, self.settings)
        names = {*_config.affected(plan.content, {**proof.reference(), **composed}, self.settings), *stale}
        self.notes += stale.values()
        return plan, [component.name for component in self.settings.components if component.name in names]

    def _plan(
        self, revisions: list[_config_history.Revision], tree: dict[str, _config_live.Entry], running: dict[str, _config_live.Running], copies: bool = False
    ) -> tuple[_config_plan.Plan, _config_history.Proof]:
        proof = _config_history.prove(revisions, self.settings, self.tools)
        report = _config_live.check_live(tree, proof.reference(), proof.expected(), self.settings, self.tools)
        kept = _config_plan.undamaged_copies(self.settings.paths) if copies else _none
        return _config_plan.choose(report, tree, proof, self.settings, self.tools, running, kept, self.params["whole"]), proof

    def _fetched(self, candidate: dict[str, t.Any]) -> list[_config_history.Revision]:
        """What a restore point holds: the files, and the history that travels with them."""
        stage = _state.path("stage", f"{self.params['run_id']}-config-fetch")

        def attempt(entry: dict[str, t.Any], source: dict[str, t.Any]) -> list[_config_history.Revision]:
            shutil.rmtree(stage, ignore_errors=True)
            os.makedirs(stage, mode=0o700)
            sink = [_fetch.tool("tar"), "--extract", "--no-same-owner", "--directory", stage]
            _fetch.fetch(entry["object"], source, self.params["identity"], sink, self.deadline)
            tree = _config_live.read_tree(stage + path for path in self.settings.paths)
            files = {path.removeprefix(stage): found.data for path, found in tree.items() if not found.error}
            history, notes = _config_history.read_history(stage + self.settings.history, stage + "/no-repository", self.wanted, self.deadline)
            self.notes += [f"restore point {entry['id']}: {note}" for note in notes[:1] if not history]
            return [*history, _config_history.Revision(f"restore point {entry['id']} from {source['store']}", entry["taken_at"], files)]

        try:
            _used, _store, revisions, rejected = _fetch.first_good([candidate], attempt)
        except _fetch.FetchError as exc:
            self.notes.append(f"passed over: {exc}")
            return []
        finally:
            shutil.rmtree(stage, ignore_errors=True)
        self.notes += [f"passed over: {reason}" for reason in rejected]
        return revisions

    # --- the exchange ------------------------------------------------------------------------------------------------------

    def exchange(self) -> dict[str, t.Any]:
        plan = _config_plan.load(self.params["run_id"])
        done, mended = _config_plan.swap(plan, self.params["run_id"])
        gates: list[dict[str, t.Any]] = []
        if any(item["path"].endswith(".service") for item in done):
            # PM2's own daemon runs by the old unit until it starts anew
            _redis_unit.systemctl("daemon-reload", deadline=self.deadline)
            for item in done:
                if item["path"].endswith(".service"):
                    _redis_unit.systemctl("stop", os.path.basename(item["path"]), deadline=self.deadline)
        redis = [component.name for component in self.settings.components if component.kind == "redis"]
        restarted = set(redis) & set(plan["affected"])
        if restarted:
            conf = self.settings.redis
            evidence, notes = _config_restart.restart(
                conf["config"], conf.get("unit", "redis-server"), conf.get("username", ""), self.raw["redis_password"], self.deadline
            )
            self.notes += notes
            gates.append({"name": "redis_restarted", "verdict": "pass", "evidence": evidence})
        kept = [item["kept"] for item in done if item["kept"]]
        gates.append(
            {
                "name": "config_swapped",
                "verdict": "pass",
                "evidence": f"{len(done)} files exchanged, {len(mended)} put right; kept: {', '.join(kept) or 'none'}",
            }
        )
        self.notes += [f"owner and mode of {path} were put right; who could read it before has read it, so think of its secrets" for path in mended]
        self.notes += [f"{item['path']}: what was there is kept as {item['kept'] or '(nothing was there)'}" for item in done]
        return {
            "changed": bool(done or mended or restarted),
            "replaced": done,
            "affected": plan["affected"],
            "not_before": {item["path"]: item["at"] for item in done},
            "titan_dr": {"gates": gates, "notes": self.notes},
        }


def _none(path: str) -> list[tuple[str, float, bytes]]:
    return []


def stage(module: AnsibleModule, work: Work) -> t.NoReturn:
    params = module.params
    started = time.monotonic()
    plan, affected = work.choose()
    notes = work.notes + plan.notes
    replaced = [{"path": item.path, "revision": item.revision} for item in plan.files]
    result: dict[str, t.Any] = {"replaced": replaced, "unproven": plan.unproven, "affected": affected}
    rows: dict[str, t.Any] = {"notes": notes, "timings": {"config_stage": round(time.monotonic() - started, 2)}}
    if plan.unproven:
        reason = "; ".join(f"{path}: {why}" for path, why in plan.unproven.items())
        if params["candidates"]:
            rows["gates"] = [{"name": "config_proof", "verdict": "fail", "evidence": reason}]
            module.fail_json(msg=f"No proven version of the configuration was found. {reason}", **result, titan_dr=rows)
        # the restore points have not been looked at yet
        module.exit_json(changed=False, **result, titan_dr={**rows, "notes": [*work.notes, f"not on this server: {reason}"]})
    if module.check_mode:
        notes += [f"would replace {item.path} by {item.revision}" for item in plan.files] + [
            f"would put owner and mode of {item.path} right" for item in plan.mended
        ]
        module.exit_json(changed=bool(plan.files or plan.mended), **result, titan_dr=rows)
    _config_plan.save(plan, params["run_id"], {"affected": affected})
    chosen = sorted({item.revision for item in plan.files})
    evidence = f"{len(plan.files)} damaged files, replaced from {', '.join(chosen)}" if plan.files else "no file needs another version"
    rows["gates"] = [{"name": "config_proof", "verdict": "pass", "evidence": f"{evidence}; what will be there passes every check"}]
    rows["rpo"] = plan.rpo(params["incident_at"] or time.time())
    if chosen:
        rows["restore_point"] = {"id": chosen[0], "taken_at": min(item.at for item in plan.files)}
    module.exit_json(changed=False, **result, titan_dr=rows)


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["staged", "swapped"], "required": True},
            "configuration": CONFIGURATION,
            "run_id": {"type": "str", "required": True},
            "whole": {"type": "bool", "default": False},
            "incident_at": {"type": "float", "default": 0},
            "timeout": {"type": "float", "required": True},
            "candidates": {**_fetch.CANDIDATES, "required": False, "default": []},
            "identity": {"type": "str", "default": "", "no_log": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    swapping = params["state"] == "swapped"
    if swapping and module.check_mode:
        module.exit_json(changed=True, replaced=[], affected=[], not_before={}, titan_dr={"notes": ["would exchange what was staged"]})
    with _lease.command(module, f"config_swap:{params['state']}"):
        name = "config_swapped" if swapping else "config_proof"
        try:
            work = Work(params)
            if not swapping:
                stage(module, work)
            module.exit_json(**work.exchange())
        except (_config.ConfigError, ComponentError, _config_plan.PlanError, _config_restart.RestartError, _fetch.FetchError) as exc:
            module.fail_json(msg=str(exc), titan_dr={"gates": [{"name": name, "verdict": "fail", "evidence": str(exc)}]})
        except (_redis.RedisError, _redis_unit.UnitError, OSError, subprocess.TimeoutExpired, KeyError) as exc:
            module.fail_json(msg=f"{type(exc).__name__}: {exc}", titan_dr={"gates": [{"name": name, "verdict": "fail", "evidence": str(exc)}]})


if __name__ == "__main__":
    main()
