# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Connections, layer by layer: TCP, TLS with what the certificate says, one HTTP request, one WebSocket with its first data.

Each function takes the moment (of the monotonic clock) until which it may take, and returns words for the evidence instead of raising.
"""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import dataclasses
import errno
import hashlib
import http.client
import os
import secrets
import socket
import ssl
import struct
import time
import typing as t

MAX_BODY = 64 * 1024
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
# Verification results of OpenSSL: https://docs.openssl.org/3.0/man1/openssl-verification-options/
_EXPIRED, _NOT_YET_VALID, _NAME = 10, 9, (62, 63, 64)
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def left(end: float) -> float:
    """Seconds until then, never so few that a socket would not block at all."""
    return max(0.01, end - time.monotonic())


# --- TCP -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Connection:
    verdict: str  # ok | refused | silent | unreachable
    evidence: str
    ms: float = 0.0
    address: str = ""
    link: socket.socket | None = None

    def close(self) -> None:
        if self.link is not None:
            self.link.close()


def connect(address: str, port: int, end: float) -> Connection:
    """One connection to one address."""
    started = time.monotonic()
    try:
        link = socket.create_connection((address, port), timeout=left(end))
    except TimeoutError:
        return Connection("silent", f"{address} port {port}: nothing came back within {time.monotonic() - started:.1f} s", address=address)
    except OSError as exc:
        # EINVAL is how the kernel refuses a blackhole route, EACCES a prohibited one
        verdict = (
            "refused" if exc.errno in (errno.ECONNREFUSED, errno.ECONNRESET) else "silent" if exc.errno in (errno.ETIMEDOUT, errno.EPERM) else "unreachable"
        )
        return Connection(verdict, f"{address} port {port}: {exc.strerror or exc}", address=address)
    ms = (time.monotonic() - started) * 1000
    return Connection("ok", f"{address} port {port} in {ms:.0f} ms", ms, address, link)


def connect_any(addresses: t.Sequence[str], port: int, end: float) -> Connection:
    """All addresses at once; the first that answers, or what the first in their order said."""
    pool = concurrent.futures.ThreadPoolExecutor(max_workers=max(1, len(addresses)))
    waiting = [pool.submit(connect, address, port, end) for address in addresses]
    pool.shutdown(wait=False)
    for future in concurrent.futures.as_completed(waiting):
        if future.result().verdict == "ok":
            for other in waiting:
                if other is not future:
                    other.add_done_callback(lambda late: late.result().close())
            return future.result()
    return waiting[0].result()


def latency(address: str, port: int, count: int, end: float) -> tuple[float | None, float]:
    """Median of the connect times in ms, and the share of connections that did not come about."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=count) as pool:
        tried = list(pool.map(lambda dummy: connect(address, port, end), range(count)))
    for one in tried:
        one.close()
    times = sorted(one.ms for one in tried if one.verdict == "ok")
    return (round(times[len(times) // 2], 1) if times else None), round(1 - len(times) / count, 3)


def dropped_here(address: str, port: int) -> bool:
    """Whether this host's own firewall keeps packets for there from leaving; only a datagram is told."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as link:
            link.sendto(b"", (address, port))
    except OSError as exc:
        return exc.errno == errno.EPERM
    return False


# --- TLS -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What a person needs to know of it."""

    issuer: str = "?"
    subject: str = "?"
    not_before: str = "?"
    not_after: str = "?"

    def __str__(self) -> str:
        return f"{self.subject}, issued by {self.issuer}, valid {self.not_before} to {self.not_after}"


def _der(data: bytes, at: int = 0) -> tuple[int, int, int]:
    """Tag, start and end of the content of the element at this place."""
    tag, length, start = data[at], data[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        length, start = int.from_bytes(data[start : start + count], "big"), start + count
    if start + length > len(data):
        raise ValueError("cut off")
    return tag, start, start + length


def _parts(data: bytes, start: int, end: int) -> list[tuple[int, bytes]]:
    found = []
    while start < end:
        tag, inner, start = _der(data, start)
        found.append((tag, data[inner:start]))
    return found


def _name(data: bytes) -> str:
    """Organisation and common name of a distinguished name."""
    words = {}
    for _tag, rdn in _parts(data, 0, len(data)):
        for _inner, pair in _parts(rdn, 0, len(rdn)):
            (_oid_tag, oid), (_value_tag, value) = _parts(pair, 0, len(pair))[:2]
            words[oid] = value.decode("utf-8", "replace")
    wanted = [words[oid] for oid in (b"\x55\x04\x0a", b"\x55\x04\x03") if oid in words]
    return " ".join(dict.fromkeys(wanted)) or "?"


def _day(tag: int, value: bytes) -> str:
    text = value.decode("ascii", "replace")
    if tag == 0x17:
        text = ("20" if text[:2] < "50" else "19") + text
    return f"{text[:4]}-{text[4:6]}-{text[6:8]} {text[8:10]}:{text[10:12]}"


def certificate(der: bytes | None) -> Certificate:
    """Issuer, subject and dates; what cannot be read says so."""
    try:
        _tag, start, end = _der(der or b"")
        _tag, start, end = _der(der or b"", start)
        fields = _parts(der or b"", start, end)
        # the version is optional and comes first
        fields = fields[1:] if fields[0][0] == 0xA0 else fields
        (begin_tag, begin), (end_tag, until) = _parts(fields[3][1], 0, len(fields[3][1]))[:2]
        return Certificate(_name(fields[2][1]), _name(fields[4][1]), _day(begin_tag, begin), _day(end_tag, until))
    except (IndexError, ValueError):
        return Certificate()


@dataclasses.dataclass
class Secured:
    verdict: str  # ok | untrusted | name | expired | not_yet_valid | failed
    evidence: str
    ms: float = 0.0
    link: ssl.SSLSocket | None = None


def _shown(address: str, port: int, host: str, end: float) -> Certificate:
    """The certificate as it is shown, whoever signed it. Nothing is sent over this connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((address, port), timeout=left(end)) as plain, context.wrap_socket(plain, server_hostname=host) as link:
            return certificate(link.getpeercert(True))
    except OSError:
        return Certificate()


def secure(connection: Connection, host: str, port: int, ca: str, end: float) -> Secured:
    """TLS over this connection, verified against the authority and the name."""
    started = time.monotonic()
    if connection.link is None:
        raise ValueError("there is no connection")
    try:
        context = ssl.create_default_context(cafile=ca or None)
    except OSError as exc:
        return Secured("untrusted", f"the authority {ca} cannot be read: {exc.strerror or exc}")
    connection.link.settimeout(left(end))
    try:
        link = context.wrap_socket(connection.link, server_hostname=host)
    except ssl.SSLCertVerificationError as exc:
        shown = _shown(connection.address, port, host, end)
        by_code = {_EXPIRED: "expired", _NOT_YET_VALID: "not_yet_valid", **dict.fromkeys(_NAME, "name")}
        return Secured(by_code.get(exc.verify_code, "untrusted"), f"{exc.verify_message}; {shown}")
    except TimeoutError:
        return Secured("failed", f"no handshake within {time.monotonic() - started:.1f} s")
    except OSError as exc:
        return Secured("failed", f"the handshake broke off: {(getattr(exc, 'reason', None) or exc.strerror or type(exc).__name__)}")
    return Secured("ok", f"{link.version()}; {certificate(link.getpeercert(True))}", (time.monotonic() - started) * 1000, link)


# --- HTTP ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Reply:
    status: int  # 0: there was none
    body: bytes = b""
    retry_after: float = 0.0
    evidence: str = ""


def _seconds(text: str | None) -> float:
    return float(text) if text and text.strip().isdigit() else 0.0


def get(link: socket.socket, host: str, path: str, end: float) -> Reply:
    """One request without any key over this connection."""
    try:
        link.settimeout(left(end))
        link.sendall(f"GET {path or '/'} HTTP/1.1\r\nHost: {host}\r\nAccept: application/json\r\nUser-Agent: titan-dr\r\nConnection: close\r\n\r\n".encode())
        answer = http.client.HTTPResponse(link, method="GET")
        answer.begin()
        link.settimeout(left(end))
        body = answer.read(MAX_BODY + 1)
        # a read of so many bytes ends silently where the connection did
        if answer.length and len(body) <= MAX_BODY:
            return Reply(0, evidence=f"the answer is cut off, {answer.length} bytes are missing")
        return Reply(answer.status, body, _seconds(answer.getheader("Retry-After")))
    except TimeoutError:
        return Reply(0, evidence="no complete answer in time")
    except (OSError, http.client.HTTPException) as exc:
        return Reply(0, evidence=(exc.strerror if isinstance(exc, OSError) else None) or type(exc).__name__)


def banner(link: socket.socket, end: float) -> str:
    """The first line that the other side says by itself."""
    try:
        link.settimeout(left(end))
        return link.recv(255).split(b"\n")[0].decode("ascii", "replace").strip()
    except OSError:
        return ""


# --- WebSocket -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Stream:
    """Frames of an open WebSocket (RFC 6455). What this side sends is masked."""

    link: socket.socket
    end: float
    buffer: bytes = b""

    def _take(self, count: int) -> bytes:
        while len(self.buffer) < count:
            self.link.settimeout(left(self.end))
            more = self.link.recv(65536)
            if not more or time.monotonic() > self.end:
                raise ConnectionError("closed" if not more else "no data in time")
            self.buffer += more
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def send(self, opcode: int, payload: bytes) -> None:
        mask = os.urandom(4)
        length = bytes([0x80 | len(payload)]) if len(payload) < 126 else bytes([0x80 | 126]) + struct.pack(">H", len(payload))
        self.link.settimeout(left(self.end))
        self.link.sendall(bytes([0x80 | opcode]) + length + mask + bytes(byte ^ mask[number % 4] for number, byte in enumerate(payload)))

    def frame(self) -> tuple[int, bytes]:
        head, length = self._take(2)
        masked, length = length & 0x80, length & 0x7F
        if length > 125:
            length = int.from_bytes(self._take(2 if length == 126 else 8), "big")
        if masked or length > 1 << 20:
            raise ConnectionError("not a server's frame")
        return head & 0x0F, self._take(length)

    def messages(self) -> t.Iterator[bytes]:
        """What the other side says, its pings answered."""
        parts = b""
        while True:
            opcode, payload = self.frame()
            if opcode == PING:
                self.send(PONG, payload)
            elif opcode == CLOSE:
                raise ConnectionError("closed by the other side")
            elif opcode != PONG:
                # only whether there is data is asked: what is continued is not put together
                parts = payload if opcode in (TEXT, BINARY) else parts + payload
                yield parts


def websocket(link: socket.socket, host: str, path: str, subscribe: bytes, is_data: t.Callable[[bytes], bool], end: float) -> tuple[str, str]:
    """Upgrade, subscribe, and wait for the first data: ok | refused | silent, and the evidence."""
    key = base64.b64encode(secrets.token_bytes(16))
    head = f"GET {path or '/'} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
    stream = Stream(link, end)
    heard = 0
    try:
        link.settimeout(left(end))
        link.sendall(head.encode() + key + b"\r\n\r\n")
        answer = b""
        while b"\r\n\r\n" not in answer and len(answer) < 16384:
            answer += stream._take(1)
        lines = answer.decode("latin-1").split("\r\n")
        fields = {name.strip().lower(): value.strip() for name, dummy, value in (line.partition(":") for line in lines[1:])}
        proof = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest()).decode()
        if " 101 " not in lines[0] + " " or fields.get("sec-websocket-accept") != proof:
            return "refused", f"the upgrade was answered by {lines[0][:80]!r}"
    except (OSError, ValueError) as exc:
        return "refused", f"the upgrade was not answered: {str(exc) or type(exc).__name__}"
    started = time.monotonic()
    try:
        if subscribe:
            stream.send(TEXT, subscribe)
        for message in stream.messages():
            heard += 1
            if is_data(message):
                with contextlib.suppress(OSError):
                    stream.send(CLOSE, struct.pack(">H", 1000))
                return "ok", f"data after {(time.monotonic() - started) * 1000:.0f} ms"
    except (OSError, ValueError) as exc:
        return "silent", f"upgraded, then no data ({heard} other messages): {str(exc) or type(exc).__name__}"
    return "silent", "upgraded, no data"
