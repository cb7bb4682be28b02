# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.titan.disaster_recovery.plugins.plugin_utils import _budget, _report

ROOT = Path(__file__).resolve().parents[4]
OBJECTIVES = {"rto_target_s": 60, "rto_s": 100, "rpo_s": 30, "limit_s": 300, "phases": {"preflight": 10, "provision": 40, "redis_restore": 60, "validate": 20}}
WAY = (("preflight", 0), ("redis_restore", 5), ("provision", 6), ("redis_restore", 16), ("validate", 36))


def past(end: float = 50, way: Any = WAY, **others: Any) -> dict[str, Any]:
    """The report of an earlier run: preflight 5 s, stage 1, provision 10, restore 20, validate 14."""
    entries = [{"phase": phase, "start_s": start} for phase, start in way]
    report = {"result": "recovered", "kind": "drill", "scenario": "s", "hosts": ["h"], "run_id": "1", "entries": entries, "rto": {"actual_s": end}}
    point = {"id": "p", "source": "near", "bytes": 1000, "object_bytes": 500}
    return {**report, "restore_point": point, "timings": {"fetch": 5}, "lease": None, **others}


def budget(*reports: dict[str, Any], **objectives: Any) -> dict[str, Any]:
    return _budget.make({**OBJECTIVES, **objectives}, reports, "s", ["h", "localhost"])


def entered(*phases: tuple[str, float], **others: Any) -> _budget.Progress:
    return _budget.Progress(phases, **others)


# learning


def test_percentiles() -> None:
    assert [_budget.percentile([3, 1, 2], fraction) for fraction in (0, 0.5, 1)] == [1, 2, 3]
    assert _budget.percentile([10, 20], 0.95) == pytest.approx(19.5)
    assert _budget.percentile([7], 0.95) == 7


def test_a_visit_lasts_until_the_next_one_and_the_last_until_the_resume() -> None:
    learnt = budget(past(), past(52), past(60))["learnt"]
    p50s = {name: entry["p50"] for name, entry in learnt.items()}
    assert p50s == {"preflight": 5, "redis_restore": 1, "provision": 10, "redis_restore#2": 20, "validate": 16}
    assert learnt["validate"] == {"p50": 16, "p95": pytest.approx(23.2), "n": 3}
    assert learnt["redis_restore#2"]["ref_bytes"] == 1000


def test_what_comes_after_the_resume_is_not_learnt() -> None:
    assert budget(past(way=(*WAY, ("trading_halt", 51))))["order"] == ["preflight", "redis_restore", "provision", "redis_restore#2", "validate"]


@pytest.mark.parametrize(
    "other",
    [
        {"result": "failed"},
        {"kind": "check"},
        {"scenario": "t"},
        {"hosts": ["h", "other"]},
        {"lease": {"adopted": True}},
        {"entries": [{"phase": "preflight", "start_s": 0}, {"phase": "validate", "start_s": 2}]},
        {"entries": None},
        {"entries": [{"phase": "preflight"}]},
        {"rto": {"actual_s": None}},
        {"hosts": 5},
        {"restore_point": 7},
    ],
)
def test_only_recoveries_of_this_scenario_on_these_servers_that_went_all_the_way_teach(other: dict[str, Any]) -> None:
    assert budget(past(), past(), past(**other))["learnt"]["validate"]["n"] == 2


def test_another_way_than_the_newest_ones_teaches_nothing() -> None:
    old = past(run_id="0", way=WAY[:3] + WAY[4:])
    assert budget(old, past(), old)["learnt"]["validate"]["n"] == 1


def test_stores_are_learnt_from_every_scenario() -> None:
    assert budget(past(), past(scenario="t", timings={"fetch": 10}), past(timings={}))["stores"] == {"near": {"bytes_per_s": 75.0, "n": 2}}


def test_without_earlier_runs_the_declared_order_stands() -> None:
    made = budget()
    assert made["learnt"] == {} and made["order"] == ["preflight", "provision", "redis_restore", "validate"]
    assert (made["rto_target_s"], made["rto_s"], made["rpo_s"], made["limit_s"]) == (60, 100, 30, 300)


