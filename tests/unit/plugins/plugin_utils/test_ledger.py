# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.plugin_utils import _ledger


class FakeClock:
    def __init__(self, wall: float = 1000.0) -> None:
        self.wall_s, self.monotonic_s = wall, 50.0

    def clock(self) -> _ledger.Clock:
        return _ledger.Clock(wall=lambda: self.wall_s, monotonic=lambda: self.monotonic_s)

    def advance(self, seconds: float) -> None:
        self.wall_s += seconds
        self.monotonic_s += seconds


def test_time_is_counted_from_the_incident_and_ignores_steps_of_the_wall_clock() -> None:
    fake = FakeClock()
    lines: list[str] = []
    ledger = _ledger.Ledger(940.0, fake.clock(), lines.append)
    fake.advance(5)
    fake.wall_s -= 3600
    ledger.add("note", text="x", phase=None)
    assert json.loads(lines[0]) == {"at": -2595.0, "t": 65.0, "event": "note", "text": "x"}


def test_an_incident_in_the_future_counts_from_now() -> None:
    assert _ledger.Ledger(5000.0, FakeClock().clock(), lambda line: None).elapsed() == 0.0


@pytest.mark.parametrize(
    ("text", "epoch"),
    [
        ("1700000000", 1700000000.0),
        (1700000000.5, 1700000000.5),
        ("2023-11-14T22:13:20Z", 1700000000.0),
        ("2023-11-14T22:13:20", 1700000000.0),
        ("2023-11-14T23:13:20+01:00", 1700000000.0),
    ],
)
def test_instants(text: object, epoch: float) -> None:
    assert _ledger.parse_instant(text) == epoch


@pytest.mark.parametrize("text", ["", "yesterday", "nan", "inf", "-1", "1700000000000", "True"])
def test_what_is_no_instant(text: str) -> None:
    with pytest.raises(ValueError):
        _ledger.parse_instant(text)


@pytest.mark.parametrize(("text", "good"), [("20261122T000000Z-x-12ab", True), ("../x", False), ("a/b", False), ("", False), (".x", False)])
def test_a_run_id_cannot_leave_its_directory(text: str, good: bool) -> None:
    assert _ledger.is_run_id(text) is good


def test_a_torn_last_line_is_left_out() -> None:
    assert _ledger.read_rows('{"event": "note", "t": 1}\n{"event": "ta') == [{"event": "note", "t": 1}]


def test_run_directory() -> None:
    assert str(_ledger.run_directory({"TITAN_DR_RUN_DIR": "/x/y"}, "r")) == "/x/y"
    assert str(_ledger.run_directory({"HOME": "/home/op"}, "r")) == "/home/op/.local/state/titan-dr/runs/r"


def test_only_what_stands_under_titan_dr_is_taken() -> None:
    result = {"stdout": "s3cret", "titan_dr": {"trading": "halted", "password": "s3cret", "timings": {"swap": 1.5}}}
    assert _ledger.reported(result, "t") == {"trading": "halted", "timings": {"swap": 1.5}}


@pytest.mark.parametrize("hidden", [{"censored": "hidden"}, {"_ansible_no_log": True}])
def test_hidden_results_say_nothing(hidden: dict[str, Any]) -> None:
    said = {"titan_dr": {"notes": ["s3cret"]}}
    assert _ledger.reported({**said, **hidden}, "t") == {}
    assert _ledger.reported({"results": [{**said, **hidden}, {"titan_dr": {"notes": ["open"]}}]}, "t") == {"notes": ["open"]}


@pytest.mark.parametrize(
    "gate",
    [{"name": "g", "verdict": "ok"}, {"name": "g"}, {"name": "g", "verdict": True}, {"verdict": "pass?"}, "pass", None, [], 7],
)
def test_what_cannot_be_read_as_a_verdict_is_unknown(gate: object) -> None:
    gates = _ledger.reported({"titan_dr": {"gates": [gate]}}, "task")["gates"]
    assert [found["verdict"] for found in gates] == ["unknown"]


def test_a_titan_dr_that_is_no_mapping_is_unknown_too() -> None:
    assert _ledger.reported({"titan_dr": "all fine"}, "task")["gates"][0]["verdict"] == "unknown"


def test_an_earlier_incident_is_adopted_and_a_later_one_is_not() -> None:
    fake = FakeClock()
    ledger = _ledger.Ledger(990.0, fake.clock(), lambda line: None)
    fake.advance(5)
    assert ledger.rebase(890.0) == 100.0
    assert (ledger.elapsed(), ledger.incident_at) == (115.0, 890.0)
    assert ledger.rebase(950.0) == 0.0 and ledger.elapsed() == 115.0


def test_what_a_step_says_of_lease_breach_and_deadline() -> None:
    said = {"lease": {"epoch": 1}, "breach": {"projected_s": 9}, "late": {"limit_s": 1}, "deadline_at": 5, "unreachable": "h", "refused": "no"}
    assert _ledger.reported({"titan_dr": said}, "t") == said
    assert _ledger.reported({"titan_dr": {"lease": "x", "breach": [], "deadline_at": True, "unreachable": "", "other": 1}}, "t") == {}
    assert _ledger.reported({"titan_dr": {"deadline_at": "soon"}}, "t") == {}


def test_the_table_of_a_reconciliation() -> None:
    row = {"venue": "v", "action": "match"}
    assert _ledger.reported({"titan_dr": {"reconciliation": [row, "no row"]}}, "t") == {"reconciliation": [row]}
    assert _ledger.reported({"titan_dr": {"reconciliation": "none"}}, "t") == {}
    assert _ledger.reported({"titan_dr": {"candidates": [row]}}, "t") == {"candidates": [row]}


def test_how_it_was_halted_and_whether_by_force() -> None:
    halt = {"rungs": [{"rung": "app", "verdict": "pass"}], "cancelled": {"bybit": {"count": 1, "ids": ["t-1"]}}}
    said = {"halt": halt, "forced": {"reason": "because of that", "gates": ["reconcile_bybit"]}, "trading": "awaiting resume"}
    assert _ledger.reported({"titan_dr": said}, "t") == said
    assert _ledger.reported({"titan_dr": {"trading": "perhaps", "halt": ["x"], "forced": True}}, "t") == {}
