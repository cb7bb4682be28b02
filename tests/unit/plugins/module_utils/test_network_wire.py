# SPDX-License-Identifier: GPL-3.0-or-later
"""Against real sockets: listeners that refuse, hang, lie and speak."""

from __future__ import annotations

import base64
import hashlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _network_wire as wire
from titan_dr.lab import certificates

HOST = "api.binance.lab"
Talk = Callable[[socket.socket], None]


def soon(seconds: float = 3.0) -> float:
    return time.monotonic() + seconds


@pytest.fixture
def listener() -> Iterator[Callable[[Talk], int]]:
    """A server on a port of its own; each connection is handled as told."""
    links: list[socket.socket] = []

    def start(talk: Talk) -> int:
        link = socket.create_server(("127.0.0.1", 0))
        links.append(link)

        def serve() -> None:
            while True:
                try:
                    peer, _who = link.accept()
                except OSError:
                    return
                threading.Thread(target=handle, args=(peer,), daemon=True).start()

        def handle(peer: socket.socket) -> None:
            try:
                talk(peer)
            except OSError:
                pass
            finally:
                peer.close()

        threading.Thread(target=serve, daemon=True).start()
        return int(link.getsockname()[1])

    yield start
    for link in links:
        link.close()


def hang(peer: socket.socket) -> None:
    time.sleep(5)


# --- TCP --------------------------------------------------------------------------------------------------------------


def test_connect(listener: Callable[[Talk], int]) -> None:
    port = listener(hang)
    found = wire.connect("127.0.0.1", port, soon())
    assert (found.verdict, found.link is not None) == ("ok", True) and found.ms < 1000
    found.close()
    with socket.create_server(("127.0.0.1", 0)) as link:
        port = link.getsockname()[1]
    assert wire.connect("127.0.0.1", port, soon()).verdict == "refused"


def test_a_silent_address_costs_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as full:
        # a listener whose queue is full takes no further connection
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        began = time.monotonic()
        found = wire.connect("127.0.0.1", port, soon(0.4))
        assert found.verdict == "silent" and 0.3 < time.monotonic() - began < 5
        for one in waiting:
            one.close()


@pytest.mark.parametrize(("number", "verdict"), [(22, "unreachable"), (101, "unreachable"), (113, "unreachable"), (13, "unreachable"), (1, "silent")])
def test_what_the_kernel_says(monkeypatch: pytest.MonkeyPatch, number: int, verdict: str) -> None:
    def refuse(*args: object, **more: object) -> None:
        raise OSError(number, "as the kernel says")

    monkeypatch.setattr(wire.socket, "create_connection", refuse)
    assert wire.connect("10.0.0.1", 443, soon()).verdict == verdict


def test_the_first_address_that_answers(listener: Callable[[Talk], int]) -> None:
    port = listener(hang)
    found = wire.connect_any(["127.0.0.2", "127.0.0.1"], port, soon())
    assert (found.verdict, found.address) == ("ok", "127.0.0.1")
    found.close()
    assert wire.connect_any(["127.0.0.2"], port, soon()).verdict == "refused"


def test_one_silent_address_of_two_costs_nothing(listener: Callable[[Talk], int], monkeypatch: pytest.MonkeyPatch) -> None:
    port = listener(hang)
    real = socket.create_connection

    def slow(where: tuple[str, int], timeout: float) -> socket.socket:
        if where[0] == "127.0.0.2":
            time.sleep(timeout)
            raise TimeoutError
        return real(where, timeout=timeout)

    monkeypatch.setattr(wire.socket, "create_connection", slow)
    began = time.monotonic()
    found = wire.connect_any(["127.0.0.2", "127.0.0.1"], port, soon(6))
    assert found.verdict == "ok" and time.monotonic() - began < 4
    found.close()
    assert wire.connect_any(["127.0.0.2"], port, soon(0.2)).verdict == "silent"


def test_latency_and_loss(listener: Callable[[Talk], int]) -> None:
    port = listener(hang)
    median, loss = wire.latency("127.0.0.1", port, 5, soon())
    assert median is not None and median < 1000 and loss == 0
    assert wire.latency("127.0.0.2", port, 5, soon()) == (None, 1.0)


