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
  - Fails with all reasons at once, in seconds.
options:
  environment_id:
    description: The environment to be recovered.
    type: str
    required: true
  restore_point:
    description: The preferred candidate for the Redis data, as M(titan.disaster_recovery.restore_point_info) gives it. Tells what is needed.
    type: dict
    required: true
  redis_data_dir:
    description: Where the Redis data will lie.
    type: path
    required: true
  ports:
    description: TCP ports the components will listen on.
    type: list
    elements: int
    default: []
  controller_time:
    description: The controller's clock in seconds since the epoch.
    type: float
    required: true
  clock_tolerance:
    description: Seconds that the clocks may differ.
    type: float
    default: 5
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
recovered:
  description: The record of an earlier recovery of this environment onto this server, empty if there was none.
  type: dict
  returned: always
titan_dr:
  description: Rows for the ledger.
  type: dict
  returned: always
"""

import json
import os
import re
import shutil
import socket
import sys
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _debian, _fetch

# The dump twice (as fetched and as live data) and room to rewrite the AOF; packages and releases beside it.
DISK_FACTOR = 3
DISK_REST = 1 << 30


class Preflight:
    """Collects gates; `note` is for what only matters to people."""

    def __init__(self, params: dict[str, t.Any]) -> None:
        self.params = params
        self.gates: list[dict[str, str]] = []
        self.notes: list[str] = []

    def gate(self, name: str, good: bool | None, evidence: str) -> None:
        self.gates.append({"name": name, "verdict": "unknown" if good is None else "pass" if good else "fail", "evidence": evidence})

    def system(self) -> None:
        server = self.params["restore_point"]["details"].get("server", {})
        here = _debian.system()
        differs = [f"{key} is {here[key]}, the restore point is of {server[key]}" for key in here if key in server and server[key] != here[key]]
        self.gate("operating_system", not differs, "; ".join(differs) or f"{here['os']} {here['release']} {here['architecture']}")
        self.gate("python", sys.version_info >= (3, 11), f"Python {sys.version.split()[0]}, 3.11 is needed")
        self.gate("root", os.geteuid() == 0, f"user id {os.geteuid()}")

    def resources(self) -> None:
        details = self.params["restore_point"]["details"]
        need = details["size"] * DISK_FACTOR + DISK_REST
        place = self.params["redis_data_dir"]
        while not os.path.isdir(place):
            place = os.path.dirname(place)
        free = shutil.disk_usage(place).free
        self.gate("disk", free >= need, f"{free >> 20} MiB free for {self.params['redis_data_dir']}, {need >> 20} MiB needed")
        with open("/proc/meminfo", encoding="ascii") as handle:
            available = int(re.search(r"MemAvailable:\s+(\d+)", handle.read()).group(1)) << 10  # type: ignore[union-attr]
        # The scratch Redis is gone before the live one starts, so the data is in memory once.
        need = int(details.get("used_memory", 0) * 1.2)
        self.gate("memory", available >= need, f"{available >> 20} MiB available, {need >> 20} MiB needed")

    def clock(self) -> None:
        skew = abs(time.time() - self.params["controller_time"])
        self.gate("clock", skew <= self.params["clock_tolerance"], f"{skew:.1f} s from the controller's clock, {self.params['clock_tolerance']} s allowed")

    def ours(self) -> dict[str, t.Any]:
        """The server is blank, or an earlier run of this environment claimed it."""
        owner = read_json(os.path.join(_fetch.STATE_DIR, "owner.json"))
        if owner:
            good = owner.get("environment_id") == self.params["environment_id"]
            self.gate("blank_or_ours", good, f"claimed by environment {owner.get('environment_id')}, run {owner.get('run_id')}")
            return read_json(os.path.join(_fetch.STATE_DIR, "recovered.json")) if good else {}
        foreign = []
        data_dir = self.params["redis_data_dir"]
        if os.path.isdir(data_dir) and os.listdir(data_dir):
            foreign.append(f"{data_dir} holds {', '.join(sorted(os.listdir(data_dir))[:3])}")
        foreign += [f"port {port} is in use" for port in self.params["ports"] if port_in_use(port)]
        self.gate("blank_or_ours", not foreign, "; ".join(foreign) or "no Redis data, no component's port in use")
        return {}

    def registry(self) -> None:
        """The package registries that this server itself is configured for cannot be reached (or can, which matters in a drill only)."""
        hosts = registry_hosts()
        reached = [host for host in hosts if reachable(host)]
        evidence = f"{len(hosts)} configured, " + (f"{len(reached)} can be reached" if reached else "none can be reached")
        if self.params["require_no_registry"]:
            self.gate("no_package_registry", not reached if hosts else None, evidence)
        else:
            self.notes.append(f"package registries: {evidence}; a recovery uses none")


def read_json(path: str) -> dict[str, t.Any]:
    try:
        with open(path, encoding="utf-8") as handle:
            found = json.load(handle)
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


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
            "redis_data_dir": {"type": "path", "required": True},
            "ports": {"type": "list", "elements": "int", "default": []},
            "controller_time": {"type": "float", "required": True},
            "clock_tolerance": {"type": "float", "default": 5},
            "require_no_registry": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    preflight = Preflight(module.params)
    preflight.system()
    preflight.resources()
    preflight.clock()
    recovered = preflight.ours()
    preflight.registry()
    rows: dict[str, t.Any] = {"gates": preflight.gates, "notes": preflight.notes}
    bad = [f"{gate['name']}: {gate['evidence']}" for gate in preflight.gates if gate["verdict"] != "pass"]
    if bad:
        reason = "This server cannot be recovered onto: " + "; ".join(bad)
        module.fail_json(msg=reason, recovered=recovered, titan_dr={**rows, "refused": reason})
    module.exit_json(changed=False, recovered=recovered, titan_dr=rows)


if __name__ == "__main__":
    main()
