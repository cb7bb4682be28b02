# SPDX-License-Identifier: GPL-3.0-or-later
"""The recovery of a damaged configuration, on real hosts.

The tests run in the order of this file, on one lab: a healthy Titan is left alone, each fault is recovered from, the hopeless case comes last.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab_runs import ANSIBLE, INVENTORY, ROOT, Run, refused, sh, titan_with_restore_points

from titan_dr.lab import faults
from titan_dr.lab.state import LabState

PLAYBOOK = "configuration_corruption"
CONFIG = "/opt/titan/config"
SERVICES = ("titan-brain", "titan-shared", "titan-phase1", "titan-phase2", "titan-phase3")
# Which services start anew. The others keep their processes, where trading could be halted by asking.
RESTARTED = {
    "truncated": {"titan-phase3"},
    "missing": {"titan-shared", "titan-phase1", "titan-phase2", "titan-phase3"},
    "secret-mode": set(),
    "uncommitted-edit": {"titan-shared", "titan-phase1", "titan-phase2", "titan-phase3"},
}
# What keeps CI short (invalid-json is molecule's); the others come with the slow ones.
QUICK = ("position-limit", "redis-conf-broken")
EVERY = [fault.name for fault in faults.FAULTS[PLAYBOOK] if fault.expect == "recovered"]

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabState]:
    with titan_with_restore_points(tmp_path_factory.mktemp("lab"), 1) as raised:
        yield raised


@pytest.fixture(scope="module")
def secrets(state: LabState) -> list[str]:
    """What must not be read anywhere."""
    keys = [value for venue in state.exchange_keys.values() for value in venue.values()]
    return [*keys, state.redis_password]


def pids() -> dict[str, str]:
    return {name: sh("titan", f"cat /opt/titan/.pm2/pids/{name}-*.pid | sort -n | tail -1").strip() for name in SERVICES}


def fingerprint() -> str:
    look = "find /etc /opt /srv /usr /var/lib -xdev \\( -name logs -o -name pm2.log -o -name pids -o -name appendonlydir -o -name dump.rdb \\) -prune"
    return sh("titan", look + " -o -type f -printf '%p %s %m %T@\\n' | sort | sha256sum; pidof redis-server; pgrep --uid titan | sort")


def trading() -> Any:
    program = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:3000/health/trading', timeout=5).read().decode())"
    return json.loads(sh("titan", f'python3 -c "{program}"'))["trading"]


def config(name: str) -> Any:
    return json.loads(sh("titan", f"cat {CONFIG}/{name}.config.json"))


def unsaid(run: Run, secrets: list[str]) -> None:
    """Neither the run's files nor what it printed hold a secret."""
    said = run.output + run.files()
    assert [word[:3] for word in secrets if word in said] == []


