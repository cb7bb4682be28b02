# SPDX-License-Identifier: GPL-3.0-or-later
"""The recovery from a dead server, on real hosts: what it refuses, what it works around, and that a second run has nothing to do.

The tests run in the order of this file, on one lab: what is refused leaves the blank server blank, the recovery comes last.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyrage
import pytest

from titan_dr import lab
from titan_dr.lab import oracle
from titan_dr.lab.state import LabState

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = ROOT / "inventories" / "lab"
PLAYBOOK = ROOT / "playbooks" / "complete_system_failure.yml"
ANSIBLE = str(Path(sys.executable).with_name("ansible-playbook"))

pytestmark = pytest.mark.lab


class Run:
    """One run of ansible-playbook, as an operator starts it, from a directory that has nothing to do with us."""

    def __init__(self, folder: Path, *arguments: str, playbook: Path = PLAYBOOK, inventory: Path = INVENTORY) -> None:
        folder.mkdir()
        environment = {**os.environ, "TITAN_DR_RUN_DIR": str(folder / "run"), "ANSIBLE_NOCOLOR": "1"}
        argv = [ANSIBLE, "-i", str(inventory), str(playbook), *arguments]
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


def sh(host: str, script: str) -> str:
    return lab.exec(host, ["sh", "-ec", script]).stdout


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabState]:
    """A Titan with data and two restore points."""
    raised = lab.up("guide", print, None)
    try:
        folder = tmp_path_factory.mktemp("lab")
        with oracle.Tunnel(f"{raised.ssh['user']}@{raised.host('titan')['address']}", lab.ssh_options(raised)) as tunnel:
            writer = oracle.Writer(tunnel.host, tunnel.port, raised.redis_password, 1, folder / "acknowledged.jsonl")
            writer.start()
            writer.wait_acknowledged(20, timeout=30)
            for number in (1, 2):
                backup = Run(folder / f"backup{number}", playbook=ROOT / "playbooks" / "backup.yml")
                assert backup.rc == 0, backup.output
                writer.wait_acknowledged(60, timeout=30)
            writer.stop()
        yield raised
    finally:
        lab.down(print)


@pytest.fixture(scope="module")
def lost(state: LabState) -> LabState:
    """The same without its Titan."""
    lab.destroy_host("titan")
    return state


def points() -> list[str]:
    """Restore point ids in the off-host store, oldest first."""
    return sorted(sh("backup", "ls /backups/titan-lab/points").split())


def fingerprint(host: str) -> str:
    """Every file of a server that a recovery could touch."""
    return sh(host, "find /etc /opt /srv /usr /var/lib /root -xdev -path /root/.ansible -prune -o -type f -printf '%p %s %T@\\n' | sort | sha256sum")


def refused(run: Run, *words: str) -> None:
    assert run.rc != 0
    assert run.report["result"] == "refused", run.output
    assert run.report["trading"] != "resumed"
    for word in words:
        assert word in run.report["message"] + json.dumps(run.report["gates"]) + json.dumps(run.report["notes"]), run.report


def test_an_old_server_that_answers_but_cannot_be_halted_stops_the_recovery(state: LabState, tmp_path: Path) -> None:
    before = fingerprint("replacement")
    sh("titan", "mkdir -p /var/lib/titan-dr/halt/in-the-way")
    run = Run(tmp_path / "run")
    assert run.rc != 0
    assert run.report["result"] == "failed"
    assert "Trading could not be halted" in run.report["message"]
    assert fingerprint("replacement") == before


def test_an_inventory_without_a_replacement_is_refused(lost: LabState, tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("all:\n  hosts:\n    somewhere:\n")
    run = Run(tmp_path / "run", inventory=inventory)
    assert run.rc != 0
    assert "titan_replacement" in run.output
    assert run.report["result"] == "refused"


def test_a_wrong_age_key_is_refused_before_anything_is_touched(lost: LabState, tmp_path: Path) -> None:
    before = fingerprint("replacement")
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({"titan_age_identity": str(pyrage.x25519.Identity.generate())}))
    started = time.monotonic()
    refused(Run(tmp_path / "run", "-e", f"@{wrong}"), "titan_age_identity", "does not open")
    assert time.monotonic() - started < 20
    assert fingerprint("replacement") == before


def test_a_server_with_somebody_elses_data_is_refused_and_keeps_it(lost: LabState, tmp_path: Path) -> None:
    sh("replacement", "mkdir /var/lib/redis && echo precious > /var/lib/redis/dump.rdb")
    try:
        refused(Run(tmp_path / "run"), "blank_or_ours", "/var/lib/redis holds dump.rdb")
        assert sh("replacement", "cat /var/lib/redis/dump.rdb") == "precious\n"
    finally:
        sh("replacement", "rm -r /var/lib/redis")


def test_too_little_disk_is_refused(lost: LabState, tmp_path: Path) -> None:
    name = lost.host("replacement")["name"]
    pid = subprocess.run(["podman", "inspect", "--format", "{{.State.Pid}}", name], capture_output=True, text=True, check=True).stdout.strip()
    sh("replacement", "mkdir /var/lib/redis")
    subprocess.run(["nsenter", "-t", pid, "-m", "mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", "/var/lib/redis"], check=True)
    try:
        refused(Run(tmp_path / "run"), "disk", "64 MiB free for /var/lib/redis")
    finally:
        subprocess.run(["nsenter", "-t", pid, "-m", "umount", "/var/lib/redis"], check=True)
        sh("replacement", "rmdir /var/lib/redis")


def test_check_mode_changes_nothing_and_says_what_it_would_do(lost: LabState, tmp_path: Path) -> None:
    before = fingerprint("replacement")
    run = Run(tmp_path / "run", "--check")
    assert run.rc == 0, run.output
    assert fingerprint("replacement") == before
    assert run.report["kind"] == "check"
    said = "\n".join(run.report["notes"])
    for word in ("would fasten the halt latch", "would fetch and prove the Redis data", "would install", "would restore", "would resume"):
        assert word in said, said


def test_no_store_at_all_is_refused(lost: LabState, tmp_path: Path) -> None:
    sh("backup", "systemctl stop seaweedfs ssh")
    try:
        refused(Run(tmp_path / "run"), "No store can be read", "cloud", "offhost")
    finally:
        sh("backup", "systemctl start seaweedfs ssh")


def test_recovers_from_the_older_point_when_the_newest_is_corrupt_and_one_store_is_dead(lost: LabState, tmp_path: Path) -> None:
    older, newest = points()
    path = f"/backups/titan-lab/points/{newest}/redis.rdb.zst.age"
    damage = "import sys; f = open(sys.argv[1], 'r+b'); f.seek(2000); byte = f.read(1)[0]; f.seek(2000); f.write(bytes([byte ^ 1]))"
    lab.exec("backup", ["/usr/bin/python3", "-c", damage, path])
    sh("backup", "systemctl stop seaweedfs")
    run = Run(tmp_path / "run")
    assert run.rc == 0, run.output
    assert run.report["result"] == "recovered", run.report
    assert run.report["restore_point"]["id"] == older
    assert run.report["restore_point"]["source"] == "offhost"
    assert run.report["trading"] == "resumed"
    notes = "\n".join(run.report["notes"])
    assert f"passed over: restore point {newest} from offhost" in notes
    assert "store cloud does not answer" in notes
    assert run.gate("no_package_registry")["verdict"] == "pass"
    secrets = [lost.redis_password, lost.s3["secret_key"], lost.age["identity"], lost.sftp["private_key"].splitlines()[2]]
    for secret in secrets:
        assert secret not in run.files()
        assert secret not in run.output
    assert "AGE-SECRET-KEY" not in sh("replacement", "grep -rls AGE-SECRET-KEY /var /etc /opt /root /tmp /run 2>/dev/null || true")


def test_a_second_run_changes_nothing_and_passes(lost: LabState, tmp_path: Path) -> None:
    sh("backup", "systemctl start seaweedfs")
    run = Run(tmp_path / "run")
    assert run.rc == 0, run.output
    assert run.report["result"] == "recovered", run.report
    recap = next(line for line in run.output.splitlines() if line.startswith("replacement") and "changed=" in line)
    assert "changed=0" in recap
