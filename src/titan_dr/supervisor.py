# SPDX-License-Identifier: GPL-3.0-or-later
"""Stops a run at its deadline or at a signal, from a thread of its own: whatever ansible-playbook, ansible-runner or the terminal do or do not do."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from titan_dr import processes
from titan_dr.cancel import Cancellation

POLL_S = 0.1
# What a recovery ends in: trading goes on, or waits for a person.
RECOVERED = ("resumed", "awaiting resume")
GRACE_S = 0.5  # between SIGTERM, which lets the controller close its ledger, and SIGKILL
MARGIN_S = 1.0  # after the deadline: a playbook that still works begins its own safe state in it
SAFE_STATE_S = 60.0  # for a safe state that has begun
LEAD_S = 3.5  # before the stop: Ansible takes 1 s to load, and 3 s where the machine is busy
LATE_S = 30.0  # a run that begins after its deadline may still say why it refuses

Reason = Literal["signal", "deadline"]


def monotonic() -> float:
    """Where there is such a clock, one that also counts while the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass
class Seen:
    """What the ledger of a run says so far, and when (on the monotonic clock) this was read."""

    deadline_at: float | None = None  # epoch seconds
    lease: str | None = None  # the run id that the lease carries: of the run that this one goes on with
    epoch: int = 0  # of the lease
    taken: dict[str, str] = field(default_factory=dict)  # server -> run id/epoch of its lease
    trading: str | None = None
    resumed: float | None = None
    leaving: float | None = None  # since when the playbook is on its own way into the safe state
    halted: set[str] = field(default_factory=set)  # servers that got there
    ended: bool = False
    lost: bool = False  # another recovery has the server now

    @property
    def begun(self) -> bool:
        """There is something to make safe, and it is this run's."""
        return not self.lost and (self.lease is not None or self.trading is not None or self.leaving is not None)

    @property
    def safe(self) -> bool:
        """Every server of which it has the lease got there."""
        return bool(self.halted) and self.taken.keys() <= self.halted

    def row(self, row: Mapping[str, Any], now: float) -> None:
        said = row.get("titan_dr") or {}
        host = str(row.get("host") or "")
        for part in (said, row):
            at = part.get("deadline_at")
            if isinstance(at, (int, float)) and not isinstance(at, bool):
                self.deadline_at = float(at)
            lease = part if part is row and row.get("event") == "lease" else part.get("lease")
            # epoch 0 was only looked at
            if isinstance(lease, Mapping) and lease.get("run_id") and lease.get("epoch"):
                self.lease, self.epoch = str(lease["run_id"]), int(lease["epoch"])
                if part is said:
                    self.taken[host] = f"{self.lease}/{self.epoch}"
        if self.lease is not None and said.get("refused"):
            self.lost = True
        if row.get("event") == "safe_state_start":
            self.leaving = now
        elif row.get("event") == "run_end":
            self.ended = "stats" in row
        trading = said.get("trading") if row.get("event") == "task" else None
        if trading:
            self.trading = trading
            self.resumed = now if trading in RECOVERED else None
        # a server that does not trade itself says only that it was halted
        done = trading == "halted" or (not trading and "halt" in said and row.get("status") not in ("failed", "unreachable"))
        if done and self.leaving is not None:
            self.halted.add(host)
        elif trading:
            self.halted.discard(host)


def own_deadline(objectives: Mapping[str, Any], on_breach: object, incident_at: float, started_at: float) -> float | None:
    """What holds until the ledger says more, because a run may hang before it has one. Epoch seconds."""
    key, since = ("rto_s", incident_at) if on_breach == "abort" else ("limit_s", started_at)
    limit = objectives.get(key)
    return since + limit if isinstance(limit, (int, float)) else None


class Deadline:
    """Wall time says when, the monotonic clock says how long: a wall clock that is set does not move the stop."""

    def __init__(self, own: float | None, clock: Callable[[], float] = monotonic, wall: Callable[[], float] = time.time) -> None:
        self._clock, self._wall = clock, wall
        self._started, self._started_at = clock(), wall()
        self.at: float | None = None
        self.moment: float | None = None
        self._set(own)

    def _set(self, at: float | None) -> None:
        if at is None or at == self.at:
            return
        self.at = at
        self.moment = self._started + LATE_S if at <= self._started_at else self._clock() + at - self._wall()

    def due(self, seen: Seen) -> float | None:
        """When to stop the run, if it has not ended by itself."""
        self._set(seen.deadline_at)
        if seen.leaving is not None:
            return seen.leaving + SAFE_STATE_S + MARGIN_S
        if self.moment is None:
            return None
        # after the resume nothing is left to stop but the controller
        return max(self.moment, (seen.resumed or 0.0) + SAFE_STATE_S if seen.resumed is not None else 0.0) + MARGIN_S


class Watch:
    """What a supervisor asks and tells. This one knows no deadline."""

    def due(self) -> float | None:
        """The monotonic moment at which to stop."""
        return None

    def soon(self) -> None:
        """The stop is near; may be called often."""

    def stopped(self, reason: Reason, left: Iterable[int]) -> None:
        """No process of the run lives any more, but those that are left."""


class Supervisor:
    def __init__(self, mark: str, cancellation: Cancellation, watch: Watch, clock: Callable[[], float] = monotonic) -> None:
        self.mark, self.cancellation, self.watch, self.clock = mark, cancellation, watch, clock
        self.reason: Reason | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._supervise, name=f"supervisor of {mark}")

    def __enter__(self) -> Supervisor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _supervise(self) -> None:
        while not self._done.wait(POLL_S):
            try:
                reason = self._wanted()
            except Exception as error:
                # one look that fails must not end the supervision
                print(f"titan-dr: supervisor: {type(error).__name__}: {error}", file=sys.stderr)
                continue
            if reason is not None:
                self._stop(reason)
                return

    def _wanted(self) -> Reason | None:
        if self.cancellation.requested:
            self._soon()
            return "signal"
        due = self.watch.due()
        if due is None or self.clock() < due - LEAD_S:
            return None
        self._soon()
        return "deadline" if self.clock() >= due else None

    def _soon(self) -> None:
        try:
            self.watch.soon()
        except Exception as error:
            # what cannot be prepared must not put the stop off
            print(f"titan-dr: supervisor: {type(error).__name__}: {error}", file=sys.stderr)

    def _stop(self, reason: Reason) -> None:
        left: list[int] = []
        try:
            left = processes.end_run(self.mark, GRACE_S)
        finally:
            self.reason = reason
            self.watch.stopped(reason, left)
