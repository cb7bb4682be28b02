# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Bybit v5, linear contracts of a unified account (https://bybit-exchange.github.io/docs/v5/intro)."""

from __future__ import annotations

import json
import typing as t
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlencode

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _venue_base as base
from ansible_collections.titan.disaster_recovery.plugins.module_utils._venue_base import Account, Fill, Instrument, Order, Position, Rights, Venue
from ansible_collections.titan.disaster_recovery.plugins.module_utils._venue_wire import Answer, VenueError

# Rows of a page, the most that each list gives.
INSTRUMENTS, POSITIONS, ORDERS, EXECUTIONS = 1000, 200, 50, 100
_CODES = {
    10006: "rate_limited", 10009: "rate_limited", 10018: "rate_limited", 10429: "rate_limited",
    10016: "maintenance",
    10003: "key", 10004: "key", 10005: "key", 10007: "key", 10010: "key", 33004: "key",
    10002: "clock",
}  # fmt: skip
_STATUS = {
    "Created": "open", "New": "open", "PartiallyFilled": "open", "Untriggered": "open", "Triggered": "open", "Active": "open", "Filled": "filled",
    "Cancelled": "cancelled", "PartiallyFilledCanceled": "cancelled", "Deactivated": "cancelled", "Rejected": "rejected",
}  # fmt: skip
_MARGINS = {"REGULAR_MARGIN": "cross", "ISOLATED_MARGIN": "isolated", "PORTFOLIO_MARGIN": "portfolio"}
# The kinds of an execution that change a position.
_TRADES = ("Trade", "AdlTrade", "BustTrade", "Delivery", "Settle", "BlockTrade", "MovePosition")


