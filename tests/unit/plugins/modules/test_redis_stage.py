# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _journal, _lease
from ansible_collections.titan.disaster_recovery.plugins.modules import redis_stage

CANARY = {"key": "titan:dr:canary", "db": 1}
KEYSPACE = {"db0": {"keys": 10, "expires": 2}, "db1": {"keys": 3, "expires": 0}}


@pytest.fixture
def dump(redis_server: Any, case: Any, section_of: Any) -> bytes:
    server = redis_server()
    server.fill()
    dump = bytes(server.dump())
    case.section = section_of(dump)
    return dump


def test_proven(case: Any, dump: bytes, run_module: Any) -> None:
    case.add("new", dump)
    result = run_module(redis_stage, case.params)
    assert result["changed"] and result["stage"] == str(case.directory)
    assert (case.directory / "base.rdb").read_bytes() == dump and os.listdir(case.directory) == ["base.rdb"]
    assert result["expected"]["canary"] == {**CANARY, "seq": 7, "at": 1000.0} and result["expected"]["keyspace"] == KEYSPACE
    rows = result["titan_dr"]
    assert rows["gates"][0]["verdict"] == "pass" and "canary 7" in rows["gates"][0]["evidence"]
    assert rows["versions"] == {"redis": "7.0.15"}
    assert rows["rpo"] == {"actual_s": 100.0, "basis": "canary"} and rows["restore_point"]["id"] == "new" and rows["notes"] == []
    assert (rows["restore_point"]["bytes"], rows["restore_point"]["object_bytes"]) == (len(dump), case.params["candidates"][0]["object"]["size"])
    assert set(rows["timings"]) == {"fetch", "wait_for_packages", "prove"}


def test_a_stage_that_an_earlier_run_left_is_removed_unless_it_is_being_made(case: Any, dump: bytes, run_module: Any) -> None:
    left, live = case.box / "redis.stage-old", case.box / "redis.stage-live"
    left.mkdir()
    live.mkdir()
    redis_stage.write(redis_stage.job_file("live"), {"pid": os.getpid()})
    case.add("new", dump)
    run_module(redis_stage, case.params)
    assert not left.exists() and live.exists() and case.directory.exists()


def test_outcomes_of_earlier_jobs_are_removed_unless_they_are_at_work(case: Any, dump: bytes, run_module: Any) -> None:
    redis_stage.write(redis_stage.job_file("old"), {"stage": "/gone"})
    redis_stage.write(redis_stage.job_file("live"), {"pid": os.getpid()})
    case.add("new", dump)
    run_module(redis_stage, case.params)
    assert not os.path.exists(redis_stage.job_file("old")) and os.path.exists(redis_stage.job_file("live"))


@pytest.mark.parametrize(("record", "again"), [({"run_id": "r1", "state": "live"}, False), ({"run_id": "r0", "state": "live"}, True), ({}, True)])
def test_what_this_run_has_put_live_is_not_staged_again(case: Any, monkeypatch: pytest.MonkeyPatch, record: dict[str, Any], again: bool) -> None:
    monkeypatch.setattr(redis_stage._redis_data, "read_record", lambda: record)
    job = redis_stage.job_file("r1")
    redis_stage.write(job, {"stage": "consumed"})
    assert redis_stage.proven_before(redis_stage.stage_dir(str(case.box / "redis"), "r1"), job) is not again


def test_the_data_loss_without_a_canary(case: Any, dump: bytes, run_module: Any) -> None:
    case.add("new", dump, canary=None)
    assert run_module(redis_stage, case.params)["titan_dr"]["rpo"] == {"actual_s": 110.0, "basis": "time of the snapshot"}


def test_a_bad_candidate_is_passed_over_with_its_reason(case: Any, dump: bytes, redis_server: Any, run_module: Any) -> None:
    case.add("damaged", dump, stored=b"x" * 1000)
    case.add("empty", redis_server().dump(), recorded=True)
    case.add("gone", dump, source={"store": "far", "kind": "file", "path": "/nonexistent"})
    case.add("lied", dump, size=len(dump) + 1)
    case.add("other", dump, sha256="0" * 64)
    case.add("version", dump, rdb_version=9)
    case.add("canary", dump, canary={"seq": 8, "at": 1000.0})
    case.add("content", dump, fingerprint={"keys": 11, "sha256": "0" * 64})
    case.add("good", dump, taken_at=500.0)
    result = run_module(redis_stage, case.params)
    assert result["titan_dr"]["restore_point"]["id"] == "good" and (case.directory / "base.rdb").read_bytes() == dump
    reasons = [note.removeprefix("passed over: restore point ") for note in result["titan_dr"]["notes"]]
    assert [reason.split()[0] for reason in reasons[:-1]] == ["damaged", "empty", "gone", "lied", "other", "version", "canary", "content"]
    whys = ("age ended", "0 keys loaded", "reading failed", "bytes", "not the one that was saved", "says RDB 10", "canary is 7, 8", "the fingerprint is")
    for reason, why in zip(reasons[:-1], whys, strict=True):
        assert why in reason
    assert reasons[-1] == "restore point good is 490 s older than the newest one: so much more is lost"


