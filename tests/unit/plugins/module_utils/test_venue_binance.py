# SPDX-License-Identifier: GPL-3.0-or-later
"""Bodies as the documentation of Binance shows them, and everything that must not be taken for an answer."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _venue_binance
from ansible_collections.titan.disaster_recovery.plugins.module_utils._venue_base import Rights, Venue
from ansible_collections.titan.disaster_recovery.plugins.module_utils._venue_binance import Binance
from ansible_collections.titan.disaster_recovery.plugins.module_utils._venue_wire import Answer, Ask, VenueError

D = Decimal
NOW = 1767225600.0
DAY = 86400
POSITION = {"symbol": "BTCUSDT", "positionAmt": "-0.5", "entryPrice": "50000.1", "markPrice": "50001", "positionSide": "BOTH", "unRealizedProfit": "0"}
ORDER = {"orderId": 7, "clientOrderId": "t-1", "symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "status": "PARTIALLY_FILLED", "origQty": "2",
         "executedQty": "0.5", "price": "49000", "avgPrice": "48999.5", "time": 1767225590000, "updateTime": 1767225599000}  # fmt: skip
TRADE = {"id": 70, "orderId": 7, "symbol": "BTCUSDT", "side": "BUY", "qty": "0.5", "price": "48999.5", "commission": "0.01", "time": 1767225595000}
ACCOUNT = {"canTrade": True, "totalMarginBalance": "99.5", "assets": [{"asset": "USDT", "walletBalance": "100.5"}],
           "positions": [{"symbol": "BTCUSDT", "leverage": "10", "isolated": False, "positionSide": "BOTH"}, {"symbol": "X", "leverage": "20"}]}  # fmt: skip
LIMITS = {"ipRestrict": True, "enableReading": True, "enableFutures": True, "enableWithdrawals": False}
INFO = {"symbols": [{"symbol": "BTCUSDT", "status": "TRADING", "filters": [
    {"filterType": "PRICE_FILTER", "tickSize": "0.10"}, {"filterType": "LOT_SIZE", "stepSize": "0.001"}]}]}  # fmt: skip


class Exchange:
    """Answers by path; keeps what it was asked."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers, self.asked = answers, []  # type: ignore[var-annotated]

    def __call__(self, ask: Ask) -> Answer:
        parts = urlsplit(ask.url)
        params = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.asked.append((ask.method, parts.path, params, ask))
        found = self.answers.get(parts.path, Answer(404, b'{"code": -5000, "msg": "Path is invalid"}'))
        found = found(params) if callable(found) else found
        return found if isinstance(found, Answer) else Answer(200, json.dumps(found).encode())


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., tuple[Venue, Exchange]]:
    (tmp_path / "keys.json").write_text('{"e": {"k": "the-key", "s": "the-secret"}}')

    def make(**answers: Any) -> tuple[Venue, Exchange]:
        exchange = Exchange({"/" + path.replace("__", "/"): answer for path, answer in answers.items()})
        spec = {"name": "b", "rest": "https://h/", "symbols": ["BTCUSDT"], "keys": {"file": str(tmp_path / "keys.json"), "api_key": "e.k", "api_secret": "e.s"}}
        return Binance(spec, 2.0, exchange, lambda: NOW), exchange

    return make


Opened = Callable[..., tuple[Venue, Exchange]]


def refused(ask: Callable[[], Any]) -> VenueError:
    with pytest.raises(VenueError) as caught:
        ask()
    text = f"{caught.value!r} {caught.value.text}"
    assert "the-key" not in text and "the-secret" not in text and "signature" not in text
    return caught.value


def test_what_is_signed(opened: Opened) -> None:
    venue, exchange = opened(fapi__v2__positionRisk=[POSITION])
    assert venue.positions() == {"BTCUSDT": _venue_binance.Position(D("-0.5"), D("50000.1"), D("50001"))}
    [(method, _path, _params, ask)] = exchange.asked
    sent, _name, signature = urlsplit(ask.url).query.partition("&signature=")
    assert (method, sent, ask.headers["X-MBX-APIKEY"]) == ("GET", "recvWindow=5000&timestamp=1767225600000", "the-key")
    assert signature == hmac.new(b"the-secret", sent.encode(), hashlib.sha256).hexdigest()
    assert "the-key" not in repr(ask) and signature not in repr(ask)


