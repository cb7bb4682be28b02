# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ledger of a run: one JSON object a line, each with its wall time and its distance from the incident. No Ansible in here."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ENV_ARMED = "TITAN_DR_CLOCK_ARMED"
ENV_ATTEMPT = "TITAN_DR_ATTEMPT"
ENV_INCIDENT = "TITAN_DR_INCIDENT_STARTED_AT"
ENV_KIND = "TITAN_DR_KIND"
ENV_RUN_DIR = "TITAN_DR_RUN_DIR"
ENV_RUN_ID = "TITAN_DR_RUN_ID"
ENV_STARTED = "TITAN_DR_STARTED_AT"

LEDGER_FILE = "ledger.jsonl"
REPORT_FILE = "report.json"

VERDICTS = ("pass", "fail", "unknown")
_DICT_KEYS = ("restore_point", "rpo", "timings", "versions", "lease", "breach", "late", "halt", "forced")
# The last one: everything passed, and a person decides when it goes on.
TRADING = ("halted", "resumed", "awaiting resume")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Clock:
    """Wall time says when, the monotonic clock says how long."""

    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic


def new_run_id(scenario: str, now: float, token: str) -> str:
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    return f"{stamp}-{scenario}-{token}"


def is_run_id(text: str) -> bool:
    """A run id becomes the name of a directory."""
    return _RUN_ID.fullmatch(text) is not None


def run_directory(environ: Mapping[str, str], run_id: str) -> Path:
    given = environ.get(ENV_RUN_DIR)
    if given:
        return Path(given)
    state = environ.get("XDG_STATE_HOME") or os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".local", "state")
    return Path(state) / "titan-dr" / "runs" / run_id


def parse_instant(value: object) -> float:
    """Epoch seconds or ISO 8601 (UTC when it names no zone) -> epoch seconds; ValueError otherwise."""
    text = str(value).strip()
    try:
        instant = float(text)
    except ValueError:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00") if text.endswith("Z") else text)
        instant = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not 0 < instant < 1e11:
        raise ValueError(f"{text!r} is not a time in epoch seconds")
    return instant


def read_rows(text: str) -> list[dict[str, Any]]:
    """The rows of a ledger; a last line that a killed run cut off is left out."""
    rows = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "event" in row:
            rows.append(row)
    return rows


@dataclass
class Ledger:
    """Appends rows through `write`; keeps them too, so that a disk that fails in the middle does not lose the report."""

    incident_at: float
    clock: Clock
    write: Callable[[str], None]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        # an incident in the future is a clock error: count from now
        self._offset = max(0.0, self.clock.wall() - self.incident_at)
        self._started = self.clock.monotonic()

    def elapsed(self) -> float:
        return self._offset + self.clock.monotonic() - self._started

    def rebase(self, incident_at: float) -> float:
        """Count from an earlier incident; returns by how much. Rows that are written already keep what they say."""
        shift = max(0.0, self.incident_at - incident_at)
        self.incident_at -= shift
        self._offset += shift
        return shift

    def add(self, event: str, t: float | None = None, **fields: Any) -> dict[str, Any]:
        row = {"at": round(self.clock.wall(), 3), "t": round(self.elapsed() if t is None else t, 3), "event": event}
        row.update((key, value) for key, value in fields.items() if value is not None)
        self.rows.append(row)
        self.write(json.dumps(row, default=str, ensure_ascii=False) + "\n")
        return row


def _gates(raw: object, task: str) -> list[dict[str, Any]]:
    """Every gate that was meant comes out; what cannot be read as a verdict is unknown."""
    gates = []
    for gate in raw if isinstance(raw, list) else [raw]:
        known = gate if isinstance(gate, dict) else {}
        verdict = known.get("verdict")
        evidence = known.get("evidence", "") if known else f"not a gate: {gate!r}"
        if verdict not in VERDICTS:
            evidence = f"verdict {verdict!r} is none of {', '.join(VERDICTS)}; evidence: {evidence}"
            verdict = "unknown"
        gates.append({"name": str(known.get("name") or f"unnamed gate of {task}"), "verdict": verdict, "evidence": evidence})
    return gates


def reported(result: Mapping[str, Any], task: str) -> dict[str, Any]:
    """What a task result (or the items of its loop) says under `titan_dr`, with nothing else of the result. Hidden results say nothing."""
    if "censored" in result or result.get("_ansible_no_log"):
        return {}
    merged: dict[str, Any] = {}
    items = result.get("results")
    parts: Iterable[Any] = [result, *items] if isinstance(items, list) else [result]
    for part in parts:
        if not isinstance(part, Mapping) or "titan_dr" not in part or "censored" in part or part.get("_ansible_no_log"):
            continue
        said = part["titan_dr"]
        if not isinstance(said, Mapping):
            said = {"gates": [f"titan_dr is no mapping: {said!r}"]}
        if "gates" in said:
            merged.setdefault("gates", []).extend(_gates(said["gates"], task))
        for key in _DICT_KEYS:
            if isinstance(said.get(key), Mapping):
                merged.setdefault(key, {}).update(said[key])
        for key in ("reconciliation", "candidates"):
            if isinstance(said.get(key), list):
                merged.setdefault(key, []).extend(row for row in said[key] if isinstance(row, Mapping))
        if said.get("trading") in TRADING:
            merged["trading"] = said["trading"]
        for key in ("refused", "unreachable"):
            if said.get(key):
                merged[key] = str(said[key])
        deadline = said.get("deadline_at")
        if isinstance(deadline, (int, float)) and not isinstance(deadline, bool):
            merged["deadline_at"] = deadline
        notes = said.get("notes")
        if notes:
            merged.setdefault("notes", []).extend(str(note) for note in (notes if isinstance(notes, list) else [notes]))
    return merged
