# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from titan_dr import cli, drill, monthly, report

GATES = [
    {"name": "exchanges", "verdict": "pass", "evidence": "GET http://127.0.0.1:3000/health/exchanges: status 200; 12 ms"},
    {"name": "trading", "verdict": "pass", "evidence": "status 200; 140 ms"},
    {"name": "memory_use", "verdict": "pass", "evidence": "30 %, at most 85 %"},
]


def recovered(scenario: str, **changes: Any) -> dict[str, Any]:
    found = report.empty(f"run-{scenario}", "drill", scenario, {"rto_s": 900, "rto_target_s": 600, "rpo_s": 300}, "recovered", "All gates passed.")
    found["rto"].update(actual_s=20.0, met=True)
    found["rpo"].update(actual_s=2.0, met=True, lost_acked_writes=7)
    return {**found, "gates": [dict(gate) for gate in GATES], "orders_while_halted": 0, "drill": {"fault": "default"}, **changes}


def ran(tmp_path: Path, **reports: dict[str, Any]) -> dict[str, Any]:
    return monthly.run(reports or monthly.TESTS, tmp_path, lambda name: reports.get(name) or recovered(name), lambda _text: None)


def test_all_five_passed(tmp_path: Path) -> None:
    found = ran(tmp_path)
    assert found["verdict"] == "pass" and monthly.exit_code(found) == 0
    assert [test["test"] for test in found["tests"]] == [*monthly.TESTS.values(), monthly.PERFORMANCE]
    assert "slowest answer 140 ms" in found["tests"][-1]["message"] and found["not_run"] == []
    assert json.loads((tmp_path / monthly.SUMMARY_FILE).read_text())["verdict"] == "pass"
    for name in monthly.PAGES:
        text = (tmp_path / name).read_text()
        assert "Network partition simulation" in text and "20.0 s (10 min 00 s, 15 min 00 s)" in text
        assert (tmp_path / name).stat().st_mode & 0o77 == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"result": "failed", "message": "It broke <here> | there"},
        {"rto": {"actual_s": 1000.0, "target_s": 600, "max_s": 900, "met": False}},
        {"gates": [*GATES, {"name": "no_orders_while_halted", "verdict": "unknown", "evidence": "no log"}]},
    ],
)
def test_one_that_did_not_pass_fails_the_month(tmp_path: Path, changes: dict[str, Any]) -> None:
    name = "network_partition"
    found = ran(tmp_path, **{**{other: recovered(other) for other in monthly.TESTS}, name: recovered(name, **changes)})
    assert found["verdict"] == "fail" and monthly.exit_code(found) == 1
    assert [test["verdict"] for test in found["tests"][:4]] == ["pass", "pass", "fail", "pass"]
    page = (tmp_path / "summary.html").read_text()
    assert "<here>" not in page


def test_a_slow_recovered_system_fails_the_fifth(tmp_path: Path) -> None:
    slow = [{"name": "trading", "verdict": "fail", "evidence": "status 200; 1500 ms, at most 1000"}]
    found = ran(tmp_path, **{**{name: recovered(name) for name in monthly.TESTS}, "database_corruption": recovered("database_corruption", gates=slow)})
    assert found["tests"][-1]["verdict"] == "fail" and "1500 ms" in found["tests"][-1]["message"]


def test_what_was_not_run_or_not_measured_is_unknown(tmp_path: Path) -> None:
    one = ran(tmp_path, network_partition=recovered("network_partition"))
    assert one["verdict"] == "unknown" and len(one["not_run"]) == 3 and monthly.exit_code(one) == report.MISSED
    assert "Not run: Database corruption" in (tmp_path / "summary.md").read_text()
    assert monthly.performance({"x": recovered("x", gates=[])})["verdict"] == "unknown"


def test_a_cancelled_drill_ends_the_month(tmp_path: Path) -> None:
    order = list(monthly.TESTS)
    found = ran(tmp_path, **{order[0]: recovered(order[0], result="cancelled"), order[1]: recovered(order[1])})
    assert len(found["tests"]) == 2 and monthly.TESTS[order[1]] in found["not_run"]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []

    def drilled(options: drill.Options, run_dir: Path, *_: Any) -> dict[str, Any]:
        asked.append((options.scenario, options.keys, run_dir.name.split("-")[1]))
        return recovered(options.scenario)

    monkeypatch.setattr(drill, "run", drilled)
    assert cli.main(["monthly", "--keys", "50", "--runs-dir", str(tmp_path)]) == 0
    assert asked == [(name, 50, name) for name in monthly.TESTS]
    assert "| Complete system restoration from backup | pass |" in capsys.readouterr().out
    assert len(list(tmp_path.glob("monthly/*/summary.html"))) == 1
    assert cli.main(["monthly", "database_corruption", "--json", "--runs-dir", str(tmp_path)]) == report.MISSED
    assert json.loads(capsys.readouterr().out[:-1])["verdict"] == "unknown"
    assert cli.main(["monthly", "flood", "--runs-dir", str(tmp_path)]) == report.USAGE
