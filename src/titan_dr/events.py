# SPDX-License-Identifier: GPL-3.0-or-later
"""What a running playbook tells the command, free of the tool that ran it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StepStarted:
    name: str
    role: str | None


@dataclass(frozen=True)
class StepFailed:
    name: str
    host: str
    message: str
    unreachable: bool = False


@dataclass(frozen=True)
class Output:
    text: str


@dataclass(frozen=True)
class Tick:
    """Time passed; also the moment to look into the ledger."""


Event = StepStarted | StepFailed | Output | Tick


@dataclass(frozen=True)
class Outcome:
    rc: int
    cancelled: bool
    status: str
    overdue: bool = False  # stopped at its deadline
    left: tuple[int, ...] = ()  # processes that could not be ended


class LedgerTail:
    """Rows that were added to a ledger since the last look. The file may not be there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def rows(self) -> list[dict[str, Any]]:
        try:
            with self.path.open("rb") as stream:
                stream.seek(self._offset)
                data = stream.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        rows = []
        for line in whole.splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                rows.append(row)
        return rows
