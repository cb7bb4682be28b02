#!/usr/bin/python
# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight_info
short_description: Say whether a server may be recovered onto, reading only
version_added: "0.1.0"
author: [Titan DR maintainers (@titan-dr)]
description:
  - Checks rights, operating system, memory, disk, clock and whether the server is blank or ours, before anything is changed.
  - With O(in_place) the server is a Titan whose Redis is to be restored where it is. It may hold data and its ports may be in use.
    A Redis that answers while trading is on is refused, because what is newer than the restore point would be thrown away, unless O(confirmed).
  - Fails with all reasons at once, in seconds.
options:
  environment_id:
    description: The environment to be recovered.
    type: str
    required: true
  restore_point:
    description:
      - The preferred candidate for the Redis data, as M(titan.disaster_recovery.restore_point_info) gives it. Tells what is needed.
      - For a server without Redis that for the configuration.
    type: dict
    required: true
  redis_data_dir:
    description: Where the Redis data will lie. Without it Redis is on another server, and nothing of it is looked at here.
    type: path
  ports:
    description: TCP ports the components will listen on.
    type: list
    elements: int
    default: []
  controller_time:
    description: The controller's clock in seconds since the epoch, read before this module started.
    type: float
    required: true
  server_time:
    description:
      - The server's clock in seconds since the epoch, read before O(controller_time).
        With both the time that a busy controller takes to get here is not taken for a clock that is ahead.
    type: float
  clock_tolerance:
    description: Seconds that the clocks may differ.
    type: float
    default: 5
  in_place:
    description: Whether Redis is restored on the server that has it, and not on a blank one.
    type: bool
    default: false
  confirmed:
    description: Whether newer data may be thrown away although Redis answers and trading is on.
    type: bool
    default: false
  redis_config:
    description: The configuration file of Redis. Needed with O(in_place) and O(redis_data_dir).
    type: path
  redis_username:
    description: ACL user to ask Redis as; empty for the default user.
    type: str
    default: ""
  redis_password:
    description: Password for Redis, where its configuration does not hold it in clear.
    type: str
    default: ""
  redis_unit:
    description: The systemd unit of Redis.
    type: str
    default: redis-server
  redis_user:
    description: User that Redis runs as.
    type: str
    default: redis
  replicas_consent:
    description: Whether replicas that are attached to Redis may lose what they hold.
    type: bool
    default: false
  trading_probe:
    description:
      - The probe that passes when trading is on. Without it nobody here can tell, as on a server that does not trade itself, and a Redis that answers
        needs O(confirmed).
    type: dict
    default: {}
  run_id:
    description: This run. Needed with O(in_place). What this very run has recovered already is not refused.
    type: str
  require_no_registry:
    description: Whether a server that can reach a package registry is refused. Drills set it, to prove that a recovery needs none.
    type: bool
    default: false
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
- name: May this server be recovered onto
  titan.disaster_recovery.preflight_info:
    environment_id: production
    restore_point: "{{ found.plan.redis[0] }}"
    redis_data_dir: /var/lib/redis
    controller_time: "{{ now(utc=true).timestamp() }}"
"""

RETURN = r"""
redis_state:
  description:
    - With O(in_place) what Redis is. V(healthy) when it serves and says so, V(sick) when it does not or holds far less than the restore point, V(unknown)
      when it turns the credentials down, empty without Redis. What a healthy Redis has on its disk is no candidate for a restore without a point in time.
  type: str
  returned: always
recovered:
  description: The record of an earlier recovery of this environment onto this server, empty if there was none.
  type: dict
  returned: always
titan_dr:
  description: Rows for the ledger.
  type: dict
  returned: always
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import (
    _debian,
    _probe,
    _redis,
    _redis_cause,
    _redis_data,
    _redis_live,
    _redis_unit,
    _restore_point,
    _state,
)

# The dump twice (as fetched and as live data) and room to rewrite the AOF. In place the old data stays, but it takes its room already.
DISK_FACTOR = 3
# Packages and releases on a blank server; on one that has them only logs and the like.
DISK_REST = 1 << 30
DISK_REST_IN_PLACE = 64 << 20
# Seconds for the answer of a server that may well hang.
PATIENCE = 3.0


