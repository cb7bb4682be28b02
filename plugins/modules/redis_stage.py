#!/usr/bin/python
# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_stage
short_description: Stage the Redis data that loses least, proven in a scratch Redis
version_added: "0.1.0"
author: [Titan DR maintainers (@titan-dr)]
description:
  - Fetches the newest usable snapshot, decrypts it into a directory beside the live data directory, walks it and loads it in a private scratch Redis. Digest,
    format version, checksum, counts, canary and fingerprint must be those of its manifest, and the server must be able to hold it. Live data is not touched.
  - A candidate that cannot be fetched, opened, loaded or that differs from its manifest is passed over for the next one, with the reason and with how much
    older the one is that is used.
  - With O(salvage) the server's own append only file and dump, and a replica, are examined beside the restore points, each in a process and a scratch Redis
    of its own and always on a copy. Of those that are proven the one that loses least is staged. By which rules see
    docs/scenarios/database_corruption.md.
  - Waits for C(redis-server) to be installed, so that it can run while packages are being installed.
options:
  candidates:
    required: false
  identity:
    required: false
  mode:
    description:
      - With V(start) the work goes on in the background, in memory of a process of its own, and ends at O(timeout) whatever happens to the controller.
      - With V(wait) the result of that work is waited for and returned. Of the options only O(run_id) and O(timeout) are looked at;
        for the work itself O(candidates), O(identity), O(data_dir), O(canary), O(incident_started_at) and O(installed_marker) are required, too.
      - The module's own background work is used and not C(async), because C(async) would write the parameters with their secrets to the disk.
    type: str
    choices: [run, start, wait]
    default: run
  data_dir:
    description: The live data directory. The stage is made beside it, so that the swap is a rename.
    type: path
  run_id:
    description: Names the stage.
    type: str
    required: true
  user:
    description: User that owns the data and runs the scratch Redis.
    type: str
    default: redis
  canary:
    description: Where the canary lies, with C(key) and C(db).
    type: dict
  config:
    description: The configuration of the server. Its limits are held against each candidate when the file is there at the start.
    type: path
    default: /etc/redis/redis.conf
  invariants:
    description: What is known of the data. A candidate that breaks one is passed over.
    type: list
    elements: dict
    default: []
    suboptions:
      class:
        description: Key class, which is a key up to its last colon.
        type: str
        required: true
      min:
        description: Least number of keys.
        type: int
      max:
        description: Greatest number of keys.
        type: int
      expires_max:
        description: Greatest number of keys that have an expiry.
        type: int
      immutable:
        description: Whether a key of this class never changes once it was written. An append only file in which one differs from a restore point is not proven.
        type: bool
        default: false
  salvage:
    description:
      - What may be staged besides a restore point. With V(auto) what is proven by the rules for data without a manifest, with V(unproven_ok) also what can be
        loaded and is not proven.
    type: str
    choices: [archive_only, auto, unproven_ok]
    default: archive_only
  salvage_within:
    description: Seconds since the start that all candidates have. From then on the first that is proven ends the wait for the others.
    type: float
    default: 60
  tolerance:
    description: Share of a key class of the newest restore point that data without a manifest may lack and still be proven.
    type: float
    default: 0.1
  replica:
    description: A replica to take the data of, too. Nothing is changed there.
    type: dict
    suboptions:
      host:
        description: Its address.
        type: str
        required: true
      port:
        description: Its port.
        type: int
        default: 6379
      username:
        description: ACL user, empty for the default user.
        type: str
        default: ""
      password:
        description: Password.
        type: str
        default: ""
      tls:
        description: Whether it speaks TLS. Its certificate must carry O(replica.host).
        type: bool
        default: false
      ca:
        description: File with the authority to trust. The system's without it.
        type: path
  restore_to:
    description:
      - Point in time in seconds since the epoch. What was written from this second on is left out. The newest restore point before it is taken, or the append
        only file up to it, where its timestamps tell.
    type: float
  incident_started_at:
    description: Start of the incident in seconds since the epoch. The distance to the canary in the snapshot is the measured data loss.
    type: float
  installed_marker:
    description: File that appears when the Redis packages are installed.
    type: path
  timeout:
    description: Seconds for all of it.
    type: float
    required: true
extends_documentation_fragment:
  - titan.disaster_recovery.attributes
  - titan.disaster_recovery.lease
  - titan.disaster_recovery.candidates
