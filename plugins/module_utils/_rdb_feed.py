# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Parts of an RDB file for checkers that read them from pipes, each as an RDB file of its own. The bytes do not come through this process."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import select
import time
import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb_format as fmt

_AHEAD = 1 << 28  # bytes by which we are ahead of the checkers, at most; and so many pieces
_PIECES_AHEAD = 1 << 16
_PAUSE = 0.002  # seconds in which a checker makes room for more than a page, at each of which we would wake up
_END = bytes([fmt.OP_EOF]) + bytes(fmt.FOOTER_SIZE)  # without a checksum


class Feed(t.NamedTuple):
    """A pipe to a checker, and the time (monotonic) until which it is waited for."""

    pipe: int
    deadline: float


@dataclasses.dataclass
class _Taker:
    """A checker and what it is getting: these bytes of the file."""

    feed: Feed
    start: int = 0
    end: int = fmt.HEADER_SIZE


class Feeder:
    """Hands over whole entries of the open file `handle`, in any order, each piece to a checker that has room. Waits only when far ahead of them."""

    def __init__(self, handle: int, feeds: t.Sequence[Feed]) -> None:
        self.fine = True  # all of them take what they get
        self._handle = handle
        self._takers = [_Taker(feed) for feed in feeds]
        self._pieces: collections.deque[tuple[int, int]] = collections.deque()
        self._pending = 0
        for feed in feeds:
            os.set_blocking(feed.pipe, False)

    def add(self, start: int, end: int) -> None:
        """Hand over these bytes of the file, now or later."""
        if self.fine:
            self._pieces.append((start, end))
            self._pending += end - start
            self.push()

    def push(self) -> None:
        """Hand over what they can take now."""
        while self._send() and (self._pending > _AHEAD or len(self._pieces) > _PIECES_AHEAD):
            self._wait()

    def finish(self) -> bool:
        """Hand over all that is left, and an end. Whether it was taken."""
        while self._send():
            self._wait()
        with contextlib.suppress(OSError):
            for taker in self._takers:
                taker.end = taker.start + len(_END)
                # a pipe that has room at all has room for so little
                self._wait()
                self.fine = self.fine and os.write(taker.feed.pipe, _END) == len(_END)
                taker.end = taker.start
            return self.fine
        return False

    def _send(self) -> bool:
        """Whether something is left for which there is no room."""
        takers = [*self._takers]
        while takers and self.fine:
            for taker in [*takers]:
                if taker.start == taker.end:
                    if not self._pieces:
                        takers.remove(taker)
                        continue
                    taker.start, taker.end = self._pieces.popleft()
                    self._pending -= taker.end - taker.start
                try:
                    sent = os.sendfile(taker.feed.pipe, self._handle, taker.start, taker.end - taker.start)
                except BlockingIOError:
                    takers.remove(taker)
                    continue
                except OSError:
                    sent = 0
                # nothing: the file became shorter, or the checker has ended
                self.fine = self.fine and sent > 0
                taker.start += sent
        return self.fine and any(taker.start < taker.end for taker in self._takers)

    def _wait(self) -> None:
        """Until one has room; that none had any in time is not fine."""
        poll = select.poll()
        for taker in self._takers:
            if taker.start < taker.end:
                poll.register(taker.feed.pipe, select.POLLOUT)
        left = min(taker.feed.deadline for taker in self._takers) - time.monotonic()
        if poll.poll(max(0.0, left) * 1000):
            time.sleep(_PAUSE)
        else:
            self.fine = False
