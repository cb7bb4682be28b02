# SPDX-License-Identifier: GPL-3.0-or-later
"""What redis-check-rdb gets wrong, held against the real servers: what it says, what they do with the file, and what we say.

Every file is made by hand with one fault. The measured behaviour of checkers and servers is asserted too: were it ever to change, this table changes.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import campaign
import rdb_writer as w
import servers
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb, _rdb_format, _rdb_report

ALL = tuple(servers.BINARIES)
FUNCTIONS = ("7.0", "8.2", "valkey-9.1")
REDIS = ("6.2", "7.0", "8.2")
VALKEY = ("valkey-9.1",)


def whole(name: str, *parts: bytes, version: int | None = None, crc: bool | bytes = True, eof: bytes = b"\xff", tail: bytes = b"") -> bytes:
    """A file as this server would write it."""
    family, number = servers.VERSIONS[name]
    newest = servers.RDB_VERSIONS[name] if version is None else version
    head = w.aux(f"{family}-ver", number) + w.aux("ctime", str(int(time.time())))
    return w.rdb(head, *parts, version=newest, magic="VALKEY" if name in VALKEY else "REDIS", crc=crc, eof=eof, tail=tail)


def one(name: str, *more: bytes, keys: int = 1, expires: int = 0, **rest: Any) -> bytes:
    """A key that is right, and what else there is in database 0."""
    return whole(name, w.select(0), w.resize(keys, expires), GOOD, *more, **rest)


GOOD = w.key("good", _rdb_format.STRING, w.string("value"))
GONE = functools.partial(w.key, "gone", _rdb_format.STRING, w.string("value"))


def packed(name: str, kind: str, items: list[bytes | str | int]) -> bytes:
    """A small hash or sorted set as this server packs it."""
    if name == "6.2":
        number = {"hash": _rdb_format.HASH_ZIPLIST, "zset": _rdb_format.ZSET_ZIPLIST}[kind]
        return w.key(kind, number, w.string(w.ziplist([str(item) for item in items])))
    return w.key(kind, {"hash": _rdb_format.HASH_LISTPACK, "zset": _rdb_format.ZSET_LISTPACK}[kind], w.string(w.listpack(items)))


@functools.cache
def stream_that_counts_wrong() -> bytes:
    """A stream of three entries that says it has two."""
    with servers.running("7.0") as server:
        for number in range(1, 4):
            server.client.execute_command("XADD", "x", f"{number}-1", "field", number)
        payload = server.client.dump("x")
    kind, value = payload[0], payload[1:-10]
    nodes, at, dummy = _rdb_format.length(value, 0)
    for dummy in range(2 * nodes):
        size, at, dummy = _rdb_format.length(value, at)
        at += size
    assert value[at] == 3
    return w.key("stream", kind, value[:at] + b"\x02" + value[at + 1 :])


def library(name: str) -> bytes:
    return w.function(servers.LIBRARY.format(name=name))


@dataclass(frozen=True)
class Gap:
    """One fault."""

    name: str
    make: Callable[[str], bytes]
    says_ok: tuple[str, ...]  # versions whose checker says OK
    server: str  # up, other data (up, without all of it), refuses, exits 0 (refuses with exit status 0), panics
    ours: str  # our reason
    verdict: str = "fail"
    level: str = "deep"
    on: tuple[str, ...] = ALL


GAPS = [
    Gap("duplicate key", lambda n: one(n, GOOD, keys=2), ALL, "panics", "duplicate-key"),
    Gap(
        "duplicate key in a database that comes twice",
        lambda n: one(n, w.select(1), w.resize(1, 0), GONE(), w.select(0), w.resize(1, 0), GOOD),
        ALL,
        "panics",
        "duplicate-key",
    ),
    Gap(
        "function with a syntax error",
        lambda n: one(n, w.function("#!lua name=x\nno lua this is")),
        FUNCTIONS,
        "exits 0",
        "function-broken",
        level="proof",
        on=FUNCTIONS,
    ),
    Gap(
        "function of an unknown engine", lambda n: one(n, w.function("#!perl name=x\n1")), FUNCTIONS, "exits 0", "function-broken", level="proof", on=FUNCTIONS
    ),
    Gap("function library twice", lambda n: one(n, library("x") + library("x")), FUNCTIONS, "exits 0", "function-broken", level="proof", on=FUNCTIONS),
    Gap("database 16 of 16", lambda n: whole(n, w.select(16), w.resize(1, 0), GOOD), ALL, "refuses", "database-beyond-target"),
    Gap("bytes behind the end", lambda n: one(n, tail=bytes(range(100))), ALL, "up", "trailing-bytes"),
    Gap("a block of zeros behind the end", lambda n: one(n, tail=bytes(4096)), ALL, "up", "trailing-bytes"),
    Gap("two files in one", lambda n: one(n) + whole(n, w.select(1), w.resize(1, 0), GOOD), ALL, "other data", "trailing-bytes"),
    Gap("a key lost against RESIZEDB", lambda n: one(n, keys=2), ALL, "up", "count-mismatch"),
    Gap("an expiry lost against RESIZEDB", lambda n: one(n, expires=1), ALL, "up", "count-mismatch"),
    Gap(
        "module value",
        lambda n: one(n, w.key("m", 7, w.module_value(parts=[w.module_uint(5), w.module_string("x")])), keys=2),
        ALL,
        "exits 0",
        "module-missing",
    ),
    Gap("module data beside the keys", lambda n: one(n, w.module_aux(parts=[w.module_uint(1)])), ALL, "refuses", "module-missing"),
    Gap("a version newer than the server", lambda n: one(n, version=servers.RDB_VERSIONS[n] + 1), VALKEY, "refuses", "version-too-new", on=("6.2", "7.0")),
    Gap(
        "a version newer than this reader",
        lambda n: one(n, version=servers.RDB_VERSIONS[n] + 1),
        VALKEY,
        "refuses",
        "unsupported-version",
        on=("8.2", "valkey-9.1"),
        verdict="either",
    ),
    Gap("RDB 12 of Redis for Valkey", lambda n: w.rdb(w.select(0), w.resize(1, 0), GOOD, version=12), VALKEY, "refuses", "foreign-server", on=VALKEY),
    Gap(
        "RDB 13 of Redis for Valkey",
        lambda n: w.rdb(w.select(0), w.resize(1, 0), GOOD, version=13),
        VALKEY,
        "refuses",
        "foreign-server",
        on=VALKEY,
        verdict="either",
    ),
    Gap(
        "a file of Valkey 9 for Redis",
        lambda n: w.rdb(w.select(0), w.resize(1, 0), GOOD, version=80, magic="VALKEY"),
        (),
        "refuses",
        "foreign-server",
        on=REDIS,
    ),
    Gap("an expiry in the past", lambda n: one(n, GONE(at_ms=1000), keys=2, expires=1), ALL, "other data", "expired-keys", verdict="pass"),
    Gap("an expiry of 1970", lambda n: one(n, GONE(at_ms=0), keys=2, expires=1), ALL, "other data", "expired-keys", verdict="pass"),
    Gap("an expiry before 1970", lambda n: one(n, GONE(at_ms=-5), keys=2, expires=1), ALL, "other data", "expired-keys", verdict="pass"),
    Gap("a score that is no number", lambda n: one(n, packed(n, "zset", ["a", "abc", "b", "2"]), keys=2), ALL, "up", "corrupt-value"),
    Gap("a field twice", lambda n: one(n, packed(n, "hash", ["a", "1", "a", "2"]), keys=2), (), "up", "duplicate-member", on=REDIS),
    Gap("an expiry without a key", lambda n: one(n, w.expire_ms(servers.FAR)), ALL, "up", "dangling-expiry"),
    Gap("an idle time without a key", lambda n: one(n, w.idle(5)), ALL, "up", "dangling-expiry"),
    Gap("an end of zeros", lambda n: one(n, eof=bytes(64), crc=b""), (), "panics", "truncated"),
    Gap("digits of a version without a checksum", lambda n: one(n, version=4, crc=b"\1" * 8), ALL, "up", "bad-opcode", on=REDIS),
    Gap("no checksum", lambda n: one(n, crc=False), ALL, "up", "checksum-disabled", verdict="unknown"),
    Gap("a version that has none", lambda n: w.rdb(w.select(0), GOOD, version=4, crc=b""), ALL, "up", "checksum-absent", verdict="unknown", on=REDIS),
    Gap("an empty set", lambda n: one(n, w.key("s", _rdb_format.SET, w.counted([])), keys=2), (), "other data", "empty-container", verdict="unknown"),
    Gap("a stream that counts wrong", lambda n: one(n, stream_that_counts_wrong(), keys=2), ("7.0", "8.2"), "up", "corrupt-value", on=("7.0", "8.2")),
    Gap("a stream that counts wrong, Valkey", lambda n: one(n, stream_that_counts_wrong(), keys=2), (), "refuses", "corrupt-value", on=VALKEY),
]
PAIRS = [pytest.param(one_gap, name, id=f"{one_gap.name} - {name}") for one_gap in GAPS for name in one_gap.on]


def keys_in(outcome: servers.Outcome) -> int:
    return sum(counts["keys"] for counts in outcome.keyspace.values())


@pytest.mark.parametrize(("fault", "name"), PAIRS)
def test_what_the_checker_says_what_the_server_does_what_we_say(fault: Gap, name: str, tmp_path: Path) -> None:
    file = tmp_path / "dump.rdb"
    file.write_bytes(fault.make(name))
    outcome = servers.loads(name, file)
    contents = report(file, name, "deep")["contents"]
    assert servers.check(name, file).ok == (name in fault.says_ok)
    match fault.server:
        case "up":
            assert outcome.up
        case "other data":
            assert outcome.up
            assert keys_in(outcome) < (contents["keys"] if fault.ours != "trailing-bytes" else 2)
        case "refuses":
            assert (outcome.up, outcome.returncode) == (False, 1)
        case "exits 0":
            assert (outcome.up, outcome.returncode) == (False, 0)
        case "panics":
            assert not outcome.up
            assert outcome.returncode is not None
            assert outcome.returncode < 0

    findings = campaign.judge(file, name)
    if fault.level == "proof":
        assert campaign.accepted(findings), "no reader of files can see it"
    else:
        assert _rdb_report.verdict(findings) in verdicts(fault), findings
    found = report(file, name, fault.level)
    assert found["verdict"] in verdicts(fault), found["findings"]
    assert fault.ours in {finding["code"] for finding in found["findings"]}
    assert outcome.up or found["verdict"] != "pass"


def verdicts(fault: Gap) -> set[str]:
    return {"unknown", "fail"} if fault.verdict == "either" else {fault.verdict}


def report(file: Path, name: str, level: str, **rest: Any) -> dict[str, Any]:
    return _rdb.verify(str(file), level=level, target=campaign.target(name), now=time.time(), server=str(servers.BINARIES[name]), jobs=1, **rest)


@pytest.mark.parametrize("name", ALL)
def test_the_same_files_without_a_fault_pass(name: str, tmp_path: Path) -> None:
    """The reference to every fault above: it is the fault that is told, not the way the files are made."""
    file = tmp_path / "dump.rdb"
    functions = library("x") + library("y") if name in FUNCTIONS else b""
    parts = [packed(name, "zset", ["a", "1.5", "b", "2"]), packed(name, "hash", ["a", "1", "b", "2"]), GONE(at_ms=servers.FAR), functions]
    file.write_bytes(one(name, *parts, w.select(15), w.resize(1, 0), GOOD, keys=4, expires=1))
    assert servers.check(name, file).ok
    assert servers.loads(name, file, sanitize_dump_payload="yes").keyspace == {"db0": {"keys": 4, "expires": 1}, "db15": {"keys": 1, "expires": 0}}
    found = report(file, name, "proof")
    assert found["verdict"] == "pass", found


@pytest.mark.parametrize("name", ALL)
def test_digits_of_an_older_version_are_told_by_what_was_recorded(name: str, tmp_path: Path) -> None:
    file = tmp_path / "dump.rdb"
    newest = servers.RDB_VERSIONS[name]
    file.write_bytes(one(name, version=newest - 1))
    if name not in VALKEY:  # it refuses every other number of its own
        assert servers.check(name, file).ok
        assert servers.loads(name, file).up
    found = report(file, name, "deep", recorded={"rdb_version": newest})
    assert found["verdict"] == "fail"
    assert "version-differs" in {finding["code"] for finding in found["findings"]}


@pytest.mark.parametrize("name", ALL)
def test_a_changed_value_without_a_checksum_is_told_by_the_digest_alone(name: str, tmp_path: Path) -> None:
    file = tmp_path / "dump.rdb"
    file.write_bytes(one(name).replace(b"value", b"valve"))
    assert not servers.check(name, file).ok
    assert _rdb_report.verdict(campaign.judge(file, name)) == "fail"
    file.write_bytes(w.reseal(file.read_bytes(), crc=False))
    assert servers.check(name, file).ok
    assert servers.loads(name, file).up
    assert _rdb_report.verdict(campaign.judge(file, name)) == "unknown"
    assert report(file, name, "fast", recorded={"sha256": "00" * 32})["verdict"] == "fail"
    (tmp_path / "dump.rdb.sha256").write_text(f"{'00' * 32}  dump.rdb\n")
    assert report(file, name, "fast")["verdict"] == "fail"
