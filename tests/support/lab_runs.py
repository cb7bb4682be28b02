# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs of playbooks against lab hosts, as an operator starts them, and a look at what they left."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from titan_dr import lab
from titan_dr.lab import oracle, profiles
from titan_dr.lab.state import LabState

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = ROOT / "inventories" / "lab"
ANSIBLE = str(Path(sys.executable).with_name("ansible-playbook"))


class Run:
    """One run of ansible-playbook, from a directory that has nothing to do with us."""

    def __init__(self, folder: Path, playbook: str, *arguments: str, inventory: Path = INVENTORY, run_id: str = "") -> None:
        folder.mkdir()
        environment = {**os.environ, "TITAN_DR_RUN_DIR": str(folder / "run"), "ANSIBLE_NOCOLOR": "1", **({"TITAN_DR_RUN_ID": run_id} if run_id else {})}
        argv = [ANSIBLE, "-i", str(inventory), str(ROOT / "playbooks" / f"{playbook}.yml"), *arguments]
        done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False)
        self.rc = done.returncode
        self.output = done.stdout + done.stderr
        path = folder / "run" / "report.json"
        self.report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        self.folder = folder

    def gate(self, name: str) -> dict[str, str]:
        return next(gate for gate in self.report["gates"] if gate["name"] == name)

    def files(self) -> str:
        return "".join(path.read_text(errors="replace") for path in self.folder.rglob("*") if path.is_file())

    def changed(self, host: str) -> int:
        """How many tasks of the play recap changed this host."""
        recap = next(line for line in self.output.splitlines() if line.startswith(host) and "changed=" in line)
        return int(recap.partition("changed=")[2].split()[0])


def refused(run: Run, *words: str) -> None:
    assert run.rc != 0
    assert run.report["result"] == "refused", run.output
    assert run.report["trading"] != "resumed"
    for word in words:
        assert word in run.report["message"] + json.dumps(run.report["gates"]) + json.dumps(run.report["notes"]), run.report


def sh(host: str, script: str) -> str:
    return lab.exec(host, ["sh", "-ec", script]).stdout


@contextlib.contextmanager
def titan_with_restore_points(folder: Path, count: int, profile: str = "guide") -> Iterator[LabState]:
    """A Titan with data, so many restore points, and something written after each."""
    titan = profiles.find(profile)
    raised = lab.up(profile, print, None)
    try:
        with oracle.Tunnel(f"{raised.ssh['user']}@{raised.host(titan.data)['address']}", lab.ssh_options(raised)) as tunnel:
            writer = oracle.Writer(tunnel.host, tunnel.port, raised.redis_password, 1, folder / "acknowledged.jsonl")
            writer.start()
            writer.wait_acknowledged(20, timeout=30)
            for number in range(count):
                backup = Run(folder / f"backup{number}", "backup", inventory=titan.folder)
                assert backup.rc == 0, backup.output
                writer.wait_acknowledged(60, timeout=30)
            writer.stop()
        yield raised
    finally:
        lab.down(print)


def points() -> list[str]:
    """Restore point ids in the off-host store, oldest first."""
    return sorted(sh("backup", "ls /backups/titan-lab/points").split())


def flip_bit(host: str, path: str) -> None:
    damage = "import sys; f = open(sys.argv[1], 'r+b'); f.seek(2000); byte = f.read(1)[0]; f.seek(2000); f.write(bytes([byte ^ 1]))"
    lab.exec(host, ["/usr/bin/python3", "-c", damage, path])