class Bybit(Venue):
    kind = "bybit"

    # --- requests ---------------------------------------------------------------------------------------------------

    def _call(self, what: str, method: str, path: str, end: float, params: dict[str, t.Any] | None = None, signed: bool = True) -> t.Any:
        query = urlencode(params or {}) if method == "GET" else ""
        body = json.dumps(params or {}) if method != "GET" else None
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if signed:
            key, stamp = self.keys()[0], str(int(self._clock() * 1000))
            headers.update({"X-BAPI-API-KEY": key, "X-BAPI-TIMESTAMP": stamp, "X-BAPI-RECV-WINDOW": str(base.RECV_WINDOW)})
            headers["X-BAPI-SIGN"] = self._sign(stamp + key + str(base.RECV_WINDOW) + (query if body is None else body))
        answer = self._send(what, method, f"{self._rest}{path}" + (f"?{query}" if query else ""), headers, body, end)
        return self._judge(what, answer)

    def _judge(self, what: str, answer: Answer) -> t.Any:
        document = self._document(what, answer)
        code = document.get("retCode") if isinstance(document, dict) else None
        if answer.status == 200 and code == 0 and not isinstance(code, bool):
            with self._reading(what):
                return base.field(document, "result")
        said = f"status {answer.status}, {code} {document.get('retMsg') if isinstance(document, dict) else ''}"
        kind = _CODES.get(code) if isinstance(code, int) else None
        if kind is None:
            kind = "maintenance" if answer.status == 503 else "unusable" if answer.status >= 500 or not code else "refused"
        raise self._fault(kind, what, said, f"http_{answer.status}" if kind == "unusable" else f"code_{code}" if kind == "refused" else "")

    def _pages(self, what: str, path: str, end: float, params: dict[str, t.Any], signed: bool = True) -> list[base.Row]:
        found: list[base.Row] = []
        cursors = {""}
        cursor = ""
        for dummy in range(base.MAX_PAGES):
            result = self._call(what, "GET", path, end, {**params, **({"cursor": cursor} if cursor else {})}, signed)
            with self._reading(what):
                page = base.rows(base.field(result, "list"), "list")
                # a page that does not say whether more follow may be cut off
                cursor = base.text(result, "nextPageCursor")
            found += page
            if not cursor or not page:
                return found
            if cursor in cursors:
                raise VenueError("unusable", f"{self.name}: {what}: the pages do not go on")
            cursors.add(cursor)
        raise VenueError("unusable", f"{self.name}: {what}: the pages do not end")

    def _coins(self) -> list[str]:
        """What the contracts of this account settle in: without a symbol lists are given for one coin at a time."""
        return sorted({"USDC" if symbol.endswith(("PERP", "USDC")) else "USDT" for symbol in self.symbols} | {"USDT"})

    # --- public -----------------------------------------------------------------------------------------------------

    def server_time(self) -> float:
        result = self._call("time", "GET", "/v5/market/time", self._end(), signed=False)
        with self._reading("time"):
            return float(base.amount(result, "timeNano") / 10**9)

    def _told_status(self, end: float) -> tuple[str, str]:
        result = self._call("status", "GET", "/v5/system/status", end, signed=False)
        with self._reading("status"):
            now = [base.text(row, "title") for row in base.rows(base.field(result, "list"), "list") if row.get("state") == "ongoing"]
        return ("maintenance", self._clean("; ".join(now))) if now else ("ok", "no maintenance under way")

    def _ping(self, end: float) -> None:
        self._call("time", "GET", "/v5/market/time", end, signed=False)

    def instruments(self) -> dict[str, Instrument]:
        found = self._pages("instruments", "/v5/market/instruments-info", self._end(), {"category": "linear", "limit": INSTRUMENTS}, signed=False)
        with self._reading("instruments"):
            return {base.word(row, "symbol"): self._instrument(row) for row in found}

    @staticmethod
    def _instrument(row: base.Row) -> Instrument:
        state = base.text(row, "status")
        tick, lot = base.amount(base.field(row, "priceFilter"), "tickSize"), base.amount(base.field(row, "lotSizeFilter"), "qtyStep")
        return Instrument(tick, lot, "trading" if state == "Trading" else state)

    # --- account ----------------------------------------------------------------------------------------------------

    def rights(self) -> Rights:
        result = self._call("rights", "GET", "/v5/user/query-api", self._end())
        with self._reading("rights"):
            allowed, ips = base.field(result, "permissions"), base.field(result, "ips")
            if not isinstance(allowed, dict) or not isinstance(ips, list):
                raise base.Unreadable("permissions or ips are not what they should be")
            granted = {name: rights for name, rights in allowed.items() if isinstance(rights, list)}
            derivatives = "Order" in granted.get("ContractTrade", []) or "DerivativesTrade" in granted.get("Derivatives", [])
            writes = base.number(result, "readOnly") == 0
            expires = base.iso(result["expiredAt"]) if result.get("expiredAt") else None
            return Rights(writes and derivatives, True, "Withdraw" in granted.get("Wallet", []), () if ips in ([], ["*"]) else tuple(map(str, ips)), expires)

    def _position_rows(self, end: float) -> tuple[dict[str, list[base.Row]], list[base.Row]]:
        """The rows of each symbol of ours, where a flat one is told too, and all that are not flat."""
        coins = self._coins()
        with ThreadPoolExecutor(max_workers=min(8, len(self.symbols) + len(coins))) as pool:
            path = "/v5/position/list"
            ours = [pool.submit(self._pages, "positions", path, end, {"category": "linear", "symbol": symbol}) for symbol in self.symbols]
            held = [pool.submit(self._pages, "positions", path, end, {"category": "linear", "settleCoin": coin, "limit": POSITIONS}) for coin in coins]
            return {symbol: one.result() for symbol, one in zip(self.symbols, ours, strict=True)}, [row for one in held for row in one.result()]

    def account(self) -> Account:
        end = self._end()
        with ThreadPoolExecutor(max_workers=3) as pool:
            wallet_asked = pool.submit(self._call, "balances", "GET", "/v5/account/wallet-balance", end, {"accountType": "UNIFIED"})
            info_asked = pool.submit(self._call, "account", "GET", "/v5/account/info", end)
            ours = self._position_rows(end)[0]
            wallet, info = wallet_asked.result(), info_asked.result()
        with self._reading("account"):
            accounts = base.rows(base.field(wallet, "list"), "list")
            if len(accounts) != 1:
                raise base.Unreadable("the unified account is not in the list of balances")
            balances = {base.word(row, "coin"): base.number(row, "walletBalance") for row in base.rows(base.field(accounts[0], "coin"), "coin")}
            margin = base.chosen(info, "marginMode", _MARGINS)
            settings = {}
            for symbol, found in ours.items():
                for row in found:
                    # a portfolio margin account has no leverage
                    leverage = str(base.amount(row, "leverage")) if row.get("leverage") not in (None, "") else ""
                    settings[symbol] = {"leverage": leverage, "margin": margin, "position_mode": "hedge" if base.number(row, "positionIdx") else "one_way"}
            return Account(balances, base.number(accounts[0], "totalEquity"), settings)

    @staticmethod
    def _position(row: base.Row) -> tuple[str, Position]:
        size, direction = base.amount(row, "size"), base.text(row, "side").lower()
        if size and direction not in ("buy", "sell"):
            raise base.Unreadable("a position has no side")
        # of a flat one the prices may be empty
        entry, mark = (base.amount(row if size or row.get(name) != "" else {name: 0}, name) for name in ("avgPrice", "markPrice"))
        return base.word(row, "symbol"), Position(-size if direction == "sell" else size, entry, mark)

    def positions(self) -> dict[str, Position]:
        ours, held = self._position_rows(self._end())
        with self._reading("positions"):
            listed: dict[str, Position] = {}
            for row in held:
                symbol, position = self._position(row)
                if position.size and listed.get(symbol, position) != position:
                    raise base.Unreadable(f"{symbol} is there twice")
                if position.size:
                    listed[symbol] = position
            found = dict(listed)
            for symbol, own in ours.items():
                told = [position for name, position in map(self._position, own) if name == symbol]
                sizes = [position for position in told if position.size]
                if len(sizes) > 1:
                    raise base.Unreadable(f"{symbol} is held on both sides")
                # two lists of the same positions that differ: one of them is cut off, or it is being traded
                if told and (sizes[0].size if sizes else 0) != (listed[symbol].size if symbol in listed else 0):
                    raise base.Unreadable(f"the lists disagree about {symbol}")
                if told:
                    found[symbol] = (sizes or told)[0]
                else:
                    found.pop(symbol, None)
            return found

    # --- orders and fills -------------------------------------------------------------------------------------------

    @staticmethod
    def _order(row: base.Row) -> Order:
        filled = base.amount(row, "cumExecQty")
        average = base.amount(row, "avgPrice") if filled else None
        return Order(
            base.word(row, "orderId"),
            base.text(row, "orderLinkId"),
            base.word(row, "symbol"),
            base.side(row, "side"),
            base.amount(row, "qty"),
            filled,
            base.amount(row, "price") if average is None else average,
            base.text(row, "orderType").lower(),
            base.chosen(row, "orderStatus", _STATUS),
            base.moment(row, "createdTime"),
        )

    def _open(self, end: float) -> list[Order]:
        found: list[base.Row] = []
        for coin in self._coins():
            found += self._pages("open orders", "/v5/order/realtime", end, {"category": "linear", "settleCoin": coin, "openOnly": 0, "limit": ORDERS})
        with self._reading("open orders"):
            return base.unique((order for row in found if (order := self._order(row)).status == "open"), lambda order: order.id)

    def open_orders(self) -> list[Order]:
        return self._open(self._end())

    def _weeks(self, what: str, path: str, since: float, limit: int, end: float) -> list[base.Row]:
        """A list since then, a week at most at once."""
        found: list[base.Row] = []
        start = since
        while True:
            params: dict[str, t.Any] = {"category": "linear", "startTime": int(start * 1000), "limit": limit}
            last = start + base.WEEK >= self._clock()
            if not last:
                params["endTime"] = int((start + base.WEEK) * 1000) - 1
            found += self._pages(what, path, end, params)
            if last:
                return found
            start += base.WEEK

    def orders_since(self, since: float) -> list[Order]:
        end = self._end()
        with ThreadPoolExecutor(max_workers=2) as pool:
            live = pool.submit(self._open, end)
            closed = self._weeks("orders", "/v5/order/history", since, ORDERS, end)
            opened = live.result()
        with self._reading("orders"):
            orders = [*opened, *(self._order(row) for row in closed)]
        return [order for order in base.unique(orders, lambda order: order.id) if order.at >= since]

    def order(self, symbol: str, client_id: str) -> Order | None:
        end = self._end()
        for path in ("/v5/order/realtime", "/v5/order/history"):
            found = self._pages("order", path, end, {"category": "linear", "symbol": symbol, "orderLinkId": client_id})
            with self._reading("order"):
                orders = [self._order(row) for row in found]
                if any(order.client_id != client_id for order in orders):
                    raise base.Unreadable("it is about another order")
            if orders:
                return orders[0]
        return None

    def fills(self, since: float) -> list[Fill]:
        found = self._weeks("fills", "/v5/execution/list", since, EXECUTIONS, self._end())
        with self._reading("fills"):
            # funding is in the same list
            fills = [self._fill(row) for row in found if base.text(row, "execType") in _TRADES]
        return [fill for fill in base.unique(fills, lambda fill: fill.id) if fill.at >= since]

    @staticmethod
    def _fill(row: base.Row) -> Fill:
        return Fill(
            base.word(row, "execId"),
            base.text(row, "orderId"),
            base.text(row, "orderLinkId"),
            base.word(row, "symbol"),
            base.side(row, "side"),
            base.amount(row, "execQty"),
            base.amount(row, "execPrice"),
            base.number(row, "execFee"),
            base.moment(row, "execTime"),
        )

    def cancel_all(self) -> int:
        before = self.open_orders()
        for coin in self._coins() if before else []:
            self._call("cancel all", "POST", "/v5/order/cancel-all", self._end(), {"category": "linear", "settleCoin": coin})
        left = {order.id for order in self.open_orders()} if before else set()
        return sum(order.id not in left for order in before)
