# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulators held to their word by a client that was written for the real venues: ccxt's own classes, only the base URLs are others."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import ccxt
import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils._venue import open_venue
from exchange_simulator import KEYS, Simulator, end, start

BTC, ETH = "BTC/USDT:USDT", "ETH/USDT:USDT"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    simulator = start(tmp_path_factory.mktemp("exchange"))
    yield simulator
    end(simulator)


def client(sim: Simulator, venue: str) -> Any:
    options = {"fetchCurrencies": False, "fetchMarkets": {"types": ["linear"]}}
    keys = {"apiKey": KEYS[venue]["api_key"], "secret": KEYS[venue]["api_secret"]}
    made = (ccxt.binanceusdm if venue == "binance" else ccxt.bybit)({**keys, "options": options})
    base = f"http://127.0.0.1:{sim.ports[venue]}"
    if venue == "binance":
        made.urls["api"] = {name: base + path.removeprefix("https://").partition("/")[2].join(("/", "")) for name, path in made.urls["api"].items()}
    else:
        made.urls["api"] = dict.fromkeys(made.urls["api"], base)
        made.has["fetchCurrencies"] = False
    made.session.trust_env = False
    return made


@pytest.fixture(params=["binance", "bybit"])
def venue(request: pytest.FixtureRequest, running: Simulator) -> tuple[Simulator, str, Any]:
    running.control("POST", "/reset")
    return running, request.param, client(running, request.param)


def test_markets_balance_and_a_flat_account(venue: tuple[Simulator, str, Any]) -> None:
    _sim, name, exchange = venue
    markets = exchange.load_markets()
    assert {symbol: (market["precision"]["price"], market["precision"]["amount"]) for symbol, market in markets.items()} == {
        BTC: (0.1, 0.001), ETH: (0.01, 0.01), "SOL/USDT:USDT": (0.01, 0.1),
    }  # fmt: skip
    assert all(market["active"] and market["linear"] and market["swap"] for market in markets.values())
    assert exchange.fetch_balance()["USDT"]["total"] == 100000
    assert [row for row in exchange.fetch_positions() if row["contracts"]] == []
    assert exchange.fetch_open_orders(BTC) == []
    assert abs(exchange.fetch_time() / 1000 - time.time()) < 2
    assert exchange.fetch_status()["status"] == "ok", name


def test_orders_trades_and_positions(venue: tuple[Simulator, str, Any]) -> None:
    sim, name, exchange = venue
    exchange.load_markets()
    begun = exchange.milliseconds() - 1000
    bought = exchange.create_order(BTC, "market", "buy", 0.5, params={"clientOrderId": "mine-1"})
    exchange.create_order(ETH, "market", "sell", 2)
    resting = exchange.create_order(BTC, "limit", "buy", 0.1, 40000)
    foreign = sim.control("POST", "/orders", {"venue": name, "symbol": "BTCUSDT", "side": "sell", "qty": "0.2", "type": "market", "clientOrderId": "hand-1"})

    held = {row["symbol"]: (row["side"], row["contracts"]) for row in exchange.fetch_positions() if row["contracts"]}
    assert held == {BTC: ("long", 0.3), ETH: ("short", 2)}
    assert [(row["id"], row["side"], row["amount"], row["price"]) for row in exchange.fetch_open_orders(BTC)] == [(resting["id"], "buy", 0.1, 40000)]
    trades = exchange.fetch_my_trades(BTC, since=begun)
    assert [(row["order"], row["side"], row["amount"]) for row in trades] == [(bought["id"], "buy", 0.5), (foreign["orderId"], "sell", 0.2)]
    fills = sim.control("GET", "/state")["venues"][name]["fills"]
    assert [(row["id"], row["price"], row["fee"]["cost"], row["timestamp"]) for row in trades] == [
        (fill["id"], float(fill["price"]), pytest.approx(float(fill["fee"])), int(fill["at"] * 1000)) for fill in fills if fill["symbol"] == "BTCUSDT"
    ]
    closed = exchange.fetch_closed_orders(BTC, since=begun)
    assert {(row["clientOrderId"], row["status"], row["filled"]) for row in closed} == {("mine-1", "closed", 0.5), ("hand-1", "closed", 0.2)}
    exchange.cancel_all_orders(BTC)
    assert exchange.fetch_open_orders(BTC) == []


@pytest.mark.parametrize(("fault", "errors"), [
    ({"maintenance": True}, (ccxt.ExchangeNotAvailable, ccxt.OperationFailed, ccxt.ExchangeError)),
    ({"key_not_whitelisted": True}, (ccxt.PermissionDenied, ccxt.AuthenticationError)),
    ({"clock_offset": 120}, (ccxt.InvalidNonce,)),
    ({"rate_limit": True}, (ccxt.RateLimitExceeded, ccxt.DDoSProtection)),
    ({"positions_error": True}, (ccxt.ExchangeNotAvailable,)),
])  # fmt: skip
def test_faults_are_the_errors_that_ccxt_knows(venue: tuple[Simulator, str, Any], fault: dict[str, Any], errors: tuple[type[Exception], ...]) -> None:
    sim, name, exchange = venue
    exchange.load_markets()
    exchange.fetch_positions()
    sim.faults(name, **fault)
    with pytest.raises(errors):
        exchange.fetch_positions()
    if "maintenance" in fault:
        assert exchange.fetch_status()["status"] == "maintenance"