def test_a_firewall_of_this_host_is_told_from_the_world() -> None:
    assert wire.dropped_here("127.0.0.1", 9) is False


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    authority, files = certificates.make([HOST])
    for name, text in {"ca.pem": authority, **files}.items():
        (folder / name).write_text(text)
    return folder


def tls(shown: Path, kind: str, talk: Talk = hang) -> Talk:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(shown / f"{kind}.pem", shown / f"{kind}.key")

    def speak(peer: socket.socket) -> None:
        with context.wrap_socket(peer, server_side=True) as link:
            talk(link)

    return speak


def secured(port: int, shown: Path, host: str = HOST, ca: str = "ca.pem", seconds: float = 3.0) -> wire.Secured:
    connection = wire.connect("127.0.0.1", port, soon())
    found = wire.secure(connection, host, port, str(shown / ca) if ca else "", soon(seconds))
    connection.close()
    return found


@pytest.mark.parametrize(
    ("kind", "verdict", "issuer"),
    [
        ("good", "ok", certificates.AUTHORITY),
        ("expired", "expired", certificates.AUTHORITY),
        ("not_yet_valid", "not_yet_valid", certificates.AUTHORITY),
        ("unknown_ca", "untrusted", certificates.STRANGER),
    ],
)
def test_certificates(listener: Callable[[Talk], int], shown: Path, kind: str, verdict: str, issuer: str) -> None:
    found = secured(listener(tls(shown, kind)), shown)
    assert found.verdict == verdict
    # who signed it and how long it is valid is told also of a certificate that is not accepted
    assert f"issued by {issuer}" in found.evidence and "valid 20" in found.evidence, found.evidence
    if found.link:
        found.link.close()


def test_another_name_and_the_systems_authorities(listener: Callable[[Talk], int], shown: Path) -> None:
    port = listener(tls(shown, "good"))
    assert secured(port, shown, "api.evil.lab").verdict == "name"
    assert secured(port, shown, ca="").verdict == "untrusted", "the lab's authority is nobody to the system"
    assert secured(port, shown, ca="missing.pem").verdict == "untrusted"


