# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""The data directory of Redis: exchanged as a whole by renames, never copied into, and nothing in it ever removed.

The exchange is written down before it begins, so that a run that broke off can go on and a rollback knows what was moved where.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pwd
import subprocess
import time
import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _fetch, _redis, _redis_live, _redis_unit, _state
from ansible_collections.titan.disaster_recovery.plugins.module_utils._redis_live import Gates, Refused

DUMP = "base.rdb"
# Room beside the data for what Redis writes while it starts and takes its new base.
MARGIN = 64 << 20
# Seconds to wait for the new base: one that cannot be written fails at once, and big data is served meanwhile.
NEW_BASE_WITHIN = 0.3

# Options of the modules that exchange it. Goes with the documentation fragment exchange.
ARGUMENTS: dict[str, dict[str, t.Any]] = {
    "data_dir": {"type": "path", "required": True},
    "config": {"type": "path", "default": "/etc/redis/redis.conf"},
    "unit": {"type": "str", "default": "redis-server"},
    "user": {"type": "str", "default": "redis"},
    "username": {"type": "str", "default": ""},
    "password": {"type": "str", "default": "", "no_log": True},
    "replicas_consent": {"type": "bool", "default": False},
    "timeout": {"type": "float", "required": True},
}


def record_path() -> str:
    """Where the last exchange is written down."""
    return _state.path("redis-live.json")


def read_record() -> dict[str, t.Any]:
    """The last exchange on this server; empty when there was none."""
    try:
        with open(record_path(), encoding="utf-8") as handle:
            found = json.load(handle)
    except FileNotFoundError:
        return {}
    except ValueError as exc:
        raise Refused(f"{record_path()} is damaged: look what lies beside the data directory before anything else is moved") from exc
    return found if isinstance(found, dict) else {}


