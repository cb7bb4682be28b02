# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""What an exchange reports against what the book says: every difference gets a class and a verdict. No clock, no network and no Redis in here but `look`.

The exchange's explicit report is the truth, a missing one is unknown. A difference is only taken over when fills of our own orders explain it to the last
lot: a position that is wrong, stale or of somebody else does not add up.
"""

from __future__ import annotations

import collections
import dataclasses
import re
import time
import typing as t
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _probe
from ansible_collections.titan.disaster_recovery.plugins.module_utils._book import Book, Booked, Keys, plain, position_fields
from ansible_collections.titan.disaster_recovery.plugins.module_utils._venue import (
    Account,
    Fill,
    Instrument,
    Order,
    Position,
    Rights,
    Venue,
    VenueError,
)

PASS, FAIL, UNKNOWN = _probe.PASS, _probe.FAIL, _probe.UNKNOWN
ZERO = Decimal(0)
# An order that an exchange does not know may still be on its way: requests are valid for 5 s, by a clock that may differ.
IN_FLIGHT = 10.0
# Faults that asking again does not mend.
FINAL = ("key", "clock", "tls", "maintenance", "rate_limited", "refused")
# Two reads of the server's clock are enough when one of them was this quick.
_QUICK = 0.2
Row = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Policy:
    own: re.Pattern[str]
    lot_share: Decimal = Decimal("0.5")  # of a lot: quantities that differ by no more are equal
    entry_ticks: Decimal = Decimal(1)
    entry_bp: Decimal = Decimal(1)
    clock_ms: float = 500.0
    balance_share: Decimal = Decimal("0.001")
    halted_at: float = 0.0  # 0: it is not known since when trading is halted
    halt_takes: float = 15.0  # seconds until the halt has its effect and nothing is under way any more
    settings: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)  # of each symbol, what it must be
    accepted: frozenset[str] = frozenset()  # ids of orders of others that a person has settled in the book


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """One read of one exchange. A part that could not be read is None and has its fault in `faults`."""

    venue: str
    symbols: tuple[str, ...]
    at: float
    since: float
    offset: float = 0.0  # of the exchange's clock against ours, in seconds
    blur: float = 0.0  # how far that may be off
    status: tuple[str, str] | None = None
    rights: Rights | None = None
    instruments: dict[str, Instrument] | None = None
    account: Account | None = None
    open_orders: list[Order] | None = None
    positions: dict[str, Position] | None = None
    fills: list[Fill] | None = None
    orders: list[Order] | None = None
    faults: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Judgement:
    rows: list[Row] = dataclasses.field(default_factory=list)
    changes: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)  # fields of keys of the book
    rebuilt: list[str] = dataclasses.field(default_factory=list)  # ids of orders that the book had lost or not seen end
    fills: int = 0

    @property
    def verdict(self) -> str:
        return _probe.worst(row["verdict"] for row in self.rows)


# --- reading ----------------------------------------------------------------------------------------------------------


def _clock(venue: Venue, clock: Callable[[], float]) -> tuple[float, float]:
    """The offset of the exchange's clock and how far it may be off: the quickest of at most three answers counts."""
    best: tuple[float, float] | None = None
    for dummy in range(3):
        before = clock()
        told = venue.server_time()
        after = clock()
        found = (told - (before + after) / 2, (after - before) / 2)
        best = found if best is None or found[1] < best[1] else best
        if best[1] <= _QUICK / 2:
            break
    return best or (0.0, 0.0)


