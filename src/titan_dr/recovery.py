# SPDX-License-Identifier: GPL-3.0-or-later
"""One measured run of a scenario: from the request to a report that is true in every case."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from titan_dr import playbooks, report, runner
from titan_dr.cancel import Cancellation
from titan_dr.display import Display
from titan_dr.events import Event, LedgerTail, Outcome, Output, StepFailed


@dataclass(frozen=True)
class Request:
    scenario: str
    inventory: Sequence[str]
    run_dir: Path
    kind: str = "real"
    check: bool = False
    installed: bool = False
    extra_vars: Mapping[str, Any] = field(default_factory=dict)
    extra_vars_files: Sequence[str] = ()
    incident_at: str | None = None
    verbosity: int = 0

    @property
    def run_id(self) -> str:
        return self.run_dir.name

    @property
    def shown_kind(self) -> str:
        return "check" if self.check else self.kind


def new_run_dir(runs_dir: Path, scenario: str) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    return runs_dir.resolve() / f"{stamp}-{scenario}-{secrets.token_hex(2)}"


def job(request: Request, playbook: str, run_dir: Path) -> runner.Job:
    environment = {"TITAN_DR_RUN_ID": request.run_id, "TITAN_DR_RUN_DIR": str(run_dir), "TITAN_DR_KIND": request.kind}
    if request.incident_at:
        environment["TITAN_DR_INCIDENT_STARTED_AT"] = request.incident_at
    return runner.Job(
        playbook=playbooks.playbook(playbook, request.installed),
        inventory=request.inventory,
        run_dir=run_dir,
        project_dir=playbooks.working_directory(request.installed),
        check=request.check,
        extra_vars=request.extra_vars,
        extra_vars_files=request.extra_vars_files,
        environment=environment,
        verbosity=request.verbosity,
    )


def recover(request: Request, display: Display, cancellation: Cancellation) -> dict[str, Any]:
    """Runs the scenario and returns its report, which is on the disk too."""
    objectives = playbooks.scenarios(request.installed)[request.scenario]
    tail = LedgerTail(request.run_dir / report.LEDGER_FILE)
    last_words: list[str] = []

    def on_event(event: Event) -> None:
        for row in tail.rows():
            display.row(row)
        if isinstance(event, Output):
            last_words[:] = [*last_words, event.text][-20:]
        display.event(event)

    display.begin(f"Run {request.run_id}", objectives)
    try:
        outcome = runner.run(job(request, request.scenario, request.run_dir), on_event, cancellation)
    finally:
        display.end()
    path = request.run_dir / report.REPORT_FILE
    try:
        found: dict[str, Any] | None = report.load(path)
    except report.NoReport:
        found = None
    if outcome.rc != 0 and not outcome.cancelled and (found is None or found["result"] in ("recovered", "cancelled")):
        # no task failed in what was measured: the reason is in what Ansible said last
        display.say("\n".join(last_words))
    final = judge(found, outcome, request, objectives, cancellation.requested)
    # the hosts of a drill are about to be removed; before the first halt there is nothing to make safe
    if outcome.cancelled and request.kind == "real" and not request.check and final["trading"]:
        make_safe(request, display, final)
    report.save(path, final)
    return final


def make_safe(request: Request, display: Display, final: dict[str, Any]) -> None:
    """Whatever the cancelled run was doing, trading is halted after it; the report says whether that could be proven."""
    display.say("Cancelled: making sure that trading is halted")
    failures: list[str] = []

    def on_event(event: Event) -> None:
        if isinstance(event, StepFailed):
            failures.append(f"{event.name} on {event.host}: {event.message}")

    # which server is to be made safe depends on the scenario
    told = replace(request, extra_vars={**request.extra_vars, "titan_dr_scenario": request.scenario})
    # its own: the signal that cancelled the recovery must not cancel this
    outcome = runner.run(job(told, "safe_state", request.run_dir / "safe_state"), on_event, Cancellation())
    if outcome.rc == 0:
        final["trading"] = "halted"
        final["message"] += " Trading is halted."
    else:
        final["trading"] = None
        reason = failures[-1] if failures else f"safe_state.yml ended with exit code {outcome.rc}"
        final["message"] += f" WHETHER TRADING IS HALTED IS UNKNOWN: {reason}"


def judge(found: dict[str, Any] | None, outcome: Outcome, request: Request, objectives: Mapping[str, Any], signal_name: str | None) -> dict[str, Any]:
    """The callback knows what happened inside the playbook; how the playbook itself ended is known only here."""
    if found is None:
        message = f"Ansible ended with exit code {outcome.rc} before its clock was armed: nothing was measured."
        found = report.empty(request.run_id, request.shown_kind, request.scenario, objectives, "failed", message)
    if outcome.cancelled:
        found["result"], found["message"] = "cancelled", f"Cancelled by {signal_name}."
    elif found["result"] == "cancelled":
        found["result"], found["message"] = "failed", f"Ansible ended before the end of the playbook, exit code {outcome.rc}."
    elif found["result"] == "recovered" and outcome.rc != 0:
        found["result"], found["message"] = "failed", f"Ansible ended with exit code {outcome.rc}."
    return found
