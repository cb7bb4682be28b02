#!/usr/bin/python
# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_swap
short_description: Put a proven Redis snapshot live and check what the server then holds
version_added: "0.1.0"
author: [Titan DR maintainers (@titan-dr)]
description:
  - Stops Redis, moves the data directory aside as a whole, moves the stage made by M(titan.disaster_recovery.redis_stage) into its place and starts Redis.
  - With C(appendonly yes) the dump becomes the base of a multi-part AOF, because Redis ignores C(dump.rdb) then and would start empty.
  - A drop-in gives the unit a start timeout that fits the size of the data, so that systemd does not kill Redis while it loads.
  - After the start the keys, the canary, the role and a write are checked. A server that fails this is stopped again.
  - Reads password, directories and renamed commands from the configuration file. Neither CONFIG, DEBUG, KEYS nor SHUTDOWN is used.
options:
  stage:
    description: Directory with the proven dump.
    type: path
    required: true
  expected:
    description: The C(expected) that M(titan.disaster_recovery.redis_stage) returned.
    type: dict
    required: true
  restore_point:
    description: Restore point id, recorded beside the data.
    type: str
    required: true
  run_id:
    description: Names the directory that keeps the old data.
    type: str
    required: true
  data_dir:
    description: The live data directory.
    type: path
    required: true
  config:
    description: The configuration file of the server.
    type: path
    default: /etc/redis/redis.conf
  unit:
    description: The systemd unit of the server.
    type: str
    default: redis-server
  user:
    description: User that owns the data.
    type: str
    default: redis
  timeout:
    description: Seconds for all of it.
    type: float
    required: true
extends_documentation_fragment:
  - titan.disaster_recovery.attributes
attributes:
  check_mode:
    support: full
    details: Says what would be swapped.
  diff_mode:
    support: none
  idempotent:
    support: full
    details: Nothing is done when this run put this restore point live before and Redis still serves it.
"""

EXAMPLES = r"""
- name: Put the proven snapshot live
  titan.disaster_recovery.redis_swap:
    stage: "{{ staged.stage }}"
    expected: "{{ staged.expected }}"
    restore_point: "{{ staged.restore_point.id }}"
    run_id: 20260101T000000Z-1234
    data_dir: /var/lib/redis
    timeout: 300
"""

RETURN = r"""
kept:
  description: Where the data that was there before lies now.
  type: str
  returned: when something was swapped
titan_dr:
  description: Rows for the ledger.
  type: dict
  returned: always
"""

import json
import os
import pwd
import shutil
import subprocess
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _redis, _restore_point

DUMP = "base.rdb"
RECORD_DIR = "/var/lib/titan-dr"
WRITE_PROBE = "titan:dr:write-probe"


class SwapError(Exception):
    """The swap cannot be done or its result is not what was proven."""


def start_timeout(size: int) -> int:
    """Seconds systemd grants the start: 60 s a GiB (slowest load measured: 16 s a GiB) and never less than its own default of 90."""
    return max(90, 60 * (1 + size // 2**30))


def layout(conf: _redis.RedisConf) -> tuple[str, str]:
    """Where the dump goes below the data directory, and the AOF manifest's text (empty without AOF)."""
    if not conf.appendonly:
        return conf.dbfilename, ""
    base = f"{conf.appendfilename}.1.base.rdb"
    return os.path.join(conf.appenddirname, base), f"file {base} seq 1 type b\n"


def build(stage: str, conf: _redis.RedisConf, user: str) -> str:
    """Lay the dump out as the server expects it in `stage`/live; returns that directory."""
    live = os.path.join(stage, "live")
    place, manifest = layout(conf)
    target = os.path.join(live, place)
    dump = os.path.join(stage, DUMP)
    if not os.path.exists(dump) and not os.path.exists(target):
        raise SwapError(f"{stage} holds no dump: Redis would start empty")
    os.makedirs(os.path.dirname(target), mode=0o750, exist_ok=True)
    if os.path.exists(dump):
        os.rename(dump, target)
    if manifest:
        with open(os.path.join(live, conf.appenddirname, f"{conf.appendfilename}.manifest"), "w", encoding="ascii") as handle:
            handle.write(manifest)
            os.fsync(handle.fileno())
    owner = pwd.getpwnam(user)
    for folder, folders, files in os.walk(live):
        for name in [folder, *(os.path.join(folder, item) for item in folders + files)]:
            os.chown(name, owner.pw_uid, owner.pw_gid)
        for item in files:
            os.chmod(os.path.join(folder, item), 0o640)
    os.chmod(live, 0o750)
    return live


