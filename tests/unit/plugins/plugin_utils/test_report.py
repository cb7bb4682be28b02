# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.plugin_utils import _report

Row = dict[str, Any]


class Rows(list[Row]):
    """A ledger in the making."""

    def __init__(self, **start: Any) -> None:
        super().__init__()
        known = {"run_id": "r", "kind": "real", "scenario": "s", "rto_target_s": 60, "rto_s": 90, "rpo_s": 30, "phases": {"a": 10, "b": 5}}
        self.add(0.0, "run_start", **{**known, **start})

    def add(self, t: float, event: str, **fields: Any) -> Rows:
        self.append({"at": 1000 + t, "t": t, "event": event, **fields})
        return self

    def task(self, t: float, status: str = "ok", phase: str = "a", name: str = "step", **said: Any) -> Rows:
        return self.add(t, "task", name=name, host="h", status=status, phase=phase, task_id=name, **({"titan_dr": said} if said else {}))

    def gate(self, t: float, name: str, verdict: str, task_id: str = "x") -> Rows:
        return self.add(t, "gate", name=name, verdict=verdict, evidence="e", task_id=task_id)

    def end(self, t: float, failures: int = 0, unreachable: int = 0, **how: Any) -> dict[str, Any]:
        stats = {"h": {"failures": failures, "unreachable": unreachable}}
        return _report.build(self.add(t, "run_end", **(how or {"stats": stats})))


def test_the_candidates_are_those_that_were_told_last() -> None:
    rows = Rows().task(1, candidates=[{"kind": "archive"}]).task(2, candidates=[{"kind": "archive"}, {"kind": "aof"}]).task(3, trading="resumed")
    assert [row["kind"] for row in rows.end(4)["candidates"]] == ["archive", "aof"]
    assert Rows().end(1)["candidates"] == []


def of(rows: Rows, host: str) -> Rows:
    """The row that was added last is of this server."""
    rows[-1]["host"] = host
    return rows


def test_the_worst_of_several_servers_stays_whatever_came_later() -> None:
    """The server that resumed last says nothing of the one that did not."""
    rows = of(Rows().gate(1, "resumed", "fail", "first"), "core")
    of(rows.gate(2, "resumed", "pass", "second"), "data")
    of(rows.gate(3, "resumed", "pass", "second"), "phases")
    report = rows.end(4)
    assert [(gate["host"], gate["verdict"]) for gate in report["gates"]] == [("core", "fail")]
    assert any("gate resumed: FAIL" in line for line in _report.closing_lines(report, "r"))
    # said again by that server it counts anew
    of(rows.gate(5, "resumed", "pass", "third"), "core")
    assert [(gate["host"], gate["verdict"]) for gate in rows.end(6)["gates"]] == [("core", "pass")]


def test_a_gate_of_several_servers_says_of_which() -> None:
    rows = of(Rows().gate(1, "disk", "fail"), "core")
    of(rows.gate(1, "canary", "pass"), "data")
    assert any("gate disk on core: FAIL" in line for line in _report.closing_lines(rows.end(2), "r"))


def test_a_refusal_after_the_halt_of_another_server_of_this_titan_is_a_failure() -> None:
    rows = of(Rows().task(1, lease={"run_id": "r", "epoch": 1}), "core")
    of(rows.task(2, trading="halted", halt={}), "core")
    of(rows.task(3, status="failed", refused="no time"), "data")
    assert rows.end(4, failures=1)["result"] == "failed"
    # the server that is given up is halted without a lease: nothing is begun on the new one
    rows = of(Rows().task(2, trading="halted", halt={}), "old")
    of(rows.task(3, status="failed", refused="another's"), "new")
    assert rows.end(4, failures=1)["result"] == "refused"


def test_what_the_server_that_trades_says_is_what_counts() -> None:
    rows = of(Rows().gate(1, "g", "pass").task(2, trading="halted", halt={}), "core")
    of(rows.task(2, halt={}), "data")
    of(rows.task(5, trading="resumed"), "core")
    of(rows.task(9), "data")
    report = rows.end(10)
    assert (report["trading"], report["rto"]["actual_s"], report["hosts"]) == ("resumed", 5, ["core", "data"])