def look(venue: Venue, since: float, clock: Callable[[], float] = time.time) -> Snapshot:
    """One read of everything, side by side. Never raises: what failed is in the snapshot."""
    at = clock()
    parts: dict[str, t.Any] = {}
    faults: dict[str, dict[str, str]] = {}
    asked: dict[str, Callable[[], t.Any]] = {
        "status": venue.status,
        "rights": venue.rights,
        "instruments": venue.instruments,
        "account": venue.account,
        "open_orders": venue.open_orders,
        "positions": venue.positions,
        "fills": lambda: venue.fills(since),
        "orders": lambda: venue.orders_since(since),
        "clock": lambda: _clock(venue, clock),
    }
    with ThreadPoolExecutor(max_workers=len(asked)) as pool:
        waiting = {name: pool.submit(ask) for name, ask in asked.items()}
        for name, one in waiting.items():
            try:
                parts[name] = one.result()
            except VenueError as exc:
                faults[name] = {"kind": exc.kind, "cause": exc.cause, "text": exc.text}
    offset, blur = parts.pop("clock", (0.0, 0.0))
    return Snapshot(venue.name, tuple(venue.symbols), at, since, offset, blur, faults=faults, **parts)


def stable(snapshot: Snapshot) -> dict[str, t.Any]:
    """What must be the same in two reads, as JSON: all but prices, times and what follows from them."""
    positions, account = snapshot.positions or {}, snapshot.account
    told = {symbol: one for symbol, one in positions.items() if one.size or symbol in snapshot.symbols}
    return {
        "at": snapshot.at,
        "since": snapshot.since,
        "symbols": list(snapshot.symbols),
        "faults": snapshot.faults,
        "positions": {symbol: [plain(one.size), plain(one.entry)] for symbol, one in told.items()},
        "open_orders": {one.id: [one.client_id, one.symbol, one.side, plain(one.qty), plain(one.filled)] for one in snapshot.open_orders or []},
        "fills": {f"{one.symbol} {one.id}": [one.order_id, one.side, plain(one.qty), one.at] for one in snapshot.fills or []},
        "orders": {one.id: [one.status, plain(one.filled), one.at] for one in snapshot.orders or []},
        "settings": account.settings if account else {},
        "balances": {asset: plain(value) for asset, value in account.balances.items()} if account else {},
    }


def differences(first: Mapping[str, t.Any], second: Mapping[str, t.Any], balance_share: Decimal) -> list[str]:
    """Where two reads are not the same; empty when they are. Of fills and orders only those that both asked for."""
    since = max(first["since"], second["since"])
    found = []
    both = set(first["symbols"]) & set(second["symbols"])
    for what in ("positions", "open_orders", "fills", "orders", "settings"):
        sides = []
        for read in (first, second):
            entries = read[what]
            if what in ("fills", "orders"):
                entries = {name: entry for name, entry in entries.items() if entry[-1] >= since}
            elif what == "positions":
                # a symbol that only one of them asked for may be flat there
                entries = {name: entry for name, entry in entries.items() if name in both or entry[0] != "0"}
            elif what == "settings":
                entries = {name: entry for name, entry in entries.items() if name in both}
            sides.append(entries)
        changed = sorted(name for name in sides[0].keys() | sides[1].keys() if sides[0].get(name) != sides[1].get(name))
        if changed:
            found.append(f"{what.replace('_', ' ')}: {', '.join(changed[:5])}{' and more' if len(changed) > 5 else ''}")
    balances = (first["balances"], second["balances"])
    for asset in sorted(balances[0].keys() | balances[1].keys()):
        values = [Decimal(side[asset]) for side in balances if asset in side]
        if len(values) < 2 or abs(values[0] - values[1]) > balance_share * max(abs(values[0]), abs(values[1])):
            found.append(f"balance: {asset}")
    return found


# --- which orders have to be asked for by name --------------------------------------------------------------------------


def _seen(snapshot: Snapshot) -> dict[str, list[Order]]:
    """The orders of both lists by their client id."""
    found: dict[str, dict[str, Order]] = collections.defaultdict(dict)
    for order in [*(snapshot.orders or []), *(snapshot.open_orders or [])]:
        found[order.client_id][order.id] = order
    return {client_id: list(orders.values()) for client_id, orders in found.items()}


