# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import yaml
from checkout import PASSED, ROOT, SCENARIO, Checkout

from titan_dr import cli, report
from titan_dr.lab import profiles


@pytest.mark.parametrize("command", [[], ["recover"], ["drill"], ["lab"], ["report"], ["scenarios"]])
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    if command in (["recover"], ["drill"]):
        assert all(option in text for option in ("--inventory", "--check", "--extra-vars", "--json", "--runs-dir", "--verbose", "exit codes"))


@pytest.mark.parametrize(
    "arguments",
    [[], ["unknown"], ["recover", "x", "--on-breach", "y"], ["drill", "x", "--keys", "-1"], ["drill", "x", "--profile", "y"], ["lab", "sideways"]],
)
def test_wrong_use_by_argparse(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == report.USAGE


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["recover", "flood", "-i", "hosts"], "flood"),
        (["recover"], "from what"),
        (["recover", SCENARIO], "-i"),
        (["recover", "--resume", "r1"], "r1"),
        (["recover", "--resume", "../r1"], "no run id"),
        (["recover", "--resume", "20260101T000000Z-rollback-ab12", SCENARIO], "was a rollback"),
        (["recover", SCENARIO, "--take-over", "r1 x=y"], "no run id"),
        (["recover", SCENARIO, "-i", "hosts", "-e", "titan_dr_on_breach=stop"], "abort"),
        (["recover", SCENARIO, "-i", "nowhere"], "nowhere"),
        (["recover", SCENARIO, "-i", "hosts", "-e", "novalue"], "novalue"),
        (["recover", SCENARIO, "-i", "hosts", "-e", "@nofile"], "nofile"),
        (["recover", SCENARIO, "-i", "hosts", "-e", "[1]"], "mapping"),
        (["recover", SCENARIO, "-i", "hosts", "--incident-started-at", "yesterday"], "yesterday"),
        (["recover", SCENARIO, "-i", "hosts", "--installed"], "not installed"),
        (["report", "nothing"], "nothing"),
        (["report", "last"], "no runs"),
    ],
)
def test_wrong_use(arguments: list[str], named: str, checkout: Checkout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("ANSIBLE_INVENTORY", raising=False)
    monkeypatch.setenv("ANSIBLE_COLLECTIONS_PATH", "/nonexistent")
    assert cli.main(arguments) == report.USAGE
    assert named in capsys.readouterr().err
    assert not (checkout.root / "runs").exists()


def test_a_fault_that_the_profile_cannot_have_is_wrong_use(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["drill", SCENARIO, "--fault", "nothing", "--profile", "split"]) == report.USAGE
    assert cli.main(["drill", "network_partition", "--profile", "split"]) == report.USAGE
    assert "cannot be caused on profile split; there it can be destroyed of complete_system_failure" in capsys.readouterr().err


def test_every_profile_of_the_lab_can_be_asked_for() -> None:
    for command in (["drill", SCENARIO], ["lab", "up"]):
        for profile in profiles.PROFILES:
            assert cli.parser().parse_args([*command, "--profile", profile]).profile == profile


def test_extra_vars() -> None:
    assert cli.parse_extra_vars(["a=1 b='x y'", '{"c": [1]}', "d=e=f"]).values == {"a": "1", "b": "x y", "c": [1], "d": "e=f"}


def made(**changes: Any) -> dict[str, Any]:
    found = report.empty("r", "real", SCENARIO, {"rto_s": 900, "rpo_s": 300}, "recovered", "")
    found["rto"]["met"] = found["rpo"]["met"] = True
    found.update(changes)
    return found


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (made(), 0),
        (made(result="failed"), 1),
        (made(result="refused"), 3),
        (made(result="cancelled"), 5),
        (made(result="something else"), 1),
        (made(rto={"met": False}), 4),
        (made(rpo={"met": False}), 4),
        (made(rpo={"met": None}), 4),
        (made(rto={}), 4),
        (made(kind="check", rto={"met": None}, rpo={"met": None}), 0),
        (made(kind="check", result="refused"), 3),
    ],
)
def test_exit_codes(found: dict[str, Any], code: int) -> None:
    assert report.exit_code(found) == code


def test_a_gate_takes_success_away_and_never_gives_it() -> None:
    found = made()
    report.add_gate(found, "orders", "unknown", "no log")
    assert found["result"] == "failed" and "orders" in found["message"]
    report.add_gate(found, "orders", "pass", "none")
    assert found["result"] == "failed" and [gate["verdict"] for gate in found["gates"]] == ["pass"]


def test_the_greater_loss_counts() -> None:
    found = made()
    found["rpo"].update(actual_s=5.0, target_s=300)
    report.set_loss(found, 10, 3.0)
    assert (found["rpo"]["actual_s"], found["rpo"]["lost_acked_writes"], found["rpo"]["met"]) == (5.0, 10, True)
    report.set_loss(found, 10, 301.0)
    assert (found["rpo"]["actual_s"], found["rpo"]["met"]) == (301.0, False)


