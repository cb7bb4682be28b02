# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows of the ledger -> the report, and the report -> lines to print. No Ansible and no clock in here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Row = Mapping[str, Any]
FAILED = ("failed", "unreachable")
# A recovery that ends so is one: nothing but a person's decision is missing.
AWAITING = "awaiting resume"
_WORST = {"pass": 0, "unknown": 1, "fail": 2}


def build(rows: Iterable[Row]) -> dict[str, Any]:
    """The report of a run, finished or not: a run whose last row is missing was cut off."""
    rows, incident_at = _on_one_clock(list(rows))
    start = next((row for row in rows if row["event"] == "run_start"), {})
    end = next((row for row in reversed(rows) if row["event"] == "run_end"), None)
    said = [row["titan_dr"] for row in rows if row["event"] == "task" and row.get("titan_dr")]
    gates = _gates(rows)
    forced = _merged(said, "forced")
    result, message = _result(rows, start, end, gates, forced)
    resumed_t, trading = _trading(rows)
    actual = resumed_t if resumed_t is not None else (rows[-1]["t"] if rows else 0.0)
    check = start.get("kind") == "check"
    met = _met(actual, start.get("rto_s"))
    rto = {
        "target_s": start.get("rto_target_s"),
        "max_s": start.get("rto_s"),
        "actual_s": round(actual, 1),
        # what did not recover can miss its objective, never meet it
        "met": None if check else met if result == "recovered" or met is False else None,
        **({"basis": "technical recovery: trading waits for a person"} if trading == AWAITING else {}),
    }
    restored = _merged(said, "restore_point")
    rpo_said = _merged(said, "rpo")
    if result == "recovered" and trading in ("resumed", AWAITING) and not rpo_said and not any(row.get("status") == "changed" for row in rows):
        # a run that found everything well put no older data in place of newer
        rpo_said = {"actual_s": 0.0, "basis": "nothing was changed"}
    rpo = {
        "target_s": start.get("rpo_s"),
        "actual_s": rpo_said.get("actual_s"),
        "basis": rpo_said.get("basis"),
        "lost_acked_writes": None,
        "met": None if check else _met(rpo_said.get("actual_s"), start.get("rpo_s")),
        # of what was lost, what the exchanges gave back
        **({"rebuilt": rpo_said["rebuilt"]} if rpo_said.get("rebuilt") else {}),
    }
    return {
        "run_id": start.get("run_id"),
        "kind": start.get("kind"),
        "scenario": start.get("scenario"),
        "result": result,
        "message": message,
        "incident_at": incident_at,
        "started_at": start.get("at"),
        "ended_at": rows[-1]["at"] if rows else None,
        "deadline_at": _deadline(rows),
        "rto": rto,
        "rpo": rpo,
        "breach": _first(rows, "breach", ("declared_s", "projected_s", "phase")),
        # epoch 0 was only looked at
        "lease": _first((row for row in reversed(rows) if row.get("epoch")), "lease", ("run_id", "epoch", "adopted")),
        "phases": _phases(rows, start.get("phases") or {}),
        # in the order of their starts, each as often as it was entered: later runs learn from it how long each takes
        "entries": [{"phase": row["phase"], "start_s": round(row["t"], 1)} for row in rows if row["event"] == "phase_start"],
        "gates": gates,
        "reconciliation": _reconciliation(said),
        "restore_point": restored,
        # what else could have been restored, with its verdict and its loss
        "candidates": next((part["candidates"] for part in reversed(said) if part.get("candidates")), []),
        "trading": trading,
        "forced": forced or None,
        "halts": [{"host": row.get("host"), "phase": row.get("phase"), **row["titan_dr"]["halt"]} for row in rows if _said(row).get("halt")],
        "hosts": sorted({str(row["host"]) for row in rows if row["event"] == "task" and row.get("host")} - {"localhost"}),
        "versions": {**(start.get("versions") or {}), **_merged(said, "versions")},
        "collection": start.get("collection") or {},
        "timings": _merged(said, "timings"),
        "notes": [row["text"] for row in rows if row["event"] == "note"],
    }


