# SPDX-License-Identifier: GPL-3.0-or-later
"""What a simulated exchange knows: balance, positions, open orders, faults, and the log of every order it was ever asked for.

No HTTP in here; the dialects of the two venues are in dialects.py, the sockets in simulator.py.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

BASE_PRICES = {"BTCUSDT": 50000.0, "ETHUSDT": 3000.0, "SOLUSDT": 150.0}
START_BALANCE = Decimal("100000")
DROP_MODES = ("close", "hang", "reply")
RATE_LIMIT_STATUSES = (429, 418)


class Rejected(Exception):
    """The venue refuses an order; `kind` is translated to the venue's own code by its dialect."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


@dataclass
class OrderRequest:
    """An order as it was asked for: strings as received, side in lower case."""

    client_order_id: str = ""
    symbol: str = ""
    side: str = ""
    order_type: str = ""
    qty: str = ""
    price: str = ""
    reduce_only: bool = False


@dataclass
class Order:
    order_id: int
    client_order_id: str
    symbol: str
    side: str
    order_type: str
    qty: Decimal
    price: Decimal
    status: str  # open | filled | cancelled
    at: float


@dataclass
class Position:
    size: Decimal = Decimal(0)  # signed: negative is short
    entry_price: Decimal = Decimal(0)


@dataclass
class Faults:
    """None, False and 0 are off. All that are on apply together, in the order delay, drop, rate_limit, html."""

    drop: str | None = None  # close: connection closed | hang: never answered | reply: acted upon, answer lost
    delay: float = 0.0
    reject_upgrade: bool = False
    wrong_position: bool | dict[str, str] = False  # True, or {symbol: signed size}
    rate_limit: int | None = None  # HTTP status
    html: bool = False

    @classmethod
    def parse(cls, raw: Any) -> Faults:
        """From what a drill sent. A name or a value that is not understood is an error: a fault that is silently off proves nothing."""
        if not isinstance(raw, dict):
            raise ValueError("faults: expected a JSON object")
        faults = cls()
        for name, value in raw.items():
            if name not in cls.__dataclass_fields__:
                raise ValueError(f"faults: unknown fault {name!r}; known: {', '.join(cls.__dataclass_fields__)}")
            if value is None or value is False:
                continue
            if name == "drop":
                faults.drop = "close" if value is True else value
                if faults.drop not in DROP_MODES:
                    raise ValueError(f"drop: expected true or one of {', '.join(DROP_MODES)}")
            elif name == "delay":
                if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                    raise ValueError("delay: expected seconds")
                faults.delay = float(value)
            elif name == "rate_limit":
                faults.rate_limit = RATE_LIMIT_STATUSES[0] if value is True else value
                if faults.rate_limit not in RATE_LIMIT_STATUSES:
                    raise ValueError("rate_limit: expected true, 429 or 418")
            elif name == "wrong_position" and isinstance(value, dict):
                faults.wrong_position = {symbol: str(_decimal(size, "wrong_position: expected {symbol: signed size}")) for symbol, size in value.items()}
            elif value is True:
                setattr(faults, name, True)
            else:
                raise ValueError(f"{name}: expected true or false")
        return faults


def _decimal(value: Any, message: str) -> Decimal:
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        raise ValueError(message) from None
    if not number.is_finite():
        raise ValueError(message)
    return number


