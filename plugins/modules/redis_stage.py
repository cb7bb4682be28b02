#!/usr/bin/python
# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_stage
short_description: Stage a Redis snapshot and prove it in a scratch Redis
version_added: "0.1.0"
author: [Titan DR maintainers (@titan-dr)]
description:
  - Fetches the newest usable snapshot, decrypts it into a directory beside the live data directory, loads it in a private scratch Redis and
    compares keys, databases and canary with the manifest. Live data is not touched.
  - A candidate that cannot be fetched, opened, loaded or that differs from its manifest is passed over for the next one, with the reason.
  - Waits for C(redis-server) to be installed, so that it can run while packages are being installed.
options:
  mode:
    description:
      - With V(start) the work goes on in the background, in memory of a process of its own, and ends at O(timeout) whatever happens to the controller.
      - With V(wait) the result of that work is waited for and returned.
      - The module's own background work is used and not C(async), because C(async) would write the parameters with their secrets to the disk.
    type: str
    choices: [run, start, wait]
    default: run
  data_dir:
    description: The live data directory. The stage is made beside it, so that the swap is a rename.
    type: path
    required: true
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
    required: true
  incident_started_at:
    description: Start of the incident in seconds since the epoch. The distance to the canary in the snapshot is the measured data loss.
    type: float
    required: true
  installed_marker:
    description: File that appears when the Redis packages are installed.
    type: path
    default: /var/lib/titan-dr/bundle/redis-installed
  timeout:
    description: Seconds for all of it.
    type: float
    required: true
extends_documentation_fragment:
  - titan.disaster_recovery.attributes
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
  description: What the manifest says of the data, for the check after the swap.
  type: dict
  returned: success
titan_dr:
  description: Rows for the ledger.
  type: dict
  returned: always
"""

import glob
import json
import os
import pwd
import shutil
import signal
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _fetch, _scratch

DUMP = "base.rdb"


def stage_dir(data_dir: str, run_id: str) -> str:
    return f"{data_dir.rstrip('/')}.stage-{run_id}"


def wait_for(path: str, deadline: float) -> None:
    while not os.path.exists(path):
        if time.time() > deadline:
            raise _fetch.FetchError(f"{path} did not appear in time: the Redis packages are not installed")
        time.sleep(0.05)


def job_file(run_id: str) -> str:
    return os.path.join(_fetch.STATE_DIR, "stage", f"redis-{run_id}.json")


def forget_others(data_dir: str, directory: str) -> None:
    """Stages of earlier runs that ended before their swap only take up room."""
    prefix = stage_dir(data_dir, "")
    for path in glob.glob(glob.escape(prefix) + "*"):
        if path != directory and not running(int(read(job_file(path.removeprefix(prefix))).get("pid", 0))):
            shutil.rmtree(path)


def expectation(candidate: dict[str, t.Any], canary: dict[str, t.Any]) -> dict[str, t.Any]:
    """The manifest's redis section in the shape the proof takes."""
    details = candidate["details"]
    recorded = details.get("canary")
    return {**{name: details[name] for name in ("keyspace", "expired", "databases")}, "canary": {**canary, **recorded} if recorded else None}


