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