def test_nothing_usable_leaves_no_stage(case: Any, dump: bytes, run_module: Any) -> None:
    case.add("damaged", dump, stored=b"x" * 1000)
    result = run_module(redis_stage, case.params)
    assert result["failed"] and "No Redis data was restored" in result["msg"] and result["titan_dr"]["gates"][0]["verdict"] == "fail"
    assert not case.directory.exists()


def test_no_candidate(case: Any, run_module: Any) -> None:
    assert "there is no candidate" in run_module(redis_stage, case.params)["msg"]


def test_packages_that_never_come(case: Any, dump: bytes, run_module: Any) -> None:
    (case.box / "marker").unlink()
    case.add("new", dump)
    result = run_module(redis_stage, {**case.params, "timeout": 0.5})
    assert result["failed"] and "packages are not installed" in result["msg"]


@pytest.mark.parametrize("mode", ["run", "start"])
@pytest.mark.parametrize("name", redis_stage.WORKS_ON)
def test_what_is_needed_for_the_work_is_asked_for_before_it(case: Any, run_module: Any, mode: str, name: str) -> None:
    result = run_module(redis_stage, {**{key: value for key, value in case.params.items() if key != name}, "mode": mode})
    assert result["failed"] and name in result["msg"] and not case.directory.exists()


def test_check_mode_fetches_nothing(case: Any, run_module: Any) -> None:
    case.add("new", b"x", {})
    result = run_module(redis_stage, case.params, check=True)
    assert result["changed"] and "restore point new" in result["titan_dr"]["notes"][0] and not case.directory.exists()
    assert run_module(redis_stage, {**case.params, "mode": "wait"}, check=True)["titan_dr"] == {}


# --- in the background ----------------------------------------------------------------------------------------------


def until_running(case: Any) -> int:
    end = time.monotonic() + 5
    while not redis_stage.read(str(case.job)).get("pid"):
        assert time.monotonic() < end
        time.sleep(0.01)
    return int(redis_stage.read(str(case.job))["pid"])


def test_the_result_arrives_and_no_secret_touches_the_disk(case: Any, dump: bytes, web: Any, run_module: Any) -> None:
    planted = [case.key.identity.strip(), "SIGNED-ADDRESS", "PRIVATE-KEY-TEXT"]
    seen: list[bytes] = []

    def scan() -> bytes:
        return b"".join(path.read_bytes() for path in sorted(case.box.rglob("*")) if path.is_file() and path.suffix != ".object")

    def answer(method: str, path: str, body: bytes) -> Any:
        seen.append(scan())
        return 200, {}, (case.box / "new.object").read_bytes()

    url = f"{web(answer).url}/redis?X-Signature=SIGNED-ADDRESS"
    nobody = url.replace("127.0.0.1", "127.0.0.9")
    case.add("damaged", dump, source={"store": "cloud", "kind": "http", "url": nobody, "private_key": "PRIVATE-KEY-TEXT"})
    case.add("new", dump, source={"store": "cloud", "kind": "http", "url": url, "private_key": "PRIVATE-KEY-TEXT"})
    (case.box / "marker").unlink()
    started = run_module(redis_stage, {**case.params, "mode": "start"})
    assert not started["failed"] and not started["changed"]
    pid = until_running(case)
    with open(f"/proc/{pid}/cmdline") as handle:
        assert not any(secret in handle.read() for secret in planted)
    again = run_module(redis_stage, {**case.params, "mode": "start"})
    assert not again["failed"] and until_running(case) == pid, "there is one worker only"
    (case.box / "marker").touch()
    result = run_module(redis_stage, {"mode": "wait", "run_id": case.params["run_id"], "timeout": 20})
    assert not result["failed"] and result["titan_dr"]["restore_point"]["id"] == "new", result["msg"]
    assert (case.directory / "base.rdb").read_bytes() == dump and len(result["titan_dr"]["notes"]) == 1
    for content in [*seen, scan(), json.dumps(result).encode()]:
        assert not [secret for secret in planted if secret.encode() in content]
    deadline = time.monotonic() + 10
    while redis_stage.running(pid):
        assert time.monotonic() < deadline, "the worker outlives its result"
        time.sleep(0.05)
    # A stage that is proven is used again.
    assert not run_module(redis_stage, {**case.params, "candidates": [], "mode": "start"})["failed"]
    assert run_module(redis_stage, {**case.params, "mode": "wait"})["stage"] == str(case.directory)


def test_a_failure_in_the_background_is_reported(case: Any, dump: bytes, run_module: Any) -> None:
    case.add("damaged", dump, stored=b"x")
    run_module(redis_stage, {**case.params, "mode": "start"})
    result = run_module(redis_stage, {**case.params, "mode": "wait"})
    assert result["failed"] and "age ended" in result["msg"] and result["titan_dr"]["gates"][0]["verdict"] == "fail"