def stage(params: dict[str, t.Any], directory: str, timings: dict[str, float]) -> dict[str, t.Any]:
    deadline = time.time() + params["timeout"]
    dump = os.path.join(directory, DUMP)

    def attempt(candidate: dict[str, t.Any], source: dict[str, t.Any]) -> dict[str, t.Any]:
        shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(directory, mode=0o700)
        started = time.monotonic()
        with open(dump, "wb") as sink:
            _fetch.fetch(candidate["object"], source, params["identity"], sink, deadline)
            os.fsync(sink.fileno())
        timings["fetch"] = round(time.monotonic() - started, 2)
        if os.path.getsize(dump) != candidate["details"]["size"]:
            raise _fetch.FetchError(f"the dump has {os.path.getsize(dump)} bytes, {candidate['details']['size']} in the manifest")
        started = time.monotonic()
        wait_for(params["installed_marker"], deadline)
        timings["wait_for_packages"] = round(time.monotonic() - started, 2)
        owner = pwd.getpwnam(params["user"])
        for path in (directory, dump):
            os.chown(path, owner.pw_uid, owner.pw_gid)
        started = time.monotonic()
        try:
            found = _scratch.prove(dump, directory, expectation(candidate, params["canary"]), params["user"], deadline)
        except _scratch.ProofError as exc:
            raise _fetch.FetchError(str(exc)) from exc
        timings["prove"] = round(time.monotonic() - started, 2)
        return found

    candidate, store, found, rejected = _fetch.first_good(params["candidates"], attempt)
    canary = found["canary"]
    counted = ", ".join(f"{name} {entry['keys']} keys" for name, entry in sorted(found["keyspace"].items()))
    proof = f"SHA-256, age, loaded in a scratch Redis with sanitized payloads: {counted or 'no keys'}, {found['expired']} expired"
    proof += f", canary {canary['seq']}" if canary else ", no canary"
    data_at, basis = (canary["at"], "canary") if canary else (candidate["taken_at"], "time of the snapshot")
    return {
        "stage": directory,
        "restore_point": {"id": candidate["id"], "source": store, "taken_at": candidate["taken_at"], "proof": proof},
        "expected": expectation(candidate, params["canary"]),
        "rpo": {"actual_s": round(max(0.0, params["incident_started_at"] - data_at), 2), "basis": basis},
        "rejected": rejected,
        "versions": {"redis": candidate["details"]["version"]},
    }


def work(params: dict[str, t.Any], directory: str) -> dict[str, t.Any]:
    """Stage and prove; the result for the ledger and the next step, or why there is none."""
    timings: dict[str, float] = {}
    forget_others(params["data_dir"], directory)
    try:
        result = stage(params, directory, timings)
    except (_fetch.FetchError, OSError, KeyError) as exc:
        shutil.rmtree(directory, ignore_errors=True)
        gate = {"name": "redis_proof", "verdict": "fail", "evidence": str(exc)}
        return {"failed": f"No Redis data was restored: {exc}", "titan_dr": {"gates": [gate], "timings": timings}}
    rows = {
        "restore_point": result["restore_point"],
        "rpo": result.pop("rpo"),
        "versions": result.pop("versions"),
        "gates": [{"name": "redis_proof", "verdict": "pass", "evidence": result["restore_point"]["proof"]}],
        "notes": [f"passed over: {reason}" for reason in result.pop("rejected")],
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
    """This run made the stage already, or is making it."""
    found = read(job)
    return (os.path.isdir(directory) and "stage" in found) or running(int(found.get("pid", 0)))


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


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "mode": {"type": "str", "choices": ["run", "start", "wait"], "default": "run"},
            "candidates": _fetch.CANDIDATES,
            "identity": _fetch.IDENTITY,
            "data_dir": {"type": "path", "required": True},
            "run_id": {"type": "str", "required": True},
            "user": {"type": "str", "default": "redis"},
            "canary": {"type": "dict", "required": True},
            "incident_started_at": {"type": "float", "required": True},
            "installed_marker": {"type": "path", "default": "/var/lib/titan-dr/bundle/redis-installed"},
            "timeout": {"type": "float", "required": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    directory = stage_dir(params["data_dir"], params["run_id"])
    job = job_file(params["run_id"])
    if module.check_mode:
        first = params["candidates"][0] if params["candidates"] else None
        note = f"would fetch and prove the Redis data of restore point {first['id']}" if first else "there is no restore point"
        module.exit_json(changed=True, titan_dr={"notes": [note]} if params["mode"] != "wait" else {})
    if params["mode"] == "start":
        if not proven_before(directory, job):
            in_background(lambda: write(job, work(params, directory)), job, params["timeout"])
        module.exit_json(changed=False, msg="the stage is being made in the background")
    outcome = wait(job, time.time() + params["timeout"]) if params["mode"] == "wait" else work(params, directory)
    if "failed" in outcome:
        module.fail_json(msg=outcome["failed"], titan_dr=outcome["titan_dr"])
    module.exit_json(changed=True, **outcome)


if __name__ == "__main__":
    main()
