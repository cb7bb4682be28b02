# SPDX-License-Identifier: GPL-3.0-or-later
"""What a simulated exchange knows: balance, positions, orders, fills, faults, and the log of every order it was ever asked for.

No HTTP in here; how the two venues talk is in binance.py and bybit.py, the sockets in simulator.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Instrument:
    base: str
    price: float
    tick: Decimal  # a power of ten
    lot: Decimal


INSTRUMENTS = {
    "BTCUSDT": Instrument("BTC", 50000.0, Decimal("0.1"), Decimal("0.001")),
    "ETHUSDT": Instrument("ETH", 3000.0, Decimal("0.01"), Decimal("0.01")),
    "SOLUSDT": Instrument("SOL", 150.0, Decimal("0.01"), Decimal("0.1")),
}
START_BALANCE = Decimal("100000")
FEE_RATE = Decimal("0.0005")  # every fill is a taker's
DROP_MODES = ("close", "hang", "reply")
RATE_LIMIT_STATUSES = (429, 418)
CERTIFICATES = ("expired", "not_yet_valid", "unknown_ca")  # beside the good one


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
    order_id: str
    client_order_id: str
    symbol: str
    side: str
    order_type: str
    qty: Decimal
    price: Decimal  # the limit asked for; 0 of a market order
    reduce_only: bool
    status: str  # open | filled | cancelled
    at: float
    updated: float
    average: Decimal = Decimal(0)  # what it was filled at


@dataclass(frozen=True)
class Fill:
    fill_id: str
    order: Order
    price: Decimal
    fee: Decimal
    profit: Decimal
    at: float


@dataclass
class Settings:
    leverage: str = "10"
    margin: str = "cross"  # or isolated


@dataclass
class Position:
    size: Decimal = Decimal(0)  # signed: negative is short
    entry_price: Decimal = Decimal(0)


@dataclass
class Faults:
    """None, False and 0 are off. All that are on apply together; README.md says in which order."""

    drop: str | None = None  # close: connection closed | hang: never answered | reply: acted upon, answer lost
    delay: float = 0.0
    reject_upgrade: bool = False
    wrong_position: bool | dict[str, str] = False  # True, or {symbol: signed size}
    rate_limit: int | None = None  # HTTP status
    html: bool = False
    positions_empty: bool = False
    positions_partial: bool = False
    positions_error: bool = False
    positions_html: bool = False
    key_not_whitelisted: bool = False
    maintenance: bool = False
    clock_offset: float = 0.0  # seconds by which the venue's clock is ahead
    ws_silent: bool = False
    tls: str | None = None  # the certificate shown to new connections

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
            elif name in ("delay", "clock_offset"):
                if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or (name == "delay" and value < 0):
                    raise ValueError(f"{name}: expected seconds")
                setattr(faults, name, float(value))
            elif name == "tls":
                if value not in CERTIFICATES:
                    raise ValueError(f"tls: expected one of {', '.join(CERTIFICATES)}")
                faults.tls = value
            elif name == "rate_limit":
                faults.rate_limit = RATE_LIMIT_STATUSES[0] if value is True else value
                if faults.rate_limit not in RATE_LIMIT_STATUSES:
                    raise ValueError("rate_limit: expected true, 429 or 418")
            elif name == "wrong_position" and isinstance(value, dict):
                faults.wrong_position = {symbol: str(decimal(size, "wrong_position: expected {symbol: signed size}")) for symbol, size in value.items()}
            elif value is True:
                setattr(faults, name, True)
            else:
                raise ValueError(f"{name}: expected true or false")
        return faults


def decimal(value: Any, message: str) -> Decimal:
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
    id_text: Callable[[int], str] = str  # how it writes the ids of orders and fills
    faults: Faults = field(default_factory=Faults)
    balance: Decimal = START_BALANCE
    positions: dict[str, Position] = field(default_factory=dict)
    orders: dict[str, Order] = field(default_factory=dict)
    fills: list[Fill] = field(default_factory=list)
    settings: dict[str, Settings] = field(default_factory=dict)
    hedged: bool = False  # position mode: two sides at once; only told, orders are handled one way
    next_order_id: int = 1
    next_fill_id: int = 1

    def price(self, symbol: str, now: float) -> Decimal:
        """A slow, repeatable wave around the base price."""
        instrument = INSTRUMENTS[symbol]
        return Decimal(str(instrument.price * (1 + 0.0005 * math.sin(now / 30)))).quantize(instrument.tick)

    def place(self, request: OrderRequest, now: float) -> Order:
        """Market orders, and limit orders that cross the price, fill at once; other limit orders rest until they are cancelled."""
        if request.symbol not in INSTRUMENTS:
            raise Rejected("symbol")
        if request.side not in ("buy", "sell"):
            raise Rejected("side")
        if request.order_type not in ("market", "limit"):
            raise Rejected("type")
        instrument = INSTRUMENTS[request.symbol]
        qty = self._positive(request.qty, "qty")
        limit = self._positive(request.price, "price") if request.order_type == "limit" else None
        if qty % instrument.lot:
            raise Rejected("lot")
        if limit is not None and limit % instrument.tick:
            raise Rejected("tick")
        taken = self.orders.values() if self.unique_client_ids else self.open_orders()
        if request.client_order_id and any(order.client_order_id == request.client_order_id for order in taken):
            raise Rejected("duplicate")
        signed = qty if request.side == "buy" else -qty
        held = self.position(request.symbol).size
        if request.reduce_only and (held * signed >= 0 or abs(signed) > abs(held)):
            raise Rejected("reduce_only")
        market = self.price(request.symbol, now)
        crosses = limit is None or (limit >= market if request.side == "buy" else limit <= market)
        order_id = self.id_text(self.next_order_id)
        order = Order(
            order_id, request.client_order_id or f"{self.name}-{self.next_order_id}", request.symbol, request.side, request.order_type,
            qty, limit or Decimal(0), request.reduce_only, "open", now, now,
        )  # fmt: skip
        self.next_order_id += 1
        self.orders[order.order_id] = order
        if crosses:
            order.status, order.average = "filled", market
            fee, profit = qty * market * FEE_RATE, self._trade(request.symbol, signed, market)
            self.balance += profit - fee
            self.fills.append(Fill(self.id_text(self.next_fill_id), order, market, fee, profit, now))
            self.next_fill_id += 1
        return order

    @staticmethod
    def _positive(text: str, kind: str) -> Decimal:
        try:
            value = decimal(text, kind)
        except ValueError:
            raise Rejected(kind) from None
        if value <= 0:
            raise Rejected(kind)
        return value

    def _trade(self, symbol: str, signed: Decimal, price: Decimal) -> Decimal:
        """Change the position; the profit that this made real is returned."""
        position = self.positions.setdefault(symbol, Position())
        before, position.size = position.size, position.size + signed
        if before * signed >= 0:  # opened or enlarged: average entry
            position.entry_price = (abs(before) * position.entry_price + abs(signed) * price) / abs(position.size)
            return Decimal(0)
        profit = min(abs(before), abs(signed)) * (price - position.entry_price) * (1 if before > 0 else -1)
        if position.size == 0:
            position.entry_price = Decimal(0)
        elif before * position.size < 0:  # turned around
            position.entry_price = price
        return profit

    def position(self, symbol: str) -> Position:
        return self.positions.get(symbol, Position())

    def setting(self, symbol: str) -> Settings:
        return self.settings.setdefault(symbol, Settings())

    def open_orders(self, symbol: str | None = None) -> list[Order]:
        return [order for order in self.orders.values() if order.status == "open" and symbol in (None, "", order.symbol)]

    def find(self, symbol: str, order_id: str, client_order_id: str) -> list[Order]:
        """Orders of any state with one of these ids, the newest last: an id may have been used again."""
        return [
            order
            for order in self.orders.values()
            if symbol in ("", order.symbol) and (order.order_id == order_id or (client_order_id and order.client_order_id == client_order_id))
        ]

    def cancel(self, symbol: str, order_id: str, client_order_id: str, now: float) -> Order:
        for order in self.find(symbol, order_id, client_order_id):
            if order.status == "open":
                order.status, order.updated = "cancelled", now
                return order
        raise Rejected("unknown_order")

    def cancel_all(self, symbol: str | None, now: float) -> list[Order]:
        cancelled = self.open_orders(symbol)
        for order in cancelled:
            order.status, order.updated = "cancelled", now
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
        self.faults, self.balance, self.positions, self.orders, self.fills = Faults(), START_BALANCE, {}, {}, []
        self.settings, self.hedged = {}, False


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
            "reduceOnly": request.reduce_only,
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
