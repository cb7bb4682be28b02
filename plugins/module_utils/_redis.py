# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""A Redis client in the standard library, for servers where nothing may be installed.

Speaks RESP2 (https://redis.io/docs/latest/develop/reference/protocol-spec/), in clear, over TLS or a socket, never another way than it was told.
Every error reply raises: a NOAUTH is never taken for an answer.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time
import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils._redis_conf import RedisConf, RedisError, Tls, conf_of, load_conf, parse_conf

__all__ = [
    "AuthError",
    "Redis",
    "RedisConf",
    "RedisError",
    "TlsError",
    "canary",
    "check_tls",
    "conf_of",
    "connect",
    "keyspace",
    "load_conf",
    "parse_conf",
    "wait_ready",
]

_DENIED = ("NOAUTH", "WRONGPASS", "NOPERM", "ERR AUTH", "ERR invalid password", "ERR Client sent AUTH")


class AuthError(RedisError):
    """Redis is up and refuses these credentials: that is not "down"."""


class TlsError(RedisError):
    """The TLS handshake failed, and why."""


class Redis:
    """One connection. ``address`` is a socket path or (host, port); ``timeout`` bounds every reply, in seconds."""

    def __init__(self, address: str | tuple[str, int], password: str = "", timeout: float = 5.0, username: str = "", tls: ssl.SSLContext | None = None) -> None:
        try:
            if isinstance(address, str):
                self._socket = socket.socket(socket.AF_UNIX)
                self._socket.settimeout(timeout)
                self._socket.connect(address)
            else:
                self._socket = socket.create_connection(address, timeout)
        except OSError as exc:
            raise RedisError(f"cannot connect to Redis at {address}: {exc}") from exc
        if tls:
            try:
                self._socket = tls.wrap_socket(self._socket)
            except ssl.SSLError as exc:
                self._socket.close()
                raise TlsError(f"Redis at {address}: {handshake_fault(exc)}") from exc
            except OSError as exc:
                self._socket.close()
                raise RedisError(f"no answer from Redis: {exc}") from exc
        self._stream = self._socket.makefile("rb")
        if password:
            self.call("AUTH", *([username] if username else []), password)

    def call(self, *words: str | int | bytes) -> t.Any:
        """Send one command, return its reply (str, int, None or list); raise RedisError on an error reply."""
        return self._exchange(words, True)

    def raw(self, *words: str | int | bytes) -> t.Any:
        """The same with bulk strings as bytes."""
        return self._exchange(words, False)

    def _exchange(self, words: tuple[str | int | bytes, ...], decode: bool) -> t.Any:
        out = [f"*{len(words)}\r\n".encode()]
        for word in words:
            raw = word if isinstance(word, bytes) else str(word).encode()
            out.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
        try:
            self._socket.sendall(b"".join(out))
            return self._reply(decode)
        except ssl.SSLError as exc:
            # With TLS 1.3 a server that misses our certificate says so with its first answer only.
            raise TlsError(handshake_fault(exc)) from exc
        except (OSError, ValueError) as exc:
            raise RedisError(f"no answer from Redis: {exc}") from exc

    def _reply(self, decode: bool) -> t.Any:
        line = self._stream.readline()
        if not line.endswith(b"\r\n"):
            raise RedisError("connection closed by Redis")
        kind, rest = line[:1], line[1:-2].decode("utf-8", "replace")
        if kind == b"+":
            return rest
        if kind == b"-":
            raise AuthError(rest) if rest.startswith(_DENIED) else RedisError(rest)
        if kind == b":":
            return int(rest)
        if kind == b"$":
            size = int(rest)
            if size < 0:
                return None
            data = self._stream.read(size + 2)
            if len(data) != size + 2:
                raise RedisError("connection closed by Redis")
            return data[:-2].decode("utf-8", "backslashreplace") if decode else data[:-2]
        if kind == b"*":
            return None if int(rest) < 0 else [self._reply(decode) for dummy in range(int(rest))]
        raise RedisError(f"not a RESP reply: {line[:40]!r}")

    def info(self, section: str) -> dict[str, str]:
        """INFO of one section as a flat dict."""
        return dict(line.split(":", 1) for line in self.call("INFO", section).splitlines() if ":" in line)

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            self._stream.close()
            self._socket.close()


def connect(conf: RedisConf, timeout: float = 5.0) -> Redis:
    """A connection to the server of this configuration, with its credentials and its kind of transport."""
    return Redis(conf.address, conf.password, timeout, conf.username, client_context(conf.tls) if conf.tls_only and conf.tls else None)


# --- TLS ------------------------------------------------------------------------------------------------------------


def handshake_fault(exc: OSError) -> str:
    """What is wrong in words; an expired certificate is named as such."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        if exc.verify_code == 10:
            return "TLS: the certificate has expired"
        return f"TLS: the certificate is not accepted: {exc.verify_message}"
    text = str(getattr(exc, "reason", None) or exc)
    if "CERTIFICATE_EXPIRED" in text.upper():
        return "TLS: the certificate has expired"
    return f"TLS: the handshake failed: {text}"


def client_context(tls: Tls) -> ssl.SSLContext:
    """As a client of this server on its own machine: its certificate must lead to its CA; the name in it may be another than localhost."""
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        if tls.ca_file or tls.ca_dir:
            context.load_verify_locations(tls.ca_file or None, tls.ca_dir or None)
        else:
            context.load_verify_locations(tls.cert)
            context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
        if tls.auth_clients:
            context.load_cert_chain(tls.client_cert, tls.client_key, tls.key_password)
    except (OSError, ValueError) as exc:
        raise TlsError(f"TLS: the certificate files of the configuration cannot be used: {exc}") from exc
    return context


def check_tls(tls: Tls) -> None:
    """Shake hands with these files in memory: what would keep Redis from being reached over TLS is known before it is stopped."""
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.cert, tls.key, tls.key_password)
        if tls.auth_clients:
            context.load_verify_locations(tls.ca_file or None, tls.ca_dir or None)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError, TypeError) as exc:
        raise TlsError(f"TLS: the certificate files of the configuration cannot be used: {exc}") from exc
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client_context(tls).wrap_bio(down, up), context.wrap_bio(up, down, server_side=True)]
    try:
        for dummy in range(4):
            for end in ends:
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()
    except OSError as exc:
        raise TlsError(handshake_fault(exc)) from exc


# --- what a server says ---------------------------------------------------------------------------------------------


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


def loading_text(info: dict[str, str]) -> str:
    """How far loading is and how long it still takes, out of INFO persistence; empty when it does not load."""
    if info.get("loading") != "1":
        return ""
    loaded, total = int(info.get("loading_loaded_bytes", "0")), int(info.get("loading_total_bytes", "0"))
    share = f"{100 * loaded // total} % of {total} bytes" if total else f"{loaded} bytes"
    spent = max(0.0, time.time() - int(info.get("loading_start_time", "0")))
    left = f", about {spent * (total - loaded) / loaded:.0f} s to go" if loaded and total > loaded else ""
    return f"loaded {share} in {spent:.0f} s{left}"


def wait_ready(
    address: str | tuple[str, int],
    password: str,
    deadline: float,
    alive: t.Callable[[], bool],
    username: str = "",
    tls: ssl.SSLContext | None = None,
    progress: t.Callable[[str], None] | None = None,
) -> Redis:
    """Wait until Redis has loaded its data and answers PING; ``alive`` ends the wait early when the server is gone; ``progress`` hears how loading goes."""
    error = "not asked yet"
    while time.time() < deadline:
        try:
            client = Redis(address, password, max(0.5, min(10.0, deadline - time.time())), username, tls)
            error = _ping(client, progress)
            if not error:
                return client
            client.close()
        except (AuthError, TlsError):
            raise  # waiting does not help
        except RedisError as exc:
            error = str(exc)
            if error.startswith("ERR"):
                raise
        if not alive():
            raise RedisError(f"the server ended while loading ({error})")
        time.sleep(0.05)
    raise RedisError(f"not ready in time: {error}")


def _ping(client: Redis, progress: t.Callable[[str], None] | None) -> str:
    """Empty when it serves, else how far loading is; other errors are the caller's."""
    try:
        reply = client.call("PING")
        return "" if reply == "PONG" else f"PING was answered with {reply!r}"
    except RedisError as exc:
        if not str(exc).startswith("LOADING"):
            raise
        text = ""
        with contextlib.suppress(RedisError):
            text = loading_text(client.info("persistence"))
        if text and progress:
            progress(text)
        return f"LOADING: {text or exc}"
