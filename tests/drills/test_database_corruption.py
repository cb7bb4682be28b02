# SPDX-License-Identifier: GPL-3.0-or-later
"""The recovery of Redis in place, on real hosts: what it refuses, each fault, that no run makes it worse, and a Titan of another shape.

The tests run in the order of this file, on one lab: what is refused leaves Titan trading, each fault is recovered from, the hopeless case comes last.
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

import pytest
from lab_runs import Run, flip_bit, points, refused, sh, titan_with_restore_points

from titan_dr import lab
from titan_dr.lab import faults
from titan_dr.lab.state import LabState

PLAYBOOK = "database_corruption"
DATA = "/var/lib/redis"
SERVICES = {"titan-brain", "titan-shared", "titan-phase1", "titan-phase2", "titan-phase3"}

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabState]:
    with titan_with_restore_points(tmp_path_factory.mktemp("lab"), 1) as raised:
        yield raised


def fingerprint() -> str:
    """Every file that a recovery could touch, but not what a Titan writes that runs on; and the processes."""
    look = "find /etc /opt /srv /usr /var/lib -xdev ( -name logs -o -name pm2.log -o -name pids -o -name appendonlydir -o -name 'dump.rdb' ) -prune"
    files = sh("titan", look.replace("(", "\\(").replace(")", "\\)") + " -o -type f -printf '%p %s %T@\\n' | sort | sha256sum")
    return files + sh("titan", "pidof redis-server; pgrep --uid titan | sort")


def trading() -> Any:
    program = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:3000/health/trading', timeout=5).read().decode())"
    return json.loads(sh("titan", f'python3 -c "{program}"'))["trading"]


def kept(run: Run) -> dict[str, int]:
    """What lies beside the restored data, with its size."""
    folder = f"{DATA}.before-{run.report['run_id']}"
    return {line.split()[0]: int(line.split()[1]) for line in sh("titan", f"find {folder} -type f -printf '%P %s\\n'").splitlines()}


def redis(*words: str) -> str:
    # not as an option: a password on a command line is everybody's
    ask = "REDISCLI_AUTH=$(sed -n 's/^requirepass //p' /etc/redis/redis.conf | tr -d '\"') redis-cli -n 1 "
    return sh("titan", ask + " ".join(words)).strip()


def canary() -> None:
    """What the writer of a living Titan does: the loss is measured with it."""
    last = json.loads(redis("get", "titan:dr:canary"))
    redis("set", "titan:dr:canary", f"'{json.dumps({'seq': last['seq'] + 1, 'at': time.time()})}'")


def test_a_healthy_titan_is_refused_without_consent(state: LabState, tmp_path: Path) -> None:
    before = fingerprint()
    refused(Run(tmp_path / "run", PLAYBOOK), "newer_data", "trading is on", "database_corruption_confirm")
    assert fingerprint() == before and trading() is True


def test_an_inventory_with_two_servers_is_refused(state: LabState, tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("titan_servers:\n  hosts:\n    one:\n    two:\n")
    refused(Run(tmp_path / "run", PLAYBOOK, inventory=inventory), "exactly one server")


def test_a_point_in_time_that_no_restore_point_reaches_is_refused(state: LabState, tmp_path: Path) -> None:
    before = fingerprint()
    run = Run(tmp_path / "run", PLAYBOOK, "-e", "redis_restore_to=2020-01-01T00:00:00Z", "-e", "database_corruption_confirm=true")
    refused(run, "no usable restore point from before 2020-01-01 00:00:00 UTC: the newest ")
    assert fingerprint() == before and trading() is True


def test_a_port_that_somebody_else_took_is_refused_with_his_name(state: LabState, tmp_path: Path) -> None:
    squatter = "import socket\nlistener = socket.create_server(('127.0.0.1', 6379))\nwhile True:\n    listener.accept()[0].close()"
    sh("titan", "systemctl stop redis-server")
    lab.exec("titan", ["systemd-run", "--unit", "squatter", "--collect", "/usr/bin/python3", "-c", squatter])
    try:
        sh("titan", "until ss -ltn | grep -q '127.0.0.1:6379 '; do sleep 0.1; done")
        pid = sh("titan", "systemctl show --property MainPID --value squatter").strip()
        refused(Run(tmp_path / "run", PLAYBOOK), f"process {pid} (python3) listens on 127.0.0.1 port 6379")
    finally:
        sh("titan", "systemctl stop squatter; systemctl start redis-server")
    end = time.monotonic() + 30
    while trading() is not True:
        assert time.monotonic() < end, "the services connect again by themselves"
        time.sleep(0.5)


def test_check_mode_changes_nothing_and_says_what_it_would_do(state: LabState, tmp_path: Path) -> None:
    before = fingerprint()
    run = Run(tmp_path / "run", PLAYBOOK, "--check", "-e", "database_corruption_confirm=true")
    assert run.rc == 0, run.output
    assert fingerprint() == before and trading() is True
    said = "\n".join(run.report["notes"])
    for word in ("would fasten the halt latch", "would fetch and prove the Redis data", "would stop titan-brain", "would move", "would resume"):
        assert word in said, said


# What the fault leaves that loses least. What was written last stands in the append only file alone.
WINS = {
    "bitflip": {"archive"},
    "truncated-base": {"dump"},
    "manifest-missing": {"dump"},
    "hung": {"aof"},
    "aof-tail": {"aof"},
    "bitflip-base": {"dump"},
    "wrong-owner": {"aof"},
    "keys-deleted": {"aof"},
    # Redis saves by itself when much has changed
    "flushed": {"dump", "archive"},
    "emptied": {"archive"},
}
# For the kinds of fault that the others do not stand for. All of them take some minutes.
ALWAYS = ("bitflip", "hung", "aof-tail", "keys-deleted")


@pytest.mark.parametrize("name", [pytest.param(fault.name, marks=[] if fault.name in ALWAYS else pytest.mark.slow) for fault in faults.FAULTS[PLAYBOOK]])
def test_recovers(state: LabState, tmp_path: Path, name: str) -> None:
    fault = faults.find_fault(PLAYBOOK, name)
    if "archive" in WINS[name]:
        backup = Run(tmp_path / "backup", "backup")
        assert backup.rc == 0, backup.output
    canary()
    fault.prepare()
    redis("set", "titan:test:mark", name)
    # a point in time is a whole second
    time.sleep(2)
    struck_at = time.time()
    fault.strike()
    if name == "hung":
        # a service that is half dead too: it cannot confirm a halt
        sh("titan", "kill -STOP $(cat /opt/titan/.pm2/pids/titan-brain-*.pid)")
    told = json.dumps({"titan_dr_incident_started_at": struck_at, **fault.extra_vars})
    run = Run(tmp_path / "run", PLAYBOOK, "-e", told)
    assert run.rc == 0, run.output
    assert (run.report["result"], run.report["trading"]) == ("recovered", "resumed"), run.report
    assert run.report["rto"]["met"] is True
    if not fault.extra_vars:
        assert "Redis is not healthy" in run.gate("newer_data")["evidence"]
    assert trading() is True
    rows = {row["kind"]: row for row in run.report["candidates"]}
    (won,) = [kind for kind, row in rows.items() if row["chosen"]]
    assert won in WINS[name], rows
    assert all(row["verdict"] == "proven" or row["reason"] for row in rows.values())
    # what was written last; before it stands what an earlier fault left
    assert (redis("get", "titan:test:mark") == name) is (won == "aof"), rows
    assert redis("exists", "titan:orders:drill-1") == "1"
    # nothing of the corrupt data was thrown away, and the report names its place
    assert name == "emptied" or any(path.startswith("appendonlydir/") for path in kept(run))
    assert f"{DATA}.before-{run.report['run_id']}" in json.dumps(run.report)
    assert sh("titan", f"stat --format %U {DATA} {DATA}/appendonlydir").split() == ["redis", "redis"]
    saved = json.loads(sh("titan", "cat /opt/titan/.pm2/dump.pm2"))
    assert {app["name"] for app in saved} == SERVICES, "PM2 lost its list"
    assert sh("titan", "systemctl is-enabled pm2-titan redis-server").split() == ["enabled", "enabled"]


def test_a_second_run_of_the_same_id_changes_nothing_and_a_new_one_is_refused(state: LabState, tmp_path: Path) -> None:
    run_id = json.loads(sh("titan", "cat /var/lib/titan-dr/recovered.json"))["run_id"]
    before = fingerprint()
    again = Run(tmp_path / "again", PLAYBOOK, run_id=run_id)
    assert again.rc == 0, again.output
    assert again.report["result"] == "recovered" and again.changed("titan") == 0
    refused(Run(tmp_path / "new", PLAYBOOK), "database_corruption_confirm")
    assert fingerprint() == before and trading() is True


def test_a_restore_that_was_a_mistake_is_rolled_back(state: LabState, tmp_path: Path) -> None:
    """The fault left the data as it was: it comes back with what was written after the restore point."""
    fault = faults.find_fault(PLAYBOOK, "hung")
    redis("set", "titan:test:mark", "mistake")
    fault.strike()
    restored = Run(tmp_path / "restored", PLAYBOOK, "-e", "redis_restore_salvage=archive_only")
    # its restore point is old by now
    assert (restored.report["result"], restored.report["trading"]) == ("recovered", "resumed"), restored.output
    refused(Run(tmp_path / "unasked", "rollback"), "rollback_confirm")
    assert trading() is True and redis("get", "titan:test:mark") != "mistake"
    told = ["-e", "rollback_confirm=true", "-e", "titan_resume=manual"]
    run = Run(tmp_path / "run", "rollback", *told)
    assert run.rc == 0, run.output
    assert (run.report["result"], run.report["trading"]) == ("recovered", "awaiting resume"), run.report
    assert redis("get", "titan:test:mark") == "mistake" and trading() is False
    # there is nothing more to put back, and nothing is changed for it: neither where a person is waited for nor where it trades
    for name, state_of_trading in (("waiting", "awaiting resume"), ("trading", "resumed")):
        again = Run(tmp_path / name, "rollback", *told)
        assert (again.rc, again.report["result"], again.report["trading"]) == (0, "recovered", state_of_trading), again.output
        assert again.changed("titan") == 0 and "rolled back before" in "".join(again.report["notes"])
        if name == "waiting":
            resumed = Run(tmp_path / "resumed", "resume")
            assert (resumed.rc, trading()) == (0, True), resumed.output


def test_without_a_good_restore_point_it_ends_halted_and_leaves_the_data(state: LabState, tmp_path: Path) -> None:
    fault = faults.find_fault(PLAYBOOK)
    fault.prepare()
    fault.strike()
    sh("backup", "systemctl stop seaweedfs")
    for point in points():
        flip_bit("backup", f"/backups/titan-lab/points/{point}/redis.rdb.zst.age")
    damaged = sh("titan", f"cat {DATA}/dump.rdb {DATA}/appendonlydir/*.base.rdb | sha256sum")
    run = Run(tmp_path / "run", PLAYBOOK)
    assert run.rc != 0
    assert (run.report["result"], run.report["trading"]) == ("failed", "halted"), run.report
    assert run.gate("redis_proof")["verdict"] == "fail"
    assert sh("titan", f"cat {DATA}/dump.rdb {DATA}/appendonlydir/*.base.rdb | sha256sum") == damaged
    assert json.loads(sh("titan", "cat /var/lib/titan-dr/halt"))["run_id"] == run.report["run_id"]
    assert sh("titan", "ls -d /var/lib/redis.stage-* 2>/dev/null || echo none") == "none\n"


@pytest.mark.slow
def test_another_titan_recovers_by_its_inventory_alone(tmp_path: Path) -> None:
    """Other names and ports, services that ignore the latch, and a fault that leaves them trading on an empty Redis."""
    command = str(Path(sys.executable).with_name("titan-dr"))
    environment = {**os.environ, "TITAN_DR_LAB_DIR": str(tmp_path / "lab")}
    argv = [command, "drill", PLAYBOOK, "--fault", "manifest-missing", "--profile", "variant", "--json", "--runs-dir", str(tmp_path / "runs")]
    done = subprocess.run(argv, cwd=Path(__file__).parents[2], env=environment, stdout=subprocess.PIPE, text=True, timeout=900, check=False)
    report = json.loads(done.stdout)
    assert (done.returncode, report["result"], report["trading"]) == (0, "recovered", "resumed"), report
    assert {gate["verdict"] for gate in report["gates"]} == {"pass"}
    assert report["orders_while_halted"] == 0 and report["rpo"]["lost_acked_writes"] > 0
