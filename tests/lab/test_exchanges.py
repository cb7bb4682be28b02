# SPDX-License-Identifier: GPL-3.0-or-later
"""The exchange simulators as a client sees them: a real process, real sockets, real signatures."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from exchange_simulator import EXCHANGES, KEYS, Simulator, end, start
from titan_dr.lab import certificates

sys.path.insert(0, str(EXCHANGES))

from binance import Binance
from dialects import Call, Keys
from venue import Faults, OrderLog, OrderRequest, Rejected, Venue


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    simulator = start(tmp_path_factory.mktemp("exchange"))
    yield simulator
    end(simulator)


@pytest.fixture
def sim(running: Simulator) -> Simulator:
    running.control("POST", "/reset")
    return running


# --- signatures ---


@pytest.mark.parametrize(
    ("query", "body", "signature"),
    [  # from Binance's own documentation
        (
            "symbol=LTCBTC&side=BUY&type=LIMIT&timeInForce=GTC&quantity=1&price=0.1&recvWindow=5000&timestamp=1499827319559", "",
            "c8db56825ae71d6d79447849e617115f4a920fa2acdcab2b053c4b2838bd6b71",
        ),
        (
            "symbol=LTCBTC&side=BUY&type=LIMIT&timeInForce=GTC", "quantity=1&price=0.1&recvWindow=5000&timestamp=1499827319559",
            "0fd168b8ddb4876a0358a8d14d0c9f3da0e9b20c5d52b2a00fcf7d1c602f9a77",
        ),
    ],
)  # fmt: skip
def test_binance_signature_of_the_documentation(query: str, body: str, signature: str) -> None:
    dialect = Binance(Keys("k", "NhqPtmdSJYdKjVHjA7PZj4Mge3R5YNiP1e3UZjInClVN65XAbvqqM6A7H5fATj0j"))
    venue, now = Venue("binance", unique_client_ids=False), 1499827319.6
    target = (query, f"{body}&signature={signature}") if body else (f"{query}&signature={signature}", "")
    good = dialect.answer(Call("POST", "/fapi/v1/order", *target, {"X-MBX-APIKEY": "k"}), venue, now)
    assert good.body["code"] == -1121  # signature accepted; the simulator does not list LTCBTC
    bad = dialect.answer(Call("POST", "/fapi/v1/order", target[0].replace("BUY", "SELL"), target[1], {"X-MBX-APIKEY": "k"}), venue, now)
    assert (bad.status, bad.body["code"]) == (400, -1022)


def test_signed_is_what_was_sent_not_what_it_decodes_to(sim: Simulator) -> None:
    assert sim.buy_binance("a/b c~d")[1].get("clientOrderId") == "a/b c~d"
    assert sim.bybit("GET", "/v5/order/realtime", category="linear", orderLinkId="a/b c~d")[1]["retCode"] == 0


def test_binance_refuses_wrong_credentials(sim: Simulator) -> None:
    assert sim.raw("binance", "GET", "/fapi/v2/balance")[0] == 401
    for changed, status, code in (({"key": "other"}, 401, -2015), ({"secret": "other"}, 400, -1022), ({"skew": -60}, 400, -1021), ({"skew": 60}, 400, -1021)):
        got, body = sim.buy_binance("x", **changed)
        assert (got, body["code"]) == (status, code)
    assert [entry["outcome"] for entry in sim.orders()] == ["rejected"] * 4
    assert sim.control("GET", "/state")["venues"]["binance"]["positions"] == {}


def test_bybit_refuses_wrong_credentials(sim: Simulator) -> None:
    for changed, code in (({"key": "other"}, 10003), ({"secret": "other"}, 10004), ({"skew": -60}, 10002)):
        status, body = sim.buy_bybit("x", **changed)
        assert (status, body["retCode"]) == (200, code)
    assert [entry["reason"].split()[0] for entry in sim.orders()] == ["10003", "10004", "10002"]


# --- trading ---


def test_public_endpoints(sim: Simulator) -> None:
    assert json.loads(sim.raw("binance", "GET", "/api/v3/ping")[2]) == {}
    assert abs(json.loads(sim.raw("binance", "GET", "/api/v3/time")[2])["serverTime"] / 1000 - time.time()) < 2
    assert abs(int(json.loads(sim.raw("bybit", "GET", "/v5/market/time")[2])["result"]["timeSecond"]) - time.time()) < 2
    assert sim.binance("GET", "/fapi/v1/nothing")[0] == 404
    assert sim.bybit("GET", "/v5/nothing")[0] == 404


def test_binance_orders_positions_balance(sim: Simulator) -> None:
    status, order = sim.buy_binance("a1")
    assert (status, order["status"], order["clientOrderId"], order["executedQty"]) == (200, "FILLED", "a1", "0.5")
    position = sim.binance("GET", "/fapi/v2/positionRisk", symbol="BTCUSDT")[1]
    assert [(row["symbol"], row["positionAmt"]) for row in position] == [("BTCUSDT", "0.5")]
    assert Decimal(position[0]["entryPrice"]) == Decimal(order["avgPrice"])
    sim.buy_binance("a2", side="SELL", quantity="0.75")
    assert sim.binance("GET", "/fapi/v2/positionRisk", symbol="BTCUSDT")[1][0]["positionAmt"] == "-0.25"
    assert sim.binance("GET", "/fapi/v2/balance")[1][0]["asset"] == "USDT"
    for n in ("b1", "b2"):
        assert sim.buy_binance(n, type="LIMIT", price="100")[1]["status"] == "NEW"
    assert sim.buy_binance("b1", type="LIMIT", price="100")[1]["code"] == -4116
    assert [row["clientOrderId"] for row in sim.binance("GET", "/fapi/v1/openOrders")[1]] == ["b1", "b2"]
    assert sim.binance("DELETE", "/fapi/v1/order", symbol="BTCUSDT", origClientOrderId="b1")[1]["status"] == "CANCELED"
    assert sim.binance("DELETE", "/fapi/v1/order", symbol="BTCUSDT", origClientOrderId="b1")[1]["code"] == -2011
    assert sim.binance("DELETE", "/fapi/v1/allOpenOrders", symbol="BTCUSDT")[1]["code"] == 200
    assert sim.binance("GET", "/fapi/v1/openOrders")[1] == []


def test_bybit_orders_positions_balance(sim: Simulator) -> None:
    assert sim.buy_bybit("a1")[1]["retCode"] == 0
    assert sim.buy_bybit("a1")[1]["retCode"] == 110072
    rows = sim.bybit("GET", "/v5/position/list", category="linear", settleCoin="USDT")[1]["result"]["list"]
    assert [(row["symbol"], row["side"], row["size"]) for row in rows] == [("BTCUSDT", "Buy", "0.5")]
    assert sim.bybit("GET", "/v5/position/list", settleCoin="USDT")[1]["retCode"] == 10001
    paid = 100000 - Decimal(sim.bybit("GET", "/v5/account/wallet-balance", accountType="UNIFIED")[1]["result"]["list"][0]["coin"][0]["walletBalance"])
    assert paid == Decimal(rows[0]["avgPrice"]) / 2 * Decimal("0.0005")  # the fee
    for n in ("b1", "b2"):
        assert sim.buy_bybit(n, orderType="Limit", price="100")[1]["retCode"] == 0
    listed = sim.bybit("GET", "/v5/order/realtime", category="linear", settleCoin="USDT")[1]["result"]["list"]
    assert [row["orderLinkId"] for row in listed] == ["b2", "b1"]  # newest first
    cancel: dict[str, Any] = {"category": "linear", "symbol": "BTCUSDT"}
    assert sim.bybit("POST", "/v5/order/cancel", orderLinkId="b1", **cancel)[1]["result"]["orderLinkId"] == "b1"
    assert sim.bybit("POST", "/v5/order/cancel", orderLinkId="b1", **cancel)[1]["retCode"] == 110001
    assert [row["orderLinkId"] for row in sim.bybit("POST", "/v5/order/cancel-all", **cancel)[1]["result"]["list"]] == ["b2"]
    assert sim.control("GET", "/state")["venues"]["bybit"]["open_orders"] == []


@pytest.mark.parametrize(("change", "kind"), [
    ({"symbol": "NOPE"}, "symbol"), ({"side": "up"}, "side"), ({"order_type": "stop"}, "type"), ({"qty": "0"}, "qty"), ({"qty": "NaN"}, "qty"),
    ({"qty": ""}, "qty"), ({"qty": "0.0005"}, "lot"), ({"order_type": "limit", "price": "100.05"}, "tick"),
    ({"order_type": "limit", "price": "-1"}, "price"), ({"reduce_only": True}, "reduce_only"),
])  # fmt: skip
def test_bad_orders_are_refused_and_change_nothing(change: dict[str, Any], kind: str) -> None:
    venue = Venue("binance", unique_client_ids=False)
    with pytest.raises(Rejected) as refused:
        venue.place(OrderRequest(**({"client_order_id": "x", "symbol": "BTCUSDT", "side": "buy", "order_type": "market", "qty": "1"} | change)), 0.0)
    assert refused.value.kind == kind
    assert not venue.orders and not venue.positions


def test_entry_price_and_realised_profit() -> None:
    venue = Venue("binance", unique_client_ids=False)

    def trade(side: str, qty: str, at: float) -> Decimal:
        return venue.place(OrderRequest("", "BTCUSDT", side, "market", qty), at).average

    first, second = trade("buy", "1", 0), trade("buy", "3", 40)
    assert venue.positions["BTCUSDT"].entry_price == (first + 3 * second) / 4
    closed = trade("sell", "2", 90)
    fees = sum((fill.fee for fill in venue.fills), Decimal(0))
    assert fees == (first + 3 * second + 2 * closed) * Decimal("0.0005")
    assert venue.balance == 100000 + 2 * (closed - (first + 3 * second) / 4) - fees
    assert [fill.profit for fill in venue.fills[:2]] == [0, 0] and venue.fills[2].profit == 2 * (closed - (first + 3 * second) / 4)
    turned = trade("sell", "5", 120)
    assert (venue.positions["BTCUSDT"].size, venue.positions["BTCUSDT"].entry_price) == (Decimal(-3), turned)
    trade("buy", "3", 130)
    assert (venue.positions["BTCUSDT"].size, venue.positions["BTCUSDT"].entry_price) == (Decimal(0), Decimal(0))


# --- the order log ---


def test_log_has_every_order_in_order_of_arrival(sim: Simulator) -> None:
    before = time.time()
    sim.buy_binance("a")
    sim.buy_bybit("b")
    sim.buy_binance("c", quantity="-1")
    sim.faults("bybit", html=True)
    with pytest.raises(ValueError):
        sim.buy_bybit("d")
    entries = sim.orders()
    assert [(e["venue"], e["clientOrderId"], e["outcome"]) for e in entries] == [
        ("binance", "a", "accepted"), ("bybit", "b", "accepted"), ("binance", "c", "rejected"), ("bybit", "d", "faulted"),
    ]  # fmt: skip
    assert [e["seq"] for e in entries] == sorted({e["seq"] for e in entries})
    assert all(before <= e["received"] <= time.time() and e["source_ip"] == "127.0.0.1" for e in entries)
    assert {k: entries[0][k] for k in ("symbol", "side", "qty", "price")} == {"symbol": "BTCUSDT", "side": "buy", "qty": "0.5", "price": ""}
    later = sim.control("GET", f"/log?since={entries[1]['seq']}&venue=bybit")["orders"]
    assert [e["clientOrderId"] for e in later] == ["d"]
    sim.control("GET", "/log?venue=kraken", status=400)


def test_log_survives_a_killed_simulator(tmp_path: Path) -> None:
    simulator = start(tmp_path)
    simulator.buy_binance("a")
    simulator.faults("bybit", delay=30)
    with pytest.raises(TimeoutError):
        simulator.buy_bybit("b", timeout=0.3)
    simulator.process.kill()
    simulator.process.wait()
    with simulator.log_file.open("a") as file:
        file.write('{"seq": 3, "ven')  # torn
    again = start(tmp_path)
    try:
        again.buy_bybit("c")
        assert [(e["seq"], e["clientOrderId"], e["outcome"]) for e in again.orders()] == [(1, "a", "accepted"), (2, "b", "pending"), (3, "c", "accepted")]
        last = again.control("POST", "/reset")["last_seq"]
        assert again.orders() == []
    finally:
        end(again)
    reloaded = OrderLog(simulator.log_file)
    assert (reloaded.entries, reloaded.last_seq) == ([], last)
    assert '"clientOrderId": "a"' in simulator.log_file.read_text()


# --- faults ---


def test_drop_closes_without_an_answer(sim: Simulator) -> None:
    sim.faults("binance", drop=True)
    with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
        sim.buy_binance("a")
    assert [(e["outcome"], e["reason"]) for e in sim.orders()] == [("faulted", "drop: close")]
    assert sim.buy_bybit("b")[1]["retCode"] == 0  # the other venue is untouched
    sim.control("DELETE", "/faults/binance")
    assert sim.buy_binance("c")[0] == 200


def test_drop_hang_never_answers_until_it_is_lifted(sim: Simulator) -> None:
    sim.faults("bybit", drop="hang")
    with pytest.raises(TimeoutError):
        sim.buy_bybit("a", timeout=0.5)
    assert sim.control("GET", "/state")["venues"]["bybit"]["positions"] == {}


def test_drop_reply_acts_and_loses_the_answer(sim: Simulator) -> None:
    sim.faults("binance", drop="reply")
    with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
        sim.buy_binance("a")
    assert [(e["outcome"], e["reason"]) for e in sim.orders()] == [("accepted", "drop: reply")]
    assert sim.control("GET", "/state")["venues"]["binance"]["positions"]["BTCUSDT"]["size"] == "0.5"


def test_delay(sim: Simulator) -> None:
    sim.faults("binance", delay=0.6)
    started = time.time()
    assert sim.buy_binance("a")[0] == 200
    assert time.time() - started >= 0.6
    assert sim.orders()[0]["received"] - started < 0.4  # the time of arrival, not of the answer


def test_rate_limit(sim: Simulator) -> None:
    for venue, buy, code in (("binance", sim.buy_binance, -1003), ("bybit", sim.buy_bybit, 10006)):
        for value, status in ((True, 429), (418, 418)):
            sim.faults(venue, rate_limit=value)
            got, body = buy("a")
            assert (got, body.get("code", body.get("retCode"))) == (status, code)


def test_html_is_a_200_that_is_not_json(sim: Simulator) -> None:
    sim.faults("binance", html=True)
    status, kind, text = sim.raw("binance", "GET", "/api/v3/ping")
    assert (status, kind.split(";")[0]) == (200, "text/html")
    with pytest.raises(ValueError):
        json.loads(text)


def test_wrong_position_lies_about_side_and_size_but_not_in_the_state(sim: Simulator) -> None:
    sim.buy_binance("a")
    sim.buy_bybit("a")
    sim.faults("binance", wrong_position=True)
    sim.faults("bybit", wrong_position={"BTCUSDT": -7, "ETHUSDT": "2"})
    assert sim.binance("GET", "/fapi/v2/positionRisk", symbol="BTCUSDT")[1][0]["positionAmt"] == "-1.0"
    rows = sim.bybit("GET", "/v5/position/list", category="linear", settleCoin="USDT")[1]["result"]["list"]
    assert {(row["symbol"], row["side"], row["size"]) for row in rows} == {("BTCUSDT", "Sell", "7"), ("ETHUSDT", "Buy", "2")}
    assert {v["positions"]["BTCUSDT"]["size"] for v in sim.control("GET", "/state")["venues"].values()} == {"0.5"}
    sim.control("POST", "/reset")
    sim.faults("binance", wrong_position=True)  # a flat account is told as one that holds something
    assert sim.binance("GET", "/fapi/v2/positionRisk", symbol="BTCUSDT")[1][0]["positionAmt"] == "1"


def test_faults_combine_and_are_told(sim: Simulator) -> None:
    sim.faults("binance", delay=0.3, rate_limit=True)
    started = time.time()
    assert sim.buy_binance("a")[0] == 429
    assert time.time() - started >= 0.3
    told = sim.control("GET", "/faults/binance")
    assert (told["delay"], told["rate_limit"], told["drop"], told["html"]) == (0.3, 429, None, False)
    sim.faults("binance", html=True)  # PUT replaces the set
    assert sim.control("GET", "/faults/binance")["delay"] == 0


@pytest.mark.parametrize("faults", [
    {"dorp": True}, {"drop": "maybe"}, {"delay": True}, {"delay": -1}, {"rate_limit": 500}, {"html": "yes"}, {"wrong_position": {"BTCUSDT": "much"}}, [],
    {"clock_offset": "late"}, {"clock_offset": True}, {"tls": "stolen"}, {"positions_empty": 1},
    {"tls": "expired"},  # there is no TLS in this process: nothing would happen
])  # fmt: skip
def test_a_fault_that_is_not_understood_is_an_error(sim: Simulator, faults: Any) -> None:
    if faults != {"tls": "expired"}:
        with pytest.raises(ValueError):
            Faults.parse(faults)
    assert "error" in sim.control("PUT", "/faults/bybit", faults, status=400)
    sim.control("PUT", "/faults/kraken", {}, status=404)


# --- WebSocket ---


def in_socket(sim: Simulator, venue: str, talk: Callable[[aiohttp.ClientWebSocketResponse], Any]) -> Any:
    path = {"binance": "/ws", "bybit": "/v5/public/linear"}[venue]

    async def run() -> Any:
        async with aiohttp.ClientSession() as session, session.ws_connect(f"http://127.0.0.1:{sim.ports[venue]}{path}", autoping=False) as stream:
            return await talk(stream)

    return asyncio.run(run())


def test_websocket_ticks_once_a_second_and_answers_pings(sim: Simulator) -> None:
    async def talk(stream: aiohttp.ClientWebSocketResponse) -> tuple[int, list[bytes], list[Any]]:
        await stream.ping(b"hello")
        await stream.send_json({"method": "SUBSCRIBE", "params": ["btcusdt@ticker"], "id": 7})
        ticks, pongs, answers = 0, [], []
        until = time.monotonic() + 2.5
        while (left := until - time.monotonic()) > 0:
            try:
                message = await stream.receive(left)
            except TimeoutError:
                break
            if message.type == aiohttp.WSMsgType.PONG:
                pongs.append(bytes(message.data))
            elif "e" in (row := message.json()):
                ticks += row["s"] == "BTCUSDT"
            else:
                answers.append(row)
        return ticks, pongs, answers

    assert in_socket(sim, "binance", talk) == (3, [b"hello"], [{"result": None, "id": 7}])


def test_bybit_websocket(sim: Simulator) -> None:
    async def talk(stream: aiohttp.ClientWebSocketResponse) -> list[Any]:
        await stream.send_json({"op": "ping", "req_id": "1"})
        rows = [await stream.receive_json(timeout=3) for _ in range(4)]
        return [row.get("ret_msg") or row["topic"] for row in rows]

    assert sorted(in_socket(sim, "bybit", talk)) == ["pong", "tickers.BTCUSDT", "tickers.ETHUSDT", "tickers.SOLUSDT"]


@pytest.mark.parametrize("faults", [{"reject_upgrade": True}, {"drop": True}])
def test_an_open_stream_ends_when_its_fault_comes_and_cannot_come_back(sim: Simulator, faults: dict[str, Any]) -> None:
    async def talk(stream: aiohttp.ClientWebSocketResponse) -> None:
        await stream.receive_json(timeout=3)
        await asyncio.to_thread(sim.control, "PUT", "/faults/binance", faults)
        while not stream.closed:
            await stream.receive(3)

    in_socket(sim, "binance", talk)
    with pytest.raises((aiohttp.WSServerHandshakeError, aiohttp.ClientConnectionError)) as refused:
        in_socket(sim, "binance", talk)
    if isinstance(refused.value, aiohttp.WSServerHandshakeError):
        assert refused.value.status == 403
        assert sim.buy_binance("a")[0] == 200  # REST is fine


def test_a_hung_stream_stays_open_and_silent(sim: Simulator) -> None:
    async def talk(stream: aiohttp.ClientWebSocketResponse) -> None:
        for _ in range(3):  # the first tick, so that the next one is a second away
            await stream.receive_json(timeout=3)
        await asyncio.to_thread(sim.control, "PUT", "/faults/binance", {"drop": "hang"})
        await stream.ping()
        with pytest.raises(TimeoutError):
            await stream.receive(1.5)
        assert not stream.closed
        await asyncio.to_thread(sim.control, "DELETE", "/faults/binance")
        await stream.receive_json(timeout=3)

    in_socket(sim, "binance", talk)


# --- what a recovery asks ---


def bybit_rows(sim: Simulator, path: str, **params: Any) -> list[dict[str, Any]]:
    """Every page, by the cursor."""
    rows: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        result = sim.bybit("GET", path, category="linear", **params, **cursor)[1]["result"]
        rows += result["list"]
        if not result["nextPageCursor"]:
            return rows
        cursor = {"cursor": result["nextPageCursor"]}


def test_fills_have_ids_times_and_fees(sim: Simulator) -> None:
    begun = int(time.time() * 1000)
    for n in range(5):
        sim.buy_binance(f"a{n}")
        sim.buy_bybit(f"a{n}")
    sim.buy_binance("other", symbol="ETHUSDT")
    told = sim.control("GET", "/state")["venues"]

    trades = sim.binance("GET", "/fapi/v1/userTrades", symbol="BTCUSDT")[1]
    assert len(trades) == 5 and all(begun <= trade["time"] <= time.time() * 1000 for trade in trades)
    assert [(str(trade["id"]), str(trade["orderId"]), trade["price"], trade["commission"]) for trade in trades] == [
        (fill["id"], fill["orderId"], fill["price"], fill["fee"]) for fill in told["binance"]["fills"][:5]
    ]
    ids = [trade["id"] for trade in trades]

    def ask(**params: Any) -> list[int]:
        return [trade["id"] for trade in sim.binance("GET", "/fapi/v1/userTrades", symbol="BTCUSDT", **params)[1]]

    assert ask(limit=2) == ids[-2:]  # the newest, in order of time
    assert ask(startTime=begun, limit=2) == ids[:2]
    assert ask(fromId=ids[2], limit=2) == ids[2:4]
    assert ask(startTime=begun + 60_000) == []
    for wrong, code in (
        ({"fromId": 1, "startTime": begun}, -1128), ({"startTime": begun - 8 * 86400_000, "endTime": begun}, -1127), ({"symbol": ""}, -1102),
    ):  # fmt: skip
        assert sim.binance("GET", "/fapi/v1/userTrades", **({"symbol": "BTCUSDT"} | wrong))[1]["code"] == code

    rows = bybit_rows(sim, "/v5/execution/list", startTime=begun, limit=2)
    assert [row["orderLinkId"] for row in rows] == ["a4", "a3", "a2", "a1", "a0"]  # newest first
    assert [(row["execId"], row["orderId"], row["execPrice"], row["execFee"]) for row in reversed(rows)] == [
        (fill["id"], fill["orderId"], fill["price"], fill["fee"]) for fill in told["bybit"]["fills"]
    ]
    assert bybit_rows(sim, "/v5/execution/list", startTime=begun - 30 * 86400_000) == []  # seven days from there, not until now
    assert [row["orderLinkId"] for row in bybit_rows(sim, "/v5/execution/list", orderLinkId="a2")] == ["a2"]
    for wrong in ({"limit": 101}, {"limit": 0}, {"cursor": "nonsense"}, {"startTime": begun - 8 * 86400_000, "endTime": begun}):
        assert sim.bybit("GET", "/v5/execution/list", category="linear", **wrong)[1]["retCode"] == 10001


def test_order_history_by_time_and_by_id(sim: Simulator) -> None:
    begun = int(time.time() * 1000)
    sim.buy_binance("done")
    sim.buy_binance("rests", type="LIMIT", price="100")
    sim.buy_bybit("done")
    sim.buy_bybit("rests", orderType="Limit", price="100")
    sim.buy_bybit("gone", orderType="Limit", price="100")
    sim.bybit("POST", "/v5/order/cancel", category="linear", symbol="BTCUSDT", orderLinkId="gone")

    rows = sim.binance("GET", "/fapi/v1/allOrders", symbol="BTCUSDT", startTime=begun)[1]
    assert [(row["clientOrderId"], row["status"], row["executedQty"], row["price"]) for row in rows] == [
        ("done", "FILLED", "0.5", "0"), ("rests", "NEW", "0", "100"),
    ]  # fmt: skip
    assert sim.binance("GET", "/fapi/v1/allOrders", symbol="BTCUSDT", orderId=rows[1]["orderId"])[1] == rows[1:]
    assert sim.binance("GET", "/fapi/v1/order", symbol="BTCUSDT", origClientOrderId="done")[1]["status"] == "FILLED"
    assert sim.binance("GET", "/fapi/v1/order", symbol="BTCUSDT", origClientOrderId="never")[1]["code"] == -2013
    assert sim.binance("GET", "/fapi/v1/order", symbol="BTCUSDT")[1]["code"] == -1102

    shown = [(row["orderLinkId"], row["orderStatus"]) for row in bybit_rows(sim, "/v5/order/history", startTime=begun, limit=1)]
    assert shown == [("gone", "Cancelled"), ("done", "Filled")]  # newest first, and what is open is not history
    assert [row["orderStatus"] for row in bybit_rows(sim, "/v5/order/realtime", orderLinkId="done")] == ["Filled"]
    assert [row["orderLinkId"] for row in bybit_rows(sim, "/v5/order/realtime", settleCoin="USDT")] == ["rests"]
    assert len(bybit_rows(sim, "/v5/order/realtime", settleCoin="USDT", openOnly=1)) == 3
    for path in ("/v5/order/realtime", "/v5/position/list"):
        assert sim.bybit("GET", path, category="linear")[1]["retCode"] == 10001
    assert sim.bybit("POST", "/v5/order/cancel-all", category="linear")[1]["retCode"] == 10001
    assert sim.bybit("POST", "/v5/order/cancel-all", category="linear", settleCoin="USDT")[1]["result"]["list"][0]["orderLinkId"] == "rests"


def test_what_is_flat_is_said_as_the_venue_says_it(sim: Simulator) -> None:
    rows = sim.binance("GET", "/fapi/v2/positionRisk")[1]
    assert {row["symbol"]: row["positionAmt"] for row in rows} == {"BTCUSDT": "0", "ETHUSDT": "0", "SOLUSDT": "0"}
    assert sim.binance("GET", "/fapi/v3/positionRisk")[1] == []
    assert bybit_rows(sim, "/v5/position/list", settleCoin="USDT") == []
    assert [(row["side"], row["size"]) for row in bybit_rows(sim, "/v5/position/list", symbol="BTCUSDT")] == [("", "0")]
    assert sim.bybit("GET", "/v5/position/list", category="linear", symbol="NOPE")[1]["retCode"] == 10001


def test_bybit_positions_have_pages(sim: Simulator) -> None:
    for symbol in ("BTCUSDT", "ETHUSDT", "SOLUSDT"):
        sim.buy_bybit(symbol, symbol=symbol)
    first = sim.bybit("GET", "/v5/position/list", category="linear", settleCoin="USDT", limit=2)[1]["result"]
    assert ([row["symbol"] for row in first["list"]], "%" in first["nextPageCursor"]) == (["BTCUSDT", "ETHUSDT"], True)
    assert [row["symbol"] for row in bybit_rows(sim, "/v5/position/list", settleCoin="USDT", limit=1)] == ["BTCUSDT", "ETHUSDT", "SOLUSDT"]


def test_instruments_rights_and_settings(sim: Simulator) -> None:
    info = json.loads(sim.raw("binance", "GET", "/fapi/v1/exchangeInfo")[2])["symbols"]
    filters = {row["symbol"]: {one["filterType"]: one for one in row["filters"]} for row in info}
    rows = json.loads(sim.raw("bybit", "GET", "/v5/market/instruments-info?category=linear")[2])["result"]["list"]
    for row in rows:
        ours = filters[row["symbol"]]
        assert row["priceFilter"]["tickSize"] == ours["PRICE_FILTER"]["tickSize"] and row["lotSizeFilter"]["qtyStep"] == ours["LOT_SIZE"]["stepSize"]
    assert len(rows) == len(info) == 3

    assert sim.binance("GET", "/fapi/v2/account")[1]["canTrade"] is True
    assert sim.binance("GET", "/sapi/v1/account/apiRestrictions")[1]["enableWithdrawals"] is False
    rights = sim.bybit("GET", "/v5/user/query-api")[1]["result"]
    assert (rights["readOnly"], rights["permissions"]["ContractTrade"], rights["permissions"]["Wallet"]) == (0, ["Order", "Position"], [])
    assert rights["expiredAt"] > time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

    def settings() -> list[Any]:
        account = sim.binance("GET", "/fapi/v2/account")[1]["positions"][0]
        row = bybit_rows(sim, "/v5/position/list", symbol="BTCUSDT")[0]
        margin = sim.bybit("GET", "/v5/account/info")[1]["result"]["marginMode"]
        dual = sim.binance("GET", "/fapi/v1/positionSide/dual")[1]["dualSidePosition"]
        return [account["leverage"], account["marginType"], dual, row["leverage"], margin, row["positionIdx"]]

    assert settings() == ["10", "cross", False, "10", "REGULAR_MARGIN", 0]
    for venue in ("binance", "bybit"):
        sim.control("POST", "/settings", {"venue": venue, "symbol": "BTCUSDT", "leverage": 125, "margin": "isolated", "hedged": True})
    assert settings() == ["125", "isolated", True, "125", "ISOLATED_MARGIN", 1]
    sim.control("POST", "/reset")
    assert settings() == ["10", "cross", False, "10", "REGULAR_MARGIN", 0]


# --- from outside ---


def test_orders_from_outside_change_the_venue_and_not_the_log(sim: Simulator) -> None:
    for venue in ("binance", "bybit"):
        filled = sim.control("POST", "/orders", {"venue": venue, "symbol": "BTCUSDT", "side": "sell", "qty": 0.2, "type": "market", "clientOrderId": "hand"})
        resting = sim.control("POST", "/orders", {"venue": venue, "symbol": "ETHUSDT", "side": "buy", "qty": "1", "type": "limit", "price": "100"})
        state = sim.control("GET", "/state")["venues"][venue]
        assert (filled["status"], resting["status"], state["positions"]["BTCUSDT"]["size"]) == ("filled", "open", "-0.2")
        assert [fill["clientOrderId"] for fill in state["fills"]] == ["hand"]
        assert [order["orderId"] for order in state["open_orders"]] == [resting["orderId"]]
    assert sim.orders() == []
    assert sim.binance("GET", "/fapi/v1/order", symbol="BTCUSDT", origClientOrderId="hand")[1]["side"] == "SELL"
    assert bybit_rows(sim, "/v5/execution/list")[0]["orderLinkId"] == "hand"


def test_positions_from_outside_have_no_fill_that_explains_them(sim: Simulator) -> None:
    sim.control("POST", "/positions", {"venue": "binance", "symbol": "BTCUSDT", "size": "-3", "entryPrice": "40000"})
    row = sim.binance("GET", "/fapi/v2/positionRisk", symbol="BTCUSDT")[1][0]
    assert (row["positionAmt"], row["entryPrice"]) == ("-3", "40000")
    assert sim.binance("GET", "/fapi/v1/userTrades", symbol="BTCUSDT")[1] == []
    sim.control("POST", "/positions", {"venue": "binance", "symbol": "BTCUSDT", "size": 0})
    assert sim.binance("GET", "/fapi/v2/positionRisk", symbol="BTCUSDT")[1][0]["positionAmt"] == "0"


@pytest.mark.parametrize(("path", "body"), [
    ("/orders", []), ("/orders", {"venue": "kraken"}), ("/orders", {"venue": "bybit", "symbol": "BTCUSDT", "side": "buy", "qty": "0", "type": "market"}),
    ("/orders", {"venue": "bybit", "amount": 1}), ("/positions", {"venue": "bybit", "symbol": "NOPE", "size": 1}),
    ("/positions", {"venue": "bybit", "symbol": "BTCUSDT", "size": "all"}), ("/positions", {"venue": "bybit", "symbol": "BTCUSDT"}),
    ("/settings", {"venue": "bybit", "leverage": 5}), ("/settings", {"venue": "bybit", "symbol": "BTCUSDT", "margin": "much"}),
    ("/settings", {"venue": "bybit", "hedged": "no"}), ("/settings", {"venue": "bybit", "symbol": "BTCUSDT", "leverage": 0}),
])  # fmt: skip
def test_what_is_not_understood_changes_nothing(sim: Simulator, path: str, body: Any) -> None:
    assert "error" in sim.control("POST", path, body, status=400)
    state = sim.control("GET", "/state")["venues"]["bybit"]
    assert not state["positions"] and not state["fills"]


# --- faults of what a recovery asks ---


def test_unusable_position_reports(sim: Simulator) -> None:
    for symbol in ("BTCUSDT", "ETHUSDT"):
        sim.buy_binance(symbol, symbol=symbol)
        sim.buy_bybit(symbol, symbol=symbol)
    binance, bybit = "/fapi/v2/positionRisk", "/v5/position/list"

    for venue in ("binance", "bybit"):
        sim.faults(venue, positions_empty=True)
    assert sim.binance("GET", binance)[1] == []
    assert bybit_rows(sim, bybit, settleCoin="USDT") == bybit_rows(sim, bybit, symbol="BTCUSDT") == []

    for venue in ("binance", "bybit"):
        sim.faults(venue, positions_partial=True)
    with pytest.raises(ValueError):
        sim.binance("GET", binance)  # JSON that ends in the middle
    first = sim.bybit("GET", bybit, category="linear", settleCoin="USDT")[1]["result"]
    assert (len(first["list"]), bool(first["nextPageCursor"])) == (1, True)
    with pytest.raises(ValueError):  # status 500
        sim.bybit("GET", bybit, category="linear", settleCoin="USDT", cursor=first["nextPageCursor"])

    for fault, status, kind in (("positions_error", 500, "text/plain"), ("positions_html", 200, "text/html")):
        for venue, path in (("binance", binance), ("bybit", bybit)):
            sim.faults(venue, **{fault: True})
            assert sim.raw(venue, "GET", path)[:2] == (status, f"{kind}; charset=utf-8")
    assert sim.buy_binance("more")[0] == 200 and sim.buy_bybit("more")[1]["retCode"] == 0  # only the reports are bad
    assert [len(venue["positions"]) for venue in sim.control("GET", "/state")["venues"].values()] == [2, 2]


def test_a_key_that_is_not_whitelisted_is_no_network_fault(sim: Simulator) -> None:
    for venue in ("binance", "bybit"):
        sim.faults(venue, key_not_whitelisted=True)
    status, body = sim.buy_binance("a")
    assert (status, body["code"]) == (401, -2015)
    assert sim.buy_bybit("a")[1]["retCode"] == 10010
    assert sim.raw("binance", "GET", "/api/v3/time")[0] == sim.raw("bybit", "GET", "/v5/market/time")[0] == 200
    assert [entry["outcome"] for entry in sim.orders()] == ["rejected", "rejected"]


def test_maintenance_is_told_and_signed_calls_are_refused(sim: Simulator) -> None:
    def told() -> tuple[int, list[str]]:
        events = json.loads(sim.raw("bybit", "GET", "/v5/system/status")[2])["result"]["list"]
        return json.loads(sim.raw("binance", "GET", "/sapi/v1/system/status")[2])["status"], [event["state"] for event in events]

    assert told() == (0, ["completed"])
    for venue in ("binance", "bybit"):
        sim.faults(venue, maintenance=True)
    assert told() == (1, ["ongoing", "completed"])
    assert json.loads(sim.raw("bybit", "GET", "/v5/system/status?state=ongoing")[2])["result"]["list"][0]["title"] == "System upgrade"
    status, body = sim.buy_binance("a")
    assert (status, body["code"]) == (503, -1001)
    assert sim.buy_bybit("a")[1]["retCode"] == 10016
    assert sim.raw("binance", "GET", "/api/v3/ping")[0] == 200
    assert [venue["positions"] for venue in sim.control("GET", "/state")["venues"].values()] == [{}, {}]


def test_a_venue_whose_clock_is_off(sim: Simulator) -> None:
    for venue in ("binance", "bybit"):
        sim.faults(venue, clock_offset=-90)
    late = time.time() - 90
    assert abs(json.loads(sim.raw("binance", "GET", "/fapi/v1/time")[2])["serverTime"] / 1000 - late) < 2
    assert abs(int(json.loads(sim.raw("bybit", "GET", "/v5/market/time")[2])["result"]["timeSecond"]) - late) < 2
    assert sim.buy_binance("a")[1]["code"] == -1021 and sim.buy_bybit("a")[1]["retCode"] == 10002
    assert sim.buy_binance("b", skew=-90)[0] == 200 and sim.buy_bybit("b", skew=-90)[1]["retCode"] == 0
    assert all(abs(entry["received"] - time.time()) < 5 for entry in sim.orders())  # the log is no part of the venue


def test_a_silent_stream_is_open_and_answers_and_has_no_data(sim: Simulator) -> None:
    async def talk(stream: aiohttp.ClientWebSocketResponse) -> list[Any]:
        await stream.ping(b"there")
        await stream.send_json({"method": "SUBSCRIBE", "params": ["btcusdt@ticker"], "id": 7})
        answers = [await stream.receive(2), await stream.receive(2)]
        with pytest.raises(TimeoutError):
            await stream.receive(1.5)
        return [answer.type for answer in answers]

    sim.faults("binance", ws_silent=True)
    assert sorted(in_socket(sim, "binance", talk)) == sorted([aiohttp.WSMsgType.PONG, aiohttp.WSMsgType.TEXT])
    assert sim.buy_binance("a")[0] == 200


# --- TLS ---


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[tuple[Simulator, ssl.SSLContext]]:
    authority, files = certificates.make(["api.binance.lab", "api.bybit.lab"])
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    simulator = start(tmp_path, "--tls-dir", str(tmp_path), "--bybit-bind", "127.0.0.2")
    yield simulator, ssl.create_default_context(cadata=authority)
    end(simulator)


def handshake(sim: Simulator, context: ssl.SSLContext, venue: str = "binance", name: str = "api.binance.lab") -> ssl.SSLSocket:
    address = {"binance": "127.0.0.1", "bybit": "127.0.0.2"}[venue]
    return context.wrap_socket(socket.create_connection((address, sim.ports[venue]), timeout=5), server_hostname=name)


def ping(connection: ssl.SSLSocket) -> bytes:
    connection.sendall(b"GET /api/v3/ping HTTP/1.1\r\nHost: api.binance.lab\r\n\r\n")
    return connection.recv(4096)


def test_tls_and_an_address_for_each_venue(secure: tuple[Simulator, ssl.SSLContext]) -> None:
    sim, context = secure
    with handshake(sim, context) as connection:
        assert ping(connection).startswith(b"HTTP/1.1 200")
    handshake(sim, context, "bybit", "api.bybit.lab").close()
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(sim, context, name="api.kraken.lab")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", sim.ports["bybit"]), timeout=5)
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        sim.raw("binance", "GET", "/api/v3/ping")  # plain http


def test_the_certificate_changes_at_once_and_for_one_venue(secure: tuple[Simulator, ssl.SSLContext]) -> None:
    sim, context = secure
    connection = handshake(sim, context)
    assert ping(connection).startswith(b"HTTP/1.1 200")
    for fault, words in (("expired", "expired"), ("not_yet_valid", "not yet valid"), ("unknown_ca", "unable to get local issuer")):
        sim.faults("binance", tls=fault)
        assert connection.recv(100) == b""  # it would have hidden the new certificate
        with pytest.raises(ssl.SSLCertVerificationError, match=words):
            handshake(sim, context)
        handshake(sim, context, "bybit", "api.bybit.lab").close()
    sim.control("DELETE", "/faults/binance")
    assert ping(handshake(sim, context)).startswith(b"HTTP/1.1 200")


def test_a_session_is_not_taken_up_again(secure: tuple[Simulator, ssl.SSLContext]) -> None:
    sim, context = secure
    connection = handshake(sim, context)
    ping(connection)
    assert connection.session is None or not connection.session.has_ticket


def test_does_not_start_without_its_certificates(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text(json.dumps(KEYS))
    command = [sys.executable, str(EXCHANGES / "simulator.py"), "--keys", str(tmp_path / "keys.json"), "--tls-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert "good.pem" in done.stderr and "Traceback" not in done.stderr


# --- start ---


@pytest.mark.parametrize("keys", [{}, {"binance": KEYS["binance"]}, KEYS | {"bybit": {"api_key": "", "api_secret": "x"}}])
def test_does_not_start_without_keys(tmp_path: Path, keys: Any) -> None:
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    done = subprocess.run([sys.executable, str(EXCHANGES / "simulator.py"), "--keys", str(tmp_path / "keys.json")], capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert "keys.json" in done.stderr and "Traceback" not in done.stderr


def test_unit_file() -> None:
    unit = (EXCHANGES / "titan-exchange.service").read_text()
    assert "ExecStart=/opt/lab/venv/bin/python /opt/lab/exchanges/simulator.py --keys /etc/titan-exchange/keys.json" in unit
    assert "EnvironmentFile=-/etc/titan-exchange/options" in unit and unit.count("$OPTIONS\n") == 1