def test_recovered() -> None:
    rows = Rows().gate(1, "g", "pass").task(20, trading="halted", rpo={"actual_s": 3, "basis": "canary"})
    report = rows.task(40, trading="resumed", restore_point={"id": "rp"}, versions={"redis": "7"}).end(100)
    assert (report["result"], report["trading"], report["hosts"], report["restore_point"]) == ("recovered", "resumed", ["h"], {"id": "rp"})
    # the clock stops with the resume, not with the end of the playbook
    assert report["rto"] == {"target_s": 60, "max_s": 90, "actual_s": 40, "met": True}
    assert report["rpo"] == {"target_s": 30, "actual_s": 3, "basis": "canary", "lost_acked_writes": None, "met": True}
    assert report["versions"] == {"redis": "7"}


def test_trading_halted_again_takes_the_resume_back() -> None:
    report = Rows().gate(1, "g", "pass").task(10, trading="resumed").task(20, trading="halted").end(95)
    assert (report["trading"], report["rto"]["actual_s"], report["rto"]["met"]) == ("halted", 95, False)


def test_trading_that_waits_for_a_person_is_a_technical_recovery() -> None:
    rows = Rows().gate(1, "g", "pass").task(10, trading="halted").task(30, trading="awaiting resume", rpo={"actual_s": 1})
    report = rows.end(100)
    assert (report["result"], report["trading"]) == ("recovered", "awaiting resume") and "playbooks/resume.yml" in report["message"]
    assert report["rto"] == {"target_s": 60, "max_s": 90, "actual_s": 30, "met": True, "basis": "technical recovery: trading waits for a person"}
    assert _report.exit_code(report) is None
    assert any("technical recovery" in line for line in _report.closing_lines(report, "r.json"))
    assert Rows().gate(1, "g", "unknown").task(3, trading="awaiting resume").end(4)["result"] == "failed"


def test_a_forced_resume_says_so_and_is_not_clean() -> None:
    forced = {"reason": "checked by phone", "gates": ["reconcile_bybit"]}
    rows = Rows().gate(1, "g", "pass").gate(1, "reconcile_bybit", "fail", "y").task(2, trading="resumed", forced=forced, rpo={"actual_s": 0})
    report = rows.end(3)
    assert report["result"] == "recovered" and report["forced"] == forced and _report.exit_code(report) == 4
    assert "BY FORCE" in report["message"] and "reconcile_bybit" in report["message"] and "checked by phone" in report["message"]
    other = Rows().gate(1, "g", "fail").gate(1, "reconcile_bybit", "fail", "y").task(2, trading="resumed", forced=forced).end(3)
    assert other["result"] == "failed", "no other gate is overruled"


def test_halts_are_told_host_by_host() -> None:
    halt = {"rungs": [{"rung": "app", "verdict": "fail"}], "cancelled": {"bybit": {"count": 1, "ids": ["t-1"]}}}
    report = Rows().gate(1, "g", "pass").task(2, halt=halt, trading="halted").task(3, halt=halt).task(4, trading="resumed").end(5)
    assert [entry["host"] for entry in report["halts"]] == ["h", "h"] and report["halts"][0]["cancelled"]["bybit"]["ids"] == ["t-1"]


def test_where_nothing_is_restored_there_is_no_objective_for_the_loss() -> None:
    report = Rows(rpo_s=None).gate(1, "g", "pass").task(2, "changed", trading="resumed").end(3)
    assert report["rpo"]["met"] is None and _report.exit_code(report) is None
    assert _report.exit_code(Rows().gate(1, "g", "pass").task(2, "changed", trading="resumed").end(3)) == 4


def test_a_recovery_that_leaves_trading_halted_is_none() -> None:
    assert Rows().gate(1, "g", "pass").task(2, "failed").task(3, trading="halted").end(4)["result"] == "failed"


