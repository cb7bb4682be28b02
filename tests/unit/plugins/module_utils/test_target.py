# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

import rdb_writer
import servers
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb_format, _rdb_walk, _scratch, _target
from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb_report import Contents, Finding, Target, verdict
from ansible_collections.titan.disaster_recovery.plugins.module_utils._redis import RedisError

# Facts of a target that limits nothing.
ROOMY: dict[str, Any] = {"databases": 16, "maxmemory": 0, "policy": "noeviction", "modules": ()}
GOOD = rdb_writer.key("k", _rdb_format.STRING, rdb_writer.string("v"))


def codes(findings: list[Finding]) -> list[str]:
    return [finding.code for finding in findings]


def contents(magic: str = "REDIS", version: int = 10, **fields: Any) -> Contents:
    return Contents(magic=magic, version=version, keyspace={"db0": {"keys": 3, "expires": 1}}, aux={"used-mem": "1000000"}, **fields)


# --- what a target is -----------------------------------------------------------------------------------------------


def test_of_a_server() -> None:
    text = "databases 4\nmaxmemory 100mb\nmaxmemory-policy allkeys-LRU\nrename-command FLUSHALL nuke\n"
    found = _target.of_server(text, "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=1\n")
    assert found == Target(server="redis", version="7.0.15", databases=4, maxmemory=100 << 20, policy="allkeys-lru", modules=(), renamed={"FLUSHALL": "nuke"})


def test_of_a_server_with_the_defaults_of_redis() -> None:
    assert _target.of_server("", "Valkey server v=9.1.2 sha=00000000:1") == Target("valkey", "9.1.2", 16, 0, "noeviction", (), renamed={})


def test_of_a_server_whose_version_is_not_known() -> None:
    assert _target.of_server("databases 2", "").version is None


def test_of_a_server_with_modules() -> None:
    """A path does not tell a module's name: neither missing nor there."""
    found = _target.of_server('loadmodule /opt/graph.so THREADS "2 3"\nLoadModule /opt/json.so', "Redis server v=7.0.15")
    assert found.modules is None and found.loadmodule == (("/opt/graph.so", "THREADS", "2 3"), ("/opt/json.so",))


def test_a_server_that_is_not_understood() -> None:
    with pytest.raises(ValueError, match="no version"):
        _target.of_server("", "command not found")
    with pytest.raises(RedisError, match="include"):
        _target.of_server("include /etc/redis/other.conf", "v=7.0.15")


@pytest.mark.parametrize("name", servers.BINARIES)
def test_what_real_servers_say_of_their_version(name: str) -> None:
    assert _scratch.version(str(servers.BINARIES[name])) == servers.VERSIONS[name]