def test_recover(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    assert checkout.recover() == 0
    out = capsys.readouterr().out
    assert "validate starts" in out and "RECOVERED" in out and "report.json" in out
    (run_dir,) = (checkout.root / "runs").iterdir()
    assert sorted(path.name for path in run_dir.iterdir()) == ["ansible.log", "budget.json", "ledger.jsonl", "report.json"]
    found = checkout.report()
    assert (found["kind"], found["result"], found["run_id"]) == ("real", "recovered", run_dir.name)
    assert cli.main(["report", run_dir.name]) == 0 and cli.main(["report", "last", "--json"]) == 0
    assert "RECOVERED" in capsys.readouterr().out


def test_json_alone_is_on_stdout(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    assert checkout.recover("--json", "--verbose") == 0
    streams = capsys.readouterr()
    assert json.loads(streams.out) == checkout.report()
    assert "PLAY" in streams.err


def test_missed_refused_failed(checkout: Checkout) -> None:
    assert checkout.recover("--incident-started-at", "2023-11-14T22:13:20Z", "--runs-dir", "late") == report.MISSED
    checkout.play("validate", {**PASSED, "rpo": {}}, {"name": "Change", "ansible.builtin.command": {"cmd": "true"}})
    assert checkout.recover("--runs-dir", "unproven") == report.MISSED
    checkout.play("validate", {**PASSED, "rpo": {}})
    assert checkout.recover("--runs-dir", "unchanged") == 0
    checkout.play("preflight", {"refused": "someone else's data"}, {"name": "Stop", "ansible.builtin.fail": {"msg": "stop"}})
    assert checkout.recover("--runs-dir", "refused") == report.REFUSED
    checkout.play("services", {}, {"name": "Start", "ansible.builtin.fail": {"msg": "no"}})
    assert checkout.recover("--runs-dir", "failed") == report.FAILED


def test_check(checkout: Checkout) -> None:
    checkout.play("validate", {})
    assert checkout.recover("--check") == 0
    assert checkout.report()["kind"] == "check"


def test_a_run_that_nobody_measured_is_no_success(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(checkout.root / "playbooks" / "callback_plugins")
    assert checkout.recover() == report.FAILED
    assert "nothing was measured" in checkout.report()["message"]


def test_a_playbook_that_cannot_start(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout.root / "playbooks" / f"{SCENARIO}.yml").write_text("- hosts: [\n")
    assert checkout.recover() == report.FAILED
    assert "YAML" in capsys.readouterr().out


@pytest.mark.parametrize("safe", [True, False])
def test_ctrl_c_ends_in_a_safe_state_or_says_that_nobody_knows(checkout: Checkout, safe: bool) -> None:
    # which server it halts depends on the scenario
    end = {"ansible.builtin.assert": {"that": [safe, f"titan_dr_scenario == '{SCENARIO}'"]}, "name": "Halt"}
    (checkout.root / "playbooks" / "safe_state.yml").write_text(yaml.safe_dump([{"hosts": "localhost", "gather_facts": False, "tasks": [end]}]))
    checkout.play("provision", {"trading": "halted"}, {"name": "Wait", "ansible.builtin.command": {"argv": ["sleep", "4321"]}})
    command = [sys.executable, "-m", "titan_dr", "recover", SCENARIO, "-i", "hosts"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        while not any('"halted"' in path.read_text() for path in (checkout.root / "runs").glob("*/ledger.jsonl")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(20) == report.CANCELLED
    finally:
        if process.poll() is None:
            process.kill()
        if process.stdout is not None:
            process.stdout.close()
    found = checkout.report()
    assert found["result"] == "cancelled" and "SIGINT" in found["message"]
    assert (found["trading"], "UNKNOWN: Halt on localhost" in found["message"]) == (("halted", False) if safe else (None, True))
    assert sorted(path.name for path in next((checkout.root / "runs").iterdir()).iterdir()) == [
        "ansible.log",
        "budget.json",
        "ledger.jsonl",
        "report.json",
        "safe_state",
    ]


def test_scenarios(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["scenarios"]) == 0
    assert SCENARIO in capsys.readouterr().out
    assert cli.main(["scenarios", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[SCENARIO]["rto_s"] == 900


def test_lab_status_shows_no_secret(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from titan_dr import lab

    secret = {"secret_key": "s3cret"}
    host: Any = {"name": "t", "address": "10.0.0.1", "image": "i"}
    hosts = {"titan": host}
    state = lab.LabState("ab12", "guide", "net", "10.0.0.0/24", {}, hosts, {}, secret, secret, secret, "s3cret", "s3cret", {"b": secret}, "http://", ready=True)
    now = lab.LabStatus(state, {"titan": "running"})
    monkeypatch.setattr(lab, "status", lambda: now)
    for arguments in (["lab", "status"], ["lab", "status", "--json"]):
        assert cli.main(arguments) == 0
        out = capsys.readouterr().out
        assert "10.0.0.1" in out and "running" in out and "s3cret" not in out
    now.state = None
    assert cli.main(["lab", "status"]) == report.FAILED


def test_lab_errors_are_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from titan_dr import lab

    def refuse(*arguments: Any) -> None:
        raise lab.LabError("podman is not installed")

    for name in ("up", "down", "status"):
        monkeypatch.setattr(lab, name, refuse)
        assert cli.main(["lab", name]) == report.FAILED
        assert "podman is not installed" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["faults"], ["scenarios", "--json"]])
def test_a_list_whose_reader_has_gone(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "titan_dr", *words], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_list_that_could_not_be_written_says_so() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "titan_dr", "faults"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr == "titan-dr: output was lost: No space left on device\n"
