# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rdb_writer as w
import servers
from ansible_collections.titan.disaster_recovery.plugins.module_utils import (
    _crc64,
    _rdb_feed,
    _rdb_format,
    _rdb_part,
    _rdb_report,
    _rdb_values,
    _rdb_walk,
)
from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb_format import Corrupt

NOW = 1_800_000_000.0
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
VALUE = w.string("v")

Walk = Callable[..., _rdb_report.Contents]


@pytest.fixture
def walk(tmp_path: Path) -> Walk:
    def run(data: bytes, **options: Any) -> _rdb_report.Contents:
        path = tmp_path / "dump.rdb"
        path.write_bytes(data)
        return _rdb_walk.walk(str(path), **{"now": NOW, **options})

    return run


def codes(contents: _rdb_report.Contents) -> list[str]:
    return [finding.code for finding in contents.findings]


def strings(*names: str | bytes) -> bytes:
    return b"".join(w.key(name, _rdb_format.STRING, VALUE) for name in names)


# --- a good file ---------------------------------------------------------------------------------------------------------


def test_tells_everything(walk: Walk) -> None:
    at = int(NOW * 1000)
    library = "#!lua name=lib\n"
    data = w.rdb(
        w.aux("redis-ver", "7.4.0"),
        bytes([_rdb_format.OP_AUX]) + w.string("ctime") + w.integer(1_700_000_000),
        bytes([_rdb_format.OP_AUX]) + w.string("folded") + w.lzf(b"a" * 100),
        w.function(library),
        w.module_aux("graphdata"),
        w.select(0),
        w.resize(4, 2),
        w.slot_info(5, 4, 2),
        w.key("order:1", _rdb_format.STRING, VALUE),
        w.key("order:2", _rdb_format.HASH, w.pairs([("a", "b")]), at_ms=at + HOUR),
        w.key("order:old", _rdb_format.STRING, VALUE, at_s=int(NOW) - 1),
        w.idle(100_000) + w.key("plain", _rdb_format.STRING, w.integer(70_000)),
        w.select(7),
        w.resize(2, 0),
        w.freq(3)
        + w.key("graph:x", _rdb_format.MODULE_2, w.module_value("graphdata", [w.module_uint(1), w.module_string("x"), b"\x04" + bytes(8), b"\x03" + bytes(4)])),
        w.key("l", _rdb_format.LIST_QUICKLIST_2, w.quicklist2([(2, w.listpack(["a", 1])), (1, b"x" * 9000)])),
        version=12,
    )
    contents = walk(data)
    assert contents.findings == []
    assert (contents.size, contents.magic, contents.version, contents.checksum) == (len(data), "REDIS", 12, "ok")
    assert contents.aux == {"redis-ver": "7.4.0", "ctime": "1700000000", "folded": "a" * 100}
    assert contents.taken_at == 1_700_000_000
    assert contents.keyspace == {"db0": {"keys": 4, "expires": 2}, "db7": {"keys": 2, "expires": 0}}
    assert contents.types == {"string": 3, "hash": 1, "module": 1, "list": 1}
    assert contents.encodings == {0: 3, 4: 1, 7: 1, 18: 1}
    assert contents.classes["order"] == {"keys": 3, "expires": 2, "expired": 1}
    assert contents.classes["plain"] == {"keys": 1, "expires": 0, "expired": 0}
    assert (contents.expiry, contents.expired) == ({"expired": 1, "1d": 1}, 1)
    assert contents.modules == {"graphdata": 2}
    ((offset, size),) = contents.functions
    assert data[offset : offset + size] == w.string(library)
    assert contents.samples == [(0, b"order:1"), (0, b"plain"), (7, b"graph:x"), (7, b"l")]


