# SPDX-License-Identifier: GPL-3.0-or-later
"""Bodies as the documentation of Bybit shows them, and everything that must not be taken for an answer."""

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

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _venue_bybit
from ansible_collections.titan.disaster_recovery.plugins.module_utils._venue_base import Rights, Venue
from ansible_collections.titan.disaster_recovery.plugins.module_utils._venue_bybit import Bybit
from ansible_collections.titan.disaster_recovery.plugins.module_utils._venue_wire import Answer, Ask, VenueError

D = Decimal
NOW = 1767225600.0
DAY = 86400
LONG = {"symbol": "BTCUSDT", "side": "Buy", "size": "0.5", "avgPrice": "50000.1", "markPrice": "50001", "positionIdx": 0, "leverage": "10"}
FLAT = {**LONG, "side": "", "size": "0", "avgPrice": "", "markPrice": "50001"}
ORDER = {"orderId": "o-7", "orderLinkId": "t-1", "symbol": "BTCUSDT", "side": "Buy", "orderType": "Limit", "orderStatus": "PartiallyFilled", "qty": "2",
         "cumExecQty": "0.5", "price": "49000", "avgPrice": "48999.5", "createdTime": "1767225590000"}  # fmt: skip
EXECUTION = {"execId": "e-1", "orderId": "o-7", "orderLinkId": "t-1", "symbol": "BTCUSDT", "side": "Buy", "execQty": "0.5", "execPrice": "48999.5",
             "execFee": "0.01", "execTime": "1767225595000", "execType": "Trade"}  # fmt: skip
WALLET = {"list": [{"totalEquity": "99.5", "coin": [{"coin": "USDT", "walletBalance": "100.5"}]}]}
KEY = {"readOnly": 0, "permissions": {"ContractTrade": ["Order", "Position"], "Wallet": []}, "ips": ["*"], "expiredAt": "2026-01-02T00:00:00Z"}
INFO = {"symbol": "BTCUSDT", "status": "Trading", "priceFilter": {"tickSize": "0.10"}, "lotSizeFilter": {"qtyStep": "0.001"}}


def page(rows: Any, cursor: str = "") -> dict[str, Any]:
    return {"category": "linear", "list": rows, "nextPageCursor": cursor}