def test_a_worker_that_died_is_reported_at_once(case: Any, dump: bytes, run_module: Any) -> None:
    (case.box / "marker").unlink()
    case.add("new", dump)
    run_module(redis_stage, {**case.params, "mode": "start"})
    os.kill(until_running(case), signal.SIGKILL)
    started = time.monotonic()
    result = run_module(redis_stage, {**case.params, "mode": "wait"})
    assert result["failed"] and "died" in result["msg"] and result["titan_dr"]["gates"][0]["verdict"] == "unknown"
    assert time.monotonic() - started < 15
    # It can be started anew.
    (case.box / "marker").touch()
    run_module(redis_stage, {**case.params, "mode": "start"})
    end = time.monotonic() + 5
    while "stage" not in redis_stage.read(str(case.job)):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert not run_module(redis_stage, {**case.params, "mode": "wait"})["failed"]


def test_a_worker_that_was_never_started(case: Any, run_module: Any) -> None:
    result = run_module(redis_stage, {**case.params, "mode": "wait", "timeout": 0.3})
    assert result["failed"] and "did not end in time" in result["msg"]


def test_the_worker_ends_with_its_time(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it hangs on: the alarm is the kernel's."""
    monkeypatch.setattr(redis_stage.signal, "alarm", lambda seconds: signal.setitimer(signal.ITIMER_REAL, 0.2))
    redis_stage.in_background(lambda: time.sleep(60), str(case.job), 1)
    pid = until_running(case)
    end = time.monotonic() + 3
    while redis_stage.running(pid):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert "died" in redis_stage.wait(str(case.job), time.time() + 1)["failed"]


# --- under the lease --------------------------------------------------------------------------------------------------


@pytest.fixture
def lease(monkeypatch: pytest.MonkeyPatch) -> _lease.Lease:
    found = _lease.Lease(3, "r1", "aaaa", "x", 1.0, 1.0, {}, "held")
    _lease.write(found)
    monkeypatch.setenv("TITAN_DR_COMMAND", "r1/aaaa/3")
    return found


def events() -> list[tuple[str, str]]:
    return [(row["step"], row["event"]) for row in _journal.read(_lease.journal_path())]


def until_free() -> None:
    handle = _lease.lock(fcntl.LOCK_EX, 5)
    assert handle is not None
    os.close(handle)


INTENT = ("redis_stage", "intent")


@pytest.mark.parametrize("end", ["done", "failed", "terminated", "killed", "alarm"])
def test_the_worker_keeps_the_lock_and_writes_its_end(case: Any, dump: bytes, lease: Any, run_module: Any, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    (case.box / "marker").unlink()
    case.add("new", dump)
    timeout = {"failed": 0.5, "alarm": -4.0}.get(end, 30)  # the alarm has five seconds more
    if end == "alarm":
        monkeypatch.setattr(redis_stage, "work", lambda params, directory: time.sleep(60))
    run_module(redis_stage, {**case.params, "mode": "start", "timeout": timeout})
    pid = until_running(case)
    if end != "alarm":
        again = run_module(redis_stage, {**case.params, "mode": "start", "timeout": timeout})
        assert not again["failed"] and (events().count(("redis_stage", "done")) == 0), "it is not done because it was asked for again"
    if end in ("done", "terminated", "killed"):
        assert _lease.lock(fcntl.LOCK_EX, 0) is None
        assert redis_stage.running(pid)
    if end == "done":
        (case.box / "marker").touch()
    elif end in ("terminated", "killed"):
        os.kill(pid, signal.SIGTERM if end == "terminated" else signal.SIGKILL)
    until_free()
    expected = {"done": "done", "failed": "failed", "terminated": "failed"}.get(end)
    assert events()[-1] == (("redis_stage", expected) if expected else INTENT)
    assert not redis_stage.running(pid)


def test_a_stage_that_was_made_is_done_at_once(case: Any, dump: bytes, lease: Any, run_module: Any) -> None:
    case.add("new", dump)
    for expected in ([INTENT, INTENT, ("redis_stage", "done")], [INTENT, ("redis_stage", "done")]):
        before = len(events())
        run_module(redis_stage, {**case.params, "mode": "start"})
        run_module(redis_stage, {**case.params, "mode": "wait"})
        until_free()
        assert events()[before:] == expected


def test_an_old_run_stages_nothing(case: Any, dump: bytes, lease: Any, run_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TITAN_DR_COMMAND", "r1/aaaa/2")
    case.add("new", dump)
    for mode in ("run", "start"):
        result = run_module(redis_stage, {**case.params, "mode": mode})
        assert result["titan_dr"]["refused"] and not case.directory.exists() and not case.job.exists() and events() == []


def test_running() -> None:
    assert redis_stage.running(os.getpid()) and not redis_stage.running(0)
    child = os.fork()
    if not child:
        os._exit(0)
    end = time.monotonic() + 3
    while redis_stage.running(child):
        assert time.monotonic() < end, "a zombie does not run"
    os.waitpid(child, 0)
