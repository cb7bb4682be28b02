#!/usr/bin/python
# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: validate_info
short_description: Check what a machine can check of a recovered or a healthy server
version_added: "0.1.0"
author: [Titan DR maintainers (@titan-dr)]
description:
  - Redis answers, is writable and persists; configuration parses; logs can be written; the services' own reports are as expected; trading is in the expected
    state; memory and disk have room. Each is pass, fail or unknown with its evidence.
  - Probes that do not pass at once are asked again until O(timeout).
options:
  redis:
    description:
      - The server to ask, with C(config) and C(data_dir), and C(username) for a user other than the default one.
      - With C(host) it is on another server, whose own validation looks at it.
    type: dict
    required: true
  redis_password:
    description: Password of Redis. Without it the one that its configuration or its ACL file holds in clear.
    type: str
    default: ""
  canary:
    description: Where the canary lies, with C(key) and C(db).
    type: dict
    required: true
  config_paths:
    description: Files and directories of the configuration.
    type: list
    elements: path
    required: true
  logs_dir:
    description: Directory that the services' user must be able to write to. Without it no services write here.
    type: path
  user:
    description: User of the services.
    type: str
    required: true
  probes:
    description: What to ask over HTTP, each with C(name), C(url), C(status) and C(expect).
    type: list
    elements: dict
    required: true
  trading:
    description: Trading must be in this state.
    type: str
    choices: [halted, resumed, awaiting resume]
    required: true
  trading_probe:
    description: The probe that tells whether it is. Empty on a server that does not trade; then nothing is said of trading.
    type: dict
    default: {}
  max_response_ms:
    description: Slowest acceptable answer of a probe.
    type: int
    default: 1000
  max_memory_percent:
    description: Highest acceptable use of memory.
    type: int
    default: 85
  max_disk_percent:
    description: Highest acceptable use of the file system with the Redis data, or of that with the logs where there is none.
    type: int
    default: 90
  timeout:
    description: Seconds until every probe must pass, and for which a write of Redis to its disk is waited for.
    type: float
    default: 20
extends_documentation_fragment:
  - titan.disaster_recovery.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Validate
  titan.disaster_recovery.validate_info:
    redis: {config: /etc/redis/redis.conf, data_dir: /var/lib/redis}
    canary: {key: "titan:dr:canary", db: 1}
    config_paths: [/etc/redis/redis.conf, /opt/titan/config]
    logs_dir: /opt/titan/logs
    user: titan
    probes: "{{ titan_probes }}"
    trading: halted
    trading_probe: "{{ titan_halt_call.confirm }}"
"""

RETURN = r"""
at:
  description: The moment of the last look, in seconds since the epoch on the server.
  type: float
  returned: always
titan_dr:
  description: Rows for the ledger.
  type: dict
  returned: always
