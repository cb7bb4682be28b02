# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""What every exchange can be asked, in one shape, and how strictly its answers are read.

A field that is missing, a list that is not there, a number that is none: the answer as a whole is unusable. Nothing is ever filled in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import hmac
import re
import time
import typing as t
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from urllib.parse import urlsplit

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _probe
from ansible_collections.titan.disaster_recovery.plugins.module_utils._venue_wire import Answer, Ask, Opener, VenueError, Wire

RECV_WINDOW = 5000
WEEK = 7 * 86400
# A list that does not end here does not end.
MAX_PAGES = 1000
_LONG = re.compile(r"[0-9A-Za-z+/=_-]{32,}")


class VenueSpecError(ValueError):
    """The exchange is described wrongly."""


@dataclasses.dataclass(frozen=True)
class Rights:
    """None: the exchange does not tell. `ips` empty: from any address."""

    can_trade: bool
    can_read: bool
    withdraw: bool | None
    ips: tuple[str, ...] | None
    expires: float | None


@dataclasses.dataclass(frozen=True)
class Instrument:
    tick: Decimal
    lot: Decimal
    status: str  # trading, or the exchange's own word


@dataclasses.dataclass(frozen=True)
class Account:
    balances: dict[str, Decimal]
    equity: Decimal
    settings: dict[str, dict[str, str]]  # of each symbol: leverage, margin (cross | isolated | portfolio), position_mode (one_way | hedge)


@dataclasses.dataclass(frozen=True)
class Order:
    id: str
    client_id: str
    symbol: str
    side: str  # buy | sell
    qty: Decimal
    filled: Decimal
    price: Decimal  # the average of what was filled, else the limit
    type: str  # market | limit | the exchange's own word, in lower case
    status: str  # open | filled | cancelled | rejected
    at: float


@dataclasses.dataclass(frozen=True)
class Position:
    size: Decimal  # signed: negative is short
    entry: Decimal
    mark: Decimal


@dataclasses.dataclass(frozen=True)
class Fill:
    id: str
    order_id: str
    client_id: str
    symbol: str
    side: str
    qty: Decimal
    price: Decimal
    fee: Decimal
    at: float


# --- reading answers strictly ----------------------------------------------------------------------------------------

Row = Mapping[str, t.Any]


class Unreadable(Exception):
    """What is wrong with an answer."""


def field(row: object, name: str) -> t.Any:
    if not isinstance(row, Mapping) or name not in row:
        raise Unreadable(f"{name} is missing in the answer")
    return row[name]


def rows(value: object, name: str) -> list[Row]:
    if not isinstance(value, list) or not all(isinstance(row, Mapping) for row in value):
        raise Unreadable(f"{name} is not a list of objects")
    return value


def text(row: Row, name: str) -> str:
    value = field(row, name)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise Unreadable(f"{name} is neither text nor a number")
    return str(value)


def word(row: Row, name: str) -> str:
    """A text that must not be empty."""
    value = text(row, name)
    if not value:
        raise Unreadable(f"{name} is empty")
    return value


def number(row: Row, name: str) -> Decimal:
    value = field(row, name)
    try:
        found = Decimal(str(value)) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else Decimal("NaN")
    except InvalidOperation:
        found = Decimal("NaN")
    if not found.is_finite():
        raise Unreadable(f"{name} is not a number")
    return found


def amount(row: Row, name: str) -> Decimal:
    """A number that is never negative."""
    found = number(row, name)
    if found < 0:
        raise Unreadable(f"{name} is negative")
    return found


def flag(row: Row, name: str) -> bool:
    value = field(row, name)
    if not isinstance(value, bool):
        raise Unreadable(f"{name} is neither true nor false")
    return value


def moment(row: Row, name: str) -> float:
    """Milliseconds of the exchange as epoch seconds."""
    value = number(row, name)
    if not 0 < value < Decimal(10**14):
        raise Unreadable(f"{name} is not a time in milliseconds")
    return float(value / 1000)


def iso(value: object) -> float:
    """A time such as 2026-01-02T03:04:05Z as epoch seconds."""
    try:
        found = datetime.fromisoformat(str(value))
    except ValueError:
        raise Unreadable("a time is not one of ISO 8601") from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def side(row: Row, name: str) -> str:
    value = text(row, name).lower()
    if value not in ("buy", "sell"):
        raise Unreadable(f"{name} is neither buy nor sell")
    return value


def chosen(row: Row, name: str, known: Mapping[str, str]) -> str:
    value = text(row, name)
    if value not in known:
        raise Unreadable(f"{name} {value[:40]!r} is not known")
    return known[value]


T = t.TypeVar("T")


def unique(items: Iterable[T], key: Callable[[T], object]) -> list[T]:
    """Pages that shift while they are read show an entry twice."""
    return list({key(item): item for item in items}.values())


# --- asking ---------------------------------------------------------------------------------------------------------