@dataclass
class Venue:
    name: str
    unique_client_ids: bool  # True: an id is refused for ever; False: only while an order with it is open
    faults: Faults = field(default_factory=Faults)
    balance: Decimal = START_BALANCE
    positions: dict[str, Position] = field(default_factory=dict)
    orders: dict[int, Order] = field(default_factory=dict)
    next_order_id: int = 1

    def price(self, symbol: str, now: float) -> Decimal:
        """A slow, repeatable wave around the base price."""
        return Decimal(str(round(BASE_PRICES[symbol] * (1 + 0.0005 * math.sin(now / 30)), 2)))

    def place(self, request: OrderRequest, now: float) -> Order:
        """Market orders, and limit orders that cross the price, fill at once; other limit orders rest until they are cancelled."""
        if request.symbol not in BASE_PRICES:
            raise Rejected("symbol")
        if request.side not in ("buy", "sell"):
            raise Rejected("side")
        if request.order_type not in ("market", "limit"):
            raise Rejected("type")
        qty = self._positive(request.qty, "qty")
        limit = self._positive(request.price, "price") if request.order_type == "limit" else None
        taken = self.orders.values() if self.unique_client_ids else self.open_orders()
        if request.client_order_id and any(order.client_order_id == request.client_order_id for order in taken):
            raise Rejected("duplicate")
        signed = qty if request.side == "buy" else -qty
        held = self.positions.get(request.symbol, Position()).size
        if request.reduce_only and (held * signed >= 0 or abs(signed) > abs(held)):
            raise Rejected("reduce_only")
        market = self.price(request.symbol, now)
        crosses = limit is None or (limit >= market if request.side == "buy" else limit <= market)
        client_order_id = request.client_order_id or f"{self.name}-{self.next_order_id}"
        price = market if crosses or limit is None else limit
        status = "filled" if crosses else "open"
        order = Order(self.next_order_id, client_order_id, request.symbol, request.side, request.order_type, qty, price, status, now)
        self.next_order_id += 1
        self.orders[order.order_id] = order
        if crosses:
            self._fill(request.symbol, signed, market)
        return order

    @staticmethod
    def _positive(text: str, kind: str) -> Decimal:
        try:
            value = _decimal(text, kind)
        except ValueError:
            raise Rejected(kind) from None
        if value <= 0:
            raise Rejected(kind)
        return value

    def _fill(self, symbol: str, signed: Decimal, price: Decimal) -> None:
        position = self.positions.setdefault(symbol, Position())
        before, after = position.size, position.size + signed
        if before * signed >= 0:  # opened or enlarged: average entry
            position.entry_price = (abs(before) * position.entry_price + abs(signed) * price) / abs(after)
        else:
            closed = min(abs(before), abs(signed))
            self.balance += closed * (price - position.entry_price) * (1 if before > 0 else -1)
            if after == 0:
                position.entry_price = Decimal(0)
            elif before * after < 0:  # turned around
                position.entry_price = price
        position.size = after

    def open_orders(self, symbol: str | None = None) -> list[Order]:
        return [order for order in self.orders.values() if order.status == "open" and symbol in (None, "", order.symbol)]

    def cancel(self, symbol: str, order_id: str, client_order_id: str) -> Order:
        for order in self.open_orders(symbol):
            if str(order.order_id) == order_id or (client_order_id and order.client_order_id == client_order_id):
                order.status = "cancelled"
                return order
        raise Rejected("unknown_order")

    def cancel_all(self, symbol: str | None = None) -> list[Order]:
        cancelled = self.open_orders(symbol)
        for order in cancelled:
            order.status = "cancelled"
        return cancelled

    def reported_positions(self) -> dict[str, Position]:
        """What the API tells; the truth is in `positions` (and in the control API's state)."""
        told = {symbol: Position(position.size, position.entry_price) for symbol, position in self.positions.items()}
        wrong = self.faults.wrong_position
        if isinstance(wrong, dict):
            for symbol, size in wrong.items():
                told.setdefault(symbol, Position()).size = Decimal(size)
        elif wrong:  # other side and twice the size; a flat symbol is told as held
            for symbol in list(told) or ["BTCUSDT"]:
                position = told.setdefault(symbol, Position())
                position.size = position.size * -2 or Decimal(1)
        return told

    def reset(self) -> None:
        self.faults, self.balance, self.positions, self.orders = Faults(), START_BALANCE, {}, {}


class OrderLog:
    """Every order request in order of arrival.

    In the file a request has one line when it arrives and one with its outcome: the last line of a number counts.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.entries: list[dict[str, Any]] = []
        self.last_seq = 0
        self._file = None
        if path is not None:
            if path.exists():
                self._load(path)
            self._file = path.open("a", encoding="utf-8")

    def _load(self, path: Path) -> None:
        by_seq: dict[int, dict[str, Any]] = {}
        text = path.read_text(encoding="utf-8")
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                seq = entry["seq"]
            except (ValueError, KeyError, TypeError):
                continue  # the line that was being written when the process was killed
            self.last_seq = max(self.last_seq, seq)
            if entry.get("reset"):
                by_seq.clear()
            else:
                by_seq[seq] = entry
        self.entries = list(by_seq.values())
        if text and not text.endswith("\n"):
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def arrived(self, venue: str, request: OrderRequest, now: float, source_ip: str) -> dict[str, Any]:
        self.last_seq += 1
        entry = {
            "seq": self.last_seq,
            "venue": venue,
            "clientOrderId": request.client_order_id,
            "symbol": request.symbol,
            "side": request.side,
            "qty": request.qty,
            "price": request.price,
            "type": request.order_type,
            "received": now,
            "source_ip": source_ip,
            "outcome": "pending",
            "reason": "",
        }
        self.entries.append(entry)
        self._append(entry)
        return entry

    def finish(self, entry: dict[str, Any], outcome: str, reason: str = "") -> None:
        entry.update(outcome=outcome, reason=reason)
        self._append(entry)

    def reset(self) -> None:
        """Numbers go on rising over a reset, and the file keeps what was before it."""
        self.last_seq += 1
        self.entries = []
        self._append({"seq": self.last_seq, "reset": True})

    def _append(self, entry: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
