# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""The journal of a server: a row before each step that changes it and a row after, each on the disk before anything else happens.

One JSON object on a line: {"at", "run_id", "epoch", "attempt", "step", "event", "pid"} and maybe "precondition" or "detail".
A line without its end was being written when the power went: it does not count, and the next append takes it away.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import typing as t

INTENT, DONE, FAILED = "intent", "done", "failed"
Rows = list[dict[str, t.Any]]
# A command that was stopped in the middle of its row must not stop all the others.
WAIT = 2.0


def _lock(handle: int) -> None:
    end = time.monotonic() + WAIT
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise
            time.sleep(0.005)


def _whole_lines(handle: int) -> int:
    """The size of the journal after a torn last line was taken away."""
    size = os.fstat(handle).st_size
    if size and os.pread(handle, 1, size - 1) != b"\n":
        size = os.pread(handle, size, 0).rfind(b"\n") + 1
        os.ftruncate(handle, size)
    return size


def append(path: str, row: dict[str, t.Any]) -> None:
    """Add the row; it is on the disk when this returns. OSError when it cannot be."""
    text = (json.dumps(row) + "\n").encode()
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock(handle)
        size = _whole_lines(handle)
        try:
            done = 0
            while done < len(text):
                done += os.pwrite(handle, text[done:], size + done)
            os.fsync(handle)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(handle, size)
            raise
        if not size:
            folder = os.open(os.path.dirname(path), os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    finally:
        os.close(handle)


def read(path: str) -> Rows:
    """Every row that can be read; none when there is no journal."""
    try:
        with open(path, "rb") as handle:
            lines = handle.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), str) and isinstance(row.get("event"), str):
                found.append(row)
    return found


def steps(rows: Rows, run_id: str) -> dict[str, str]:
    """The last event of each step of a run, in the order in which the steps were begun last."""
    found: dict[str, str] = {}
    for row in rows:
        if row.get("run_id") == run_id:
            if row["event"] == INTENT:
                found.pop(row["step"], None)
            found[row["step"]] = row["event"]
    return found


def came_to(rows: Rows, run_id: str) -> str:
    """How far a run came, in words."""
    found = steps(rows, run_id)
    if not found:
        return "before its first step"
    step, event = list(found.items())[-1]
    return {INTENT: f"in {step}", DONE: f"after {step}"}.get(event, f"when {step} had failed")


def open_steps(rows: Rows) -> dict[int, str]:
    """Steps without an end, by the process that began them. Whether it lives is for the caller to see."""
    found: dict[int, str] = {}
    for row in rows:
        pid = row.get("pid")
        if isinstance(pid, int):
            if row["event"] == INTENT:
                found[pid] = row["step"]
            else:
                found.pop(pid, None)
    return found
