# SPDX-License-Identifier: GPL-3.0-or-later
"""Standard output and error whose reader may go away: that nobody reads any more ends no recovery."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import Any, TextIO


class Lasting:
    """Writes to a stream until that fails (`| head`, a terminal that is gone, a full disk), and from then on to nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._nowhere(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._nowhere(error)

    def _nowhere(self, error: OSError) -> None:
        # what the stream still holds goes there too, when the process ends
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        if error.errno not in (errno.EPIPE, errno.EIO):
            # somebody wanted to read it
            with contextlib.suppress(OSError):
                os.write(2, f"titan-dr: output was lost: {error.strerror}\n".encode())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def outlast() -> None:
    """Let this process outlast the readers of its output."""
    sys.stdout, sys.stderr = Lasting(sys.stdout), Lasting(sys.stderr)