class Preflight:
    """Collects gates; `note` is for what only matters to people."""

    def __init__(self, params: dict[str, t.Any]) -> None:
        self.params = params
        self.gates: list[dict[str, str]] = []
        self.notes: list[str] = []
        self.redis_state = ""

    def gate(self, name: str, good: bool | None, evidence: str) -> None:
        self.gates.append({"name": name, "verdict": "unknown" if good is None else "pass" if good else "fail", "evidence": evidence})

    def system(self) -> None:
        server = self.params["restore_point"]["details"].get("server", {})
        here = _debian.system()
        differs = [f"{key} is {here[key]}, the restore point is of {server[key]}" for key in here if key in server and server[key] != here[key]]
        self.gate("operating_system", not differs, "; ".join(differs) or f"{here['os']} {here['release']} {here['architecture']}")

    def rights(self) -> None:
        self.gate("python", sys.version_info >= (3, 11), f"Python {sys.version.split()[0]}, 3.11 is needed")
        self.gate("root", os.geteuid() == 0, f"user id {os.geteuid()}")

    def resources(self) -> None:
        details = self.params["restore_point"]["details"]
        wanted = self.params["redis_data_dir"]
        need = (details["size"] * DISK_FACTOR if wanted else 0) + (DISK_REST_IN_PLACE if self.params["in_place"] else DISK_REST)
        wanted = place = wanted or "/"
        while not os.path.isdir(place):
            place = os.path.dirname(place)
        free = shutil.disk_usage(place).free
        self.gate("disk", free >= need, f"{free >> 20} MiB free for {wanted}, {need >> 20} MiB needed")
        with open("/proc/meminfo", encoding="ascii") as handle:
            available = int(re.search(r"MemAvailable:\s+(\d+)", handle.read()).group(1)) << 10  # type: ignore[union-attr]
        # The scratch Redis is gone before the live one starts. In place an old one may live beside it, but its memory is not available anyway.
        need = int(details.get("used_memory", 0) * 1.2)
        self.gate("memory", available >= need, f"{available >> 20} MiB available, {need >> 20} MiB needed")

    def clock(self) -> None:
        told, before = self.params["controller_time"], self.params["server_time"]
        # what was read later cannot be less, if the clocks agree
        skew = max(0.0, told - time.time(), (time.time() if before is None else before) - told)
        self.gate("clock", skew <= self.params["clock_tolerance"], f"{skew:.1f} s from the controller's clock, {self.params['clock_tolerance']} s allowed")

    def ours(self) -> dict[str, t.Any]:
        """The server is blank, or an earlier run of this environment claimed it."""
        owner: dict[str, t.Any] = {}
        # a record that cannot be read proves nothing
        with contextlib.suppress(_state.StateError):
            owner = _state.owner()
        if owner:
            good = owner.get("environment_id") == self.params["environment_id"]
            self.gate("blank_or_ours", good, f"claimed by environment {owner.get('environment_id')}, run {owner.get('run_id')}")
            return _state.recovered() if good else {}
        foreign = []
        data_dir = self.params["redis_data_dir"]
        if data_dir and os.path.isdir(data_dir) and os.listdir(data_dir):
            foreign.append(f"{data_dir} holds {', '.join(sorted(os.listdir(data_dir))[:3])}")
        foreign += [f"port {port} is in use" for port in self.params["ports"] if port_in_use(port)]
        self.gate("blank_or_ours", not foreign, "; ".join(foreign) or "no Redis data, no component's port in use")
        return {}

    def titan(self) -> dict[str, t.Any]:
        """The server is the Titan that the inventory describes, and restoring the Redis that it has would not make things worse."""
        environment, run_id = self.params["environment_id"], self.params["run_id"]
        self.gate("environment", *_state.belongs(environment))
        conf = self.redis_conf() if self.params["redis_data_dir"] else None
        recovered = _state.recovered()
        if (recovered.get("environment_id"), recovered.get("run_id")) == (environment, run_id):
            self.notes.append("this run has recovered this server already")
            return recovered
        if conf:
            self.intruders(conf)
            self.newer_data(conf)
            self.copies(conf)
        return {}

    def redis_conf(self) -> _redis.RedisConf | None:
        path, data_dir = self.params["redis_config"], self.params["redis_data_dir"]
        try:
            conf = _redis.load_conf(path, self.params["redis_username"], self.params["redis_password"])
        except (OSError, UnicodeDecodeError, _redis.RedisError) as exc:
            self.gate("redis_config", False, f"{path}: {exc}")
            return None
        wrong = [f"it says dir {conf.directory}, the inventory says {data_dir}"] * (os.path.realpath(conf.directory) != os.path.realpath(data_dir))
        wrong += [*conf.refused, *_redis_data.place_faults(data_dir, 0)]
        self.gate("redis_config", not wrong, f"{path}: " + ("; ".join(wrong) or f"dir {conf.directory}, appendonly {'yes' if conf.appendonly else 'no'}"))
        return conf

    def intruders(self, conf: _redis.RedisConf) -> None:
        """Nothing of others is stopped: a port or data that somebody else holds must be given free first."""
        try:
            held = _redis_cause.foreign(conf, self.params["redis_unit"], self.params["redis_data_dir"], time.time() + PATIENCE)
        except (_redis_unit.UnitError, OSError, subprocess.TimeoutExpired) as exc:
            self.gate("redis_port", None, str(exc))
            return
        evidence = f"{'; '.join(held)}, and is not {self.params['redis_unit']}: stop it, then run again" if held else "nobody else holds its port or its data"
        self.gate("redis_port", not held, evidence)

    def why(self, conf: _redis.RedisConf) -> str:
        """What keeps Redis from serving, in words."""
        try:
            with open(self.params["redis_config"], encoding="utf-8") as handle:
                config = handle.read()
            end = time.time() + PATIENCE
            found = _redis_cause.causes(conf, config, self.params["redis_unit"], self.params["redis_data_dir"], self.params["redis_user"], end)
        except (_redis_unit.UnitError, OSError, UnicodeDecodeError, subprocess.TimeoutExpired) as exc:
            found = [f"the cause could not be looked for: {exc}"]
        return "; ".join(found) or "no cause can be seen from outside"

    def newer_data(self, conf: _redis.RedisConf) -> None:
        """What Redis says of itself, and whether a recovery would throw away what a working Titan wrote since."""
        point = self.params["restore_point"]
        since = f"the newest restore point is {time.time() - point['taken_at']:.0f} s old"
        sick: list[str] | None
        try:
            client = _redis.connect(conf, PATIENCE)
            sick, said = complaints(client, _restore_point.total_keys(point["details"]["keyspace"]))
            client.close()
        except (_redis.AuthError, _redis.TlsError) as exc:
            # who is turned away has been answered: nothing is known of the data then, and it may be well
            sick, said = None, f"Redis cannot be asked: {exc}"
        except (_redis.RedisError, OSError, ValueError) as exc:
            sick, said = [str(exc)], ""
        self.redis_state = "sick" if sick else "unknown" if sick is None else "healthy"
        if sick:
            self.notes.append(f"why Redis is not healthy: {self.why(conf)}")
            self.gate("newer_data", True, f"Redis is not healthy: {'; '.join(sick)}; {since}")
            return
        told = bool(self.params["trading_probe"])
        on = _probe.probe(self.params["trading_probe"], PATIENCE).verdict == _probe.PASS if told else True
        trading = ("trading is on" if on else "trading is not on") if told else "whether trading is on cannot be asked from here"
        evidence = f"{said}, {trading}; {since}, all that is newer would be thrown away"
        self.notes.append(f"{evidence}; the data as it is now is kept beside the restored")
        if on and not self.params["confirmed"]:
            good = False if told and sick is not None else None
            self.gate("newer_data", good, f"{evidence}. If that is what you want, set database_corruption_confirm to true")
        else:
            self.gate("newer_data", True, evidence)

    def copies(self, conf: _redis.RedisConf) -> None:
        """Replicas hold newer data than any restore point and would lose it; a Sentinel would act on its own."""
        try:
            pid = _redis_unit.Unit(self.params["redis_unit"], time.time() + PATIENCE).main_pid()
            before = _redis_live.interview(conf, pid, self.params["replicas_consent"])
        except _redis_live.Refused as exc:
            self.gate("redis_copies", False, str(exc))
            return
        except (_redis_unit.UnitError, _redis.RedisError, OSError, subprocess.TimeoutExpired) as exc:
            self.gate("redis_copies", None, str(exc))
            return
        self.gate("redis_copies", True, "; ".join(before.notes) or "no replica and no Sentinel is attached")

    def registry(self) -> None:
        """The package registries that this server itself is configured for cannot be reached (or can, which matters in a drill only)."""
        hosts = registry_hosts()
        reached = [host for host in hosts if reachable(host)]
        evidence = f"{len(hosts)} configured, " + (f"{len(reached)} can be reached" if reached else "none can be reached")
        if self.params["require_no_registry"]:
            self.gate("no_package_registry", not reached if hosts else None, evidence)
        else:
            self.notes.append(f"package registries: {evidence}; a recovery uses none")


