# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[4]
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

    def run(self, *plays: dict[str, Any], arguments: tuple[str, ...] = (), **environment: str) -> Ran:
        command = ["ansible-playbook", "-i", "localhost,", "-c", "local", str(self.write(list(plays))), *arguments]
        done = subprocess.run(command, cwd=self.away, env={**self.environment, **environment}, capture_output=True, text=True, timeout=60, check=False)
        return Ran(done.returncode, done.stdout + done.stderr, self.run_dir)


@pytest.fixture
def playbooks(tmp_path: Path) -> Playbooks:
    return Playbooks(tmp_path)


def test_a_recovery(playbooks: Playbooks) -> None:
    secret = {"name": "Hidden", "ansible.builtin.debug": {"msg": SECRET}, "no_log": True}
    hidden = say({"notes": [SECRET], "gates": [{"name": SECRET, "verdict": "fail"}]}, no_log=True)
    looped = {"name": "Loop", "ansible.builtin.command": {"argv": ["echo", SECRET]}, "loop": [1, 2], "no_log": True, "changed_when": False}
    plain = {"name": "Its output is nobody's business", "ansible.builtin.command": {"argv": ["echo", "unrelated-output"]}, "changed_when": True}
    ran = playbooks.run(play("preflight", ARMED, secret, hidden, looped), play("validate", plain, say(PASSED)))
    assert ran.rc == 0, ran.output
    report = ran.report
    assert (report["result"], report["kind"], report["scenario"], report["trading"]) == ("recovered", "real", "complete_system_failure", "resumed")
    assert report["rto"]["target_s"] == 600 and report["rto"]["max_s"] == 900 and report["rto"]["met"] is True
    assert [(phase["name"], phase["budget_s"]) for phase in report["phases"]] == [("preflight", 20), ("validate", 45)]
    assert [gate["name"] for gate in report["gates"]] == ["health"]
    assert ran.rows[0]["event"] == "run_start" and ran.rows[-1]["event"] == "run_end"
    version = yaml.safe_load((ROOT / "galaxy.yml").read_text())["version"]
    assert report["collection"] == ran.rows[0]["collection"] == {"version": version, "path": str(ROOT)}
    # armed once, says little, hides what is hidden
    assert ran.output.count("[titan-dr] run ") == 1
    assert "phase validate starts" in ran.output and "RECOVERED" in ran.output
    files = [path for path in playbooks.run_dir.rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == ["ledger.jsonl", "report.json"]
    for path in files:
        assert SECRET not in path.read_text() and "unrelated-output" not in path.read_text()
        assert path.stat().st_mode & 0o077 == 0
    assert SECRET not in ran.output


def test_armed_once_also_when_enabled_by_configuration(playbooks: Playbooks) -> None:
    ran = playbooks.run(play("validate", ARMED, say(PASSED)), ANSIBLE_CALLBACKS_ENABLED="titan.disaster_recovery.recovery_clock")
    assert ran.rc == 0 and ran.output.count("[titan-dr] run ") == 1
    assert [row["event"] for row in ran.rows].count("run_start") == 1


def test_a_failing_phase(playbooks: Playbooks) -> None:
    ran = playbooks.run(play("redis_restore", ARMED, {"name": "Prove", "ansible.builtin.fail": {"msg": "no sound restore point"}}))
    assert ran.rc == 2 and ran.report["result"] == "failed"
    assert ran.report["message"] == "Prove on localhost: no sound restore point"


def test_the_message_of_a_foreign_module_stays_out(playbooks: Playbooks) -> None:
    ran = playbooks.run(play("provision", {"name": "Run", "ansible.builtin.command": {"argv": ["/nonexistent", SECRET]}}))
    assert ran.rc == 2 and ran.report["message"] == "Run on localhost"
    assert SECRET not in (playbooks.run_dir / "ledger.jsonl").read_text()


def test_a_preflight_that_refuses(playbooks: Playbooks) -> None:
    ran = playbooks.run(play("preflight", ARMED, {"name": "Disk", "ansible.builtin.assert": {"that": "false", "fail_msg": "3 GiB are missing"}}))
    assert ran.rc == 2
    assert (ran.report["result"], ran.report["message"]) == ("refused", "Disk on localhost: 3 GiB are missing")


def test_a_failure_with_a_rescue_that_fails_in_the_end(playbooks: Playbooks) -> None:
    block = {
        "block": [{"name": "Swap", "ansible.builtin.fail": {"msg": "first"}}],
        "rescue": [say({"trading": "halted", "notes": ["left safe"]}), {"name": "End", "ansible.builtin.fail": {"msg": "second"}}],
    }
    ran = playbooks.run(play("redis_restore", block))
    assert (ran.report["result"], ran.report["trading"]) == ("failed", "halted")
    assert "first" in ran.report["message"] and "left safe" in ran.report["notes"]


def test_gates_that_did_not_pass(playbooks: Playbooks) -> None:
    ran = playbooks.run(play("validate", say({"gates": [{"name": "exchanges", "verdict": "unknown", "evidence": "timeout"}]})))
    assert ran.report["result"] == "failed" and "exchanges: UNKNOWN: timeout" in ran.output


def test_phases_are_roles(playbooks: Playbooks) -> None:
    for role in ("redis_restore", "inner"):
        tasks = playbooks.folder / "roles" / role / "tasks" / "main.yml"
        tasks.parent.mkdir(parents=True)
        tasks.write_text(yaml.safe_dump([say(PASSED)] + ([{"name": "In", "ansible.builtin.include_role": {"name": "inner"}}] if role != "inner" else [])))
    ran = playbooks.run(play("services", {"name": "Restore", "ansible.builtin.include_role": {"name": "redis_restore"}}, say(PASSED)))
    assert [phase["name"] for phase in ran.report["phases"]] == ["redis_restore", "services"], ran.output
    assert [row["role"] for row in ran.rows if row["event"] == "task" and "role" in row] == ["redis_restore", "inner"]


@pytest.mark.parametrize("how", ["environment", "extra variable"])
def test_the_clock_starts_at_the_incident(playbooks: Playbooks, how: str) -> None:
    at = time.time() - 1000
    environment = {"TITAN_DR_INCIDENT_STARTED_AT": str(at)} if how == "environment" else {}
    arguments = () if environment else ("-e", f"titan_dr_incident_started_at={at}")
    ran = playbooks.run(play("validate", say(PASSED)), arguments=arguments, **environment)
    assert 1000 <= ran.report["rto"]["actual_s"] < 1060 and ran.report["rto"]["met"] is False


def test_an_incident_start_that_cannot_be_read_is_told(playbooks: Playbooks) -> None:
    ran = playbooks.run(play("validate", say(PASSED)), TITAN_DR_INCIDENT_STARTED_AT="yesterday")
    assert ran.rc == 0 and "cannot be read" in ran.report["notes"][0]


def test_check_mode_and_drill(playbooks: Playbooks) -> None:
    assert playbooks.run(play("validate", say(PASSED)), TITAN_DR_KIND="drill").report["kind"] == "drill"
    assert playbooks.run(play("validate", say(PASSED)), arguments=("--check",), TITAN_DR_KIND="drill").report["kind"] == "check"
    # the first report was not overwritten
    assert json.loads((playbooks.run_dir / "report.json.1").read_text())["kind"] == "drill"


def test_a_playbook_without_scenario_is_not_measured(playbooks: Playbooks) -> None:
    ran = playbooks.run(play("validate", say(PASSED), vars={}))
    assert ran.rc == 0 and "titan-dr]" not in ran.output and not playbooks.run_dir.exists()


def test_an_unwritable_run_directory_is_loud_and_not_armed(playbooks: Playbooks) -> None:
    ran = playbooks.run(play("preflight", ARMED), TITAN_DR_RUN_DIR="/proc/titan-dr")
    assert ran.rc == 2 and "THIS RUN IS NOT MEASURED" in ran.output


def test_without_the_clock_the_assertion_fails(playbooks: Playbooks) -> None:
    shutil.rmtree(playbooks.folder / "callback_plugins")
    assert playbooks.run(play("preflight", ARMED), TITAN_DR_CLOCK_ARMED="").rc == 2


def test_a_run_id_from_outside(playbooks: Playbooks) -> None:
    assert playbooks.run(play("validate", say(PASSED)), TITAN_DR_RUN_ID="my-run.1").report["run_id"] == "my-run.1"
    assert "complete_system_failure" in playbooks.run(play("validate", say(PASSED)), TITAN_DR_RUN_ID="../../x").report["run_id"]


@pytest.mark.parametrize(("signum", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "SIGINT"), (signal.SIGKILL, "")])
def test_a_run_that_is_killed_says_cancelled(playbooks: Playbooks, signum: int, name: str) -> None:
    # not before the task runs: in the middle of a fork ansible-playbook may swallow one SIGINT
    runs = playbooks.away / "runs"
    wait = {"name": "Wait", "ansible.builtin.command": {"argv": ["sh", "-c", f"touch {runs} && exec sleep 30"]}}
    path = playbooks.write([play("provision", say({"trading": "halted"}), wait)])
    command = ["ansible-playbook", "-i", "localhost,", "-c", "local", str(path)]
    process = subprocess.Popen(command, cwd=playbooks.away, env=playbooks.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        ledger = playbooks.run_dir / "ledger.jsonl"
        while not (runs.exists() and '"halted"' in ledger.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signum)
        process.wait(20)
    finally:
        if process.poll() is None:
            process.kill()
        for entry in Path("/proc").iterdir():
            # the worker and its sleep have a session of their own; only those of this test carry its run directory
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    ours = f"TITAN_DR_RUN_DIR={playbooks.run_dir}".encode() in (entry / "environ").read_bytes()
                except OSError:
                    continue
                if ours:
                    os.kill(int(entry.name), signal.SIGKILL)
    report = Ran(0, "", playbooks.run_dir).report
    assert report["result"] == "cancelled" and name in report["message"] and report["trading"] == "halted"