# projecting


def test_the_projection_goes_the_way_of_the_earlier_runs() -> None:
    so_far = entered(("preflight", 1000), ("redis_restore", 1005), ("provision", 1006))
    projection = _budget.project(budget(past(), past(), past()), so_far, "provision", 1010)
    # six seconds of provision, the restore, validation
    assert projection == _budget.Projection(1010 + 6 + 20 + 14, 1010 + 6 + 20 + 14, 6, True)
    # the second visit of the same phase is another one
    later = _budget.project(budget(past(), past(), past()), entered(*so_far.entered, ("redis_restore", 1020)), "redis_restore", 1020)
    assert later.p50_end == 1020 + 20 + 14 and later.step_p50 == 20


def test_a_phase_that_takes_longer_than_ever_pushes_the_end() -> None:
    projection = _budget.project(budget(past(), past(), past()), entered(("preflight", 0), ("redis_restore", 5), ("provision", 6)), "provision", 500)
    assert (projection.p50_end, projection.step_p50) == (500 + 34, 0)


def test_the_gate_may_know_of_a_phase_before_the_ledger() -> None:
    known = budget(past(), past(), past())
    seen, unseen = (_budget.project(known, entered(("preflight", 0), *more), "redis_restore", 5) for more in ([("redis_restore", 5.0)], []))
    assert seen == unseen


def test_more_data_take_longer_and_less_do_not_take_less() -> None:
    known, so_far = budget(past(), past(), past()), entered(("preflight", 0), ("redis_restore", 5), ("provision", 6), ("redis_restore", 16))
    ends = [_budget.project(known, so_far, "redis_restore", 16, size).p50_end for size in (None, 1, 1000, 3000)]
    assert ends == [50, 50, 50, 90]


@pytest.mark.parametrize("reports", [[], [past(), past()]])
def test_few_runs_teach_nothing(reports: list[dict[str, Any]]) -> None:
    projection = _budget.project(budget(*reports), entered(("preflight", 0)), "preflight", 2)
    assert projection == _budget.Projection(2 + 3 + 60, 2 + 8 + 120, 3, False)


def test_by_declared_budgets_what_was_left_is_over() -> None:
    so_far = entered(("preflight", 0), ("provision", 1), ("redis_restore", 2), ("provision", 4))
    projection = _budget.project(budget(), so_far, "provision", 9)
    # provision has taken 1 s and 5 s of its 40; of the rest only validate was never begun
    assert (projection.p50_end, projection.p95_end) == (9 + 14 + 10, 9 + 34 + 20)


def test_a_way_that_no_run_went_is_projected_by_the_declared_budgets() -> None:
    assert _budget.project(budget(past(), past(), past()), entered(("preflight", 0), ("validate", 1), ("validate", 2)), "services", 3).learnt is False


# deciding


def decide(ends: float, phase: str = "provision", now: float = 1010, deadline: float | None = 1300, policy: str = "continue", **how: Any) -> _budget.Verdict:
    so_far = how.pop("so_far", entered(("preflight", 1000), ("provision", 1005)))
    projection = _budget.Projection(1000 + ends, 1000 + ends + 20, how.pop("step", 5), True)
    return _budget.decide(budget(**how), so_far, projection, phase, now, 1000, deadline, policy)


def test_in_time() -> None:
    assert decide(60) == _budget.Verdict()


def test_after_the_target_is_said_once() -> None:
    assert decide(61).late == {"projected_s": 61, "worst_s": 81, "phase": "provision", "declared_s": 10, "limit_s": 60}
    assert decide(61).kind == "go" and decide(61).breach is None
    assert decide(61, so_far=entered(("preflight", 1000), warned=True)) == _budget.Verdict()


