#!/usr/bin/python
# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: diagnosis_info
short_description: Tell what a server knows of itself, for a diagnosis
version_added: "0.1.0"
author: [Titan DR maintainers (@titan-dr)]
description:
  - Reads, all at once and within seconds, what Redis and its unit say, what lies in its data directory, the state of trading, the lease and the halt latch,
    disks, memory and clock. Nothing is judged here and nothing is changed, not even on a server in ruins. C(playbooks/diagnose.yml) judges.
  - Without O(redis) it only looks from this host at others, O(reach).
options:
  redis:
    description: The Redis of this server, with C(config), C(data_dir), C(unit), C(user), and C(username) for another ACL user than the default one.
    type: dict
  redis_password:
    description: Password of Redis. Without it the one that its configuration or its ACL file holds in clear.
    type: str
    default: ""
  canary:
    description: Where the canary lies, with C(key) and C(db).
    type: dict
    default: {key: "titan:dr:canary", db: 0}
  book:
    description: Where the services keep positions and orders, with C(db), C(position) and C(order).
    type: dict
    default: {}
  latch:
    description: The file that halts trading while it exists.
    type: path
    default: /var/lib/titan-dr/halt
  probes:
    description: What to ask over HTTP, each with C(name), C(url), C(status) and C(expect).
    type: list
    elements: dict
    default: []
  paths:
    description: What a server of this kind has, by a word for it.
    type: dict
    default: {}
  reach:
    description: Other servers to connect to from here, each with C(host) and C(port).
    type: list
    elements: dict
    default: []
  timeout:
    description: Seconds for one answer.
    type: float
    default: 2.5
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
- name: What does the server know of itself
  titan.disaster_recovery.diagnosis_info:
    redis: {config: /etc/redis/redis.conf, data_dir: /var/lib/redis, unit: redis-server}
    paths: {Redis configuration: /etc/redis/redis.conf, application: /opt/titan/current}

- name: Can this server reach the other one
  titan.disaster_recovery.diagnosis_info:
    reach: [{host: 192.0.2.10, port: 22}]
"""

RETURN = r"""
diagnosis:
  description:
    - What was found. C(redis), C(unit), C(files), C(redis_conf), C(disks), C(memory), C(clock), C(lease), C(latch), C(owner), C(paths), C(probes), C(reach),
      and in C(errors) why one of them is not there.
  type: dict
  returned: always
"""

import concurrent.futures
import functools
import os
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _diagnosis, _probe, _redis, _state

Found = dict[str, t.Any]


def owner() -> Found:
    """Which environment claimed this server."""
    try:
        return _state.owner()
    except _state.StateError as exc:
        return {"text": str(exc)}


def present(paths: dict[str, str]) -> dict[str, bool]:
    """Which of them are there, and not empty."""
    return {name: bool(os.listdir(path)) if os.path.isdir(path) else os.path.isfile(path) and os.path.getsize(path) > 0 for name, path in paths.items()}


def asked(spec: Found, timeout: float) -> Found:
    return _probe.probe(spec, timeout).gate(str(spec["name"]))


def redis_parts(params: Found) -> dict[str, t.Callable[[], Found]]:
    """What can be asked side by side of Redis: its configuration decides what there is to ask."""
    spec, now = params["redis"], time.time()
    parts: dict[str, t.Callable[[], Found]] = {"unit": functools.partial(_diagnosis.unit, str(spec["unit"]))}
    try:
        conf = _redis.load_conf(spec["config"], spec.get("username", ""), params["redis_password"])
    except (OSError, UnicodeDecodeError, _redis.RedisError) as exc:
        return {**parts, "redis_conf": functools.partial(dict, verdict="fail", text=f"{spec['config']}: {exc}")}
    same = os.path.realpath(conf.directory) == os.path.realpath(spec["data_dir"])
    wrong = [] if same else [f"it says dir {conf.directory}, the inventory says {spec['data_dir']}"]
    wrong += conf.refused
    text = f"{spec['config']}: " + ("; ".join(wrong) or f"dir {conf.directory}")
    parts["redis_conf"] = functools.partial(dict, verdict="fail" if wrong else "pass", text=text)
    parts["redis"] = functools.partial(_diagnosis.ask_redis, conf, params["canary"], params["book"], params["timeout"])
    parts["files"] = functools.partial(_diagnosis.files, conf, str(spec.get("user", "")), now)
    return parts


def all_parts(params: Found) -> dict[str, t.Callable[[], t.Any]]:
    now, timeout = time.time(), params["timeout"]
    parts: dict[str, t.Callable[[], t.Any]] = {}
    for number, place in enumerate(params["reach"]):
        parts[f"reach {number}"] = functools.partial(_diagnosis.reach, str(place["host"]), int(place["port"]), timeout)
    if not params["redis"]:
        return parts
    for number, spec in enumerate(params["probes"]):
        parts[f"probe {number}"] = functools.partial(asked, spec, timeout)
    folders = ["/", *params["paths"].values(), os.path.dirname(params["latch"])]
    # on another server it is looked at there
    if not params["redis"].get("host"):
        parts |= redis_parts(params)
        folders.insert(0, params["redis"]["data_dir"])
    parts |= {
        "disks": functools.partial(_diagnosis.disks, folders),
        "memory": _diagnosis.memory,
        "lease": functools.partial(_diagnosis.lease, now),
        "latch": functools.partial(_diagnosis.latch, params["latch"], now),
        "owner": owner,
        "paths": functools.partial(present, params["paths"]),
    }
    return parts


def look(params: Found) -> Found:
    """Every part in a thread of its own; one that breaks says so and keeps none of the others from being told."""
    found: Found = {"reach": [], "probes": [], "errors": {}, "clock": time.time()}
    parts = all_parts(params)
    with concurrent.futures.ThreadPoolExecutor(max_workers=max(1, len(parts))) as pool:
        waiting = {name: pool.submit(part) for name, part in parts.items()}
    for name, future in waiting.items():
        try:
            said = future.result()
        except Exception as exc:  # of a server in ruins anything may break
            found["errors"][name] = f"{type(exc).__name__}: {exc}"
            continue
        if name.startswith("probe "):
            found["probes"].append(said)
        elif name.startswith("reach "):
            found["reach"].append(said)
        else:
            found[name] = said
    return found


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "redis": {"type": "dict"},
            "redis_password": {"type": "str", "default": "", "no_log": True},
            "canary": {"type": "dict", "default": {"key": "titan:dr:canary", "db": 0}},
            "book": {"type": "dict", "default": {}},
            "latch": {"type": "path", "default": "/var/lib/titan-dr/halt"},
            "probes": {"type": "list", "elements": "dict", "default": []},
            "paths": {"type": "dict", "default": {}},
            "reach": {"type": "list", "elements": "dict", "default": []},
            "timeout": {"type": "float", "default": 2.5},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        for spec in params["probes"]:
            _probe.check_spec(spec, str(spec.get("name")))
    except _probe.ProbeSpecError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(changed=False, diagnosis=look(params))


if __name__ == "__main__":
    main()
