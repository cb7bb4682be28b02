# SPDX-License-Identifier: GPL-3.0-or-later
"""Thousands of recoveries on a clock of their own, with the real gate, ledger and report. What stands around them behaves as the playbooks do."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.plugin_utils import _budget, _ledger, _report

GRACE_S = 60
RUNS = 4000
WAY = ("preflight", "trading_halt", "provision", "redis_restore", "dependencies", "redis_restore", "services", "validate")


class Failure(Exception):
    """Into the rescue, or out of the preflight."""


@dataclass
class Run:
    """One recovery: what the playbook does, and what it should not have done."""

    seed: int
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        dice = self.dice = random.Random(self.seed)
        self.now = 1000.0
        self.policy = dice.choice(_budget.POLICIES)
        declared = {phase: dice.uniform(5, 120) for phase in dict.fromkeys(WAY)}
        rto = dice.uniform(0.4, 2.5) * sum(declared.values())
        self.objectives = {"rto_target_s": rto * 0.6, "rto_s": rto, "rpo_s": 300, "limit_s": rto * dice.uniform(1, 2), "phases": declared}
        self.typical = {name: declared[name.partition("#")[0]] * dice.uniform(0.05, 1.2) for name in _budget.visits(WAY)}
        reports = [self.past() for _number in range(dice.choice((0, 2, 3, 8)))]
        self.budget = _budget.make(self.objectives, reports, "s", ["h"])
        self.learnt = len(reports) >= _budget.FEW
        incident_at = self.now - dice.choice((0, dice.uniform(0, rto * 1.2)))
        clock = _ledger.Clock(wall=lambda: self.now, monotonic=lambda: self.now)
        self.ledger = _ledger.Ledger(incident_at, clock, lambda line: None)
        self.incident_at = incident_at
        self.ledger.add("run_start", run_id="r", kind="real", scenario="s", incident_at=incident_at, **self.objectives)
        self.deadline = incident_at + rto if self.policy == "abort" else self.now + self.objectives["limit_s"]
        # a phase may take many times what it should; a server may die in any of them
        self.slow = dice.choice((1, 1, 3, 10))
        self.dying = dice.choice((0, 0, 0.03))
        self.failing = dice.choice((0, 0, 0.05))
        self.phase = ""
        self.phase_since = self.now
        self.halted = self.resumed = self.unreachable = False
        self.gates: dict[str, str] = {}

    def past(self) -> dict[str, Any]:
        at, entries = 0.0, []
        for phase, name in zip(WAY, _budget.visits(WAY), strict=True):
            entries.append({"phase": phase, "start_s": at})
            at += self.typical[name] * self.dice.uniform(0.8, 1.3)
        ended = {"result": "recovered", "kind": "real", "scenario": "s", "hosts": ["h"], "entries": entries, "rto": {"actual_s": at}}
        return {**ended, "restore_point": {}, "timings": {}}

    # --- what a playbook does

    def enter(self, phase: str) -> None:
        if phase != self.phase:
            if self.phase:
                self.ledger.add("phase_end", phase=self.phase)
            self.ledger.add("phase_start", phase=phase)
            self.phase, self.phase_since = phase, self.now

    def gate(self, visit: str) -> None:
        so_far = _budget.progress(self.ledger.rows)
        projection = _budget.project(self.budget, so_far, self.phase, self.now)
        verdict = _budget.decide(self.budget, so_far, projection, self.phase, self.now, self.incident_at, self.deadline, self.policy)
        for event, figures in (("breach", verdict.breach), ("late", verdict.late)):
            if figures:
                self.ledger.add(event, **figures)
        if verdict.kind != "go":
            self.task("failed", **({"refused": verdict.msg} if verdict.kind == "refuse" else {}))
            raise Failure(verdict.msg)
        self.inspect(visit, bool(verdict.breach or so_far.breached))

    def inspect(self, visit: str, breached: bool) -> None:
        """Told by other means than the gate's own, for what these runs can know."""
        if self.now >= self.deadline:
            self.wrong.append(f"{visit} was started after the deadline")
        if not self.learnt:
            return
        names = _budget.visits(WAY)
        medians = [self.budget["learnt"][name]["p50"] for name in names]
        rest = medians[names.index(visit)] - (self.now - self.phase_since)
        if self.now + rest > self.deadline + 1e-6:
            self.wrong.append(f"{visit} was started and does not fit")
        late = self.now + max(rest, 0) + sum(medians[names.index(visit) + 1 :]) > self.incident_at + self.objectives["rto_s"] + 1e-6
        if late and self.policy == "abort":
            self.wrong.append(f"{visit} was started although the RTO is lost")
        if late and not breached:
            self.wrong.append(f"nobody said in {visit} that the RTO is lost")

    def task(self, status: str, **said: Any) -> None:
        self.ledger.add("task", name=self.phase, phase=self.phase, host="h", status=status, titan_dr=said or None)
        for gate in said.get("gates", []):
            self.ledger.add("gate", **gate)

    def work(self, seconds: float, until: float) -> None:
        """A task, as its timeout bounds it."""
        if self.dice.random() < self.dying:
            self.unreachable = True
        if self.unreachable:
            self.now += min(self.dice.uniform(0, 10), max(1.0, until - self.now))
            self.task("failed", unreachable="h")
            raise Failure("unreachable")
        if self.now + seconds > until:
            # after the deadline every task fails at once
            self.now = max(self.now, until) + 1
            self.task("failed")
            raise Failure("timed out")
        self.now += seconds
        if self.dice.random() < self.failing:
            self.task("failed")
            raise Failure("failed")

    def step(self, phase: str, visit: str, seconds: float, said: dict[str, Any]) -> None:
        self.enter(phase)
        if phase != "trading_halt":
            self.gate(visit)
        self.work(seconds, self.deadline)
        self.task("changed" if said["gates"][0]["verdict"] == "pass" else "failed", **said)

    def halt(self, until: float) -> None:
        self.enter("trading_halt")
        self.work(self.dice.uniform(0.1, 20), until)
        self.task("changed", trading="halted")
        self.halted, self.resumed = True, False

    def recover(self) -> None:
        for phase, visit in zip(WAY, _budget.visits(WAY), strict=True):
            if phase == "trading_halt":
                self.halt(self.deadline)
                continue
            parts = self.dice.randint(1, 3)
            for part in range(parts):
                seconds = self.typical[visit] / parts * self.dice.uniform(0.5, 1.5) * (self.slow if self.dice.random() < 0.3 else 1)
                verdict = "pass" if self.dice.random() > self.failing else self.dice.choice(("fail", "unknown"))
                self.gates[f"{phase}:{part}"] = verdict
                self.step(phase, visit, seconds, {"gates": [{"name": f"{phase}:{part}", "verdict": verdict, "evidence": ""}]})
                if verdict != "pass":
                    raise Failure("a gate did not pass")
        self.enter("trading_halt")
        if set(self.gates.values()) != {"pass"}:
            self.wrong.append("resumed with a gate that did not pass")
        self.work(1.0, self.deadline)
        self.task("changed", trading="resumed")
        self.resumed = True

    def go(self) -> Run:
        failed = True
        try:
            self.recover()
            failed = False
        except Failure:
            if self.phase != "preflight":
                leaving = self.now
                # what stopped answering may answer again
                self.unreachable = self.unreachable and self.dice.random() < 0.7
                try:
                    self.halt(leaving + GRACE_S)
                except Failure:
                    self.unreachable = True
        self.ledger.add("run_end", stats={"h": {"failures": int(failed), "unreachable": 0}})
        self.report = _report.build(self.ledger.rows)
        self.judge()
        return self

    def judge(self) -> None:
        result, trading = self.report["result"], self.report["trading"]
        touched = {entry["phase"] for entry in self.report["entries"]} - {"preflight"}
        if result == "recovered" and not (self.resumed and trading == "resumed" and all(gate["verdict"] == "pass" for gate in self.report["gates"])):
            self.wrong.append("called recovered")
        if result != "recovered" and self.resumed:
            self.wrong.append("resumed and not called recovered")
        if result == "refused" and (touched or trading):
            self.wrong.append("called refused after something was begun")
        if result == "failed" and not self.halted and not self.unreachable:
            self.wrong.append("no safe state")
        if result not in ("recovered", "refused", "failed"):
            self.wrong.append(f"ended {result}")
        if self.now > max(self.deadline, 1000.0) + 1 + GRACE_S + 10:
            self.wrong.append(f"{self.now - self.deadline:.0f} s after its deadline it still ran")
        said = Counter(row["event"] for row in self.ledger.rows)
        if said["breach"] > 1 or said["late"] > 1:
            self.wrong.append("said more than once")