@pytest.mark.parametrize("name", servers.BINARIES)
@pytest.mark.parametrize("compression", ["yes", "no"])
def test_real_dumps(name: str, compression: str, walk: Walk) -> None:
    with servers.running(name, rdbcompression=compression) as server:
        servers.fill(server.client)
        data, keyspace = server.dump(), server.keyspace()
        types: dict[str, int] = {}
        for database in keyspace:
            server.client.execute_command("SELECT", database.removeprefix("db"))
            for key in server.client.scan_iter(count=1000):
                kind = server.client.type(key).decode()
                types[kind] = types.get(kind, 0) + 1
    contents = walk(data, now=time.time(), values=_rdb_values.check, duplicates=True)
    assert contents.findings == []
    assert contents.checksum == "ok"
    assert contents.keyspace == keyspace
    assert contents.types == types
    assert contents.version == servers.RDB_VERSIONS[name]
    assert walk(data, now=time.time()).keyspace == keyspace


def test_expiry_by_time_to_live(walk: Walk) -> None:
    at = int(NOW * 1000)
    times = [-5, at - 1, at, at + MINUTE - 1, at + MINUTE, at + HOUR, at + DAY, at + 30 * DAY, at + 300 * DAY]
    contents = walk(w.rdb(*(w.key(f"k{number}", 0, VALUE, at_ms=when) for number, when in enumerate(times))))
    assert contents.expiry == {"expired": 2, "1m": 2, "1h": 1, "1d": 1, "30d": 1, "later": 2}
    assert contents.keyspace == {"db0": {"keys": 9, "expires": 9}}


def test_keys_of_every_form(walk: Walk) -> None:
    long = b"long:" + b"x" * 100_000
    names = [b"", b":a", b"a:b:c", b"\xff\x00", b"m" * 64, b"m" * 16_383, b"n:" + b"m" * 20_000, long]
    parts = [w.key(name, 0, VALUE) for name in names]
    parts += [bytes([0]) + w.integer(-70_000) + VALUE, bytes([0]) + w.lzf(b"folded:" + b"y" * 200) + VALUE]
    contents = walk(w.rdb(*parts), duplicates=True)
    assert contents.findings == []
    assert contents.keyspace["db0"]["keys"] == len(parts)
    assert {"", "a:b", "\\xff\x00", "m" * 64, "n", "-70000", "folded"} <= contents.classes.keys()
    assert sum(counts["keys"] for counts in contents.classes.values()) == len(parts)
    # what stands for a very long key is no key that could be asked for
    assert b"n:" + b"m" * 20_000 in {key for dummy, key in contents.samples} <= {*names, b"-70000", b"folded:" + b"y" * 200} - {long}


# --- damage ---------------------------------------------------------------------------------------------------------------

