# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""The processes of a run on a server: everything that a recovery starts carries TITAN_DR_COMMAND=<run id>/<attempt>/<epoch> in its environment.

What a marked process started belongs to it even where the environment was cleared. Services that systemd starts are nobody's children and carry no mark.
Containers on the server are servers of their own: what runs in them is not looked at.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
import typing as t

VARIABLE = "TITAN_DR_COMMAND"
PROC = "/proc"


@dataclasses.dataclass(frozen=True)
class Mark:
    run_id: str = ""
    attempt: str = ""
    epoch: int = 0  # 0: before the lease is held


@dataclasses.dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    started: int
    name: str
    mark: Mark | None

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.name}{f', run {self.mark.run_id}' if self.mark else ''})"


Processes = dict[int, Process]


def parse(text: str) -> Mark:
    """The mark; ValueError when it is none."""
    run_id, attempt, epoch = text.rsplit("/", 2)
    return Mark(run_id, attempt, int(epoch))


def _namespace(pid: int | str) -> int | None:
    """The pid namespace; None when it may not be known."""
    try:
        return os.stat(f"{PROC}/{pid}/ns/pid").st_ino
    except OSError:
        return None


def look(pid: int, here: int | None = None) -> Process | None:
    """One process; None when it has ended, as a zombie has, or runs in another pid namespace than `here`."""
    if here is not None and _namespace(pid) not in (here, None):
        return None
    try:
        with open(f"{PROC}/{pid}/stat", "rb") as handle:
            head, tail = handle.read().decode(errors="replace").rsplit(")", 1)
        fields = tail.split()
        if fields[0] in ("Z", "X"):
            return None
    except (OSError, ValueError, IndexError):
        return None
    mark = None
    with contextlib.suppress(OSError, ValueError), open(f"{PROC}/{pid}/environ", "rb") as handle:
        for entry in handle.read().split(b"\0"):
            if entry.startswith(VARIABLE.encode() + b"="):
                mark = parse(entry.split(b"=", 1)[1].decode(errors="replace"))
    return Process(pid, int(fields[1]), int(fields[19]), head.split("(", 1)[1], mark)


def everything() -> Processes:
    """All processes that live now."""
    here = _namespace("self")
    found = (look(int(name), here) for name in os.listdir(PROC) if name.isdigit())
    return {process.pid: process for process in found if process}


def ancestors(processes: Processes, pid: int) -> set[int]:
    """The process and what it descends from."""
    found: set[int] = set()
    while pid in processes and pid not in found:
        found.add(pid)
        pid = processes[pid].parent
    return found


def families(processes: Processes, wanted: t.Callable[[Mark], bool], known: t.Collection[int] = ()) -> Processes:
    """The processes whose mark is wanted, those known and all that descend from them, without ourselves and what we descend from."""
    own = ancestors(processes, os.getpid())
    roots = {pid for pid, process in processes.items() if pid in known or (process.mark and wanted(process.mark))}
    found = {pid: processes[pid] for pid in roots - own}
    while True:
        more = {pid: process for pid, process in processes.items() if pid not in own and pid not in found and process.parent in found}
        if not more:
            return found
        found.update(more)


def _send(process: Process, number: int) -> None:
    # The number may be another process's by now.
    now = look(process.pid)
    if now and now.started == process.started:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, number)


def end(wanted: t.Callable[[Mark], bool], polite: float = 2.0, patience: float = 2.0) -> tuple[list[Process], list[Process]]:
    """End them, first by asking; (those that ended, those that live on whatever is done)."""
    began = time.monotonic()
    seen: Processes = {}
    killing = False
    while True:
        found = everything()
        # Also what lost its parent, and with it what told that it belongs here.
        known = [pid for pid, process in seen.items() if pid in found and found[pid].started == process.started]
        alive = families(found, wanted, known)
        if not alive or time.monotonic() - began > polite + patience:
            return [process for pid, process in seen.items() if pid not in alive], list(alive.values())
        killing = killing or time.monotonic() - began > polite
        for pid, process in alive.items():
            if killing or pid not in seen:
                _send(process, signal.SIGKILL if killing else signal.SIGTERM)
        seen.update(alive)
        time.sleep(0.02)
