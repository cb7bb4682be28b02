# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a run directory, for their owner's eyes only. No Ansible in here."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ansible_collections.titan.disaster_recovery.plugins.plugin_utils._budget import BUDGET_FILE
from ansible_collections.titan.disaster_recovery.plugins.plugin_utils._ledger import LEDGER_FILE, REPORT_FILE
from ansible_collections.titan.disaster_recovery.plugins.plugin_utils._notify import NOTIFY_FILE

# Of so many earlier runs the newest are read.
EARLIER = 60


def earlier_reports(runs: Path, own: Path) -> list[dict[str, Any]]:
    """What earlier runs beside this one reported; their names begin with their time."""
    found = []
    try:
        folders = sorted((path for path in runs.iterdir() if path != own), reverse=True)[:EARLIER]
    except OSError:
        return []
    for folder in folders:
        try:
            report = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(report, dict):
            found.append(report)
    return found


class RunFiles:
    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.ledger = self.directory / LEDGER_FILE
        self.report = self.directory / REPORT_FILE
        self.lost: str | None = None  # the first error of a write that came too late to refuse

    def prepare(self) -> None:
        """OSError when this run could not be recorded. What an earlier run left here is kept under another name."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in (self.ledger, self.report):
            if path.exists():
                number = 1
                while (aside := path.with_name(f"{path.name}.{number}")).exists():
                    number += 1
                path.rename(aside)
        # marks of an earlier attempt: it has said its words, this one has not
        for path in (self.directory / NOTIFY_FILE, *self.directory.glob("*.said")):
            path.unlink(missing_ok=True)
        with self._open(self.ledger):
            pass

    def _open(self, path: Path, flags: int = os.O_APPEND) -> Any:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o600), "w", encoding="utf-8")

    def append(self, line: str) -> None:
        try:
            with self._open(self.ledger) as stream:
                stream.write(line)
        except OSError as error:
            self.lost = self.lost or str(error)

    def save(self, report: dict[str, Any]) -> None:
        """Whole or not at all: a reader never sees half a report."""
        self._replace(self.report, report)

    def save_budget(self, budget: dict[str, Any]) -> None:
        self._replace(self.directory / BUDGET_FILE, budget)

    def _replace(self, path: Path, content: dict[str, Any]) -> None:
        partial = path.with_suffix(".partial")
        try:
            with self._open(partial, os.O_TRUNC) as stream:
                json.dump(content, stream, indent=2, default=str, ensure_ascii=False)
                stream.write("\n")
            os.replace(partial, path)
        except OSError as error:
            self.lost = self.lost or str(error)