def systemctl(*words: str, deadline: float) -> str:
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, timeout=max(1.0, deadline - time.time()), check=False)
    if done.returncode and words[0] != "is-active":
        raise SwapError(f"systemctl {' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip()


def check_live(conf: _redis.RedisConf, expected: dict[str, t.Any], deadline: float, alive: t.Callable[[], bool]) -> list[dict[str, str]]:
    """Ask the started server; gates with their evidence. A write that is refused or a replica role fails, whatever PING says."""
    client = _redis.wait_ready(conf.address, conf.password, deadline, alive)
    found = _redis.keyspace(client)
    problems = _restore_point.compare_keyspace(expected["keyspace"], found)
    counted = f"{_restore_point.total_keys(found)} keys in {', '.join(sorted(found)) or 'no database'}"
    gates = [_gate("redis_keys", not problems, "; ".join(problems) or counted)]
    if expected["canary"]:
        canary = _redis.canary(client, expected["canary"]["key"], expected["canary"]["db"])
        seen = canary["seq"] if canary else None
        wanted = expected["canary"]["seq"]
        gates.append(_gate("redis_canary", seen is not None and seen >= wanted, f"sequence {seen}, the manifest recorded {wanted}"))
    replication, stats = client.info("replication"), client.info("stats")
    gates.append(_gate("redis_role", replication.get("role") == "master", f"role {replication.get('role')}"))
    gates.append(_gate("redis_no_eviction", stats.get("evicted_keys") == "0", f"{stats.get('evicted_keys')} keys evicted since the start"))
    try:
        client.call("SET", WRITE_PROBE, "1", "PX", "1")
        if conf.command("DEL"):
            client.call(conf.command("DEL"), WRITE_PROBE)  # until Redis gets to it, a key that expired is still counted
        gates.append(_gate("redis_write", True, "a write was accepted"))
    except _redis.RedisError as exc:
        gates.append(_gate("redis_write", False, str(exc)))
    client.close()
    return gates


def _gate(name: str, good: bool, evidence: str) -> dict[str, str]:
    return {"name": name, "verdict": "pass" if good else "fail", "evidence": evidence}


def swap(params: dict[str, t.Any], conf: _redis.RedisConf, timings: dict[str, float]) -> tuple[str, list[dict[str, str]]]:
    deadline = time.time() + params["timeout"]
    data_dir, unit = params["data_dir"].rstrip("/"), params["unit"]
    kept = f"{data_dir}.before-{params['run_id']}"
    # Asked before Redis is stopped. Without a data directory an earlier swap of this run broke off between its two renames, and goes on.
    if os.path.exists(data_dir) and os.path.exists(kept):
        raise SwapError(f"{kept} exists already: data kept by an earlier swap of this run is not overwritten")
    live = build(params["stage"], conf, params["user"])
    size = sum(os.path.getsize(os.path.join(folder, name)) for folder, dummy, files in os.walk(live) for name in files)
    drop_in = f"/etc/systemd/system/{unit}.service.d/titan-dr.conf"
    os.makedirs(os.path.dirname(drop_in), exist_ok=True)
    with open(drop_in, "w", encoding="ascii") as handle:
        handle.write(f"# Loading takes longer than the default allows.\n[Service]\nTimeoutStartSec={start_timeout(size)}\n")
    systemctl("daemon-reload", deadline=deadline)
    systemctl("stop", unit, deadline=deadline)
    if os.path.exists(data_dir):
        os.rename(data_dir, kept)
    os.rename(live, data_dir)
    shutil.rmtree(params["stage"])
    started = time.monotonic()
    try:
        systemctl("start", unit, deadline=deadline)
        gates = check_live(conf, params["expected"], deadline, lambda: systemctl("is-active", unit, deadline=deadline) in ("active", "activating"))
    except (SwapError, _redis.RedisError, subprocess.TimeoutExpired) as exc:
        gates = [{"name": "redis_start", "verdict": "fail", "evidence": str(exc)}]
    timings["start"] = round(time.monotonic() - started, 2)
    if any(gate["verdict"] != "pass" for gate in gates):
        systemctl("stop", unit, deadline=time.time() + 30)
    return kept, gates


def served_before(params: dict[str, t.Any], conf: _redis.RedisConf, record: str) -> list[dict[str, str]]:
    """Gates when this run already put this restore point live and it still serves; else an empty list."""
    try:
        with open(record, encoding="utf-8") as handle:
            known = json.load(handle)
    except FileNotFoundError:
        return []
    if known != {"restore_point": params["restore_point"], "run_id": params["run_id"]}:
        return []
    try:
        gates = check_live(conf, params["expected"], time.time() + 5, lambda: False)
    except _redis.RedisError:
        return []
    return gates if all(gate["verdict"] == "pass" for gate in gates) else []


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "stage": {"type": "path", "required": True},
            "expected": {"type": "dict", "required": True},
            "restore_point": {"type": "str", "required": True},
            "run_id": {"type": "str", "required": True},
            "data_dir": {"type": "path", "required": True},
            "config": {"type": "path", "default": "/etc/redis/redis.conf"},
            "unit": {"type": "str", "default": "redis-server"},
            "user": {"type": "str", "default": "redis"},
            "timeout": {"type": "float", "required": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    if module.check_mode:
        module.exit_json(changed=True, titan_dr={"notes": [f"would move {params['data_dir']} aside and put restore point {params['restore_point']} live"]})
    timings: dict[str, float] = {}
    record = os.path.join(RECORD_DIR, "redis-live.json")
    try:
        with open(params["config"], encoding="utf-8") as handle:
            conf = _redis.parse_conf(handle.read())
        if os.path.realpath(conf.directory) != os.path.realpath(params["data_dir"]):
            raise SwapError(f"{params['config']} says dir {conf.directory}, the inventory says {params['data_dir']}")
        if conf.tls_only:
            raise SwapError(f"{params['config']} offers TLS only, which this release cannot check")
        before = served_before(params, conf, record)
        if before:
            module.exit_json(changed=False, titan_dr={"gates": before})
        kept, gates = swap(params, conf, timings)
    except (SwapError, _redis.RedisError, OSError, subprocess.TimeoutExpired) as exc:
        module.fail_json(msg=str(exc), titan_dr={"gates": [{"name": "redis_start", "verdict": "fail", "evidence": str(exc)}], "timings": timings})
    rows = {"gates": gates, "timings": timings}
    bad = [f"{gate['name']}: {gate['evidence']}" for gate in gates if gate["verdict"] != "pass"]
    if bad:
        module.fail_json(msg=f"Redis is stopped again, the old data lies in {kept}: {'; '.join(bad)}", kept=kept, titan_dr=rows)
    with open(record, "w", encoding="utf-8") as handle:
        json.dump({"restore_point": params["restore_point"], "run_id": params["run_id"]}, handle)
    module.exit_json(changed=True, kept=kept, titan_dr=rows)


if __name__ == "__main__":
    main()