def test_a_handshake_that_hangs_or_breaks(listener: Callable[[Talk], int], shown: Path) -> None:
    began = time.monotonic()
    assert secured(listener(hang), shown, seconds=0.4).verdict == "failed"
    assert time.monotonic() - began < 5
    assert secured(listener(lambda peer: peer.close()), shown).verdict == "failed"
    assert secured(listener(lambda peer: peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")), shown).verdict == "failed"


def test_what_cannot_be_read_as_a_certificate_says_so(shown: Path) -> None:
    der = ssl.PEM_cert_to_DER_cert((shown / "good.pem").read_text())
    assert wire.certificate(der).subject == HOST
    for broken in (None, b"", b"\x30", der[:40], b"\x30\x82\xff\xff" + der[4:], bytes(len(der))):
        assert str(wire.certificate(broken)).startswith("?"), broken


# --- HTTP -------------------------------------------------------------------------------------------------------------


def answering(said: bytes) -> Talk:
    def talk(peer: socket.socket) -> None:
        peer.recv(4096)
        peer.sendall(said)

    return talk


def got(port: int, seconds: float = 2.0) -> wire.Reply:
    connection = wire.connect("127.0.0.1", port, soon())
    assert connection.link
    with connection.link:
        return wire.get(connection.link, HOST, "/fapi/v1/time", soon(seconds))


def test_http(listener: Callable[[Talk], int]) -> None:
    found = got(listener(answering(b"HTTP/1.1 429 Slow down\r\nRetry-After: 30\r\nContent-Length: 2\r\n\r\n{}")))
    assert (found.status, found.body, found.retry_after) == (429, b"{}", 30.0)
    for said in (b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}"):
        found = got(listener(answering(said)))
        assert found.status == 0 and found.evidence, said
    assert got(listener(hang), 0.3).evidence == "no complete answer in time"


def test_a_retry_after_that_is_a_date_is_none(listener: Callable[[Talk], int]) -> None:
    said = b"HTTP/1.1 429 Slow down\r\nRetry-After: Wed, 21 Oct 2015 07:28:00 GMT\r\nContent-Length: 0\r\n\r\n"
    assert got(listener(answering(said))).retry_after == 0


# --- WebSocket --------------------------------------------------------------------------------------------------------


def frame(opcode: int, payload: bytes, fin: int = 0x80) -> bytes:
    head = bytes([fin | opcode])
    if len(payload) < 126:
        return head + bytes([len(payload)]) + payload
    return head + (bytes([126]) + struct.pack(">H", len(payload)) if len(payload) < 65536 else bytes([127]) + struct.pack(">Q", len(payload))) + payload


class Exchange:
    """Upgrades, and then says what it is told; keeps what it hears."""

    def __init__(self, *frames: bytes, accept: bool = True, status: str = "101 Switching Protocols") -> None:
        self.frames, self.accept, self.status = frames, accept, status
        self.heard = b""

    def __call__(self, peer: socket.socket) -> None:
        asked = b""
        while b"\r\n\r\n" not in asked:
            asked += peer.recv(4096)
        key = next(line.split(b":")[1].strip() for line in asked.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
        proof = base64.b64encode(hashlib.sha1((key if self.accept else b"x") + wire._GUID).digest())
        peer.sendall(b"HTTP/1.1 " + self.status.encode() + b"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + proof + b"\r\n\r\n")
        peer.settimeout(3)
        for one in self.frames:
            peer.sendall(one)
        try:
            while more := peer.recv(4096):
                self.heard += more
        except TimeoutError:
            return

    def unmasked(self) -> list[tuple[int, bytes]]:
        found, at = [], 0
        while at < len(self.heard):
            opcode, length = self.heard[at] & 0x0F, self.heard[at + 1]
            assert length & 0x80, "a client has to mask"
            length &= 0x7F
            mask, data = self.heard[at + 2 : at + 6], self.heard[at + 6 : at + 6 + length]
            found.append((opcode, bytes(byte ^ mask[number % 4] for number, byte in enumerate(data))))
            at += 6 + length
        return found


def stream(port: int, seconds: float = 2.0) -> tuple[str, str]:
    connection = wire.connect("127.0.0.1", port, soon())
    assert connection.link
    with connection.link:
        return wire.websocket(connection.link, HOST, "/ws", b'{"sub": 1}', lambda message: b"price" in message, soon(seconds))


def test_the_first_data_after_acknowledgement_and_ping(listener: Callable[[Talk], int]) -> None:
    exchange = Exchange(frame(1, b'{"result": null}'), frame(9, b"still there?"), frame(10, b""), frame(1, b'{"price": 1}' + b" " * 300))
    assert stream(listener(exchange))[0] == "ok"
    for _ in range(50):
        if len(exchange.heard) > 30:
            break
        time.sleep(0.02)
    said = exchange.unmasked()
    assert said[0] == (wire.TEXT, b'{"sub": 1}')
    assert (wire.PONG, b"still there?") in said


def test_data_in_parts_and_long_frames(listener: Callable[[Talk], int]) -> None:
    assert stream(listener(Exchange(frame(1, b'{"pri', 0), frame(0, b'ce": 1}'))))[0] == "ok"
    assert stream(listener(Exchange(frame(2, b'{"price": 1}' + b" " * 70000))))[0] == "ok"


def test_a_refused_upgrade(listener: Callable[[Talk], int]) -> None:
    verdict, evidence = stream(listener(Exchange(status="403 Forbidden")))
    assert verdict == "refused" and "403 Forbidden" in evidence
    assert stream(listener(Exchange(accept=False)))[0] == "refused", "whoever answers is no WebSocket server"
    assert stream(listener(answering(b"<html>")))[0] == "refused"
    assert stream(listener(hang), 0.3)[0] == "refused"


@pytest.mark.parametrize(
    "frames",
    [(), (frame(1, b'{"result": null}'),), (frame(9, b""),), (frame(8, b""),), (b"\x81\xff" + bytes(8),), (b"\x81\x85" + b"aaaaprice",)],
    ids=["nothing", "acknowledgement", "ping", "close", "endless", "masked"],
)
def test_a_stream_without_data(listener: Callable[[Talk], int], frames: tuple[bytes, ...]) -> None:
    assert stream(listener(Exchange(*frames)), 0.6)[0] == "silent"