def test_public_questions_need_no_key(opened: Opened) -> None:
    venue, exchange = opened(fapi__v1__time={"serverTime": 1767225600500}, fapi__v1__exchangeInfo=INFO, sapi__v1__system__status={"status": 0, "msg": "normal"})
    venue._keys_spec = {}
    assert venue.server_time() == 1767225600.5
    assert venue.instruments() == {"BTCUSDT": _venue_binance.Instrument(D("0.10"), D("0.001"), "trading")}
    assert venue.status() == ("ok", "normal")
    assert not any(ask.headers or "signature" in params for _method, _path, params, ask in exchange.asked)


def test_status(opened: Opened) -> None:
    assert opened(sapi__v1__system__status={"status": 1, "msg": "system_maintenance"})[0].status() == ("maintenance", "system_maintenance")
    assert opened(fapi__v1__ping={})[0].status()[0] == "ok"  # no status page on this host
    down = Answer(503, b'{"code": -1001, "msg": "Internal error"}')
    assert opened(sapi__v1__system__status=down)[0].status()[0] == "maintenance"
    assert opened(fapi__v1__ping=down)[0].status()[0] == "maintenance"
    assert refused(opened(sapi__v1__system__status=Answer(429, b"{}"))[0].status).kind == "rate_limited"
    assert refused(opened()[0].status).kind == "refused"


@pytest.mark.parametrize(("status", "code", "kind"), [
    (400, -1021, "clock"), (401, -2014, "key"), (401, -2015, "key"), (400, -1022, "key"), (400, -1003, "rate_limited"), (429, -1003, "rate_limited"),
    (418, -1003, "rate_limited"), (503, -1001, "maintenance"), (503, -1016, "maintenance"), (500, -1000, "unusable"), (502, -1, "unusable"),
    (400, -1121, "refused"), (404, -5000, "refused"), (200, -1000, "refused"), (403, None, "unusable"),
])  # fmt: skip
def test_error_codes(opened: Opened, status: int, code: int | None, kind: str) -> None:
    body = json.dumps({"code": code, "msg": "the-key is bad"} if code is not None else {}).encode()
    venue, _exchange = opened(fapi__v2__positionRisk=Answer(status, body))
    error = refused(venue.positions)
    assert error.kind == kind and error.text.startswith("b: positions: ")


@pytest.mark.parametrize("body", [
    [POSITION, POSITION], [{**POSITION, "positionAmt": "NaN"}], [{**POSITION, "positionAmt": ""}], [{"symbol": "BTCUSDT"}], {"positions": []}, "flat", None,
    [None],
    [{**POSITION, "positionSide": "LONG", "positionAmt": "1"}, {**POSITION, "positionSide": "SHORT"}], [{**POSITION, "entryPrice": "-1"}],
])  # fmt: skip
def test_positions_that_cannot_be_read(opened: Opened, body: Any) -> None:
    assert refused(opened(fapi__v2__positionRisk=body)[0].positions).kind == "unusable"


def test_a_symbol_that_is_not_told_is_not_flat(opened: Opened) -> None:
    assert opened(fapi__v2__positionRisk=[])[0].positions() == {}
    flat = {**POSITION, "positionAmt": "0.000", "entryPrice": "0.0"}
    assert opened(fapi__v2__positionRisk=[flat])[0].positions()["BTCUSDT"].size == 0
    rows = [{**flat, "positionSide": "LONG"}, {**POSITION, "positionSide": "SHORT"}]
    assert opened(fapi__v2__positionRisk=rows)[0].positions()["BTCUSDT"].size == D("-0.5")


