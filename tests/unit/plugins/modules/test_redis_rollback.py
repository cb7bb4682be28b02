# SPDX-License-Identifier: GPL-3.0-or-later
"""The way back to what was live before a restore, and everything that forbids it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _lease, _state
from ansible_collections.titan.disaster_recovery.plugins.modules import redis_rollback, redis_swap


@pytest.fixture(params=["yes", "no"], ids=["aof", "rdb"])
def restored(request: pytest.FixtureRequest, host: Any, redis_server: Any, run_module: Any) -> Any:
    """A Redis whose data was restored while trading was halted, and is halted still."""
    host.configure(f"appendonly {request.param}", "requirepass secret")
    return restore(host, redis_server, run_module)


@pytest.fixture
def aof(host: Any, redis_server: Any, run_module: Any) -> Any:
    return restore(host, redis_server, run_module)


def restore(host: Any, redis_server: Any, run_module: Any) -> Any:
    source = redis_server()
    source.fill()
    host.latch = host.box / "halt"
    halt(host)
    host.run_old().call("SET", "last", "value-of-the-last")
    if "appendonly no" in host.config.read_text():
        host.client().call("SAVE")
    host.staged(source.dump())
    result = run_module(redis_swap, host.params)
    assert not result["failed"], result["msg"]
    host.kept = Path(result["kept"])
    names = ("data_dir", "config", "unit", "user", "timeout")
    host.rollback = {**{name: host.params[name] for name in names}, "run_id": "r2", "latch": str(host.latch)}
    host.log.clear()
    return host


def halt(host: Any) -> None:
    host.latch.write_text(json.dumps({"generation": 1, "reason": "test", "run_id": "r", "since": time.time()}))


def refused(host: Any, run_module: Any, *why: str, **more: Any) -> None:
    """Nothing is stopped or moved, and the same in check mode, which a recovery asks first."""
    for check in (True, False):
        if check and "trading is not halted" in why:
            continue
        result = run_module(redis_rollback, {**host.rollback, **more}, check=check)
        assert result["failed"] and result["msg"].startswith("Nothing was rolled back: "), result
        for text in why:
            assert text in result["msg"], result["msg"]
    assert host.log == [] and host.data.exists() and not list(host.box.glob("*.rolled-back-*"))


def test_rollback(restored: Any, run_module: Any) -> None:
    asked = run_module(redis_rollback, restored.rollback, check=True)
    assert not asked["failed"] and "would put back" in asked["titan_dr"]["notes"][0] and restored.log == []
    result = run_module(redis_rollback, restored.rollback)
    assert not result["failed"], result["msg"]
    client = restored.client()
    assert client.call("GET", "last") == "value-of-the-last" and client.call("EXISTS", "key:5") == 0
    assert result["changed"] and result["kept"] == f"{restored.data}.rolled-back-r2" and os.path.isdir(result["kept"]) and not restored.kept.exists()
    assert not restored.failing(result) and {"redis_kept", "redis_keys", "redis_write", "redis_new_base"} <= set(restored.gates(result))
    assert result["titan_dr"]["rpo"] == {"actual_s": 0.0, "basis": "trading was halted since the restore"}
    # A second time there is nothing to do.
    restored.log.clear()
    again = run_module(redis_rollback, {**restored.rollback, "run_id": "r3"})
    assert not again["failed"] and again["changed"] is False and restored.log == []
    # And a later restore can be made.
    restored.client().call("PING")


@pytest.mark.parametrize(("scenario", "state", "result", "pending"), [
    ("rollback", "held", "", True), ("rollback", "closed", "failed", True), ("rollback", "closed", "recovered", False),
    ("database_corruption", "held", "", False), ("", "", "", False),
])  # fmt: skip
def test_a_rollback_that_broke_off_is_to_be_gone_on_with(
    aof: Any, run_module: Any, monkeypatch: pytest.MonkeyPatch, scenario: str, state: str, result: str, pending: bool
) -> None:
    assert run_module(redis_rollback, aof.rollback, check=True)["pending"] is True
    run_module(redis_rollback, aof.rollback)
    lease = _lease.Lease(1, "r2", "a", scenario, 0.0, 0.0, {}, state, result) if scenario else None
    monkeypatch.setattr(_lease, "read", lambda: lease)
    again = run_module(redis_rollback, aof.rollback, check=True)
    assert (again["failed"], again["changed"], again["pending"]) == (False, False, pending)
    assert ("gone on with" in again["titan_dr"]["notes"][0]) is pending


def test_a_rollback_that_is_done_tells_how_it_left_trading(aof: Any, run_module: Any) -> None:
    run_module(redis_rollback, aof.rollback)
    assert run_module(redis_rollback, aof.rollback, check=True)["trading"] == "resumed"
    with open(_state.path("recovered.json"), "w", encoding="utf-8") as handle:
        handle.write('{"environment_id": "lab", "run_id": "r2", "trading": "awaiting resume"}')
    assert run_module(redis_rollback, aof.rollback, check=True)["trading"] == "awaiting resume"


def test_a_rollback_that_is_done_and_not_well_is_no_success(aof: Any, run_module: Any) -> None:
    run_module(redis_rollback, aof.rollback)
    aof.client().call("FLUSHALL")
    result = run_module(redis_rollback, aof.rollback)
    assert result["failed"] and "was rolled back before, and now Redis is not well" in result["msg"]


def test_trading_is_on(aof: Any, run_module: Any) -> None:
    aof.latch.unlink()
    refused(aof, run_module, "trading is not halted", confirm=True)


def test_traded_since_the_restore(aof: Any, run_module: Any) -> None:
    """The halt of now is later than the restore: trading went on in between."""
    halt(aof)
    refused(aof, run_module, "trading was resumed on restore point p1 after run r1", "rollback_confirm")
    result = run_module(redis_rollback, {**aof.rollback, "confirm": True})
    assert not result["failed"] and any("is set aside" in note for note in result["titan_dr"]["notes"])
    assert result["titan_dr"]["rpo"]["basis"].startswith("everything since the restore") and 0 < result["titan_dr"]["rpo"]["actual_s"] < 60


def test_before_the_halt_it_is_asked_as_if_trading_went_on(aof: Any, run_module: Any) -> None:
    aof.latch.unlink()
    result = run_module(redis_rollback, aof.rollback, check=True)
    assert result["failed"] and "trading was resumed" in result["msg"]
    assert not run_module(redis_rollback, {**aof.rollback, "confirm": True}, check=True)["failed"]


def test_no_restore_is_recorded(aof: Any, run_module: Any) -> None:
    aof.record.unlink()
    refused(aof, run_module, "there is nothing to put back: no restore is recorded")


def test_a_restore_that_was_undone(aof: Any, run_module: Any) -> None:
    aof.record.write_text(json.dumps({**json.loads(aof.record.read_text()), "state": "undone"}))
    refused(aof, run_module, "failed and was undone already")


def test_nothing_is_kept(aof: Any, run_module: Any) -> None:
    aof.kept.rename(aof.box / "moved")
    refused(aof, run_module, "is not there")


def test_there_was_nothing_before(aof: Any, run_module: Any) -> None:
    aof.record.write_text(json.dumps({**json.loads(aof.record.read_text()), "aside": ""}))
    refused(aof, run_module, "no data was there before the restore")


def test_another_data_directory(aof: Any, run_module: Any) -> None:
    refused(aof, run_module, "the inventory says /elsewhere", data_dir="/elsewhere")


def increment(host: Any) -> Path:
    return next((host.kept / "appendonlydir").glob("*.incr.aof"))


def test_kept_data_that_is_damaged(aof: Any, run_module: Any) -> None:
    path = increment(aof)
    path.write_bytes(path.read_bytes().replace(b"SET\r\n", b"SIT\r\n", 1))
    refused(aof, run_module, "must not be put back", confirm=True)


def test_kept_data_with_a_cut_end_needs_consent(aof: Any, run_module: Any) -> None:
    path = increment(aof)
    os.truncate(path, path.stat().st_size - 3)
    refused(aof, run_module, "must not be put back: recoverable tail", "rollback_confirm")
    result = run_module(redis_rollback, {**aof.rollback, "confirm": True})
    assert not result["failed"] and aof.client().call("EXISTS", "old:1") == 1


@pytest.mark.parametrize("gone", ["*.manifest", "*.base.rdb", "*.incr.aof"])
def test_kept_data_that_would_start_empty_or_not_at_all(aof: Any, run_module: Any, gone: str) -> None:
    next((aof.kept / "appendonlydir").glob(gone)).unlink()
    refused(aof, run_module, "must not be put back", confirm=True)


def test_kept_data_without_its_aof(aof: Any, run_module: Any) -> None:
    """A dump alone is ignored with appendonly yes."""
    (aof.kept / "appendonlydir").rename(aof.box / "elsewhere")
    (aof.kept / "dump.rdb").write_bytes(b"REDIS0010")
    refused(aof, run_module, "Redis would start empty", confirm=True)


@pytest.fixture
def rdb(host: Any, redis_server: Any, run_module: Any) -> Any:
    host.configure("appendonly no", "requirepass secret")
    return restore(host, redis_server, run_module)


def test_a_kept_dump_that_is_damaged(rdb: Any, run_module: Any) -> None:
    path = rdb.kept / "dump.rdb"
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    refused(rdb, run_module, "must not be put back", confirm=True)


def test_a_kept_dump_that_is_empty(rdb: Any, redis_server: Any, run_module: Any) -> None:
    (rdb.kept / "dump.rdb").write_bytes(redis_server().dump())
    refused(rdb, run_module, "it holds no keys", confirm=True)


def test_a_kept_dump_without_a_checksum_needs_consent(rdb: Any, run_module: Any) -> None:
    path = rdb.kept / "dump.rdb"
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    refused(rdb, run_module, "must not be put back", "rollback_confirm")
    assert not run_module(redis_rollback, {**rdb.rollback, "confirm": True})["failed"]


def test_a_rollback_that_fails_its_gates_leaves_everything_as_it_was(aof: Any, run_module: Any) -> None:
    real, record = aof.config.read_text(), aof.record.read_text()
    port = 0

    def listen_elsewhere() -> None:
        nonlocal port
        port += 1
        aof.config.write_text(real + "unixsocket /nonexistent/x.sock\nport 1\nbind 192.0.2.1\n" if port == 1 else real)

    aof.before_start = listen_elsewhere
    result = run_module(redis_rollback, {**aof.rollback, "timeout": 4})
    assert result["failed"] and "everything is as it was before" in result["msg"]
    assert aof.client().call("EXISTS", "key:5") == 1 and aof.kept.is_dir() and json.loads(aof.record.read_text()) == json.loads(record)


def test_replicas_are_not_wiped_by_a_rollback(aof: Any, run_module: Any) -> None:
    client = aof.client()
    client.call("CLIENT", "SETNAME", "sentinel-1-cmd")
    refused(aof, run_module, "a Sentinel watches")
