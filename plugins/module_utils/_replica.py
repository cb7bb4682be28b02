# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""The data of a running Redis over the network, as a replica gets it: PSYNC, then the RDB that the server sends. It changes nothing there.

https://redis.io/docs/latest/operate/oss_and_stack/management/replication/ ; the same is done by `redis-cli --rdb`.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
import typing as t

ARGUMENTS: dict[str, t.Any] = {
    "host": {"type": "str", "required": True},
    "port": {"type": "int", "default": 6379},
    "username": {"type": "str", "default": ""},
    "password": {"type": "str", "default": "", "no_log": True},
    "tls": {"type": "bool", "default": False},
    "ca": {"type": "path"},
}
_BLOCK = 1 << 20
_LONGEST_LINE = 1 << 16
_MARK = 40  # bytes of the mark that ends an RDB of unknown length
_SILENCE = 10.0  # seconds; a server that prepares its RDB sends a line end every second


class ReplicaError(Exception):
    """No data came, and why."""


class _Wire:
    """One connection, read by lines and blocks."""

    def __init__(self, replica: dict[str, t.Any], deadline: float) -> None:
        self.deadline = deadline
        self.socket = socket.create_connection((replica["host"], replica["port"]), min(5.0, self._left()))
        if replica.get("tls"):
            context = ssl.create_default_context(cafile=replica.get("ca") or None)
            self.socket = context.wrap_socket(self.socket, server_hostname=replica["host"])
        self.buffer = b""

    def _left(self) -> float:
        left = self.deadline - time.time()
        if left <= 0:
            raise ReplicaError("its time was over")
        return left

    def more(self) -> None:
        self.socket.settimeout(min(_SILENCE, self._left()))
        block = self.socket.recv(_BLOCK)
        if not block:
            raise ReplicaError("it closed the connection")
        self.buffer += block

    def line(self) -> bytes:
        """The next line that is not empty: empty ones only say that it is alive."""
        while True:
            at = self.buffer.find(b"\n")
            if at < 0:
                if len(self.buffer) > _LONGEST_LINE:
                    raise ReplicaError("it answers something else than Redis does")
                self.more()
                continue
            found, self.buffer = self.buffer[:at].rstrip(b"\r"), self.buffer[at + 1 :]
            if found:
                return found

    def ask(self, *words: str) -> bytes:
        raw = [word.encode() for word in words]
        self.socket.sendall(b"*%d\r\n" % len(raw) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in raw))
        answer = self.line()
        if answer[:1] == b"-":
            raise ReplicaError(answer[1:].decode("utf-8", "replace"))
        return answer


def fetch(replica: dict[str, t.Any], path: str, deadline: float) -> None:
    """Its data as the RDB file `path`, on the disk when this returns; ReplicaError when it did not come as a whole."""
    wire = None
    try:
        wire = _Wire(replica, deadline)
        if replica.get("password"):
            wire.ask("AUTH", *([replica["username"]] if replica.get("username") else []), replica["password"])
        wire.ask("PING")
        wire.ask("REPLCONF", "capa", "eof")
        answer = wire.ask("PSYNC", "?", "-1")
        if not answer.startswith(b"+FULLRESYNC"):
            raise ReplicaError(f"it answered PSYNC with {answer[:40]!r}")
        header = wire.line()
        if not header.startswith(b"$"):
            raise ReplicaError(f"no RDB follows: {header[:40]!r}")
        with open(path, "xb") as target:
            if header.startswith(b"$EOF:"):
                _until(wire, target, header[5 : 5 + _MARK])
            else:
                _exactly(wire, target, int(header[1:]))
            target.flush()
            os.fsync(target.fileno())
    except (OSError, ValueError) as exc:
        raise ReplicaError(f"{exc.strerror or exc}" if isinstance(exc, OSError) else f"{exc}") from exc
    finally:
        if wire is not None:
            wire.socket.close()


def _exactly(wire: _Wire, target: t.BinaryIO, size: int) -> None:
    while size:
        if not wire.buffer:
            wire.more()
        part, wire.buffer = wire.buffer[:size], wire.buffer[size:]
        target.write(part)
        size -= len(part)


def _until(wire: _Wire, target: t.BinaryIO, mark: bytes) -> None:
    if len(mark) != _MARK:
        raise ReplicaError("it announces no end of its RDB")
    while not wire.buffer.endswith(mark):
        # it sends nothing behind the mark before we answer
        keep = max(0, len(wire.buffer) - _MARK)
        target.write(wire.buffer[:keep])
        wire.buffer = wire.buffer[keep:]
        wire.more()
    target.write(wire.buffer[:-_MARK])
