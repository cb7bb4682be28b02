# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""The book: the positions and orders that the services keep in Redis. Read as it is, and corrected in one transaction for each exchange."""

from __future__ import annotations

import dataclasses
import re
import typing as t
from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _redis

STATUSES = ("pending", "filled", "rejected", "cancelled", "unknown")
_SIDES = {"long": 1, "short": -1, "flat": 0}
_BATCH = 500


class BookError(Exception):
    """The book cannot be read or written."""


@dataclasses.dataclass(frozen=True)
class Held:
    """A position as the book has it."""

    venue: str
    symbol: str
    size: Decimal  # signed
    entry: Decimal


@dataclasses.dataclass(frozen=True)
class Booked:
    """An order as the book has it."""

    id: str
    venue: str
    symbol: str
    side: str
    qty: Decimal
    price: Decimal
    status: str
    at: float
    counted: Decimal  # how much of it is in the position


@dataclasses.dataclass(frozen=True)
class Book:
    positions: dict[tuple[str, str], Held]
    orders: dict[str, Booked]
    unreadable: dict[str, str]  # key: what is wrong with it
    others: int  # orders with ids that are not ours, which are not looked at
    raw: dict[str, dict[str, str]]  # what was read, for the transaction

    def newest(self) -> float | None:
        return max((order.at for order in self.orders.values()), default=None)


@dataclasses.dataclass(frozen=True)
class Keys:
    """Where the book lies: database, and patterns with {venue}, {symbol} and {id}."""

    db: int
    position_pattern: str
    order_pattern: str

    @classmethod
    def parse(cls, spec: Mapping[str, t.Any]) -> Keys:
        position, order = str(spec.get("position", "")), str(spec.get("order", ""))
        if position.count("{venue}") != 1 or position.count("{symbol}") != 1 or order.count("{id}") != 1:
            raise BookError("the book's position must name {venue} and {symbol}, its order {id}, each once")
        return cls(int(spec.get("db", 0)), position, order)

    def position(self, venue: str, symbol: str) -> str:
        return self.position_pattern.replace("{venue}", venue).replace("{symbol}", symbol)

    def order(self, order_id: str) -> str:
        return self.order_pattern.replace("{id}", order_id)


def plain(value: Decimal) -> str:
    """Without an exponent and without zeros that say nothing."""
    return f"{value.normalize():f}" if value else "0"


def _number(fields: Mapping[str, str], name: str) -> Decimal:
    try:
        found = Decimal(fields[name])
    except (KeyError, InvalidOperation):
        raise BookError(f"{name} is missing or not a number") from None
    if not found.is_finite() or found < 0:
        raise BookError(f"{name} is not a number of zero or more")
    return found


def _choice(fields: Mapping[str, str], name: str, known: Iterable[str]) -> str:
    value = fields.get(name, "")
    if value not in known:
        raise BookError(f"{name} is {value[:40]!r}, none of {', '.join(known)}")
    return value


def held(venue: str, symbol: str, fields: Mapping[str, str]) -> Held:
    sign, size = _SIDES[_choice(fields, "side", _SIDES)], _number(fields, "size")
    if bool(sign) != bool(size):
        raise BookError(f"side {fields['side']} with size {fields['size']}")
    return Held(venue, symbol, sign * size, _number(fields, "entryPrice"))


def booked(order_id: str, fields: Mapping[str, str]) -> Booked:
    if not fields.get("venue") or not fields.get("symbol"):
        raise BookError("venue or symbol is missing")
    qty, status = _number(fields, "qty"), _choice(fields, "status", STATUSES)
    # what is filled of an order that is open still, as a reconciliation writes it
    part = _number(fields, "filled") if "filled" in fields else Decimal(0)
    return Booked(
        order_id,
        fields["venue"],
        fields["symbol"],
        _choice(fields, "side", ("buy", "sell")),
        qty,
        _number(fields, "price"),
        status,
        float(_number(fields, "createdAt") / 1000),
        qty if status == "filled" else part,
    )


def position_fields(size: Decimal, entry: Decimal) -> dict[str, str]:
    """A position as the services write it."""
    return {"side": "long" if size > 0 else "short" if size < 0 else "flat", "size": plain(abs(size)), "entryPrice": plain(entry) if size else "0"}


# --- in Redis ---------------------------------------------------------------------------------------------------------


class Connection(_redis.Redis):
    """Many questions at once: a book has thousands of orders."""

    @classmethod
    def open(cls, conf: _redis.RedisConf, timeout: float) -> Connection:
        return cls(conf.address, conf.password, timeout, conf.username, _redis.client_context(conf.tls) if conf.tls_only and conf.tls else None)

    def many(self, commands: list[tuple[str, ...]]) -> list[t.Any]:
        """The replies in order; an error reply stands where it belongs."""
        replies: list[t.Any] = []
        for start in range(0, len(commands), _BATCH):
            part = commands[start : start + _BATCH]
            words = [(f"*{len(command)}\r\n".encode(), [str(word).encode() for word in command]) for command in part]
            try:
                self._socket.sendall(b"".join(head + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in body) for head, body in words))
                for dummy in part:
                    replies.append(self._one())
            except OSError as exc:
                raise _redis.RedisError(f"no answer from Redis: {exc}") from exc
        return replies

    def _one(self) -> t.Any:
        try:
            return self._reply(True)
        except _redis.RedisError as exc:
            if "connection closed" in str(exc):
                raise
            return exc

    def names(self, glob: bytes) -> list[str]:
        found: set[str] = set()
        cursor = "0"
        while True:
            cursor, part = self.call("SCAN", cursor, "MATCH", glob, "COUNT", 5000)
            found.update(part)
            if cursor == "0":
                return sorted(found)


