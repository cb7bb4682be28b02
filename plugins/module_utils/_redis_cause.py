# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Why Redis does not serve: what systemd, the file system, the process table and its own log say. Only reads."""

from __future__ import annotations

import grp
import os
import pwd
import re
import stat
import subprocess
import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _redis, _redis_unit

_ENOUGH_BYTES = 1 << 20
_ENOUGH_FILES = 16
_LOG_END = 1 << 16
_SAID = 3  # lines of the log that are repeated
_STATES = {"T": "is stopped by a signal", "D": "hangs in the kernel, most likely on its disk", "Z": "is dead and was not collected"}
_USUAL = re.compile(r"WARNING|Configuration loaded|Server initialized|oO0Oo|Redis version=|Redis is now ready to exit|User requested shutdown")
_LOGFILE = re.compile(r"^\s*logfile\s+[\"']?([^\"'\s]+)", re.MULTILINE)


def causes(conf: _redis.RedisConf, config: str, unit: str, data_dir: str, user: str, deadline: float) -> list[str]:
    """Every reason that can be seen, the likeliest first. `config`: the text of its configuration."""
    return [*foreign(conf, unit, data_dir, deadline), *_lock(), *_room(data_dir), *_owners(data_dir, user), *_unit(unit, deadline), *_log(config)]


def foreign(conf: _redis.RedisConf, unit: str, data_dir: str, deadline: float) -> list[str]:
    """Processes that are none of the unit's and hold its port, or its data."""
    family = _redis_unit.family(_redis_unit.Unit(unit, deadline).main_pid())
    held = _redis_unit.holders(conf, data_dir, family)
    # one that systemd has just started anew is not foreign
    return [text for text in held if not _of_unit(int(text.split()[1]), unit)]


def _of_unit(pid: int, unit: str) -> bool:
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8") as handle:
            return any(line.rstrip().endswith((f"/{unit}", f"/{unit}.service")) for line in handle)
    except OSError:
        return True  # it is gone already


def _lock() -> list[str]:
    text = f"a swap that broke off left {_redis_unit.LOCK}, which keeps everybody from starting it: the run that goes on takes it away"
    return [text] * os.path.exists(_redis_unit.LOCK)


def _unit(name: str, deadline: float) -> list[str]:
    keys = ("LoadState", "ActiveState", "SubState", "Result", "ExecMainStatus", "NRestarts", "MainPID")
    try:
        said = _redis_unit.systemctl("show", *(f"--property={key}" for key in keys), name, deadline=deadline)
    except (_redis_unit.UnitError, OSError, subprocess.TimeoutExpired) as exc:
        return [f"unit {name} cannot be asked: {exc}"]
    found = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    if found.get("LoadState", "loaded") != "loaded":
        return [f"unit {name} is {found['LoadState']}"]
    pid = int(found.get("MainPID") or 0)
    state = _redis_unit.state(pid)
    if state in _STATES:
        return [f"process {pid} of {name} {_STATES[state]}"]
    if found.get("ActiveState") == "active":
        return []
    text = f"unit {name} is {found.get('ActiveState')}/{found.get('SubState')}"
    if found.get("Result", "success") != "success":
        text += f", result {found['Result']}, exit status {found.get('ExecMainStatus')}, {found.get('NRestarts')} restarts"
    return [text]


def _room(data_dir: str) -> list[str]:
    try:
        found = os.statvfs(data_dir if os.path.isdir(data_dir) else os.path.dirname(data_dir))
    except OSError as exc:
        return [f"{data_dir}: {exc.strerror}"]
    if found.f_bavail * found.f_frsize < _ENOUGH_BYTES:
        return [f"the disk of {data_dir} is full"]
    if found.f_files and found.f_favail < _ENOUGH_FILES:
        return [f"the disk of {data_dir} has no inodes left"]
    return [f"the file system of {data_dir} is read-only"] * bool(found.f_flag & os.ST_RDONLY)


def _owners(data_dir: str, user: str) -> list[str]:
    """What the user of Redis may not read or write in its directory; a restore gives all of it to that user."""
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        return [f"there is no user {user}"]
    if not account.pw_uid:
        return []
    groups = {account.pw_gid, *(group.gr_gid for group in grp.getgrall() if user in group.gr_mem)}
    if not os.path.isdir(data_dir):
        return [f"{data_dir} is not there"]
    for path, dummy, files in os.walk(data_dir):
        for name in [path, *(os.path.join(path, item) for item in sorted(files))]:
            try:
                found = os.stat(name)
            except OSError:
                continue
            if not _may(found, account.pw_uid, groups):
                return [f"{name} belongs to user id {found.st_uid} with mode {stat.S_IMODE(found.st_mode):04o}: {user} cannot use it. A restore mends that"]
    return []


def _may(found: os.stat_result, uid: int, groups: t.Collection[int]) -> bool:
    shift = 6 if found.st_uid == uid else 3 if found.st_gid in groups else 0
    wanted = 7 if stat.S_ISDIR(found.st_mode) else 6
    return (found.st_mode >> shift) & wanted == wanted


def _log(config: str) -> list[str]:
    """What Redis itself wrote last; its warnings begin with a number sign."""
    named = _LOGFILE.search(config)
    if not named:
        return []
    try:
        with open(named[1], "rb") as handle:
            handle.seek(max(0, os.fstat(handle.fileno()).st_size - _LOG_END))
            lines = handle.read().decode("utf-8", "replace").splitlines()
    except OSError as exc:
        return [f"its log {named[1]}: {exc.strerror}"]
    said = [line.partition(" # ")[2].strip() for line in lines if " # " in line and not _USUAL.search(line)]
    return [f"its log says: {' | '.join(dict.fromkeys(said[-_SAID:]))}"] if said else []
