# SPDX-License-Identifier: GPL-3.0-or-later
"""One measured run of a scenario: from the request to a report that is true in every case."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from titan_dr import playbooks, report, runner, supervisor
from titan_dr.cancel import Cancellation
from titan_dr.display import Display
from titan_dr.events import Event, LedgerTail, Outcome, Output, StepStarted
from titan_dr.safe_state import SafeState

_RUN_ID = re.compile(r"\d{8}T\d{6}Z-(\w+)-[0-9a-f]{4}")
# What an extra variable says of this run alone.
_OF_THE_RUN = ("titan_dr_resume", "titan_dr_take_over", "titan_dr_on_breach")


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


def earlier(run_id: str, runs_dir: Path, known: Iterable[str]) -> tuple[str | None, str | None]:
    """Scenario and incident of a run that is to be gone on with, as far as this machine knows them. Its lease on the server knows for certain."""
    known = set(known)
    scenario: str | None = None
    incident_at: str | None = None
    try:
        found = report.load(runs_dir / run_id / report.REPORT_FILE)
        scenario = str(found["scenario"])
        incident_at = f"{report.instant(found['incident_at']):.3f}"
    except (report.NoReport, KeyError, ValueError):
        pass
    match = _RUN_ID.fullmatch(run_id)
    if scenario not in known and match:
        scenario = match.group(1)
    return (scenario if scenario in known else None), incident_at


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


class RunWatch(supervisor.Watch):
    """What a supervisor must know of a recovery: its deadline, and whether there is something to make safe."""

    def __init__(self, request: Request, objectives: Mapping[str, Any]) -> None:
        self.request = request
        self.tail = LedgerTail(request.run_dir / report.LEDGER_FILE)
        self.seen = supervisor.Seen()
        now = time.time()
        given = request.extra_vars.get("titan_dr_incident_started_at") or request.incident_at
        try:
            incident_at = report.instant(given) if given else now
        except ValueError:
            incident_at = now
        own = supervisor.own_deadline(objectives, request.extra_vars.get("titan_dr_on_breach"), min(incident_at, now), now)
        self.deadline = supervisor.Deadline(own)
        # the hosts of a drill are about to be removed; a check halts nothing
        self.safe_state = SafeState(self._safe_state_job) if request.kind == "real" and not request.check else None
        self.gone_at: float | None = None

    def _safe_state_job(self, facts: Mapping[str, Any], files: Sequence[str]) -> runner.Job:
        # which server is to be made safe depends on the scenario
        kept = {name: value for name, value in self.request.extra_vars.items() if name not in _OF_THE_RUN}
        told = replace(
            self.request,
            extra_vars={**kept, "titan_dr_scenario": self.request.scenario, **facts},
            extra_vars_files=[*self.request.extra_vars_files, *files],
        )
        made = job(told, "safe_state", self.request.run_dir / "safe_state")
        # it has its own time
        own = {"TITAN_DR_STARTED_AT": f"{time.time():.3f}", "TITAN_DR_ATTEMPT": secrets.token_hex(4)}
        return replace(made, environment={**made.environment, **own})

    def read(self) -> None:
        for row in self.tail.rows():
            self.seen.row(row, supervisor.monotonic())

    def due(self) -> float | None:
        self.read()
        return self.deadline.due(self.seen)

    def soon(self) -> None:
        if self.safe_state is not None and self.seen.begun:
            self.safe_state.start()

    def stopped(self, reason: supervisor.Reason, left: Iterable[int]) -> None:
        self.gone_at = supervisor.monotonic()
        self.read()
        # from here, because the rest of the command may hang at a terminal that takes no more
        if self.wanted(reason):
            self.release(reason)

    def wanted(self, reason: supervisor.Reason | None, rc: int | None = None) -> bool:
        """Whether safe_state.yml is to be run: not after a run that left, or never needed, one."""
        if self.safe_state is None or not self.seen.begun:
            return False
        if self.seen.ended:
            return self.seen.leaving is not None and not self.seen.safe
        if reason is None and rc in (report.OK, report.MISSED):
            return False  # it came to its end, and only its ledger did not: the disk is full
        # a deadline that comes after the resume must not halt what was recovered
        return reason == "signal" or self.seen.trading not in supervisor.RECOVERED

    def why(self, step: Sequence[str]) -> str:
        """What to say of a run that was stopped at its deadline."""
        limit = f"{supervisor.SAFE_STATE_S:.0f} s"
        if self.seen.leaving is not None:
            return f"Stopped, because its own safe state did not end within {limit}."
        if self.seen.trading in supervisor.RECOVERED:
            state = "trading was resumed. Trading goes on" if self.seen.trading == "resumed" else "everything had passed. Trading waits for a person"
            return f"Stopped, because it did not end within {limit} after {state}."
        return f"Stopped at the deadline, {report.moment(self.deadline.at)}, in the step: {step[0] if step else 'none yet'}."

    def release(self, reason: supervisor.Reason | None) -> None:
        if self.safe_state is not None:
            end_as = "cancelled" if reason == "signal" else "failed"
            # also what a file of extra variables may have said of the recovery
            # with its epoch: under the same run id another operator may have gone on meanwhile
            ours = f"{self.seen.lease}/{self.seen.epoch}" if self.seen.lease else self.request.run_id
            told: dict[str, Any] = {"titan_dr_resume": "", "titan_dr_take_over": ours, "titan_dr_end_as": end_as}
            if len(self.seen.taken) > 1:
                # each server counts its own epochs
                told |= {"titan_dr_take_over": self.seen.lease, "titan_dr_taken": self.seen.taken}
            self.safe_state.release(told)


def recover(request: Request, display: Display, cancellation: Cancellation) -> dict[str, Any]:
    """Runs the scenario and returns its report, which is on the disk too."""
    objectives = playbooks.scenarios(request.installed)[request.scenario]
    watch = RunWatch(request, objectives)
    tail = LedgerTail(request.run_dir / report.LEDGER_FILE)
    last_words: list[str] = []
    step: list[str] = []

    def on_event(event: Event) -> None:
        for row in tail.rows():
            _show(display.row, row)
        if isinstance(event, Output):
            last_words[:] = [*last_words, event.text][-20:]
        elif isinstance(event, StepStarted):
            step[:] = [event.name]
        _show(display.event, event)

    made = job(request, request.scenario, request.run_dir)
    _show(display.begin, f"Run {request.run_id}", objectives)
    try:
        outcome = runner.run(made, on_event, cancellation, watch)
    except Exception as error:
        # such as a full disk: what had begun must be made safe all the same
        last_words.append(f"{type(error).__name__}: {error}")
        outcome = Outcome(254, bool(cancellation.requested), "error")
    finally:
        _show(display.end)
    try:
        found: dict[str, Any] | None = report.load(request.run_dir / report.REPORT_FILE)
    except report.NoReport:
        found = None
    watch.read()
    final = judge(found, outcome, request, objectives, cancellation.requested, watch.seen.ended)
    if outcome.overdue and not watch.seen.ended:
        final["result"], final["message"] = "failed", watch.why(step)
        if watch.gone_at is not None and watch.deadline.moment is not None:
            final["stop"] = {"deadline_at": watch.deadline.at, "gone_s": round(watch.gone_at - watch.deadline.moment, 2)}
    elif not outcome.cancelled and outcome.rc != 0 and (found is None or found["result"] != final["result"]):
        # no task failed in what was measured: the reason is in what Ansible said last
        _show(display.say, "\n".join(last_words))
    if outcome.left:
        final["message"] += f" Its processes {', '.join(str(pid) for pid in outcome.left)} could not be ended."
    make_safe(watch, outcome, display, final)
    if watch.seen.lease is not None and final["result"] in ("failed", "cancelled"):
        final["notes"].append(f"To go on where it stopped: titan-dr recover --resume {watch.seen.lease}, with the same inventory.")
    try:
        report.save(request.run_dir / report.REPORT_FILE, final)
    except OSError as error:
        final["notes"].append(f"This report could not be written: {error}")
    return final


def _show(function: Callable[..., None], *arguments: Any) -> None:
    """A recovery does not end because nobody can watch it any more: the terminal is gone, or the other end of a pipe (for which Rich exits)."""
    with suppress(OSError, SystemExit):
        function(*arguments)


def make_safe(watch: RunWatch, outcome: Outcome, display: Display, final: dict[str, Any]) -> None:
    """Whatever the run was doing, trading is halted after it; the report says whether that could be proven."""
    safe_state = watch.safe_state
    if safe_state is None:
        return
    reason: supervisor.Reason | None = "signal" if outcome.cancelled else "deadline" if outcome.overdue else None
    if not safe_state.released:
        if not watch.wanted(reason, outcome.rc):
            safe_state.drop()
            return
        watch.release(reason)
    _show(display.say, "Making sure that trading is halted")
    proof = safe_state.wait()
    if proof.halted:
        final["trading"] = "halted"
        final["message"] += " Trading is halted."
    else:
        final["trading"] = None
        final["message"] += f" WHETHER TRADING IS HALTED IS UNKNOWN: {proof.reason}"
    if "stop" in final and proof.begun is not None:
        final["stop"]["safe_state_s"] = round(proof.begun - (watch.deadline.moment or 0.0), 2)


def judge(
    found: dict[str, Any] | None, outcome: Outcome, request: Request, objectives: Mapping[str, Any], signal_name: str | None, ended: bool = False
) -> dict[str, Any]:
    """The callback knows what happened inside the playbook; how the playbook itself ended is known only here."""
    if found is None:
        message = f"Ansible ended with exit code {outcome.rc} before its clock was armed: nothing was measured."
        judged = report.empty(request.run_id, request.shown_kind, request.scenario, objectives, "failed", message)
    else:
        judged = dict(found)
    if ended and (outcome.cancelled or outcome.overdue):
        return judged  # what was stopped had come to its end
    if outcome.cancelled:
        judged["result"], judged["message"] = "cancelled", f"Cancelled by {signal_name}."
    elif judged["result"] == "cancelled":
        judged["result"], judged["message"] = "failed", f"Ansible ended before the end of the playbook, exit code {outcome.rc}."
    # the clock gives a recovery that missed an objective the exit code that it has here
    elif judged["result"] == "recovered" and outcome.rc not in (0, report.exit_code(judged)):
        judged["result"], judged["message"] = "failed", f"Ansible ended with exit code {outcome.rc}."
    return judged
