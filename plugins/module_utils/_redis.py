# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""A Redis client and redis.conf reader in the standard library, for servers where nothing may be installed.

Speaks RESP2 (https://redis.io/docs/latest/develop/reference/protocol-spec/). Every error reply raises: a NOAUTH is never taken for an answer.
"""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import time
import typing as t

_WORD = re.compile(r"""\s*(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'|([^\s"']+))(?=\s|$)""")
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|(.))")
_CONTROL = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "a": "\a"}


class RedisError(Exception):
    """An error reply, a broken connection or a time-out; the text starts with Redis's own error code where there is one."""


@dataclasses.dataclass(frozen=True)
class RedisConf:
    """What the restore must know of a redis.conf (last directive wins, as in Redis)."""

    port: int
    unixsocket: str
    directory: str
    dbfilename: str
    appendonly: bool
    appendfilename: str
    appenddirname: str
    databases: int
    password: str
    renamed: dict[str, str]
    tls_only: bool

    @property
    def address(self) -> str | tuple[str, int]:
        """Where the server listens on this machine: a socket path or (host, port)."""
        return ("127.0.0.1", self.port) if self.port else self.unixsocket

    def command(self, name: str) -> str:
        """The name that a command has on this server; empty when it is disabled."""
        return self.renamed.get(name.upper(), name.upper())


def _split(line: str) -> list[str]:
    """Words of a directive by Redis's own rules: a backslash means something in double quotes only."""
    words, at = [], 0
    while at < len(line):
        match = _WORD.match(line, at)
        if not match:
            raise ValueError("quotes that do not match")
        double, single, plain = match.groups()
        if double is not None:
            words.append(_ESCAPE.sub(lambda found: chr(int(found[1], 16)) if found[1] else _CONTROL.get(found[2], found[2]), double))
        else:
            words.append(plain if plain is not None else single.replace("\\'", "'"))
        at = match.end()
    return words


def parse_conf(text: str) -> RedisConf:
    """Read the directives of a redis.conf; ``include`` is refused, because what it pulls in would be missed."""
    last: dict[str, list[str]] = {}
    renamed: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        try:
            words = _split(stripped)
        except ValueError as exc:
            raise RedisError(f"line {number}: {exc}") from exc
        name = words[0].lower()
        if name == "include":
            raise RedisError(f"line {number}: include is not supported")
        if name == "rename-command" and len(words) == 3:
            renamed[words[1].upper()] = words[2]
        last[name] = words[1:]

    def one(name: str, default: str) -> str:
        values = last.get(name)
        return values[0] if values else default

    def integer(name: str, default: str) -> int:
        try:
            return int(one(name, default))
        except ValueError as exc:
            raise RedisError(f"{name} is not a number: {one(name, default)}") from exc

    return RedisConf(
        port=integer("port", "6379"),
        unixsocket=one("unixsocket", ""),
        directory=one("dir", "/var/lib/redis"),
        dbfilename=one("dbfilename", "dump.rdb"),
        appendonly=one("appendonly", "no").lower() == "yes",
        appendfilename=one("appendfilename", "appendonly.aof"),
        appenddirname=one("appenddirname", "appendonlydir"),
        databases=integer("databases", "16"),
        password=one("requirepass", ""),
        renamed=renamed,
        tls_only=one("port", "6379") == "0" and "tls-port" in last,
    )


class Redis:
    """One connection. ``address`` is a socket path or (host, port); ``timeout`` bounds every reply, in seconds."""

    def __init__(self, address: str | tuple[str, int], password: str = "", timeout: float = 5.0) -> None:
        try:
            if isinstance(address, str):
                self._socket = socket.socket(socket.AF_UNIX)
                self._socket.settimeout(timeout)
                self._socket.connect(address)
            else:
                self._socket = socket.create_connection(address, timeout)
        except OSError as exc:
            raise RedisError(f"cannot connect to Redis at {address}: {exc}") from exc
        self._stream = self._socket.makefile("rb")
        if password:
            self.call("AUTH", password)

    def call(self, *words: str | int) -> t.Any:
        """Send one command, return its reply (str, int, None or list); raise RedisError on an error reply."""
        out = [f"*{len(words)}\r\n".encode()]
        for word in words:
            raw = str(word).encode()
            out.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
        try:
            self._socket.sendall(b"".join(out))
            return self._reply()
        except (OSError, ValueError) as exc:
            raise RedisError(f"no answer from Redis: {exc}") from exc

    def _reply(self) -> t.Any:
        line = self._stream.readline()
        if not line.endswith(b"\r\n"):
            raise RedisError("connection closed by Redis")
        kind, rest = line[:1], line[1:-2].decode("utf-8", "replace")
        if kind == b"+":
            return rest
        if kind == b"-":
            raise RedisError(rest)
        if kind == b":":
            return int(rest)
        if kind == b"$":
            size = int(rest)
            if size < 0:
                return None
            data = self._stream.read(size + 2)
            if len(data) != size + 2:
                raise RedisError("connection closed by Redis")
            return data[:-2].decode("utf-8", "backslashreplace")
        if kind == b"*":
            return None if int(rest) < 0 else [self._reply() for dummy in range(int(rest))]
        raise RedisError(f"not a RESP reply: {line[:40]!r}")

    def info(self, section: str) -> dict[str, str]:
        """INFO of one section as a flat dict."""
        return dict(line.split(":", 1) for line in self.call("INFO", section).splitlines() if ":" in line)

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()
        self._socket.close()


def keyspace(client: Redis) -> dict[str, dict[str, int]]:
    """Keys and expiries of every database that has any: ``{"db1": {"keys": 10, "expires": 2}}``."""
    return keyspace_of(client.info("keyspace"))


def keyspace_of(info: dict[str, str]) -> dict[str, dict[str, int]]:
    """The same out of an INFO reply that was read already."""
    found = {}
    for name, text in info.items():
        if not name.startswith("db") or not text.startswith("keys="):
            continue
        numbers = dict(part.split("=", 1) for part in text.split(","))
        found[name] = {"keys": int(numbers["keys"]), "expires": int(numbers["expires"])}
    return found


def canary(client: Redis, key: str, database: int) -> dict[str, float] | None:
    """The canary ``{"seq": int, "at": epoch seconds}``; None when there is none; RedisError when it is not one."""
    client.call("SELECT", database)
    raw = client.call("GET", key)
    if raw is None:
        return None
    try:
        value = json.loads(raw)
        return {"seq": int(value["seq"]), "at": float(value["at"])}
    except (ValueError, KeyError, TypeError, OverflowError) as exc:
        raise RedisError(f"{key} is not a canary (sequence and wall clock): {exc}") from exc


def wait_ready(address: str | tuple[str, int], password: str, deadline: float, alive: t.Callable[[], bool]) -> Redis:
    """Wait until Redis has loaded its data and answers PING; ``alive`` ends the wait early when the server is gone."""
    error = "not asked yet"
    while time.time() < deadline:
        try:
            client = Redis(address, password, timeout=max(0.5, min(10.0, deadline - time.time())))
            if client.call("PING") == "PONG":
                return client
        except RedisError as exc:
            error = str(exc)
            if error.startswith(("WRONGPASS", "NOAUTH", "ERR")):
                raise
        if not alive():
            raise RedisError(f"the server ended while loading ({error})")
        time.sleep(0.05)
    raise RedisError(f"not ready in time: {error}")