def complaints(client: _redis.Redis, keys_before: int) -> tuple[list[str], str]:
    """What is wrong with a Redis that answers, and a word on it. One that started empty beside lost data calls itself well: its keys tell."""
    client.call("PING")
    persistence = client.info("persistence")
    keys = _restore_point.total_keys(_redis.keyspace(client))
    wrong = [f"{name} is {persistence.get(name)}" for name in ("rdb_last_bgsave_status", "aof_last_write_status") if persistence.get(name) != "ok"]
    wrong += ["it is still loading"] * (persistence.get("loading") != "0")
    wrong += [f"it holds {keys} keys, the restore point {keys_before}"] * (keys * 2 < keys_before)
    return wrong, f"Redis answers and calls itself healthy, with {keys} keys"


def port_in_use(port: int) -> bool:
    """A TCP listener in this network namespace (state 0A in /proc/net/tcp)."""
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        with open(path, encoding="ascii") as handle:
            for line in list(handle)[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) == port:
                    return True
    return False


def registry_hosts() -> list[str]:
    """Hosts of the package sources this server is configured with."""
    found: set[str] = set()
    folder = "/etc/apt/sources.list.d"
    extra = [os.path.join(folder, name) for name in os.listdir(folder)] if os.path.isdir(folder) else []
    for path in ["/etc/apt/sources.list", *extra]:
        if os.path.isfile(path):
            with open(path, encoding="utf-8", errors="replace") as handle:
                found.update(re.findall(r"https?://([^/:\s]+)", handle.read()))
    return sorted(found)


