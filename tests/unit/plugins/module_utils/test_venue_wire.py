# SPDX-License-Identifier: GPL-3.0-or-later
"""Real sockets: each way in which an exchange cannot be reached or does not answer, by its own name."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _venue_wire
from ansible_collections.titan.disaster_recovery.plugins.module_utils._venue_wire import Answer, Ask, VenueError, Wire
from titan_dr.lab import certificates

SECRETS = ("k3y-of-the-test", "s1gnature", "b0dy")
GOOD = b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"a": "ok"}'
Serve = Callable[..., int]


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    authority, files = certificates.make(["venue.test"])
    for name, text in {"ca.pem": authority, **files}.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name is this machine."""
    monkeypatch.setattr(Wire, "resolve", lambda *args: ["127.0.0.1"])


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A server that answers each connection with these bytes (or with a function), over TLS when a certificate is given."""
    listeners: list[socket.socket] = []
    over = threading.Event()

    def start(answer: bytes | Callable[[socket.socket], None], certificate: Path | None = None) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def one(link: socket.socket) -> None:
            try:
                if certificate:
                    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
                    link = context.wrap_socket(link, server_side=True)
                with link:
                    while b"\r\n\r\n" not in link.recv(65536):
                        pass
                    if callable(answer):
                        answer(link)
                    else:
                        link.sendall(answer)
            except OSError:
                link.close()

        def accept() -> None:
            while not over.is_set():
                try:
                    link, _address = listener.accept()
                except OSError:
                    return
                threading.Thread(target=one, args=(link,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return int(listener.getsockname()[1])

    yield start
    over.set()
    for listener in listeners:
        listener.close()


def ask(port: int, scheme: str = "http", host: str = "", timeout: float = 2.0, method: str = "GET") -> Ask:
    host = host or ("venue.test" if scheme == "https" else "127.0.0.1")
    return Ask(method, f"{scheme}://{host}:{port}/path?signature=s1gnature", {"X-KEY": "k3y-of-the-test"}, "b0dy" if method == "POST" else None, timeout)


def fault(wire: Wire, request: Ask) -> tuple[str, str]:
    with pytest.raises(VenueError) as caught:
        wire(request)
    told = f"{caught.value} {caught.value!r} {caught.value.text} {caught.value.__cause__!r} {request!r}"
    assert not [secret for secret in SECRETS if secret in told]
    assert caught.value.kind in _venue_wire.KINDS
    return caught.value.kind, caught.value.cause


def test_an_answer(serve: Serve) -> None:
    assert Wire()(ask(serve(GOOD))) == Answer(200, b'{"a": "ok"}')
    assert Wire()(ask(serve(GOOD), method="POST")).status == 200
    assert Wire()(ask(serve(b"HTTP/1.1 429 Slow\r\nContent-Length: 0\r\n\r\n"))).status == 429


def test_a_redirect_is_an_answer_and_a_proxy_is_not_asked(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    port = serve(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")
    assert Wire()(ask(port)).status == 302


def test_chunks_and_answers_without_a_length(serve: Serve) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    assert Wire()(ask(serve(chunked))).body == b"abc"
    assert Wire()(ask(serve(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc"))).body == b"abc"


# --- the network -----------------------------------------------------------------------------------------------------


def test_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    assert fault(Wire(), ask(port)) == ("network", "tcp_refused")


def test_no_way_there() -> None:
    assert fault(Wire(), ask(9, host="255.255.255.255", timeout=1)) == ("network", "route")


def test_silent(serve: Serve) -> None:
    began = time.monotonic()
    assert fault(Wire(), ask(serve(lambda link: time.sleep(5)), timeout=0.4)) == ("network", "http_silent")
    assert time.monotonic() - began < 3.5


def test_dripping_cannot_hold_it(serve: Serve) -> None:
    def drip(link: socket.socket) -> None:
        for _ in range(40):
            link.sendall(b"H")
            time.sleep(0.1)

    began = time.monotonic()
    assert fault(Wire(), ask(serve(drip), timeout=0.5)) == ("network", "http_silent")
    assert time.monotonic() - began < 3.5


def test_a_listener_that_never_accepts() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        assert fault(Wire(), ask(port, timeout=0.5)) in (("network", "tcp_silent"), ("network", "http_silent"))
        for one in waiting:
            one.close()


@pytest.mark.parametrize("text", [
    b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n[1, 2",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n99\r\n[1, 2",
    b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    b"HTTP/1.1 abc\r\n\r\n",
])  # fmt: skip
def test_cut_off_or_not_http(serve: Serve, text: bytes) -> None:
    assert fault(Wire(), ask(serve(text)))[0] == "unusable"


def test_a_connection_that_is_closed(serve: Serve) -> None:
    assert fault(Wire(), ask(serve(b""))) == ("network", "http_cut")


def test_an_answer_without_end(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_venue_wire, "MAX_BODY", 1000)
    assert fault(Wire(), ask(serve(b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b" " * 2000))) == ("unusable", "http_unusable")


def test_what_cannot_be_sent(serve: Serve) -> None:
    request = Ask("GET", f"http://127.0.0.1:{serve(GOOD)}/", {"X-KEY": "k3y-of-the-test\nx"}, None, 2.0)
    assert fault(Wire(), request) == ("unusable", "http_unusable")


# --- names ---------------------------------------------------------------------------------------------------------------


def test_a_name_that_nobody_knows() -> None:
    assert fault(Wire(), ask(9, host="venue.invalid", timeout=5)) == ("dns", "dns")


def test_a_resolver_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: time.sleep(5) or [])
    began = time.monotonic()
    assert fault(Wire(), ask(9, host="venue.test", timeout=0.5)) == ("dns", "dns")
    assert time.monotonic() - began < 3.5


@pytest.mark.parametrize("how", ["refuses", "is silent"])
def test_known_addresses_serve_without_a_resolver(serve: Serve, pems: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    def resolve(*args: object, **more: object) -> list[object]:
        if how == "is silent":
            time.sleep(5)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    port = serve(GOOD, pems / "good.pem")
    wire = Wire(str(pems / "ca.pem"), ["127.0.0.1"])
    # create_connection resolves as well, an address that is none needs no resolver
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **more: real(host, *args, **more) if host == "127.0.0.1" else resolve())
    assert wire(ask(port, "https", "venue.test", timeout=3)).status == 200
    assert fault(Wire("", ["127.0.0.1"]), ask(port, "https", "venue.test", timeout=3)) == ("tls", "tls_untrusted")


def test_the_next_address_is_tried(serve: Serve, pems: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = serve(GOOD)
    monkeypatch.setattr(Wire, "resolve", lambda *args: ["127.0.0.2", "127.0.0.1"])
    assert Wire()(ask(port, host="venue.test")).status == 200


# --- TLS -----------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("local")
def test_a_certificate_that_is_right(serve: Serve, pems: Path) -> None:
    wire = Wire(str(pems / "ca.pem"))
    assert wire(ask(serve(GOOD, pems / "good.pem"), "https")).status == 200


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize(("name", "cause"), [("expired", "tls_expired"), ("not_yet_valid", "tls_not_yet_valid"), ("unknown_ca", "tls_untrusted")])
def test_certificates_that_are_wrong(serve: Serve, pems: Path, name: str, cause: str) -> None:
    seen: list[bytes] = []
    port = serve(lambda link: seen.append(b"asked"), pems / f"{name}.pem")
    assert fault(Wire(str(pems / "ca.pem")), ask(port, "https")) == ("tls", cause)
    assert not seen


@pytest.mark.usefixtures("local")
def test_the_systems_authorities_do_not_vouch_for_it(serve: Serve, pems: Path) -> None:
    assert fault(Wire(), ask(serve(GOOD, pems / "good.pem"), "https")) == ("tls", "tls_untrusted")


@pytest.mark.usefixtures("local")
def test_another_name(serve: Serve, pems: Path) -> None:
    assert fault(Wire(str(pems / "ca.pem")), ask(serve(GOOD, pems / "good.pem"), "https", "other.test")) == ("tls", "tls_name")


@pytest.mark.usefixtures("local")
def test_no_tls_where_it_should_be(serve: Serve, pems: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def plain() -> None:
            link, _address = listener.accept()
            with link:
                link.recv(65536)
                link.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=plain, daemon=True).start()
        assert fault(Wire(str(pems / "ca.pem")), ask(listener.getsockname()[1], "https")) == ("tls", "tls_handshake")


@pytest.mark.usefixtures("local")
def test_authorities_that_cannot_be_read(pems: Path, tmp_path: Path) -> None:
    assert fault(Wire(str(tmp_path / "none.pem")), ask(9, "https")) == ("tls", "tls_ca")
    (tmp_path / "bad.pem").write_text("no certificate")
    assert fault(Wire(str(tmp_path / "bad.pem")), ask(9, "https")) == ("tls", "tls_ca")


@pytest.mark.usefixtures("local")
def test_many_threads_at_once(serve: Serve, pems: Path) -> None:
    wire, port, seen = Wire(str(pems / "ca.pem")), serve(GOOD, pems / "good.pem"), []
    threads = [threading.Thread(target=lambda: seen.append(wire(ask(port, "https", timeout=10)).status)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [200] * 12