class Venue:
    """One exchange. Every method raises VenueError, ends within `timeout` seconds with all its pages, and may be used by several threads."""

    kind = ""

    def __init__(self, spec: Mapping[str, t.Any], timeout: float, opener: Opener | None = None, clock: Callable[[], float] = time.time) -> None:
        parts = urlsplit(str(spec.get("rest", "")))
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise VenueSpecError(f"exchange {spec.get('name')}: rest: must be an http or https address")
        self.name, self.symbols, self.timeout = str(spec["name"]), [str(symbol) for symbol in spec.get("symbols") or []], timeout
        self._rest, self._keys_spec, self._clock = str(spec["rest"]).rstrip("/"), spec.get("keys") or {}, clock
        self._opener: Opener = opener or Wire(str(spec.get("ca") or ""), spec.get("addresses") or [])
        self._keys: tuple[str, str] | None = None

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name}>"

    # what an exchange of this kind has to provide

    def server_time(self) -> float:
        raise NotImplementedError

    def _told_status(self, end: float) -> tuple[str, str]:
        """What its status page says."""
        raise NotImplementedError

    def _ping(self, end: float) -> None:
        raise NotImplementedError

    def rights(self) -> Rights:
        raise NotImplementedError

    def instruments(self) -> dict[str, Instrument]:
        raise NotImplementedError

    def account(self) -> Account:
        raise NotImplementedError

    def open_orders(self) -> list[Order]:
        raise NotImplementedError

    def positions(self) -> dict[str, Position]:
        """What it explicitly reports. A symbol that is not in it is unknown, not flat."""
        raise NotImplementedError

    def fills(self, since: float) -> list[Fill]:
        raise NotImplementedError

    def orders_since(self, since: float) -> list[Order]:
        """Orders that were created since then, open or not."""
        raise NotImplementedError

    def order(self, symbol: str, client_id: str) -> Order | None:
        """The order with this client id; None only when the exchange says that it knows none."""
        raise NotImplementedError

    def cancel_all(self) -> int:
        """Cancel every open order; the number of those that are gone afterwards."""
        raise NotImplementedError

    # what they have in common

    def status(self) -> tuple[str, str]:
        """Whether it is in maintenance, by its own word: ("ok" | "maintenance", text). Without a status page a ping is all that can be asked."""
        end = self._end()
        try:
            try:
                return self._told_status(end)
            except VenueError as exc:
                if exc.kind not in ("refused", "unusable", "key"):
                    raise
            self._ping(end)
        except VenueError as exc:
            if exc.kind != "maintenance":
                raise
            return "maintenance", exc.text
        return "ok", "answers, has no status page here"

    def _end(self) -> float:
        return time.monotonic() + self.timeout

    def keys(self) -> tuple[str, str]:
        """Key and secret, read when they are needed first: what is public can be asked without them."""
        if self._keys is None:
            path = str(self._keys_spec.get("file", ""))
            try:
                with open(path, "rb") as handle:
                    document = _probe.parse_body(handle.read())
            except OSError as exc:
                raise VenueError("key", f"{self.name}: the keys in {path} cannot be read: {exc.strerror}", "key_file") from None
            except ValueError:
                # the text of the error may quote the file
                raise VenueError("key", f"{self.name}: {path} is not usable JSON", "key_file") from None
            found = [_probe.lookup(document, str(self._keys_spec.get(name, ""))) for name in ("api_key", "api_secret")]
            if not all(isinstance(one, str) and one.isascii() and one.isprintable() and one.strip() for one in found):
                raise VenueError("key", f"{self.name}: {path} holds no key and secret where they are expected", "key_file")
            self._keys = (str(found[0]), str(found[1]))
        return self._keys

    def _sign(self, payload: str) -> str:
        return hmac.new(self.keys()[1].encode(), payload.encode(), hashlib.sha256).hexdigest()

    def _send(self, what: str, method: str, url: str, headers: dict[str, str], body: str | None, end: float) -> Answer:
        left = end - time.monotonic()
        if left <= 0:
            raise VenueError("network", f"{self.name}: {what}: not complete within {self.timeout:g} s", "http_silent")
        try:
            return self._opener(Ask(method, url, headers, body, left))
        except VenueError as exc:
            raise self._fault(exc.kind, what, exc.text, exc.cause) from None

    def _document(self, what: str, answer: Answer) -> t.Any:
        """The body, strictly; whatever the status is, the exchange speaks JSON."""
        if answer.status in (429, 418):
            raise self._fault("rate_limited", what, f"status {answer.status}, too many requests")
        try:
            return _probe.parse_body(answer.body)
        except ValueError:
            html = answer.body.lstrip()[:1] == b"<"
            seen = "HTML or XML" if html else "empty" if not answer.body.strip() else "not usable JSON"
            cause = "http_html" if html else f"http_{answer.status}" if answer.status >= 400 else "http_unusable"
            if answer.status == 401:
                raise VenueError("key", f"{self.name}: {what}: status 401") from None
            raise VenueError("unusable", f"{self.name}: {what}: the answer is {seen}, status {answer.status}", cause) from None

    def _fault(self, kind: str, what: str, said: str, cause: str = "") -> VenueError:
        return VenueError(kind, f"{self.name}: {what}: {self._clean(said)}", cause)

    def _clean(self, said: str) -> str:
        """Exchanges quote what they were sent, in parts even: no key, no secret and nothing that is as long as a signature goes out."""
        for secret in self._keys or ():
            said = said.replace(secret, "***")
        said = _LONG.sub("***", said)
        return "".join(char if char.isprintable() else "?" for char in said)[:200]

    @contextlib.contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """Around the reading of an answer."""
        try:
            yield
        except Unreadable as exc:
            raise VenueError("unusable", f"{self.name}: {what}: {self._clean(str(exc))}") from None
