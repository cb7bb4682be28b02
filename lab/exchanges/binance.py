# SPDX-License-Identifier: GPL-3.0-or-later
"""Binance, USD-M futures: paths, signatures, error codes, bodies. The two /sapi/ paths belong to api.binance.com in the real world."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl

from dialects import WEEK_MS, Call, Keys, Refused, Reply, in_window, margin, milliseconds, number, unrealised
from venue import FEE_RATE, INSTRUMENTS, Fill, Order, OrderRequest, Rejected, Venue

REJECTED = {
    "symbol": (-1121, "Invalid symbol."),
    "side": (-1117, "Invalid side."),
    "type": (-1116, "Invalid orderType."),
    "qty": (-4003, "Quantity less than or equal to zero."),
    "price": (-4001, "Price less than 0."),
    "lot": (-1111, "Precision is over the maximum defined for this asset."),
    "tick": (-4014, "Price not increased by tick size."),
    "duplicate": (-4116, "ClientOrderId is duplicated."),
    "reduce_only": (-2022, "ReduceOnly Order is rejected."),
    "unknown_order": (-2011, "Unknown order sent."),
}


class Binance:
    ws_path = "/ws"
    position_paths: tuple[str, ...] = ("/fapi/v2/positionRisk", "/fapi/v3/positionRisk")

    def __init__(self, keys: Keys) -> None:
        self.keys = keys

    @staticmethod
    def _error(status: int, code: int, message: str) -> Reply:
        return Reply(status, {"code": code, "msg": message}, f"{code} {message}")

    def _missing(self, name: str) -> Refused:
        return Refused(self._error(400, -1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed."))

    @staticmethod
    def _params(call: Call) -> dict[str, str]:
        return call.query_params() | dict(parse_qsl(call.body, keep_blank_values=True))

    def _authenticate(self, call: Call, params: Mapping[str, str], venue: Venue, now: float) -> None:
        if venue.faults.maintenance:
            raise Refused(self._error(503, -1001, "Internal error; unable to process your request. Please try again."))
        key = call.headers.get("X-MBX-APIKEY")
        if not key:
            raise Refused(self._error(401, -2014, "API-key format invalid."))
        if not hmac.compare_digest(key.encode(), self.keys.api_key.encode()) or venue.faults.key_not_whitelisted:
            raise Refused(self._error(401, -2015, "Invalid API-key, IP, or permissions for action."))
        for name in ("signature", "timestamp"):
            if not params.get(name):
                raise self._missing(name)
        # signed is what was sent, query then body with nothing between, without the signature itself
        signed = "".join("&".join(part for part in text.split("&") if not part.startswith("signature=")) for text in (call.query, call.body))
        if not self.keys.signs(signed, params["signature"]):
            raise Refused(self._error(400, -1022, "Signature for this request is not valid."))
        sent, window = milliseconds(params["timestamp"]), milliseconds(params.get("recvWindow", "5000"))
        if sent is None or window is None:
            raise Refused(self._error(400, -1100, "Illegal characters found in a parameter."))
        if not in_window(sent, window, now):
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
        params = self._params(call)
        try:
            public = self._public(call, venue, now)
            if public is not None:
                return public
            self._authenticate(call, params, venue, now)
            return self._signed(call, params, venue, now)
        except Refused as refused:
            return refused.reply
        except Rejected as rejected:
            return self._error(400, *REJECTED[rejected.kind])

    def _public(self, call: Call, venue: Venue, now: float) -> Reply | None:
        match call.method, call.path:
            case "GET", "/api/v3/ping" | "/fapi/v1/ping":
                return Reply(200, {})
            case "GET", "/api/v3/time" | "/fapi/v1/time":
                return Reply(200, {"serverTime": int(now * 1000)})
            case "GET", "/sapi/v1/system/status":
                return Reply(200, {"status": 1, "msg": "system_maintenance"} if venue.faults.maintenance else {"status": 0, "msg": "normal"})
            case "GET", "/fapi/v1/exchangeInfo":
                symbols = [self._instrument(name) for name in INSTRUMENTS]
                assets = [{"asset": "USDT", "marginAvailable": True, "autoAssetExchange": "0"}]
                return Reply(
                    200,
                    {"timezone": "UTC", "serverTime": int(now * 1000), "futuresType": "U_MARGINED", "rateLimits": [], "exchangeFilters": [], "assets": assets,
                     "symbols": symbols},
                )  # fmt: skip
        return None

    def _signed(self, call: Call, params: Mapping[str, str], venue: Venue, now: float) -> Reply:
        symbol, order_id, client_id = (params.get(name, "") for name in ("symbol", "orderId", "origClientOrderId"))
        request = self.order_request(call)
        if request is not None:
            return Reply(200, self._order(venue.place(request, now)))
        match call.method, call.path:
            case "GET", "/fapi/v2/positionRisk" | "/fapi/v3/positionRisk":
                return self._positions(venue, symbol, now, every_symbol=call.path == "/fapi/v2/positionRisk")
            case "GET", "/fapi/v1/openOrders":
                return Reply(200, [self._order(order) for order in venue.open_orders(symbol)])
            case "GET", "/fapi/v1/order":
                if not order_id and not client_id:
                    raise self._missing("orderId")
                found = venue.find(symbol or "?", order_id, client_id)
                return Reply(200, self._order(found[-1])) if found else self._error(400, -2013, "Order does not exist.")
            case "GET", "/fapi/v1/allOrders":
                orders = [order for order in venue.orders.values() if order.symbol == symbol]
                return Reply(200, [self._order(order) for order in self._stretch(params, orders, "orderId", now)])
            case "GET", "/fapi/v1/userTrades":
                fills = [fill for fill in venue.fills if fill.order.symbol == symbol]
                return Reply(200, [self._fill(fill) for fill in self._stretch(params, fills, "fromId", now)])
            case "DELETE", "/fapi/v1/order":
                return Reply(200, self._order(venue.cancel(symbol, order_id, client_id, now)))
            case "DELETE", "/fapi/v1/allOpenOrders":
                if symbol not in INSTRUMENTS:
                    raise Rejected("symbol")
                venue.cancel_all(symbol, now)
                return Reply(200, {"code": 200, "msg": "The operation of cancel all open order is done."})
            case "GET", "/fapi/v2/balance" | "/fapi/v3/balance":
                return Reply(200, [{"accountAlias": "lab", "asset": "USDT", "balance": number(venue.balance)} | self._asset(venue, now)])
            case "GET", "/fapi/v2/account" | "/fapi/v3/account":
                return Reply(200, self._account(venue, now))
            case "GET", "/fapi/v1/positionSide/dual":
                return Reply(200, {"dualSidePosition": venue.hedged})
            case "GET", "/fapi/v1/leverageBracket":
                bracket = {"bracket": 1, "initialLeverage": 125, "notionalCap": 50000, "notionalFloor": 0, "maintMarginRatio": 0.004, "cum": 0.0}
                return Reply(200, [{"symbol": name, "brackets": [bracket]} for name in INSTRUMENTS])
            case "GET", "/sapi/v1/account/apiRestrictions":
                never = ("enableWithdrawals", "enableInternalTransfer", "permitsUniversalTransfer", "enableSpotAndMarginTrading", "enableMargin")
                rights = {"ipRestrict": True, "createTime": 1672531200000, "enableReading": True, "enableFutures": True}
                return Reply(200, rights | dict.fromkeys(never, False))
        return self._error(404, -5000, f"Path {call.path}, Method {call.method} is invalid")

    def _stretch(self, params: Mapping[str, str], rows: list[Any], id_name: str, now: float) -> list[Any]:
        """From an id or a time on the oldest first, else the newest ones; always in order of time."""
        if not params.get("symbol"):
            raise self._missing("symbol")
        start, end, first = (milliseconds(params.get(name)) for name in ("startTime", "endTime", id_name))
        limit = min(milliseconds(params.get("limit")) or 500, 1000)
        if first is not None:
            if id_name == "fromId" and (start is not None or end is not None):
                raise Refused(self._error(400, -1128, "Combination of optional parameters invalid."))
            return [row for row in rows if int(row.fill_id if isinstance(row, Fill) else row.order_id) >= first][:limit]
        since = start if start is not None else (end if end is not None else int(now * 1000)) - WEEK_MS
        until = end if end is not None else since + WEEK_MS
        if since > until:
            raise Refused(self._error(400, -1023, "Start time is greater than end time."))
        if until - since > WEEK_MS:
            raise Refused(self._error(400, -1127, "Lookup interval is too big. More than 7 days between startTime and endTime."))
        found = [row for row in rows if since <= int(row.at * 1000) <= until]
        return found[:limit] if start is not None else found[-limit:]

    def _positions(self, venue: Venue, symbol: str, now: float, *, every_symbol: bool) -> Reply:
        told = venue.reported_positions()
        held = {name for name, position in told.items() if position.size} | {order.symbol for order in venue.open_orders()}
        names = [name for name in INSTRUMENTS if symbol in ("", name) and (every_symbol or name in held)]
        rows = [] if venue.faults.positions_empty else [self._position(venue, name, told, now) for name in names]
        if venue.faults.positions_partial:  # there are no pages here: the one there is, is cut off
            text = json.dumps(rows)
            return Reply(200, text[: len(text) // 2])
        return Reply(200, rows)

    @staticmethod
    def _position(venue: Venue, symbol: str, told: Mapping[str, Any], now: float) -> dict[str, Any]:
        position, setting, mark = told.get(symbol) or venue.position(symbol), venue.setting(symbol), venue.price(symbol, now)
        size, notional = position.size, position.size * mark
        held = number(abs(notional) / Decimal(setting.leverage))
        return {
            "symbol": symbol, "positionSide": "BOTH", "positionAmt": number(size), "entryPrice": number(position.entry_price), "markPrice": number(mark),
            "breakEvenPrice": number(position.entry_price), "unRealizedProfit": number(size * (mark - position.entry_price)), "liquidationPrice": "0",
            "leverage": setting.leverage, "maxNotionalValue": "50000000", "marginType": setting.margin, "isolated": setting.margin == "isolated",
            "isolatedMargin": held if setting.margin == "isolated" else "0", "isolatedWallet": "0", "isAutoAddMargin": "false",
            "notional": number(notional), "initialMargin": held, "maintMargin": number(abs(notional) * Decimal("0.004")), "updateTime": int(now * 1000),
        }  # fmt: skip

    @staticmethod
    def _order(order: Order) -> dict[str, Any]:
        filled = order.qty if order.status == "filled" else Decimal(0)
        kind = order.order_type.upper()
        return {
            "orderId": int(order.order_id), "clientOrderId": order.client_order_id, "symbol": order.symbol, "side": order.side.upper(), "positionSide": "BOTH",
            "type": kind, "origType": kind, "status": {"open": "NEW", "filled": "FILLED", "cancelled": "CANCELED"}[order.status], "timeInForce": "GTC",
            "origQty": number(order.qty), "executedQty": number(filled), "cumQuote": number(filled * order.average), "price": number(order.price),
            "avgPrice": number(order.average), "stopPrice": "0", "reduceOnly": order.reduce_only, "closePosition": False, "workingType": "CONTRACT_PRICE",
            "priceProtect": False, "time": int(order.at * 1000), "updateTime": int(order.updated * 1000),
        }  # fmt: skip

    @staticmethod
    def _fill(fill: Fill) -> dict[str, Any]:
        order = fill.order
        return {
            "id": int(fill.fill_id), "orderId": int(order.order_id), "symbol": order.symbol, "side": order.side.upper(), "positionSide": "BOTH",
            "price": number(fill.price), "qty": number(order.qty), "quoteQty": number(order.qty * fill.price), "realizedPnl": number(fill.profit),
            "commission": number(fill.fee), "commissionAsset": "USDT", "marginAsset": "USDT", "buyer": order.side == "buy", "maker": False,
            "time": int(fill.at * 1000),
        }  # fmt: skip

    @staticmethod
    def _instrument(symbol: str) -> dict[str, Any]:
        instrument = INSTRUMENTS[symbol]
        tick, lot = number(instrument.tick), number(instrument.lot)
        decimals = [-int(step.as_tuple().exponent) for step in (instrument.tick, instrument.lot)]
        return {
            "symbol": symbol, "pair": symbol, "contractType": "PERPETUAL", "deliveryDate": 4133404800000, "onboardDate": 1569398400000, "status": "TRADING",
            "baseAsset": instrument.base, "quoteAsset": "USDT", "marginAsset": "USDT", "pricePrecision": decimals[0], "quantityPrecision": decimals[1],
            "baseAssetPrecision": 8, "quotePrecision": 8, "underlyingType": "COIN", "liquidationFee": "0.012500",
            "maintMarginPercent": "2.5000", "requiredMarginPercent": "5.0000", "marketTakeBound": "0.05", "triggerProtect": "0.0500",
            "filters": [
                {"filterType": "PRICE_FILTER", "minPrice": tick, "maxPrice": "4529764", "tickSize": tick},
                {"filterType": "LOT_SIZE", "minQty": lot, "maxQty": "1000", "stepSize": lot},
                {"filterType": "MARKET_LOT_SIZE", "minQty": lot, "maxQty": "120", "stepSize": lot},
                {"filterType": "MAX_NUM_ORDERS", "limit": 200},
                {"filterType": "MIN_NOTIONAL", "notional": "5"},
            ],
            "orderTypes": ["LIMIT", "MARKET"], "timeInForce": ["GTC"],
        }  # fmt: skip

    @staticmethod
    def _asset(venue: Venue, now: float) -> dict[str, Any]:
        profit = unrealised(venue, now)
        available = number(venue.balance + profit - margin(venue, now))
        return {
            "crossWalletBalance": number(venue.balance), "crossUnPnl": number(profit), "availableBalance": available, "maxWithdrawAmount": available,
            "marginAvailable": True, "updateTime": int(now * 1000),
        }  # fmt: skip

    def _account(self, venue: Venue, now: float) -> dict[str, Any]:
        told = venue.reported_positions()
        rows = [self._position(venue, name, told, now) for name in INSTRUMENTS]
        balance, profit, held = number(venue.balance), unrealised(venue, now), number(margin(venue, now))
        asset = self._asset(venue, now)
        sums = {"walletBalance": balance, "unrealizedProfit": number(profit), "marginBalance": number(venue.balance + profit), "initialMargin": held,
                "maintMargin": "0", "positionInitialMargin": held, "openOrderInitialMargin": "0"}  # fmt: skip
        return {
            "feeTier": 0, "canTrade": True, "canDeposit": True, "canWithdraw": True, "multiAssetsMargin": False, "updateTime": 0,
            **{f"total{name[0].upper()}{name[1:]}": value for name, value in sums.items()},
            "totalCrossWalletBalance": balance, "totalCrossUnPnl": number(profit), "availableBalance": asset["availableBalance"],
            "maxWithdrawAmount": asset["maxWithdrawAmount"], "assets": [{"asset": "USDT"} | sums | asset],
            "positions": [row | {"unrealizedProfit": row["unRealizedProfit"], "positionInitialMargin": row["initialMargin"]} for row in rows],
            "takerCommission": number(FEE_RATE),
        }  # fmt: skip

    def rate_limited(self, status: int) -> Reply:
        message = "Way too many requests; IP banned." if status == 418 else "Too many requests; current limit is 2400 requests per minute."
        return self._error(status, -1003, message)

    def tick(self, venue: Venue, symbol: str, now: float) -> dict[str, Any]:
        return {"e": "24hrTicker", "E": int(now * 1000), "s": symbol, "c": number(venue.price(symbol, now))}

    def ws_answer(self, message: Any) -> dict[str, Any] | None:
        if isinstance(message, dict) and message.get("method") in ("SUBSCRIBE", "UNSUBSCRIBE"):
            return {"result": None, "id": message.get("id")}
        return None
