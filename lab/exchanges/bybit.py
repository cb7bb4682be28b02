# SPDX-License-Identifier: GPL-3.0-or-later
"""Bybit v5, USDT perpetuals (category linear): paths, signatures, error codes, bodies."""

from __future__ import annotations

import datetime
import hmac
import json
import uuid
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from dialects import WEEK_MS, Call, Keys, Refused, Reply, in_window, margin, milliseconds, number, unrealised
from venue import FEE_RATE, INSTRUMENTS, Fill, Order, OrderRequest, Rejected, Venue

REJECTED = {
    "symbol": (10001, "params error: symbol invalid"),
    "side": (10001, "Side invalid"),
    "type": (10001, "orderType invalid"),
    "qty": (10001, "Qty invalid"),
    "price": (10001, "Price invalid"),
    "lot": (10001, "Qty invalid"),
    "tick": (10001, "Price invalid"),
    "duplicate": (110072, "OrderLinkedID is duplicate"),
    "reduce_only": (110017, "current position is zero, cannot fix reduce-only order qty"),
    "unknown_order": (110001, "order not exists or too late to cancel"),
}


def uuid_text(number: int) -> str:
    return str(uuid.UUID(int=number))


class Bybit:
    ws_path = "/v5/public/linear"
    position_paths: tuple[str, ...] = ("/v5/position/list",)

    def __init__(self, keys: Keys) -> None:
        self.keys = keys

    @staticmethod
    def _reply(result: Any, now: float, code: int = 0, message: str = "OK", status: int = 200) -> Reply:
        """Bybit answers 200 to nearly everything: the verdict is in retCode."""
        body = {"retCode": code, "retMsg": message, "result": result, "retExtInfo": {}, "time": int(now * 1000)}
        return Reply(status, body, f"{code} {message}" if code else "")

    def _refused(self, now: float, code: int, message: str) -> Refused:
        return Refused(self._reply({}, now, code, message))

    @staticmethod
    def _params(call: Call) -> dict[str, Any]:
        if call.method == "GET":
            return call.query_params()
        try:
            body = json.loads(call.body)
        except ValueError:
            return {}
        return body if isinstance(body, dict) else {}

    def _authenticate(self, call: Call, venue: Venue, now: float) -> None:
        if venue.faults.maintenance:
            raise self._refused(now, 10016, "Server error.")
        key, stamp, signature = (call.headers.get(f"X-BAPI-{name}", "") for name in ("API-KEY", "TIMESTAMP", "SIGN"))
        window = call.headers.get("X-BAPI-RECV-WINDOW", "5000")
        if not hmac.compare_digest(key.encode(), self.keys.api_key.encode()):
            raise self._refused(now, 10003, "API key is invalid.")
        if venue.faults.key_not_whitelisted:
            raise self._refused(now, 10010, "Unmatched IP, please check your API key's bound IP addresses.")
        if not self.keys.signs(stamp + key + window + (call.query if call.method == "GET" else call.body), signature):
            raise self._refused(now, 10004, "error sign! please check your signature generation algorithm.")
        sent, width = milliseconds(stamp), milliseconds(window)
        if sent is None or width is None or not in_window(sent, width, now):
            raise self._refused(now, 10002, "invalid request, please check your server timestamp or recv_window param.")

    def order_request(self, call: Call) -> OrderRequest | None:
        if (call.method, call.path) != ("POST", "/v5/order/create"):
            return None
        p = self._params(call)
        text = {name: str(p.get(name, "")) for name in ("orderLinkId", "symbol", "side", "orderType", "qty", "price")}
        return OrderRequest(
            text["orderLinkId"], text["symbol"], text["side"].lower(), text["orderType"].lower(), text["qty"], text["price"], p.get("reduceOnly") is True
        )

    def answer(self, call: Call, venue: Venue, now: float) -> Reply:
        params = self._params(call)
        try:
            public = self._public(call, params, venue, now)
            if public is not None:
                return public
            self._authenticate(call, venue, now)
            return self._signed(call, params, venue, now)
        except Refused as refused:
            return refused.reply
        except Rejected as rejected:
            return self._reply({}, now, *REJECTED[rejected.kind])

    def _public(self, call: Call, params: Mapping[str, Any], venue: Venue, now: float) -> Reply | None:
        match call.method, call.path:
            case "GET", "/v5/market/time":
                return self._reply({"timeSecond": str(int(now)), "timeNano": str(int(now * 1e9))}, now)
            case "GET", "/v5/market/instruments-info":
                self._linear(params, now)
                symbol, status = params.get("symbol", ""), params.get("status", "Trading")
                names = [name for name in INSTRUMENTS if symbol in ("", name) and status == "Trading"]
                return self._page(params, [self._instrument(name) for name in names], (500, 1000), lambda row: row["symbol"], now)
            case "GET", "/v5/system/status":
                events = [self._event("completed", now - 90000, now - 86400)]  # the record of a maintenance stays when it is over
                if venue.faults.maintenance:
                    events.insert(0, self._event("ongoing", now - 600, now + 3600))
                return self._reply({"list": [event for event in events if params.get("state", event["state"]) == event["state"]]}, now)
        return None

    def _linear(self, params: Mapping[str, Any], now: float) -> None:
        if params.get("category") != "linear":
            raise self._refused(now, 10001, "params error: category invalid")

    def _signed(self, call: Call, params: Mapping[str, Any], venue: Venue, now: float) -> Reply:
        symbol, order_id, link_id = (str(params.get(name, "")) for name in ("symbol", "orderId", "orderLinkId"))
        request = self.order_request(call)
        if call.path.startswith(("/v5/position/", "/v5/order/", "/v5/execution/")):
            self._linear(params, now)
        if request is not None:
            return self._reply(self._ids(venue.place(request, now)), now)
        match call.method, call.path:
            case "GET", "/v5/position/list":
                self._narrowed(params, now)
                return self._positions(venue, params, symbol, now)
            case "GET", "/v5/order/realtime":
                if not order_id and not link_id:
                    self._narrowed(params, now)
                    shown = list(venue.orders.values())[-500:] if str(params.get("openOnly", "0")) == "1" else venue.open_orders()
                else:
                    shown = venue.find("", order_id, link_id)[-1:]
                return self._orders(params, [order for order in shown if symbol in ("", order.symbol)], now)
            case "GET", "/v5/order/history":
                closed = [order for order in venue.orders.values() if order.status != "open" and symbol in ("", order.symbol)]
                if order_id or link_id:
                    closed = [order for order in venue.find("", order_id, link_id) if order.status != "open"]
                else:
                    closed = self._in_time(params, closed, now)
                return self._orders(params, closed, now)
            case "GET", "/v5/execution/list":
                fills = [fill for fill in venue.fills if symbol in ("", fill.order.symbol)]
                if order_id or link_id:
                    wanted = {order.order_id for order in venue.find("", order_id, link_id)}
                    fills = [fill for fill in venue.fills if fill.order.order_id in wanted]
                else:
                    fills = self._in_time(params, fills, now)
                return self._page(params, [self._fill(fill) for fill in reversed(fills)], (50, 100), lambda row: row["execId"], now)
            case "POST", "/v5/order/cancel":
                return self._reply(self._ids(venue.cancel(symbol, order_id, link_id, now)), now)
            case "POST", "/v5/order/cancel-all":
                self._narrowed(params, now)
                return self._reply({"list": [self._ids(order) for order in venue.cancel_all(symbol, now)], "success": "1"}, now)
            case "GET", "/v5/account/wallet-balance":
                return self._reply({"list": [self._wallet(venue, now)]}, now)
            case "GET", "/v5/account/info":
                modes = {setting.margin for setting in venue.settings.values()}
                mode = "ISOLATED_MARGIN" if "isolated" in modes else "REGULAR_MARGIN"
                return self._reply(
                    {"marginMode": mode, "unifiedMarginStatus": 6, "isMasterTrader": False, "spotHedgingStatus": "OFF", "dcpStatus": "OFF", "timeWindow": 0,
                     "smpGroup": 0, "updatedTime": "1672531200000"},
                    now,
                )  # fmt: skip
            case "GET", "/v5/user/query-api":
                return self._reply(self._rights(now), now)
        return self._reply({}, now, 10404, "Not found", 404)

    def _narrowed(self, params: Mapping[str, Any], now: float) -> None:
        if not any(params.get(name) for name in ("symbol", "baseCoin", "settleCoin")):
            raise self._refused(now, 10001, "params error: symbol, baseCoin or settleCoin is required")

    def _in_time(self, params: Mapping[str, Any], rows: list[Any], now: float) -> list[Any]:
        start, end = (milliseconds(params.get(name)) for name in ("startTime", "endTime"))
        since = start if start is not None else (end if end is not None else int(now * 1000)) - WEEK_MS
        until = end if end is not None else since + WEEK_MS
        if not since <= until <= since + WEEK_MS:
            raise self._refused(now, 10001, "params error: endTime - startTime must be within 7 days")
        return [row for row in rows if since <= int(row.at * 1000) <= until]

    def _page(self, params: Mapping[str, Any], rows: list[Any], limits: tuple[int, int], key: Callable[[Any], str], now: float) -> Reply:
        """One page, and a cursor that names its last row. As the real ones it holds percent signs, which a client must send on encoded."""
        limit = milliseconds(params.get("limit", str(limits[0]))) or 0
        if not 1 <= limit <= limits[1]:
            raise self._refused(now, 10001, "params error: limit invalid")
        if params.get("cursor"):
            after = unquote(params["cursor"]).removeprefix("page_args=").removesuffix("&")
            at = [number for number, row in enumerate(rows) if key(row) == after]
            if not at:
                raise self._refused(now, 10001, "params error: cursor invalid")
            rows = rows[at[0] + 1 :]
        more = f"page_args%3D{key(rows[limit - 1])}%26" if len(rows) > limit else ""
        return self._reply({"category": "linear", "list": rows[:limit], "nextPageCursor": more}, now)

    def _orders(self, params: Mapping[str, Any], orders: list[Order], now: float) -> Reply:
        return self._page(params, [self._order(order) for order in reversed(orders)], (20, 50), lambda row: row["orderId"], now)

    def _positions(self, venue: Venue, params: Mapping[str, Any], symbol: str, now: float) -> Reply:
        """By symbol also what is flat, by coin only what is held: an empty list is how this venue says that nothing is."""
        told = venue.reported_positions()
        names = [name for name in INSTRUMENTS if name == symbol or (not symbol and name in told and told[name].size)]
        if symbol and not names:
            raise Rejected("symbol")
        rows = [] if venue.faults.positions_empty else [self._position(venue, name, told, now) for name in names]
        if not venue.faults.positions_partial:
            return self._page(params, rows, (20, 200), lambda row: row["symbol"], now)
        if params.get("cursor"):
            return Reply(500, "Internal Server Error")
        return self._reply({"category": "linear", "list": rows[:1], "nextPageCursor": "page_args%3Dlost%26"}, now)

    @staticmethod
    def _ids(order: Order) -> dict[str, str]:
        return {"orderId": order.order_id, "orderLinkId": order.client_order_id}

    @staticmethod
    def _position(venue: Venue, symbol: str, told: Mapping[str, Any], now: float) -> dict[str, Any]:
        position, setting, mark = told.get(symbol) or venue.position(symbol), venue.setting(symbol), venue.price(symbol, now)
        size, value = position.size, abs(position.size) * mark
        side = "Buy" if size > 0 else "Sell" if size < 0 else ""
        return {
            "symbol": symbol, "positionIdx": (2 if size < 0 else 1) if venue.hedged else 0, "side": side, "size": number(abs(size)),
            "avgPrice": number(position.entry_price), "markPrice": number(mark), "positionValue": number(value), "liqPrice": "", "bustPrice": "",
            "unrealisedPnl": number(size * (mark - position.entry_price)), "curRealisedPnl": "0", "cumRealisedPnl": "0",
            "leverage": setting.leverage, "tradeMode": 1 if setting.margin == "isolated" else 0, "autoAddMargin": 0, "positionStatus": "Normal",
            "positionIM": number(value / Decimal(setting.leverage)), "positionMM": number(value * Decimal("0.005")), "takeProfit": "", "stopLoss": "",
            "tpslMode": "Full", "riskId": 1, "riskLimitValue": "2000000", "adlRankIndicator": 0, "isReduceOnly": False, "seq": 1,
            "createdTime": "1672531200000", "updatedTime": str(int(now * 1000)),
        }  # fmt: skip

    def _order(self, order: Order) -> dict[str, Any]:
        filled = order.qty if order.status == "filled" else Decimal(0)
        left = order.qty if order.status == "open" else Decimal(0)
        return self._ids(order) | {
            "symbol": order.symbol, "side": order.side.capitalize(), "orderType": order.order_type.capitalize(), "positionIdx": 0,
            "orderStatus": {"open": "New", "filled": "Filled", "cancelled": "Cancelled"}[order.status], "rejectReason": "EC_NoError",
            "cancelType": "CancelByUser" if order.status == "cancelled" else "UNKNOWN", "timeInForce": "IOC" if order.order_type == "market" else "GTC",
            "qty": number(order.qty), "price": number(order.price), "avgPrice": number(order.average) if filled else "", "leavesQty": number(left),
            "leavesValue": number(left * order.price), "cumExecQty": number(filled), "cumExecValue": number(filled * order.average),
            "cumExecFee": number(filled * order.average * FEE_RATE), "reduceOnly": order.reduce_only, "closeOnTrigger": False, "stopOrderType": "",
            "triggerPrice": "", "takeProfit": "", "stopLoss": "", "createdTime": str(int(order.at * 1000)), "updatedTime": str(int(order.updated * 1000)),
        }  # fmt: skip

    def _fill(self, fill: Fill) -> dict[str, Any]:
        order = fill.order
        return self._ids(order) | {
            "symbol": order.symbol, "side": order.side.capitalize(), "orderType": order.order_type.capitalize(), "orderPrice": number(order.price),
            "orderQty": number(order.qty), "leavesQty": "0", "stopOrderType": "UNKNOWN", "execId": fill.fill_id,
            "execPrice": number(fill.price), "execQty": number(order.qty), "execValue": number(order.qty * fill.price), "execType": "Trade",
            "execFee": number(fill.fee), "feeRate": number(FEE_RATE), "feeCurrency": "", "isMaker": False, "markPrice": number(fill.price),
            "execTime": str(int(fill.at * 1000)), "seq": int(fill.at * 1000), "closedSize": "", "extraFees": "",
        }  # fmt: skip

    @staticmethod
    def _instrument(symbol: str) -> dict[str, Any]:
        instrument = INSTRUMENTS[symbol]
        tick, lot = number(instrument.tick), number(instrument.lot)
        return {
            "symbol": symbol, "contractType": "LinearPerpetual", "status": "Trading", "baseCoin": instrument.base, "quoteCoin": "USDT", "settleCoin": "USDT",
            "launchTime": "1585526400000", "deliveryTime": "0", "deliveryFeeRate": "", "priceScale": str(-int(instrument.tick.as_tuple().exponent)),
            "leverageFilter": {"minLeverage": "1", "maxLeverage": "100.00", "leverageStep": "0.01"},
            "priceFilter": {"minPrice": tick, "maxPrice": "1999999.80", "tickSize": tick},
            "lotSizeFilter": {"minOrderQty": lot, "maxOrderQty": "1190.000", "maxMktOrderQty": "500.000", "qtyStep": lot, "postOnlyMaxOrderQty": "1190.000",
                              "minNotionalValue": "5"},
            "unifiedMarginTrade": True, "fundingInterval": 480, "copyTrading": "none", "isPreListing": False, "preListingInfo": None,
        }  # fmt: skip

    @staticmethod
    def _event(state: str, begin: float, end: float) -> dict[str, Any]:
        return {
            "id": uuid_text(int(begin)), "title": "System upgrade", "state": state, "begin": str(int(begin * 1000)), "end": str(int(end * 1000)),
            "href": "", "serviceTypes": [1, 2, 3, 4, 5], "product": [1, 2], "uidSuffix": [], "maintainType": 1, "env": 1,
        }  # fmt: skip

    @staticmethod
    def _wallet(venue: Venue, now: float) -> dict[str, Any]:
        balance, profit, held = number(venue.balance), unrealised(venue, now), number(margin(venue, now))
        equity = number(venue.balance + profit)
        return {
            "accountType": "UNIFIED", "totalEquity": equity, "totalWalletBalance": balance, "totalMarginBalance": equity, "totalPerpUPL": number(profit),
            "totalAvailableBalance": number(venue.balance + profit - margin(venue, now)), "totalInitialMargin": held, "totalMaintenanceMargin": "0",
            "accountIMRate": "0", "accountMMRate": "0", "accountLTV": "0",
            "coin": [{
                "coin": "USDT", "equity": equity, "usdValue": equity, "walletBalance": balance, "locked": "0", "borrowAmount": "0", "accruedInterest": "0",
                "totalOrderIM": "0", "totalPositionIM": held, "totalPositionMM": "0", "unrealisedPnl": number(profit), "cumRealisedPnl": "0", "bonus": "0",
                "availableToWithdraw": "", "spotHedgingQty": "0", "marginCollateral": True, "collateralSwitch": True,
            }],
        }  # fmt: skip

    def _rights(self, now: float) -> dict[str, Any]:
        expires = datetime.datetime.fromtimestamp(now, datetime.UTC).replace(microsecond=0) + datetime.timedelta(days=83)
        return {
            "id": "1", "note": "lab", "apiKey": self.keys.api_key, "readOnly": 0, "secret": "", "type": 1, "unified": 0, "uta": 1,
            "userID": 1, "isMaster": True,
            "permissions": {"ContractTrade": ["Order", "Position"], "Spot": [], "Wallet": [], "Options": [], "Derivatives": ["DerivativesTrade"],
                            "Exchange": [], "CopyTrading": [], "BlockTrade": [], "NFT": [], "Affiliate": [], "Earn": []},
            "ips": ["*"], "deadlineDay": 83, "expiredAt": expires.isoformat().replace("+00:00", "Z"), "createdAt": "2023-01-01T00:00:00Z",
        }  # fmt: skip

    def rate_limited(self, status: int) -> Reply:
        body = {"retCode": 10006, "retMsg": "Too many visits. Exceeded the API Rate Limit.", "result": {}, "retExtInfo": {}}
        return Reply(status, body, "10006 rate limit")

    def tick(self, venue: Venue, symbol: str, now: float) -> dict[str, Any]:
        price = number(venue.price(symbol, now))
        return {"topic": f"tickers.{symbol}", "type": "snapshot", "ts": int(now * 1000), "data": {"symbol": symbol, "lastPrice": price, "markPrice": price}}

    def ws_answer(self, message: Any) -> dict[str, Any] | None:
        if isinstance(message, dict) and message.get("op") in ("ping", "subscribe", "unsubscribe"):
            text = "pong" if message["op"] == "ping" else ""
            return {"success": True, "ret_msg": text, "conn_id": "lab", "req_id": message.get("req_id", ""), "op": message["op"]}
        return None
