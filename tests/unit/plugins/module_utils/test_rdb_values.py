# SPDX-License-Identifier: GPL-3.0-or-later
"""Values: what real servers write is accepted to its last byte, what their checkers reject is rejected, and some that they let pass."""

from __future__ import annotations

import collections
import mmap
import random
import struct
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

import rdb_writer as w
import servers
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb_format as f
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb_values
from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb_format import Corrupt
from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb_values import check, string

DUMP_TRAILER = 10  # of DUMP: RDB version and CRC64
SEED = 3
MUTATIONS = 40_000
BATCH = 100  # values a file: a checker that accepts it accepts them all


class Value(NamedTuple):
    server: str
    key: bytes
    kind: int
    data: bytes


def magic_of(server: str) -> str:
    return "VALKEY" if server.startswith("valkey") else "REDIS"


def dumped(server: servers.Server) -> Iterator[Value]:
    for key in server.client.scan_iter():
        payload = server.client.dump(key)
        assert isinstance(payload, bytes)
        yield Value(server.name, key, payload[0], payload[1:-DUMP_TRAILER])


def more(server: servers.Server) -> None:
    """What servers.fill leaves out: long elements, deleted stream entries in many nodes, many pending ones, field expiries in a table."""
    call = server.client.execute_command
    chance = random.Random(SEED)
    long = [chance.randbytes(size).hex() for size in (32, 64, 2000, 2048, 9000)]
    call("RPUSH", "long:list", *long, *long)
    call("HSET", "long:hash", *(part for text in long for part in (text, text)))
    call("SADD", "long:set", *long, *range(200), "-5", "007")
    call("ZADD", "long:zset", *(part for number, text in enumerate(long) for part in (f"{number}.5", text)), "-inf", "1", "1e300", "2", "5e-324", "3")
    call("CONFIG", "SET", "hash-max-ziplist-value", 100_000)
    call("HSET", "long:packed", *(part for text in long for part in (text, text)), 5, 6, "a", "b")
    call("CONFIG", "SET", "zset-max-ziplist-value", 100_000)
    call("ZADD", "long:packed-zset", *(part for number, text in enumerate(long) for part in (f"{number}.5", text)), 7, 8)
    for number in range(700):
        call("XADD", "stream:long", f"{1000 + number // 3}-{number % 3 + 1}", "n", number, "big", -(10**12) * number)
    call("XDEL", "stream:long", *(f"{1000 + number}-1" for number in range(0, 200, 7)))
    call("XGROUP", "CREATE", "stream:long", "g", "0")
    for consumer in ("one", "two", "one"):
        call("XREADGROUP", "GROUP", "g", consumer, "COUNT", 200, "STREAMS", "stream:long", ">")
    call("CONFIG", "SET", "hash-max-ziplist-entries", 4)
    if server.name == "8.2":
        call("HSET", "table:ttl", *(part for number in range(12) for part in (f"f{number}", number)))
        call("HEXPIRE", "table:ttl", 10**6, "FIELDS", 3, "f1", "f2", "f3")


@pytest.fixture(scope="module")
def values() -> list[Value]:
    found = []
    for name in servers.BINARIES:
        for compression in ("yes", "no"):
            with servers.running(name, rdbcompression=compression) as server:
                servers.fill(server.client)
                more(server)
                found += list(dumped(server))
    return found


def in_file(kind: int, server: str = "8.2") -> tuple[str, int, tuple[str, ...]]:
    """(magic, version, whose checkers know it) of a file with this value type."""
    if kind == f.HASH_2_VALKEY and magic_of(server) == "VALKEY":
        return "VALKEY", f.VALKEY, ("valkey-9.1",)
    if kind <= f.STREAM_LISTPACKS_2:
        return "REDIS", 10, ("7.0", "8.2", "valkey-9.1")
    if kind <= f.STREAM_LISTPACKS_3:
        return "REDIS", 11, ("8.2", "valkey-9.1")
    return "REDIS", 12, ("8.2",)


def checkers_reject(tmp_path: Path, kind: int, data: bytes) -> set[str]:
    magic, version, names = in_file(kind)
    path = tmp_path / "one.rdb"
    path.write_bytes(w.rdb(w.select(0), w.key(b"k", kind, data), version=version, magic=magic))
    return {name for name in names if not servers.check(name, path).ok}


# --- what is good


def test_every_value_of_every_server_ends_where_it_ends(values: list[Value]) -> None:
    for value in values:
        assert check(value.kind, value.data + b"more", 0, magic_of(value.server)) == len(value.data), value
    assert {value.kind for value in values} == {0, 2, 4, 5, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 24, 25}