attributes:
  check_mode:
    support: full
    details: Says which restore point would be staged. Nothing is fetched.
  diff_mode:
    support: none
  idempotent:
    support: full
    details: A stage of the same run that was proven before is used again.
"""

EXAMPLES = r"""
- name: Stage and prove the snapshot
  titan.disaster_recovery.redis_stage:
    candidates: "{{ plan.redis }}"
    identity: "{{ titan_age_identity }}"
    data_dir: /var/lib/redis
    run_id: 20260101T000000Z-1234
    canary: {key: "titan:dr:canary", db: 1}
    incident_started_at: 1767225600.0
    installed_marker: /etc/redis/redis.conf
    timeout: 600
"""

RETURN = r"""
stage:
  description: Directory that holds the proven dump.
  type: str
  returned: success
restore_point:
  description: The restore point that was staged and how it was proven.
  type: dict
  returned: success
expected:
  description: What the manifest says of the data, or what was found in data without one, for the check after the swap.
  type: dict
  returned: success
data_at:
  description: When the staged data is of, in seconds since the epoch, by its canary or else the time of the snapshot.
  type: float
  returned: success
titan_dr:
  description: Rows for the ledger.
  type: dict
  returned: always
"""

import contextlib
import functools
import glob
import json
import os
import pwd
import shutil
import signal
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import (
    _fetch,
    _journal,
    _lease,
    _rdb_report,
    _redis,
    _redis_data,
    _redis_proof,
    _replica,
    _salvage,
    _scratch,
    _state,
    _target,
)

# Two clocks that differ by more make expiries and the data loss meaningless.
CLOCK_TOLERANCE = 60.0
# What the work needs, and a wait for it does not
WORKS_ON = ("candidates", "identity", "data_dir", "canary", "incident_started_at", "installed_marker")
INVARIANT = {
    "class": {"type": "str", "required": True},
    "min": {"type": "int"},
    "max": {"type": "int"},
    "expires_max": {"type": "int"},
    "immutable": {"type": "bool", "default": False},
}


def stage_dir(data_dir: str, run_id: str) -> str:
    return f"{data_dir.rstrip('/')}.stage-{run_id}"


def wait_for(path: str, deadline: float) -> None:
    while not os.path.exists(path):
        if time.time() > deadline:
            raise _fetch.FetchError(f"{path} did not appear in time: the Redis packages are not installed")
        time.sleep(0.05)


def job_file(run_id: str) -> str:
    return _state.path("stage", f"redis-{run_id}.json")


def outbox_of(run_id: str) -> str:
    """Where the candidates' examiners put what they found: for nobody else to write."""
    return job_file(run_id).removesuffix(".json") + ".outcomes"


def forget_others(data_dir: str, directory: str) -> None:
    """Stages of earlier runs that ended before their swap only take up room; so do the outcomes of their jobs."""
    prefix = stage_dir(data_dir, "")
    for path in glob.glob(glob.escape(prefix) + "*"):
        if path != directory and not running(int(read(job_file(path.removeprefix(prefix))).get("pid", 0))):
            shutil.rmtree(path)
    own = job_file(directory.removeprefix(prefix))
    for path in glob.glob(job_file("*")):
        if path != own and not running(int(read(path).get("pid", 0))):
            os.unlink(path)
            shutil.rmtree(path.removesuffix(".json") + ".outcomes", ignore_errors=True)


def read_config(path: str) -> str | None:
    """The configuration of a server that is restored in place; None on one that is only being built."""
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as handle:
        return handle.read()
    return None


def target_of(config: str | None, details: dict[str, t.Any]) -> _rdb_report.Target:
    """The server that is to hold the data: by its configuration, or as the one was that was backed up."""
    family, number = _scratch.version(_scratch.locate())
    if config is not None:
        return _target.of_server(config, f"{family} {number}")
    limits = details["limits"]
    return _rdb_report.Target(family, number, limits["databases"], limits["maxmemory"], limits["policy"], ())


