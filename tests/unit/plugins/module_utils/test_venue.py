# SPDX-License-Identifier: GPL-3.0-or-later
"""The client against the exchange simulators: real processes, real signatures, every fault by its name, and never a key in what is said."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import exchange_simulator
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _venue
from ansible_collections.titan.disaster_recovery.plugins.module_utils._venue import Venue, VenueError, VenueSpecError, open_venue
from exchange_simulator import KEYS, Simulator
from titan_dr.lab import certificates

D = Decimal
VENUES = ("binance", "bybit")
SIGNED = ("rights", "account", "open_orders", "positions")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    simulator = exchange_simulator.start(tmp_path_factory.mktemp("exchange"))
    yield simulator
    exchange_simulator.end(simulator)


def spec(simulator: Simulator, name: str, **more: Any) -> dict[str, Any]:
    keys = {"file": str(simulator.log_file.parent / "keys.json"), "api_key": f"{name}.api_key", "api_secret": f"{name}.api_secret"}
    return {"name": name, "kind": name, "rest": f"http://127.0.0.1:{simulator.ports[name]}", "symbols": ["BTCUSDT"], "keys": keys, **more}


@pytest.fixture(params=VENUES)
def opened(request: pytest.FixtureRequest, running: Simulator) -> tuple[Simulator, str, Venue]:
    running.control("POST", "/reset")
    return running, request.param, open_venue(spec(running, request.param), 3.0)


Opened = tuple[Simulator, str, Venue]


@pytest.mark.parametrize("wrong", [{"kind": "mexc"}, {"kind": ""}, {"name": ""}, {"rest": "h"}])
def test_descriptions_that_are_wrong(running: Simulator, wrong: dict[str, str]) -> None:
    with pytest.raises(VenueSpecError):
        open_venue({**spec(running, "binance"), **wrong}, 1.0)


def test_everything_a_venue_tells(opened: Opened) -> None:
    simulator, name, venue = opened
    since = time.time() - 1
    for order in ({"side": "buy", "qty": "0.5", "type": "market", "clientOrderId": "t-1"},
                  {"side": "sell", "qty": "0.2", "type": "market", "clientOrderId": "t-2"},
                  {"side": "buy", "qty": "0.1", "type": "limit", "price": "40000", "clientOrderId": "t-3"}):  # fmt: skip
        simulator.control("POST", "/orders", {"venue": name, "symbol": "BTCUSDT", **order})
    true = simulator.control("GET", "/state")["venues"][name]
    assert abs(venue.server_time() - time.time()) < 1 and venue.status()[0] == "ok"
    assert (venue.rights().can_trade, venue.rights().can_read, venue.rights().withdraw) == (True, True, False)
    assert venue.instruments()["BTCUSDT"] == _venue.Instrument(D("0.1"), D("0.001"), "trading")
    account = venue.account()
    assert account.balances == {"USDT": D(true["balance"])} and account.settings["BTCUSDT"] == {"leverage": "10", "margin": "cross", "position_mode": "one_way"}
    held = venue.positions()["BTCUSDT"]
    assert (held.size, held.entry) == (D("0.3"), D(true["positions"]["BTCUSDT"]["entryPrice"]))
    # two may be of the same millisecond
    assert sorted((fill.client_id, fill.side, fill.qty, fill.price, fill.fee) for fill in venue.fills(since)) == sorted(
        (fill["clientOrderId"], fill["side"], D(fill["qty"]), D(fill["price"]), D(fill["fee"])) for fill in true["fills"]
    )
    assert sorted((order.client_id, order.status, order.filled) for order in venue.orders_since(since)) == [
        ("t-1", "filled", D("0.5")), ("t-2", "filled", D("0.2")), ("t-3", "open", D(0)),
    ]  # fmt: skip
    assert [(order.client_id, order.price) for order in venue.open_orders()] == [("t-3", D(40000))]
    named = [venue.order("BTCUSDT", client_id) for client_id in ("t-1", "t-3")]
    assert [order and order.status for order in named] == ["filled", "open"]
    assert venue.order("BTCUSDT", "t-4") is None
    assert venue.cancel_all() == 1 and venue.open_orders() == []
    assert venue.fills(time.time() + 5) == []


def fault(venue: Venue, ask: str) -> VenueError:
    with pytest.raises(VenueError) as caught:
        getattr(venue, ask)()
    said = f"{caught.value} {caught.value!r} {caught.value.text} {caught.value.__cause__!r}"
    assert not [secret for pair in KEYS.values() for secret in pair.values() if secret in said] and "signature=" not in said
    assert caught.value.text.startswith(f"{venue.name}: ")
    return caught.value


@pytest.mark.parametrize(("faults", "kind", "cause"), [
    ({"drop": "close"}, "network", "http_cut"),
    ({"rate_limit": 429}, "rate_limited", ""),
    ({"rate_limit": 418}, "rate_limited", ""),
    ({"html": True}, "unusable", "http_html"),
    ({"maintenance": True}, "maintenance", ""),
    ({"key_not_whitelisted": True}, "key", ""),
    ({"clock_offset": 60}, "clock", ""),
    ({"clock_offset": -60}, "clock", ""),
], ids=str)  # fmt: skip
def test_faults_are_told_apart(opened: Opened, faults: dict[str, Any], kind: str, cause: str) -> None:
    simulator, name, venue = opened
    simulator.faults(name, **faults)
    for ask in SIGNED:
        error = fault(venue, ask)
        assert error.kind == kind and error.cause == (cause or error.cause), error.text


@pytest.mark.parametrize("name", ["positions_html", "positions_error", "positions_partial"])
def test_a_report_of_positions_that_cannot_be_used(opened: Opened, name: str) -> None:
    simulator, exchange, venue = opened
    for symbol in ("BTCUSDT", "ETHUSDT"):
        simulator.control("POST", "/positions", {"venue": exchange, "symbol": symbol, "size": "1"})
    simulator.faults(exchange, **{name: True})
    assert fault(venue, "positions").kind == "unusable"


def test_an_empty_report_says_nothing_of_a_symbol(opened: Opened) -> None:
    simulator, name, venue = opened
    assert venue.positions()["BTCUSDT"].size == 0
    simulator.faults(name, positions_empty=True)
    assert venue.positions() == {}


def test_maintenance_by_its_own_word(opened: Opened) -> None:
    simulator, name, venue = opened
    simulator.faults(name, maintenance=True)
    assert venue.status()[0] == "maintenance"
    assert venue.server_time() > 0


def test_a_silent_one_ends_in_time(opened: Opened) -> None:
    simulator, name, _venue = opened
    simulator.faults(name, drop="hang")
    began = time.monotonic()
    error = fault(open_venue(spec(simulator, name), 0.5), "positions")
    assert (error.kind, error.cause) == ("network", "http_silent") and time.monotonic() - began < 5


def test_wrong_keys(opened: Opened, tmp_path: Path) -> None:
    simulator, name, _venue = opened
    good = KEYS[name]
    for key, secret in ((good["api_key"], "another-secret"), ("another-key", good["api_secret"])):
        (tmp_path / "keys.json").write_text(f'{{"k": "{key}", "s": "{secret}"}}')
        venue = open_venue(spec(simulator, name, keys={"file": str(tmp_path / "keys.json"), "api_key": "k", "api_secret": "s"}), 3.0)
        error = fault(venue, "positions")
        assert error.kind == "key" and "another" not in error.text


def test_many_threads_at_once(opened: Opened) -> None:
    _simulator, _name, venue = opened
    seen: list[Any] = []

    def work() -> None:
        seen.append((venue.positions()["BTCUSDT"].size, venue.open_orders(), venue.fills(time.time() - 60)))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [(0, [], [])] * 8


@pytest.mark.parametrize("name", VENUES)
def test_tls(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, files = certificates.make(["venue.test"])
    for file, text in {"ca.pem": authority, **files}.items():
        (tmp_path / file).write_text(text)
    monkeypatch.setattr("socket.getaddrinfo", _no_resolver)
    simulator = exchange_simulator.start(tmp_path, "--tls-dir", str(tmp_path))
    try:
        rest = f"https://venue.test:{simulator.ports[name]}"
        venue = open_venue(spec(simulator, name, rest=rest, ca=str(tmp_path / "ca.pem"), addresses=["127.0.0.1"]), 3.0)
        assert venue.positions()["BTCUSDT"].size == 0
        for certificate, cause in (("expired", "tls_expired"), ("not_yet_valid", "tls_not_yet_valid"), ("unknown_ca", "tls_untrusted")):
            simulator.faults(name, tls=certificate)
            error = fault(venue, "positions")
            assert (error.kind, error.cause) == ("tls", cause)
        simulator.faults(name)
        assert fault(open_venue(spec(simulator, name, rest=rest, addresses=["127.0.0.1"]), 3.0), "positions").cause == "tls_untrusted"
        assert fault(open_venue(spec(simulator, name, rest=rest, ca=str(tmp_path / "ca.pem")), 3.0), "positions").kind == "dns"
    finally:
        exchange_simulator.end(simulator)


def _no_resolver(host: str, *args: Any, **more: Any) -> Any:
    if host == "127.0.0.1":
        return [(2, 1, 6, "", (host, args[0]))]
    raise OSError(-3, "Temporary failure in name resolution")
