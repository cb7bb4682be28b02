# SPDX-License-Identifier: GPL-3.0-or-later
"""The report of a run on the disk: reading, amending, judging and printing it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

REPORT_FILE = "report.json"
LEDGER_FILE = "ledger.jsonl"

OK, FAILED, USAGE, REFUSED, MISSED, CANCELLED = 0, 1, 2, 3, 4, 5

_COLOURS = {"recovered": "green", "halted": "green", "refused": "yellow", "pass": "green", "unknown": "yellow"}


class NoReport(Exception):
    """Says which file, and what is wrong with it."""


def empty(run_id: str, kind: str, scenario: str, objectives: Mapping[str, Any], result: str, message: str) -> dict[str, Any]:
    """The report of a run that ended before its playbook could write one."""
    return {
        "run_id": run_id,
        "kind": kind,
        "scenario": scenario,
        "result": result,
        "message": message,
        "rto": {"target_s": objectives.get("rto_target_s"), "max_s": objectives.get("rto_s"), "actual_s": None, "met": None},
        "rpo": {"target_s": objectives.get("rpo_s"), "actual_s": None, "basis": None, "lost_acked_writes": None, "met": None},
        "deadline_at": None,
        "breach": None,
        "lease": None,
        "phases": [],
        "entries": [],
        "gates": [],
        "reconciliation": [],
        "restore_point": {},
        "candidates": [],
        "trading": None,
        "forced": None,
        "halts": [],
        "hosts": [],
        "versions": {},
        "collection": {},
        "timings": {},
        "notes": [],
    }


def load(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NoReport(f"There is no report {path}") from error
    except (OSError, ValueError) as error:
        raise NoReport(f"The report {path} cannot be read: {error}") from error
    if not isinstance(report, dict) or "result" not in report:
        raise NoReport(f"{path} is not a report")
    return report


def save(path: Path, report: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_suffix(".partial")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
        json.dump(report, stream, indent=2, ensure_ascii=False)
        stream.write("\n")
    os.replace(partial, path)


def add_gate(report: dict[str, Any], name: str, verdict: str, evidence: str) -> None:
    """A gate that did not pass takes the success away, never the other way round."""
    report["gates"] = [gate for gate in report["gates"] if gate["name"] != name] + [{"name": name, "verdict": verdict, "evidence": evidence}]
    if verdict != "pass" and report["result"] == "recovered":
        report["result"] = "failed"
        report["rto"]["met"] = None if report["rto"].get("met") else report["rto"].get("met")
        report["message"] = f"Gates not passed: {name} ({verdict})"


def set_loss(report: dict[str, Any], lost: int | None, seconds: float | None) -> None:
    """What was counted outside the server stands above what the server says of itself, when it is worse."""
    rpo = report["rpo"]
    rpo["lost_acked_writes"] = lost
    if seconds is not None and (rpo["actual_s"] is None or seconds > rpo["actual_s"]):
        rpo["actual_s"] = round(seconds, 1)
        rpo["basis"] = "acknowledged writes"
        rpo["met"] = rpo["actual_s"] <= rpo["target_s"] if rpo["target_s"] is not None else None


def exit_code(report: Mapping[str, Any]) -> int:
    result = report["result"]
    if result == "cancelled":
        return CANCELLED
    if result == "refused":
        return REFUSED
    if result == "halted":
        return OK  # only a drill says so: that is how it had to end
    if result != "recovered":
        return FAILED
    if report["kind"] == "check":
        return OK
    # as in the clock: an objective that nothing proved is not met, and by force nothing is proven; without a restore there is none for the loss
    sound = report["rpo"].get("met") is True or report["rpo"].get("target_s", 0) is None
    return OK if report["rto"].get("met") is True and sound and not report.get("forced") else MISSED


def seconds(value: object) -> str:
    if not isinstance(value, (int, float)):
        return "unknown"
    return f"{value:.1f} s" if abs(value) < 100 else f"{int(value) // 60} min {int(value) % 60:02d} s"


def instant(value: object) -> float:
    """Epoch seconds or ISO 8601 (UTC when it names no zone) -> epoch seconds; ValueError otherwise."""
    text = str(value).strip()
    try:
        found = float(text)
    except ValueError:
        parsed = datetime.fromisoformat(text)
        found = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    if not 0 < found < 1e11:
        raise ValueError(f"{text!r} is neither epoch seconds nor ISO 8601")
    return found


def moment(value: object) -> str:
    if isinstance(value, (int, float)):
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return str(value or "unknown")


def _objective(met: object) -> Text:
    from rich.text import Text

    return Text("met", "green") if met is True else Text("MISSED" if met is False else "not proven", "red")


def render(console: Console, report: Mapping[str, Any], path: Path) -> None:
    # not above: `titan-dr verify` has milliseconds
    from rich.table import Table
    from rich.text import Text

    result = str(report["result"])
    console.print(Text.assemble((result.upper(), f"bold {_COLOURS.get(result, 'red')}"), f"  {report['scenario']} ({report['kind']})"))
    console.print(Text(f"  {report['message']}"), soft_wrap=True)
    rto, rpo = report["rto"], report["rpo"]
    if report["kind"] != "check" and result != "halted":
        figures = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for heading in ("", "actual", "target", "limit", ""):
            figures.add_column(heading, justify="left")
        figures.add_row("RTO", seconds(rto["actual_s"]), seconds(rto["target_s"]), seconds(rto["max_s"]), _objective(rto.get("met")))
        if rpo["target_s"] is not None:
            figures.add_row("RPO", seconds(rpo["actual_s"]), "", seconds(rpo["target_s"]), _objective(rpo.get("met")))
        console.print(figures)
        if rpo.get("lost_acked_writes") is not None:
            console.print(Text(f"Acknowledged writes lost: {rpo['lost_acked_writes']}"))
    if report["phases"]:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for heading in ("phase", "start", "took", "budget"):
            table.add_column(heading, justify="left" if heading == "phase" else "right")
        for phase in report["phases"]:
            late = phase["budget_s"] is not None and phase["duration_s"] > phase["budget_s"]
            took = Text(seconds(phase["duration_s"]), "red" if late else "")
            table.add_row(phase["name"], seconds(phase["start_s"]), took, seconds(phase["budget_s"]) if phase["budget_s"] is not None else "")
        console.print(table)
    # reports of earlier versions have none of these
    if breach := report.get("breach"):
        declared, projected = seconds(breach["declared_s"]), seconds(breach["projected_s"])
        told = f"Breach declared {declared} after the incident in phase {breach['phase']}: its end was projected at {projected}"
        console.print(Text(told, "red"), soft_wrap=True)
    if lease := report.get("lease"):
        how = "went on where that run had broken off" if lease["adopted"] else "taken"
        console.print(Text(f"Lease {lease['epoch']} of run {lease['run_id']}: {how}"), soft_wrap=True)
    if report.get("deadline_at") and report["result"] != "recovered":
        console.print(Text(f"Deadline {moment(report['deadline_at'])}"))
    point = report["restore_point"]
    if point:
        console.print(Text(f"Restore point {point.get('id')} from {point.get('source')}, taken {moment(point.get('taken_at'))}"))
    if len(report.get("candidates", [])) > 1:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for heading in ("candidate", "verdict", "would lose", "keys", ""):
            table.add_column(heading, justify="right" if heading in ("would lose", "keys") else "left")
        for row in report["candidates"]:
            loss = "" if row["loss_s"] is None else seconds(row["loss_s"])
            why = "restored" if row["chosen"] else row["reason"]
            keys = "" if row["keys"] is None else str(row["keys"])
            table.add_row(Text(row["name"]), Text(row["verdict"]), loss, keys, Text(why, "green" if row["chosen"] else ""))
        console.print(table)
    if rto.get("basis"):
        console.print(Text(f"RTO: {rto['basis']}"))
    if forced := report.get("forced"):
        console.print(Text(f"RESUMED BY FORCE, although {', '.join(forced['gates'])} did not pass: {forced['reason']}", "red"), soft_wrap=True)
    for halt in report.get("halts", []):
        for venue, found in halt.get("cancelled", {}).items():
            told = found.get("error") or f"{found['count']} orders cancelled" + (f": {', '.join(found['ids'])}" if found["ids"] else "")
            console.print(Text(f"Halt of {halt['host']}, {venue}: {told}"), soft_wrap=True)
    gates = report["gates"]
    console.print(Text(f"Trading {report['trading'] or 'unknown'}; {sum(gate['verdict'] == 'pass' for gate in gates)} of {len(gates)} gates passed"))
    several = len({gate["host"] for gate in gates if gate.get("host")}) > 1
    for gate in gates:
        if gate["verdict"] != "pass":
            line = (f"  {str(gate['verdict']).upper()}  ", _COLOURS.get(gate["verdict"], "red"))
            where = f" on {gate['host']}" if several and gate.get("host") else ""
            console.print(Text.assemble(line, f"{gate['name']}{where}: {gate['evidence']}"), soft_wrap=True)
    if compared := report.get("reconciliation"):
        changed = [row for row in compared if row["action"] != "match"]
        console.print(Text(f"Reconciled with the exchanges: {len(compared) - len(changed)} agree, {len(changed)} did not"))
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for heading in ("exchange", "what", "symbol", "id", "book", "told", "action", ""):
            table.add_column(heading, overflow="fold")
        for row in changed:
            colour = _COLOURS.get(row["verdict"], "red") if row["verdict"] in ("fail", "unknown") else ""
            cells = [row[key] for key in ("venue", "what", "symbol", "id", "book", "venue_value")]
            said = f"{row['why']}. {row['do']}" if colour else row["why"]
            table.add_row(*(Text(str(cell)) for cell in cells), Text(str(row["action"]), colour), Text(said))
        if changed:
            console.print(table)
    if rebuilt := rpo.get("rebuilt"):
        told = f"Rebuilt from the exchanges: {rebuilt['orders']} orders, {rebuilt['fills']} fills. Not rebuilt: {rebuilt['not_rebuilt']}"
        console.print(Text(told), soft_wrap=True)
    for note in report.get("notes", []):
        console.print(Text(f"  note: {note}"), soft_wrap=True)
    if collection := report.get("collection"):
        console.print(Text(f"Collection {collection.get('version')} from {collection.get('path')}"), soft_wrap=True)
    console.print(Text(f"Report {path}"), soft_wrap=True)