def to_ask(snapshot: Snapshot, book: Book, policy: Policy) -> dict[str, str]:
    """Client id -> symbol of the orders that are in no list, and without which the book cannot be judged."""
    seen = _seen(snapshot)
    wanted = {}
    for order in book.orders.values():
        # the two clocks may differ by a little at the beginning of the time that was asked for
        open_end = order.status in ("pending", "unknown") or (order.status == "filled" and order.at >= snapshot.since + 2)
        if order.venue == snapshot.venue and order.id not in seen and open_end:
            wanted[order.id] = order.symbol
    for fill in snapshot.fills or []:
        booked = book.orders.get(fill.client_id)
        if fill.client_id not in seen and policy.own.search(fill.client_id) and (booked is None or booked.status != "filled"):
            wanted[fill.client_id] = fill.symbol
    return wanted


# --- judging ------------------------------------------------------------------------------------------------------------


def _signed(side: str, qty: Decimal) -> Decimal:
    return qty if side == "buy" else -qty


def _position_text(size: Decimal, entry: Decimal | None = None) -> str:
    if not size:
        return "flat"
    return f"{'long' if size > 0 else 'short'} {plain(abs(size))}" + (f" at {plain(entry)}" if entry is not None else "")


def _order_text(order: Order) -> str:
    done = f", {plain(order.filled)} filled at {plain(order.price)}" if order.filled else ""
    return f"{order.side} {plain(order.qty)} {order.type}, {order.status}{done}"


def _booked_text(order: Booked | None) -> str:
    return f"{order.side} {plain(order.qty)}, {order.status}" if order else "-"