def reachable(host: str) -> bool:
    try:
        socket.create_connection((host, 80), timeout=1).close()
    except OSError:
        return False
    return True


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "environment_id": {"type": "str", "required": True},
            "restore_point": {"type": "dict", "required": True},
            "redis_data_dir": {"type": "path"},
            "ports": {"type": "list", "elements": "int", "default": []},
            "controller_time": {"type": "float", "required": True},
            "server_time": {"type": "float"},
            "clock_tolerance": {"type": "float", "default": 5},
            "in_place": {"type": "bool", "default": False},
            "confirmed": {"type": "bool", "default": False},
            "redis_config": {"type": "path"},
            "redis_username": {"type": "str", "default": ""},
            "redis_password": {"type": "str", "default": "", "no_log": True},
            "redis_unit": {"type": "str", "default": "redis-server"},
            "redis_user": {"type": "str", "default": "redis"},
            "replicas_consent": {"type": "bool", "default": False},
            "trading_probe": {"type": "dict", "default": {}},
            "run_id": {"type": "str"},
            "require_no_registry": {"type": "bool", "default": False},
        },
        required_if=[("in_place", True, ("run_id",))],
        supports_check_mode=True,
    )
    if module.params["in_place"] and module.params["redis_data_dir"] and not module.params["redis_config"]:
        module.fail_json(msg="redis_config: is needed where Redis is restored in place")
    preflight = Preflight(module.params)
    preflight.rights()
    preflight.resources()
    preflight.clock()
    if module.params["in_place"]:
        recovered = preflight.titan()
    else:
        # what a recovery in place needs is on the server already
        preflight.system()
        recovered = preflight.ours()
        preflight.registry()
    rows: dict[str, t.Any] = {"gates": preflight.gates, "notes": preflight.notes}
    bad = [f"{gate['name']}: {gate['evidence']}" for gate in preflight.gates if gate["verdict"] != "pass"]
    if bad:
        reason = "This server cannot be recovered onto: " + "; ".join(bad)
        module.fail_json(msg=reason, recovered=recovered, redis_state=preflight.redis_state, titan_dr={**rows, "refused": reason})
    module.exit_json(changed=False, recovered=recovered, redis_state=preflight.redis_state, titan_dr=rows)


if __name__ == "__main__":
    main()