@pytest.mark.parametrize("fault", ["positions_html", "positions_partial", "positions_empty"])
def test_ccxt_takes_an_unusable_report_for_a_flat_account(venue: tuple[Simulator, str, Any], fault: str) -> None:
    """Why a recovery does not read positions through it: what is not JSON, or stops half way, is an empty list to it and no error."""
    sim, name, exchange = venue
    exchange.load_markets()
    exchange.create_order(BTC, "market", "buy", 0.5)
    exchange.create_order(ETH, "market", "sell", 2)
    assert len(exchange.fetch_positions()) == 2
    sim.faults(name, **{fault: True})
    first_page_only = name == "bybit" and fault == "positions_partial"
    assert len(exchange.fetch_positions()) == (1 if first_page_only else 0)


def test_our_own_client_reads_what_ccxt_reads(venue: tuple[Simulator, str, Any]) -> None:
    """A second opinion on plugins/module_utils/_venue: positions, orders, fills, balances, instruments and the clock."""
    sim, name, exchange = venue
    keys = {"file": str(sim.log_file.parent / "keys.json"), "api_key": f"{name}.api_key", "api_secret": f"{name}.api_secret"}
    ours = open_venue({"name": name, "kind": name, "rest": f"http://127.0.0.1:{sim.ports[name]}", "symbols": ["BTCUSDT", "ETHUSDT"], "keys": keys}, 5.0)
    markets = {market["id"]: market for market in exchange.load_markets().values()}
    since = time.time() - 1
    for number, (symbol, side, qty, price) in enumerate(
        [("BTCUSDT", "buy", "0.5", ""), ("BTCUSDT", "sell", "0.2", ""), ("ETHUSDT", "sell", "2", ""), ("BTCUSDT", "buy", "0.1", "40000")]
    ):
        more = {"type": "limit", "price": price} if price else {"type": "market"}
        sim.control("POST", "/orders", {"venue": name, "symbol": symbol, "side": side, "qty": qty, "clientOrderId": f"t-{number}", **more})

    told = {row["info"]["symbol"]: row for row in exchange.fetch_positions() if row["contracts"]}
    signed = {symbol: row["contracts"] * (1 if row["side"] == "long" else -1) for symbol, row in told.items()}
    held = {symbol: position for symbol, position in ours.positions().items() if position.size}
    assert {symbol: float(position.size) for symbol, position in held.items()} == signed == {"BTCUSDT": 0.3, "ETHUSDT": -2}
    assert {symbol: float(position.entry) for symbol, position in held.items()} == {symbol: pytest.approx(row["entryPrice"]) for symbol, row in told.items()}

    resting = [(row["id"], row["clientOrderId"], row["side"], row["amount"], row["filled"], row["price"]) for row in exchange.fetch_open_orders(BTC)]
    found = [(one.id, one.client_id, one.side, float(one.qty), float(one.filled), float(one.price)) for one in ours.open_orders()]
    assert found == resting and len(found) == 1

    trades = [row for symbol in (BTC, ETH) for row in exchange.fetch_my_trades(symbol, since=int(since * 1000))]
    fills = [(one.id, one.order_id, one.side, float(one.qty), float(one.price), float(one.fee), round(one.at * 1000)) for one in ours.fills(since)]
    assert sorted(fills) == sorted(
        (row["id"], row["order"], row["side"], row["amount"], row["price"], pytest.approx(row["fee"]["cost"]), row["timestamp"]) for row in trades
    )
    closed = [row for symbol in (BTC, ETH) for row in exchange.fetch_closed_orders(symbol, since=int(since * 1000))]
    orders = [(one.client_id, float(one.filled)) for one in ours.orders_since(since) if one.status == "filled"]
    assert sorted(orders) == sorted((row["clientOrderId"], row["filled"]) for row in closed) and len(orders) == 3

    assert {asset: float(value) for asset, value in ours.account().balances.items()} == {"USDT": pytest.approx(_wallet(exchange, name))}
    steps = {symbol: (float(one.tick), float(one.lot)) for symbol, one in ours.instruments().items()}
    assert steps == {symbol: (market["precision"]["price"], market["precision"]["amount"]) for symbol, market in markets.items()}
    assert abs(ours.server_time() - exchange.fetch_time() / 1000) < 1


def _wallet(exchange: Any, name: str) -> float:
    """Without what open positions have not realised: ccxt's own total has it in for one of the two."""
    info = exchange.fetch_balance()["info"]
    if name == "binance":
        return float(next(row["walletBalance"] for row in info["assets"] if row["asset"] == "USDT"))
    return float(info["result"]["list"][0]["coin"][0]["walletBalance"])