def test_a_playbook_that_broke_off_is_no_recovery() -> None:
    report = Rows().gate(1, "g", "pass").task(2, "ignored").end(3)
    assert (report["result"], report["rto"]["met"]) == ("failed", None)


def test_no_gate_proves_nothing() -> None:
    assert Rows().task(1).end(2)["result"] == "failed"
    assert Rows(kind="check").task(1).end(2)["result"] == "recovered"


@pytest.mark.parametrize("verdict", ["fail", "unknown"])
def test_a_gate_that_did_not_pass_is_no_recovery(verdict: str) -> None:
    report = Rows().gate(1, "good", "pass").gate(1, "bad", verdict).end(2)
    assert report["result"] == "failed"
    assert "bad" in report["message"] and "good" not in report["message"]


def test_a_later_gate_replaces_an_earlier_one() -> None:
    assert Rows().gate(1, "g", "fail", "first").gate(2, "g", "pass", "second").task(2, trading="resumed").end(3)["result"] == "recovered"
    assert Rows().gate(1, "g", "pass", "first").gate(2, "g", "unknown", "second").end(3)["result"] == "failed"


@pytest.mark.parametrize("order", [("fail", "pass"), ("pass", "fail"), ("unknown", "pass"), ("pass", "unknown")])
def test_one_host_that_passes_does_not_hide_another(order: tuple[str, str]) -> None:
    assert Rows().gate(1, "g", order[0], "same").gate(1, "g", order[1], "same").end(3)["result"] == "failed"


@pytest.mark.parametrize(("status", "stats"), [("failed", {"failures": 1}), ("unreachable", {"unreachable": 1})])
def test_failures(status: str, stats: dict[str, int]) -> None:
    assert Rows().gate(0, "g", "pass").task(1, status, phase="b").end(2, **stats)["result"] == "failed"
    assert Rows().gate(0, "g", "pass").task(1, status, phase="preflight").end(2, **stats)["result"] == "refused"
    # the rescue of a later failure does not make it a refusal
    assert Rows().task(1, status, phase="b").task(2, status, phase="preflight").end(3, **stats)["result"] == "failed"


def test_the_reason_of_a_failure_is_the_message() -> None:
    rows = Rows().task(1, "failed", phase="preflight", name="disk")
    rows.add(1, "note", text="disk on h: 3 GiB are missing", task_id="disk", failure=True)
    assert rows.end(2, failures=1)["message"] == "disk on h: 3 GiB are missing"


def test_a_rescued_failure_is_told_and_does_not_decide() -> None:
    report = Rows().gate(0, "g", "pass").task(1, "failed", name="newest restore point").task(2, trading="resumed").end(2)
    assert report["result"] == "recovered" and "newest restore point" in report["message"]


def test_refused_by_a_result() -> None:
    report = Rows().task(1, refused="another recovery runs").end(2, failures=1)
    assert (report["result"], report["message"]) == ("refused", "another recovery runs")


def test_cut_off_cancelled_aborted() -> None:
    assert _report.build(Rows().gate(1, "g", "pass"))["result"] == "cancelled"
    assert Rows().end(1, cancelled="SIGTERM")["result"] == "cancelled"
    assert Rows().gate(1, "g", "pass").end(1, aborted="stopped")["result"] == "failed"
    assert _report.build([])["result"] == "cancelled"


def test_objectives() -> None:
    assert Rows().gate(1, "g", "pass").end(90.4)["rto"]["met"] is False
    assert Rows().gate(1, "g", "pass").task(61, trading="resumed").end(61)["rto"]["met"] is True
    assert Rows().gate(1, "g", "fail").end(61)["rto"]["met"] is None
    assert Rows(rto_s=None).gate(1, "g", "pass").end(61)["rto"]["met"] is None
    assert Rows().gate(1, "g", "pass").end(1)["rpo"]["met"] is None
    assert Rows().task(1, rpo={"actual_s": 31}).end(1)["rpo"]["met"] is False
    assert Rows().task(1, rpo={"actual_s": True}).end(1)["rpo"]["met"] is None
    assert Rows(kind="check").task(1, rpo={"actual_s": 1}).end(1)["rto"]["met"] is None


