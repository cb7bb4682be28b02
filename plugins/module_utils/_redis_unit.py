# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""The systemd unit of Redis and the processes around its data: stopped for certain, started by nobody else, held by nobody else.

While the data directory is exchanged a lock file lies in /run, and a drop-in makes the unit refuse to start as long as it does: neither
Restart=always nor a person nor a timer brings Redis up on half of a directory. Nothing depends on the exit status of Redis.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import time
import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils._redis_conf import RedisConf

DROP_INS = "/etc/systemd/system"
LOCK = "/run/titan-dr/redis-swap"
# Seconds that a stop may take: Redis writes what it still has. One that hangs gets the short time.
STOP_WITHIN, HUNG_STOP_WITHIN, KILL_WITHIN = 60.0, 3.0, 10.0
_LISTEN, _ESTABLISHED = "0A", "01"


class UnitError(Exception):
    """The unit or a process is not in the state that was asked for, and what to do."""


def systemctl(*words: str, deadline: float) -> str:
    """Standard output; UnitError when it fails. ``is-active`` answers with its exit status too."""
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, timeout=max(1.0, deadline - time.time()), check=False)
    if done.returncode and words[0] != "is-active":
        raise UnitError(f"systemctl {' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip()


def start_timeout(size: int) -> int:
    """Seconds systemd grants the start: 60 s a GiB (slowest load measured: 16 s a GiB) and never less than its own default of 90."""
    return max(90, 60 * (1 + size // 2**30))


class Unit:
    """One systemd unit that runs one Redis."""

    def __init__(self, name: str, deadline: float) -> None:
        self.name = name
        self.deadline = deadline

    def prepare(self, size: int) -> None:
        """The drop-in: time enough to load `size` bytes, and no start while the lock is there."""
        path = f"{DROP_INS}/{self.name}.service.d/titan-dr.conf"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="ascii") as handle:
            handle.write(f"# No start while the data directory is exchanged; loading takes longer than the default allows.\n[Unit]\nAssertPathExists=!{LOCK}\n")
            handle.write(f"[Service]\nTimeoutStartSec={start_timeout(size)}\n")
        systemctl("daemon-reload", deadline=self.deadline)

    def lock(self) -> None:
        """From now on nobody starts it."""
        os.makedirs(os.path.dirname(LOCK), exist_ok=True)
        with open(LOCK, "w", encoding="ascii"):
            pass

    def unlock(self) -> None:
        """It may be started again."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(LOCK)

    def main_pid(self) -> int:
        """Process id of the server; 0 when the unit has none."""
        found = systemctl("show", "--property=MainPID", "--value", self.name, deadline=max(self.deadline, time.time() + 5))
        return int(found) if found.isdigit() else 0

    def active(self) -> bool:
        """It runs or is on its way there."""
        return self._state() in ("active", "activating")

    def _state(self) -> str:
        return systemctl("is-active", self.name, deadline=max(self.deadline, time.time() + 5))

    def start(self) -> None:
        """Start it and wait until systemd calls it started."""
        systemctl("start", self.name, deadline=self.deadline)

    def begin(self) -> None:
        """Start it without waiting for what it loads: systemd calls it activating until then, and how far it is can be asked."""
        systemctl("start", "--no-block", self.name, deadline=self.deadline)
        _within(KILL_WITHIN, lambda: self._state() in ("active", "activating", "failed"))

    def stop(self, hung: bool = False) -> str:
        """Stop it within bounds, by SIGKILL of its main process if need be, and prove it gone; returns what was noteworthy."""
        pid = self.main_pid()
        since = started(pid)
        # At the end of the time too: a server that must not run is stopped whatever the clock says.
        systemctl("stop", "--no-block", self.name, deadline=time.time() + 10)
        frozen = hung or state(pid) == "T"
        if _within(HUNG_STOP_WITHIN if frozen else STOP_WITHIN, lambda: not runs(pid, since)):
            return ""
        os.kill(pid, signal.SIGKILL)
        if not _within(KILL_WITHIN, lambda: not runs(pid, since)):
            raise UnitError(f"process {pid} of {self.name} does not even end by SIGKILL (it hangs in the kernel): nothing was changed, restart the server")
        return f"{self.name} did not stop, its process {pid} was killed"


def _within(seconds: float, done: t.Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


# --- processes ------------------------------------------------------------------------------------------------------


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; empty when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as handle:
            return handle.read().rsplit(")", 1)[1].split()
    except OSError:
        return []


def state(pid: int) -> str:
    """One letter, T for stopped by a signal; empty when there is no such process."""
    return (_stat(pid) or [""])[0] if pid else ""


def started(pid: int) -> str:
    """When the process started, in clock ticks: with its id it names one process for good."""
    fields = _stat(pid) if pid else []
    return fields[19] if fields else ""


def runs(pid: int, since: str) -> bool:
    """This very process still runs; a zombie does not."""
    fields = _stat(pid) if pid else []
    return bool(fields) and fields[19] == since and fields[0] not in "ZX"


def name_of(pid: int) -> str:
    """Name of the program that a process runs."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as handle:
            return handle.read().strip()
    except OSError:
        return "unknown"


def cwd(pid: int) -> str:
    """Working directory; empty when it cannot be seen."""
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def family(pid: int) -> set[int]:
    """A process and what it forked, such as a save that is running."""
    found = {pid} if pid else set()
    parents = {child: int(fields[1]) for child in _pids() if (fields := _stat(child))}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _open_files(pid: int) -> list[tuple[str, bool]]:
    """Open files of a process: what the link says, and whether it may write."""
    found = []
    with contextlib.suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                target = os.readlink(f"/proc/{pid}/fd/{number}")
                with open(f"/proc/{pid}/fdinfo/{number}", encoding="ascii") as handle:
                    flags = int(handle.read().split("flags:", 1)[1].split()[0], 8)
                found.append((target, flags & os.O_ACCMODE != os.O_RDONLY))
    return found


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of /proc/net/tcp: local and remote address, and the inode that leads to its process."""

    state: str
    local: tuple[str, int]
    remote: tuple[str, int]
    inode: str


def _address(text: str) -> tuple[str, int]:
    host, port = text.split(":")
    raw = b"".join(bytes.fromhex(host[at : at + 8])[::-1] for at in range(0, len(host), 8))
    name = socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)
    return name.removeprefix("::ffff:"), int(port, 16)


def connections(pid: int | str = "self") -> list[Line]:
    """TCP sockets in the network namespace of a process."""
    found = []
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/net/{name}", encoding="ascii") as handle:
            for line in handle.read().splitlines()[1:]:
                fields = line.split()
                found.append(Line(fields[3], _address(fields[1]), _address(fields[2]), fields[9]))
    return found


def _inodes(pid: int) -> set[str]:
    return {target[8:-1] for target, dummy in _open_files(pid) if target.startswith("socket:[")}


def listening(pid: int) -> set[tuple[str, int]]:
    """Addresses that a process listens on over TCP."""
    inodes = _inodes(pid)
    return {line.local for line in connections(pid) if line.state == _LISTEN and line.inode in inodes}


def peers(pid: int, ports: tuple[int, ...]) -> set[str]:
    """Other hosts that have a connection to these ports."""
    lines = connections(pid) if pid else []
    return {line.remote[0] for line in lines if line.state == _ESTABLISHED and line.local[1] in ports and not line.remote[0].startswith(("127.", "::1"))}


def holders(conf: RedisConf, data_dir: str, but: set[int]) -> list[str]:
    """Processes other than these that write into the data directory, live there as a server, or hold a port of the configuration."""
    inside = os.path.realpath(data_dir)
    wanted = {line.inode: line.local for line in connections() if line.state == _LISTEN and line.local[1] in conf.ports and line.local[1]}
    found = []
    for pid in sorted(set(_pids()) - but - {os.getpid()}):
        name = name_of(pid)
        files = _open_files(pid)
        written = [target for target, writes in files if writes and target.startswith(inside + "/")]
        here = cwd(pid)
        if written:
            found.append(f"process {pid} ({name}) writes {written[0]}")
        elif (here == inside or here.startswith(inside + "/")) and any(word in name for word in ("redis", "valkey")):
            found.append(f"process {pid} ({name}) works in {here}")
        else:
            held = [wanted[target[8:-1]] for target, dummy in files if target.startswith("socket:[") and target[8:-1] in wanted]
            if held:
                found.append(f"process {pid} ({name}) listens on {held[0][0]} port {held[0][1]}")
    return found