class Exchange:
    """Answers by path, in Bybit's envelope; keeps what it was asked."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers, self.asked = answers, []  # type: ignore[var-annotated]

    def __call__(self, ask: Ask) -> Answer:
        parts = urlsplit(ask.url)
        params = {name: values[0] for name, values in parse_qs(parts.query).items()} if ask.body is None else json.loads(ask.body)
        self.asked.append((ask.method, parts.path, params, ask))
        found = self.answers.get(parts.path, Answer(404, b'{"retCode": 10404, "retMsg": "Not found"}'))
        found = found(params) if callable(found) else found
        return found if isinstance(found, Answer) else Answer(200, json.dumps({"retCode": 0, "retMsg": "OK", "result": found}).encode())


Opened = Callable[..., tuple[Venue, Exchange]]


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    (tmp_path / "keys.json").write_text('{"e": {"k": "the-key", "s": "the-secret"}}')

    def make(symbols: tuple[str, ...] = ("BTCUSDT",), **answers: Any) -> tuple[Venue, Exchange]:
        exchange = Exchange({"/v5/" + path.replace("__", "/").replace("_", "-"): answer for path, answer in answers.items()})
        keys = {"file": str(tmp_path / "keys.json"), "api_key": "e.k", "api_secret": "e.s"}
        return Bybit({"name": "y", "rest": "https://h", "symbols": list(symbols), "keys": keys}, 2.0, exchange, lambda: NOW), exchange

    return make


def refused(ask: Callable[[], Any]) -> VenueError:
    with pytest.raises(VenueError) as caught:
        ask()
    text = f"{caught.value!r} {caught.value.text}"
    assert "the-key" not in text and "the-secret" not in text
    return caught.value


def positions(by_symbol: Any, by_coin: Any) -> Callable[[dict[str, str]], Any]:
    return lambda params: by_symbol if "symbol" in params else by_coin


def test_what_is_signed(opened: Opened) -> None:
    venue, exchange = opened(order__realtime=page([]), order__cancel_all={"list": []})
    venue.open_orders()
    ask = exchange.asked[0][3]
    query = urlsplit(ask.url).query
    assert query == "category=linear&settleCoin=USDT&openOnly=0&limit=50"
    signed = "1767225600000the-key5000" + query
    assert ask.headers["X-BAPI-SIGN"] == hmac.new(b"the-secret", signed.encode(), hashlib.sha256).hexdigest()
    assert (ask.headers["X-BAPI-API-KEY"], ask.headers["X-BAPI-TIMESTAMP"], ask.headers["X-BAPI-RECV-WINDOW"]) == ("the-key", "1767225600000", "5000")
    venue, exchange = opened(order__realtime=page([ORDER]), order__cancel_all={"list": []})
    venue.cancel_all()
    ask = next(ask for method, _path, _params, ask in exchange.asked if method == "POST")
    signed = f"1767225600000the-key5000{ask.body}"
    assert ask.headers["X-BAPI-SIGN"] == hmac.new(b"the-secret", signed.encode(), hashlib.sha256).hexdigest()
    assert json.loads(ask.body) == {"category": "linear", "settleCoin": "USDT"} and "the-key" not in repr(ask)


def test_public_questions_need_no_key(opened: Opened) -> None:
    venue, exchange = opened(market__time={"timeNano": "1767225600500000000"}, market__instruments_info=page([INFO]), system__status={"list": []})
    venue._keys_spec = {}
    assert venue.server_time() == 1767225600.5
    assert venue.instruments() == {"BTCUSDT": _venue_bybit.Instrument(D("0.10"), D("0.001"), "trading")}
    assert venue.status() == ("ok", "no maintenance under way")
    assert not any(ask.headers for _method, _path, _params, ask in exchange.asked)


def test_status(opened: Opened) -> None:
    events = [{"title": "Old", "state": "completed"}, {"title": "System upgrade", "state": "ongoing"}]
    assert opened(system__status={"list": events})[0].status() == ("maintenance", "System upgrade")
    assert opened(market__time={"timeNano": "1"})[0].status()[0] == "ok"  # no status page
    down = Answer(200, b'{"retCode": 10016, "retMsg": "Server error.", "result": {}}')
    assert opened(system__status=down)[0].status()[0] == opened(market__time=down)[0].status()[0] == "maintenance"
    assert refused(opened(system__status=Answer(418, b""))[0].status).kind == "rate_limited"
    assert refused(opened()[0].status).kind == "refused"


@pytest.mark.parametrize(("status", "code", "kind"), [
    (200, 10003, "key"), (200, 10004, "key"), (200, 10005, "key"), (200, 10010, "key"), (200, 33004, "key"), (401, 10003, "key"), (200, 10002, "clock"),
    (200, 10006, "rate_limited"), (200, 10018, "rate_limited"), (200, 10016, "maintenance"), (200, 10001, "refused"), (200, None, "unusable"),
    (200, "0", "refused"), (200, False, "unusable"), (500, 0, "unusable"), (502, 10000, "unusable"), (503, 7, "maintenance"),
])  # fmt: skip
def test_error_codes(opened: Opened, status: int, code: Any, kind: str) -> None:
    body = {"retCode": code, "retMsg": "error sign! origin_string[1767225600000the-key5000]", "result": page([])}
    venue, _exchange = opened(order__realtime=Answer(status, json.dumps(body).encode()))
    error = refused(venue.open_orders)
    assert error.kind == kind and error.text.startswith("y: open orders: ")


@pytest.mark.parametrize("body", [[], "OK", {"retCode": 0}, {"retCode": 0, "result": None}, {"retCode": 0, "result": []}, {"retCode": 0, "result": {}},
    {"retCode": 0, "result": {"list": []}}, {"retCode": 0, "result": {"list": [], "nextPageCursor": None}},
    {"retCode": 0, "result": {"list": None, "nextPageCursor": ""}}])  # fmt: skip
def test_an_envelope_that_is_not_whole(opened: Opened, body: Any) -> None:
    assert refused(opened(order__realtime=Answer(200, json.dumps(body).encode()))[0].open_orders).kind == "unusable"


def test_positions(opened: Opened) -> None:
    venue, _exchange = opened(position__list=positions(page([LONG]), page([LONG, {**LONG, "symbol": "ETHUSDT", "side": "Sell", "size": "2"}])))
    assert venue.positions() == {
        "BTCUSDT": _venue_bybit.Position(D("0.5"), D("50000.1"), D("50001")), "ETHUSDT": _venue_bybit.Position(D("-2"), D("50000.1"), D("50001")),
    }  # fmt: skip
    flat = opened(position__list=positions(page([FLAT]), page([])))[0].positions()
    assert flat == {"BTCUSDT": _venue_bybit.Position(D(0), D(0), D("50001"))}


def test_a_symbol_that_is_not_told_is_not_flat(opened: Opened) -> None:
    assert opened(position__list=page([]))[0].positions() == {}
    assert opened(("BTCUSDT", "ETHUSDT"), position__list=positions(page([LONG]), page([LONG])))[0].positions().keys() == {"BTCUSDT"}


@pytest.mark.parametrize(("by_symbol", "by_coin"), [
    (page([LONG]), page([])),  # the second list was cut off
    (page([FLAT]), page([LONG])),
    (page([LONG]), page([{**LONG, "side": "Sell"}])),
    (page([LONG, {**LONG, "side": "Sell", "positionIdx": 2}]), page([LONG])),
    (page([LONG]), page([LONG, {**LONG, "side": "Sell", "positionIdx": 2}])),
    (page([{**LONG, "side": ""}]), page([LONG])),
    (page([{**LONG, "size": "-1"}]), page([LONG])),
    (page([{**LONG, "avgPrice": ""}]), page([LONG])),
    (page([{"symbol": "BTCUSDT"}]), page([LONG])),
    (page([LONG]), Answer(200, b"<html>")),
    (page([LONG]), Answer(200, b"")),
])  # fmt: skip
def test_positions_that_cannot_be_read(opened: Opened, by_symbol: Any, by_coin: Any) -> None:
    assert refused(opened(position__list=positions(by_symbol, by_coin))[0].positions).kind == "unusable"


def paged(rows: list[dict[str, Any]], time: str = "") -> Callable[[dict[str, str]], Any]:
    """As the real lists: the newest first, a cursor that holds percent signs, a week at most."""

    def answer(params: dict[str, str]) -> Any:
        found = rows
        if time:
            start = int(params["startTime"])
            end = int(params.get("endTime", start + 7 * DAY * 1000))
            assert end - start <= 7 * DAY * 1000
            found = [row for row in rows if start <= int(row[time]) <= end]
        found = found[::-1]
        at = int(params.get("cursor", "page%3D0").removeprefix("page%3D"))
        limit = int(params["limit"])
        return page(found[at : at + limit], f"page%3D{at + limit}" if at + limit < len(found) else "")

    return answer


@pytest.mark.parametrize("days", [1, 6.9, 7.1, 30])
@pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 23])
def test_fills_and_orders_over_pages_and_weeks(opened: Opened, monkeypatch: pytest.MonkeyPatch, days: float, count: int) -> None:
    monkeypatch.setattr(_venue_bybit, "EXECUTIONS", 5)
    monkeypatch.setattr(_venue_bybit, "ORDERS", 5)
    since = NOW - days * DAY
    at = [str(int((since + 60 + n * (NOW - since - 120) / max(count, 1)) * 1000)) for n in range(count)]
    fills = [{**EXECUTION, "execId": f"e{n}", "execTime": when} for n, when in enumerate(at)]
    orders = [{**ORDER, "orderId": f"o{n}", "orderStatus": "Filled", "createdTime": when} for n, when in enumerate(at)]
    more = {"order__history": paged(orders, "createdTime"), "order__realtime": page([ORDER])}
    venue, _exchange = opened(execution__list=paged(fills, "execTime"), **more)
    assert sorted(fill.id for fill in venue.fills(since)) == sorted(f"e{n}" for n in range(count))
    assert sorted(order.id for order in venue.orders_since(since)) == sorted(["o-7", *(f"o{n}" for n in range(count))])
    assert [order.id for order in venue.orders_since(NOW - 5)] == []


def test_five_hundred_positions(opened: Opened) -> None:
    many = [{**LONG, "symbol": f"S{n}USDT", "size": str(n + 1)} for n in range(500)]
    answer = paged(many)
    venue, exchange = opened(("S3USDT",), position__list=lambda params: page([many[3]]) if "symbol" in params else answer(params))
    found = venue.positions()
    assert len(found) == 500 and found["S499USDT"].size == 500
    assert len(exchange.asked) == 4


def test_pages_that_do_not_end(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "do not go on" in refused(opened(order__realtime=page([ORDER], "same"))[0].open_orders).text
    cursors = iter(range(100))
    monkeypatch.setattr(_venue_bybit.base, "MAX_PAGES", 5)
    assert "do not end" in refused(opened(order__realtime=lambda params: page([ORDER], f"c{next(cursors)}"))[0].open_orders).text
    # a cursor behind the last page leads to an empty one
    pages = [page([ORDER], "more"), page([])]
    assert len(opened(order__realtime=lambda params: pages.pop(0))[0].open_orders()) == 1


def test_a_page_that_fails_is_no_end(opened: Opened) -> None:
    pages = [page([ORDER], "more"), Answer(200, b'{"retCode": 10016, "retMsg": "Server error."}')]
    assert refused(opened(order__realtime=lambda params: pages.pop(0))[0].open_orders).kind == "maintenance"


def test_account_and_rights(opened: Opened) -> None:
    answers = {"account__wallet_balance": WALLET, "account__info": {"marginMode": "REGULAR_MARGIN"}, "position__list": positions(page([LONG]), page([LONG]))}
    found = opened(**answers)[0].account()
    assert (found.balances, found.equity) == ({"USDT": D("100.5")}, D("99.5"))
    assert found.settings == {"BTCUSDT": {"leverage": "10", "margin": "cross", "position_mode": "one_way"}}
    hedged = positions(page([{**LONG, "positionIdx": 1, "leverage": ""}]), page([LONG]))
    assert opened(**answers | {"position__list": hedged})[0].account().settings["BTCUSDT"] == {"leverage": "", "margin": "cross", "position_mode": "hedge"}
    for name, broken in (("account__wallet_balance", {"list": []}), ("account__info", {"marginMode": "NEW"}), ("account__info", {})):
        assert refused(opened(**answers | {name: broken})[0].account).kind == "unusable"
    assert opened(user__query_api=KEY)[0].rights() == Rights(True, True, False, (), NOW + DAY)
    for change, told in (
        ({"readOnly": 1}, Rights(False, True, False, (), NOW + DAY)),
        ({"permissions": {"ContractTrade": ["Position"]}}, Rights(False, True, False, (), NOW + DAY)),
        ({"permissions": {"Derivatives": ["DerivativesTrade"], "Wallet": ["Withdraw"]}}, Rights(True, True, True, (), NOW + DAY)),
        ({"ips": ["1.2.3.4"], "expiredAt": ""}, Rights(True, True, False, ("1.2.3.4",), None)),
    ):
        assert opened(user__query_api={**KEY, **change})[0].rights() == told
    for change in ({"permissions": None}, {"ips": "*"}, {"readOnly": None}, {"expiredAt": "soon"}):
        assert refused(opened(user__query_api={**KEY, **change})[0].rights).kind == "unusable"


def test_orders(opened: Opened) -> None:
    [found] = opened(order__realtime=page([ORDER, {**ORDER, "orderId": "o-8", "orderStatus": "Filled"}]))[0].open_orders()
    assert (found.id, found.client_id, found.side, found.qty, found.filled, found.price, found.type, found.status, found.at) == (
        "o-7", "t-1", "buy", D(2), D("0.5"), D("48999.5"), "limit", "open", 1767225590.0)  # fmt: skip
    unfilled = {**ORDER, "cumExecQty": "0", "avgPrice": ""}
    assert opened(order__realtime=page([unfilled]))[0].open_orders()[0].price == 49000
    for broken in ({**ORDER, "orderStatus": "Dreaming"}, {**ORDER, "side": "None"}, {**ORDER, "qty": "-1"}, {**ORDER, "orderId": ""}, {}):
        assert refused(opened(order__realtime=page([broken]))[0].open_orders).kind == "unusable"


def test_one_order(opened: Opened) -> None:
    found = opened(order__realtime=page([]), order__history=page([{**ORDER, "orderStatus": "Filled"}]))[0].order("BTCUSDT", "t-1")
    assert found and (found.id, found.status) == ("o-7", "filled")
    assert opened(order__realtime=page([]), order__history=page([]))[0].order("BTCUSDT", "t-1") is None
    assert refused(lambda: opened(order__realtime=page([ORDER]))[0].order("BTCUSDT", "t-2")).kind == "unusable"
    assert refused(lambda: opened(order__realtime=page([]))[0].order("BTCUSDT", "t-1")).kind == "refused"  # half an answer is none


def test_fills(opened: Opened) -> None:
    funding = {**EXECUTION, "execId": "e-2", "execType": "Funding", "orderLinkId": ""}
    [fill] = opened(execution__list=page([EXECUTION, EXECUTION, funding]))[0].fills(NOW - 60)
    assert (fill.id, fill.order_id, fill.client_id, fill.side, fill.qty, fill.price, fill.fee, fill.at) == (
        "e-1", "o-7", "t-1", "buy", D("0.5"), D("48999.5"), D("0.01"), 1767225595.0)  # fmt: skip
    liquidated = {**EXECUTION, "execType": "BustTrade", "orderLinkId": ""}
    assert opened(execution__list=page([liquidated]))[0].fills(NOW - 60)[0].client_id == ""
    for broken in ({}, {**EXECUTION, "execQty": ""}, {**EXECUTION, "execTime": "0"}):
        assert refused(lambda broken=broken: opened(execution__list=page([broken]))[0].fills(NOW - 60)).kind == "unusable"  # type: ignore[misc]


def test_coins(opened: Opened) -> None:
    venue, exchange = opened(("BTCUSDT", "ETHPERP"), order__realtime=page([]))
    venue.open_orders()
    assert [params["settleCoin"] for _method, _path, params, _ask in exchange.asked] == ["USDC", "USDT"]


def test_cancel_all(opened: Opened) -> None:
    left = [page([ORDER, {**ORDER, "orderId": "o-8"}]), page([{**ORDER, "orderId": "o-8"}])]
    venue, _exchange = opened(order__realtime=lambda params: left.pop(0), order__cancel_all={"list": []})
    assert venue.cancel_all() == 1  # what is still there does not count, whatever the exchange said
    assert opened(order__realtime=page([]))[0].cancel_all() == 0
