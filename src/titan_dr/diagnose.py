# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong, and which recovery helps: runs diagnose.yml and shows what it found."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titan_dr import playbooks, recovery, report, runner, supervisor
from titan_dr.cancel import Cancellation
from titan_dr.events import Event, Output, StepFailed

if TYPE_CHECKING:
    from rich.console import Console

KIND = "diagnosis"
PAGE_FILE = "report.html"
# It promises an answer within 15 s; what takes longer than this hangs.
LIMIT_S = 45.0

CODES = {"none": report.OK, "propose": report.FAILED, "unknown": report.MISSED}
_STYLES = {"pass": "green", "fail": "bold red", "unknown": "yellow", "none": "bold green", "propose": "bold red", "high": "bold", "low": "dim"}
_HEADS = {"none": "NOTHING TO DO", "propose": "PROPOSED", "unknown": "UNKNOWN"}


@dataclass(frozen=True)
class Request:
    inventory: Sequence[str]
    runs_dir: Path
    installed: bool = False
    extra_vars: Mapping[str, Any] = field(default_factory=dict)
    extra_vars_files: Sequence[str] = ()
    verbosity: int = 0
    shown: bool = False  # Ansible's own output


class _Limit(supervisor.Watch):
    def __init__(self) -> None:
        self._due = supervisor.monotonic() + LIMIT_S

    def due(self) -> float | None:
        return self._due


def run(request: Request, cancellation: Cancellation, console: Console) -> tuple[dict[str, Any], Path]:
    """The report of a diagnosis, and where it lies. It has one also when Ansible itself could not do its part."""
    run_dir = recovery.new_run_dir(request.runs_dir / KIND, KIND)
    wrong: list[str] = []
    errors: list[str] = []  # what Ansible says where no task failed

    def on_event(event: Event) -> None:
        if isinstance(event, StepFailed):
            wrong.append(f"{event.name} on {event.host}: {event.message}")
        elif isinstance(event, Output):
            from rich.text import Text

            text = Text.from_ansi(event.text)
            errors.extend(line for line in text.plain.splitlines() if line.startswith("[ERROR]"))
            if request.shown:
                console.print(text, soft_wrap=True)

    job = runner.Job(
        playbook=playbooks.playbook("diagnose", request.installed),
        inventory=request.inventory,
        run_dir=run_dir,
        project_dir=playbooks.working_directory(request.installed),
        extra_vars=request.extra_vars,
        extra_vars_files=request.extra_vars_files,
        environment={"TITAN_DR_RUN_ID": run_dir.name, "TITAN_DR_RUN_DIR": str(run_dir)},
        verbosity=request.verbosity,
    )
    outcome = runner.run(job, on_event, cancellation, _Limit())
    cancellation.check()
    path = run_dir / report.REPORT_FILE
    try:
        found = report.load(path)
    except report.NoReport:
        late = "it did not end in time" if outcome.overdue else ""
        reason = late or "; ".join(wrong or errors[:3]) or f"Ansible ended with exit code {outcome.rc}"
        found = nothing(run_dir.name, f"Nothing could be found out: {reason}")
        report.save(path, found)
    save_page(found, run_dir / PAGE_FILE)
    return found, path


def nothing(run_id: str, message: str) -> dict[str, Any]:
    return {"run_id": run_id, "kind": KIND, "scenario": KIND, "result": "unknown", "message": message, "rows": [], "proposals": [], "look_at": [], "hosts": []}


def exit_code(found: Mapping[str, Any]) -> int:
    return CODES.get(str(found.get("result")), report.MISSED)


def render(console: Console, found: Mapping[str, Any], path: Path) -> None:
    from rich.table import Table
    from rich.text import Text

    result = str(found["result"])
    hosts = ", ".join(str(host) for host in found.get("hosts") or [])
    console.print(Text.assemble((_HEADS.get(result, result), _STYLES.get(result, "bold yellow")), f"  {hosts}"))
    console.print(Text(f"  {found['message']}"), soft_wrap=True)
    if found["rows"]:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for heading in ("", "server", "probe", "evidence"):
            table.add_column(heading, overflow="fold")
        for row in found["rows"]:
            verdict = str(row["verdict"])
            table.add_row(Text(verdict, _STYLES.get(verdict, "")), Text(str(row["host"])), Text(str(row["probe"])), Text(str(row["evidence"])))
        console.print(table)
    for number, made in enumerate(found["proposals"], 1):
        head = (f"\n{number}. {made['scenario']}", "bold red" if made["destructive"] else "bold")
        sure = (f"{made['confidence']}", _STYLES.get(made["confidence"], ""))
        console.print(Text.assemble(head, f" on {made['host']}   confidence ", sure, f" ({made['rule']})"), soft_wrap=True)
        console.print(Text(f"   {made['why']}"), soft_wrap=True)
        for text in made["evidence"]:
            console.print(Text(f"   - {text}"), soft_wrap=True)
        for text in (costs(made), made["first"]):
            if text:
                console.print(Text(f"   {text}"), soft_wrap=True)
        console.print(Text(f"   $ {made['command']}", "cyan"), soft_wrap=True)
    if found["look_at"]:
        console.print(Text("\nNot explained by this:" if found["proposals"] else "\nLook at:", "bold"))
        for row in found["look_at"]:
            console.print(Text(f"  {row['host']} {row['probe']}: {row['evidence']}"), soft_wrap=True)
            if row["look"]:
                console.print(Text(f"     -> {row['look']}", "dim"), soft_wrap=True)
    console.print(Text(f"Report {path}"), soft_wrap=True)


def costs(made: Mapping[str, Any]) -> str:
    """Restore point, loss and time of a proposal, in words."""
    parts = []
    point = made.get("restore_point") or {}
    if made["destructive"]:
        parts.append(f"restore point {point['id']}, taken {report.moment(point.get('taken_at'))}" if point.get("id") else "NO RESTORE POINT is known")
    loss = made.get("expected_loss_s")
    if loss is not None:
        parts.append(f"loses at most the last {report.seconds(loss)}" if loss else "loses no data")
    if time := made.get("expected_time"):
        parts.append(f"takes about {report.seconds(time['p50_s'])}, at worst {report.seconds(time['p95_s'])} ({time['basis']})")
    return "; ".join(parts)


def save_page(found: Mapping[str, Any], path: Path) -> None:
    """The same page for a browser."""
    from rich.console import Console

    page = Console(record=True, file=io.StringIO(), width=160, highlight=False)
    render(page, found, path.with_name(report.REPORT_FILE))
    path.write_text(page.export_html(), encoding="utf-8")
    path.chmod(0o600)


def finish(found: Mapping[str, Any], path: Path, console: Console, as_json: bool) -> int:
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        render(console, found, path)
    return exit_code(found)