def fetch(params: dict[str, t.Any], candidate: dict[str, t.Any], source: dict[str, t.Any], dump: str, deadline: float) -> str:
    """The candidate as `dump`; returns its SHA-256."""
    details = candidate["details"]
    # The dump itself, and the base that Redis writes of it after the start.
    faults = _redis_data.place_faults(params["data_dir"].rstrip("/"), 2 * details["size"] + _redis_data.MARGIN)
    if faults:
        raise _fetch.FetchError("; ".join(faults))
    if candidate["taken_at"] > time.time() + CLOCK_TOLERANCE:
        raise _fetch.FetchError(f"it was taken {candidate['taken_at'] - time.time():.0f} s from now: this server's clock is wrong, and keys would expire by it")
    sink = _redis_proof.Sink(dump)
    try:
        _fetch.fetch(candidate["object"], source, params["identity"], sink.stream, deadline)
        digest = sink.close()
    except OSError as exc:
        raise _fetch.FetchError(f"it cannot be written: {exc.strerror}") from exc
    except _fetch.FetchError as exc:
        with contextlib.suppress(OSError):
            sink.close()
        raise _fetch.FetchError(f"it cannot be written: {sink.fault.strerror}") if sink.fault else exc from exc
    size = os.path.getsize(dump)
    if size != details["size"]:
        raise _fetch.FetchError(f"the dump has {size} bytes, {details['size']} in the manifest")
    return digest


def restore_points(params: dict[str, t.Any], directory: str, deadline: float) -> _salvage.Outcome:
    """The newest restore point that is proven."""
    dump = os.path.join(directory, _redis_data.DUMP)
    config = read_config(params["config"])
    timings: dict[str, float] = {}

    def attempt(candidate: dict[str, t.Any], source: dict[str, t.Any]) -> tuple[_rdb_report.Contents, dict[str, t.Any]]:
        details = candidate["details"]
        shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(directory, mode=0o700)
        started = time.monotonic()
        digest = fetch(params, candidate, source, dump, deadline)
        timings["fetch"] = round(time.monotonic() - started, 2)
        started = time.monotonic()
        wait_for(params["installed_marker"], deadline)
        timings["wait_for_packages"] = round(time.monotonic() - started, 2)
        owner = pwd.getpwnam(params["user"])
        for path in (os.path.dirname(directory), directory, dump):
            os.chown(path, owner.pw_uid, owner.pw_gid)
        started = time.monotonic()
        target = target_of(config, details)
        canary = params["canary"] if details.get("canary") else None
        try:
            proven = _redis_proof.prove(dump, digest, details, canary, target, params["user"], deadline, witness=params["salvage"] != "archive_only")
        except _redis_proof.Faulty as exc:
            raise _fetch.FetchError(str(exc)) from exc
        contents, found = proven
        broken = _redis_proof.invariant_faults(params["invariants"], contents)
        if broken:
            raise _fetch.FetchError(f"its data cannot be right: {'; '.join(broken)}")
        refuse_later(params, contents, found["canary"])
        timings["prove"] = round(time.monotonic() - started, 2)
        return contents, {**found, "server": f"{target.server} {target.version}"}

    candidates = params["candidates"]
    candidate, store, (contents, found), rejected = _fetch.first_good(candidates, attempt)
    counted = ", ".join(f"{name} {entry['keys']} keys" for name, entry in sorted(found["keyspace"].items()))
    proof = f"SHA-256, age, RDB {contents.version}, checksum {contents.checksum}, structure, loaded in a scratch Redis with sanitized payloads: "
    proof += f"{counted or 'no keys'}, {found['expired']} expired, fingerprint of {found['fingerprint']['keys']} keys"
    proof += f", canary {found['canary']['seq']}" if found["canary"] else ", no canary"
    notes = [f"passed over: {reason}" for reason in rejected]
    newest = max(other["taken_at"] for other in candidates)
    if newest > candidate["taken_at"]:
        notes.append(f"restore point {candidate['id']} is {newest - candidate['taken_at']:.0f} s older than the newest one: so much more is lost")
    return _salvage.Outcome(
        _salvage.ARCHIVE,
        f"restore point {candidate['id']}",
        store,
        _salvage.PROVEN,
        proof=proof,
        dump=dump,
        taken_at=candidate["taken_at"],
        contents=contents,
        found=found,
        last_canary=int(found["canary"]["seq"]) if found["canary"] else None,
        notes=notes + _redis_proof.losses(contents),
        timings=timings,
        details=candidate["details"],
        position=candidates.index(candidate),
    )


def refuse_later(params: dict[str, t.Any], contents: _rdb_report.Contents, canary: dict[str, float] | None) -> None:
    """With a point in time: nothing that was written after it."""
    before = params["restore_to"]
    if before is None:
        return
    late = max((contents.taken_at or 0.0) + 1, canary["at"] if canary else 0.0)
    if late > before:
        raise _fetch.FetchError("it was taken after the point in time that is wanted")


