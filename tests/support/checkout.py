# SPDX-License-Identifier: GPL-3.0-or-later
"""A project whose only scenario, and whose safe state, are what a test says. Its playbooks run on this machine."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from titan_dr import cli, report

ROOT = Path(__file__).resolve().parents[2]
PASSED = {"gates": [{"name": "health", "verdict": "pass", "evidence": "200"}], "trading": "resumed", "rpo": {"actual_s": 2, "basis": "canary"}}
SCENARIO = "complete_system_failure"


class Checkout:
    """A project whose only scenario is what a test says."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        playbooks = root / "playbooks"
        link = playbooks / "collections" / "ansible_collections" / "titan" / "disaster_recovery"
        link.parent.mkdir(parents=True)
        link.symlink_to(ROOT)
        for folder in ("callback_plugins", "vars"):
            shutil.copytree(ROOT / "playbooks" / folder, playbooks / folder, ignore=shutil.ignore_patterns("__pycache__"))
        (root / "galaxy.yml").write_text("namespace: titan\nname: disaster_recovery\n")
        (root / "hosts").write_text("localhost ansible_connection=local\n")
        self.play("validate", PASSED)
        monkeypatch.setenv("TITAN_DR_ROOT", str(root))
        monkeypatch.setenv("ANSIBLE_PYTHON_INTERPRETER", sys.executable)
        monkeypatch.chdir(root)

    def play(self, phase: str, said: dict[str, Any], *tasks: dict[str, Any]) -> None:
        say = {"name": "Say", "ansible.builtin.debug": {"var": "titan_dr"}, "vars": {"titan_dr": said}}
        play = {"hosts": "localhost", "gather_facts": False, "vars": {"titan_dr_scenario": SCENARIO, "titan_dr_phase": phase}, "tasks": [say, *tasks]}
        (self.root / "playbooks" / f"{SCENARIO}.yml").write_text(yaml.safe_dump([play]))

    def recover(self, *arguments: str) -> int:
        return cli.main(["recover", SCENARIO, "-i", "hosts", *arguments])

    def limit(self, **limits: float) -> None:
        path = self.root / "playbooks" / "vars" / "scenarios.yml"
        known = yaml.safe_load(path.read_text())
        known["titan_dr_scenarios"][SCENARIO].update(limits)
        path.write_text(yaml.safe_dump(known))

    def safe_state(self, *tasks: dict[str, Any]) -> None:
        """Stands for the real one, and notes when it began and with which extra variables."""
        note = "{{ [now().timestamp(), titan_dr_scenario, titan_dr_take_over, titan_dr_end_as] | to_json }}"
        begin = {"name": "Begin", "ansible.builtin.lineinfile": {"path": str(self.root / "safe"), "create": True, "line": note}}
        play = {"hosts": "localhost", "gather_facts": False, "tasks": [begin, *tasks]}
        (self.root / "playbooks" / "safe_state.yml").write_text(yaml.safe_dump([play]))

    def made_safe(self) -> list[list[Any]]:
        path = self.root / "safe"
        return [yaml.safe_load(line) for line in path.read_text().splitlines()] if path.exists() else []

    def alive(self) -> list[str]:
        """What runs for a run of this project: every process inherits the folder of its run."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and int(entry.name) != os.getpid() and f"={self.root}/runs/".encode() in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
        return found

    def report(self) -> dict[str, Any]:
        (path,) = (self.root / "runs").glob("*/report.json")
        return report.load(path)
