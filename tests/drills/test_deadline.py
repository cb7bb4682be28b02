# SPDX-License-Identifier: GPL-3.0-or-later
"""The deadline on real hosts: wherever a recovery hangs, it is in its safe state three seconds later, and nothing of it lives on.

The plays of hangs/hang.yml hang in one place each, under the variables and the safe state of the real scenarios; what hangs in the controller itself
is stopped by titan-dr. All runs use one lab, in turn or a few at a time.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ansible_runner
import pytest
from lab_runs import ANSIBLE, INVENTORY, ROOT, sh, titan_with_restore_points

from titan_dr import playbooks
from titan_dr.lab.engine import detect
from titan_dr.lab.state import LabState

PLAYBOOK = ROOT / "tests" / "drills" / "hangs" / "hang.yml"
SCENARIO = "database_corruption"
TITAN_DR = str(Path(sys.executable).with_name("titan-dr"))
RTO = playbooks.scenarios(False)[SCENARIO]["rto_s"]

# Seconds from the start to the deadline: Ansible needs some of them to get to the hang, the more the more runs there are at a time.
ALONE, TOGETHER, AT_A_TIME = 10.0, 16.0, 3
# From the deadline to the first task of the safe state; and after the end until nothing of the run lives on any host.
SAFE_WITHIN, GONE_WITHIN = 3.0, 5.0
# What a task that only checks its arguments takes on a machine with nothing else to do, in seconds; some take a little more.
LIGHT_TASK = 0.1

PLACES = ("command", "deaf", "handler", "loop", "retry", "wait", "module", "background")

# Everything but the server's process 1, as seen from the network: connections stay open and nobody answers.
FREEZE, THAW = ["sh", "-c", "kill -STOP -1"], ["sh", "-c", "kill -CONT -1"]

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabState]:
    with titan_with_restore_points(tmp_path_factory.mktemp("lab"), 1) as raised:
        yield raised


def environment(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "playbooks" / "collections"),
        "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "playbooks" / "callback_plugins"),
        "ANSIBLE_NOCOLOR": "1",
        # ansible-runner looks for ansible-playbook there
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "TITAN_DR_RUN_DIR": str(folder / "run"),
    }


def rows(folder: Path) -> list[dict[str, Any]]:
    path = next((path for path in (folder / "run" / "ledger.jsonl", folder / "ledger.jsonl") if path.exists()), folder / "ledger.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def of(found: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    return [row for row in found if row["event"] == event]


def wait_for_row(folder: Path, event: str, seconds: float = 60, **fields: str) -> None:
    end = time.monotonic() + seconds
    while not any(all(str(row.get(key)).endswith(value) for key, value in fields.items()) for row in of(rows(folder), event)):
        assert time.monotonic() < end, f"no row {event} {fields} in {folder}: {rows(folder)[-3:]}"
        time.sleep(0.1)


def alive_here(folder: Path) -> list[str]:
    """Processes of the controller, by their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environ, state = (entry / "environ").read_bytes(), (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if f"TITAN_DR_RUN_DIR={folder}".encode() in environ and state not in "ZX":
                found.append(f"{entry.name} {(entry / 'cmdline').read_text()[:80]!r}")
    return found


def alive_there(run_id: str) -> list[str]:
    """Processes on the server that carry the run's mark."""
    look = f"grep -lsz 'TITAN_DR_COMMAND={run_id}/' /proc/[0-9]*/environ | while read f; do p=${{f%/environ}}; echo $p $(tr '\\0' ' ' < $p/cmdline); done; true"
    return [line for line in sh("titan", look).splitlines() if line.split()[1:]]


def allowed(folder: Path) -> float:
    """Seconds from the deadline to the safe state: on a machine on which tasks that do not leave it take longer, as much longer."""
    elsewhere = {row["task_id"] for row in of(rows(folder), "step_start")}
    light = [float(row["duration_s"]) for row in of(rows(folder), "task") if row["status"] == "ok" and row["task_id"] not in elsewhere]
    return SAFE_WITHIN * max(1.0, statistics.median(light) / LIGHT_TASK)


def gone(folder: Path, run_id: str, unheard_until: float = 0.0) -> None:
    """Nothing of the run lives, five seconds after its end at the latest; on a server that could not be told, after the bound that stands there."""
    end = time.monotonic() + max(0.0, unheard_until - time.time()) + GONE_WITHIN
    while left := alive_here(folder) + alive_there(run_id):
        assert time.monotonic() < end, left
        time.sleep(0.2)


@dataclass
class Ended:
    rc: int
    output: str
    folder: Path
    deadline: float
    report: dict[str, Any]

    @property
    def run_id(self) -> str:
        return str(self.report["run_id"])

    def safe_after(self) -> float:
        """Seconds from the deadline to the safe state."""
        return float(of(rows(self.folder), "safe_state_start")[0]["at"]) - self.deadline


def hang(folder: Path, place: str, seconds: float) -> Ended:
    """Plain ansible-playbook, which is given up if nothing stops it."""
    folder.mkdir()
    deadline = time.time() + seconds
    told = ["-e", f"hang_in={place}", "-e", "titan_dr_on_breach=abort", "-e", f"titan_dr_incident_started_at={deadline - RTO}"]
    argv = [ANSIBLE, "-i", str(INVENTORY), str(PLAYBOOK), *told]
    done = subprocess.run(argv, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=150, check=False)
    return Ended(done.returncode, done.stdout + done.stderr, folder, deadline, json.loads((folder / "run" / "report.json").read_text()))


@pytest.fixture(scope="module")
def hung(state: LabState, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    folder = tmp_path_factory.mktemp("hangs")
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        return dict(zip(PLACES, pool.map(lambda place: hang(folder / place, place, TOGETHER), PLACES), strict=True))


@pytest.mark.parametrize("place", PLACES)
def test_a_hang_ends_in_the_safe_state(hung: dict[str, Ended], place: str) -> None:
    ended = hung[place]
    print(f"{place}: safe state {ended.safe_after():.2f} s after the deadline")
    assert 0 <= ended.safe_after() <= allowed(ended.folder), ended.output
    assert ended.rc == 2
    assert (ended.report["result"], ended.report["trading"]) == ("failed", "halted"), ended.output
    assert ended.report["rto"]["met"] is False
    gone(ended.folder, ended.run_id)


def test_a_run_without_a_deadline_would_hang_on(state: LabState, tmp_path: Path) -> None:
    """The tests above would see it: without the play's timeout and the shell's nothing stops the command."""
    (tmp_path / "f").mkdir()
    told = ["-e", "hang_in=command", "-e", "titan_dr_on_breach=abort", "-e", f"titan_dr_incident_started_at={time.time() + ALONE - RTO}"]
    told += ["-e", "titan_dr_task_timeout=90", "-e", "ansible_shell_executable=/bin/sh"]
    argv = [ANSIBLE, "-i", str(INVENTORY), str(PLAYBOOK), *told]
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(argv, env=environment(tmp_path / "f"), capture_output=True, timeout=ALONE + 8, check=False)
    sh("titan", "pkill -f '[s]leep 3456'")


@pytest.mark.parametrize("way", ["frozen", "cut off"])
def test_a_server_that_dies_in_the_middle_ends_in_a_report(state: LabState, tmp_path: Path, way: str) -> None:
    """Nobody can prove anything of a server that does not answer: the report says so, and the recovery ends.

    What runs there when it dies goes on when it is back, and is ended by the bound that it took along.
    """
    engine, name = detect(), state.host("titan")["name"]
    folder = tmp_path / "f"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(hang, folder, "module", 30.0)
        wait_for_row(folder, "step_start", name="Hang in a module of ours")
        time.sleep(1)
        try:
            engine.exec(name, FREEZE) if way == "frozen" else engine.run("network", "disconnect", "--force", state.network, name)
            ended = running.result()
        finally:
            engine.exec(name, THAW) if way == "frozen" else engine.run("network", "connect", "--ip", state.host("titan")["address"], state.network, name)
    assert ended.rc == 2, ended.output
    assert ended.report["result"] == "failed", ended.output
    assert "cannot be reached" in json.dumps(ended.report["notes"]) + ended.report["message"], ended.report
    assert time.time() < ended.deadline + 60
    # the server's bound is a second behind the task's
    gone(folder, ended.run_id, ended.deadline + 1)


@pytest.mark.parametrize("job_timeout", [0, 8])
def test_the_same_through_ansible_runner(state: LabState, tmp_path: Path, job_timeout: int) -> None:
    """job_timeout is what AWX applies: it kills the controller, no rescue runs, and the server's own bounds must hold."""
    folder = tmp_path / "f"
    (folder / "env").mkdir(parents=True)
    deadline = time.time() + ALONE + 4
    extra = {"hang_in": "command", "titan_dr_on_breach": "abort", "titan_dr_incident_started_at": deadline - RTO}
    (folder / "env" / "settings").write_text(json.dumps({"job_timeout": job_timeout} if job_timeout else {}))
    (folder / "env" / "extravars").write_text(json.dumps(extra))
    done = ansible_runner.run(private_data_dir=str(folder), playbook=str(PLAYBOOK), inventory=str(INVENTORY), envvars=environment(folder), quiet=True)
    report = json.loads((folder / "run" / "report.json").read_text())
    if job_timeout:
        assert done.status == "timeout"
        assert time.time() < deadline
        assert report["result"] == "cancelled"
        assert sh("titan", "cat /var/lib/titan-dr/halt")
        time.sleep(max(0.0, deadline + 1 - time.time()))
    else:
        assert (done.status, done.rc) == ("failed", 2)
        assert float(of(rows(folder), "safe_state_start")[0]["at"]) - deadline <= allowed(folder)
        assert report["result"] == "failed"
    assert report["trading"] == "halted"
    gone(folder, report["run_id"])


@pytest.fixture(scope="module")
def runs(state: LabState, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three recoveries to learn from, of which one was run: by the declared budgets alone no step would begin so near its deadline."""
    folder = tmp_path_factory.mktemp("runs")
    argv = [TITAN_DR, "recover", SCENARIO, "-i", str(INVENTORY), "--runs-dir", str(folder), "-e", "database_corruption_confirm=true", "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    first = next(folder.iterdir())
    for number in range(2):
        again = folder / f"{first.name}{number}"
        again.mkdir()
        for path in first.glob("*.json*"):
            (again / path.name).write_text(path.read_text().replace(first.name, again.name))
    return folder


@pytest.mark.parametrize("place", ["lookup", "stopped controller"])
def test_titan_dr_stops_a_controller_that_hangs(runs: Path, tmp_path: Path, place: str) -> None:
    """Neither a lookup nor a controller that was stopped sees a timeout. The supervisor ends them, proves it, and runs the safe state."""
    before = set(runs.iterdir())
    hanging = tmp_path / "hanging.yml"
    hanging.write_text("services_require_latch: \"{{ lookup('ansible.builtin.pipe', 'sleep 3456') }}\"\n" if place == "lookup" else "{}\n")
    # what would not fit is not begun
    reports = [json.loads((run / "report.json").read_text()) for run in before]
    took = max(report["rto"]["actual_s"] for report in reports if report["result"] == "recovered")
    deadline = time.time() + 1.3 * took + 5
    argv = [TITAN_DR, "recover", SCENARIO, "-i", str(INVENTORY), "--runs-dir", str(runs), "--on-breach", "abort", "-e", f"@{hanging}"]
    argv += ["-e", "database_corruption_confirm=true", "--incident-started-at", f"{deadline - RTO:.3f}", "--json"]
    process = subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 20
        while not (new := set(runs.iterdir()) - before):
            assert time.monotonic() < end
            time.sleep(0.1)
        run = new.pop()
        if place != "lookup":
            wait_for_row(run, "phase_start", 60, phase="redis_restore")
            for pid in subprocess.run(["pgrep", "-f", f"ansible-playbook.*{hanging}"], capture_output=True, text=True, check=True).stdout.split():
                os.kill(int(pid), signal.SIGSTOP)
        output, errors = process.communicate(timeout=deadline - time.time() + 100)
    finally:
        process.kill()
    report = json.loads(output)
    assert process.returncode == 1, errors
    assert report["result"] == "failed"
    assert "deadline" in report["message"], report["message"]
    assert report["trading"] == "halted", report["message"]
    assert sh("titan", "cat /var/lib/titan-dr/halt")
    lease = json.loads(sh("titan", "cat /var/lib/titan-dr/lease.json"))
    assert (lease["state"], lease["result"]) == ("closed", "failed")
    # its own, or that of safe_state.yml, which takes the lease first
    began = next((row["at"] for row in of(rows(run), "safe_state_start")), lease["since"]) - deadline
    print(f"{place}: safe state {began:.2f} s after the deadline: {report['message']}")
    assert 0 <= began <= allowed(run)
    gone(run, report["run_id"])
