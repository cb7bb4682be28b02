# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _network_dns as dns

NAME = "api.binance.lab"
Reply = Callable[[bytes], bytes | None]


def reply(asked: bytes, *addresses: str, code: int = 0, flags: int = 0x8180) -> bytes:
    records = b"".join(b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + socket.inet_aton(address) for address in addresses)
    return asked[:2] + struct.pack(">HHHHH", flags | code, 1, len(addresses), 0, 0) + asked[12:] + records


@pytest.fixture
def server() -> Iterator[Callable[[Reply], int]]:
    """A name server on a port of its own that answers as it is told."""
    links: list[socket.socket] = []

    def start(answer: Reply) -> int:
        link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        link.bind(("127.0.0.1", 0))
        links.append(link)

        def work() -> None:
            while True:
                try:
                    asked, who = link.recvfrom(512)
                except OSError:
                    return
                said = answer(asked)
                if said is not None:
                    link.sendto(said, who)

        threading.Thread(target=work, daemon=True).start()
        return int(link.getsockname()[1])

    yield start
    for link in links:
        link.close()


def ask(port: int, timeout: float = 0.6) -> dns.Answer:
    return dns.ask("127.0.0.1", NAME, timeout, port)


def test_an_answer(server: Callable[[Reply], int]) -> None:
    found = ask(server(lambda asked: reply(asked, "10.0.0.2", "10.0.0.1")))
    assert (found.verdict, found.addresses) == ("ok", ("10.0.0.1", "10.0.0.2"))


def test_no_such_name(server: Callable[[Reply], int]) -> None:
    assert ask(server(lambda asked: reply(asked, code=3))).verdict == "nxdomain"
    assert ask(server(reply)).verdict == "nxdomain", "the name is there, without an address"


def test_a_server_that_refuses(server: Callable[[Reply], int]) -> None:
    assert ask(server(lambda asked: reply(asked, code=5))).verdict == "refused"


def test_a_dead_server_costs_no_more_than_its_time(server: Callable[[Reply], int]) -> None:
    began = time.monotonic()
    assert ask(server(lambda asked: None), 0.4).verdict == "silent"
    assert 0.3 < time.monotonic() - began < 4
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
    began = time.monotonic()
    assert ask(port, 5).verdict == "silent", "nobody listens: the kernel says so at once"
    assert time.monotonic() - began < 4


def test_one_lost_packet_is_asked_for_again(server: Callable[[Reply], int]) -> None:
    seen: list[bytes] = []

    def second(asked: bytes) -> bytes | None:
        seen.append(asked)
        return reply(asked, "10.0.0.1") if len(seen) == 2 else None

    assert ask(server(second), 1.0).verdict == "ok"


@pytest.mark.parametrize(
    "lie",
    [
        lambda asked: b"\x00\x00" + reply(asked, "6.6.6.6")[2:] if asked[:2] != b"\x00\x00" else b"",
        lambda asked: reply(asked[:12] + dns.question("evil.lab", 1)[12:], "6.6.6.6"),
        lambda asked: reply(asked, "6.6.6.6", flags=0x0100),
        lambda asked: reply(asked, "6.6.6.6")[:-2],
        lambda asked: b"",
    ],
    ids=["another number", "another name", "a question", "cut off", "empty"],
)
def test_what_is_no_answer_is_not_believed(server: Callable[[Reply], int], lie: Reply) -> None:
    assert ask(server(lie)).verdict == "silent"


def test_resolv_conf() -> None:
    text = "search lab\nnameserver 10.0.0.1\n# nameserver 9.9.9.9\nnameserver 10.0.0.2\noptions edns0\n"
    assert dns.nameservers(text) == ["10.0.0.1", "10.0.0.2"]
    assert dns.nameservers("") == ["127.0.0.1"]
    changed = dns.resolv_conf(text, ["10.0.0.9"])
    assert changed == "search lab\n# nameserver 9.9.9.9\noptions edns0\nnameserver 10.0.0.9\n"
    assert dns.nameservers(changed) == ["10.0.0.9"]


def test_the_systems_own_lookup() -> None:
    assert dns.system("127.0.0.1", 5) == (["127.0.0.1"], "")
    found, why = dns.system("no-such-name.invalid", 5)
    assert found == [] and why


def test_a_lookup_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns.socket, "getaddrinfo", lambda *args, **more: time.sleep(30) or [])
    began = time.monotonic()
    assert dns.system(NAME, 0.2) == ([], "no answer within 0.2 s")
    assert time.monotonic() - began < 4


def test_addresses() -> None:
    assert dns.is_address("10.0.0.1") and dns.is_address("::1") and not dns.is_address("api.binance.lab")
