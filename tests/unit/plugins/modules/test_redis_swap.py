# SPDX-License-Identifier: GPL-3.0-or-later
"""The swap as a module: the exchange, its way back, and what a second run finds. Faults by their number are in test_restore_faults.py."""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.modules import redis_swap

GATES = ("start", "keys", "canary", "fingerprint", "role", "no_eviction", "process", "dir", "bind", "write", "new_base")


@pytest.fixture
def ready(host: Any, redis_server: Any) -> Any:
    """A host with a stage whose data was proven, and a Redis that is stopped."""
    source = redis_server()
    source.fill()
    host.staged(source.dump())
    return host


def test_swap(ready: Any, run_module: Any) -> None:
    result = run_module(redis_swap, ready.params)
    assert result["changed"] and not ready.failing(result) and result["kept"] == f"{ready.data}.before-r1"
    assert list(ready.gates(result)) == [f"redis_{name}" for name in GATES]
    assert ready.log == ["daemon-reload", "stop --no-block redis-test", "start --no-block redis-test"]
    assert (ready.box / "redis.before-r1" / "dump.rdb").read_bytes() == b"old" and not ready.stage.exists() and not ready.lock.exists()
    drop_in = (ready.box / "units/redis-test.service.d/titan-dr.conf").read_text()
    assert "TimeoutStartSec=90" in drop_in and f"AssertPathExists=!{ready.lock}" in drop_in
    assert set(result["titan_dr"]["timings"]) == {"stop", "start", "new_base"}
    record = json.loads(ready.record.read_text())
    assert (record["restore_point"], record["state"], record["aside"]) == ("p1", "live", f"{ready.data}.before-r1")
    # A second time finds it served and does nothing.
    ready.log.clear()
    again = run_module(redis_swap, ready.params)
    assert again["changed"] is False and ready.log == [] and not ready.failing(again)


def test_a_server_that_ran_is_swapped_too(ready: Any, run_module: Any) -> None:
    ready.run_old()
    result = run_module(redis_swap, ready.params)
    assert result["changed"] and ready.client().call("EXISTS", "old:1") == 0


def test_another_restore_point_is_not_served_yet(ready: Any, run_module: Any) -> None:
    run_module(redis_swap, ready.params)
    ready.log.clear()
    result = run_module(redis_swap, {**ready.params, "restore_point": "p2"})
    assert result["failed"] and "exists already" in result["msg"]
    assert ready.log == [] and ready.alive(), "a server that serves is not stopped for a swap that cannot be made"


@pytest.mark.parametrize("ran", [False, True])
def test_a_server_that_fails_a_gate_gives_the_old_directory_back(ready: Any, run_module: Any, ran: bool) -> None:
    if ran:
        ready.run_old()
    ready.params["expected"]["canary"]["seq"] = 8
    result = run_module(redis_swap, ready.params)
    assert result["failed"] and "is as it was before" in result["msg"] and set(ready.failing(result)) == {"redis_canary"}
    assert (ready.box / "redis.failed-r1" / "appendonlydir").is_dir() and not (ready.box / "redis.before-r1").exists() and not ready.lock.exists()
    assert json.loads(ready.record.read_text())["state"] == "undone"
    if ran:
        assert ready.alive() and ready.client().call("EXISTS", "old:1") == 1
    else:
        assert not ready.alive() and (ready.data / "dump.rdb").read_bytes() == b"old"
    # Nor does a second attempt put an empty directory live.
    again = run_module(redis_swap, ready.params)
    assert again["failed"] and "holds no dump" in again["msg"] and ready.alive() is ran


def test_another_content_is_not_called_the_same(ready: Any, run_module: Any) -> None:
    ready.params["expected"]["fingerprint"]["sha256"] = "0" * 64
    assert set(ready.failing(run_module(redis_swap, ready.params))) == {"redis_fingerprint"}


def test_a_server_that_does_not_start(ready: Any, run_module: Any) -> None:
    (ready.stage / "base.rdb").write_bytes(b"REDIS0010 nothing")
    result = run_module(redis_swap, ready.params)
    assert result["failed"] and list(ready.failing(result)) == ["redis_start"]
    assert (ready.data / "dump.rdb").read_bytes() == b"old" and (ready.box / "redis.failed-r1").exists()


def test_a_swap_that_broke_off_between_its_renames_goes_on(ready: Any, run_module: Any) -> None:
    os.rename(ready.data, f"{ready.data}.before-r1")
    result = run_module(redis_swap, ready.params)
    assert result["changed"] and (ready.box / "redis.before-r1" / "dump.rdb").read_bytes() == b"old"


