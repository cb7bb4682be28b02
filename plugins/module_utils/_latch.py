# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""The halt latch: a file on the host, outside everything that is ever restored. While it exists trading is halted, whatever the data says.

It carries a generation that only grows; a resume must name the current one. JSON: {"generation", "reason", "run_id", "since"}, and while trading is resumed
step by step "mode": what the services may do at most. Without it, or unreadable, they may do nothing.
Beside it, in <latch>.d, a file for each venue that is halted alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import typing as t

# What a latch may allow, from less to more. "full" is no latch at all.
MODES = ("observe", "reduce_only")
# Seconds that one change of the latch waits for another.
PATIENCE = 2.0


class LatchError(Exception):
    """The latch is not in the state that was asked for."""


def read(path: str) -> dict[str, t.Any] | None:
    """The latch, or None when there is none. An unreadable latch is a latch: its generation is 0."""
    try:
        with open(path, encoding="utf-8") as handle:
            found = json.load(handle)
    except FileNotFoundError:
        return None
    except ValueError:
        found = None
    return found if isinstance(found, dict) and isinstance(found.get("generation"), int) else {"generation": 0, "reason": "unreadable latch"}


@contextlib.contextmanager
def _alone(path: str, needed: bool = True) -> t.Iterator[None]:
    """One change of the latch at a time: a resume must not take away what another run fastens in that moment.

    A halt (not `needed`) waits for a holder that is frozen no longer than that; what allows more is refused then.
    """
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    if needed:
                        raise LatchError(f"another process has been changing the latch for {PATIENCE:g} s") from None
                    break
                time.sleep(0.01)
        yield
    finally:
        os.close(folder)


def _write(path: str, text: str) -> None:
    # a name of its own: a halt may not have waited for another one
    new = f"{path}.{os.getpid()}.new"
    with open(new, "w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.chmod(new, 0o644)
    os.rename(new, path)
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def fasten(path: str, reason: str, run_id: str, now: float, anew: bool = False) -> tuple[dict[str, t.Any], bool]:
    """Put the latch in place, with the next generation; returns it and whether it is new. One that is there and allows nothing is kept, unless `anew`."""
    with _alone(path, needed=False):
        return _fasten(path, reason, run_id, now, anew)


def _fasten(path: str, reason: str, run_id: str, now: float, anew: bool) -> tuple[dict[str, t.Any], bool]:
    found = read(path)
    if found and not anew and not found.get("mode"):
        return found, False
    counter = path + ".generation"
    generation = 1
    with contextlib.suppress(FileNotFoundError), open(counter, "rb") as handle:
        text = handle.read().strip()
        # A counter that cannot be read must not start again at 1; no count of halts gets as far as the clock.
        generation = int(text) + 1 if text.isdigit() else int(now)
    # The counter first: a generation that was ever on a latch is never used again.
    _write(counter, f"{generation}\n")
    latch = {"generation": generation, "reason": reason, "run_id": run_id, "since": now}
    _write(path, json.dumps(latch) + "\n")
    return latch, True


def same(found: dict[str, t.Any], generation: int) -> None:
    """LatchError unless it is of this generation."""
    if found["generation"] != generation:
        raise LatchError(f"the latch is of generation {found['generation']}, the resume carries {generation}: somebody halted trading again")


def loosen(path: str, generation: int, mode: str) -> None:
    """Let the services do so much and no more. The generation stays."""
    if mode not in MODES:
        raise LatchError(f"a latch cannot allow {mode!r}, only {' or '.join(MODES)}")
    with _alone(path):
        found = read(path)
        if found is None:
            raise LatchError("there is no latch any more: somebody took it away")
        same(found, generation)
        _write(path, json.dumps({**found, "mode": mode}) + "\n")


def release(path: str, generation: int) -> bool:
    """Take the latch away if it is of this generation; False when there was none."""
    with _alone(path):
        found = read(path)
        if found is None:
            return False
        same(found, generation)
        os.unlink(path)
        return True


# --- one venue alone -------------------------------------------------------------------------------------------------


def venues(path: str) -> list[str]:
    """The venues that are halted alone."""
    try:
        return sorted(name for name in os.listdir(path + ".d") if not name.endswith(".new"))
    except FileNotFoundError:
        return []


def fasten_venue(path: str, venue: str, reason: str, run_id: str, now: float) -> bool:
    """Halt this venue; whether that is new."""
    if not venue or "/" in venue or venue.startswith("."):
        raise LatchError(f"{venue!r} cannot be the name of a venue")
    if venue in venues(path):
        return False
    os.makedirs(path + ".d", mode=0o755, exist_ok=True)
    _write(os.path.join(path + ".d", venue), json.dumps({"venue": venue, "reason": reason, "run_id": run_id, "since": now}) + "\n")
    return True


def release_venues(path: str, names: t.Iterable[str]) -> list[str]:
    """Take the latches of these venues away; those that were there."""
    found = sorted(set(names) & set(venues(path)))
    for name in found:
        os.unlink(os.path.join(path + ".d", name))
    return found