def test_parse() -> None:
    assert _target.parse("redis:7.0.15") == Target("redis", "7.0.15")
    assert _target.parse("valkey:9.1") == Target("valkey", "9.1")
    facts = {
        "server": "valkey",
        "version": "8.0.1",
        "databases": 4,
        "maxmemory": 100,
        "policy": "noeviction",
        "modules": ["json"],
        "loadmodule": [["/a.so", "x"]],
    }
    assert _target.parse(json.dumps(facts)) == Target("valkey", "8.0.1", 4, 100, "noeviction", ("json",), (("/a.so", "x"),))
    assert _target.parse("{}") == Target()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is written"),
        ("redis", "is written"),
        ("redis:7", "is written"),
        ("keydb:6.3.4", "is written"),
        ("[]", "is written"),
        ("{", "is written"),
        ('{"memory": 1}', "has no memory"),
        ('{"databases": "16"}', "databases is not a number"),
        ('{"databases": true}', "databases is not a number"),
        ('{"maxmemory": -1}', "maxmemory is not a number"),
        ('{"version": 7.0}', "not a version"),
        ('{"version": "seven"}', "not a version"),
        ('{"server": "keydb"}', "redis or valkey"),
        ('{"policy": 1}', "not a maxmemory-policy"),
        ('{"modules": "json"}', "modules is not a list"),
        ('{"loadmodule": ["/a.so"]}', "loadmodule is not a list"),
    ],
)
def test_parse_refuses(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        _target.parse(text)


# --- the judgement: pure --------------------------------------------------------------------------------------------


def test_nothing_against_it() -> None:
    assert _target.judge(contents(), Target("redis", "7.0.15", **ROOMY)) == []


# Versions without a binary here, from the same sources as the table in _target.py.
@pytest.mark.parametrize(
    ("target", "magic", "newest"),
    [
        ("redis:5.0.14", "REDIS", 9),
        ("redis:6.0.16", "REDIS", 9),
        ("redis:6.2.14", "REDIS", 9),
        ("redis:7.0.0", "REDIS", 10),
        ("redis:7.2.6", "REDIS", 11),
        ("redis:7.4.1", "REDIS", 12),
        ("redis:8.0.0", "REDIS", 12),
        ("redis:8.4.0", "REDIS", 12),
        ("redis:8.6.0", "REDIS", 13),
        ("valkey:7.2.5", "REDIS", 11),
        ("valkey:8.0.1", "REDIS", 11),
        ("valkey:8.1.0", "REDIS", 11),
        ("valkey:9.0.0", "REDIS", 11),
        ("valkey:9.0.0", "VALKEY", 80),
    ],
)
def test_newest_version_that_is_read(target: str, magic: str, newest: int) -> None:
    server = _target.parse(target)
    for number, good in ((newest - 1, True), (newest, True), (newest + 1, False)):
        assert (verdict(_target.judge(contents(magic, number), server)) == "pass") is good, number


@pytest.mark.parametrize("target", ["redis:6.2.14", "redis:7.0.15", "redis:8.2.3", "valkey:7.2.5", "valkey:8.1.0"])
def test_a_valkey_file_elsewhere(target: str) -> None:
    found = _target.judge(contents("VALKEY", 80), _target.parse(target))
    assert verdict(found) == "fail" and {"foreign-server", "version-too-new"} & set(codes(found))


@pytest.mark.parametrize(("target", "version"), [("redis:9.0.0", 16), ("redis:3.0.7", 6), ("valkey:10.0.0", 81)])
def test_a_target_beyond_the_table_is_not_guessed_at(target: str, version: int) -> None:
    found = _target.judge(contents("VALKEY" if version == 81 else "REDIS", version), _target.parse(target))
    assert codes(found) == ["no-target", "no-target"] and verdict(found) == "pass"


def test_what_is_not_known_of_the_target_is_said() -> None:
    found = _target.judge(contents(), Target())
    assert codes(found) == ["no-target"] and found[0].text.endswith("version, databases, maxmemory")


@pytest.mark.parametrize(("databases", "good"), [(10, True), (9, False), (1, False)])
def test_databases(databases: int, good: bool) -> None:
    holding = contents()
    holding.keyspace["db9"] = {"keys": 0, "expires": 0}
    found = _target.judge(holding, Target("redis", "7.0.15", **{**ROOMY, "databases": databases}))
    assert codes(found) == ([] if good else ["database-beyond-target"])
    assert good or (found[0].database == 9 and verdict(found) == "fail")


@pytest.mark.parametrize(
    ("kind", "modules", "version", "code"),
    [
        ("ReJSON-RL", ("ReJSON", "search"), "7.2.0", None),
        ("ReJSON-RL", ("rejson",), "7.2.0", None),
        ("graphdata", ("graph",), "8.2.3", None),
        ("mymodule1", ("mymodule1",), "7.0.15", None),
        ("ReJSON-RL", (), "7.2.0", "module-missing"),
        ("ReJSON-RL", ("search",), "7.2.0", "module-missing"),
        ("ReJSON-RL", None, "7.2.0", "module-unknown"),
        ("vectorset", (), "8.2.3", None),
        ("vectorset", (), "7.4.0", "module-missing"),
    ],
)
def test_modules(kind: str, modules: tuple[str, ...] | None, version: str, code: str | None) -> None:
    found = _target.judge(contents(modules={kind: 2}), Target("redis", version, **{**ROOMY, "modules": modules}))
    assert codes(found) == ([code] if code else [])


@pytest.mark.parametrize(
    ("maxmemory", "policy", "code"),
    [
        (0, "allkeys-lru", None),
        (1_000_000, "allkeys-lru", None),
        (999_999, "allkeys-lru", "eviction-forecast"),
        (400_000, "volatile-ttl", "eviction-forecast"),
        (999_999, "noeviction", "memory-forecast"),
        (999_999, None, "memory-forecast"),
    ],
)
def test_memory(maxmemory: int, policy: str | None, code: str | None) -> None:
    found = _target.judge(contents(), Target("redis", "7.0.15", **{**ROOMY, "maxmemory": maxmemory, "policy": policy}))
    assert codes(found) == ([code] if code else [])
    if found:
        assert f"takes 1000000 bytes, {1_000_000 - maxmemory} more" in found[0].text and verdict(found) == "fail"


def test_a_limit_without_a_size_is_unknown() -> None:
    holding = contents()
    del holding.aux["used-mem"]
    found = _target.judge(holding, Target("redis", "7.0.15", **{**ROOMY, "maxmemory": 1 << 40}))
    assert codes(found) == ["memory-unknown"] and verdict(found) == "unknown"


def test_a_file_that_is_no_rdb_loads_nowhere() -> None:
    assert _target.loads_on(Contents()) == []
    assert _target.judge(Contents(), Target("redis", "7.0.15", **ROOMY)) == []


@pytest.mark.parametrize(
    ("magic", "version", "families"),
    [
        ("REDIS", 9, ["Redis 6.2", "Redis 7.0", "Redis 7.2", "Redis 7.4", "Redis 8.x", "Valkey 7.2", "Valkey 8", "Valkey 9"]),
        ("REDIS", 10, ["Redis 7.0", "Redis 7.2", "Redis 7.4", "Redis 8.x", "Valkey 7.2", "Valkey 8", "Valkey 9"]),
        ("REDIS", 11, ["Redis 7.2", "Redis 7.4", "Redis 8.x", "Valkey 7.2", "Valkey 8", "Valkey 9"]),
        ("REDIS", 12, ["Redis 7.4", "Redis 8.x"]),
        ("VALKEY", 80, ["Valkey 9"]),
    ],
)
def test_families(magic: str, version: int, families: list[str]) -> None:
    assert _target.loads_on(contents(magic, version)) == families


# --- the judgement against real servers -----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def dumps() -> dict[str, bytes]:
    """A dump with every encoding by each server."""
    made = {}
    for name in servers.BINARIES:
        with servers.running(name) as server:
            servers.fill(server.client)
            made[name] = server.dump()
    return made


def agrees(box: Path, name: str, data: bytes, databases: int = 16) -> bool:
    """Whether this server loads it, after the judgement was held against that."""
    (box / "dump.rdb").write_bytes(data)
    server, version = servers.VERSIONS[name]
    walked = _rdb_walk.walk(str(box / "dump.rdb"), now=time.time())
    predicted = _target.judge(walked, Target(server, version, **{**ROOMY, "databases": databases}))
    try:
        _scratch.load(str(box / "dump.rdb"), str(box), databases, None, "", time.time() + 20, server=str(servers.BINARIES[name]))
        up = True
    except _scratch.Refused:
        up = False
    assert (verdict(predicted) == "pass") is up, [finding.text for finding in predicted]
    return up


@pytest.mark.parametrize("name", servers.BINARIES)
@pytest.mark.parametrize("source", servers.BINARIES)
def test_dumps_of_each_server_on_each_other(dumps: dict[str, bytes], box: Path, source: str, name: str) -> None:
    up = agrees(box, name, dumps[source])
    (box / "dump.rdb").write_bytes(dumps[source])
    families = _target.loads_on(_rdb_walk.walk(str(box / "dump.rdb"), now=time.time()))
    family = {"6.2": "Redis 6.2", "7.0": "Redis 7.0", "8.2": "Redis 8.x", "valkey-9.1": "Valkey 9"}[name]
    assert (family in families) is up


@pytest.mark.parametrize("name", servers.BINARIES)
def test_every_version_number(box: Path, name: str) -> None:
    """Up to the newest that each reads and one more; nothing but the header tells them apart."""
    numbers = [(magic, number) for magic, numbers in (("REDIS", (1, 5, 8, 9, 10, 11, 12, 13, 79, 80)), ("VALKEY", (80, 81))) for number in numbers]
    loaded = {
        (magic, number): agrees(box, name, rdb_writer.rdb(rdb_writer.select(0), GOOD, version=number, magic=magic, crc=number >= 5 or b""))
        for magic, number in numbers
    }
    assert any(loaded.values()) and not all(loaded.values())


@pytest.mark.parametrize("name", servers.BINARIES)
@pytest.mark.parametrize(("database", "databases"), [(15, 16), (16, 16), (16, 17), (1, 1)])
def test_the_last_database(box: Path, name: str, database: int, databases: int) -> None:
    assert agrees(box, name, rdb_writer.rdb(rdb_writer.select(database), GOOD, version=9), databases) is (database < databases)


@pytest.mark.parametrize("name", servers.BINARIES)
@pytest.mark.parametrize("part", [rdb_writer.key("m", _rdb_format.MODULE_2, rdb_writer.module_value()), rdb_writer.module_aux()], ids=["value", "aux"])
def test_module_data(box: Path, name: str, part: bytes) -> None:
    assert not agrees(box, name, rdb_writer.rdb(part, rdb_writer.select(0), GOOD, version=9))


def test_a_module_that_the_server_brings_along(box: Path) -> None:
    with servers.running("8.2") as server:
        server.client.execute_command("VADD", "v", "VALUES", 3, 1, 2, 3, "element")
        data = server.dump()
    assert agrees(box, "8.2", data)
