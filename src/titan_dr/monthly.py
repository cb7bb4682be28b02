# SPDX-License-Identifier: GPL-3.0-or-later
"""The guide's five monthly tests, in the lab, and one page on them for whoever answers for the risk."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from titan_dr import report

SUMMARY_FILE = "summary.json"
PAGES = ("summary.md", "summary.html")
# The guide's words for it, and what is drilled. The fifth looks at all four.
TESTS = {
    "complete_system_failure": "Complete system restoration from backup",
    "database_corruption": "Database corruption and recovery",
    "network_partition": "Network partition simulation",
    "configuration_corruption": "Configuration corruption recovery",
}
PERFORMANCE = "Performance validation post-recovery"
# Gates that tell how well a recovered Titan performs. A gate of a probe ends with its time.
_MEASURED = ("websockets", "exchanges", "trading", "memory_use", "disk_use", "redis_persistence", "redis_eviction")
_MS = re.compile(r"; (\d+) ms")

Report = Mapping[str, Any]


def run(scenarios: Iterable[str], folder: Path, drill: Callable[[str], Report], say: Callable[[str], None]) -> dict[str, Any]:
    """Drills one after the other; a drill that breaks is a test that failed. The summary on the disk is complete after each of them."""
    started, reports = time.time(), {}
    for name in scenarios:
        say(f"Monthly: {TESTS[name]}")
        reports[name] = drill(name)
        save(folder, summary(reports, started, time.time()))
        if reports[name]["result"] == "cancelled":
            break
    return summary(reports, started, time.time())


def row(name: str, found: Report) -> dict[str, Any]:
    """One test: passed when the recovery met its objectives and every gate, the drill's own ones too."""
    rto, rpo = found["rto"], found["rpo"]
    bad = [f"{gate['name']}: {gate['verdict']}" for gate in found["gates"] if gate["verdict"] != "pass"]
    passed = report.exit_code(found) == report.OK and not bad
    return {
        "test": TESTS[name],
        "scenario": name,
        "verdict": "pass" if passed else "fail",
        "fault": (found.get("drill") or {}).get("fault"),
        "run_id": found.get("run_id"),
        "message": found.get("message"),
        "rto_s": rto.get("actual_s"),
        "rto_target_s": rto.get("target_s"),
        "rto_limit_s": rto.get("max_s"),
        "rpo_s": rpo.get("actual_s"),
        "rpo_limit_s": rpo.get("target_s"),
        "lost_acked_writes": rpo.get("lost_acked_writes"),
        "orders_while_halted": found.get("orders_while_halted"),
        "gates": len(found["gates"]),
        "gates_not_passed": bad,
    }


def performance(reports: Mapping[str, Report]) -> dict[str, Any]:
    """The fifth test: how fast the recovered systems answer and what they use. Without a measurement it is unknown."""
    measured, bad, slowest = 0, [], 0
    for name, found in reports.items():
        for gate in found["gates"]:
            if gate["name"] not in _MEASURED and not str(gate["name"]).startswith("pm2:"):
                continue
            measured += 1
            slowest = max([slowest, *(int(ms) for ms in _MS.findall(str(gate["evidence"])))])
            if gate["verdict"] != "pass":
                bad.append(f"{name}: {gate['name']}: {gate['evidence']}")
    missing = [name for name, found in reports.items() if not found["gates"]]
    verdict = "fail" if bad else "pass" if measured and not missing else "unknown"
    text = f"{measured} measurements, slowest answer {slowest} ms"
    return {"test": PERFORMANCE, "scenario": None, "verdict": verdict, "message": "; ".join([text, *bad]), "gates": measured, "gates_not_passed": bad}


def summary(reports: Mapping[str, Report], started: float, ended: float) -> dict[str, Any]:
    rows = [row(name, found) for name, found in reports.items()]
    rows.append(performance(reports))
    left_out = [TESTS[name] for name in TESTS if name not in reports]
    verdicts = {found["verdict"] for found in rows}
    return {
        "kind": "monthly test",
        "started_at": round(started, 1),
        "ended_at": round(ended, 1),
        "verdict": "fail" if "fail" in verdicts else "unknown" if "unknown" in verdicts or left_out else "pass",
        "tests": rows,
        "not_run": left_out,
        "collection": next((found["collection"] for found in reports.values() if found.get("collection")), {}),
    }


def exit_code(found: Mapping[str, Any]) -> int:
    return {"pass": report.OK, "unknown": report.MISSED}.get(str(found["verdict"]), report.FAILED)


def table(found: Mapping[str, Any]) -> list[list[str]]:
    rows = [["test", "verdict", "fault", "RTO (target, limit)", "RPO (limit)", "acknowledged writes lost", "orders while halted", "gates", "run"]]
    for test in found["tests"]:
        drilled = test["scenario"] is not None
        rto = f"{report.seconds(test['rto_s'])} ({report.seconds(test['rto_target_s'])}, {report.seconds(test['rto_limit_s'])})" if drilled else ""
        rpo = f"{report.seconds(test['rpo_s'])} ({report.seconds(test['rpo_limit_s'])})" if drilled else ""
        counts = (
            [str(test[key]) if test.get(key) is not None else "not counted" for key in ("lost_acked_writes", "orders_while_halted")] if drilled else ["", ""]
        )
        good = test["gates"] - len(test["gates_not_passed"])
        rows.append(
            [test["test"], test["verdict"], str(test.get("fault") or ""), rto, rpo, *counts, f"{good} of {test['gates']}", str(test.get("run_id") or "")]
        )
    return rows


def head(found: Mapping[str, Any]) -> list[str]:
    collection = found.get("collection") or {}
    return [
        f"Disaster recovery, monthly test: {str(found['verdict']).upper()}",
        f"From {report.moment(found['started_at'])} to {report.moment(found['ended_at'])}, collection {collection.get('version', 'unknown')}, in the lab.",
    ]


def remarks(found: Mapping[str, Any]) -> list[str]:
    said = [f"{test['test']}: {test['message']}" for test in found["tests"] if test["verdict"] != "pass" or test["scenario"] is None]
    return said + [f"Not run: {name}" for name in found["not_run"]]


def markdown(found: Mapping[str, Any]) -> str:
    title, about = head(found)

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rows = table(found)
    lines = [f"# {title}", "", about, "", line(rows[0]), line(["---"] * len(rows[0])), *(line(cells) for cells in rows[1:]), ""]
    return "\n".join([*lines, *(f"- {text}" for text in remarks(found))]) + "\n"


def page(found: Mapping[str, Any]) -> str:
    title, about = head(found)
    rows = table(found)

    def cells(words: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(word)}</{tag}>" for word in words) + "</tr>"

    body = cells(rows[0], "th") + "".join(cells(words, "td") for words in rows[1:])
    notes = "".join(f"<li>{html.escape(text)}</li>" for text in remarks(found))
    style = "body{font:15px sans-serif;margin:2em}table{border-collapse:collapse}td,th{border:1px solid #999;padding:.3em .6em;text-align:left}"
    start = f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title><style>{style}</style>'
    return f"{start}<h1>{html.escape(title)}</h1><p>{html.escape(about)}</p><table>{body}</table><ul>{notes}</ul>\n"


def save(folder: Path, found: Mapping[str, Any]) -> None:
    report.save(folder / SUMMARY_FILE, found)
    for name, text in zip(PAGES, (markdown(found), page(found)), strict=True):
        path = folder / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