def write_record(record: dict[str, t.Any]) -> None:
    """Write it down, so that it is there after a crash."""
    path = record_path()
    with open(os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as handle:
        json.dump(record, handle)
        handle.flush()
        os.fsync(handle.fileno())
    os.rename(path + ".new", path)
    _sync(os.path.dirname(path))


def _sync(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- what can be known before ---------------------------------------------------------------------------------------


def place_faults(data_dir: str, need: int) -> list[str]:
    """Why the directory cannot be exchanged by a rename, or has no room for `need` bytes beside it."""
    parent = os.path.dirname(data_dir)
    faults = []
    if os.path.islink(data_dir):
        faults.append(f"{data_dir} is a link: name the directory that it leads to, in the configuration of Redis and in titan_redis.data_dir")
    if os.path.ismount(data_dir):
        faults.append(f"{data_dir} is a mount point, which cannot be moved aside as a whole: use a directory below it for Redis, such as {data_dir}/data")
    try:
        found = os.statvfs(parent)
    except OSError as exc:
        return [*faults, f"{parent}: {exc.strerror}"]
    if found.f_flag & os.ST_RDONLY:
        faults.append(f"{parent} is read-only (a file system that had errors is mounted so): nothing was changed")
    free = found.f_bavail * found.f_frsize
    if free < need:
        faults.append(f"{parent} has {free >> 20} MiB free and {need >> 20} MiB are needed: make room, for instance of directories kept by earlier restores")
    return faults


def refuse_place(data_dir: str, need: int) -> None:
    """Refused, with every reason."""
    faults = place_faults(data_dir, need)
    if faults:
        raise Refused("; ".join(faults))


# --- the layout -----------------------------------------------------------------------------------------------------


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
        raise Refused(f"{stage} holds no dump: Redis would start empty. Stage a restore point first")
    os.makedirs(os.path.dirname(target), mode=0o750, exist_ok=True)
    if os.path.exists(dump):
        os.rename(dump, target)
    if manifest:
        with open(os.path.join(live, conf.appenddirname, f"{conf.appendfilename}.manifest"), "w", encoding="ascii") as handle:
            handle.write(manifest)
            os.fsync(handle.fileno())
    hand_over(live, user)
    return live


def hand_over(folder: str, user: str) -> None:
    """The directory and all in it belong to the user of Redis, and nobody else writes there."""
    owner = pwd.getpwnam(user)
    for path, folders, files in os.walk(folder):
        for name in [path, *(os.path.join(path, item) for item in folders + files)]:
            os.lchown(name, owner.pw_uid, owner.pw_gid)
        for item in files:
            os.chmod(os.path.join(path, item), 0o640)
        os.chmod(path, 0o750)


def size_of(folder: str) -> int:
    """Bytes of all files below."""
    return sum(os.lstat(os.path.join(path, name)).st_size for path, dummy, files in os.walk(folder) for name in files)


# --- the exchange ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Exchange:
    """Puts `incoming` in the place of `data_dir`, which goes to `aside`, and back again when the server that was started on it fails a gate."""

    conf: _redis.RedisConf
    unit: _redis_unit.Unit
    data_dir: str
    incoming: str
    aside: str
    failed: str  # what `incoming` is called when it failed
    deadline: float
    expected: dict[str, t.Any]
    before: _redis_live.Interview
    record: dict[str, t.Any]
    done: str = "live"  # state that is recorded after success
    undone: dict[str, t.Any] | None = None  # what is recorded when everything is as it was before; None: that it was undone
    notes: list[str] = dataclasses.field(default_factory=list)
    timings: dict[str, float] = dataclasses.field(default_factory=dict)

    def run(self) -> Gates:
        """Gates of the started server; when one of them fails the old directory is back in its place."""
        self.unit.prepare(size_of(self.incoming))
        self.unit.lock()
        try:
            began = time.monotonic()
            self._stop(self.before.hangs)
            self.timings["stop"] = round(time.monotonic() - began, 2)
            write_record({**self.record, "state": "exchanging", "aside": self.aside, "data_dir": self.data_dir})
            if os.path.exists(self.data_dir):
                os.rename(self.data_dir, self.aside)
            os.rename(self.incoming, self.data_dir)
            _sync(os.path.dirname(self.data_dir))
        except BaseException:
            # Nothing was moved, or the record says how far it came: what was running goes on only on a directory that is whole.
            if os.path.exists(self.data_dir):
                self.unit.unlock()
                self._start_old()
            raise
        self.unit.unlock()
        return self.finish()

    def finish(self) -> Gates:
        """What follows when the directories have their new names; also for an exchange that broke off then."""
        gates = self._start()
        if all(found["verdict"] == "pass" for found in gates):
            write_record({**self.record, "state": self.done, "aside": self.aside if os.path.exists(self.aside) else "", "data_dir": self.data_dir})
        else:
            self.undo()
        return gates

    def _stop(self, hung: bool = False) -> None:
        pid = self.unit.main_pid()
        family = {child: _redis_unit.started(child) for child in _redis_unit.family(pid)}
        note = self.unit.stop(hung)
        if note:
            self.notes.append(note)
        end = time.monotonic() + 5
        while time.monotonic() < end and any(_redis_unit.runs(child, since) for child, since in family.items()):
            time.sleep(0.02)
        held = _redis_unit.holders(self.conf, self.data_dir, set())
        if held:
            raise Refused(f"{self.unit.name} is stopped, yet {'; '.join(held)}: something else starts Redis. Stop it, then run again")

    def _start(self) -> Gates:
        began = time.time()
        try:
            self.unit.begin()
            gates = _redis_live.check(self.conf, self.expected, self.deadline, self.unit, began)
            self.timings["start"] = round(time.time() - began, 2)
            if all(found["verdict"] == "pass" for found in gates):
                began = time.time()
                more, notes = _redis_live.new_base(self.conf, min(self.deadline, began + NEW_BASE_WITHIN))
                self.timings["new_base"] = round(time.time() - began, 2)
                gates += more
                self.notes += notes
            if self.before.was_replica:
                gates.append(_redis_live.settled(self.conf, self.conf.sync_delay + 5, self.deadline))
        except (_redis_unit.UnitError, _redis.RedisError, OSError, subprocess.TimeoutExpired) as exc:
            self.timings.setdefault("start", round(time.time() - began, 2))
            gates = [_redis_live.gate("redis_start", False, str(exc))]
        return gates

    def undo(self) -> None:
        """The old directory back in its place; what failed is kept as evidence."""
        self.unit.deadline = max(self.unit.deadline, time.time() + 60)
        self.unit.lock()
        self._stop()
        self.failed = _fetch.free_name(self.failed)
        if os.path.exists(self.data_dir):
            os.rename(self.data_dir, self.failed)
        if os.path.exists(self.aside):
            os.rename(self.aside, self.data_dir)
        _sync(os.path.dirname(self.data_dir))
        write_record(self.undone or {**self.record, "state": "undone", "aside": "", "data_dir": self.data_dir, "failed": self.failed})
        self.unit.unlock()
        self._start_old()

    def _start_old(self) -> None:
        """What was running before runs again, on what it had."""
        if not self.before.runs or not os.path.exists(self.data_dir):
            self.notes.append("Redis is stopped, as it was before" if not self.before.runs else "Redis is stopped")
            return
        try:
            systemd = self.unit
            systemd.deadline = max(systemd.deadline, time.time() + 60)
            systemd.start()
            self.notes.append("Redis runs again on the data that it had before")
        except (_redis_unit.UnitError, OSError, subprocess.TimeoutExpired) as exc:
            with contextlib.suppress(_redis_unit.UnitError, OSError, subprocess.TimeoutExpired):
                systemd.stop()
            self.notes.append(f"Redis does not start on the data that it had before either and is stopped: {exc}")