BIG = 1 << 40


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        pytest.param(b"", ["not-rdb"], id="empty"),
        pytest.param(b"REDI", ["truncated"], id="part-of-the-magic"),
        pytest.param(b"REDIS0010", ["truncated"], id="header-alone"),
        pytest.param(b"\x1f\x8b" + bytes(50), ["not-rdb"], id="gzip"),
        pytest.param(w.rdb(version=0), ["not-rdb"], id="version-0"),
        pytest.param(w.rdb(version=11, magic="VALKEY"), ["not-rdb"], id="valkey-11"),
        pytest.param(w.rdb(strings("a"))[:-1], ["truncated"], id="footer-cut"),
        pytest.param(w.rdb(strings("a"), crc=b""), ["truncated"], id="no-footer"),
        pytest.param(w.rdb(strings("a"), crc=b"", eof=b""), ["truncated"], id="no-eof"),
        pytest.param(w.rdb(strings("a"))[:14], ["truncated"], id="inside-a-value"),
        pytest.param(w.rdb(strings("a" * 40), w.key("a", 0, w.length(50) + b"x" * 20)), ["truncated"], id="value-beyond-the-end"),
        pytest.param(w.rdb(w.key("a", 1, w.length(3) + VALUE * 2), eof=b"", crc=b""), ["truncated"], id="list-beyond-the-end"),
        pytest.param(w.rdb(w.expire_ms(5)[:4], eof=b"", crc=b""), ["truncated"], id="expiry-cut"),
        pytest.param(w.rdb(strings("a"), tail=b"x" * 100), ["trailing-bytes"], id="trailing"),
        pytest.param(w.rdb(strings("a")) + w.rdb(strings("b")), ["trailing-bytes"], id="two-files"),
        pytest.param(w.rdb(strings("a"), crc=b"12345678"), ["checksum-mismatch"], id="wrong-checksum"),
        pytest.param(w.rdb(strings("a"), crc=False), ["checksum-disabled"], id="checksum-off"),
        pytest.param(w.rdb(strings("a"), crc=b"", version=4), ["checksum-absent"], id="version-4"),
        pytest.param(w.rdb(strings("a"), crc=b"", version=4, tail=b"x"), ["checksum-absent", "trailing-bytes"], id="version-4-trailing"),
        pytest.param(w.rdb(w.select(0), w.resize(2, 0), strings("a")), ["count-mismatch"], id="a-key-lost"),
        pytest.param(w.rdb(w.select(0), w.resize(1, 1), strings("a")), ["count-mismatch"], id="an-expiry-lost"),
        pytest.param(w.rdb(w.select(0), w.resize(1, 0), strings("a"), w.select(1), strings("b")), [], id="second-database-without-announcement"),
        pytest.param(w.rdb(w.expire_ms(5)), ["dangling-expiry"], id="expiry-at-the-end"),
        pytest.param(w.rdb(w.expire_s(5), w.select(1), strings("a")), ["dangling-expiry"], id="expiry-before-select"),
        pytest.param(w.rdb(w.idle(5)), ["dangling-expiry"], id="idle-at-the-end"),
        pytest.param(w.rdb(w.freq(5) + w.freq(6) + strings("a")), ["dangling-expiry"], id="two-hints"),
        pytest.param(w.rdb(w.expire_ms(5) + w.key("a", 0, VALUE, at_s=1)), ["dangling-expiry"], id="two-expiries"),
        pytest.param(w.rdb(w.key("a", 0, w.length(BIG))), ["bad-length"], id="huge-string"),
        pytest.param(w.rdb(w.key("a", 4, w.length(1 << 62))), ["bad-length"], id="huge-count"),
        pytest.param(w.rdb(b"\0" + w.length(BIG) + VALUE), ["bad-length"], id="huge-key"),
        pytest.param(w.rdb(w.key("a", 0, b"\xc3" + w.length(BIG) + w.length(5) + b"x")), ["bad-length"], id="huge-lzf"),
        pytest.param(w.rdb(w.key("a", 0, b"\x82xxxxxxxx")), ["bad-length"], id="no-length"),
        pytest.param(w.rdb(w.key("a", 0, b"\xc4")), ["bad-length"], id="unknown-string-encoding"),
        pytest.param(w.rdb(b"\xfe\xc0\x00" + strings("a")), ["bad-length"], id="encoded-database"),
        pytest.param(w.rdb(w.key("a", 6, VALUE)), ["bad-opcode"], id="pre-release-module"),
        pytest.param(w.rdb(w.key("a", 16, VALUE), version=9), ["bad-opcode"], id="type-of-a-newer-version"),
        pytest.param(w.rdb(w.key("a", 24, VALUE), version=11), ["bad-opcode"], id="hash-metadata-in-11"),
        pytest.param(w.rdb(w.key("a", 24, VALUE), version=80, magic="VALKEY"), ["bad-opcode"], id="redis-type-in-valkey"),
        pytest.param(w.rdb(w.function("x"), version=9), ["bad-opcode"], id="opcode-of-a-newer-version"),
        pytest.param(w.rdb(w.key("a", 30, VALUE)), ["unsupported-type"], id="type-30"),
        pytest.param(w.rdb(w.key("a", 243, VALUE)), ["unsupported-type"], id="type-243"),
        pytest.param(
            w.rdb(b"\xf6" + w.string("lib") + w.string("LUA") + b"\1" + w.string("what") + w.string("code")), ["unsupported-type"], id="function-of-7.0-rc"
        ),
        pytest.param(
            w.rdb(b"\xf6" + w.string("lib") + w.string("LUA") + b"\0" + w.string("code"), strings("a")), ["unsupported-type"], id="the-same-undescribed"
        ),
        pytest.param(w.rdb(w.key("a", 23, w.string(w.listpack(["f", "v", 0]))), version=12), ["unsupported-type"], id="pre-release-hash"),
        pytest.param(w.rdb(w.key("a", 7, w.module_value(parts=[b"\x09"]))), ["corrupt-value"], id="module-field"),
        pytest.param(w.rdb(b"\0" + b"\xc3" + w.length(2) + w.length(9) + b"\xff\xff" + VALUE), ["corrupt-value"], id="key-not-to-be-unpacked"),
    ],
)
def test_damage(data: bytes, wanted: list[str], walk: Walk) -> None:
    contents = walk(data)
    assert codes(contents) == wanted
    assert all(finding.offset is not None for finding in contents.findings if finding.code not in ("checksum-absent", "unreadable"))