@pytest.mark.parametrize("trading", ["resumed", "awaiting resume"])
def test_a_run_that_changed_nothing_lost_nothing(trading: str) -> None:
    nothing = Rows().gate(1, "g", "pass").task(2, trading=trading).end(3)
    assert nothing["rpo"]["actual_s"] == 0.0 and _report.exit_code(nothing) is None
    assert Rows().gate(1, "g", "pass").task(2, "changed", trading=trading).end(3)["rpo"]["actual_s"] is None


def test_phases_that_overlap_and_phases_entered_again() -> None:
    rows = Rows().add(0, "phase_start", phase="a").add(2, "phase_start", phase="b").add(6, "phase_end", phase="a").add(7, "phase_end", phase="b")
    rows.add(20, "phase_start", phase="a").add(21.5, "phase_end", phase="a").add(22, "phase_start", phase="c")
    assert rows.end(30)["phases"] == [
        {"name": "a", "start_s": 0, "duration_s": 7.5, "budget_s": 10},
        {"name": "b", "start_s": 2, "duration_s": 5, "budget_s": 5},
        {"name": "c", "start_s": 22, "duration_s": 8, "budget_s": None},
    ]


def test_another_restore_point_replaces_the_first_as_a_whole() -> None:
    rows = Rows().task(1, restore_point={"id": "new", "proof": "x"}).task(2, restore_point={"id": "old", "source": "s3"}).task(3, restore_point={"proof": "y"})
    assert rows.end(4)["restore_point"] == {"id": "old", "source": "s3", "proof": "y"}


def test_a_refusal_of_a_server_that_was_only_seen_to_trade_is_one() -> None:
    report = Rows().task(1, trading="resumed").task(2, "failed", refused="it ended, recovered").end(3, failures=1)
    assert (report["result"], report["message"]) == ("refused", "it ended, recovered")


def test_a_refusal_after_the_halt_is_a_failure() -> None:
    report = Rows().task(1, trading="halted").task(2, "failed", refused="another run took the lease").end(3, failures=1)
    assert (report["result"], report["message"]) == ("failed", "another run took the lease")
    # the old server was halted, the one to recover onto was not touched
    rows = Rows().add(1, "task", name="halt", host="old", status="ok", titan_dr={"trading": "halted"})
    assert rows.task(2, "failed", refused="another run has the lease").end(3, failures=1)["result"] == "refused"


def test_lease_breach_and_deadline() -> None:
    assert [Rows().end(1)[key] for key in ("lease", "breach", "deadline_at")] == [None, None, None]
    rows = Rows(deadline_at=500.0).add(1, "lease", run_id="r", epoch=0, adopted=False, deadline_at=400.0).add(2, "lease", run_id="r", epoch=2, adopted=True)
    rows.add(3, "breach", declared_s=3, projected_s=95, phase="b", limit_s=90).add(4, "breach", declared_s=4, projected_s=99, phase="c")
    report = rows.end(5)
    assert report["lease"] == {"run_id": "r", "epoch": 2, "adopted": True}
    assert report["breach"] == {"declared_s": 3, "projected_s": 95, "phase": "b"}
    assert report["deadline_at"] == 400.0
    text = "\n".join(_report.closing_lines(report, "p"))
    assert "breach declared 3.0 s after the incident in phase b: its end was projected at 95.0 s" in text and "went on with run r" in text
    text = "\n".join(_report.closing_lines(Rows().add(1, "lease", run_id="r", epoch=2, adopted=False).end(2), "p"))
    assert "breach" not in text and "went on" not in text


def test_one_clock_for_a_run_that_goes_on_with_another() -> None:
    rows = Rows(incident_at=1000.0).add(1, "phase_start", phase="a").add(102, "lease", run_id="r", epoch=2, adopted=True, shift_s=100.0)
    rows.add(104, "phase_end", phase="a").gate(105, "g", "pass").task(106, trading="resumed")
    report = rows.end(107)
    assert report["incident_at"] == 900.0
    assert (report["phases"][0]["start_s"], report["phases"][0]["duration_s"]) == (101, 3)
    assert report["rto"] == {"target_s": 60, "max_s": 90, "actual_s": 106, "met": False}