"""

import concurrent.futures
import json
import os
import pwd
import re
import shutil
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _probe, _redis

Gate = dict[str, str]
UNKNOWN = "unknown"


def gate(name: str, good: bool | None, evidence: str) -> Gate:
    return {"name": name, "verdict": UNKNOWN if good is None else "pass" if good else "fail", "evidence": evidence}


def settled(client: _redis.Redis, appendonly: bool, deadline: float) -> dict[str, str]:
    """The persistence of Redis when nothing is being written any more, or at the deadline."""
    running = "aof_rewrite_in_progress" if appendonly else "rdb_bgsave_in_progress"
    found = client.info("persistence")
    while found.get(running) != "0" and time.time() < deadline:
        time.sleep(0.1)
        found = client.info("persistence")
    return found


def redis_gates(params: dict[str, t.Any], deadline: float) -> list[Gate]:
    """Redis itself, not what a service says of it. On another server it is looked at there."""
    if params["redis"].get("host"):
        return []
    try:
        conf = _redis.load_conf(params["redis"]["config"], params["redis"].get("username", ""), params.get("redis_password", ""))
        client = _redis.connect(conf)
        keys = _redis.keyspace(client)
        replication, stats, persistence = client.info("replication"), client.info("stats"), settled(client, conf.appendonly, deadline)
        canary = _redis.canary(client, params["canary"]["key"], params["canary"]["db"])
        client.close()
    except (_redis.RedisError, OSError, ValueError) as exc:
        return [gate("redis", None, str(exc))]
    counted = ", ".join(f"{name} {entry['keys']} keys" for name, entry in sorted(keys.items()))
    on = persistence.get("aof_enabled") == "1"
    states = {name: persistence.get(name) for name in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")}
    told = ", ".join(f"{name} {state}" for name, state in states.items())
    return [
        gate("redis", replication.get("role") == "master" and persistence.get("loading") == "0", f"role {replication.get('role')}; {counted or 'no keys'}"),
        gate("redis_data", bool(keys), f"{counted or 'no keys'}; {'canary ' + str(canary['seq']) if canary else 'no canary'}"),
        gate("redis_persistence", on == conf.appendonly and set(states.values()) == {"ok"}, f"AOF {'on' if on else 'off'}, {told}"),
        gate("redis_eviction", stats.get("evicted_keys") == "0", f"{stats.get('evicted_keys')} keys evicted"),
    ]


def no_duplicates(pairs: list[tuple[str, t.Any]]) -> dict[str, t.Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def config_gate(paths: list[str]) -> Gate:
    """Every path is there, every JSON file parses strictly."""
    count, problems = 0, []
    for path in paths:
        if not os.path.exists(path):
            problems.append(f"{path} is missing")
        files = [path] if os.path.isfile(path) else [os.path.join(folder, name) for folder, dummy, names in os.walk(path) for name in names]
        for name in files:
            count += 1
            try:
                with open(name, "rb") as handle:
                    content = handle.read()
                if name.endswith(".json"):
                    json.loads(content, object_pairs_hook=no_duplicates)
            except (OSError, ValueError) as exc:
                problems.append(f"{name}: {exc}")
    return gate("config", not problems and count > 0, "; ".join(problems) or f"{count} files, each JSON file parses")


def logs_gate(directory: str, user: str) -> Gate:
    """By mode and owner: a read-only check writes nothing."""
    try:
        owner, found = pwd.getpwnam(user), os.stat(directory)
    except (KeyError, OSError) as exc:
        return gate("logs_writable", False, str(exc))
    mode = found.st_mode
    writable = bool(mode & 0o200) if found.st_uid == owner.pw_uid else bool(mode & 0o020) if found.st_gid == owner.pw_gid else bool(mode & 0o002)
    read_only = bool(os.statvfs(directory).f_flag & os.ST_RDONLY)
    return gate("logs_writable", writable and not read_only, f"{directory} mode {mode & 0o7777:o} of user id {found.st_uid}")


def resource_gates(params: dict[str, t.Any]) -> list[Gate]:
    with open("/proc/meminfo", encoding="ascii") as handle:
        numbers = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+)", handle.read(), re.M)}
    memory = round(100 * (1 - numbers["MemAvailable"] / numbers["MemTotal"]))
    if not params["redis"].get("host"):
        place = params["redis"]["data_dir"]
    else:
        # logs that are not there fail a gate of their own
        place = params["logs_dir"] if params["logs_dir"] and os.path.isdir(params["logs_dir"]) else "/"
    usage = shutil.disk_usage(place)
    disk = round(100 * (1 - usage.free / usage.total))
    return [
        gate("memory_use", memory <= params["max_memory_percent"], f"{memory} %, at most {params['max_memory_percent']} %"),
        gate("disk_use", disk <= params["max_disk_percent"], f"{disk} %, at most {params['max_disk_percent']} %"),
    ]


def probe_until(spec: dict[str, t.Any], name: str, slowest: int, deadline: float) -> Gate:
    """Ask until it passes or the time is over; a right answer that comes too late fails."""
    while True:
        started = time.monotonic()
        verdict = _probe.probe(spec, max(0.5, min(5.0, deadline - time.time())))
        took = round((time.monotonic() - started) * 1000)
        good = verdict.verdict == _probe.PASS
        if good and took <= slowest:
            return gate(name, True, f"{verdict.evidence}; {took} ms")
        if time.time() >= deadline:
            return gate(name, False, f"{verdict.evidence}; {took} ms, at most {slowest}") if good else verdict.gate(name)
        time.sleep(0.2)


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "redis": {"type": "dict", "required": True},
            "redis_password": {"type": "str", "default": "", "no_log": True},
            "canary": {"type": "dict", "required": True},
            "config_paths": {"type": "list", "elements": "path", "required": True},
            "logs_dir": {"type": "path"},
            "user": {"type": "str", "required": True},
            "probes": {"type": "list", "elements": "dict", "required": True},
            "trading": {"type": "str", "choices": ["halted", "resumed", "awaiting resume"], "required": True},
            "trading_probe": {"type": "dict", "default": {}},
            "max_response_ms": {"type": "int", "default": 1000},
            "max_memory_percent": {"type": "int", "default": 85},
            "max_disk_percent": {"type": "int", "default": 90},
            "timeout": {"type": "float", "default": 20},
        },
        supports_check_mode=True,
    )
    params = module.params
    deadline = time.time() + params["timeout"]
    asked = [(spec["name"], spec) for spec in params["probes"]] + ([("trading", params["trading_probe"])] if params["trading_probe"] else [])
    try:
        for name, spec in asked:
            _probe.check_spec(spec, name)
        with concurrent.futures.ThreadPoolExecutor(max_workers=max(1, len(asked))) as pool:
            waiting = [pool.submit(probe_until, spec, name, params["max_response_ms"], deadline) for name, spec in asked]
            gates = [*redis_gates(params, deadline), config_gate(params["config_paths"])]
            gates += [logs_gate(params["logs_dir"], params["user"])] if params["logs_dir"] else []
            gates += [*resource_gates(params), *(future.result() for future in waiting)]
    except (_probe.ProbeSpecError, OSError) as exc:
        module.fail_json(msg=str(exc), at=time.time(), titan_dr={"gates": [gate("validation", None, str(exc))]})
    rows: dict[str, t.Any] = {"gates": gates, "notes": [f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} processors"]}
    if any(item["name"] == "trading" and item["verdict"] == "pass" for item in gates):
        rows["trading"] = params["trading"]
    bad = [f"{item['name']} is {item['verdict']}: {item['evidence']}" for item in gates if item["verdict"] != "pass"]
    if bad:
        module.fail_json(msg="; ".join(bad), at=time.time(), titan_dr=rows)
    module.exit_json(changed=False, at=time.time(), titan_dr=rows)


if __name__ == "__main__":
    main()