def test_damage_before_a_good_checksum_is_told_with_key_and_offset(walk: Walk) -> None:
    data = w.rdb(strings("first"), w.key("order:7", 0, b"\xc4"), strings("last"))
    contents = walk(data)
    (finding,) = contents.findings
    assert (finding.key, finding.database, finding.offset) == ("order:7", 0, data.index(b"\xc4"))
    assert contents.checksum == "ok"  # it was written like this


def test_every_cut_is_seen(walk: Walk) -> None:
    data = w.rdb(w.aux("a", "b"), w.function("x"), w.select(0), w.key("k", 0, VALUE, at_ms=5), w.freq(1) + w.key("z", 5, w.scores([("m", 1.0)])))
    for size in range(len(data)):
        assert _rdb_report.verdict(walk(data[:size]).findings) == "fail", size
    assert walk(data).findings == []


def test_every_changed_bit_is_seen(walk: Walk) -> None:
    data = w.rdb(w.select(0), w.resize(1, 1), w.key("key", 0, VALUE, at_ms=5))
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        assert _rdb_report.verdict(walk(bytes(changed)).findings) != "pass", bit


@pytest.mark.parametrize("version", [13, 15, 99])
def test_newer_version_is_never_called_corrupt(version: int, walk: Walk) -> None:
    told = walk(w.rdb(w.aux("redis-ver", "8.6.0"), w.select(0), w.key("a", 26, b"\xff\xff"), version=version))
    assert codes(told) == ["unsupported-version"]
    assert (told.aux, told.keyspace, told.checksum) == ({"redis-ver": "8.6.0"}, {}, "ok")
    read = walk(w.rdb(w.select(0), strings("a"), version=version, crc=b"12345678"))
    assert codes(read) == ["unsupported-version"]
    assert (read.keyspace, read.checksum) == ({"db0": {"keys": 1, "expires": 0}}, "unknown")
    assert codes(walk(w.rdb(strings("a"), version=version, magic="REDIS" if version > 80 else "VALKEY")))[:1] == ["unsupported-version"]


def test_without_checksum(walk: Walk) -> None:
    contents = walk(w.rdb(strings("a"), crc=b"12345678"), crc=False)
    assert (codes(contents), contents.checksum) == ([], "unknown")
    assert walk(w.rdb(strings("a"), crc=False), crc=False).checksum == "disabled"


