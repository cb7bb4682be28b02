# SPDX-License-Identifier: GPL-3.0-or-later
"""The exchange simulators as a client sees them: a real process, real sockets, real signatures."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest

EXCHANGES = Path(__file__).resolve().parents[2] / "lab" / "exchanges"
sys.path.insert(0, str(EXCHANGES))

from dialects import Binance, Call, Keys  # noqa: E402
from venue import Faults, OrderLog, OrderRequest, Rejected, Venue  # noqa: E402

KEYS = {"binance": {"api_key": "bin-key", "api_secret": "bin-secret"}, "bybit": {"api_key": "byb-key", "api_secret": "byb-secret"}}


@dataclass
class Simulator:
    ports: dict[str, int]
    log_file: Path
    process: subprocess.Popen[str]

    def raw(
        self, server: str, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None, timeout: float = 5
    ) -> tuple[int, str, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[server], timeout=timeout)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.getheader("Content-Type", ""), response.read().decode()
        finally:
            connection.close()

    def control(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        got, _, text = self.raw("control", method, path, None if body is None else json.dumps(body))
        assert got == status, text
        return json.loads(text)

    def faults(self, venue: str, **faults: Any) -> None:
        self.control("PUT", f"/faults/{venue}", faults)

    def orders(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self.control("GET", "/log")["orders"]
        return entries

    def binance(self, method: str, path: str, key: str = "bin-key", secret: str = "bin-secret", skew: float = 0, timeout: float = 5, **params: Any) -> Any:
        query = urlencode(params | {"timestamp": int((time.time() + skew) * 1000)})
        query += "&signature=" + hmac.new(secret.encode(), query.encode(), hashlib.sha256).hexdigest()
        status, _, text = self.raw("binance", method, f"{path}?{query}", headers={"X-MBX-APIKEY": key}, timeout=timeout)
        return status, json.loads(text)

    def bybit(self, method: str, path: str, key: str = "byb-key", secret: str = "byb-secret", skew: float = 0, timeout: float = 5, **params: Any) -> Any:
        payload = urlencode(params) if method == "GET" else json.dumps(params)
        stamp = str(int((time.time() + skew) * 1000))
        sign = hmac.new(secret.encode(), (stamp + key + "5000" + payload).encode(), hashlib.sha256).hexdigest()
        headers = {"X-BAPI-API-KEY": key, "X-BAPI-TIMESTAMP": stamp, "X-BAPI-RECV-WINDOW": "5000", "X-BAPI-SIGN": sign, "Content-Type": "application/json"}
        url, body = (f"{path}?{payload}", None) if method == "GET" else (path, payload)
        status, _, text = self.raw("bybit", method, url, body, headers, timeout)
        return status, json.loads(text)

    def buy_binance(self, client_id: str, **more: Any) -> Any:
        order = {"symbol": "BTCUSDT", "side": "BUY", "type": "MARKET", "quantity": "0.5", "newClientOrderId": client_id}
        return self.binance("POST", "/fapi/v1/order", **(order | more))

    def buy_bybit(self, client_id: str, **more: Any) -> Any:
        order = {"category": "linear", "symbol": "BTCUSDT", "side": "Buy", "orderType": "Market", "qty": "0.5", "orderLinkId": client_id}
        return self.bybit("POST", "/v5/order/create", **(order | more))


def start(folder: Path) -> Simulator:
    keys, log_file = folder / "keys.json", folder / "orders.jsonl"
    keys.write_text(json.dumps(KEYS))
    command = [sys.executable, str(EXCHANGES / "simulator.py"), "--keys", str(keys), "--log-file", str(log_file), "--bind", "127.0.0.1"]
    for name in ("binance", "bybit", "control"):
        command += [f"--{name}-port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("listening "), line
    return Simulator(json.loads(line.removeprefix("listening ")), log_file, process)


def end(simulator: Simulator) -> None:
    simulator.process.terminate()
    assert simulator.process.wait(10) == 0
    assert simulator.process.stdout is not None
    simulator.process.stdout.close()


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
    assert sim.bybit("GET", "/v5/account/wallet-balance", accountType="UNIFIED")[1]["result"]["list"][0]["coin"][0]["walletBalance"] == "100000"
    for n in ("b1", "b2"):
        assert sim.buy_bybit(n, orderType="Limit", price="100")[1]["retCode"] == 0
    listed = sim.bybit("GET", "/v5/order/realtime", category="linear")[1]["result"]["list"]
    assert [row["orderLinkId"] for row in listed] == ["b1", "b2"]
    cancel: dict[str, Any] = {"category": "linear", "symbol": "BTCUSDT"}
    assert sim.bybit("POST", "/v5/order/cancel", orderLinkId="b1", **cancel)[1]["result"]["orderLinkId"] == "b1"
    assert sim.bybit("POST", "/v5/order/cancel", orderLinkId="b1", **cancel)[1]["retCode"] == 110001
    assert [row["orderLinkId"] for row in sim.bybit("POST", "/v5/order/cancel-all", **cancel)[1]["result"]["list"]] == ["b2"]
    assert sim.control("GET", "/state")["venues"]["bybit"]["open_orders"] == []


@pytest.mark.parametrize(("change", "kind"), [
    ({"symbol": "NOPE"}, "symbol"), ({"side": "up"}, "side"), ({"order_type": "stop"}, "type"), ({"qty": "0"}, "qty"), ({"qty": "NaN"}, "qty"),
    ({"qty": ""}, "qty"), ({"order_type": "limit", "price": "-1"}, "price"), ({"reduce_only": True}, "reduce_only"),
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
        return venue.place(OrderRequest("", "BTCUSDT", side, "market", qty), at).price

    first, second = trade("buy", "1", 0), trade("buy", "3", 40)
    assert venue.positions["BTCUSDT"].entry_price == (first + 3 * second) / 4
    closed = trade("sell", "2", 90)
    assert venue.balance == 100000 + 2 * (closed - (first + 3 * second) / 4)
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
])  # fmt: skip
def test_a_fault_that_is_not_understood_is_an_error(sim: Simulator, faults: Any) -> None:
    with pytest.raises(ValueError):
        Faults.parse(faults)
    assert "error" in sim.control("PUT", "/faults/bybit", faults, status=400)
    sim.control("PUT", "/faults/kraken", {}, status=404)


# --- WebSocket ---


def in_socket(sim: Simulator, venue: str, talk: Callable[[aiohttp.ClientWebSocketResponse], Any]) -> Any:
    path = {"binance": "/ws", "bybit": "/v5/public/linear"}[venue]

    async def run() -> Any:
        async with aiohttp.ClientSession() as session, session.ws_connect(f"http://127.0.0.1:{sim.ports[venue]}{path}", autoping=False) as socket:
            return await talk(socket)

    return asyncio.run(run())


def test_websocket_ticks_once_a_second_and_answers_pings(sim: Simulator) -> None:
    async def talk(socket: aiohttp.ClientWebSocketResponse) -> tuple[int, list[bytes], list[Any]]:
        await socket.ping(b"hello")
        await socket.send_json({"method": "SUBSCRIBE", "params": ["btcusdt@ticker"], "id": 7})
        ticks, pongs, answers = 0, [], []
        until = time.monotonic() + 2.5
        while (left := until - time.monotonic()) > 0:
            try:
                message = await socket.receive(left)
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
    async def talk(socket: aiohttp.ClientWebSocketResponse) -> list[Any]:
        await socket.send_json({"op": "ping", "req_id": "1"})
        rows = [await socket.receive_json(timeout=3) for _ in range(4)]
        return [row.get("ret_msg") or row["topic"] for row in rows]

    assert sorted(in_socket(sim, "bybit", talk)) == ["pong", "tickers.BTCUSDT", "tickers.ETHUSDT", "tickers.SOLUSDT"]


@pytest.mark.parametrize("faults", [{"reject_upgrade": True}, {"drop": True}])
def test_an_open_stream_ends_when_its_fault_comes_and_cannot_come_back(sim: Simulator, faults: dict[str, Any]) -> None:
    async def talk(socket: aiohttp.ClientWebSocketResponse) -> None:
        await socket.receive_json(timeout=3)
        await asyncio.to_thread(sim.control, "PUT", "/faults/binance", faults)
        while not socket.closed:
            await socket.receive(3)

    in_socket(sim, "binance", talk)
    with pytest.raises((aiohttp.WSServerHandshakeError, aiohttp.ClientConnectionError)) as refused:
        in_socket(sim, "binance", talk)
    if isinstance(refused.value, aiohttp.WSServerHandshakeError):
        assert refused.value.status == 403
        assert sim.buy_binance("a")[0] == 200  # REST is fine


def test_a_hung_stream_stays_open_and_silent(sim: Simulator) -> None:
    async def talk(socket: aiohttp.ClientWebSocketResponse) -> None:
        for _ in range(3):  # the first tick, so that the next one is a second away
            await socket.receive_json(timeout=3)
        await asyncio.to_thread(sim.control, "PUT", "/faults/binance", {"drop": "hang"})
        await socket.ping()
        with pytest.raises(TimeoutError):
            await socket.receive(1.5)
        assert not socket.closed
        await asyncio.to_thread(sim.control, "DELETE", "/faults/binance")
        await socket.receive_json(timeout=3)

    in_socket(sim, "binance", talk)


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