def tasks_of(params: dict[str, t.Any], outbox: str, deadline: float) -> list[_salvage.Task]:
    """The candidates: the restore points, and what there is beside them."""
    newest = params["candidates"][0]["details"] if params["candidates"] else {}
    size = newest.get("size", 0)
    archive = _salvage.Task(
        _salvage.ARCHIVE,
        "restore points",
        "archive",
        lambda folder: restore_points(params, folder, deadline),
        memory=newest.get("used_memory", 2 * size),
        disk=2 * size,
    )
    config = read_config(params["config"])
    if params["salvage"] == "archive_only" or config is None:
        return [archive]
    conf = _redis.parse_conf(config)
    rules = _salvage.Rules(
        target=target_of(config, {}),
        user=params["user"],
        canary=params["canary"],
        invariants=params["invariants"],
        newest=newest,
        tolerance=params["tolerance"],
        before=params["restore_to"],
        deadline=deadline,
    )
    tasks = [archive]
    data_dir, replica = params["data_dir"].rstrip("/"), params["replica"]
    log, dump = _salvage.sizes(conf, data_dir)
    if dump:
        path = os.path.join(data_dir, conf.dbfilename)
        work = functools.partial(_salvage.server_dump, path, rules)
        tasks.append(_salvage.Task(_salvage.DUMP, "dump of the server", path, work, memory=2 * dump, disk=2 * dump))
    if log and conf.appendonly:
        witnesses = _salvage.waits(outbox, [task.kind for task in tasks], min(deadline, time.time() + params["salvage_within"]))
        work = functools.partial(_salvage.server_log, conf, data_dir, rules, witnesses=witnesses)
        tasks.append(_salvage.Task(_salvage.AOF, "append only file of the server", data_dir, work, memory=2 * log, disk=3 * log))
    if replica and params["restore_to"] is None:
        work = functools.partial(_salvage.replica_dump, replica, rules)
        where = f"{replica['host']}:{replica['port']}"
        tasks.append(_salvage.Task(_salvage.REPLICA, "replica", where, work, memory=archive.memory, disk=archive.disk))
    return tasks


def outcomes_of(params: dict[str, t.Any], directory: str, deadline: float) -> list[_salvage.Outcome]:
    outbox = outbox_of(params["run_id"])
    tasks = tasks_of(params, outbox, deadline)
    if len(tasks) == 1:
        return [tasks[0].work(os.path.join(directory, tasks[0].kind))]
    _salvage.hand_over(directory, params["user"])
    shutil.rmtree(outbox, ignore_errors=True)
    os.makedirs(outbox, mode=0o700)
    found = os.statvfs(os.path.dirname(directory))
    try:
        return _salvage.race(
            tasks,
            directory,
            outbox,
            deadline=deadline,
            patience=params["salvage_within"],
            cores=len(os.sched_getaffinity(0)),
            memory=_scratch.free_memory(),
            disk=found.f_bavail * found.f_frsize - _redis_data.MARGIN,
        )
    finally:
        shutil.rmtree(outbox)