class _Judge:
    """One exchange, one snapshot that was read twice, one book."""

    def __init__(self, snapshot: Snapshot, book: Book, keys: Keys, asked: Mapping[str, Order | None], policy: Policy, now: float, mark: str) -> None:
        self.snapshot, self.book, self.keys, self.asked, self.policy, self.now, self.mark = snapshot, book, keys, asked, policy, now, mark
        self.venue = snapshot.venue
        self.wanted = to_ask(snapshot, book, policy)
        self.found = Judgement()
        # how much more of each symbol the exchange has filled than the book counts
        self.drift: dict[str, Decimal] = collections.defaultdict(Decimal)

    def row(
        self, what: str, action: str, verdict: str, symbol: str = "", name: str = "", book: str = "-", told: str = "-", why: str = "", do: str = ""
    ) -> None:
        row = {"venue": self.venue, "what": what, "symbol": symbol, "id": name, "book": book, "venue_value": told, "action": action, "verdict": verdict}
        self.found.rows.append({**row, "why": why, "do": do})

    def lot(self, symbol: str) -> Decimal:
        known = (self.snapshot.instruments or {}).get(symbol)
        return known.lot * self.policy.lot_share if known else ZERO

    def same(self, symbol: str, one: Decimal, other: Decimal) -> bool:
        return abs(one - other) <= self.lot(symbol)

    # each of these adds its rows

    def run(self) -> Judgement:
        if self._complete():
            self._clock_of_halt()
            self._surroundings()
            self._foreign()
            self._orders()
            # against orders that are not known a position says nothing
            if UNKNOWN not in [row["verdict"] for row in self.found.rows]:
                self._positions()
        if self.found.verdict != PASS:
            # half of a correction is a third state beside the book's and the exchange's
            self.found.changes, self.found.rebuilt, self.found.fills = {}, [], 0
        return self.found

    def _complete(self) -> bool:
        """Every part was read: what is missing is unknown, and nothing is judged by halves."""
        for part, fault in self.snapshot.faults.items():
            if part not in ("rights", "clock"):
                self.row(part, "stop", UNKNOWN, told="not told", why=fault["text"], do=_TO_DO.get(fault["kind"], "Look why it does not answer, then again."))
        status = self.snapshot.status
        if status and status[0] != "ok":
            self.row("status", "stop", UNKNOWN, told=status[0], why=status[1], do=_TO_DO["maintenance"])
        for key, why in self.book.unreadable.items():
            self.row("book", "stop", FAIL, name=key, book="not readable", why=why, do="Correct or remove this key of the book.")
        return not self.found.rows

    def _clock_of_halt(self) -> None:
        if not self.policy.halted_at:
            self.row("halt", "stop", UNKNOWN, why="trading is not halted here", do="Halt trading first: a book that is traded on cannot be reconciled.")

    def _surroundings(self) -> None:
        """Instruments, settings, balances."""
        snapshot = self.snapshot
        held = {symbol for symbol, position in (snapshot.positions or {}).items() if position.size}
        for symbol in sorted({*snapshot.symbols, *held}):
            known = (snapshot.instruments or {}).get(symbol)
            if known is None:
                self.row("instrument", "stop", UNKNOWN, symbol, told="not listed", why="without it no quantity can be compared", do="Correct the symbol.")
            elif known.status != "trading":
                do = "Take the symbol out of the configuration or wait."
                self.row("instrument", "stop", FAIL, symbol, told=known.status, why="it cannot be traded", do=do)
        if snapshot.account is None:
            return
        for symbol in snapshot.symbols:
            wanted = {"position_mode": "one_way", **self.policy.settings.get(symbol, {})}
            told = snapshot.account.settings.get(symbol)
            if told is None:
                self.row("settings", "stop", UNKNOWN, symbol, told="not told", why="leverage and margin mode are not known", do="Look at the exchange's page.")
                continue
            for name, value in wanted.items():
                if str(value) != told.get(name) and not (name == "leverage" and _equal(value, told.get(name))):
                    do = f"Set {name} back at the exchange."
                    self.row("settings", "stop", FAIL, symbol, name, str(value), str(told.get(name)), "it is not what it was", do)
        if not snapshot.account.balances:
            self.row("balance", "stop", UNKNOWN, told="none", why="the account has no balance at all", do="Look whether this is the right account.")
        else:
            balances = ", ".join(f"{plain(value)} {asset}" for asset, value in sorted(snapshot.account.balances.items()) if value)
            self.row("balance", "match", PASS, told=balances or "0", why="the same in both reads")

    def _foreign(self) -> None:
        """Orders and fills that are not ours, or that cannot be: somebody else trades on this account (H09)."""
        seen: set[str] = set()
        for order in [*(self.snapshot.open_orders or []), *(self.snapshot.orders or [])]:
            if order.id in seen:
                continue
            seen.add(order.id)
            foreign = not self.policy.own.search(order.client_id)
            if foreign and self.policy.accepted & {order.id, order.client_id}:
                self.row("order", "match", PASS, order.symbol, order.client_id or order.id, told=_order_text(order), why="accepted by a person")
            elif foreign:
                do = "Find out who ordered it (H09: an old server, a person). Correct the book for it, name it in reconcile_accepted_ids, then again."
                self.row("order", "stop", FAIL, order.symbol, order.client_id or order.id, told=_order_text(order), why="the order is not ours", do=do)
            elif self.policy.halted_at and order.at - self.snapshot.offset > self.policy.halted_at + self.policy.halt_takes:
                do = "Find the server that still trades (H09) and fence it: its orders carry our ids."
                self.row("order", "stop", FAIL, order.symbol, order.client_id, told=_order_text(order), why="it was placed while trading was halted", do=do)
        for fill in self.snapshot.fills or []:
            accepted = self.policy.accepted & {fill.order_id, fill.client_id}
            if fill.order_id not in seen and not self.policy.own.search(fill.client_id) and not accepted:
                seen.add(fill.order_id)
                do = "Find out whose it is (H09), or whether the exchange liquidated. Correct the book, name its order in reconcile_accepted_ids, then again."
                told = f"{fill.side} {plain(fill.qty)} at {plain(fill.price)}"
                self.row("fill", "stop", FAIL, fill.symbol, fill.client_id or fill.order_id, told=told, why="the fill is of no order of ours", do=do)
        for client_id, orders in _seen(self.snapshot).items():
            if len(orders) > 1 and self.policy.own.search(client_id):
                told = "; ".join(map(_order_text, orders))
                self.row("order", "stop", FAIL, orders[0].symbol, client_id, told=told, why="two orders have this id", do="Correct the book by hand.")

    def _listed_twice(self) -> None:
        """The fills of an order must add up to what the order says: else a list is cut off."""
        filled: dict[str, Decimal] = collections.defaultdict(Decimal)
        for fill in self.snapshot.fills or []:
            filled[fill.order_id] += fill.qty
        for order in self.snapshot.orders or []:
            # fills are later than their order, so all of them were asked for
            if not self.same(order.symbol, order.filled, filled.get(order.id, ZERO)):
                told, listed = plain(order.filled), plain(filled.get(order.id, ZERO))
                do = "Ask the exchange for the fills of this order."
                self.row("fill", "stop", UNKNOWN, order.symbol, order.client_id, told=told, why=f"fills are listed for {listed} of {told}", do=do)

    def _orders(self) -> None:
        self._listed_twice()
        orders = {client_id: found[-1] for client_id, found in _seen(self.snapshot).items() if self.policy.own.search(client_id)}
        orders.update({client_id: order for client_id, order in self.asked.items() if order is not None})
        agreed = sum([self._known(client_id, order) for client_id, order in sorted(orders.items(), key=lambda item: item[1].at)])
        for order in self.book.orders.values():
            if order.venue == self.venue and order.id not in orders:
                self._unseen(order)
        for fill in self.snapshot.fills or []:
            if fill.client_id in self.wanted and self.asked.get(fill.client_id) is None:
                told = f"{fill.side} {plain(fill.qty)} at {plain(fill.price)}"
                self.row("order", "stop", UNKNOWN, fill.symbol, fill.client_id, told=told, why="a fill is told, the order of it is not", do="Then again.")
        if agreed:
            self.row("orders", "match", PASS, book=str(agreed), told=str(agreed), why="orders since then agree")

    def _known(self, client_id: str, order: Order) -> int:
        """An order that the exchange tells; 1 when the book says the same."""
        booked = self.book.orders.get(client_id)
        if booked and (booked.venue, booked.symbol, booked.side) != (self.venue, order.symbol, order.side):
            told = f"{self.venue} {order.symbol} {_order_text(order)}"
            text = f"{booked.venue} {booked.symbol} {_booked_text(booked)}"
            self.row("order", "stop", FAIL, order.symbol, client_id, text, told, "another order has this id in the book", "Correct the book by hand.")
            return 0
        counted = booked.counted if booked else ZERO
        self.drift[order.symbol] += _signed(order.side, order.filled - counted)
        # an order that ended with a part of it filled is a filled one of that size: the book has no other word for it
        part = order.filled if order.status != "open" and order.filled else order.qty
        status = "pending" if order.status == "open" else "filled" if order.filled else order.status
        if booked is None and order.status == "open" and order.at < self.snapshot.since:
            do = "Cancel it at the exchange, or enter it into the book."
            self.row("order", "stop", FAIL, order.symbol, client_id, told=_order_text(order), why="open, ours, older than the lost time", do=do)
            return 0
        same = booked is not None and booked.status == status and self.same(order.symbol, booked.qty, part) and order.filled == counted
        if same or (booked is not None and {booked.status, status} == {"rejected", "cancelled"}):
            return 1
        fields = {"status": status, "price": plain(order.price), "qty": plain(part), "filled": plain(order.filled)}
        if booked is None:
            fields.update(venue=self.venue, symbol=order.symbol, side=order.side, createdAt=str(int(order.at * 1000)), rebuilt=self.mark)
        action = "import" if booked is None and status == "pending" else "adopt"
        why = "the book had lost it" if booked is None else "the book had not seen how it went on"
        self.row("order", action, PASS, order.symbol, client_id, _booked_text(booked), _order_text(order), why)
        self.found.changes[self.keys.order(client_id)] = fields
        self.found.rebuilt.append(client_id)
        self.found.fills += sum(fill.order_id == order.id for fill in self.snapshot.fills or [])
        return 0

    def _unseen(self, booked: Booked) -> None:
        """An order of the book that is in no list of the exchange."""
        if booked.status in ("pending", "unknown"):
            if booked.id not in self.asked:
                self.row("order", "stop", UNKNOWN, booked.symbol, booked.id, _booked_text(booked), "not told", "its end is not known", "Then again.")
            elif booked.counted:
                why = "a part of it is in the position, and the exchange does not know it"
                self.row("order", "stop", FAIL, booked.symbol, booked.id, _booked_text(booked), "not known", why, "Correct the book by hand.")
            elif self.now - booked.at < IN_FLIGHT:
                why = "the exchange does not know it yet, and it may be on its way"
                self.row("order", "stop", UNKNOWN, booked.symbol, booked.id, _booked_text(booked), "not known", why, "Then again.")
            else:
                self.row("order", "adopt", PASS, booked.symbol, booked.id, _booked_text(booked), "not known", "it never arrived: cancelled")
                self.found.changes[self.keys.order(booked.id)] = {"status": "cancelled"}
        elif booked.id in self.wanted:
            known = booked.id in self.asked
            why = "the book calls it filled, the exchange does not know it" if known else "it is in no list"
            do = "Compare both by hand: one of them is of another account or another time."
            self.row("order", "stop", FAIL if known else UNKNOWN, booked.symbol, booked.id, _booked_text(booked), "not known", why, do)

    def _positions(self) -> None:
        told = self.snapshot.positions or {}
        ours = {symbol for (venue, symbol), position in self.book.positions.items() if venue == self.venue and position.size}
        held = {symbol for symbol, position in told.items() if position.size}
        for symbol in sorted({*self.snapshot.symbols, *ours, *held, *self.drift}):
            self._position(symbol, told.get(symbol))

    def _position(self, symbol: str, told: Position | None) -> None:
        booked = self.book.positions.get((self.venue, symbol))
        before = booked.size if booked else ZERO
        was = _position_text(before, booked.entry if booked else None) if booked else "-"
        if told is None:
            do = "Look at the exchange's page what is held: missing is not flat."
            self.row("position", "stop", UNKNOWN, symbol, book=was, told="not told", why="the exchange does not say", do=do)
            return
        now = _position_text(told.size, told.entry)
        drift = self.drift.get(symbol, ZERO)
        if not self.same(symbol, told.size, before + drift):
            self._unexplained(symbol, before, was, told, drift)
            return
        moved = not self.same(symbol, told.size, before)
        if moved or drift:
            why = f"fills of ours explain {'+' if drift > 0 else ''}{plain(drift)}" if drift else ""
            self._take(symbol, told, "adopt", was, now, why)
        elif told.size and booked and not self._same_entry(symbol, booked.entry, told.entry):
            self._take(symbol, told, "adopt", was, now, "only the entry price differs")
        else:
            self.row("position", "match", PASS, symbol, book=was, told=now)

    def _same_entry(self, symbol: str, one: Decimal, other: Decimal) -> bool:
        known = (self.snapshot.instruments or {}).get(symbol)
        ticks = known.tick * self.policy.entry_ticks if known else ZERO
        return abs(one - other) <= max(ticks, abs(other) * self.policy.entry_bp / 10000)

    def _take(self, symbol: str, told: Position, action: str, was: str, now: str, why: str) -> None:
        self.row("position", action, PASS, symbol, book=was, told=now, why=why)
        self.found.changes[self.keys.position(self.venue, symbol)] = position_fields(told.size, told.entry)

    def _unexplained(self, symbol: str, before: Decimal, was: str, told: Position, drift: Decimal) -> None:
        now = _position_text(told.size, told.entry)
        # a position without any order behind it is only an entry in the book; one that was really ordered cannot go without a fill
        ordered = any((order.venue, order.symbol, order.status) == (self.venue, symbol, "filled") for order in self.book.orders.values())
        if not told.size and not drift and not ordered:
            self._take(symbol, told, "drop", was, now, "only in the book, with no order behind it")
            return
        explained = f"book and fills since then make {_position_text(before + drift)}"
        if before * told.size < 0:
            why, do = "the other side", "Find out who turned it around. Close it at the exchange or correct the book, then again."
        elif not before:
            why, do = "only at the exchange", "Find out whose it is (H09). Close it, or enter it into the book, then again."
        elif not told.size:
            why, do = "flat at the exchange", "Find out what closed it (a liquidation, a person). Correct the book, then again."
        else:
            why, do = "another size", "Look for fills that the exchange does not list any more. Correct the book, then again."
        self.row("position", "stop", FAIL, symbol, book=was, told=now, why=f"{why}; {explained}", do=do)


