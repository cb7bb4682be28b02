# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _book, _redis
from ansible_collections.titan.disaster_recovery.plugins.module_utils._book import BookError, Connection, Keys

D = Decimal
OWN = re.compile("^t-")
KEYS = Keys.parse({"db": 1, "position": "titan:positions:{venue}:{symbol}", "order": "titan:orders:{id}"})
ORDER = {"venue": "b", "symbol": "BTCUSDT", "side": "buy", "qty": "0.5", "price": "50000", "status": "filled", "createdAt": "1767225600123"}
POSITION = {"side": "short", "size": "0.5", "entryPrice": "50000.5"}


@pytest.fixture
def client(redis_server: Any) -> Connection:
    server = redis_server()
    found = Connection.open(server.conf, 5.0)
    found.call("SELECT", 1)
    return found


def put(client: Connection, key: str, fields: dict[str, str]) -> None:
    client.call("HSET", key, *[word for pair in fields.items() for word in pair])


@pytest.mark.parametrize("spec", [{}, {"position": "p:{venue}", "order": "o:{id}"}, {"position": "p:{venue}:{symbol}", "order": "o"}])
def test_patterns_that_name_nothing(spec: dict[str, str]) -> None:
    with pytest.raises(BookError, match="must name"):
        Keys.parse(spec)


def test_what_a_record_says() -> None:
    found = _book.booked("t-1", ORDER)
    assert (found.qty, found.at, found.counted) == (D("0.5"), 1767225600.123, D("0.5"))
    assert _book.booked("t-1", {**ORDER, "status": "pending"}).counted == 0
    assert _book.booked("t-1", {**ORDER, "status": "pending", "filled": "0.2"}).counted == D("0.2")
    assert _book.held("b", "S", POSITION).size == D("-0.5")
    assert _book.held("b", "S", {"side": "flat", "size": "0", "entryPrice": "0"}).size == 0


@pytest.mark.parametrize("change", [
    {"venue": ""}, {"symbol": ""}, {"side": "long"}, {"qty": "x"}, {"qty": "-1"}, {"price": "NaN"}, {"status": "done"}, {"createdAt": ""}, {"filled": "y"},
])  # fmt: skip
def test_orders_that_cannot_be_read(change: dict[str, str]) -> None:
    with pytest.raises(BookError):
        _book.booked("t-1", {**ORDER, **change})


@pytest.mark.parametrize("fields", [
    {}, {"side": "long", "size": "0", "entryPrice": "1"}, {"side": "flat", "size": "1", "entryPrice": "1"}, {"side": "up", "size": "1", "entryPrice": "1"},
    {"side": "long", "size": "Infinity", "entryPrice": "1"}, {"side": "long", "size": "1"},
])  # fmt: skip
def test_positions_that_cannot_be_read(fields: dict[str, str]) -> None:
    with pytest.raises(BookError):
        _book.held("b", "S", fields)


def test_numbers_are_written_plainly() -> None:
    assert [_book.plain(D(text)) for text in ("0.500", "1E+2", "0E-8", "-0.10", "1E-7")] == ["0.5", "100", "0", "-0.1", "0.0000001"]
    assert _book.position_fields(D("-0.50"), D("50000.10")) == {"side": "short", "size": "0.5", "entryPrice": "50000.1"}
    assert _book.position_fields(D(0), D(7)) == {"side": "flat", "size": "0", "entryPrice": "0"}


def test_reading(client: Connection) -> None:
    put(client, "titan:positions:b:BTCUSDT", POSITION)
    put(client, "titan:positions:y:BTC:PERP", {"side": "flat", "size": "0", "entryPrice": "0"})
    put(client, "titan:positions:b:BAD", {"side": "long"})
    client.call("SET", "titan:positions:b:WRONG", "a string")
    for number in range(1200):  # more than one batch
        put(client, f"titan:orders:t-{number}", {**ORDER, "createdAt": str(1767225600000 + number)})
    put(client, "titan:orders:drill-1", {"x": "1"})
    put(client, "titan:orders:t-bad", {"x": "1"})
    client.call("SET", "titan:other", "1")
    book = _book.read(client, KEYS, OWN)
    assert book.positions[("b", "BTCUSDT")].size == D("-0.5") and book.positions[("y", "BTC:PERP")].size == 0
    assert (len(book.orders), book.others, book.newest()) == (1200, 1, 1767225601.199)
    assert book.unreadable.keys() == {"titan:positions:b:BAD", "titan:positions:b:WRONG", "titan:orders:t-bad"}
    assert "WRONGTYPE" in book.unreadable["titan:positions:b:WRONG"]
    assert client.call("PING") == "PONG", "an error in the middle leaves the connection usable"


