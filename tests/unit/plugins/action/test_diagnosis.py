# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible_collections.titan.disaster_recovery.plugins.action import diagnosis

OBJECTIVES = {"rto_s": 600, "rto_target_s": 300, "rpo_s": 300, "limit_s": 1200, "recovers": "titan_servers", "phases": {"preflight": 20, "services": 80}}
ABOUT = {"titan": {"address": "192.0.2.10", "has_redis": True}}


def result(probe: str, found: Any = None, **more: Any) -> dict[str, Any]:
    return {"server": "titan", "probe": probe, "via": "titan", "found": found, "error": "", "login": None, **more}


def test_evidence_by_server() -> None:
    host = result("host", {"clock": 105.0, "disks": []}, login=True, before=100.0, after=103.0)
    seen = result("witness", {"reach": [{"tcp": "answers", "text": "well"}]}, via="replacement")
    results = [host, seen, result("stores", {"points": []}), result("pm2", None, login=True, error="no such user"), result("reach", {"tcp": "answers"})]
    evidence = diagnosis.evidence_of(results, ABOUT)
    server = evidence["servers"][0]
    assert evidence["stores"] == {"points": []}
    assert server["host"]["clock"] == {"skew_s": 2.0}
    assert server["witnesses"] == [{"from": "replacement", "tcp": "answers", "text": "well"}]
    assert server["login"]["verdict"] == "pass" and server["errors"] == {"pm2": "no such user"} and server["pm2"] is None


def test_a_server_that_nobody_gets_onto_and_a_witness_that_could_not_look() -> None:
    results = [
        result("host", login=False, error="timed out"),
        result("witness", via="replacement", error="timed out"),
        result("pm2", error="it did not end in time"),
    ]
    server = diagnosis.evidence_of(results, ABOUT)["servers"][0]
    assert server["login"] == {"verdict": "fail", "text": "no login: timed out"}
    assert server["witnesses"] == [{"from": "replacement", "tcp": "unknown", "text": "it could not look: timed out"}]
    # without any answer it is not known
    assert "login" not in diagnosis.evidence_of([result("reach", {"tcp": "answers"})], ABOUT)["servers"][0]


def test_a_clock_is_right_when_it_fits_between_two_looks_at_ours() -> None:
    assert diagnosis.skew({"clock": 101.0}, 100.0, 109.0) == 0.0
    assert diagnosis.skew({"clock": 90.0}, 100.0, 109.0) == 10.0
    assert diagnosis.skew({"clock": 119.5}, 100.0, 109.0) == 10.5


def test_the_time_is_learnt_else_declared() -> None:
    declared = diagnosis.expected("database_corruption", OBJECTIVES, [], ["titan"], None)
    assert declared == {"p50_s": 50.0, "p95_s": 100.0, "basis": "declared budgets"}
    entries = [{"phase": "preflight", "start_s": 0.0}, {"phase": "services", "start_s": 4.0}]
    report = {"result": "recovered", "kind": "drill", "scenario": "database_corruption", "hosts": ["titan"], "restore_point": {}, "timings": {}}
    reports = [{**report, "run_id": f"r{number}", "entries": entries, "rto": {"actual_s": 20.0}} for number in range(3)]
    assert diagnosis.expected("database_corruption", OBJECTIVES, reports, ["titan"], None) == {
        "p50_s": 20.0,
        "p95_s": 20.0,
        "basis": "learnt from earlier runs",
    }


def test_its_reports_lie_apart_from_those_that_the_budget_learns_from() -> None:
    assert diagnosis.run_directory({"HOME": "/home/ann"}, "r1") == Path("/home/ann/.local/state/titan-dr/runs/diagnosis/r1")
    assert diagnosis.run_directory({"TITAN_DR_RUN_DIR": "/srv/x"}, "r1") == Path("/srv/x")
