# SPDX-License-Identifier: GPL-3.0-or-later
"""Ctrl-C and SIGTERM: one request to stop, honoured at once where that is safe, and noted where tidying up must not be interrupted."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Cancelled(KeyboardInterrupt):
    """Not an Exception: no `except Exception` on the way may swallow it."""


class Cancellation:
    def __init__(self) -> None:
        self.requested: str | None = None
        self._attentive = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Cancellation:
        for signum in SIGNALS:
            # nohup: who starts it so wants it to outlive the terminal
            if not (signum == signal.SIGHUP and signal.getsignal(signum) == signal.SIG_IGN):
                self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for signum, previous in self._previous.items():
            signal.signal(signum, previous)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.requested:
            print("titan-dr: already stopping, cleaning up", file=sys.stderr)
            return
        self.requested = signal.Signals(signum).name
        if self._attentive:
            raise Cancelled(self.requested)

    def check(self) -> None:
        """For a signal that was noted while it could not interrupt."""
        if self.requested:
            raise Cancelled(self.requested)

    @contextmanager
    def attentive(self, value: bool = True) -> Iterator[None]:
        """Inside, a signal interrupts at once; elsewhere it is only noted in `requested`."""
        before, self._attentive = self._attentive, value
        try:
            if value:
                self.check()
            yield
        finally:
            self._attentive = before
