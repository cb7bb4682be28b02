# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from titan_dr import report


def shown(**fields: Any) -> str:
    found = {**report.empty("r", "real", "s", {"rto_s": 900, "rpo_s": 300}, "failed", "It broke."), **fields}
    console = Console(file=io.StringIO(), width=300, color_system=None)
    report.render(console, found, Path("/r/report.json"))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_a_plain_one_says_nothing_of_them() -> None:
    text = shown()
    assert "FAILED" in text and not any(word in text for word in ("Breach", "Lease", "Deadline"))


def test_breach_lease_and_deadline() -> None:
    breach = {"declared_s": 30.0, "projected_s": 960.0, "phase": "provision"}
    text = shown(breach=breach, lease={"run_id": "r0", "epoch": 4, "adopted": True}, deadline_at=1767225600)
    assert "Breach declared 30.0 s after the incident in phase provision: its end was projected at 16 min 00 s" in text
    assert "Lease 4 of run r0: went on where that run had broken off" in text
    assert "Deadline 2026-01-01 00:00:00 UTC" in text
    text = shown(lease={"run_id": "r", "epoch": 1, "adopted": False}, deadline_at=1767225600, result="recovered")
    assert "Lease 1 of run r: taken" in text and "Deadline" not in text


def test_a_report_of_an_earlier_version_can_be_shown() -> None:
    old = report.empty("r", "real", "s", {}, "failed", "It broke.")
    for key in ("breach", "lease", "deadline_at", "entries"):
        del old[key]
    console = Console(file=io.StringIO(), width=300)
    report.render(console, old, Path("/r/report.json"))


def test_candidates() -> None:
    row = {"kind": "archive", "name": "restore point p", "verdict": "proven", "reason": "", "loss_s": 30.0, "keys": 12, "chosen": False}
    broken = {**row, "name": "append only file", "verdict": "refused", "reason": "[bold] is not there", "loss_s": None, "keys": None}
    text = shown(candidates=[row, {**row, "name": "dump of the server", "loss_s": 2.0, "chosen": True}, broken])
    lines = [line.split() for line in text.splitlines()]
    assert ["restore", "point", "p", "proven", "30.0", "s", "12"] in lines and ["dump", "of", "the", "server", "proven", "2.0", "s", "12", "restored"] in lines
    assert ["append", "only", "file", "refused", "[bold]", "is", "not", "there"] in lines
    # one alone says nothing new
    assert "candidate" not in shown(candidates=[row])


def test_reconciliation() -> None:
    row = {"venue": "binance", "what": "order", "symbol": "BTCUSDT", "id": "t-1", "book": "-", "venue_value": "[bold]", "why": "the book had lost it", "do": ""}
    rows = [{**row, "action": "adopt", "verdict": "pass"}, {**row, "id": "web", "action": "stop", "verdict": "fail", "why": "not ours", "do": "Look."}]
    rpo = {"actual_s": 1, "target_s": 2, "met": True, "rebuilt": {"orders": 1, "fills": 1, "not_rebuilt": "signals"}}
    text = shown(reconciliation=[*rows, {**row, "action": "match", "verdict": "pass"}], rpo=rpo)
    assert "1 agree, 2 did not" in text and "the book had lost it" in text and "not ours. Look." in text and "[bold]" in text
    assert "Rebuilt from the exchanges: 1 orders, 1 fills. Not rebuilt: signals" in text
