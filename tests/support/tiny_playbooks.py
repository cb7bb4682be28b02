# SPDX-License-Identifier: GPL-3.0-or-later
"""Playbooks of a few tasks, run by ansible-playbook with the clock of this checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
SECRET = "canary-of-a-secret-9f3a"
ARMED = {"name": "Clock is armed", "ansible.builtin.assert": {"that": "lookup('ansible.builtin.env', 'TITAN_DR_CLOCK_ARMED') == '1'"}}
PASSED = {"gates": [{"name": "health", "verdict": "pass", "evidence": "200"}], "trading": "resumed", "rpo": {"actual_s": 2, "basis": "canary"}}


def say(said: object, **keywords: Any) -> dict[str, Any]:
    return {"name": "Say", "ansible.builtin.debug": {"var": "titan_dr"}, "vars": {"titan_dr": said}, **keywords}


def play(phase: str, *tasks: dict[str, Any], **keywords: Any) -> dict[str, Any]:
    return {
        "name": phase,
        "hosts": "localhost",
        "gather_facts": False,
        "vars": {"titan_dr_scenario": "complete_system_failure", "titan_dr_phase": phase},
        "tasks": list(tasks),
        **keywords,
    }


@dataclass
class Ran:
    rc: int
    output: str
    directory: Path

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / "report.json").read_text())
        return found

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "ledger.jsonl").read_text().splitlines()]


class Playbooks:
    """A folder of playbooks as it stands in a checkout: the clock lies beside them, and nothing is configured."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "playbooks"
        self.run_dir = folder / "run"
        link = self.folder / "collections" / "ansible_collections" / "titan" / "disaster_recovery"
        link.parent.mkdir(parents=True)
        link.symlink_to(ROOT)
        shutil.copytree(ROOT / "playbooks" / "callback_plugins", self.folder / "callback_plugins", ignore=shutil.ignore_patterns("__pycache__"))
        self.away = folder / "away"
        self.away.mkdir()
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder / "home"),
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
            "ANSIBLE_LOCALHOST_WARNING": "False",
            "TITAN_DR_RUN_DIR": str(self.run_dir),
            # an inherited flag must not count
            "TITAN_DR_CLOCK_ARMED": "1",
        }

    def write(self, plays: list[dict[str, Any]]) -> Path:
        path = self.folder / "tiny.yml"
        path.write_text(yaml.safe_dump(plays))
        return path

    def role(self, name: str, *tasks: dict[str, Any]) -> dict[str, Any]:
        """A role of these tasks, and the task that runs it."""
        path = self.folder / "roles" / name / "tasks" / "main.yml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(list(tasks)))
        return {"name": f"Run {name}", "ansible.builtin.import_role": {"name": name}}

    def run(self, *plays: dict[str, Any], arguments: tuple[str, ...] = (), **environment: str) -> Ran:
        command = ["ansible-playbook", "-i", "localhost,", "-c", "local", str(self.write(list(plays))), *arguments]
        done = subprocess.run(command, cwd=self.away, env={**self.environment, **environment}, capture_output=True, text=True, timeout=60, check=False)
        return Ran(done.returncode, done.stdout + done.stderr, self.run_dir)