def test_after_the_rto_is_said_once_and_goes_on() -> None:
    assert decide(100).breach is None
    verdict = decide(101)
    assert verdict.kind == "go" and verdict.breach == {"projected_s": 101, "worst_s": 121, "phase": "provision", "declared_s": 10, "limit_s": 100}
    assert decide(101, so_far=entered(("preflight", 1000), breached=True)) == _budget.Verdict()


def test_after_the_rto_stops_when_it_is_to_stop() -> None:
    verdict = decide(101, policy="abort")
    assert verdict.kind == "fail" and verdict.breach and "101 s" in verdict.msg
    assert decide(101, policy="abort", phase="preflight", so_far=entered(("preflight", 1000))).kind == "refuse"
    # a preflight that comes after damage is no refusal
    assert decide(101, policy="abort", phase="preflight").kind == "fail"
    assert decide(101, policy="abort", so_far=entered(("preflight", 1000), breached=True)).kind == "fail"


@pytest.mark.parametrize("policy", ["continue", "abort"])
def test_what_does_not_fit_is_not_started(policy: str) -> None:
    assert decide(50, policy=policy, step=20, now=1280).kind == "go"
    assert decide(50, policy=policy, step=21, now=1280).kind == "fail"
    assert decide(50, policy=policy, step=0, now=1300).kind == "fail"
    assert decide(50, policy=policy, step=0, now=1299).kind == "go"
    assert decide(50, policy=policy, step=500, deadline=None).kind == "go"
    assert decide(50, policy=policy, step=500, phase="preflight", so_far=entered()).kind == "refuse"
    # validation has no exception: it fails, and trading stays halted
    assert decide(50, policy=policy, step=21, now=1280, phase="validate").kind == "fail"


def test_a_policy_that_nobody_knows_is_refused() -> None:
    assert decide(10, policy="Abort", phase="preflight", so_far=entered()).kind == "refuse"


def test_without_objectives_only_the_deadline_counts() -> None:
    assert decide(1e6, rto_s=None, rto_target_s=None) == _budget.Verdict()


def test_progress() -> None:
    rows = [{"event": "phase_start", "phase": "preflight", "at": 1.5}, {"event": "note", "text": "x"}]
    assert _budget.progress(rows) == entered(("preflight", 1.5)) and _budget.progress(rows).untouched
    rows += [{"event": "phase_start", "phase": "provision", "at": 2}, {"event": "breach"}, {"event": "late"}]
    assert _budget.progress(rows) == entered(("preflight", 1.5), ("provision", 2), breached=True, warned=True)
    assert not _budget.progress(rows).untouched


def test_a_report_teaches_what_it_says() -> None:
    rows: list[dict[str, Any]] = [{"event": "run_start", "t": 0, "at": 0, "scenario": "s", "kind": "real"}]
    rows += [{"event": "phase_start", "phase": phase, "t": start, "at": start} for phase, start in WAY]
    rows += [
        {"event": "gate", "name": "g", "verdict": "pass", "t": 40, "at": 40},
        {"event": "task", "t": 50, "at": 50, "host": "h", "status": "changed", "titan_dr": {"trading": "resumed"}},
        {"event": "run_end", "t": 60, "at": 60, "stats": {}},
    ]
    report = _report.build(rows)
    assert report["result"] == "recovered" and budget(report)["learnt"]["validate"] == {"p50": 14, "p95": 14, "n": 1}


# a cheaper way


def candidate(name: str, taken_at: float, *stores: str, size: int = 1000) -> dict[str, Any]:
    return {"id": name, "taken_at": taken_at, "object": {"size": size}, "details": {}, "sources": [{"store": store} for store in stores]}


RATES = {"far": {"bytes_per_s": 10, "n": 3}, "near": {"bytes_per_s": 100, "n": 3}, "unproven": {"bytes_per_s": 1000, "n": 2}}


def choose(*candidates: dict[str, Any], ends: float = 150) -> _budget.Choice | None:
    # from far it takes 100 s, from near 10
    return _budget.cheaper({**budget(), "stores": RATES}, candidates, _budget.Projection(1000 + ends, 1000 + ends, 0, True), 1000)


