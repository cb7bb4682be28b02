# SPDX-License-Identifier: GPL-3.0-or-later
"""One Titan on three servers, recovered by the same playbooks: all three lost, its Redis corrupt, and one server that does not come up again.

The tests on one lab run in the order of this file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lab_runs import Run, refused, sh, titan_with_restore_points

from titan_dr.lab import faults, profiles
from titan_dr.lab.state import LabState

COMMAND = str(Path(sys.executable).with_name("titan-dr"))
SPLIT = profiles.PROFILES["split"]
SERVICES = {"titan-brain", "titan-shared", "titan-phase1", "titan-phase2", "titan-phase3"}
LATCH = "/var/lib/titan-dr/halt"
# twice the time that Titan takes for an order
QUIET_S = 3

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def drill(scenario: str, tmp_path: Path) -> dict[str, Any]:
    environment = {**os.environ, "TITAN_DR_LAB_DIR": str(tmp_path / "lab")}
    argv = [COMMAND, "drill", scenario, "--profile", "split", "--json", "--runs-dir", str(tmp_path / "runs")]
    done = subprocess.run(argv, cwd=Path(__file__).parents[2], env=environment, stdout=subprocess.PIPE, text=True, timeout=900, check=False)
    report: dict[str, Any] = json.loads(done.stdout)
    assert (done.returncode, report["result"], report["trading"]) == (0, "recovered", "resumed"), report
    verdicts = {gate["name"]: gate["verdict"] for gate in report["gates"]}
    assert set(verdicts.values()) == {"pass"}
    assert {f"start:{name}" for name in ("redis", *SERVICES)} <= set(verdicts)
    assert (report["orders_while_halted"], report["rto"]["met"], report["rpo"]["met"]) == (0, True, True)
    assert report["restore_point"]["id"] and verdicts["acknowledged_writes"] == "pass"
    return report


def test_three_servers_die_and_three_blank_ones_take_their_place(tmp_path: Path) -> None:
    report = drill("complete_system_failure", tmp_path)
    assert report["drill"]["disaster"]["host"] == "data, core, phases"


def test_corrupt_redis_on_a_server_of_its_own_is_restored_in_place(tmp_path: Path) -> None:
    report = drill("database_corruption", tmp_path)
    assert "old_data_kept" in {gate["name"] for gate in report["gates"]}


def orders(state: LabState, since: float) -> list[dict[str, Any]]:
    """What the exchanges' own log says that they were sent."""
    with urllib.request.urlopen(f"{state.exchange_control.rstrip('/')}/log", timeout=10) as reply:
        return [order for order in json.load(reply)["orders"] if float(order["received"]) >= since]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabState]:
    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TITAN_DR_LAB_DIR", str(folder / "lab"))
        with titan_with_restore_points(folder, 1, "split") as raised:
            yield raised


def latches(hosts: Iterable[str]) -> set[str]:
    return {host for host in hosts if sh(host, f"test -e {LATCH} && echo yes || true")}


def test_a_halt_by_hand_and_the_resume_of_all_servers(state: LabState, tmp_path: Path) -> None:
    assert orders(state, 0)
    halted = Run(tmp_path / "halt", "halt", inventory=SPLIT.folder)
    halted_at = time.time()
    assert halted.rc == 0 and latches(SPLIT.servers) == set(SPLIT.servers), halted.output
    time.sleep(QUIET_S)
    assert orders(state, halted_at) == []
    resumed = Run(tmp_path / "resume", "resume", inventory=SPLIT.folder)
    assert (resumed.rc, resumed.report["trading"], latches(SPLIT.servers)) == (0, "resumed", set()), resumed.output
    end = time.monotonic() + 30
    while not orders(state, halted_at):
        assert time.monotonic() < end, "no order after the resume"
        time.sleep(0.5)


def test_two_of_three_servers_are_no_titan(state: LabState, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", "database_corruption", "--limit", "localhost,data,core", inventory=SPLIT.folder)
    refused(run, "titan-phases")
    assert latches(SPLIT.servers) == set()


# the last one: it destroys the servers
def test_one_server_that_does_not_come_up_keeps_all_of_them_from_trading(state: LabState, tmp_path: Path) -> None:
    # what runs has it in memory: only a new start sees that the release is broken
    sh("phases", "sed -i '1i process.exit(1);' /opt/titan/current/service.js")
    backup = Run(tmp_path / "backup", "backup", inventory=SPLIT.folder)
    assert backup.rc == 0, backup.output
    faults.find_fault("complete_system_failure", profile="split").strike()
    struck_at = time.time()
    run = Run(tmp_path / "run", "complete_system_failure", inventory=SPLIT.folder)
    assert (run.rc != 0, run.report["result"], run.report["trading"]) == (True, "failed", "halted"), run.output
    # the server that failed, and the first of its services
    assert "phases2" in run.report["message"] and "titan-phase" in run.report["message"]
    told = {gate["name"]: gate["verdict"] for gate in run.report["gates"]}
    assert "pass" == told["start:redis"] == told["start:titan-brain"] == told["start:titan-shared"] != told["start:titan-phase1"]
    for host in SPLIT.replacements.values():
        assert json.loads(sh(host, f"cat {LATCH}"))["generation"] >= 1
        # old configuration, new machine
        assert sh(host, "getent hosts titan-data").split()[0] == state.host(SPLIT.replacements["data"])["address"]
    time.sleep(QUIET_S)
    assert orders(state, struck_at) == []
