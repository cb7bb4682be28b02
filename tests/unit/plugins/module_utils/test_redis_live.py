# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _redis, _redis_live
from ansible_collections.titan.disaster_recovery.plugins.module_utils._redis_live import Refused

EXPECTED = {
    "keyspace": {"db0": {"keys": 10, "expires": 2}, "db1": {"keys": 3, "expires": 0}},
    "canary": {"key": "titan:dr:canary", "db": 1, "seq": 7, "at": 1000.0},
}
ALL = ("redis_start", "redis_keys", "redis_canary", "redis_role", "redis_no_eviction", "redis_process", "redis_dir", "redis_bind", "redis_write")


class Unit:
    """What systemd says of a server that it did not start."""

    name = "redis-test"

    def __init__(self, pid: int, active: bool = True) -> None:
        self.pid, self.runs = pid, active

    def main_pid(self) -> int:
        return self.pid

    def active(self) -> bool:
        return self.runs


@pytest.fixture
def source(redis_server: Any) -> Any:
    server = redis_server()
    server.fill()
    return server


def live(server: Any, expected: dict[str, Any] = EXPECTED, pid: int | None = None, **conf: Any) -> list[dict[str, str]]:
    unit: Any = Unit(server.process.pid if pid is None else pid)
    return _redis_live.check(server.conf, expected, time.time() + 5, unit)


def verdicts(gates: list[dict[str, str]]) -> dict[str, str]:
    return {gate["name"]: gate["verdict"] for gate in gates}


def bad(gates: list[dict[str, str]]) -> dict[str, str]:
    return {gate["name"]: gate["evidence"] for gate in gates if gate["verdict"] != "pass"}


def test_good(source: Any) -> None:
    gates = live(source)
    assert verdicts(gates) == dict.fromkeys(ALL, "pass") and _redis_live.failing(gates) == ""
    assert source.client.call("EXISTS", _redis_live.WRITE_PROBE) == 0 or source.client.call("PTTL", _redis_live.WRITE_PROBE) <= 1, "the probe leaves nothing"


def test_without_a_canary(source: Any) -> None:
    assert "redis_canary" not in verdicts(live(source, {**EXPECTED, "canary": None}))


def test_empty(redis_server: Any) -> None:
    assert set(bad(live(redis_server()))) == {"redis_keys", "redis_canary"}
    assert set(bad(live(redis_server(), {}))) == {"redis_keys"}, "also when nothing is known of what must be there"


@pytest.mark.parametrize(("seq", "verdict"), [(6, "fail"), (7, "pass"), (8, "pass")])
def test_canary(source: Any, seq: int, verdict: str) -> None:
    source.fill(seq=seq)
    assert verdicts(live(source))["redis_canary"] == verdict


def test_another_content(source: Any) -> None:
    samples = [[0, b"key:5".hex()], [1, b"titan:positions:binance:BTC".hex()]]
    wrong = live(source, {**EXPECTED, "samples": samples, "fingerprint": {"keys": 2, "sha256": "0" * 64}})
    assert list(bad(wrong)) == ["redis_fingerprint"]


def test_replica(source: Any) -> None:
    """Right data and a PONG, but nobody can write and a master can wipe it."""
    source.client.call("REPLICAOF", "127.0.0.1", 1)
    found = bad(live(source))
    assert found["redis_role"] == "role slave" and "READONLY" in found["redis_write"]
    assert _redis_live.settled(source.conf, 0.2, time.time() + 5)["verdict"] == "fail"


def test_read_only(source: Any) -> None:
    source.client.call("CONFIG", "SET", "min-replicas-to-write", 1)
    assert list(bad(live(source))) == ["redis_write"] and "NOREPLICAS" in bad(live(source))["redis_write"]


def test_evicted(source: Any) -> None:
    source.client.call("CONFIG", "SET", "maxmemory-policy", "volatile-lru", "maxmemory", "100kb")
    with pytest.raises(_redis.RedisError):
        for number in range(100):
            source.client.call("SET", f"more:{number}", "x" * 20_000)
    source.client.call("CONFIG", "SET", "maxmemory", "0")
    assert bad(live(source))["redis_no_eviction"] == "2 keys evicted since the start"


def test_another_process_answers(source: Any) -> None:
    assert bad(live(source, pid=1))["redis_process"] == f"process {source.process.pid} answers, redis-test runs 1"


def test_a_server_that_is_not_there(box: Path) -> None:
    conf = _redis.parse_conf(f"port 0\nunixsocket {box}/none.sock")
    unit: Any = Unit(1, active=False)
    with pytest.raises(_redis.RedisError, match="ended while loading"):
        _redis_live.check(conf, EXPECTED, time.time() + 5, unit)


def test_password(redis_server: Any) -> None:
    server = redis_server(requirepass="secret")
    server.fill()
    assert not bad(live(server))
    server.client.call("CONFIG", "SET", "requirepass", "changed")
    with pytest.raises(_redis.AuthError, match="WRONGPASS"):
        live(server)


# --- before ---------------------------------------------------------------------------------------------------------


def test_nothing_runs(source: Any) -> None:
    assert _redis_live.interview(source.conf, 0, False) == _redis_live.Interview()


def test_a_good_interview(source: Any) -> None:
    found = _redis_live.interview(source.conf, source.process.pid, False)
    assert found.runs and not found.hangs and not found.was_replica and found.notes == ()


def test_a_process_that_listens_elsewhere(source: Any, box: Path) -> None:
    """It lives, and is not killed in a hurry as one that hangs."""
    conf = _redis.parse_conf(f"port 0\nunixsocket {box}/none.sock")
    found = _redis_live.interview(conf, source.process.pid, False)
    assert found.runs and not found.hangs and "did not answer" in found.notes[0]


def test_a_server_without_info(redis_server: Any) -> None:
    server = redis_server(rename_command='INFO ""')
    with pytest.raises(Refused, match="cannot be asked whether replicas are attached"):
        _redis_live.interview(server.conf, server.process.pid, False)


def test_client_list_that_is_not_allowed(redis_server: Any) -> None:
    server = redis_server(rename_command='CLIENT ""')
    assert "could not be asked" in _redis_live.interview(server.conf, server.process.pid, False).notes[0]


# --- the new base ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("directives", "name"), [({"appendonly": "yes"}, "BGREWRITEAOF"), ({}, "BGSAVE")])
def test_new_base(redis_server: Any, directives: dict[str, str], name: str) -> None:
    server = redis_server(**directives)
    gates, notes = _redis_live.new_base(server.conf, time.time() + 10)
    assert gates == [{"name": "redis_new_base", "verdict": "pass", "evidence": f"{name} ended with ok"}] and notes == []


def test_new_base_that_fails(redis_server: Any) -> None:
    server = redis_server()
    server.client.call("CONFIG", "SET", "dbfilename", "gone")
    (server.folder / "gone").mkdir()
    gates, dummy = _redis_live.new_base(server.conf, time.time() + 10)
    assert gates[0]["verdict"] == "fail" and "is the disk full?" in gates[0]["evidence"]


def test_new_base_that_takes_too_long(redis_server: Any) -> None:
    server = redis_server(rdb_key_save_delay="1000000")
    server.fill()
    assert _redis_live.new_base(server.conf, time.time() + 0.3) == ([], ["a new base is still being written (BGSAVE)"])