def test_checksum_of_what_precedes_trailing_bytes(walk: Walk) -> None:
    assert walk(w.rdb(strings("a"), tail=b"x" * 100)).checksum == "ok"
    contents = walk(w.rdb(strings("a"), crc=b"12345678", tail=b"x" * 100))
    assert (codes(contents), contents.checksum) == (["trailing-bytes", "checksum-mismatch"], "mismatch")
    assert "another RDB file" in walk(w.rdb() + w.rdb()).findings[0].text


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "forbidden"])
def test_unreadable(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "forbidden":
        path.write_bytes(w.rdb())
        monkeypatch.setattr(os, "pread", lambda *arguments: exec("raise OSError(5, 'Input/output error')"))
    assert codes(_rdb_walk.walk(str(path), now=NOW)) == ["unreadable"]


def test_file_that_is_being_written(walk: Walk, tmp_path: Path) -> None:
    def grow(kind: int, buf: Any, at: int, magic: str) -> int:
        with (tmp_path / "dump.rdb").open("ab") as handle:
            handle.write(b"more")
        return _rdb_values.check(kind, buf, at, magic)

    assert codes(walk(w.rdb(strings("a")), values=grow)) == ["unreadable"]


# --- values ---------------------------------------------------------------------------------------------------------------


def test_bad_values_are_told_and_the_walk_goes_on(walk: Walk) -> None:
    data = w.rdb(strings("a"), w.key("h", 16, w.string(b"broken")), w.key("z", 5, w.scores([("m", float("nan"))]), at_ms=5), strings("b"))
    contents = walk(data, values=_rdb_values.check)
    assert [(finding.code, finding.key, finding.database) for finding in contents.findings] == [("corrupt-value", "h", 0), ("corrupt-value", "z", 0)]
    assert all(data.index(b"broken") - 1 <= (finding.offset or 0) < len(data) for finding in contents.findings)
    assert contents.keyspace == {"db0": {"keys": 4, "expires": 1}}


@pytest.mark.parametrize(
    ("answer", "text"),
    [(lambda after: after + 1, "ends elsewhere"), (lambda after: exec("raise IndexError"), "too early")],
)
@pytest.mark.parametrize("size", [5, 3_000_000])
def test_validator_that_does_not_arrive(answer: Callable[[int], int], text: str, size: int, walk: Walk) -> None:
    contents = walk(w.rdb(w.key("a", 0, w.string(b"x" * size)), crc=False), values=lambda kind, buf, at, magic: answer(_rdb_values.check(kind, buf, at, magic)))
    assert codes(contents) == ["corrupt-value", "checksum-disabled"]
    assert text in contents.findings[0].text


def test_offset_of_a_fault_in_a_big_value(walk: Walk) -> None:
    data = w.rdb(strings(*(f"k{number}" for number in range(1000))), w.key("big", 1, w.counted([b"x" * 1_000_000] * 3 + [b"here"])), crc=False)

    def find(kind: int, buf: Any, at: int, magic: str) -> int:
        after = _rdb_values.check(kind, buf, at, magic)
        if kind == 1:
            raise Corrupt("corrupt-value", "found", after - 4)
        return after

    assert walk(data, values=find).findings[0].offset == data.index(b"here")


def test_many_findings_are_counted_not_cut(walk: Walk) -> None:
    data = w.rdb(*(w.key(f"k{number}", 16, w.string(b"broken")) for number in range(150)), w.expire_ms(1))
    contents = walk(data, values=_rdb_values.check)
    assert len(contents.findings) == 101
    assert contents.findings[-1] == _rdb_report.Finding("corrupt-value", "more findings than are told one by one: 50 corrupt-value, 1 dangling-expiry")


# --- duplicates -----------------------------------------------------------------------------------------------------------


def test_duplicate_keys(walk: Walk) -> None:
    data = w.rdb(w.select(1), strings("a", "b"), w.select(2), strings("a", "c"), w.key("c", 0, VALUE, at_ms=5), w.select(1), w.key("b", 2, w.counted(["x"])))
    contents = walk(data, duplicates=True)
    assert [(finding.code, finding.key, finding.database) for finding in contents.findings] == [("duplicate-key", "b", 1), ("duplicate-key", "c", 2)]
    offsets = [finding.offset for finding in contents.findings]
    assert offsets == [data.rindex(b"\x02\x01b"), data.index(b"\xfc")]
    assert walk(data).findings == []


def test_equal_hashes_are_no_duplicates(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rdb_part, "hash", lambda key: -len(key), raising=False)
    names = [f"k{number}" for number in range(3000)]
    assert walk(w.rdb(strings(*names)), duplicates=True).findings == []
    assert [finding.key for finding in walk(w.rdb(strings(*names, "k17")), duplicates=True).findings] == ["k17"]


def test_very_many_duplicates(walk: Walk) -> None:
    contents = walk(w.rdb(strings(*(f"k{number}" for number in range(1500) for dummy in range(2)))), duplicates=True)
    assert codes(contents) == ["duplicate-key"] * 101
    assert "901 duplicate-key" in contents.findings[-1].text
    assert walk(w.rdb(strings("k") * 5000), duplicates=True).findings == [
        _rdb_report.Finding("duplicate-key", "it stands at offsets 9 and 14 of the file", 14, "k", 0)
    ]


# --- parts ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork for files of a few hundred kB already, with windows to match."""
    for name, value in {"_PART": 1 << 15, "_PIECE": 1 << 15, "_PROBE": 1 << 12}.items():
        monkeypatch.setattr(_rdb_walk, name, value)
    for name, value in {"ALONE": 1 << 15, "_WINDOW": 1 << 14}.items():
        monkeypatch.setattr(_rdb_part, name, value)


def trading(seed: int, entries: int = 6000) -> bytes:
    """Keys of all layouts in several databases, with big values between them."""
    chance = random.Random(seed)
    at = int(NOW * 1000)
    parts = [w.aux("redis-ver", "7.0.15"), w.function("#!lua name=x\n")]
    for database in (0, 3, 9):
        keys = []
        expires = 0
        for number in range(entries // 3):
            name = f"{chance.choice(['order', 'position', 'a:b'])}:{database}:{number}" if chance.random() < 0.9 else f"single{number}"
            kind, value = chance.choice(
                [
                    (0, w.string(chance.randbytes(chance.randrange(80)))),
                    (0, w.integer(chance.randrange(1 << 31))),
                    (0, w.lzf(chance.randbytes(chance.randrange(1, 400)))),
                    (16, w.string(w.listpack(["f", number, "g", "x" * chance.randrange(60)]))),
                    (2, w.counted([f"m{member}" for member in range(chance.randrange(1, 30))])),
                    (4, w.pairs([(f"f{field}", "v" * field) for field in range(chance.randrange(1, 90))])),
                    (5, w.scores([(f"m{member}", 1.5) for member in range(chance.randrange(1, 9))])),
                    (18, w.quicklist2([(2, w.listpack(["a", 1]))])),
                ]
            )
            if chance.random() < 0.002:
                kind, value = 0, w.string(chance.randbytes(40_000))
            expiry = at + chance.randrange(-DAY, 90 * DAY) if chance.random() < 0.3 else None
            expires += expiry is not None
            hint = chance.choice([b"", b"", w.freq(9), w.idle(chance.choice([1, 100, 100_000]))])
            keys.append((b"" if expiry is None else w.expire_ms(expiry)) + hint + w.key(name, kind, value))
        parts += [w.select(database), w.resize(len(keys), expires), *keys]
    body = b"REDIS0010" + b"".join(parts) + b"\xff"
    return body + _crc64.crc64(body).to_bytes(8, "little")


@pytest.mark.usefixtures("small_parts")
class TestParts:
    @pytest.mark.parametrize("seed", range(5))
    def test_the_number_of_processes_changes_nothing(self, seed: int, walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
        data = trading(seed)
        joined = []
        join = _rdb_walk._join
        monkeypatch.setattr(_rdb_walk, "_join", lambda total, part: joined.append(part.start) or join(total, part))
        alone = walk(data, jobs=1)
        assert not joined
        for jobs in (2, 3):
            assert walk(data, jobs=jobs, duplicates=True, values=_rdb_values.check) == alone
        assert len(joined) > 8  # guesses were right: the walk was really done in parts
        assert alone.findings == []
        assert 100 < len(alone.samples) <= 257

    def test_wrong_guesses_change_nothing(self, walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
        data = trading(1)
        alone = walk(data, jobs=1)
        right = _rdb_walk._borders
        chance = random.Random(2)
        for borders in (
            [len(data) // 2],
            sorted(chance.sample(range(10, len(data)), 15)),
            [9 + 1, len(data) - 1],
        ):
            monkeypatch.setattr(_rdb_walk, "_borders", lambda job, parts, borders=borders: borders)
            assert walk(data, jobs=2, duplicates=True) == alone
        monkeypatch.setattr(_rdb_walk, "_borders", lambda job, parts: sorted({*right(job, parts), len(data) // 3, len(data) // 3 + 1}))
        assert walk(data, jobs=2) == alone

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize(("jobs", "checkers"), [(1, 1), (1, 2), (2, 3)])
    def test_what_checkers_are_fed(self, seed: int, jobs: int, checkers: int, walk: Walk, tmp_path: Path) -> None:
        """Together all keys but those with long plain strings, whole; each an RDB file that a checker accepts."""
        data = trading(seed)
        files = [tmp_path / f"fed{number}" for number in range(checkers)]
        programs, feeds = [], []
        for file in files:
            programs.append(subprocess.Popen(["/bin/sh", "-c", f"exec cat > {file}"], stdin=subprocess.PIPE))
            stdin = programs[-1].stdin
            assert stdin
            feeds.append(_rdb_feed.Feed(stdin.fileno(), time.monotonic() + 30))
        contents = walk(data, jobs=jobs, duplicates=True, feeds=feeds)
        for process in programs:
            process.communicate()
        assert contents.fed and contents == dataclasses.replace(walk(data, jobs=1), fed=True)
        found = [_rdb_walk.walk(str(file), now=NOW, jobs=1, values=_rdb_values.check) for file in files]
        assert {code for part in found for code in codes(part)} == {"checksum-disabled", "count-mismatch"}, "whole, but not all"
        long = contents.encodings[0] - sum(part.encodings.get(0, 0) for part in found)
        assert long > 0, "they are left out"
        for kind, count in contents.encodings.items():
            assert kind == 0 or sum(part.encodings.get(kind, 0) for part in found) == count
        assert sum(file.stat().st_size for file in files) < len(data) - long * 30_000
        for file in files:
            assert servers.check("7.0", file).ok

    def test_a_checker_that_goes_away(self, walk: Walk) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        data = trading(1)
        contents = walk(data, jobs=1, feeds=[_rdb_feed.Feed(writer, time.monotonic() + 30)])
        os.close(writer)
        assert not contents.fed and contents == walk(data, jobs=1)

    def test_dumps_inside_of_values_deceive_nobody(self, walk: Walk) -> None:
        inner = trading(3, 300)
        body = b"REDIS0010" + b"".join(w.key(f"backup:{number}", 0, w.string(inner)) for number in range(8)) + b"\xff"
        contents = walk(body + _crc64.crc64(body).to_bytes(8, "little"), jobs=2)
        assert contents.findings == []
        assert contents.keyspace == {"db0": {"keys": 8, "expires": 0}}

    @pytest.mark.parametrize("filler", [b"\0", b"\x01", b"\xff", b"\x00\x01a\x01b"])
    def test_monotonous_values(self, filler: bytes, walk: Walk) -> None:
        data = w.rdb(strings("a"), w.key("big", 0, w.string(filler * (400_000 // len(filler)))), strings("b"), crc=False)
        contents = walk(data, jobs=2)
        assert (codes(contents), contents.keyspace["db0"]["keys"]) == (["checksum-disabled"], 3)

    def test_duplicates_across_parts(self, walk: Walk) -> None:
        data = trading(4)
        cut = len(data) - 9
        body = (
            data[:cut] + strings("order:9:0x") * 2 + w.select(3) + strings("twice") + w.select(0) + strings("twice") + w.select(3) + strings("twice") + b"\xff"
        )
        contents = walk(body + _crc64.crc64(body).to_bytes(8, "little"), jobs=2, duplicates=True)
        found = {(finding.code, finding.key, finding.database) for finding in contents.findings if finding.code == "duplicate-key"}
        assert found == {("duplicate-key", "order:9:0x", 9), ("duplicate-key", "twice", 3)}

    @pytest.mark.parametrize("seed", range(20))
    def test_damage_is_told_the_same(self, seed: int, walk: Walk) -> None:
        chance = random.Random(seed)
        data = bytearray(trading(seed % 3, 1500))
        at = chance.randrange(len(data) - 8)
        data[at : at + 4] = chance.randbytes(4)
        alone = walk(bytes(data), jobs=1, values=_rdb_values.check)
        assert alone.findings
        assert walk(bytes(data), jobs=2, values=_rdb_values.check) == alone

    def test_findings_of_later_parts_name_their_database(self, walk: Walk) -> None:
        data = trading(5)
        broken = b"".join(w.key(f"broken{number}", 16, w.string(b"x")) for number in range(150))
        body = data[:-9] + broken + b"\xff"
        contents = walk(body + _crc64.crc64(body).to_bytes(8, "little"), jobs=2, values=_rdb_values.check)
        assert {finding.database for finding in contents.findings[:100]} == {9}
        assert "50 corrupt-value" in contents.findings[100].text

    @pytest.mark.parametrize("jobs", [1, 2])
    def test_mapped_file_that_is_cut_while_it_is_read(self, jobs: int, walk: Walk, tmp_path: Path) -> None:
        def cut(kind: int, buf: Any, at: int, magic: str) -> int:
            os.truncate(tmp_path / "dump.rdb", 4096)
            return int(buf[at + 150_000])

        contents = walk(w.rdb(w.key("big", 0, w.string(bytes(200_000))), crc=False), jobs=jobs, values=cut)
        assert codes(contents)[-1] == "unreadable"
        assert "I/O error" in contents.findings[-1].text
        assert _rdb_report.verdict(contents.findings) == "fail"

    def test_reader_that_is_killed(self, walk: Walk) -> None:
        contents = walk(trading(1), jobs=2, values=lambda kind, buf, at, magic: os.kill(os.getpid(), signal.SIGKILL) or 0)
        assert codes(contents) == ["unreadable"]
        assert "status -9" in contents.findings[0].text

    def test_fault_of_the_program_is_no_finding(self, walk: Walk) -> None:
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            walk(trading(1), jobs=2, values=lambda kind, buf, at, magic: 1 // 0)

    def test_no_process_stays(self, walk: Walk) -> None:
        walk(trading(1), jobs=2)
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)


def test_small_file_forks_nothing(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fork")
    assert walk(trading(1, 300), jobs=2, values=_rdb_values.check, duplicates=True).findings == []


# --- limits ---------------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_a_value(tmp_path: Path) -> None:
    path = tmp_path / "dump.rdb"
    size = 400 << 20
    with path.open("wb") as handle:
        handle.write(b"REDIS0010" + b"\0" + w.string("big") + b"\x80" + size.to_bytes(4, "big"))
        handle.seek(size, os.SEEK_CUR)
        handle.write(strings("after") + b"\xff" + bytes(8))
    program = (
        "import sys, resource\n"
        "sys.path[:0] = sys.argv[2:]\n"
        "from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb_values, _rdb_walk\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (96 << 20, 96 << 20))\n"
        "found = _rdb_walk.walk(sys.argv[1], now=0, jobs=2, values=_rdb_values.check, duplicates=True)\n"
        "assert found.keyspace == {'db0': {'keys': 2, 'expires': 0}}, found\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path), *sys.path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
