# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""One request to an exchange, as a whole within its time: name, connection, TLS, answer, each with its own kind of failure.

No proxy and no redirect: only the exchange itself may answer. Nothing that was sent stands in an error: a signed address is a secret.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import http.client
import ipaddress
import queue
import socket
import ssl
import threading
import time
import typing as t
from urllib.parse import urlsplit

# The instruments of a big exchange are a few MB.
MAX_BODY = 64 * 1024 * 1024
KINDS = ("network", "dns", "tls", "maintenance", "rate_limited", "key", "clock", "unusable", "refused")
_TLS_CAUSES = {9: "tls_not_yet_valid", 10: "tls_expired", 62: "tls_name"}
_NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN)
T = t.TypeVar("T")


class VenueError(Exception):
    """No usable answer, or a refusal. `kind` is what it means for the caller (see KINDS), `cause` what it was in detail."""

    def __init__(self, kind: str, text: str, cause: str = "") -> None:
        super().__init__(text)
        self.kind, self.text, self.cause = kind, text, cause or kind


@dataclasses.dataclass(frozen=True)
class Ask:
    """One request. Nothing of it but the method is ever shown."""

    method: str
    url: str = dataclasses.field(repr=False)
    headers: dict[str, str] = dataclasses.field(repr=False)
    body: str | None = dataclasses.field(repr=False)
    timeout: float


@dataclasses.dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = dataclasses.field(repr=False)


Opener = t.Callable[[Ask], Answer]


def within(seconds: float, work: t.Callable[[], T]) -> T:
    """The result of `work`, or TimeoutError: what hangs is left behind in its thread. A name that is being resolved cannot be interrupted."""
    results: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue()

    def run() -> None:
        try:
            results.put((work(), None))
        except BaseException as error:
            results.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = results.get(timeout=max(seconds, 0.001))
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return t.cast(T, result)


def tls_error(exc: ssl.SSLError) -> VenueError:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return VenueError("tls", f"TLS: the certificate is not accepted: {exc.verify_message}", _TLS_CAUSES.get(exc.verify_code, "tls_untrusted"))
    return VenueError("tls", f"TLS: the handshake failed: {exc.reason or type(exc).__name__}", "tls_handshake")


def network_error(exc: OSError, stage: str) -> VenueError:
    if isinstance(exc, TimeoutError):
        return VenueError("network", f"no answer in time ({stage})", f"{stage}_silent")
    if isinstance(exc, ConnectionRefusedError):
        return VenueError("network", "the connection was refused", "tcp_refused")
    if exc.errno in _NO_ROUTE:
        return VenueError("network", f"no way there: {exc.strerror}", "route")
    return VenueError("network", f"the connection broke off ({stage}): {exc.strerror or type(exc).__name__}", f"{stage}_cut")


class Wire:
    """Sends requests to an exchange. `addresses` serve when no resolver answers; the certificate is checked all the same."""

    def __init__(self, ca: str = "", addresses: t.Sequence[str] = ()) -> None:
        self._ca, self._addresses, self._made = ca, list(addresses), threading.Lock()
        self._context: ssl.SSLContext | None = None

    def context(self) -> ssl.SSLContext:
        """Reading the authorities takes a while: once for all requests."""
        with self._made:
            if self._context is None:
                try:
                    self._context = ssl.create_default_context(cafile=self._ca or None)
                except (OSError, ValueError) as exc:
                    raise VenueError("tls", f"TLS: the authorities in {self._ca} cannot be read: {type(exc).__name__}", "tls_ca") from None
            return self._context

    def resolve(self, host: str, port: int, seconds: float) -> list[str]:
        with contextlib.suppress(ValueError):
            return [str(ipaddress.ip_address(host))]
        try:
            # a resolver that is silent must leave time for the known addresses
            found = within(seconds / 3 if self._addresses else seconds, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
            return list(dict.fromkeys(str(info[4][0]) for info in found))
        except TimeoutError:
            why = "no resolver answers"
        except (OSError, UnicodeError) as exc:
            why = getattr(exc, "strerror", None) or type(exc).__name__
        if self._addresses:
            return self._addresses
        raise VenueError("dns", f"the name {host} cannot be resolved: {why}")

    def connect(self, addresses: t.Sequence[str], port: int, end: float) -> socket.socket:
        """The first address that takes the connection; each has its share of the time that is left."""
        error: OSError = TimeoutError()
        for number, address in enumerate(addresses):
            share = (end - time.monotonic()) / (len(addresses) - number)
            if share <= 0:
                break
            try:
                return socket.create_connection((address, port), share)
            except OSError as exc:
                error = exc
        raise network_error(error, "tcp")

    def __call__(self, ask: Ask) -> Answer:
        end = time.monotonic() + ask.timeout
        parts = urlsplit(ask.url)
        secure = parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        addresses = self.resolve(str(parts.hostname), port, ask.timeout)
        context = self.context() if secure else None
        link = self.connect(addresses, port, end)
        link.settimeout(max(end - time.monotonic(), 0.001))
        if context:
            link = context.wrap_socket(link, server_hostname=parts.hostname, do_handshake_on_connect=False)
        with contextlib.closing(link):
            try:
                return within(end - time.monotonic(), lambda: self._exchange(link, ask))
            except TimeoutError:
                raise VenueError("network", f"no complete answer within {ask.timeout:g} s", "http_silent") from None
            finally:
                # what is left hanging in its thread ends with its socket
                with contextlib.suppress(OSError):
                    link.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _handshake(link: ssl.SSLSocket) -> None:
        """Before anything is sent: who has no accepted certificate sees no key."""
        try:
            link.do_handshake()
        except ssl.SSLError as exc:
            raise tls_error(exc) from None
        except OSError as exc:
            raise network_error(exc, "tls") from None

    def _exchange(self, link: socket.socket, ask: Ask) -> Answer:
        parts = urlsplit(ask.url)
        if isinstance(link, ssl.SSLSocket):
            self._handshake(link)
        with contextlib.closing(http.client.HTTPConnection(str(parts.hostname), parts.port)) as connection:
            connection.sock = link
            try:
                target = parts.path + (f"?{parts.query}" if parts.query else "")
                connection.request(ask.method, target, ask.body, {"Host": parts.netloc.rpartition("@")[2], "Connection": "close", **ask.headers})
                answer = connection.getresponse()
                return Answer(answer.status, self._read(answer))
            except OSError as exc:
                raise network_error(exc, "http") from None
            except (http.client.HTTPException, ValueError) as exc:
                # its text may quote what was sent
                raise VenueError("unusable", f"the answer is cut off or not HTTP ({type(exc).__name__})", "http_unusable") from None

    @staticmethod
    def _read(answer: http.client.HTTPResponse) -> bytes:
        body = bytearray()
        while len(body) <= MAX_BODY:
            part = answer.read(1 << 16)
            if not part:
                break
            body += part
        if len(body) > MAX_BODY:
            raise VenueError("unusable", f"the answer is longer than {MAX_BODY} bytes", "http_unusable")
        # read() with a length ends silently where the connection did
        if answer.length:
            raise VenueError("unusable", f"the answer is cut off, {answer.length} bytes are missing", "http_unusable")
        return bytes(body)