def test_the_same_restore_point_from_a_faster_store_costs_nothing() -> None:
    choice = choose(candidate("new", 999, "far", "near"), candidate("old", 980, "near"))
    assert choice and [source["store"] for source in choice.candidates[0]["sources"]] == ["near", "far"]
    assert choice.gain_s == 90 and "nothing more is lost" in choice.note


def test_an_older_one_within_the_rpo_that_can_be_had_in_time() -> None:
    choice = choose(candidate("new", 999, "far"), candidate("old", 980, "near"), candidate("older", 975, "near"))
    assert choice and [found["id"] for found in choice.candidates] == ["old", "new", "older"]
    assert "19 s more of data are lost" in choice.note and "old is fetched from near" in choice.note


@pytest.mark.parametrize(
    ("candidates", "ends"),
    [
        pytest.param((candidate("new", 999, "far"), candidate("old", 980, "near")), 100, id="in time"),
        pytest.param((candidate("new", 999, "far"), candidate("old", 969, "near")), 150, id="beyond the RPO"),
        pytest.param((candidate("new", 999, "far"), candidate("old", 980, "unproven")), 150, id="of a store that few runs used"),
        pytest.param((candidate("new", 999, "unknown"), candidate("old", 980, "near")), 150, id="the newest one may be fast"),
        pytest.param((candidate("new", 999, "far"), candidate("old", 980, "near")), 191, id="too late with it too"),
        pytest.param((candidate("new", 999), candidate("old", 980, "near")), 150, id="no source"),
        pytest.param((), 150, id="none"),
    ],
)
def test_otherwise_the_newest(candidates: tuple[dict[str, Any], ...], ends: float) -> None:
    assert choose(*candidates, ends=ends) is None


def test_sooner() -> None:
    assert _budget.sooner(_budget.Projection(10, 20, 1, True), 4) == _budget.Projection(6, 16, 1, True)


# the page


def test_the_example_of_the_page_is_what_the_gate_says() -> None:
    scenario = yaml.safe_load((ROOT / "playbooks/vars/scenarios.yml").read_text())["titan_dr_scenarios"]["complete_system_failure"]
    medians = {"preflight": 30, "trading_halt": 20, "provision": 10, "redis_restore": 10, "dependencies": 60, "config_restore": 10, "app_restore": 10}
    way = [*medians.items(), ("redis_restore", 30), ("services", 70), ("dependencies", 20), ("validate", 60), ("trading_halt", 10)]
    starts = [sum(seconds for _phase, seconds in way[:number]) for number in range(len(way) + 1)]
    drill = past(starts[-1], tuple((phase, start) for (phase, _seconds), start in zip(way, starts, strict=False)))

    def verdict(drills: int, phase: str, now: float, policy: str = "continue", data: float = 1000, *phases: tuple[str, float]) -> _budget.Verdict:
        made = _budget.make(scenario, [drill] * drills, "s", ["h"])
        deadline = 550 + scenario["limit_s"] if policy == "continue" else scenario["rto_s"]
        return _budget.decide(made, entered(*phases), _budget.project(made, entered(*phases), phase, now, data), phase, now, 0, deadline, policy)

    first = verdict(0, "preflight", 550)
    assert first.kind == "go" and first.breach and first.breach["projected_s"] == 972.5
    assert verdict(0, "preflight", 550, "abort").kind == "refuse"
    learnt = verdict(3, "preflight", 550)
    assert learnt.breach is None and learnt.late and learnt.late["projected_s"] == 890
    phases = (("preflight", 550.0), ("trading_halt", 580.0), ("provision", 600.0), ("redis_restore", 610.0), ("dependencies", 612.0))
    breach = verdict(3, "dependencies", 612, "continue", 2000, *phases).breach
    assert breach
    page = (ROOT / "docs/budget.md").read_text()
    kept = json.dumps({name: round(breach[name]) if name != "phase" else breach[name] for name in ("declared_s", "projected_s", "phase")})
    assert f'"breach": {kept}' in page and "972.5 s" in page and "890 s" in page
