# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.modules import redis_rdb_verify


@pytest.fixture
def dump(redis_server: Any, tmp_path: Path) -> Path:
    server = redis_server()
    server.fill()
    path = tmp_path / "dump.rdb"
    path.write_bytes(server.dump())
    return path


def gate(result: dict[str, Any]) -> dict[str, str]:
    (found,) = result["titan_dr"]["gates"]
    assert found["name"] == "redis_rdb"
    return dict(found)


def codes(result: dict[str, Any]) -> list[str]:
    return [finding["code"] for finding in result["report"]["findings"]]


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("level", ["fast", "deep"])
def test_pass(dump: Path, run_module: Any, level: str, check: bool) -> None:
    before = (dump.read_bytes(), os.listdir(dump.parent))
    result = run_module(redis_rdb_verify, {"path": str(dump), "level": level}, check=check)
    assert (result["failed"], result["changed"], gate(result)["verdict"]) == (False, False, "pass")
    assert result["report"]["contents"]["keyspace"] == {"db0": {"keys": 10, "expires": 2}, "db1": {"keys": 3, "expires": 0}}
    assert "13 keys" in gate(result)["evidence"]
    assert "walk" in result["titan_dr"]["timings"]
    assert (dump.read_bytes(), os.listdir(dump.parent)) == before


def test_fail(dump: Path, run_module: Any) -> None:
    data = bytearray(dump.read_bytes())
    data[len(data) // 2] ^= 1
    dump.write_bytes(data)
    for accept in (False, True):
        result = run_module(redis_rdb_verify, {"path": str(dump), "accept_unknown": accept})
        assert (result["failed"], gate(result)["verdict"]) == (True, "fail")
        assert "checksum-mismatch" in codes(result) and "checksum-mismatch" in result["msg"]


def test_unknown(dump: Path, run_module: Any) -> None:
    dump.write_bytes(dump.read_bytes()[:-8] + bytes(8))
    result = run_module(redis_rdb_verify, {"path": str(dump)})
    assert (result["failed"], gate(result)["verdict"]) == (True, "unknown") and "checksum-disabled" in result["msg"]
    result = run_module(redis_rdb_verify, {"path": str(dump), "accept_unknown": True})
    assert (result["failed"], gate(result)["verdict"]) == (False, "unknown")
    digest = hashlib.sha256(dump.read_bytes()).hexdigest()
    # as a manifest records it, with more in it than is asked for
    recorded = {"sha256": digest, "version": "7.0.15", "databases": 16, "canary": None}
    assert gate(run_module(redis_rdb_verify, {"path": str(dump), "recorded": recorded, "checksum": "digest"}))["verdict"] == "pass"


def test_missing_file(tmp_path: Path, run_module: Any) -> None:
    result = run_module(redis_rdb_verify, {"path": str(tmp_path / "none.rdb")})
    assert result["failed"] and codes(result)[0] == "unreadable" and "none.rdb" in result["msg"]


def test_recorded_facts_of_nothing(dump: Path, run_module: Any) -> None:
    result = run_module(redis_rdb_verify, {"path": str(dump), "recorded": {"version": "7.0.15"}})
    assert result["failed"] and "records nothing" in result["msg"] and gate(result)["verdict"] == "unknown"


def test_a_recorded_fingerprint_is_held_against_the_proof(dump: Path, run_module: Any) -> None:
    plain = {"path": str(dump), "level": "proof", "accept_unknown": True}
    taken = run_module(redis_rdb_verify, plain)["report"]["proof"]["fingerprint"]
    recorded = {"size": dump.stat().st_size, "fingerprint": taken}
    assert not run_module(redis_rdb_verify, {**plain, "recorded": recorded})["failed"]
    other = {**recorded, "fingerprint": {**taken, "sha256": "0" * 64}}
    result = run_module(redis_rdb_verify, {**plain, "recorded": other})
    assert result["failed"] and codes(result)[0] == "contents-differ"


def test_age(dump: Path, run_module: Any) -> None:
    assert not run_module(redis_rdb_verify, {"path": str(dump), "max_age": 600})["failed"]
    assert "snapshot-too-old" in codes(run_module(redis_rdb_verify, {"path": str(dump), "max_age": -600}))


def test_target_of_this_host(dump: Path, tmp_path: Path, run_module: Any) -> None:
    """The configuration and the program tell the target; the task stands above both."""
    config = tmp_path / "redis.conf"
    config.write_text("databases 1\n")
    result = run_module(redis_rdb_verify, {"path": str(dump), "config": str(config)})
    assert result["failed"] and codes(result) == ["database-beyond-target"]
    assert not run_module(redis_rdb_verify, {"path": str(dump), "config": str(config), "target": {"databases": 2}})["failed"]
    config.write_text("databases 16\nmaxmemory 1000\nmaxmemory-policy allkeys-lru\n")
    assert codes(run_module(redis_rdb_verify, {"path": str(dump), "config": str(config)})) == ["eviction-forecast"]
    server = tmp_path / "redis-server"
    server.write_text("#!/bin/sh\necho 'Redis server v=6.2.14 sha=00000000:0 malloc=jemalloc-5.1.0 bits=64'\n")
    server.chmod(0o755)
    config.write_text("")
    result = run_module(redis_rdb_verify, {"path": str(dump), "config": str(config), "server": str(server)})
    assert codes(result) == ["version-too-new"]


@pytest.mark.parametrize(
    "wrong", [{"config": "/nowhere/redis.conf"}, {"target": {"version": "seven"}}, {"target": {"databases": -1}}, {"config": "", "server": "/nowhere/server"}]
)
def test_a_target_that_cannot_be_told(dump: Path, tmp_path: Path, run_module: Any, wrong: dict[str, Any]) -> None:
    if "server" in wrong:
        (tmp_path / "redis.conf").write_text("databases 16\n")
        wrong = {**wrong, "config": str(tmp_path / "redis.conf")}
    result = run_module(redis_rdb_verify, {"path": str(dump), **wrong})
    assert result["failed"] and gate(result)["verdict"] == "unknown"


def test_target_alone(dump: Path, run_module: Any) -> None:
    target = {"server": "valkey", "version": "9.1.2", "databases": 16, "maxmemory": 0}
    assert not run_module(redis_rdb_verify, {"path": str(dump), "target": target})["failed"]
    result = run_module(redis_rdb_verify, {"path": str(dump), "target": {**target, "databases": 1}})
    assert result["failed"] and "database" in result["msg"]