def _matcher(pattern: str) -> re.Pattern[str]:
    text = re.escape(pattern)
    for name, inside in (("venue", "[^:]+"), ("symbol", ".+"), ("id", ".+")):
        text = text.replace(re.escape("{" + name + "}"), f"(?P<{name}>{inside})")
    return re.compile(text)


def _heads(keys: Keys) -> list[bytes]:
    """What the names begin with, before the first placeholder."""
    return [re.split(r"\{(?:venue|symbol|id)\}", pattern)[0].encode() for pattern in (keys.position_pattern, keys.order_pattern)]


def _glob(heads: Iterable[bytes]) -> bytes:
    """One for all of them: Redis goes through every key of the database, which should be done once."""
    return b"".join(b"[%b]" % b"".join(b"\\%c" % byte for byte in sorted(set(column))) for column in zip(*heads, strict=False)) + b"*"


def read(client: Connection, keys: Keys, own: re.Pattern[str]) -> Book:
    """All positions, and the orders whose id is one of ours."""
    client.call("SELECT", keys.db)
    positions: dict[tuple[str, str], Held] = {}
    orders: dict[str, Booked] = {}
    unreadable: dict[str, str] = {}
    raw: dict[str, dict[str, str]] = {}
    as_position, as_order = _matcher(keys.position_pattern), _matcher(keys.order_pattern)
    names = client.names(_glob(_heads(keys)))
    named = {key: match for key in names if (match := as_order.fullmatch(key))}
    ours = {key: match for key, match in named.items() if own.search(match["id"])}
    places = {key: match for key in names if (match := as_position.fullmatch(key))}
    wanted = [*places, *ours]
    for key, reply in zip(wanted, client.many([("HGETALL", key) for key in wanted]), strict=True):
        try:
            if isinstance(reply, Exception):
                raise BookError(str(reply))
            fields = dict(zip(reply[::2], reply[1::2], strict=True))
            if not fields:
                continue  # it went while the book was read
            raw[key] = fields
            if key in places:
                found = held(places[key]["venue"], places[key]["symbol"], fields)
                positions[found.venue, found.symbol] = found
            else:
                orders[ours[key]["id"]] = booked(ours[key]["id"], fields)
        except BookError as exc:
            unreadable[key] = str(exc)
    return Book(positions, orders, unreadable, len(named) - len(ours), raw)


class Watch:
    """Hears of every write to the book from here on, so that nobody need search all keys once more: client tracking in broadcasting mode, from Redis 6 on
    (https://redis.io/docs/latest/develop/reference/client-side-caching/)."""

    def __init__(self, conf: _redis.RedisConf, client: Connection, keys: Keys, timeout: float) -> None:
        self._ear = Connection.open(conf, timeout)
        self._hears = True
        try:
            number = self._ear.call("CLIENT", "ID")
            self._ear.call("SUBSCRIBE", "__redis__:invalidate")
            prefixes = [word for head in _heads(keys) for word in (b"PREFIX", head)]
            client.call("CLIENT", "TRACKING", "ON", "REDIRECT", number, "BCAST", *prefixes)
        except _redis.RedisError:
            self._hears = False

    def quiet(self) -> bool:
        """Whether certainly nothing was written. Never when the server cannot tell."""
        try:
            # what comes instead of the answer is a key that was written before
            return self._hears and self._ear.call("PING") == ["pong", ""]
        except _redis.RedisError:
            return False

    def close(self) -> None:
        self._ear.close()


def write(client: Connection, keys: Keys, book: Book, changes: Mapping[str, Mapping[str, str]]) -> None:
    """All changes or none, and none when a key is not any more what was read. Read back afterwards."""
    touched = sorted(changes)
    client.call("SELECT", keys.db)
    client.call("WATCH", *touched)
    try:
        for key in touched:
            if _fields(client, key) != book.raw.get(key, {}):
                raise BookError(f"{key} changed while it was reconciled: something still writes to the book")
        client.call("MULTI")
        for key in touched:
            client.call("HSET", key, *[word for pair in changes[key].items() for word in pair])
        done = client.call("EXEC")
        if done is None:
            raise BookError("the book changed while it was written: something still writes to it. Nothing was written")
    finally:
        client.call("UNWATCH")
    for key in touched:
        after = _fields(client, key)
        if {name: after.get(name) for name in changes[key]} != dict(changes[key]):
            raise BookError(f"{key} is not what was written")


def _fields(client: Connection, key: str) -> dict[str, str]:
    reply = client.call("HGETALL", key)
    return dict(zip(reply[::2], reply[1::2], strict=True))
