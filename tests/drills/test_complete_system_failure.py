# SPDX-License-Identifier: GPL-3.0-or-later
"""The recovery from a dead server, on real hosts: what it refuses, what it works around, and that a second run has nothing to do.

The tests run in the order of this file, on one lab: what is refused leaves the blank server blank, the recovery comes last.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pyrage
import pytest
from lab_runs import Run, flip_bit, points, refused, sh, titan_with_restore_points

from titan_dr import lab
from titan_dr.lab.state import LabState

PLAYBOOK = "complete_system_failure"

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabState]:
    with titan_with_restore_points(tmp_path_factory.mktemp("lab"), 2) as raised:
        yield raised


@pytest.fixture(scope="module")
def lost(state: LabState) -> LabState:
    """The same without its Titan."""
    lab.destroy_host("titan")
    return state


def fingerprint(host: str) -> str:
    """Every file of a server that a recovery could touch."""
    return sh(host, "find /etc /opt /srv /usr /var/lib /root -xdev -path /root/.ansible -prune -o -type f -printf '%p %s %T@\\n' | sort | sha256sum")


def test_an_old_server_that_answers_but_cannot_be_halted_stops_the_recovery(state: LabState, tmp_path: Path) -> None:
    before = fingerprint("replacement")
    sh("titan", "mkdir -p /var/lib/titan-dr/halt/in-the-way")
    run = Run(tmp_path / "run", PLAYBOOK)
    assert run.rc != 0
    assert run.report["result"] == "failed"
    assert "Trading could not be halted" in run.report["message"]
    assert fingerprint("replacement") == before


def test_an_inventory_without_a_replacement_is_refused(lost: LabState, tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("all:\n  hosts:\n    somewhere:\n")
    run = Run(tmp_path / "run", PLAYBOOK, inventory=inventory)
    assert run.rc != 0
    assert "titan_replacement" in run.output
    assert run.report["result"] == "refused"


def test_a_wrong_age_key_is_refused_before_anything_is_touched(lost: LabState, tmp_path: Path) -> None:
    before = fingerprint("replacement")
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({"titan_age_identity": str(pyrage.x25519.Identity.generate())}))
    started = time.monotonic()
    refused(Run(tmp_path / "run", PLAYBOOK, "-e", f"@{wrong}"), "titan_age_identity", "does not open")
    assert time.monotonic() - started < 20
    assert fingerprint("replacement") == before


def test_a_server_with_somebody_elses_data_is_refused_and_keeps_it(lost: LabState, tmp_path: Path) -> None:
    sh("replacement", "mkdir /var/lib/redis && echo precious > /var/lib/redis/dump.rdb")
    try:
        refused(Run(tmp_path / "run", PLAYBOOK), "blank_or_ours", "/var/lib/redis holds dump.rdb")
        assert sh("replacement", "cat /var/lib/redis/dump.rdb") == "precious\n"
    finally:
        sh("replacement", "rm -r /var/lib/redis")


def test_too_little_disk_is_refused(lost: LabState, tmp_path: Path) -> None:
    name = lost.host("replacement")["name"]
    pid = subprocess.run(["podman", "inspect", "--format", "{{.State.Pid}}", name], capture_output=True, text=True, check=True).stdout.strip()
    sh("replacement", "mkdir /var/lib/redis")
    subprocess.run(["nsenter", "-t", pid, "-m", "mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", "/var/lib/redis"], check=True)
    try:
        refused(Run(tmp_path / "run", PLAYBOOK), "disk", "64 MiB free for /var/lib/redis")
    finally:
        subprocess.run(["nsenter", "-t", pid, "-m", "umount", "/var/lib/redis"], check=True)
        sh("replacement", "rmdir /var/lib/redis")


def test_check_mode_changes_nothing_and_says_what_it_would_do(lost: LabState, tmp_path: Path) -> None:
    before = fingerprint("replacement")
    run = Run(tmp_path / "run", PLAYBOOK, "--check")
    assert run.rc == 0, run.output
    assert fingerprint("replacement") == before
    assert run.report["kind"] == "check"
    said = "\n".join(run.report["notes"])
    for word in ("would fasten the halt latch", "would fetch and prove the Redis data", "would install", "would restore", "would resume"):
        assert word in said, said


def test_no_store_at_all_is_refused(lost: LabState, tmp_path: Path) -> None:
    sh("backup", "systemctl stop seaweedfs ssh")
    try:
        refused(Run(tmp_path / "run", PLAYBOOK), "No store can be read", "cloud", "offhost")
    finally:
        sh("backup", "systemctl start seaweedfs ssh")


def test_recovers_from_the_older_point_when_the_newest_is_corrupt_and_one_store_is_dead(lost: LabState, tmp_path: Path) -> None:
    older, newest = points()
    path = f"/backups/titan-lab/points/{newest}/redis.rdb.zst.age"
    flip_bit("backup", path)
    sh("backup", "systemctl stop seaweedfs")
    run = Run(tmp_path / "run", PLAYBOOK)
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
    run = Run(tmp_path / "run", PLAYBOOK)
    assert run.rc == 0, run.output
    assert run.report["result"] == "recovered", run.report
    assert run.changed("replacement") == 0
