# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding and ending the processes of one run. Ansible's workers have sessions of their own, and ssh's connection masters
even other parents: a process group or a pid alone does not reach them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Process:
    pid: int
    ppid: int = field(compare=False)  # another one when the parent ends first
    started: str  # with the pid, the identity of a process: pids come back


def table() -> dict[int, Process]:
    processes = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] not in "ZX":
            processes[int(entry.name)] = Process(int(entry.name), int(fields[1]), fields[19])
    return processes


def with_descendants(roots: Iterable[int], processes: dict[int, Process]) -> set[Process]:
    found: set[int] = set()
    pending = [pid for pid in roots if pid in processes]
    while pending:
        pid = pending.pop()
        if pid not in found:
            found.add(pid)
            pending.extend(child.pid for child in processes.values() if child.ppid == pid)
    return {processes[pid] for pid in found}


def marked(mark: str, processes: dict[int, Process]) -> set[int]:
    """Processes that carry the mark in their environment, or in their title (an ssh master overwrites its environment)."""
    needle = mark.encode()
    found = set()
    for pid in processes:
        for part in ("environ", "cmdline"):
            try:
                content = Path(f"/proc/{pid}/{part}").read_bytes()
            except OSError:
                continue
            if needle in content:
                found.add(pid)
    return found - {os.getpid()}


def of_run(mark: str, known: Iterable[Process] = ()) -> set[Process]:
    """Everything alive of a run: what is marked, what earlier looks found, and what descends from these."""
    processes = table()
    return with_descendants(marked(mark, processes) | {process.pid for process in known if processes.get(process.pid) == process}, processes)


def _signal(processes: Iterable[Process], signum: int) -> None:
    for process in processes:
        try:
            os.kill(process.pid, signum)
        except (ProcessLookupError, PermissionError):
            continue  # gone, or another user's: then it is among those that are left


def end_run(mark: str, grace: float = 5.0, reach: float = 10.0) -> list[int]:
    """SIGTERM first, which lets the controller close its ledger, then SIGKILL. Returns the pids that would not go."""
    alive = of_run(mark)
    own = os.getpid()
    tops = {process for process in alive if process.ppid == own} or alive
    _signal(tops, signal.SIGTERM)
    _signal(tops, signal.SIGCONT)  # one that was stopped heeds nothing else
    deadline = time.monotonic() + grace
    while alive and time.monotonic() < deadline:
        time.sleep(0.05)
        alive = of_run(mark, alive)
        if alive and not alive & tops:
            break  # the controller is gone; what it left behind does not end by itself
    deadline = time.monotonic() + reach
    while alive and time.monotonic() < deadline:
        _signal(alive, signal.SIGKILL)
        time.sleep(0.05)
        alive = of_run(mark, alive)
    return sorted(process.pid for process in alive)