def test_entries_are_each_start_of_a_phase() -> None:
    rows = Rows().add(1, "phase_start", phase="a").add(2.04, "phase_start", phase="b").add(3, "phase_start", phase="a")
    assert rows.end(5)["entries"] == [{"phase": "a", "start_s": 1}, {"phase": "b", "start_s": 2}, {"phase": "a", "start_s": 3}]


def test_exit_codes() -> None:
    def code(result: str = "recovered", kind: str = "real", rto: bool | None = True, rpo: bool | None = True) -> int | None:
        return _report.exit_code({"result": result, "kind": kind, "rto": {"met": rto}, "rpo": {"met": rpo}})

    assert code() is None
    assert [code(rto=False), code(rpo=False), code(rto=None), code(rpo=None)] == [4, 4, 4, 4]
    assert code(kind="check", rto=None) is None
    assert code("refused") == 3
    assert [code("failed"), code("cancelled")] == [None, None]


def test_marks_and_the_countdown() -> None:
    assert _report.marks(60, 100) == [50, 60, 80, 100] and _report.marks(80, 100) == [50, 80, 100]
    assert _report.marks(60, None) == [] and _report.marks(None, 10) == [5, 8, 10]
    assert _report.countdown_line(50, 60, 100) == "[titan-dr] 50.0 s after the incident, 50 % of the RTO of 1 min 40 s, 50.0 s left"
    assert ", over the target of 1 min 00 s, 20.0 s left" in _report.countdown_line(80, 60, 100).replace("60.0 s", "1 min 00 s")
    assert _report.countdown_line(100, None, 100).endswith(": THE RTO IS OVER")


def test_lines() -> None:
    assert "10.0 s OVER the RTO" in _report.phase_line("a", 100, 10, 90)
    report = Rows().gate(1, "bad", "unknown").gate(1, "good", "pass").add(1, "phase_start", phase="b").end(20)
    text = "\n".join(_report.closing_lines(report, "/runs/r/report.json"))
    assert "FAILED" in text and "bad: UNKNOWN" in text and "good" not in text and "OVER BUDGET" in text and "/runs/r/report.json" in text


def test_reconciliation() -> None:
    def row(venue: str, action: str, verdict: str, **more: str) -> dict[str, str]:
        known = {"what": "position", "symbol": "BTCUSDT", "id": "", "book": "flat", "venue_value": "long 1", "why": "w", "do": "d"}
        return {"venue": venue, "action": action, "verdict": verdict, **known, **more}

    adopted, stopped, matched = row("binance", "adopt", "pass"), row("bybit", "stop", "fail", why="the other side", do="Look."), row("bybit", "match", "pass")
    rebuilt = {"orders": 2, "fills": 3, "not_rebuilt": "signals"}
    first = Rows().task(1, reconciliation=[adopted, stopped], rpo={"rebuilt": rebuilt, "actual_s": 4})
    report = Rows().end(5)
    assert report["reconciliation"] == [] and "rebuilt" not in report["rpo"]
    report = first.end(5)
    assert (report["reconciliation"], report["rpo"]["rebuilt"], report["rpo"]["actual_s"]) == ([adopted, stopped], rebuilt, 4)
    text = "\n".join(_report.closing_lines(report, "p"))
    assert "rebuilt from the exchanges: 2 orders, 3 fills; not rebuilt: signals" in text
    assert "not reconciled: bybit position BTCUSDT: book flat, exchange long 1: the other side. Look." in text and "binance position" not in text
    # the book has what was taken over; a later look does not see it any more
    again = Rows().task(1, reconciliation=[adopted, stopped]).task(2, reconciliation=[row("binance", "match", "pass"), matched]).end(5)
    assert again["reconciliation"] == [adopted, row("binance", "match", "pass"), matched]