def campaign(runs: int) -> tuple[Counter[str], list[str]]:
    ends: Counter[str] = Counter()
    wrong = []
    for seed in range(runs):
        run = Run(seed).go()
        breach = "breach" if run.report["breach"] else "in time"
        ends[f"{run.report['result']} {run.policy} {breach} {'learnt' if run.learnt else 'declared'}"] += 1
        wrong += [f"seed {seed}: {what}" for what in run.wrong]
    return ends, wrong


def test_thousands_of_recoveries() -> None:
    ends, wrong = campaign(RUNS)
    assert wrong == []
    # all of it was met, or it proves nothing
    for result in ("recovered", "failed", "refused"):
        for policy in _budget.POLICIES:
            for basis in ("learnt", "declared"):
                assert sum(count for end, count in ends.items() if end.startswith(f"{result} {policy}") and end.endswith(basis)) >= 10, ends
    assert sum(count for end, count in ends.items() if end.startswith("recovered continue breach")) >= 10, ends


def go(*_arguments: Any) -> _budget.Verdict:
    return _budget.Verdict()


def forgetful(rows: Any) -> _budget.Progress:
    return _budget.Progress(tuple((row["phase"], row["at"]) for row in rows if row["event"] == "phase_start"))


@pytest.mark.parametrize(
    ("name", "broken", "noticed"),
    [
        ("decide", go, {"was started and does not fit", "was started after the deadline", "although the RTO is lost", "nobody said"}),
        ("progress", forgetful, {"said more than once"}),
    ],
)
def test_the_campaign_notices_a_broken_gate(monkeypatch: pytest.MonkeyPatch, name: str, broken: Any, noticed: set[str]) -> None:
    monkeypatch.setattr(_budget, name, broken)
    wrong = campaign(400)[1]
    assert {what for what in noticed if any(what in line for line in wrong)} == noticed


def test_the_campaign_notices_a_broken_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_report, "_result", lambda *_arguments: ("recovered", "fine"))
    assert any("called recovered" in line for line in campaign(200)[1])