def _said(row: Row) -> Mapping[str, Any]:
    return (row.get("titan_dr") or {}) if row["event"] == "task" else {}


def _on_one_clock(rows: list[Row]) -> tuple[list[Row], float | None]:
    """A run that goes on where another broke off counts from that one's incident, and learns so only when it has the lease."""
    shift = 0.0
    counted: list[Row] = []
    for row in reversed(rows):
        counted.append({**row, "t": round(row["t"] + shift, 3)} if shift else row)
        shift += row.get("shift_s", 0.0) if row["event"] == "lease" else 0.0
    counted.reverse()
    incident_at = next((row.get("incident_at") for row in rows if row["event"] == "run_start"), None)
    return counted, round(incident_at - shift, 3) if incident_at is not None and shift else incident_at


def _first(rows: Iterable[Row], event: str, keys: tuple[str, ...]) -> dict[str, Any] | None:
    found = next((row for row in rows if row["event"] == event), None)
    return {key: found.get(key) for key in keys} if found is not None else None


def _reconciliation(said: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The last word on each exchange, and before it what earlier ones have taken over: that is in the book and does not show again."""
    rows: list[Mapping[str, Any]] = []
    for part in said:
        told = part.get("reconciliation") or []
        venues = {row.get("venue") for row in told}
        rows = [row for row in rows if row.get("venue") not in venues or (row.get("verdict") == "pass" and row.get("action") != "match")]
        rows += [row for row in told if row not in rows]
    return rows


def _deadline(rows: Iterable[Row]) -> float | None:
    """When the run must end, by its last word on it. Epoch seconds."""
    return next((float(row["deadline_at"]) for row in reversed(list(rows)) if row.get("deadline_at") is not None), None)


def _met(actual: object, limit: object) -> bool | None:
    """None when one of the two is not known: not met, and not missed."""
    numbers = [value for value in (actual, limit) if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return numbers[0] <= numbers[1] if len(numbers) == 2 else None


def _merged(said: Iterable[Mapping[str, Any]], key: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for part in said:
        # another restore point replaces the earlier one as a whole
        if key == "restore_point" and part.get(key, {}).get("id") not in (None, merged.get("id")):
            merged = {}
        merged.update(part.get(key) or {})
    return merged


def _gates(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """A later gate of the same name replaces an earlier one of its server, and of one task's items the worst verdict stays. So it does of the servers."""
    gates: dict[str, dict[Any, Row]] = {}
    for row in rows:
        if row["event"] != "gate":
            continue
        of_servers = gates.setdefault(row["name"], {})
        before = of_servers.get(row.get("host"))
        same_task = before is not None and before.get("task_id") is not None and before.get("task_id") == row.get("task_id")
        if same_task and before is not None and _WORST[before["verdict"]] > _WORST[row["verdict"]]:
            continue
        of_servers.pop(row.get("host"), None)
        of_servers[row.get("host")] = row
    # the last of the worst
    kept = [max(reversed(of_servers.values()), key=lambda row: _WORST[row["verdict"]]) for of_servers in gates.values()]
    return [{key: row.get(key) for key in ("name", "verdict", "evidence", "host", "phase")} for row in kept]


def _trading(rows: Iterable[Row]) -> tuple[float | None, str | None]:
    resumed_t, trading = None, None
    for row in rows:
        state = row.get("titan_dr", {}).get("trading") if row["event"] == "task" else None
        if state in ("resumed", AWAITING) and trading != state:
            resumed_t = row["t"]
        elif state == "halted":
            resumed_t = None
        trading = state or trading
    return resumed_t, trading


def _phases(rows: Iterable[Row], budgets: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry a phase, in order of its first start; a phase that was entered again adds up."""
    rows = list(rows)
    phases: dict[str, dict[str, Any]] = {}
    open_since: dict[str, float] = {}
    for row in rows:
        if row["event"] == "phase_start":
            name = row["phase"]
            phases.setdefault(name, {"name": name, "start_s": row["t"], "duration_s": 0.0, "budget_s": budgets.get(name)})
            open_since[name] = row["t"]
        elif row["event"] == "phase_end" and row["phase"] in open_since:
            phases[row["phase"]]["duration_s"] += row["t"] - open_since.pop(row["phase"])
    for name, since in open_since.items():
        phases[name]["duration_s"] += rows[-1]["t"] - since
    for phase in phases.values():
        phase["start_s"] = round(phase["start_s"], 1)
        phase["duration_s"] = round(phase["duration_s"], 1)
    return list(phases.values())


def _result(rows: list[Row], start: Row, end: Row | None, gates: list[dict[str, Any]], forced: Mapping[str, Any]) -> tuple[str, str]:
    if end is None:
        return "cancelled", "The run was cut off before its end."
    if end.get("cancelled"):
        return "cancelled", str(end["cancelled"])
    halted, held = set(), set()
    for row in rows:
        said = row.get("titan_dr") or {} if row["event"] == "task" else {}
        # one that was only seen to trade was not halted
        if said.get("trading", "resumed") != "resumed" or said.get("halt"):
            halted.add(row.get("host"))
        if (said.get("lease") or {}).get("epoch"):
            held.add(row.get("host"))
        if said.get("refused"):
            # after the halt of that server, or of another of this Titan, it is more than a refusal: something was begun and not ended
            return ("failed" if halted & {*held, row.get("host")} else "refused"), said["refused"]
    if end.get("aborted"):
        return "failed", str(end["aborted"])
    stats = end.get("stats") or {}
    failures = [row for row in rows if row["event"] == "task" and row["status"] in FAILED]
    # a failure that a rescue made good is a note, not the result
    if any(host.get("failures") or host.get("unreachable") for host in stats.values()):
        first = failures[0] if failures else None
        if first is None:
            return "failed", "A host failed outside any task."
        where = f"{first['name']} on {first['host']}"
        reason = next((row["text"] for row in rows if row["event"] == "note" and row.get("task_id") == first.get("task_id") and row.get("failure")), where)
        deadline_at = _deadline(rows)
        if deadline_at is not None and first["at"] >= deadline_at:
            reason = f"The deadline passed: {reason}"
        return ("refused" if first.get("phase") == "preflight" else "failed"), reason
    overruled = forced.get("gates") or []
    bad = [f"{gate['name']} ({gate['verdict']})" for gate in gates if gate["verdict"] != "pass" and gate["name"] not in overruled]
    if bad:
        return "failed", "Gates not passed: " + ", ".join(bad)
    if start.get("kind") == "check":
        return "recovered", "Check mode: nothing was changed, and no step refused."
    if not gates:
        return "failed", "No gate was reported, so nothing proves the recovery."
    trading = _trading(rows)[1]
    if trading == AWAITING:
        return "recovered", "All gates passed. Trading is halted and waits for a person: playbooks/resume.yml."
    if trading != "resumed":
        # a playbook that broke off after its first plays looks like a success in all other respects
        return "failed", "Trading is still halted." if trading else "The playbook ended before anything said that trading goes on."
    if forced:
        return "recovered", f"TRADING WAS RESUMED BY FORCE, although {', '.join(overruled)} did not pass: {forced.get('reason')}"
    rescued = [row["name"] for row in failures]
    return "recovered", "All gates passed." + (f" Made good on the way: {', '.join(rescued)}." if rescued else "")


def span(seconds: object) -> str:
    if not isinstance(seconds, (int, float)):
        return "unknown"
    return f"{seconds:.1f} s" if abs(seconds) < 100 else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def phase_line(phase: str, elapsed: float, budget: object, limit: object) -> str:
    line = f"[titan-dr] phase {phase} starts {span(elapsed)} after the incident"
    if isinstance(budget, (int, float)):
        line += f", budget {span(budget)}"
    if isinstance(limit, (int, float)):
        left = limit - elapsed
        line += f", {span(left)} of the RTO left" if left >= 0 else f", {span(-left)} OVER the RTO"
    return line


def countdown_line(elapsed: float, target: object, limit: float) -> str:
    left = limit - elapsed
    line = f"[titan-dr] {span(elapsed)} after the incident, {elapsed / limit * 100:.0f} % of the RTO of {span(limit)}"
    if isinstance(target, (int, float)) and elapsed >= target:
        line += f", over the target of {span(target)}"
    return line + (f", {span(left)} left" if left > 0 else ": THE RTO IS OVER")


def marks(target: object, limit: object) -> list[float]:
    """When to say how much time is left, in seconds after the incident."""
    if not isinstance(limit, (int, float)):
        return []
    return sorted({limit * share for share in (0.5, 0.8, 1.0)} | ({float(target)} if isinstance(target, (int, float)) else set()))


def exit_code(report: Mapping[str, Any]) -> int | None:
    """Of a plain ansible-playbook, where its own would hide something."""
    if report["result"] == "refused":
        return 3
    if report["result"] == "recovered" and report["kind"] != "check":
        # an objective that nothing proved is not met, and by force nothing is proven; where nothing is restored there is no objective for the loss
        sound = report["rpo"]["met"] is True or report["rpo"].get("target_s", 0) is None
        return None if report["rto"]["met"] is True and sound and not report.get("forced") else 4
    return None


def reconciliation_lines(report: Mapping[str, Any]) -> list[str]:
    """What was rebuilt, in one line; what a person has to look at, each."""
    lines = []
    if rebuilt := report["rpo"].get("rebuilt"):
        lines.append(f"[titan-dr]   rebuilt from the exchanges: {rebuilt['orders']} orders, {rebuilt['fills']} fills; not rebuilt: {rebuilt['not_rebuilt']}")
    for row in report.get("reconciliation", []):
        if row["verdict"] in ("fail", "unknown"):
            where = " ".join(str(row[part]) for part in ("venue", "what", "symbol", "id") if row.get(part))
            lines.append(f"[titan-dr]   not reconciled: {where}: book {row['book']}, exchange {row['venue_value']}: {row['why']}. {row['do']}".rstrip())
    return lines


def closing_lines(report: Mapping[str, Any], path: str) -> list[str]:
    rto, rpo = report["rto"], report["rpo"]
    words = {True: "met", False: "MISSED", None: "not proven"}
    lines = [f"[titan-dr] {report['scenario']}: {str(report['result']).upper()} ({report['message']})"]
    for phase in report["phases"]:
        budget = f" of {span(phase['budget_s'])}" if phase["budget_s"] is not None else ""
        late = "  OVER BUDGET" if phase["budget_s"] is not None and phase["duration_s"] > phase["budget_s"] else ""
        lines.append(f"[titan-dr]   {phase['name']:<16} {span(phase['duration_s'])}{budget}{late}")
    if report["kind"] != "check":
        basis = f" ({rto['basis']})" if rto.get("basis") else ""
        lines.append(f"[titan-dr]   RTO actual {span(rto['actual_s'])}, target {span(rto['target_s'])}, limit {span(rto['max_s'])}: {words[rto['met']]}{basis}")
        if rpo["target_s"] is not None:
            lines.append(f"[titan-dr]   RPO actual {span(rpo['actual_s'])}, limit {span(rpo['target_s'])}: {words[rpo['met']]}")
    if report["breach"]:
        breach = report["breach"]
        declared, projected = span(breach["declared_s"]), span(breach["projected_s"])
        lines.append(f"[titan-dr]   breach declared {declared} after the incident in phase {breach['phase']}: its end was projected at {projected}")
    if report["lease"] and report["lease"]["adopted"]:
        lines.append(f"[titan-dr]   went on with run {report['lease']['run_id']}")
    lines.append(f"[titan-dr]   trading {report['trading'] or 'unknown'}, restore point {report['restore_point'].get('id', 'none')}")
    several = len({gate.get("host") for gate in report["gates"]}) > 1
    for gate in report["gates"]:
        if gate["verdict"] != "pass":
            where = f" on {gate['host']}" if several else ""
            lines.append(f"[titan-dr]   gate {gate['name']}{where}: {str(gate['verdict']).upper()}: {gate['evidence']}")
    lines += reconciliation_lines(report)
    lines.append(f"[titan-dr]   report {path}")
    return lines