def _equal(one: object, other: object) -> bool:
    try:
        return Decimal(str(one)) == Decimal(str(other))
    except ArithmeticError:
        return False


_TO_DO = {
    "network": "Mend the way to the exchange (titan-dr diagnose), then again.",
    "dns": "Mend the resolver (titan-dr diagnose), then again.",
    "tls": "The certificate is not the exchange's or the clock is wrong: do not go round it.",
    "maintenance": "Wait for the end of the maintenance, then again.",
    "rate_limited": "Wait until the ban is over: asking on makes it longer.",
    "key": "Allow the key for this address at the exchange, or put the right one in place, then again.",
    "clock": "Set the clock of this server, then again.",
    "unusable": "The exchange does not tell it completely. Look at its page; again when it does.",
    "refused": "The exchange refuses the question: look at its answer.",
}


def judge(snapshot: Snapshot, book: Book, keys: Keys, asked: Mapping[str, Order | None], policy: Policy, now: float, mark: str) -> Judgement:
    """`asked`: the answers for what `to_ask` wanted, None for an order that the exchange does not know. `mark` is written on what is rebuilt."""
    return _Judge(snapshot, book, keys, asked, policy, now, mark).run()


# --- gates ----------------------------------------------------------------------------------------------------------------


def _gate(name: str, verdict: str, evidence: str) -> dict[str, str]:
    return {"name": name, "verdict": verdict, "evidence": evidence}