def stage(params: dict[str, t.Any], directory: str, timings: dict[str, float]) -> dict[str, t.Any]:
    deadline = time.time() + params["timeout"]
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory, mode=0o700)
    outcomes = outcomes_of(params, directory, deadline)
    chosen = _salvage.choose(outcomes, params["salvage"] == "unproven_ok")
    archive = outcomes[0]
    for one in outcomes:
        timings.update(one.timings)
    incident = params["incident_started_at"]
    rows = [one.row(incident, one is chosen) for one in outcomes]
    if chosen is None:
        raise NoneGood("; ".join(f"{one.name}: {'; '.join(one.reasons)}" if one is not archive else "; ".join(one.reasons) for one in outcomes), outcomes, rows)
    take(directory, chosen.dump, params["user"])
    details = chosen.details or {
        "keyspace": chosen.found["keyspace"],
        "expired": chosen.found["expired"],
        "fingerprint": chosen.found["fingerprint"],
        "canary": chosen.found["canary"],
        "databases": _redis.parse_conf(read_config(params["config"]) or "").databases,
    }
    family, number = _scratch.version(_scratch.locate())
    server = chosen.found.get("server", f"{family} {number}")
    is_archive = chosen.kind == _salvage.ARCHIVE
    point: dict[str, t.Any] = {"id": chosen.kind}
    if is_archive:
        candidate = params["candidates"][chosen.position]
        # the next runs learn from the sizes how the time grows with the data
        point = {"id": candidate["id"], "bytes": details["size"], "object_bytes": candidate["object"]["size"]}
    notes = [*chosen.notes, *_salvage.lost(outcomes, chosen)]
    if not is_archive:
        notes += [note for note in archive.notes if note.startswith("passed over")]
        losses = [f"the {one.name} would lose {one.loss(incident)} s" for one in outcomes if one is not chosen and one.verdict == _salvage.PROVEN]
        notes.insert(0, "; ".join([f"restored from the {chosen.name} and not from a restore point, because it loses less", *losses]))
        if chosen.verdict != _salvage.PROVEN:
            notes.insert(0, f"with consent, although it is not proven: {'; '.join(chosen.reasons)}")
    return {
        "stage": directory,
        "restore_point": {**point, "source": chosen.source, "taken_at": chosen.taken_at, "proof": chosen.proof},
        "expected": _redis_proof.expectation(details, params["canary"], t.cast("_rdb_report.Contents", chosen.contents), chosen.found["used_memory"], server),
        "data_at": chosen.data_at,
        "rpo": {"actual_s": chosen.loss(incident), "basis": chosen.basis},
        "notes": notes,
        "candidates": rows,
        "versions": {"redis": details.get("version", number)},
    }


class NoneGood(Exception):
    """None of the candidates may be restored."""

    def __init__(self, text: str, outcomes: list[_salvage.Outcome], rows: list[dict[str, t.Any]]) -> None:
        super().__init__(text)
        self.unknown = outcomes[0].verdict == _salvage.UNPROVEN
        self.rows = rows


def take(directory: str, dump: str, user: str) -> None:
    """The chosen dump to its place; what the others left goes."""
    place = os.path.join(directory, _redis_data.DUMP)
    os.rename(dump, place)
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        if os.path.isdir(path):
            shutil.rmtree(path)
        elif path != place:
            os.unlink(path)
    with open(place, "rb") as handle:
        os.fsync(handle.fileno())
    owner = pwd.getpwnam(user)
    for path in (directory, place):
        os.chown(path, owner.pw_uid, owner.pw_gid)


def work(params: dict[str, t.Any], directory: str) -> dict[str, t.Any]:
    """Stage and prove; the result for the ledger and the next step, or why there is none."""
    timings: dict[str, float] = {}
    forget_others(params["data_dir"], directory)
    try:
        result = stage(params, directory, timings)
    except NoneGood as exc:
        shutil.rmtree(directory, ignore_errors=True)
        gate = {"name": "redis_proof", "verdict": "unknown" if exc.unknown else "fail", "evidence": str(exc)}
        return {"failed": f"No Redis data was restored: {exc}", "titan_dr": {"gates": [gate], "timings": timings, "candidates": exc.rows}}
    except (_fetch.FetchError, _scratch.ProofError, _redis.RedisError, OSError, KeyError, ValueError) as exc:
        shutil.rmtree(directory, ignore_errors=True)
        # A scratch Redis that cannot be asked says nothing of the data.
        gate = {"name": "redis_proof", "verdict": "unknown" if isinstance(exc, _scratch.NotProven) else "fail", "evidence": str(exc)}
        return {"failed": f"No Redis data was restored: {exc}", "titan_dr": {"gates": [gate], "timings": timings}}
    rows = {
        "restore_point": result["restore_point"],
        "rpo": result.pop("rpo"),
        "versions": result.pop("versions"),
        "gates": [{"name": "redis_proof", "verdict": "pass", "evidence": result["restore_point"]["proof"]}],
        "notes": result.pop("notes"),
        "candidates": result.pop("candidates"),
        "timings": timings,
    }
    return {**result, "titan_dr": rows}


def write(job: str, outcome: dict[str, t.Any]) -> None:
    with open(job + ".new", "w", encoding="utf-8") as handle:
        json.dump(outcome, handle)
    os.rename(job + ".new", job)


def read(job: str) -> dict[str, t.Any]:
    try:
        with open(job, encoding="utf-8") as handle:
            found = json.load(handle)
    except FileNotFoundError:
        return {}
    return found if isinstance(found, dict) else {}