def test_account_and_rights(opened: Opened) -> None:
    answers = {"fapi__v2__account": ACCOUNT, "fapi__v1__positionSide__dual": {"dualSidePosition": False}}
    found = opened(**answers)[0].account()
    assert (found.balances, found.equity) == ({"USDT": D("100.5")}, D("99.5"))
    assert found.settings == {"BTCUSDT": {"leverage": "10", "margin": "cross", "position_mode": "one_way"}}
    hedged = opened(**answers | {"fapi__v1__positionSide__dual": {"dualSidePosition": True}})[0].account()
    assert hedged.settings["BTCUSDT"]["position_mode"] == "hedge"
    assert opened(**answers)[0].rights() == Rights(True, True, None, None, None)
    assert opened(**answers, sapi__v1__account__apiRestrictions=LIMITS)[0].rights() == Rights(True, True, False, None, None)
    more = {**LIMITS, "ipRestrict": False, "enableFutures": False, "enableWithdrawals": True, "tradingAuthorityExpirationTime": 1767225600000}
    assert opened(**answers, sapi__v1__account__apiRestrictions=more)[0].rights() == Rights(False, True, True, (), NOW)
    assert opened(**answers | {"fapi__v2__account": {**ACCOUNT, "canTrade": False}})[0].rights().can_trade is False
    assert refused(opened(**answers, sapi__v1__account__apiRestrictions=Answer(401, b'{"code": -2015, "msg": ""}'))[0].rights).kind == "key"
    for broken in ({**ACCOUNT, "canTrade": "true"}, {}, []):
        assert refused(opened(**answers | {"fapi__v2__account": broken})[0].rights).kind == "unusable"
    for broken in ({**ACCOUNT, "assets": None}, {**ACCOUNT, "totalMarginBalance": ""}):
        assert refused(opened(**answers | {"fapi__v2__account": broken})[0].account).kind == "unusable"
    assert refused(opened(**answers | {"fapi__v1__positionSide__dual": {}})[0].account).kind == "unusable"


def test_orders(opened: Opened) -> None:
    [found] = opened(fapi__v1__openOrders=[ORDER])[0].open_orders()
    assert (found.id, found.client_id, found.side, found.qty, found.filled, found.price, found.type, found.status, found.at) == (
        "7", "t-1", "buy", D(2), D("0.5"), D("48999.5"), "limit", "open", 1767225590.0)  # fmt: skip
    for status, told in (("NEW", "open"), ("FILLED", "filled"), ("CANCELED", "cancelled"), ("EXPIRED", "cancelled"), ("REJECTED", "rejected")):
        assert opened(fapi__v1__openOrders=[{**ORDER, "status": status}])[0].open_orders()[0].status == told
    for broken in (
        {**ORDER, "status": "DREAMING"},
        {**ORDER, "side": "LONG"},
        {**ORDER, "origQty": "-1"},
        {**ORDER, "orderId": ""},
        {**ORDER, "time": "soon"},
        {},
    ):
        assert refused(opened(fapi__v1__openOrders=[broken])[0].open_orders).kind == "unusable"


def test_one_order(opened: Opened) -> None:
    venue, exchange = opened(fapi__v1__order=ORDER)
    found = venue.order("BTCUSDT", "t-1")
    assert found and found.id == "7" and exchange.asked[0][2]["origClientOrderId"] == "t-1"
    assert refused(lambda: venue.order("BTCUSDT", "t-2")).kind == "unusable"  # it told another one
    assert opened(fapi__v1__order=Answer(400, b'{"code": -2013, "msg": "Order does not exist."}'))[0].order("BTCUSDT", "t-1") is None
    assert refused(lambda: opened(fapi__v1__order=Answer(400, b'{"code": -1102, "msg": ""}'))[0].order("BTCUSDT", "t-1")).kind == "refused"


def paged(rows: list[dict[str, Any]], cursor: str, name: str) -> Callable[[dict[str, str]], Any]:
    """As the real lists: by number or by time, never both, a week at most."""

    def answer(params: dict[str, str]) -> Any:
        limit = int(params["limit"])
        if cursor in params:
            assert "startTime" not in params
            return [row for row in rows if row[name] >= int(params[cursor])][:limit]
        start = int(params["startTime"])
        end = int(params.get("endTime", start + 7 * DAY * 1000))
        assert end - start <= 7 * DAY * 1000
        return [row for row in rows if start <= row["time"] <= end][:limit]

    return answer