def test_the_same_in_a_mapped_file(values: list[Value], tmp_path: Path) -> None:
    path = tmp_path / "values"
    path.write_bytes(b"".join(value.data for value in values))
    at = 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for value in values:
            at = check(value.kind, mapped, at, magic_of(value.server))
        assert at == len(mapped)


def test_a_value_that_the_buffer_cuts_is_no_fault_of_the_value(values: list[Value]) -> None:
    for value in values:
        for size in {0, 1, len(value.data) // 2, len(value.data) - 1} - {len(value.data)}:
            with pytest.raises(IndexError):
                check(value.kind, value.data[:size], 0, magic_of(value.server))


def test_strings_decode_to_what_the_server_gives() -> None:
    with servers.running("7.0") as server:
        servers.fill(server.client, kinds=("string",))
        for value in dumped(server):
            assert string(value.data, 0) == (server.client.get(value.key), len(value.data))


def test_hashes_of_one_kind_have_a_pattern_of_their_own_and_are_held_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(SEED)
    data = w.string(w.listpack(["id", 70000, "side", "buy", "price", "41000.5", "size", 3]))
    faulty = [mutated(chance, data, [data]) for dummy in range(3000)]
    before = [accepted(f.HASH_LISTPACK, each) for each in faulty]
    monkeypatch.setattr(_rdb_values, "_SHAPES", {})
    monkeypatch.setattr(_rdb_values, "_SHAPES_MET", {})
    for dummy in range(_rdb_values._SHAPE_WORTH):
        assert accepted(f.HASH_LISTPACK, data)
    assert len(_rdb_values._SHAPES) == 1
    assert accepted(f.HASH_LISTPACK, w.string(w.listpack(["id", -1, "side", "x" * 63, "price", "", "size", 10**12])))
    assert accepted(f.HASH_LISTPACK, w.string(w.listpack(["id", 1, "hide", "buy", "price", "41000.5", "size", "y" * 700])))
    assert [accepted(f.HASH_LISTPACK, each) for each in faulty] == before


ZIPMAP = b"\x02\x03foo\x04\x02bar!??\x05field\x00\x00\xff"
ZIPLIST_INTEGERS = b"\x00\xf1\x02\xfd\x02\xfe\x80\x03\xc0\x00\x80\x04\xf0\x00\x00\x80\x05\xd0\x00\x00\x00\x80\x06\xe0" + bytes(7) + b"\x80"
ZIPLIST_WIDE = b"\x00\xc0\x05\x00\x04\x01x\xfe\x03\x00\x00\x00\xc0\x01\x00\x08\x80\x00\x00\x00\x02yz"  # as Redis 2.4 and a cascade leave it


def raw_ziplist(entries: bytes, count: int, last: int) -> bytes:
    return struct.pack("<IIH", 11 + len(entries), 10 + len(entries) - last, count) + entries + b"\xff"


# written by versions of which there is no server here
OLD = [
    pytest.param(f.LIST, w.counted(["a", "", "b" * 70, "a"]), id="list"),
    pytest.param(f.SET, w.length(3) + w.string("a") + w.integer(5) + w.integer(-70000), id="set"),
    pytest.param(f.ZSET, w.text_scores([("a", "1.5"), ("b", "-inf"), ("c", "inf"), ("d", "-3e+20")]), id="zset"),
    pytest.param(f.HASH_ZIPMAP, w.string(ZIPMAP), id="zipmap"),
    pytest.param(f.HASH_ZIPMAP, w.string(b"\x01\x04name" + b"\xfe\x2c\x01\x00\x00\x00" + b"v" * 300 + b"\xff"), id="zipmap of long lengths"),
    pytest.param(f.LIST_ZIPLIST, w.string(w.ziplist(["a", "b" * 62, "c" * 300, "d"])), id="ziplist"),
    pytest.param(f.LIST_ZIPLIST, w.string(raw_ziplist(ZIPLIST_INTEGERS, 7, 10)), id="ziplist of integers"),
    pytest.param(f.HASH_ZIPLIST, w.string(raw_ziplist(ZIPLIST_WIDE, 4, 8)), id="ziplist of 2.4"),
    pytest.param(f.ZSET_ZIPLIST, w.string(w.ziplist(["m", "1.5", "n", "2"])), id="ziplist of scores"),
    pytest.param(f.LIST_QUICKLIST, w.length(2) + w.string(w.ziplist(["a"])) + w.string(w.ziplist([])), id="quicklist with an empty node"),
    pytest.param(
        f.HASH_METADATA_PRE_GA, w.length(2) + w.length(0) + w.string("a") + w.string("b") + w.length(servers.FAR) + w.string("c") + w.string("d"), id="22"
    ),
    pytest.param(f.HASH_LISTPACK_EX_PRE_GA, w.string(w.listpack(["a", 1, servers.FAR, "b", 2, 0])), id="23"),
    pytest.param(
        f.MODULE_2,
        w.module_value(parts=[w.module_uint(5), b"\x01\x05", b"\x03" + bytes(4), b"\x04" + bytes(8), w.module_string("s")]),
        id="module",
    ),
]


@pytest.mark.parametrize(("kind", "data"), OLD)
def test_values_of_versions_that_are_gone(kind: int, data: bytes, tmp_path: Path) -> None:
    assert check(kind, data + b"more", 0, "REDIS") == len(data)
    assert not checkers_reject(tmp_path, kind, data)


# --- what is not

Id = tuple[int, int]
IDS = [(5, 1), (6, 1), (6, 2)]


def raw_id(each: Id) -> bytes:
    return struct.pack(">QQ", *each)


def node(
    ids: Sequence[Id], dead: Sequence[Id] = (), *, count: int | None = None, deleted: int | None = None, fields: int = 1, flags: int = 2, size: int = 0
) -> bytes:
    """A node of a stream with one field; the rest are ways to make it wrong."""
    items: list[int | str] = [len(ids) - len(dead) if count is None else count, len(dead) if deleted is None else deleted, fields, "field", 0]
    for each in ids:
        items += [flags | (each in dead), each[0] - ids[0][0], each[1] - ids[0][1], "value", 4 + size]
    return w.string(raw_id(ids[0])) + w.string(w.listpack(items))


def stream(*nodes: bytes, length: int = 3, last: Id = IDS[-1], groups: Sequence[bytes] = ()) -> bytes:
    numbers = (length, *last, 5, 1, 0, 0, length, len(groups))
    return w.length(len(nodes)) + b"".join(nodes) + b"".join(map(w.length, numbers)) + b"".join(groups)


def group(pending: Sequence[Id], consumers: Sequence[tuple[str, Sequence[Id]]], name: str = "g") -> bytes:
    entries = b"".join(raw_id(each) + bytes(8) + w.length(1) for each in pending)
    owned = b"".join(w.string(who) + bytes(8) + w.length(len(own)) + b"".join(map(raw_id, own)) for who, own in consumers)
    return w.string(name) + b"".join(map(w.length, (6, 2, 3, len(pending)))) + entries + w.length(len(consumers)) + owned


def plain_hash(*fields: bytes) -> bytes:
    return w.length(len(fields)) + b"".join(field + w.string("v") for field in fields)


EVERY = {"7.0", "8.2", "valkey-9.1"}
NAN = float("nan")
GOOD_NODE = node(IDS)
DEEP = w.listpack(["m", "1", "n", 2])

# (type, value, code, whose checkers reject it too): what they let pass is here because no server writes it, and reading it goes wrong
FAULTS = {
    "no LZF": (f.STRING, w.lzf(b"", b"\x00a"), "corrupt-value", set()),
    "LZF too short": (f.STRING, w.lzf(b"abc", b"\x01ab"), "corrupt-value", EVERY),
    "LZF too long": (f.STRING, w.lzf(b"abc", b"\x03abcd"), "corrupt-value", EVERY),
    "LZF cut": (f.STRING, w.lzf(b"abcd", b"\x03abc"), "corrupt-value", EVERY),
    "LZF before its start": (f.STRING, w.lzf(b"aaaa", b"\x00a\x20\x01"), "corrupt-value", EVERY),
    "string encoding 4": (f.STRING, b"\xc4abc", "corrupt-value", EVERY),
    "length 0x82": (f.STRING, b"\x82abc", "bad-length", EVERY),
    "empty list": (f.LIST, w.counted([]), "empty-container", EVERY),
    "empty set": (f.SET, w.counted([]), "empty-container", EVERY),
    "empty hash": (f.HASH, w.pairs([]), "empty-container", EVERY),
    "empty zset": (f.ZSET_2, w.scores([]), "empty-container", EVERY),
    "empty set listpack": (f.SET_LISTPACK, w.string(w.listpack([])), "empty-container", EVERY - {"7.0"}),
    "empty hash listpack": (f.HASH_LISTPACK, w.string(w.listpack([])), "empty-container", EVERY),
    "empty zset listpack": (f.ZSET_LISTPACK, w.string(w.listpack([])), "empty-container", EVERY),
    "empty quicklist": (f.LIST_QUICKLIST_2, w.quicklist2([]), "empty-container", EVERY),
    "quicklist of an empty node": (f.LIST_QUICKLIST_2, w.quicklist2([(2, w.listpack([]))]), "empty-container", EVERY),
    "old quicklist of empty nodes": (f.LIST_QUICKLIST, w.length(1) + w.string(w.ziplist([])), "empty-container", EVERY),
    "empty list ziplist": (f.LIST_ZIPLIST, w.string(w.ziplist([])), "empty-container", EVERY),
    "set twice": (f.SET, w.counted(["a", "b", "a"]), "duplicate-member", EVERY),
    "set twice, in two encodings": (f.SET, w.length(2) + w.string("5") + w.integer(5), "duplicate-member", EVERY),
    "set twice, compressed": (f.SET, w.length(2) + w.string("a" * 40) + w.lzf(b"a" * 40), "duplicate-member", EVERY),
    "hash twice": (f.HASH, plain_hash(w.string("a"), w.string("b"), w.string("a")), "duplicate-member", EVERY),
    "hash twice, in two encodings": (f.HASH, plain_hash(w.integer(700), w.string("700")), "duplicate-member", EVERY),
    "zset twice": (f.ZSET_2, w.scores([("a", 1), ("a", 2)]), "duplicate-member", EVERY),
    "old zset twice": (f.ZSET, w.text_scores([("a", "1"), ("a", "2")]), "duplicate-member", EVERY),
    "set listpack twice": (f.SET_LISTPACK, w.string(w.listpack(["a", "b", "a"])), "duplicate-member", EVERY - {"7.0"}),
    "set listpack twice, in two encodings": (f.SET_LISTPACK, w.string(w.listpack(["5", "b", 5])), "duplicate-member", EVERY - {"7.0"}),
    "hash listpack twice": (f.HASH_LISTPACK, w.string(w.listpack(["a", 1, "a", 2])), "duplicate-member", EVERY),
    "hash listpack twice, long": (f.HASH_LISTPACK, w.string(w.listpack(["a" * 70, 1, "a" * 70, 2])), "duplicate-member", EVERY),
    "zset listpack twice": (f.ZSET_LISTPACK, w.string(w.listpack(["a", 1, "a", 2])), "duplicate-member", EVERY),
    "hash ziplist twice": (f.HASH_ZIPLIST, w.string(w.ziplist(["a", "1", "a", "2"])), "duplicate-member", EVERY),
    "zipmap twice": (f.HASH_ZIPMAP, w.string(b"\x02" + b"\x01a\x01\x00v" * 2 + b"\xff"), "duplicate-member", EVERY),
    "zset NaN": (f.ZSET_2, w.scores([("a", 1), ("b", NAN)]), "corrupt-value", EVERY),
    "old zset NaN": (f.ZSET, w.text_scores([("a", "nan")]), "corrupt-value", EVERY),
    "old zset text": (f.ZSET, w.text_scores([("a", "x")]), "corrupt-value", EVERY),
    "zset listpack score is text": (f.ZSET_LISTPACK, w.string(w.listpack(["m", "price"])), "corrupt-value", set()),
    "zset listpack score is nan": (f.ZSET_LISTPACK, w.string(w.listpack(["m", "nan"])), "corrupt-value", None),
    "zset listpack score has a line end": (f.ZSET_LISTPACK, w.string(w.listpack(["m", "1\n2"])), "corrupt-value", set()),
    "zset listpack score is empty": (f.ZSET_LISTPACK, w.string(w.listpack(["m", ""])), "corrupt-value", set()),
    "zset listpack out of order": (f.ZSET_LISTPACK, w.string(w.listpack(["m", 2, "n", "1.5"])), "corrupt-value", set()),
    "zset ziplist out of order": (f.ZSET_ZIPLIST, w.string(w.ziplist(["m", "2", "n", "1.5"])), "corrupt-value", set()),
    "odd hash": (f.HASH_LISTPACK, w.string(w.listpack(["a", 1, "b"])), "corrupt-value", EVERY),
    "odd zset": (f.ZSET_LISTPACK, w.string(w.listpack(["a", 1, "b"])), "corrupt-value", EVERY),
    "odd hash ziplist": (f.HASH_ZIPLIST, w.string(w.ziplist(["a", "1", "b"])), "corrupt-value", EVERY),
    "listpack count": (f.HASH_LISTPACK, w.string(w.listpack(["a", 1], count=4)), "corrupt-value", EVERY),
    "listpack size": (f.HASH_LISTPACK, w.string(w.listpack(["a", 1], size=14)), "corrupt-value", EVERY),
    "listpack end": (f.HASH_LISTPACK, w.string(w.listpack(["a", 1], end=b"\xfe")), "corrupt-value", EVERY),
    "listpack too short": (f.HASH_LISTPACK, w.string(b"\x06\x00\x00\x00\x00\x00"), "corrupt-value", EVERY),
    "listpack back length": (f.ZSET_LISTPACK, w.string(DEEP.replace(b"\x81m\x02", b"\x81m\x03")), "corrupt-value", EVERY),
    "listpack long back length": (f.LIST_QUICKLIST_2, w.quicklist2([(2, w.listpack(["x" * 200]).replace(b"x\x01\xca", b"x\x01\xcb"))]), "corrupt-value", EVERY),
    "listpack entry 0xf5": (f.ZSET_LISTPACK, w.string(DEEP.replace(b"\x81m\x02", b"\xf5m\x02")), "corrupt-value", EVERY),
    "listpack entry beyond the end": (f.ZSET_LISTPACK, w.string(DEEP.replace(b"\x02\x01\xff", b"\x82\x01\xff")), "corrupt-value", EVERY),
    "fault inside LZF": (f.ZSET_LISTPACK, w.lzf(DEEP.replace(b"\x81m\x02", b"\x81m\x03")), "corrupt-value", EVERY),
    "quicklist node of kind 3": (f.LIST_QUICKLIST_2, w.quicklist2([(3, w.listpack(["a"]))]), "corrupt-value", EVERY),
    "quicklist empty plain node": (f.LIST_QUICKLIST_2, w.quicklist2([(2, w.listpack(["a"])), (1, b"")]), "corrupt-value", EVERY),
    "quicklist empty packed node": (f.LIST_QUICKLIST_2, w.quicklist2([(2, w.listpack(["a"])), (2, w.listpack([]))]), "corrupt-value", set()),
    "intset order": (f.SET_INTSET, w.string(w.intset([1, 3, 2])), "corrupt-value", EVERY),
    "intset twice": (f.SET_INTSET, w.string(w.intset([1, 2, 2])), "corrupt-value", EVERY),
    "intset width": (f.SET_INTSET, w.string(b"\x03" + w.intset([1, 2])[1:]), "corrupt-value", EVERY),
    "intset count": (f.SET_INTSET, w.string(w.intset([1, 2], count=3)), "corrupt-value", EVERY),
    "empty intset": (f.SET_INTSET, w.string(w.intset([])), "corrupt-value", EVERY),
    "ziplist count": (f.LIST_ZIPLIST, w.string(w.ziplist(["a", "b"], count=3)), "corrupt-value", EVERY),
    "ziplist tail": (f.LIST_ZIPLIST, w.string(w.ziplist(["a", "b"], tail=10)), "corrupt-value", EVERY),
    "ziplist size": (f.LIST_ZIPLIST, w.string(w.ziplist(["a", "b"], size=12)), "corrupt-value", EVERY),
    "ziplist length before": (f.LIST_ZIPLIST, w.string(w.ziplist(["a", "b"]).replace(b"\x03\x01b", b"\x02\x01b")), "corrupt-value", EVERY),
    "ziplist entry 0xff": (f.LIST_ZIPLIST, w.string(w.ziplist(["a", "b"]).replace(b"\x01b", b"\xffb")), "corrupt-value", EVERY),
    "zipmap count": (f.HASH_ZIPMAP, w.string(b"\x03" + ZIPMAP[1:]), "corrupt-value", EVERY),
    "zipmap end": (f.HASH_ZIPMAP, w.string(ZIPMAP[:-1] + b"\x00"), "corrupt-value", EVERY),
    "zipmap length too long": (f.HASH_ZIPMAP, w.string(b"\x01\xfe\x01\x00\x00\x00a\x01\x00v\xff"), "corrupt-value", EVERY),
    "zipmap beyond the end": (f.HASH_ZIPMAP, w.string(b"\x01\x01a\x7f\x00v\xff"), "corrupt-value", EVERY),
    "module item 6": (f.MODULE_2, w.module_value(parts=[b"\x06"]), "corrupt-value", set()),
    "field expiry beyond all": (f.HASH_METADATA, bytes(8) + w.length(1) + w.length(1 << 60) + w.string("a") + w.string("b"), "corrupt-value", {"8.2"}),
    "field expiry is text": (f.HASH_LISTPACK_EX, bytes(8) + w.string(w.listpack(["a", 1, "x"])), "corrupt-value", {"8.2"}),
    "field expiries out of order": (f.HASH_LISTPACK_EX, bytes(8) + w.string(w.listpack(["a", 1, 9, "b", 2, 8])), "corrupt-value", {"8.2"}),
    "field expiry after none": (f.HASH_LISTPACK_EX, bytes(8) + w.string(w.listpack(["a", 1, 0, "b", 2, 8])), "corrupt-value", {"8.2"}),
    "field without expiry": (f.HASH_LISTPACK_EX, bytes(8) + w.string(w.listpack(["a", 1])), "corrupt-value", {"8.2"}),
    "field twice": (f.HASH_LISTPACK_EX, bytes(8) + w.string(w.listpack(["a", 1, 8, "a", 2, 0])), "duplicate-member", {"8.2"}),
    "stream length": (f.STREAM_LISTPACKS_2, stream(GOOD_NODE, length=4), "corrupt-value", {"valkey-9.1"}),
    "stream length without nodes": (f.STREAM_LISTPACKS_2, stream(length=1), "corrupt-value", EVERY),
    "stream node count": (f.STREAM_LISTPACKS_2, stream(node(IDS, count=2), length=2), "corrupt-value", EVERY),
    "stream deleted count": (f.STREAM_LISTPACKS_2, stream(node(IDS, IDS[1:2], count=3, deleted=0)), "corrupt-value", {"valkey-9.1"}),
    "stream fields": (f.STREAM_LISTPACKS_2, stream(node(IDS, fields=2)), "corrupt-value", EVERY),
    "stream negative fields": (f.STREAM_LISTPACKS_2, stream(node(IDS, fields=-1)), "corrupt-value", EVERY),
    "stream entry size": (f.STREAM_LISTPACKS_2, stream(node(IDS, size=1)), "corrupt-value", EVERY),
    "stream unknown flags": (f.STREAM_LISTPACKS_2, stream(node(IDS, flags=6)), "corrupt-value", set()),
    "stream ids out of order": (f.STREAM_LISTPACKS_2, stream(node([IDS[0], IDS[2], IDS[1]])), "corrupt-value", set()),
    "stream nodes out of order": (f.STREAM_LISTPACKS_2, stream(node(IDS[2:]), node(IDS[:2])), "corrupt-value", set()),
    "stream node twice": (f.STREAM_LISTPACKS_2, stream(GOOD_NODE, GOOD_NODE, length=6), "corrupt-value", EVERY),
    "stream node id of 8 bytes": (f.STREAM_LISTPACKS_2, stream(w.string(bytes(8)) + GOOD_NODE[17:]), "corrupt-value", EVERY),
    "stream empty node": (f.STREAM_LISTPACKS_2, stream(w.string(raw_id((1, 1))) + w.string(w.listpack([])), length=0), "corrupt-value", EVERY),
    "stream last id before an entry": (f.STREAM_LISTPACKS_2, stream(GOOD_NODE, last=IDS[0]), "corrupt-value", set()),
    "group twice": (f.STREAM_LISTPACKS_2, stream(GOOD_NODE, groups=[group([], [])] * 2), "duplicate-member", EVERY),
    "consumer twice": (f.STREAM_LISTPACKS_2, stream(GOOD_NODE, groups=[group([], [("c", [])] * 2)]), "duplicate-member", EVERY),
    "pending without consumer": (f.STREAM_LISTPACKS_2, stream(GOOD_NODE, groups=[group(IDS, [("c", IDS[:2])])]), "corrupt-value", EVERY),
    "pending not in the group": (f.STREAM_LISTPACKS_2, stream(GOOD_NODE, groups=[group(IDS[:2], [("c", IDS)])]), "corrupt-value", EVERY),
    "other pending than the group": (f.STREAM_LISTPACKS_2, stream(GOOD_NODE, groups=[group(IDS[:2], [("c", IDS[1:])])]), "corrupt-value", EVERY),
    "pending of two consumers": (
        f.STREAM_LISTPACKS_2,
        stream(GOOD_NODE, groups=[group(IDS[:1], [("c", IDS[:1]), ("d", IDS[:1])])]),
        "corrupt-value",
        EVERY - {"8.2"},
    ),
    "pending twice": (f.STREAM_LISTPACKS_2, stream(GOOD_NODE, groups=[group(IDS[:1] * 2, [("c", IDS[:1] * 2)])]), "corrupt-value", EVERY),
    "group delivery count": (
        f.STREAM_LISTPACKS_2,
        stream(GOOD_NODE, groups=[group(IDS[:1], []).replace(bytes(8) + b"\x01", bytes(8) + b"\x82")]),
        "bad-length",
        EVERY,
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_no_server_writes(name: str, tmp_path: Path) -> None:
    kind, data, code, rejecting = FAULTS[name]
    with pytest.raises(Corrupt) as caught:
        check(kind, data + bytes(20), 0, "REDIS")
    assert caught.value.code == code
    assert 0 <= caught.value.at < len(data)
    if rejecting is not None:
        assert checkers_reject(tmp_path, kind, data) == rejecting


def test_the_faults_differ_from_what_is_good() -> None:
    good = [group(IDS, [("c", IDS[:1]), ("d", IDS[1:])]), group([], [("c", [])], name="h")]
    assert accepted(f.STREAM_LISTPACKS_2, stream(GOOD_NODE, groups=good))
    assert accepted(f.STREAM_LISTPACKS_2, stream(node(IDS[:2], IDS[:1]), node(IDS[2:]), length=2))
    assert accepted(f.STREAM_LISTPACKS_2, stream(length=0, groups=[group([], [])]))
    assert accepted(f.ZSET_LISTPACK, w.string(DEEP))
    assert accepted(f.ZSET_LISTPACK, w.lzf(DEEP))
    assert accepted(f.STRING, w.lzf(b"aaaa", b"\x00a\x20\x00"))
    assert accepted(f.HASH_LISTPACK_EX, bytes(8) + w.string(w.listpack(["a", 1, 8, "b", 2, 8, "c", 3, 0])))


def test_a_type_is_one_of_its_family() -> None:
    expiring = w.length(1) + w.string("a") + w.string("b") + struct.pack("<q", -1)
    assert check(f.HASH_2_VALKEY, expiring, 0, "VALKEY") == len(expiring)
    with pytest.raises(Corrupt):
        check(f.HASH_2_VALKEY, expiring[:-8] + struct.pack("<q", -2), 0, "VALKEY")
    assert not accepted(f.HASH_2_VALKEY, expiring)
    for kind, magic in ((f.HASH_METADATA, "VALKEY"), (f.MODULE_PRE_GA, "REDIS"), (8, "REDIS"), (26, "REDIS")):
        with pytest.raises(Corrupt) as caught:
            check(kind, bytes(100), 0, magic)
        assert caught.value.code == "unsupported-type"


# --- large ones


@pytest.mark.parametrize("kind", [f.SET, f.ZSET_2, f.HASH])
def test_a_member_that_stands_twice_far_apart_in_a_large_container(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rdb_values, "_EXACT", 100)
    tail = {f.SET: b"", f.ZSET_2: struct.pack("<d", 1.5), f.HASH: w.string("v" * 70)}[kind]
    members = [w.string(f"member {number}") for number in range(20_000)] + [w.string("m" * 100), w.integer(7)]
    good = w.length(len(members)) + b"".join(member + tail for member in members)
    assert accepted(kind, good)
    for twice in (members[0], members[10_000], members[-1], members[-2], w.string("7")):
        with pytest.raises(Corrupt) as caught:
            check(kind, w.length(len(members) + 1) + good[5:] + twice + tail, 0, "REDIS")
        assert caught.value.code == "duplicate-member"


def test_an_intset_is_in_order_over_all_of_its_length() -> None:
    numbers = list(range(0, 400_000, 2))
    assert accepted(f.SET_INTSET, w.string(w.intset(numbers, width=8)))
    for place in (8192, 8191, 199_999):
        assert not accepted(f.SET_INTSET, w.string(w.intset([*numbers[:place], numbers[place - 1], *numbers[place + 1 :]], width=8)))


def test_a_giant_value_is_not_copied(tmp_path: Path) -> None:
    giant = 16 << 20
    noise = random.Random(SEED).randbytes(1 << 16) * (giant >> 16)
    repeated = b"\x00a" + b"\xe0\xff\x00" * ((giant - 1) // 264)
    cases = [
        (f.STRING, w.string(noise)),
        (f.STRING, w.lzf(b"a" * (1 + (giant - 1) // 264 * 264), repeated)),
        (f.LIST_QUICKLIST_2, w.quicklist2([(1, noise)])),
        (f.HASH, w.pairs([(noise, noise)])),
        (f.HASH_LISTPACK, w.string(w.listpack([noise, noise]))),
        (f.LIST_QUICKLIST, w.length(1) + w.string(raw_ziplist(b"\x00\x80" + struct.pack(">I", len(noise)) + noise, 1, len(noise) + 6))),
        (f.SET_INTSET, w.string(w.intset(range(giant // 8), width=8))),
    ]
    path = tmp_path / "giant"
    for kind, data in cases:
        path.write_bytes(data)
        size = len(data)
        del data
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            tracemalloc.start()
            assert check(kind, mapped, 0, "REDIS") == size
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
            tracemalloc.stop()


def test_a_count_that_cannot_be_reserves_nothing() -> None:
    for kind in (f.LIST, f.SET, f.ZSET, f.HASH, f.ZSET_2, f.LIST_QUICKLIST_2, f.STREAM_LISTPACKS_2):
        tracemalloc.start()
        with pytest.raises((Corrupt, IndexError)):
            check(kind, b"\x81\x00\x00\x01" + bytes(5) + w.string("a") * 5, 0, "REDIS")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()


# --- mutations, the checkers as the judges


def mutated(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    at = chance.randrange(len(changed))
    size = chance.randint(1, 8)
    match chance.choice(("bit", "bit", "byte", "byte", "next", "zero", "delete", "double", "swap", "splice")):
        case "bit":
            changed[at] ^= 1 << chance.randrange(8)
        case "byte":
            changed[at] = chance.randrange(256)
        case "next":
            changed[at] = (changed[at] + chance.choice((-1, 1))) % 256
        case "zero":
            changed[at : at + 16] = bytes(len(changed[at : at + 16]))
        case "delete":
            del changed[at : at + size]
        case "double":
            changed[at:at] = changed[at : at + size]
        case "swap":
            other = chance.randrange(len(changed))
            changed[at], changed[other] = changed[other], changed[at]
        case "splice":
            source = chance.choice(others)
            begin = chance.randrange(len(source))
            changed[at : at + size] = source[begin : begin + size]
    return bytes(changed)


def accepted(kind: int, data: bytes, magic: str = "REDIS") -> bool:
    try:
        return check(kind, data, 0, magic) == len(data)
    except (Corrupt, IndexError):
        return False


def rejected_by(name: str, path: Path, magic: str, version: int, batch: list[Value]) -> list[Value]:
    keys = (w.key(f"{number}", value.kind, value.data) for number, value in enumerate(batch))
    path.write_bytes(w.rdb(w.select(0), *keys, version=version, magic=magic, crc=False))  # without a checksum the values alone decide
    if servers.check(name, path).ok:
        return []
    if len(batch) == 1:
        return batch
    half = len(batch) // 2
    return rejected_by(name, path, magic, version, batch[:half]) + rejected_by(name, path, magic, version, batch[half:])


def test_no_mutated_value_is_accepted_that_a_checker_rejects(values: list[Value], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(SEED)
    kinds: dict[int, list[Value]] = collections.defaultdict(list)
    for value in values:
        if len(value.data) < 4000:
            kinds[value.kind].append(value)
    for param in OLD:
        kinds[param.values[0]].append(Value("8.2", b"", *param.values))
    sources = [value.data for every in kinds.values() for value in every]
    counts: collections.Counter[tuple[int, bool]] = collections.Counter()
    kept: dict[tuple[str, int, tuple[str, ...]], list[Value]] = collections.defaultdict(list)
    for number in range(MUTATIONS):
        value = chance.choice(kinds[sorted(kinds)[number % len(kinds)]])
        data = mutated(chance, value.data, sources)
        if data == value.data:
            continue
        taken = accepted(value.kind, data, magic_of(value.server))
        counts[value.kind, taken] += 1
        if taken:
            kept[in_file(value.kind, value.server)].append(value._replace(data=data))
    print("\ntype  mutated  accepted")
    for kind in sorted(kinds):
        print(f"{kind:4} {counts[kind, True] + counts[kind, False]:8} {counts[kind, True]:9}")
    missed = []
    for (magic, version, names), mutants in kept.items():
        for name in names:
            for first in range(0, len(mutants), BATCH):
                missed += [(name, value) for value in rejected_by(name, tmp_path / "batch.rdb", magic, version, mutants[first : first + BATCH])]
    print(f"accepted here and rejected by a checker: {len(missed)} of {sum(counts.values())}")
    assert not missed