def clock_gate(snapshot: Snapshot, policy: Policy) -> dict[str, str]:
    name = f"clock_{snapshot.venue}"
    if "clock" in snapshot.faults:
        return _gate(name, UNKNOWN, snapshot.faults["clock"]["text"])
    off, blur = abs(snapshot.offset) * 1000, snapshot.blur * 1000
    verdict = PASS if off <= policy.clock_ms else FAIL if off - blur > policy.clock_ms else UNKNOWN
    return _gate(name, verdict, f"the exchange's clock is {snapshot.offset * 1000:+.0f} ms from ours (to {blur:.0f} ms), at most {policy.clock_ms:.0f} ms")


def rights_gate(snapshot: Snapshot) -> dict[str, str]:
    name = f"rights_{snapshot.venue}"
    rights = snapshot.rights
    if rights is None:
        fault = snapshot.faults.get("rights", {"kind": "", "text": "not told"})
        return _gate(name, FAIL if fault["kind"] == "key" else UNKNOWN, fault["text"])
    told = [f"{word}: {'yes' if value else 'no'}" for word, value in (("read", rights.can_read), ("trade", rights.can_trade))]
    over = rights.expires is not None and rights.expires <= snapshot.at
    if rights.expires is not None:
        told.append("expired" if over else f"{(rights.expires - snapshot.at) / 86400:.0f} days to its end")
    if rights.withdraw:
        told.append("may withdraw, which trading does not need")
    if rights.ips:
        told.append(f"from {len(rights.ips)} addresses")
    return _gate(name, PASS if rights.can_trade and rights.can_read and not over else FAIL, "the key may " + ", ".join(told))


def venue_gate(venue: str, rows: Iterable[Row], apart: float, reads: str) -> dict[str, str]:
    rows = list(rows)
    bad = [row for row in rows if row["verdict"] != PASS]
    if bad:
        first = bad[0]
        where = " ".join(part for part in (first["what"], first["symbol"], first["id"]) if part)
        more = f"; {len(bad) - 1} more" if len(bad) > 1 else ""
        return _gate(f"reconcile_{venue}", _probe.worst(row["verdict"] for row in rows), f"{where}: {first['why']}{more}")
    done = collections.Counter(row["action"] for row in rows)
    counted = ", ".join(f"{count} {action}" for action, count in sorted(done.items()))
    return _gate(f"reconcile_{venue}", PASS if rows else UNKNOWN, f"{reads} {apart:.1f} s apart are the same; {counted or 'nothing was compared'}")
