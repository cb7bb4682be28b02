# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Binance USD-M futures (https://developers.binance.com/docs/derivatives/usds-margined-futures)."""

from __future__ import annotations

import dataclasses
import typing as t
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlencode

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _venue_base as base
from ansible_collections.titan.disaster_recovery.plugins.module_utils._venue_base import Account, Fill, Instrument, Order, Position, Rights, Venue
from ansible_collections.titan.disaster_recovery.plugins.module_utils._venue_wire import Answer, VenueError

LIMIT = 1000
_CODES = {
    -1003: "rate_limited", -1008: "rate_limited", -1015: "rate_limited",
    -1016: "maintenance",
    -1002: "key", -1022: "key", -2008: "key", -2014: "key", -2015: "key",
    -1021: "clock",
}  # fmt: skip
_STATUS = {
    "NEW": "open", "PARTIALLY_FILLED": "open", "PENDING_NEW": "open", "FILLED": "filled", "CANCELED": "cancelled", "PENDING_CANCEL": "open",
    "REJECTED": "rejected", "EXPIRED": "cancelled", "EXPIRED_IN_MATCH": "cancelled",
}  # fmt: skip
_NO_ORDER = "code_-2013"


class Binance(Venue):
    kind = "binance"

    # --- requests ---------------------------------------------------------------------------------------------------

    def _call(self, what: str, method: str, path: str, end: float, params: dict[str, t.Any] | None = None, signed: bool = True) -> t.Any:
        query, headers = dict(params or {}), {}
        if signed:
            headers["X-MBX-APIKEY"] = self.keys()[0]
            query.update(recvWindow=base.RECV_WINDOW, timestamp=int(self._clock() * 1000))
        sent = urlencode(query)
        if signed:
            sent += f"&signature={self._sign(sent)}"
        answer = self._send(what, method, f"{self._rest}{path}" + (f"?{sent}" if sent else ""), headers, None, end)
        return self._judge(what, answer)

    def _judge(self, what: str, answer: Answer) -> t.Any:
        document = self._document(what, answer)
        code = document.get("code") if isinstance(document, dict) else None
        if answer.status == 200 and code in (None, 200):
            return document
        said = f"status {answer.status}, {code} {document.get('msg') if isinstance(document, dict) else ''}"
        kind = _CODES.get(code) if isinstance(code, int) else None
        if kind is None:
            kind = "maintenance" if answer.status == 503 else "unusable" if answer.status >= 500 or code is None else "refused"
        raise self._fault(kind, what, said, f"http_{answer.status}" if kind == "unusable" else f"code_{code}" if kind == "refused" else "")

    # --- public -----------------------------------------------------------------------------------------------------

    def server_time(self) -> float:
        answer = self._call("time", "GET", "/fapi/v1/time", self._end(), signed=False)
        with self._reading("time"):
            return base.moment(answer, "serverTime")

    def _told_status(self, end: float) -> tuple[str, str]:
        # spot's page, which may not be on this host
        found = self._call("status", "GET", "/sapi/v1/system/status", end, signed=False)
        with self._reading("status"):
            return ("maintenance" if base.number(found, "status") else "ok"), self._clean(base.text(found, "msg"))

    def _ping(self, end: float) -> None:
        self._call("ping", "GET", "/fapi/v1/ping", end, signed=False)

    def instruments(self) -> dict[str, Instrument]:
        answer = self._call("instruments", "GET", "/fapi/v1/exchangeInfo", self._end(), signed=False)
        with self._reading("instruments"):
            found = {}
            for row in base.rows(base.field(answer, "symbols"), "symbols"):
                filters = {base.text(one, "filterType"): one for one in base.rows(base.field(row, "filters"), "filters")}
                tick, lot = (base.amount(base.field(filters, kind), step) for kind, step in (("PRICE_FILTER", "tickSize"), ("LOT_SIZE", "stepSize")))
                state = base.text(row, "status")
                found[base.word(row, "symbol")] = Instrument(tick, lot, "trading" if state == "TRADING" else state)
            return found

    # --- account ----------------------------------------------------------------------------------------------------

    def _account(self, end: float) -> t.Any:
        return self._call("account", "GET", "/fapi/v2/account", end)

    def rights(self) -> Rights:
        end = self._end()
        answer = self._account(end)
        with self._reading("rights"):
            may_trade = base.flag(answer, "canTrade")
        try:
            told = self._call("rights", "GET", "/sapi/v1/account/apiRestrictions", end)
        except VenueError as exc:
            # what the key itself may is told by spot's host, which need not be this one
            if exc.kind not in ("refused", "unusable"):
                raise
            return Rights(may_trade, True, None, None, None)
        with self._reading("rights"):
            expires = base.moment(told, "tradingAuthorityExpirationTime") if told.get("tradingAuthorityExpirationTime") else None
            trades, anywhere = base.flag(told, "enableFutures"), not base.flag(told, "ipRestrict")
            return Rights(may_trade and trades, base.flag(told, "enableReading"), base.flag(told, "enableWithdrawals"), () if anywhere else None, expires)

    def account(self) -> Account:
        end = self._end()
        with ThreadPoolExecutor(max_workers=2) as pool:
            asked = [pool.submit(self._account, end), pool.submit(self._call, "position mode", "GET", "/fapi/v1/positionSide/dual", end)]
            answer, dual = (one.result() for one in asked)
        with self._reading("account"):
            mode = "hedge" if base.flag(dual, "dualSidePosition") else "one_way"
            settings = {}
            for row in base.rows(base.field(answer, "positions"), "positions"):
                if row.get("symbol") in self.symbols:
                    margin = "isolated" if base.flag(row, "isolated") else "cross"
                    settings[base.text(row, "symbol")] = {"leverage": str(base.amount(row, "leverage")), "margin": margin, "position_mode": mode}
            assets = base.rows(base.field(answer, "assets"), "assets")
            balances = {base.word(row, "asset"): base.number(row, "walletBalance") for row in assets}
            return Account(balances, base.number(answer, "totalMarginBalance"), settings)

    def positions(self) -> dict[str, Position]:
        answer = self._call("positions", "GET", "/fapi/v2/positionRisk", self._end())
        with self._reading("positions"):
            found: dict[str, Position] = {}
            for row in base.rows(answer, "positions"):
                symbol = base.word(row, "symbol")
                position = Position(base.number(row, "positionAmt"), base.amount(row, "entryPrice"), base.amount(row, "markPrice"))
                before = found.get(symbol)
                # in hedge mode a symbol has a row for each side
                if before is not None and (row.get("positionSide", "BOTH") == "BOTH" or (before.size and position.size)):
                    raise base.Unreadable(f"{symbol} is there twice")
                if before is None or position.size:
                    found[symbol] = position
            return found

    # --- orders and fills -------------------------------------------------------------------------------------------

    @staticmethod
    def _order(row: base.Row) -> Order:
        filled, average = base.amount(row, "executedQty"), base.amount(row, "avgPrice")
        return Order(
            base.word(row, "orderId"),
            base.text(row, "clientOrderId"),
            base.word(row, "symbol"),
            base.side(row, "side"),
            base.amount(row, "origQty"),
            filled,
            average if filled else base.amount(row, "price"),
            base.text(row, "type").lower(),
            base.chosen(row, "status", _STATUS),
            base.moment(row, "time" if "time" in row else "updateTime"),
        )

    def open_orders(self) -> list[Order]:
        answer = self._call("open orders", "GET", "/fapi/v1/openOrders", self._end())
        with self._reading("open orders"):
            return [self._order(row) for row in base.rows(answer, "the list of orders")]

    def _page(self, what: str, path: str, params: dict[str, t.Any], name: str, end: float) -> tuple[list[base.Row], int]:
        """One page and the highest number in it."""
        answer = self._call(what, "GET", path, end, {**params, "limit": LIMIT})
        with self._reading(what):
            page = base.rows(answer, "the list")
            return page, max((int(base.number(row, name)) for row in page), default=0)

    def _history(self, what: str, path: str, symbol: str, cursor: str, name: str, since: float, end: float) -> list[base.Row]:
        """All rows of a symbol since then: by time until there are any, a week at most at once, then by number. A page that is not full is the last one."""
        start = since
        while True:
            params = {"symbol": symbol, "startTime": int(start * 1000)}
            newest = start + base.WEEK >= self._clock()
            if not newest:
                params["endTime"] = int((start + base.WEEK) * 1000) - 1
            found, highest = self._page(what, path, params, name, end)
            if found or newest:
                break
            start += base.WEEK
        size = LIMIT if not newest else len(found)
        for dummy in range(base.MAX_PAGES):
            if size < LIMIT:
                return found
            page, following = self._page(what, path, {"symbol": symbol, cursor: highest + 1}, name, end)
            if page and following <= highest:
                raise VenueError("unusable", f"{self.name}: {what}: the pages do not go on")
            found, highest, size = found + page, following, len(page)
        raise VenueError("unusable", f"{self.name}: {what}: the pages do not end")

    def _of_all_symbols(self, what: str, path: str, cursor: str, name: str, since: float, end: float) -> list[base.Row]:
        with ThreadPoolExecutor(max_workers=max(1, min(8, len(self.symbols)))) as pool:
            asked = [pool.submit(self._history, what, path, symbol, cursor, name, since, end) for symbol in self.symbols]
            return [row for one in asked for row in one.result()]

    def _orders(self, since: float, end: float) -> list[Order]:
        found = self._of_all_symbols("orders", "/fapi/v1/allOrders", "orderId", "orderId", since, end)
        with self._reading("orders"):
            return base.unique((self._order(row) for row in found), lambda order: order.id)

    def orders_since(self, since: float) -> list[Order]:
        return [order for order in self._orders(since, self._end()) if order.at >= since]

    def _one_order(self, symbol: str, name: str, value: str, end: float) -> Order:
        answer = self._call("order", "GET", "/fapi/v1/order", end, {"symbol": symbol, name: value})
        with self._reading("order"):
            found = self._order(answer)
            if value not in (found.id, found.client_id):
                raise base.Unreadable("it is about another order")
            return found

    def order(self, symbol: str, client_id: str) -> Order | None:
        try:
            return self._one_order(symbol, "origClientOrderId", client_id, self._end())
        except VenueError as exc:
            if exc.cause != _NO_ORDER:
                raise
            return None

    @staticmethod
    def _fill(row: base.Row) -> Fill:
        return Fill(
            base.word(row, "id"),
            base.word(row, "orderId"),
            "",
            base.word(row, "symbol"),
            base.side(row, "side"),
            base.amount(row, "qty"),
            base.amount(row, "price"),
            base.number(row, "commission"),
            base.moment(row, "time"),
        )

    def fills(self, since: float) -> list[Fill]:
        """Binance's trades do not say which client id they are of: the orders do."""
        end = self._end()
        trades = self._of_all_symbols("fills", "/fapi/v1/userTrades", "fromId", "id", since, end)
        with self._reading("fills"):
            found = base.unique((self._fill(row) for row in trades), lambda fill: (fill.symbol, fill.id))
        found = [fill for fill in found if fill.at >= since]
        if not found:
            return []
        # the order may be older than its fill
        names = {order.id: order.client_id for order in self._orders(since, end)}
        for fill in found:
            if fill.order_id not in names:
                names[fill.order_id] = self._one_order(fill.symbol, "orderId", fill.order_id, end).client_id
        return [dataclasses.replace(fill, client_id=names[fill.order_id]) for fill in found]

    def cancel_all(self) -> int:
        before = self.open_orders()
        for symbol in sorted({order.symbol for order in before}):
            self._call("cancel all", "DELETE", "/fapi/v1/allOpenOrders", self._end(), {"symbol": symbol})
        left = {order.id for order in self.open_orders()} if before else set()
        return sum(order.id not in left for order in before)
