# SPDX-License-Identifier: GPL-3.0-or-later
"""The doctor against real faults: a healthy Titan gets no proposal and is not touched, and each fault gets the name of the recovery that helps.

The tests run in the order of this file, on one lab: healthy, then each fault, diagnosed and undone, the lost server last. The confusion table is printed
at the end and written beside the runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from lab_runs import INVENTORY, ROOT, Run, sh, titan_with_restore_points

from titan_dr.lab import faults
from titan_dr.lab.faults.base import Fault
from titan_dr.lab.state import LabState

pytestmark = pytest.mark.lab

COMMAND = str(Path(sys.executable).with_name("titan-dr"))
DESTRUCTIVE = {"complete_system_failure", "database_corruption"}
# What is better than the scenario that the fault is filed under: somebody else has to act, or less is enough.
BETTER = {
    "maintenance": "call",
    "rate-limited": "call",
    "key-not-whitelisted": "call",
    "wrong-owner": "restart_redis",
}
# What must not be called a disaster without a person: a script may have deleted what it was to delete, and Titan trades without its store.
NOT_PROVEN = {"keys-deleted": "redis", "store-cut": "network"}
# What comes and goes may be away at the moment of the look; the services have felt it.
PASSING = {"flapping": "reports"}
# Of each scenario, for every change; all of them with `slow`.
FEW = {"database_corruption": ("hung",), "configuration_corruption": ("invalid-json",), "network_partition": ("dns-dead",)}
HEALTHY, HEALTHY_SLOW = 3, 100
DATA, KEPT, UNIT = "/var/lib/redis", "/root/redis-kept", "redis-server"


@dataclass
class Table:
    rows: list[tuple[str, str, str, str, str]] = field(default_factory=list)
    healthy: list[float] = field(default_factory=list)

    def text(self) -> str:
        head = ["| scenario | fault | said | is | seconds |", "|---|---|---|---|---|"]
        spent = f"{min(self.healthy):.1f} to {max(self.healthy):.1f} s" if self.healthy else "none"
        return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in self.rows), "", f"Healthy runs: {len(self.healthy)}, {spent}, 0 proposals."])


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabState]:
    with titan_with_restore_points(tmp_path_factory.mktemp("lab"), 1) as raised:
        yield raised


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    found = Table()
    yield found
    path = tmp_path_factory.getbasetemp() / "diagnoses.md"
    path.write_text(found.text() + "\n")
    sys.__stdout__.write(f"\n{found.text()}\n{path}\n")  # type: ignore[union-attr]


def diagnose(folder: Path) -> tuple[int, dict[str, Any], float]:
    # several labs share a machine here: a look may take its time
    argv = [COMMAND, "diagnose", "-i", str(INVENTORY), "--json", "--runs-dir", str(folder), "-e", "diagnose_limit=40"]
    started = time.monotonic()
    done = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=120, check=False)
    return done.returncode, json.loads(done.stdout), time.monotonic() - started


def fingerprint() -> str:
    """Every file that anybody could have changed, but not what a Titan writes that runs, nor the logs of a login; and the processes."""
    running = " -o ".join(f"-name {name}" for name in ("logs", "pm2.log", "pids", "appendonlydir", "dump.rdb"))
    look = f"find /etc /home /opt /root /srv /tmp /usr /var/lib /var/tmp -xdev \\( {running} \\) -prune -o -type f -printf '%p %s %T@\\n' | sort"
    return sh("titan", look) + sh("titan", "pidof redis-server; pgrep --uid titan | sort; ls /run/titan-dr 2>/dev/null || echo none")


def trading() -> bool:
    program = "import json, urllib.request; print(json.load(urllib.request.urlopen('http://127.0.0.1:3000/health/trading', timeout=5))['trading'])"
    return sh("titan", f'python3 -c "{program}"').strip() == "True"


def healthy(table: Table, folder: Path) -> None:
    code, report, seconds = diagnose(folder)
    assert (code, report["result"], report["proposals"]) == (0, "none", []), report
    table.healthy.append(seconds)


def test_a_healthy_titan_gets_no_proposal_and_is_not_touched(state: LabState, table: Table, tmp_path: Path) -> None:
    before = fingerprint()
    for _ in range(HEALTHY):
        healthy(table, tmp_path)
    assert fingerprint() == before and trading()


def test_the_plain_playbook_says_the_same(state: LabState, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", "diagnose", "-e", "diagnose_limit=40")
    assert run.rc == 0 and "Do nothing." in run.output, run.output
    assert (run.report["kind"], run.report["result"]) == ("diagnosis", "none") and run.changed("titan") == 0
    secrets = [
        state.redis_password,
        state.age["identity"],
        state.s3["secret_key"],
        *(secret for pair in state.exchange_keys.values() for secret in pair.values()),
    ]
    assert not [secret for secret in secrets if secret in run.output + run.files()]


def judged(scenario: str, fault: str, report: dict[str, Any]) -> tuple[str, str]:
    """What it said, and how right that is."""
    said = [made["scenario"] for made in report["proposals"]]
    shown = ", ".join(said) or f"unknown: {', '.join(dict.fromkeys(row['probe'] for row in report['look_at']))}"
    wanted = BETTER.get(fault, scenario)
    if DESTRUCTIVE & set(said) - {wanted}:
        return shown, "WRONG"
    if fault in NOT_PROVEN or (fault in PASSING and not said):
        right = not said and {**NOT_PROVEN, **PASSING}[fault] in {row["probe"] for row in report["look_at"]}
        return shown, "unknown, with what to look at" if right else "WRONG"
    if not said:
        return shown, "unknown"
    return shown, "right" if said[0] == wanted else "right, not first" if wanted in said else "WRONG"


def undo(scenario: str, fault: Fault, tmp_path: Path) -> None:
    if fault.cure is not dict:
        fault.cure()
    elif scenario == "database_corruption":
        # quicker than the recovery, which has drills of its own
        sh("titan", f"systemctl kill --signal KILL {UNIT} || echo dead; systemctl stop {UNIT}; systemctl reset-failed {UNIT} || echo well")
        sh("titan", f"find {DATA} -mindepth 1 -delete; cp -a {KEPT}/. {DATA}; systemctl start {UNIT}")
    else:
        told = [word for name, value in fault.extra_vars.items() for word in ("-e", json.dumps({name: value}))]
        run = Run(tmp_path / "recovery", scenario, *told)
        assert run.report.get("result") == "recovered", run.output
    deadline = time.monotonic() + 60
    while not trading():
        assert time.monotonic() < deadline, "the lab does not trade again"
        time.sleep(0.5)


def strike_and_diagnose(scenario: str, fault: Fault, table: Table, folder: Path) -> dict[str, Any]:
    fault.prepare()
    if scenario == "database_corruption":
        sh("titan", f"rm -rf {KEPT}; cp -a {DATA} {KEPT}")
    fault.strike()
    fault.prove()
    _code, report, seconds = diagnose(folder)
    said, verdict = judged(scenario, fault.name, report)
    table.rows.append((scenario, fault.name, said, verdict, f"{seconds:.1f}"))
    return report


# Without what cannot be undone here, and of what may keep Titan halted only the halt itself: what exchanges say of positions is asked by a recovery alone.
KNOWN = [
    (scenario, fault.name)
    for scenario, found in faults.FAULTS.items()
    for fault in found
    if scenario != "complete_system_failure" and (fault.expect == "recovered" or fault.cure is not dict)
]
CASES = [
    pytest.param(scenario, name, id=name, marks=[] if name in FEW.get(scenario, ()) else [pytest.mark.slow])
    for scenario, name in KNOWN
    if scenario != "resume" or name == "halted"
]


@pytest.mark.parametrize(("scenario", "name"), CASES)
def test_a_fault_gets_its_name(state: LabState, table: Table, tmp_path: Path, scenario: str, name: str) -> None:
    fault = faults.find_fault(scenario, name)
    try:
        report = strike_and_diagnose(scenario, fault, table, tmp_path)
    finally:
        undo(scenario, fault, tmp_path)
    assert table.rows[-1][3] in ("right", "unknown, with what to look at"), report
    for made in report["proposals"]:
        if made["destructive"]:
            assert made["confidence"] == "high" and made["restore_point"]["id"] and made["expected_loss_s"] > 0 and made["expected_time"]["p50_s"] > 0


def test_a_service_that_is_down_is_started_and_nothing_else(state: LabState, table: Table, tmp_path: Path) -> None:
    pm2 = "su -s /bin/sh titan -c 'PM2_HOME=/opt/titan/.pm2 /opt/pm2/node_modules/pm2/bin/pm2 {} titan-phase2'"
    sh("titan", pm2.format("stop"))
    _code, report, seconds = diagnose(tmp_path)
    said = [made["scenario"] for made in report["proposals"]]
    table.rows.append(("services", "titan-phase2 stopped", ", ".join(said), "right" if said == ["restart_services"] else "WRONG", f"{seconds:.1f}"))
    sh("titan", pm2.format("start"))
    assert said == ["restart_services"], report
    assert "titan-phase2" in report["proposals"][0]["command"]


@pytest.mark.slow
def test_a_hundred_healthy_runs(state: LabState, table: Table, tmp_path: Path) -> None:
    before = fingerprint()
    for _ in range(HEALTHY_SLOW - len(table.healthy)):
        healthy(table, tmp_path)
    assert fingerprint() == before and trading()


def test_one_way_that_is_cut_is_no_lost_server(state: LabState, table: Table, tmp_path: Path) -> None:
    """The server lives and trades; only the controller does not get there."""
    address = state.host("replacement")["address"]
    chain = "nft add table ip titan_test; nft add chain ip titan_test in '{ type filter hook input priority 0; }'"
    sh("titan", f"{chain}; nft add rule ip titan_test in tcp dport 22 ip saddr != '{{ {address}, 127.0.0.1 }}' drop")
    try:
        code, report, seconds = diagnose(tmp_path)
    finally:
        sh("titan", "nft delete table ip titan_test")
    table.rows.append(("the way there", "ssh cut for the controller", "unknown: reachable", "unknown, with what to look at", f"{seconds:.1f}"))
    assert (code, report["result"], report["proposals"]) == (4, "unknown", []), report
    assert "from replacement" in report["look_at"][0]["evidence"] and "an SSH server answers" in report["look_at"][0]["evidence"]


def test_a_lost_server_is_named_in_time(state: LabState, table: Table, tmp_path: Path) -> None:
    scenario = "complete_system_failure"
    report = strike_and_diagnose(scenario, faults.find_fault(scenario), table, tmp_path)
    assert [made["scenario"] for made in report["proposals"]] == [scenario] and table.rows[-1][3] == "right", report
    made = report["proposals"][0]
    assert any("from replacement" in text for text in made["evidence"]) and made["restore_point"]["id"]
    assert f"titan-dr recover {scenario}" in made["command"]