def test_what_another_run_left_between_its_renames_is_put_back_first(ready: Any, run_module: Any) -> None:
    os.rename(ready.data, f"{ready.data}.before-r0")
    ready.record.write_text(json.dumps({"run_id": "r0", "state": "exchanging", "aside": f"{ready.data}.before-r0", "data_dir": str(ready.data)}))
    result = run_module(redis_swap, ready.params)
    assert result["changed"] and any("was put back" in note for note in result["titan_dr"]["notes"])
    assert (ready.box / "redis.before-r1" / "dump.rdb").read_bytes() == b"old" and not (ready.box / "redis.before-r0").exists()


def test_a_run_that_broke_off_after_its_renames_is_found_served(ready: Any, run_module: Any) -> None:
    run_module(redis_swap, ready.params)
    record = json.loads(ready.record.read_text())
    ready.record.write_text(json.dumps({**record, "state": "exchanging"}))
    result = run_module(redis_swap, ready.params)
    assert not result["failed"] and not result["changed"] and json.loads(ready.record.read_text())["state"] == "live"


def test_a_run_that_broke_off_while_redis_started_goes_on(ready: Any, run_module: Any) -> None:
    """Both directories have their new names, nothing was proven and Redis is down: it is started and proven, not swapped again."""
    run_module(redis_swap, ready.params)
    ready.process.terminate()
    ready.process.wait()
    record = json.loads(ready.record.read_text())
    ready.record.write_text(json.dumps({**record, "state": "exchanging"}))
    ready.lock.touch()  # and it was killed before it took its own lock away
    result = run_module(redis_swap, ready.params)
    assert result["changed"] and not ready.failing(result) and json.loads(ready.record.read_text())["state"] == "live"
    assert (ready.box / "redis.before-r1" / "dump.rdb").read_bytes() == b"old" and ready.alive()


def test_what_services_wrote_since_does_not_make_it_another_restore(ready: Any, run_module: Any) -> None:
    """A run that broke off after its services started goes on: their writes are no reason to restore again."""
    run_module(redis_swap, ready.params)
    for database in (0, 1):
        ready.client().call("SELECT", str(database))
        for number in range(300):
            ready.client().call("SET", f"new:{number}", "written by a service")
    result = run_module(redis_swap, ready.params)
    assert result["changed"] is False and not ready.failing(result)
    # without the proof it would be: then its content is compared
    record = json.loads(ready.record.read_text())
    ready.record.write_text(json.dumps({**record, "state": "exchanging", "aside": "elsewhere"}))
    assert run_module(redis_swap, ready.params)["failed"]


def test_a_stage_that_was_made_again_for_data_that_are_live_goes(ready: Any, run_module: Any) -> None:
    run_module(redis_swap, ready.params)
    ready.stage.mkdir()
    (ready.stage / "base.rdb").write_bytes(b"a copy of everything")
    assert run_module(redis_swap, ready.params)["changed"] is False and not ready.stage.exists()


def test_a_damaged_record_is_not_guessed_at(ready: Any, run_module: Any) -> None:
    ready.record.write_text("{")
    result = run_module(redis_swap, ready.params)
    assert result["failed"] and "is damaged" in result["msg"] and ready.log == []


def test_a_blank_server_has_nothing_to_keep(ready: Any, run_module: Any) -> None:
    shutil.rmtree(ready.data)
    result = run_module(redis_swap, ready.params)
    assert result["changed"] and result["kept"] == "" and not (ready.box / "redis.before-r1").exists()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("dir /elsewhere", "says dir /elsewhere"),
        ("include /x", "include"),
        ("port x", "not a number"),
        ("cluster-enabled yes", "cluster-enabled yes"),
        ("sentinel monitor m 127.0.0.1 6379 1", "Sentinel"),
        ("maxmemory lots", "not an amount of memory"),
    ],
)
def test_a_configuration_that_does_not_fit_changes_nothing(ready: Any, run_module: Any, text: str, why: str) -> None:
    with ready.config.open("a") as handle:
        handle.write(f"{text}\n")
    result = run_module(redis_swap, ready.params)
    assert result["failed"] and why in result["msg"] and ready.log == [] and (ready.data / "dump.rdb").exists()


def test_check_mode(ready: Any, run_module: Any) -> None:
    result = run_module(redis_swap, {**ready.params, "stage": "", "expected": {}}, check=True)
    assert result["changed"] and "restore point p1" in result["titan_dr"]["notes"][0] and ready.log == []


def test_the_password_is_not_in_the_result(ready: Any, run_module: Any) -> None:
    ready.configure("appendonly yes", "requirepass AMONG-OTHERS")
    result = run_module(redis_swap, {**ready.params, "password": "AMONG-OTHERS"})
    assert not result["failed"] and "AMONG-OTHERS" not in json.dumps(result["titan_dr"])