@pytest.mark.parametrize(("position", "order"), [
    ("titan:positions:{venue}:{symbol}", "titan:orders:{id}"), ("p{venue}:{symbol}", "{id}"), ("t[a-z]*\\é^:{venue}:{symbol}", "t[a-z]?-ö]:{id}"),
    ("{titan}:p:{venue}:{symbol}", "{titan}:o:{id}"),
])  # fmt: skip
def test_one_search_finds_positions_and_orders(client: Connection, position: str, order: str) -> None:
    keys = Keys.parse({"db": 1, "position": position, "order": order})
    put(client, keys.position("b", "BTCUSDT"), POSITION)
    put(client, keys.order("t-1"), ORDER)
    client.call("SET", "tz:other", "1")
    client.call("CONFIG", "RESETSTAT")
    book = _book.read(client, keys, OWN)
    assert (book.positions.keys(), book.orders.keys(), book.unreadable) == ({("b", "BTCUSDT")}, {"t-1"}, {})
    assert client.info("commandstats")["cmdstat_scan"].startswith("calls=1,")


def test_an_empty_book(client: Connection) -> None:
    book = _book.read(client, KEYS, OWN)
    assert (book.positions, book.orders, book.unreadable, book.newest()) == ({}, {}, {}, None)


def watch(server: Any, client: Connection, keys: Keys = KEYS) -> _book.Watch:
    return _book.Watch(server.conf, client, keys, 5.0)


@pytest.mark.parametrize("command", [
    ("HSET", "titan:orders:t-2", "status", "pending"), ("HSET", "titan:orders:t-1", "status", "rejected"), ("DEL", "titan:orders:t-1"),
    ("SET", "titan:positions:b:NEW", "1"), ("RENAME", "titan:orders:t-1", "elsewhere"), ("FLUSHALL",), ("EVAL", "redis.call('SET', 'titan:orders:x', 1)", "0"),
])  # fmt: skip
def test_a_watch_hears_of_every_write_to_the_book(redis_server: Any, command: tuple[str, ...]) -> None:
    server = redis_server()
    one, other = (Connection.open(server.conf, 5.0) for dummy in range(2))
    for connection in (one, other):
        connection.call("SELECT", 1)
    put(one, "titan:orders:t-1", ORDER)
    heard = watch(server, one)
    other.call("SET", "titan:other", "1")
    _book.read(one, KEYS, OWN)
    assert heard.quiet() and heard.quiet()
    other.call(*command)
    assert not heard.quiet()


def test_a_watch_that_cannot_hear_is_never_quiet(redis_server: Any) -> None:
    mute = redis_server(rename_command='CLIENT ""')
    assert not watch(mute, Connection.open(mute.conf, 5.0)).quiet()
    server = redis_server()
    client = Connection.open(server.conf, 5.0)
    overlapping = Keys.parse({"position": "titan:{venue}:{symbol}", "order": "titan:orders:{id}"})
    assert not watch(server, client, overlapping).quiet()
    cut = watch(server, client)
    assert cut.quiet()
    client.call("CLIENT", "KILL", "TYPE", "pubsub")
    assert not cut.quiet()


def test_writing(client: Connection) -> None:
    put(client, "titan:orders:t-1", {**ORDER, "status": "pending", "signalId": "s"})
    book = _book.read(client, KEYS, OWN)
    changes = {KEYS.order("t-1"): {"status": "filled"}, KEYS.order("t-2"): ORDER, KEYS.position("b", "BTCUSDT"): POSITION}
    _book.write(client, KEYS, book, changes)
    after = _book.read(client, KEYS, OWN)
    assert after.orders["t-1"].status == "filled" and after.raw[KEYS.order("t-1")]["signalId"] == "s"
    assert after.orders["t-2"].qty == D("0.5") and after.positions[("b", "BTCUSDT")].size == D("-0.5")


@pytest.mark.parametrize("key", ["titan:orders:t-1", "titan:positions:b:BTCUSDT"])
def test_a_book_that_moved_is_not_written(client: Connection, redis_server: Any, key: str) -> None:
    put(client, "titan:orders:t-1", ORDER)
    book = _book.read(client, KEYS, OWN)
    put(client, key, {"qty": "9"} if "orders" in key else POSITION)
    with pytest.raises(BookError, match="something still writes"):
        _book.write(client, KEYS, book, {"titan:orders:t-1": {"status": "rejected"}, "titan:positions:b:BTCUSDT": {"side": "flat"}})
    assert client.call("HGET", "titan:orders:t-1", "status") == "filled"


def test_a_write_in_the_last_moment_undoes_all(client: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    put(client, "titan:orders:t-1", ORDER)
    book = _book.read(client, KEYS, OWN)
    other = Connection.open(_redis.parse_conf(f"unixsocket {client._socket.getpeername()}\nport 0\n"), 5.0)
    other.call("SELECT", 1)
    called = client.call

    def call(*words: Any) -> Any:
        if words[0] == "MULTI":
            put(other, "titan:orders:t-1", {"qty": "9"})
        return called(*words)

    monkeypatch.setattr(client, "call", call)
    with pytest.raises(BookError, match="Nothing was written"):
        _book.write(client, KEYS, book, {"titan:orders:t-1": {"status": "rejected"}, "titan:orders:t-2": ORDER})
    assert client.call("EXISTS", "titan:orders:t-2") == 0


def test_a_server_that_went_away(client: Connection) -> None:
    client.close()
    with pytest.raises((_redis.RedisError, OSError, ValueError)):
        _book.read(client, KEYS, OWN)
