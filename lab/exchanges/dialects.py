# SPDX-License-Identifier: GPL-3.0-or-later
"""What the two venues' ways of talking have in common. Pure: a Call in, a Reply out."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol
from urllib.parse import parse_qsl

from venue import OrderRequest, Venue

WEEK_MS = 7 * 86400 * 1000


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
    body: Any  # text is sent as it is
    error: str = ""  # why a request was refused, for the order log


class Refused(Exception):
    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.error)
        self.reply = reply


class Dialect(Protocol):
    ws_path: str
    position_paths: tuple[str, ...]  # where positions are told

    def order_request(self, call: Call) -> OrderRequest | None:
        """The order that a call asks for, read leniently (for the log); None when it does not place an order."""

    def answer(self, call: Call, venue: Venue, now: float) -> Reply:
        """`now` is the venue's own clock."""

    def rate_limited(self, status: int) -> Reply: ...
    def tick(self, venue: Venue, symbol: str, now: float) -> dict[str, Any]: ...
    def ws_answer(self, message: Any) -> dict[str, Any] | None: ...


def milliseconds(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def in_window(sent: int, window: int, now: float) -> bool:
    return -1000 < now * 1000 - sent <= window


def number(value: Decimal) -> str:
    return format(value, "f")


def unrealised(venue: Venue, now: float) -> Decimal:
    return sum((p.size * (venue.price(symbol, now) - p.entry_price) for symbol, p in venue.positions.items()), Decimal(0))


def margin(venue: Venue, now: float) -> Decimal:
    return sum((abs(p.size) * venue.price(symbol, now) / Decimal(venue.setting(symbol).leverage) for symbol, p in venue.positions.items()), Decimal(0))