def validate_config(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    argv = [ANSIBLE, "-i", str(INVENTORY), str(ROOT / "playbooks" / "validate_config.yml"), *arguments]
    done = subprocess.run(argv, cwd=tmp_path, env={**os.environ, "ANSIBLE_NOCOLOR": "1"}, capture_output=True, text=True, timeout=200, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_healthy_titan_has_no_finding_and_is_left_alone(state: LabState, tmp_path: Path, secrets: list[str]) -> None:
    before = fingerprint()
    rc, said = validate_config(tmp_path)
    assert rc == 0 and "nothing is wrong" in said, said
    run = Run(tmp_path / "run", PLAYBOOK)
    assert (run.rc, run.report["result"], run.report["trading"], run.changed("titan")) == (0, "recovered", "resumed", 0), run.output
    assert run.report["rpo"]["met"] is True
    assert fingerprint() == before and trading() is True
    unsaid(run, secrets)


def test_an_inventory_with_two_servers_is_refused(state: LabState, tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("titan_servers:\n  hosts:\n    one:\n    two:\n")
    refused(Run(tmp_path / "run", PLAYBOOK, inventory=inventory), "exactly one server")


def test_check_mode_changes_nothing_and_says_what_it_would_do(state: LabState, tmp_path: Path, secrets: list[str]) -> None:
    sh("titan", f"cp -p {CONFIG}/phase3.config.json /root/phase3; truncate --size 100 {CONFIG}/phase3.config.json")
    before = fingerprint()
    rc, said = validate_config(tmp_path)
    assert rc != 0 and "phase3.config.json | line" in said and "fatal" in said, said
    run = Run(tmp_path / "run", PLAYBOOK, "--check")
    assert run.rc == 0, run.output
    assert fingerprint() == before and trading() is True
    notes = "\n".join(run.report["notes"])
    for word in (f"would replace {CONFIG}/phase3.config.json by revision", "would stop titan-phase3", "would fasten the halt latch", "would resume"):
        assert word in notes, notes
    unsaid(run, secrets)
    sh("titan", f"cp -p /root/phase3 {CONFIG}/phase3.config.json")


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in EVERY])
def test_recovers(state: LabState, tmp_path: Path, name: str, secrets: list[str]) -> None:
    fault = faults.find_fault(PLAYBOOK, name)
    good = {service: config(service) for service in ("brain", "shared", "phase1", "phase2", "phase3")}
    before = pids()
    fault.prepare()
    fault.strike()
    run = Run(tmp_path / "run", PLAYBOOK)
    report = run.report
    assert run.rc == 0, run.output
    assert (report["result"], report["trading"], report["rto"]["met"], report["rpo"]["met"]) == ("recovered", "resumed", True, True), report
    assert run.gate("config_sound")["verdict"] == "pass" and run.gate("config_loaded")["verdict"] == "pass"
    assert trading() is True
    after = {service: config(service) for service in good}
    if name == "uncommitted-edit":
        assert after["phase3"]["generate"].pop("everyMs") == 3777, "a valid edit that no backup has was lost"
        good["phase3"]["generate"].pop("everyMs")
    assert after == good
    assert sh("titan", f"stat --format '%a %U' {CONFIG}/secrets.json").split() == ["600", "titan"]
    if name in RESTARTED:
        changed = {service for service, pid in pids().items() if pid != before[service]}
        assert changed == RESTARTED[name]
    kept = sh("titan", f"find /etc /opt -name '*.before-{report['run_id']}' -printf '%f %m\\n'").split()
    assert kept if name != "secret-mode" else not kept
    assert set(kept[1::2]) <= {"600"}, "what was kept may hold secrets"
    assert sh("titan", "find /etc/redis /opt/titan/config /var/lib/titan-dr/stage -name '*.stage-*'") == ""
    unsaid(run, secrets)
    if name == "uncommitted-edit":
        # the next tests begin with what the backup has
        sh("titan", f"sed -i 's/3777/4000/' {CONFIG}/phase3.config.json")
        assert Run(tmp_path / "restart", PLAYBOOK).rc == 0


def test_an_edit_that_was_never_loaded_is_loaded_by_a_restart_and_by_nothing_less(state: LabState, tmp_path: Path) -> None:
    """The file on the disk is right, the process runs with other values: it must not pass."""
    sh("titan", f'sed -i \'s/"everyMs": 4000/"everyMs": 3900/\' {CONFIG}/phase2.config.json')
    rc, said = validate_config(tmp_path)
    assert rc == 0 and "titan-phase2 runs with other values" in said
    before = pids()
    run = Run(tmp_path / "run", PLAYBOOK)
    assert run.rc == 0, run.output
    assert {name for name, pid in pids().items() if pid != before[name]} == {"titan-phase2"}
    assert config("phase2")["generate"]["everyMs"] == 3900


@pytest.mark.slow
def test_the_restore_points_are_the_next_place(state: LabState, tmp_path: Path, secrets: list[str]) -> None:
    for path in ("/var/lib/titan-dr/config.bundle", "/backups/config/.git/HEAD"):
        sh("titan", f"cp -p {path} /root/kept-$(basename {path}); echo damaged > {path}")
    faults.find_fault(PLAYBOOK, "truncated").strike()
    run = Run(tmp_path / "run", PLAYBOOK)
    assert run.rc == 0, run.output
    assert run.report["result"] == "recovered" and trading() is True
    assert "cannot be read" in "\n".join(run.report["notes"])
    unsaid(run, secrets)
    for path in ("/var/lib/titan-dr/config.bundle", "/backups/config/.git/HEAD"):
        sh("titan", f"mv /root/kept-$(basename {path}) {path}")


def test_without_a_proven_version_it_ends_halted_and_leaves_the_files(state: LabState, tmp_path: Path, secrets: list[str]) -> None:
    fault = faults.find_fault(PLAYBOOK, "all-revisions-bad")
    fault.strike()
    damaged = sh("titan", f"sha256sum {CONFIG}/*")
    before = pids()
    run = Run(tmp_path / "run", PLAYBOOK)
    assert run.rc != 0
    assert (run.report["result"], run.report["trading"]) == ("failed", "halted"), run.report
    assert fault.cause in run.report["message"], run.report["message"]
    assert run.gate("config_proof")["verdict"] == "fail"
    assert sh("titan", f"sha256sum {CONFIG}/*") == damaged
    assert pids() == before, "what runs on was not stopped for nothing"
    assert json.loads(sh("titan", "cat /var/lib/titan-dr/halt"))["run_id"] == run.report["run_id"]
    unsaid(run, secrets)


@pytest.mark.slow
def test_another_titan_recovers_by_its_inventory_alone(tmp_path: Path) -> None:
    """Other names and ports, services that ignore the latch, no schema for any file."""
    command = str(Path(sys.executable).with_name("titan-dr"))
    environment = {**os.environ, "TITAN_DR_LAB_DIR": str(tmp_path / "lab")}
    argv = [command, "drill", PLAYBOOK, "--fault", "position-limit", "--profile", "variant", "--json", "--runs-dir", str(tmp_path / "runs")]
    done = subprocess.run(argv, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, timeout=900, check=False)
    report = json.loads(done.stdout)
    assert (done.returncode, report["result"], report["trading"]) == (0, "recovered", "resumed"), report
    assert {gate["verdict"] for gate in report["gates"]} == {"pass"}
