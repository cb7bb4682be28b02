# SPDX-License-Identifier: GPL-3.0-or-later
"""What the operator sees while a run goes on: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from titan_dr.events import Event, Output, StepFailed, StepStarted
from titan_dr.report import seconds


@dataclass
class Phase:
    name: str
    budget: float | None
    state: str = "waiting"
    spent: float = 0.0
    since: float | None = None

    def elapsed(self, now: float) -> float:
        return self.spent + (max(0.0, now - self.since) if self.since is not None else 0.0)


class Progress:
    """State of a measured run, told by its ledger."""

    def __init__(self, objectives: Mapping[str, Any]) -> None:
        self.limit: float | None = objectives.get("rto_s")
        self.phases = {name: Phase(name, budget) for name, budget in (objectives.get("phases") or {}).items()}
        self.step = ""
        self._t = 0.0
        self._seen: float | None = None

    def now(self) -> float:
        """Seconds since the incident."""
        return self._t + (time.monotonic() - self._seen if self._seen is not None else 0.0)

    def row(self, row: Mapping[str, Any]) -> None:
        self._t, self._seen = float(row.get("t", self._t)), time.monotonic()
        name = row.get("phase")
        if row.get("event") == "phase_start" and name:
            phase = self.phases.setdefault(name, Phase(name, row.get("budget_s")))
            phase.state, phase.since = "running", self._t
        elif row.get("event") == "phase_end" and name in self.phases:
            phase = self.phases[name]
            phase.spent, phase.since, phase.state = phase.elapsed(self._t), None, "done"
        elif row.get("event") == "task" and row.get("status") in ("failed", "unreachable") and name in self.phases:
            self.phases[name].state = "failed"

    def left(self) -> str:
        if self.limit is None:
            return "no RTO known"
        left = self.limit - self.now()
        return f"{seconds(left)} of {seconds(self.limit)} left" if left >= 0 else f"RTO EXCEEDED by {seconds(-left)}"


class Display:
    """Plain lines. The base of the live one."""

    def __init__(self, console: Console, verbose: bool = False) -> None:
        self.console = console
        self.verbose = verbose
        self.progress: Progress | None = None

    def begin(self, title: str, objectives: Mapping[str, Any]) -> None:
        self.progress = Progress(objectives)
        self.say(title)

    def end(self) -> None:
        self.progress = None

    def say(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style), soft_wrap=True)

    def row(self, row: Mapping[str, Any]) -> None:
        if self.progress is None:
            return
        self.progress.row(row)
        name = row.get("phase")
        if row.get("event") == "phase_start":
            budget = f", budget {seconds(row['budget_s'])}" if row.get("budget_s") is not None else ""
            self.say(f"+{seconds(row['t'])}  {name} starts{budget}; {self.progress.left()}")
        elif row.get("event") == "phase_end" and name in self.progress.phases:
            self.say(f"+{seconds(row['t'])}  {name} took {seconds(self.progress.phases[name].spent)}")
        else:
            self._problem(row)

    def _problem(self, row: Mapping[str, Any]) -> None:
        if row.get("event") == "gate" and row.get("verdict") != "pass":
            self.say(f"gate {row.get('name')}: {str(row.get('verdict')).upper()}: {row.get('evidence')}", "yellow")

    def event(self, event: Event) -> None:
        if isinstance(event, StepFailed):
            self.say(f"FAILED  {event.name} on {event.host}: {event.message}", "red")
        elif isinstance(event, Output) and self.verbose:
            self.console.print(Text.from_ansi(event.text), soft_wrap=True)
        elif isinstance(event, StepStarted) and self.progress is not None:
            self.progress.step = f"{event.role.rpartition('.')[2]}: {event.name}" if event.role else event.name


class LiveDisplay(Display):
    def __init__(self, console: Console, verbose: bool = False) -> None:
        super().__init__(console, verbose)
        self._live: Live | None = None

    def begin(self, title: str, objectives: Mapping[str, Any]) -> None:
        super().begin(title, objectives)
        self._live = Live(get_renderable=self._table, console=self.console, refresh_per_second=4, transient=True)
        self._live.start()

    def end(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        super().end()

    def row(self, row: Mapping[str, Any]) -> None:
        if self.progress is not None:
            self.progress.row(row)
        self._problem(row)

    def _table(self) -> Group:
        progress = self.progress
        if progress is None:
            return Group()
        now = progress.now()
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for heading in ("phase", "", "elapsed", "budget"):
            table.add_column(heading, justify="left" if heading in ("phase", "") else "right")
        styles = {"waiting": "dim", "running": "bold cyan", "done": "green", "failed": "red"}
        for phase in progress.phases.values():
            spent = phase.elapsed(now)
            late = phase.budget is not None and spent > phase.budget
            style = styles[phase.state]
            table.add_row(
                Text(phase.name, style),
                Text(phase.state, style),
                Text(seconds(spent) if phase.state != "waiting" else "", "red" if late else style),
                Text(seconds(phase.budget) if phase.budget is not None else "", "dim"),
            )
        head = Text(f"{seconds(now)} since the incident, {progress.left()}", "bold")
        return Group(head, table, Text(f"step: {progress.step}", "dim"))


def make(console: Console, verbose: bool = False) -> Display:
    return LiveDisplay(console, verbose) if console.is_terminal else Display(console, verbose)
