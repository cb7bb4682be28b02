# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells the module recovery_lease who asks, and whether the holder that stands in the way is dead: only the controller it ran on can know."""

from __future__ import annotations

import getpass
import hashlib
import multiprocessing
import os
import socket
import typing as t

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

Owner = dict[str, t.Any]


def _line(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as handle:
            return handle.read().strip()
    except OSError:
        return ""


def _namespace() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def started(pid: int) -> int:
    """When the process began, in ticks since the start of the machine; 0 when that cannot be known, -1 when it has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return -1
    except PermissionError:
        pass
    # Another user's processes may be hidden: that there is nothing to read proves nothing.
    fields = _line(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if len(fields) < 20:
        return 0
    return -1 if fields[0] in ("Z", "X") else int(fields[19])


def myself() -> Owner:
    """The process that runs the playbook: tasks run in its children."""
    parent = multiprocessing.parent_process()
    pid = parent.pid if parent and parent.pid else os.getpid()
    return {
        "user": getpass.getuser(),
        "host": socket.gethostname(),
        "machine_id": _line("/etc/machine-id"),
        "boot_id": _line("/proc/sys/kernel/random/boot_id"),
        "pid_ns": _namespace(),
        "pid": pid,
        "started": started(pid),
    }


def proven_dead(holder: Owner, me: Owner, began: t.Callable[[int], int] = started) -> bool:
    """The holder's process has ended, or its machine was started again since. Of another machine nothing is known."""
    if not (holder.get("boot_id") and me["boot_id"]):
        return False
    if holder["boot_id"] == me["boot_id"]:
        if not holder.get("pid_ns") or holder["pid_ns"] != me["pid_ns"] or holder.get("started", 0) <= 0:
            return False
        now = began(int(holder["pid"]))
        return now != 0 and now != holder["started"]
    return bool(me["machine_id"]) and (holder.get("host"), holder.get("machine_id")) == (me["host"], me["machine_id"])


def attempt_of(me: Owner) -> str:
    """The attempt that the clock named, or a name of this process for a playbook that is run without it."""
    named = "/".join(str(me[key]) for key in ("host", "boot_id", "pid_ns", "pid", "started"))
    return os.environ.get("TITAN_DR_ATTEMPT") or hashlib.sha256(named.encode()).hexdigest()[:8]


class ActionModule(ActionBase):
    """Runs the module, and once more when the holder is dead."""

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        me = myself()
        args = {**self._task.args, "owner": me}
        args["attempt"] = args.get("attempt") or attempt_of(me)
        try:
            found = self._ask(args, task_vars)
            holder = found.get("holder") or {}
            if found.get("failed") and holder and proven_dead(holder["owner"], me):
                found = self._ask({**args, "dead_epoch": holder["epoch"]}, task_vars)
        except AnsibleConnectionFailure as exc:
            # As an unreachable host no rescue would see it. A play that expects dead servers goes on without them.
            if self._task.ignore_unreachable:
                raise
            host = str((task_vars or {}).get("inventory_hostname"))
            found = {"failed": True, "changed": False, "msg": f"{host} cannot be reached: {exc}", "titan_dr": {"unreachable": host}}
        result.update(found)
        return result

    def _ask(self, args: dict[str, t.Any], task_vars: dict[str, t.Any] | None) -> dict[str, t.Any]:
        found: dict[str, t.Any] = self._execute_module(module_name="titan.disaster_recovery.recovery_lease", module_args=args, task_vars=task_vars)
        return found
