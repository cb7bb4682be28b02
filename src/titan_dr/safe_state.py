# SPDX-License-Identifier: GPL-3.0-or-later
"""safe_state.yml after a run that was stopped, begun ahead of time: Ansible takes seconds to load, so it loads while the run is being ended, and
waits at a gate until nothing of that run lives any more."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titan_dr import runner, supervisor
from titan_dr.cancel import Cancellation
from titan_dr.events import Event, StepFailed, StepStarted

RETRY_S = 60.0  # how long a server that cannot be reached is tried again
PAUSE_S = 2.0
ATTEMPT_S = 75.0  # of one attempt; its own tasks end after 60

# (extra variables, files of extra variables after the run's own) -> what to run
MakeJob = Callable[[Mapping[str, Any], Sequence[str]], runner.Job]


@dataclass
class Proof:
    halted: bool
    reason: str = ""
    begun: float | None = None  # when its first task began, on the monotonic clock


class SafeState(supervisor.Watch):
    def __init__(self, make_job: MakeJob, clock: Callable[[], float] = supervisor.monotonic) -> None:
        self._make_job, self._clock = make_job, clock
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._gate: Path | None = None
        self._facts: dict[str, Any] = {}
        self._attempt_ends: float | None = None
        self._released: float | None = None
        self._refused: dict[str, str] = {}  # server -> why it is not known to be halted, where another attempt changes nothing
        self._dropped = threading.Event()
        # its own: the signal that cancelled the recovery must not cancel this
        self._cancellation = Cancellation()
        self.proof = Proof(False, "it was not begun")

    @property
    def released(self) -> bool:
        return self._released is not None

    def start(self) -> None:
        """Loads Ansible, up to the gate."""
        with self._lock:
            if self._thread is None:
                self._gate = Path(tempfile.mkdtemp(prefix="titan-dr-gate-")) / "extra-vars"
                # extra variables are read when everything else is loaded, and from a pipe only when somebody writes them
                os.mkfifo(self._gate, 0o600)
                self._thread = threading.Thread(target=self._run, name="safe state")
                self._thread.start()

    def release(self, facts: Mapping[str, Any]) -> None:
        """Lets it begin: no process of the run is alive."""
        if self._released is not None:
            return
        self._facts = dict(facts)
        self._released = self._clock()
        self._attempt_ends = self._released + ATTEMPT_S
        try:
            self.start()
        except OSError as error:
            self.proof = Proof(False, f"safe_state.yml could not be started: {error}")
            return
        self._open()

    def _open(self) -> None:
        while self._gate is not None and self._thread is not None and self._thread.is_alive():
            try:
                with os.fdopen(os.open(self._gate, os.O_WRONLY | os.O_NONBLOCK), "w", encoding="utf-8") as stream:
                    json.dump(self._facts, stream)
                return
            except OSError:
                # nobody reads it yet
                self._dropped.wait(0.02)

    def drop(self) -> None:
        """It is not needed. One that was released is let go on to its end."""
        if self._released is None:
            self._dropped.set()
            self._cancellation.requested = "not needed"
        self.wait()

    def wait(self) -> Proof:
        if self._thread is not None:
            self._thread.join()
        return self.proof

    def due(self) -> float | None:
        return self._attempt_ends

    def _run(self) -> None:
        try:
            again = self._attempt(first=True)
            while again and not self._dropped.wait(PAUSE_S) and self._clock() < (self._released or 0.0) + RETRY_S:
                self._attempt_ends = self._clock() + ATTEMPT_S
                again = self._attempt(first=False)
        except Exception as error:
            self.proof = Proof(False, f"safe_state.yml could not be run: {type(error).__name__}: {error}")
        finally:
            if self._gate is not None:
                shutil.rmtree(self._gate.parent, ignore_errors=True)

    def _attempt(self, first: bool) -> bool:
        """True when it is worth another one: the server could not be reached."""
        failures: list[StepFailed] = []

        def on_event(event: Event) -> None:
            if isinstance(event, StepFailed):
                failures.append(event)
            elif isinstance(event, StepStarted) and self.proof.begun is None:
                self.proof.begun = self._clock()

        job = self._make_job({}, [str(self._gate)]) if first else self._make_job(self._facts, [])
        outcome = runner.run(job, on_event, self._cancellation, self)
        why = {failure.host: f"{failure.name} on {failure.host}: {failure.message}" for failure in failures}
        away = {failure.host for failure in failures if failure.unreachable}
        self._refused |= {host: text for host, text in why.items() if host not in away}
        if outcome.rc == 0 and not self._refused:
            self.proof = Proof(True, "", self.proof.begun)
            return False
        if outcome.overdue:
            reason = f"safe_state.yml did not end within {ATTEMPT_S:.0f} s"
        else:
            reason = "; ".join({**self._refused, **why}.values()) or f"safe_state.yml ended with exit code {outcome.rc}"
        self.proof = Proof(False, reason, self.proof.begun)
        # the others are safe, and gave their lease back
        self._facts["titan_dr_hosts"] = ",".join(sorted(away))
        return bool(away)
