# SPDX-License-Identifier: GPL-3.0-or-later
"""How Binance (USD-M futures) and Bybit (v5) say things: paths, signatures, error codes, bodies. Pure: a Call in, a Reply out."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import parse_qsl

from venue import BASE_PRICES, Order, OrderRequest, Rejected, Venue


@dataclass(frozen=True)
class Keys:
    api_key: str
    api_secret: str

    def signs(self, payload: str, signature: str) -> bool:
        expected = hmac.new(self.api_secret.encode(), payload.encode(), hashlib.sha256).hexdigest()
        return hmac.compare_digest(expected.encode(), signature.lower().encode())


@dataclass(frozen=True)
class Call:
    method: str
    path: str
    query: str  # as sent, not decoded: it is what was signed
    body: str
    headers: Mapping[str, str]  # case-insensitive

    def query_params(self) -> dict[str, str]:
        return dict(parse_qsl(self.query, keep_blank_values=True))


@dataclass(frozen=True)
class Reply:
    status: int
    body: Any
    error: str = ""  # why a request was refused, for the order log


class Refused(Exception):
    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.error)
        self.reply = reply


class Dialect(Protocol):
    ws_path: str

    def order_request(self, call: Call) -> OrderRequest | None:
        """The order that a call asks for, read leniently (for the log); None when it does not place an order."""

    def answer(self, call: Call, venue: Venue, now: float) -> Reply: ...
    def rate_limited(self, status: int) -> Reply: ...
    def tick(self, venue: Venue, symbol: str, now: float) -> dict[str, Any]: ...
    def ws_answer(self, message: Any) -> dict[str, Any] | None: ...


def _milliseconds(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def _in_window(sent: int, window: int, now: float) -> bool:
    return -1000 < now * 1000 - sent <= window


class Binance:
    ws_path = "/ws"

    def __init__(self, keys: Keys) -> None:
        self.keys = keys

    @staticmethod
    def _error(status: int, code: int, message: str) -> Reply:
        return Reply(status, {"code": code, "msg": message}, f"{code} {message}")

    @staticmethod
    def _params(call: Call) -> dict[str, str]:
        return call.query_params() | dict(parse_qsl(call.body, keep_blank_values=True))

    def _authenticate(self, call: Call, params: Mapping[str, str], now: float) -> None:
        key = call.headers.get("X-MBX-APIKEY")
        if not key:
            raise Refused(self._error(401, -2014, "API-key format invalid."))
        if not hmac.compare_digest(key.encode(), self.keys.api_key.encode()):
            raise Refused(self._error(401, -2015, "Invalid API-key, IP, or permissions for action."))
        for name in ("signature", "timestamp"):
            if not params.get(name):
                raise Refused(self._error(400, -1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed."))
        # signed is what was sent, query then body with nothing between, without the signature itself
        signed = "".join("&".join(part for part in text.split("&") if not part.startswith("signature=")) for text in (call.query, call.body))
        if not self.keys.signs(signed, params["signature"]):
            raise Refused(self._error(400, -1022, "Signature for this request is not valid."))
        sent, window = _milliseconds(params["timestamp"]), _milliseconds(params.get("recvWindow", "5000"))
        if sent is None or window is None:
            raise Refused(self._error(400, -1100, "Illegal characters found in a parameter."))
        if not _in_window(sent, window, now):
            raise Refused(self._error(400, -1021, "Timestamp for this request is outside of the recvWindow."))

    def order_request(self, call: Call) -> OrderRequest | None:
        if (call.method, call.path) != ("POST", "/fapi/v1/order"):
            return None
        p = self._params(call)
        return OrderRequest(
            p.get("newClientOrderId", ""), p.get("symbol", ""), p.get("side", "").lower(), p.get("type", "").lower(),
            p.get("quantity", ""), p.get("price", ""), p.get("reduceOnly", "").lower() == "true",
        )  # fmt: skip

    def answer(self, call: Call, venue: Venue, now: float) -> Reply:
        if call.method == "GET" and call.path in ("/api/v3/ping", "/fapi/v1/ping"):
            return Reply(200, {})
        if call.method == "GET" and call.path in ("/api/v3/time", "/fapi/v1/time"):
            return Reply(200, {"serverTime": int(now * 1000)})
        params = self._params(call)
        try:
            self._authenticate(call, params, now)
            return self._signed(call, params, venue, now)
        except Refused as refused:
            return refused.reply
        except Rejected as rejected:
            code, message = {
                "symbol": (-1121, "Invalid symbol."),
                "side": (-1117, "Invalid side."),
                "type": (-1116, "Invalid orderType."),
                "qty": (-4003, "Quantity less than or equal to zero."),
                "price": (-4001, "Price less than 0."),
                "duplicate": (-4116, "ClientOrderId is duplicated."),
                "reduce_only": (-2022, "ReduceOnly Order is rejected."),
                "unknown_order": (-2011, "Unknown order sent."),
            }[rejected.kind]
            return self._error(400, code, message)

    def _signed(self, call: Call, params: Mapping[str, str], venue: Venue, now: float) -> Reply:
        symbol = params.get("symbol", "")
        request = self.order_request(call)
        if request is not None:
            return Reply(200, self._order(venue.place(request, now)))
        match call.method, call.path:
            case "GET", "/fapi/v2/positionRisk":
                told = venue.reported_positions()
                return Reply(200, [self._position(venue, name, told, now) for name in BASE_PRICES if symbol in ("", name)])
            case "GET", "/fapi/v1/openOrders":
                return Reply(200, [self._order(order) for order in venue.open_orders(symbol)])
            case "DELETE", "/fapi/v1/order":
                return Reply(200, self._order(venue.cancel(symbol, params.get("orderId", ""), params.get("origClientOrderId", ""))))
            case "DELETE", "/fapi/v1/allOpenOrders":
                if symbol not in BASE_PRICES:
                    raise Rejected("symbol")
                venue.cancel_all(symbol)
                return Reply(200, {"code": 200, "msg": "The operation of cancel all open order is done."})
            case "GET", "/fapi/v2/balance":
                balance = str(venue.balance)
                return Reply(200, [{"accountAlias": "lab", "asset": "USDT", "balance": balance, "availableBalance": balance, "updateTime": int(now * 1000)}])
        return self._error(404, -5000, f"Path {call.path}, Method {call.method} is invalid")

    @staticmethod
    def _position(venue: Venue, symbol: str, told: Mapping[str, Any], now: float) -> dict[str, Any]:
        position = told.get(symbol)
        size, entry = (position.size, position.entry_price) if position else (0, 0)
        mark = venue.price(symbol, now)
        return {
            "symbol": symbol, "positionSide": "BOTH", "positionAmt": str(size), "entryPrice": str(entry), "markPrice": str(mark),
            "unRealizedProfit": str(size * (mark - entry)), "leverage": "10", "marginType": "cross", "updateTime": int(now * 1000),
        }  # fmt: skip

    @staticmethod
    def _order(order: Order) -> dict[str, Any]:
        filled = order.status == "filled"
        return {
            "orderId": order.order_id, "clientOrderId": order.client_order_id, "symbol": order.symbol, "side": order.side.upper(),
            "type": order.order_type.upper(), "status": {"open": "NEW", "filled": "FILLED", "cancelled": "CANCELED"}[order.status],
            "origQty": str(order.qty), "executedQty": str(order.qty if filled else 0), "price": str(order.price),
            "avgPrice": str(order.price if filled else 0), "positionSide": "BOTH", "updateTime": int(order.at * 1000),
        }  # fmt: skip

    def rate_limited(self, status: int) -> Reply:
        message = "Way too many requests; IP banned." if status == 418 else "Too many requests; current limit is 2400 requests per minute."
        return self._error(status, -1003, message)

    def tick(self, venue: Venue, symbol: str, now: float) -> dict[str, Any]:
        return {"e": "24hrTicker", "E": int(now * 1000), "s": symbol, "c": str(venue.price(symbol, now))}

    def ws_answer(self, message: Any) -> dict[str, Any] | None:
        if isinstance(message, dict) and message.get("method") in ("SUBSCRIBE", "UNSUBSCRIBE"):
            return {"result": None, "id": message.get("id")}
        return None


class Bybit:
    ws_path = "/v5/public/linear"

    def __init__(self, keys: Keys) -> None:
        self.keys = keys

    @staticmethod
    def _reply(result: Any, now: float, code: int = 0, message: str = "OK", status: int = 200) -> Reply:
        """Bybit answers 200 to nearly everything: the verdict is in retCode."""
        body = {"retCode": code, "retMsg": message, "result": result, "retExtInfo": {}, "time": int(now * 1000)}
        return Reply(status, body, f"{code} {message}" if code else "")

    @staticmethod
    def _params(call: Call) -> dict[str, Any]:
        if call.method == "GET":
            return call.query_params()
        try:
            body = json.loads(call.body)
        except ValueError:
            return {}
        return body if isinstance(body, dict) else {}

    def _authenticate(self, call: Call, now: float) -> None:
        key, stamp, signature = (call.headers.get(f"X-BAPI-{name}", "") for name in ("API-KEY", "TIMESTAMP", "SIGN"))
        window = call.headers.get("X-BAPI-RECV-WINDOW", "5000")
        if not hmac.compare_digest(key.encode(), self.keys.api_key.encode()):
            raise Refused(self._reply({}, now, 10003, "API key is invalid."))
        if not self.keys.signs(stamp + key + window + (call.query if call.method == "GET" else call.body), signature):
            raise Refused(self._reply({}, now, 10004, "error sign! please check your signature generation algorithm."))
        sent, width = _milliseconds(stamp), _milliseconds(window)
        if sent is None or width is None or not _in_window(sent, width, now):
            raise Refused(self._reply({}, now, 10002, "invalid request, please check your server timestamp or recv_window param."))

    def order_request(self, call: Call) -> OrderRequest | None:
        if (call.method, call.path) != ("POST", "/v5/order/create"):
            return None
        p = self._params(call)
        text = {name: str(p.get(name, "")) for name in ("orderLinkId", "symbol", "side", "orderType", "qty", "price")}
        return OrderRequest(
            text["orderLinkId"], text["symbol"], text["side"].lower(), text["orderType"].lower(), text["qty"], text["price"], p.get("reduceOnly") is True
        )

    def answer(self, call: Call, venue: Venue, now: float) -> Reply:
        if (call.method, call.path) == ("GET", "/v5/market/time"):
            return self._reply({"timeSecond": str(int(now)), "timeNano": str(int(now * 1e9))}, now)
        try:
            self._authenticate(call, now)
            return self._signed(call, self._params(call), venue, now)
        except Refused as refused:
            return refused.reply
        except Rejected as rejected:
            code, message = {
                "symbol": (10001, "params error: symbol invalid"),
                "side": (10001, "Side invalid"),
                "type": (10001, "orderType invalid"),
                "qty": (10001, "Qty invalid"),
                "price": (10001, "Price invalid"),
                "duplicate": (110072, "OrderLinkedID is duplicate"),
                "reduce_only": (110017, "current position is zero, cannot fix reduce-only order qty"),
                "unknown_order": (110001, "order not exists or too late to cancel"),
            }[rejected.kind]
            return self._reply({}, now, code, message)

    def _signed(self, call: Call, params: Mapping[str, Any], venue: Venue, now: float) -> Reply:
        symbol = str(params.get("symbol", ""))
        request = self.order_request(call)
        known = ("/v5/position/list", "/v5/order/realtime", "/v5/order/create", "/v5/order/cancel", "/v5/order/cancel-all")
        if call.path in known and params.get("category") != "linear":
            return self._reply({}, now, 10001, "params error: category invalid")
        if request is not None:
            return self._reply(self._ids(venue.place(request, now)), now)
        match call.method, call.path:
            case "GET", "/v5/position/list":
                if not symbol and not params.get("settleCoin"):
                    return self._reply({}, now, 10001, "params error: symbol or settleCoin is required")
                told = venue.reported_positions()
                names = [symbol] if symbol else [name for name, position in told.items() if position.size]
                rows = [self._position(venue, name, told, now) for name in names if name in BASE_PRICES]
                return self._reply({"category": "linear", "list": rows, "nextPageCursor": ""}, now)
            case "GET", "/v5/order/realtime":
                rows = [self._order(order) for order in venue.open_orders(symbol)]
                return self._reply({"category": "linear", "list": rows, "nextPageCursor": ""}, now)
            case "POST", "/v5/order/cancel":
                return self._reply(self._ids(venue.cancel(symbol, str(params.get("orderId", "")), str(params.get("orderLinkId", "")))), now)
            case "POST", "/v5/order/cancel-all":
                return self._reply({"list": [self._ids(order) for order in venue.cancel_all(symbol)], "success": "1"}, now)
            case "GET", "/v5/account/wallet-balance":
                balance = str(venue.balance)
                coin = {"coin": "USDT", "walletBalance": balance, "equity": balance}
                return self._reply({"list": [{"accountType": "UNIFIED", "totalEquity": balance, "totalWalletBalance": balance, "coin": [coin]}]}, now)
        return self._reply({}, now, 10404, "Not found", 404)

    @staticmethod
    def _ids(order: Order) -> dict[str, str]:
        return {"orderId": str(order.order_id), "orderLinkId": order.client_order_id}

    @staticmethod
    def _position(venue: Venue, symbol: str, told: Mapping[str, Any], now: float) -> dict[str, Any]:
        position = told.get(symbol)
        size, entry = (position.size, position.entry_price) if position else (0, 0)
        mark = venue.price(symbol, now)
        return {
            "symbol": symbol, "positionIdx": 0, "side": "Buy" if size > 0 else "Sell" if size < 0 else "", "size": str(abs(size)),
            "avgPrice": str(entry), "markPrice": str(mark), "unrealisedPnl": str(size * (mark - entry)), "leverage": "10", "updatedTime": str(int(now * 1000)),
        }  # fmt: skip

    def _order(self, order: Order) -> dict[str, Any]:
        return self._ids(order) | {
            "symbol": order.symbol, "side": order.side.capitalize(), "orderType": order.order_type.capitalize(), "qty": str(order.qty),
            "price": str(order.price), "orderStatus": "New", "cumExecQty": "0", "createdTime": str(int(order.at * 1000)),
        }  # fmt: skip

    def rate_limited(self, status: int) -> Reply:
        body = {"retCode": 10006, "retMsg": "Too many visits. Exceeded the API Rate Limit.", "result": {}, "retExtInfo": {}}
        return Reply(status, body, "10006 rate limit")

    def tick(self, venue: Venue, symbol: str, now: float) -> dict[str, Any]:
        price = str(venue.price(symbol, now))
        return {"topic": f"tickers.{symbol}", "type": "snapshot", "ts": int(now * 1000), "data": {"symbol": symbol, "lastPrice": price, "markPrice": price}}

    def ws_answer(self, message: Any) -> dict[str, Any] | None:
        if isinstance(message, dict) and message.get("op") in ("ping", "subscribe", "unsubscribe"):
            text = "pong" if message["op"] == "ping" else ""
            return {"success": True, "ret_msg": text, "conn_id": "lab", "req_id": message.get("req_id", ""), "op": message["op"]}
        return None