@pytest.mark.parametrize("days", [1, 6.9, 7.1, 30])
@pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 23])
def test_fills_over_pages_and_weeks(opened: Opened, monkeypatch: pytest.MonkeyPatch, days: float, count: int) -> None:
    monkeypatch.setattr(_venue_binance, "LIMIT", 5)
    since = NOW - days * DAY
    at = [since + 60 + n * (NOW - since - 120) / max(count, 1) for n in range(count)]
    trades = [{**TRADE, "id": n + 1, "orderId": n // 2 + 1, "time": int(when * 1000)} for n, when in enumerate(at)]
    orders = [{**ORDER, "orderId": n + 1, "clientOrderId": f"t-{n + 1}", "time": int(when * 1000)} for n, when in enumerate(at[::2])]
    venue, _exchange = opened(fapi__v1__userTrades=paged(trades, "fromId", "id"), fapi__v1__allOrders=paged(orders, "orderId", "orderId"))
    found = venue.fills(since)
    assert [(fill.id, fill.client_id) for fill in found] == [(str(n + 1), f"t-{n // 2 + 1}") for n in range(count)]
    assert [order.id for order in venue.orders_since(since)] == [str(n + 1) for n in range((count + 1) // 2)]


def test_a_fill_of_an_order_that_is_older(opened: Opened) -> None:
    venue, exchange = opened(fapi__v1__userTrades=[TRADE], fapi__v1__allOrders=[], fapi__v1__order=ORDER)
    [fill] = venue.fills(NOW - 30)
    assert (fill.client_id, fill.side, fill.qty, fill.fee) == ("t-1", "buy", D("0.5"), D("0.01"))
    assert exchange.asked[-1][2]["orderId"] == "7"
    assert venue.fills(NOW - 1) == []


@pytest.mark.parametrize("broken", [[{}], {"rows": []}, [{**TRADE, "id": ""}], [{**TRADE, "qty": "x"}], Answer(200, b"[{"), Answer(500, b"")])
def test_fills_that_cannot_be_read(opened: Opened, broken: Any) -> None:
    assert refused(lambda: opened(fapi__v1__userTrades=broken, fapi__v1__allOrders=[ORDER])[0].fills(NOW - 30)).kind == "unusable"


def test_pages_that_stand_still(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_venue_binance, "LIMIT", 2)
    venue, _exchange = opened(fapi__v1__userTrades=[TRADE, {**TRADE, "id": 71}], fapi__v1__allOrders=[])
    assert "the pages do not go on" in refused(lambda: venue.fills(NOW - 30)).text
    number = iter(range(100000))
    venue, _exchange = opened(fapi__v1__userTrades=lambda params: [{**TRADE, "id": next(number)}, {**TRADE, "id": next(number)}], fapi__v1__allOrders=[])
    monkeypatch.setattr(_venue_binance.base, "MAX_PAGES", 5)
    assert "the pages do not end" in refused(lambda: venue.fills(NOW - 30)).text


def test_the_time_is_for_all_pages(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_venue_binance, "LIMIT", 1)
    venue, exchange = opened(fapi__v1__userTrades=paged([{**TRADE, "id": n + 1} for n in range(9)], "fromId", "id"), fapi__v1__allOrders=[])
    clock = iter(range(1000))
    monkeypatch.setattr("time.monotonic", lambda: next(clock) / 2)
    assert refused(lambda: venue.fills(NOW - 30)).kind == "network"
    assert len(exchange.asked) < 9


def test_cancel_all(opened: Opened) -> None:
    left = [[ORDER, {**ORDER, "orderId": 8, "symbol": "ETHUSDT"}], [{**ORDER, "orderId": 8, "symbol": "ETHUSDT"}]]
    venue, exchange = opened(fapi__v1__openOrders=lambda params: left.pop(0), fapi__v1__allOpenOrders={"code": 200, "msg": "done"})
    assert venue.cancel_all() == 1  # what is still there does not count, whatever the exchange said
    assert [params["symbol"] for method, _path, params, _ask in exchange.asked if method == "DELETE"] == ["BTCUSDT", "ETHUSDT"]
    assert opened(fapi__v1__openOrders=[])[0].cancel_all() == 0