def running(pid: int) -> bool:
    """The process lives and is not a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as handle:
            return handle.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def proven_before(directory: str, job: str) -> bool:
    """This run made the stage already, or is making it; or it put it live before it broke off."""
    found = read(job)
    if "stage" in found:
        record = _redis_data.read_record()
        live = record.get("run_id") == directory.rpartition(".stage-")[2] and record.get("state") in ("live", "exchanging")
        return live or os.path.isdir(directory)
    return running(int(found.get("pid", 0)))


def in_background(function: t.Callable[[], None], job: str, timeout: float) -> None:
    """Run the function in a process that outlives the connection, but not its time."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    try:
        write(job, {"pid": os.getpid()})
        # The default action of the alarm ends the process; its children end with the pipes they are fed from.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(max(1, int(timeout) + 5))
        function()
    finally:
        os._exit(0)


def wait(job: str, deadline: float) -> dict[str, t.Any]:
    """The outcome of the background work; a work that died says so."""
    while time.time() < deadline:
        found = read(job)
        if "stage" in found or "failed" in found:
            return found
        if found and not running(int(found.get("pid", 0))) and read(job) == found:
            reason = "the background work died"
            break
        time.sleep(0.05)
    else:
        reason = "the background work did not end in time"
    return {"failed": f"No Redis data was restored: {reason}", "titan_dr": {"gates": [{"name": "redis_proof", "verdict": "unknown", "evidence": reason}]}}


def carry_on(command: _lease.Command, params: dict[str, t.Any], directory: str, job: str) -> None:
    """The work in the background, under the lease of the command that began it."""
    with command.carried_on():
        outcome = work(params, directory)
        write(job, outcome)
        if "failed" in outcome:
            command.end(_journal.FAILED)


def finish(module: AnsibleModule, outcome: dict[str, t.Any]) -> t.NoReturn:
    if "failed" in outcome:
        module.fail_json(msg=outcome["failed"], titan_dr=outcome["titan_dr"])
    module.exit_json(changed=True, **outcome)


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "mode": {"type": "str", "choices": ["run", "start", "wait"], "default": "run"},
            "candidates": {**_fetch.CANDIDATES, "required": False},
            "identity": {**_fetch.IDENTITY, "required": False},
            "data_dir": {"type": "path"},
            "run_id": {"type": "str", "required": True},
            "user": {"type": "str", "default": "redis"},
            "canary": {"type": "dict"},
            "config": {"type": "path", "default": "/etc/redis/redis.conf"},
            "invariants": {"type": "list", "elements": "dict", "default": [], "options": INVARIANT},
            "salvage": {"type": "str", "choices": ["archive_only", "auto", "unproven_ok"], "default": "archive_only"},
            "salvage_within": {"type": "float", "default": 60},
            "tolerance": {"type": "float", "default": 0.1},
            "replica": {"type": "dict", "options": _replica.ARGUMENTS},
            "restore_to": {"type": "float"},
            "incident_started_at": {"type": "float"},
            "installed_marker": {"type": "path"},
            "timeout": {"type": "float", "required": True},
        },
        required_if=[("mode", mode, WORKS_ON) for mode in ("run", "start")],
        supports_check_mode=True,
    )
    params = module.params
    job = job_file(params["run_id"])
    if params["mode"] == "wait":
        if module.check_mode:
            module.exit_json(changed=True, titan_dr={})
        finish(module, wait(job, time.time() + params["timeout"]))
    if params["restore_to"] is not None:
        params["restore_to"] = _salvage.whole_second(params["restore_to"])
        params["candidates"] = [candidate for candidate in params["candidates"] if candidate["taken_at"] + 1 <= params["restore_to"]]
    directory = stage_dir(params["data_dir"], params["run_id"])
    if module.check_mode:
        first = params["candidates"][0] if params["candidates"] else None
        note = f"would fetch and prove the Redis data of restore point {first['id']}" if first else "there is no restore point"
        module.exit_json(changed=True, titan_dr={"notes": [note]})
    with _lease.command(module, "redis_stage", {"candidates": [candidate["id"] for candidate in params["candidates"]]}) as command:
        os.makedirs(os.path.dirname(job), mode=0o700, exist_ok=True)
        if params["mode"] == "start":
            if not proven_before(directory, job):
                in_background(lambda: carry_on(command, params, directory, job), job, params["timeout"])
            if "stage" not in read(job):
                command.leave()
            module.exit_json(changed=False, msg="the stage is being made in the background")
        finish(module, work(params, directory))


if __name__ == "__main__":
    main()
