# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from tiny_playbooks import ARMED, PASSED, ROOT, SECRET, Playbooks, Ran, play, say

from ansible_collections.titan.disaster_recovery.plugins.callback import recovery_clock


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
    assert sorted(path.name for path in files) == ["budget.json", "ledger.jsonl", "report.json"]
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
    assert ran.rc == 3
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
    # recovered, and not in time
    assert ran.report["result"] == "recovered" and ran.rc == 4


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


TAKEN = {"run_id": "20260101T000000Z-x-0000", "epoch": 3, "scenario": "complete_system_failure", "adopted": False, "since": 1.0}


def test_the_lease_and_the_deadline_are_on_the_record(playbooks: Playbooks) -> None:
    looked = say({"lease": {**TAKEN, "epoch": 0, "incident_at": 5.0}, "deadline_at": 1e9})
    taken = say({"lease": {**TAKEN, "incident_at": 5.0}, "deadline_at": 1e9})
    ran = playbooks.run(play("preflight", looked, taken, taken), play("validate", say(PASSED)))
    rows = [row for row in ran.rows if row["event"] == "lease"]
    assert [(row["epoch"], row["adopted"], row["deadline_at"], row.get("shift_s")) for row in rows] == [(0, False, 1e9, None), (3, False, 1e9, None)]
    assert ran.report["lease"] == {"run_id": TAKEN["run_id"], "epoch": 3, "adopted": False} and ran.report["deadline_at"] == 1e9
    # its own incident stays
    assert ran.report["rto"]["actual_s"] < 60 and ran.report["notes"] == []


def test_a_lease_that_was_only_looked_at_is_none(playbooks: Playbooks) -> None:
    assert playbooks.run(play("preflight", say({"lease": {**TAKEN, "epoch": 0, "incident_at": 5.0}}))).report["lease"] is None


def test_a_run_that_goes_on_with_another_counts_from_that_ones_incident(playbooks: Playbooks) -> None:
    at = round(time.time() - 800, 3)
    adopted = say({"lease": {**TAKEN, "adopted": True, "incident_at": at}})
    told = {"name": "Told", "ansible.builtin.assert": {"that": f"lookup('ansible.builtin.env', 'TITAN_DR_INCIDENT_STARTED_AT') | float == {at}"}}
    ran = playbooks.run(play("preflight", adopted, adopted, told), play("validate", say(PASSED)))
    report = ran.report
    assert ran.rc == 0, ran.output
    assert report["incident_at"] == at and 800 <= report["rto"]["actual_s"] < 860
    assert [800 <= phase["start_s"] < 860 and phase["duration_s"] < 60 for phase in report["phases"]] == [True, True]
    assert len(report["notes"]) == 1 and f"Goes on with run {TAKEN['run_id']}, 13 min" in report["notes"][0]
    assert "went on with run" in ran.output


def test_an_adopted_incident_that_cannot_be_read_changes_nothing(playbooks: Playbooks) -> None:
    ran = playbooks.run(play("preflight", say({"lease": {**TAKEN, "adopted": True, "incident_at": "long ago"}})), play("validate", say(PASSED)))
    assert ran.rc == 0 and ran.report["rto"]["actual_s"] < 60 and "cannot be read" in ran.report["notes"][0]


def test_what_the_tasks_are_told(playbooks: Playbooks) -> None:
    names = ("ATTEMPT", "STARTED_AT")
    say_it = {"name": "Env", "ansible.builtin.debug": {"msg": " ".join(f"{name}={{{{ lookup('ansible.builtin.env', 'TITAN_DR_{name}') }}}}" for name in names)}}
    now = time.time()
    first, second = (playbooks.run(play("validate", say_it, say(PASSED)), TITAN_DR_ATTEMPT="inherited", TITAN_DR_STARTED_AT="1") for dummy in range(2))
    found = [re.search(r"ATTEMPT=(\w+) STARTED_AT=([\d.]+)", ran.output) for ran in (first, second)]
    attempts = [match.group(1) for match in found if match]
    assert len(set(attempts)) == 2 and all(re.fullmatch(r"[0-9a-f]{8}", attempt) for attempt in attempts), first.output
    assert all(now <= float(match.group(2)) < now + 60 for match in found if match)


@pytest.mark.parametrize(("policy", "seconds", "since"), [("continue", 1800, 0), ("abort", 900, 300)])
def test_the_deadline_is_known_from_the_start(playbooks: Playbooks, policy: str, seconds: int, since: int) -> None:
    begun = time.time()
    arguments = ("-e", f"titan_dr_on_breach={policy}")
    ran = playbooks.run(play("validate", say(PASSED)), arguments=arguments, TITAN_DR_INCIDENT_STARTED_AT=str(begun - 300))
    assert begun - since + seconds - 0.01 <= ran.report["deadline_at"] < begun - since + seconds + 30


def test_what_earlier_runs_took_is_at_hand(playbooks: Playbooks) -> None:
    entries = [{"phase": "preflight", "start_s": 0}, {"phase": "provision", "start_s": 3}]
    past = {"result": "recovered", "kind": "drill", "scenario": "complete_system_failure", "hosts": [], "entries": entries, "rto": {"actual_s": 10}}
    past |= {"restore_point": {}, "timings": {}}
    for number, change in enumerate(({}, {}, {"hosts": 5}, {}, {"hosts": ["another"]}, {"result": "failed"})):
        folder = playbooks.run_dir.parent / f"2026010{number}T000000Z-x-0000"
        folder.mkdir()
        (folder / "report.json").write_text(json.dumps({**past, **change}))
    (playbooks.run_dir.parent / "20260109T000000Z-x-0000").mkdir()
    playbooks.run(play("validate", say(PASSED)))
    budget = json.loads((playbooks.run_dir / "budget.json").read_text())
    assert budget["learnt"] == {"preflight": {"p50": 3, "p95": 3, "n": 3}, "provision": {"p50": 7, "p95": 7, "n": 3}}
    assert (budget["rto_s"], budget["limit_s"], budget["declared"]["provision"]) == (900, 1800, 300)


def test_servers_that_a_variable_names_have_earlier_runs_too(playbooks: Playbooks) -> None:
    (playbooks.folder / "hosts.yml").write_text("titan_servers: {hosts: {one: {ansible_connection: local}, two: {ansible_connection: local}}}")
    past = {"result": "recovered", "kind": "drill", "scenario": "complete_system_failure", "hosts": ["two"], "rto": {"actual_s": 10}}
    past |= {"restore_point": {}, "timings": {}, "entries": [{"phase": "provision", "start_s": 3}]}
    for number in range(3):
        folder = playbooks.run_dir.parent / f"2026010{number}T000000Z-x-0000"
        folder.mkdir()
        (folder / "report.json").write_text(json.dumps(past))
    named = play("provision", hosts="{{ titan_dr_hosts | default('titan_servers') }}")
    ran = playbooks.run(named, arguments=("-i", str(playbooks.folder / "hosts.yml"), "-e", "titan_dr_hosts=two"))
    assert "Could not match" not in ran.output
    assert json.loads((playbooks.run_dir / "budget.json").read_text())["learnt"]["provision"]["n"] == 3, ran.output


def test_damaged_reports_of_earlier_runs_do_no_harm(playbooks: Playbooks) -> None:
    damaged = ('{"run_id": 5, "result": "recovered", "hosts": 5}', "[1]", "{", '{"result": "recovered", "hosts": [], "restore_point": 7, "timings": 1}')
    for number, text in enumerate(damaged):
        folder = playbooks.run_dir.parent / f"2026010{number}T000000Z-x-0000"
        folder.mkdir()
        (folder / "report.json").write_text(text)
    ran = playbooks.run(play("validate", ARMED, say(PASSED)))
    assert ran.rc == 0 and ran.report["notes"] == []


def test_a_long_task_is_counted_down(playbooks: Playbooks) -> None:
    # 80 % are 720 s; the clock is set back by the first task, so that the start of ansible-playbook does not count
    back = {"name": "Set back", "ansible.builtin.set_fact": {"since": "{{ now().timestamp() - 717 }}"}}
    adopted = say({"lease": {**TAKEN, "adopted": True, "incident_at": "{{ since | float }}"}})
    wait = {"name": "Wait", "ansible.builtin.command": {"argv": ["sleep", "{{ [1, since | float + 721 - now().timestamp()] | max }}"]}, "changed_when": False}
    ran = playbooks.run(play("validate", back, adopted, wait, {"name": "After", "ansible.builtin.debug": {}}))
    lines = re.findall(r"\[titan-dr\] (\d+ min \d+ s) after the incident, (\d+) % of the RTO of 15 min 00 s, over the target of 10 min 00 s, (\d+)", ran.output)
    # the marks that the adopted incident went past at once are one line
    assert lines[1:] == [("12 min 00 s", "80", "2")] and len(lines) == 2, ran.output
    # in the middle of the task, not after it
    assert ran.output.index("TASK [Wait]") < ran.output.index(", 80 % of the RTO") < ran.output.index("TASK [After]")


class Broken:
    def display(self, text: str) -> None:
        raise RuntimeError("a terminal that went away")


@pytest.mark.parametrize("broken", [True, False])
def test_the_countdown_neither_breaks_nor_outlives_the_run(broken: bool) -> None:
    class Ledger:
        seconds = 49.0

        def elapsed(self) -> float:
            Ledger.seconds += 2
            return Ledger.seconds

    clock = SimpleNamespace(ledger=Ledger(), objectives={"rto_s": 100, "rto_target_s": 60}, over=threading.Event())
    said: list[str] = []
    clock._display = Broken() if broken else SimpleNamespace(display=said.append)
    thread = threading.Thread(target=recovery_clock.CallbackModule._count_down, args=(clock,), daemon=True)
    thread.start()
    if not broken:
        deadline = time.monotonic() + 10
        while not said:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        clock.over.set()
    thread.join(10)
    assert not thread.is_alive() and len(said) == (0 if broken else 1)


def test_from_the_safe_state_on_nobody_may_cut_it_short(playbooks: Playbooks) -> None:
    (playbooks.folder / "safe_state.yml").write_text(yaml.safe_dump([{"name": "In", "ansible.builtin.include_tasks": "halt.yml"}, say({"trading": "halted"})]))
    (playbooks.folder / "halt.yml").write_text(yaml.safe_dump([say({})]))
    rescue = [{"name": "Leave", "ansible.builtin.include_tasks": "safe_state.yml"}]
    ran = playbooks.run(play("services", {"block": [{"name": "Break", "ansible.builtin.fail": {"msg": "x"}}], "rescue": rescue}))
    events = [row["event"] for row in ran.rows]
    assert events.count("safe_state_start") == 1, ran.output
    failed = next(number for number, row in enumerate(ran.rows) if row.get("status") == "failed")
    halted = next(number for number, row in enumerate(ran.rows) if (row.get("titan_dr") or {}).get("trading"))
    assert failed < events.index("safe_state_start") < halted
    assert "safe_state_start" not in [row["event"] for row in playbooks.run(play("services", say(PASSED))).rows]


def test_exit_codes(playbooks: Playbooks) -> None:
    assert playbooks.run(play("validate", say({**PASSED, "rpo": {"actual_s": 2000, "basis": "canary"}}))).rc == 4
    assert playbooks.run(play("validate", say({**PASSED, "rpo": {}}, changed_when=True))).rc == 4
    assert playbooks.run(play("validate", say({**PASSED, "rpo": {}}, changed_when=True)), arguments=("--check",)).rc == 0
    assert playbooks.run(play("services", {"name": "Break", "ansible.builtin.fail": {"msg": "x"}})).rc == 2
    assert playbooks.run(play("services", say({"refused": "another recovery runs"}, failed_when=True))).rc == 3


def test_a_missed_objective_does_not_keep_the_next_playbook_from_running(playbooks: Playbooks) -> None:
    after = playbooks.folder / "after.yml"
    after.write_text(yaml.safe_dump([play("validate", say({"notes": ["the second one"]}))]))
    ran = playbooks.run(play("validate", say({**PASSED, "rpo": {"actual_s": 2000, "basis": "canary"}})), arguments=(str(after),))
    assert ran.rc == 4 and "the second one" in ran.report["notes"]


# --- who is told ---------------------------------------------------------------------------------------------------------


def hooked(phase: str, *tasks: dict[str, Any], notify: Any) -> dict[str, Any]:
    found = play(phase, *tasks)
    found["vars"]["titan_dr_notify"] = notify
    return found


@pytest.mark.parametrize(("task", "result"), [(say(PASSED), "recovered"), ({"name": "Break", "ansible.builtin.fail": {"msg": "x"}}, "failed")])
def test_the_start_and_the_end_are_told(playbooks: Playbooks, web: Callable[..., Any], task: dict[str, Any], result: str) -> None:
    bodies: list[dict[str, Any]] = []

    def answer(_method: str, _path: str, body: bytes) -> Any:
        bodies.append(json.loads(body))
        return 200, {}, b""

    ran = playbooks.run(hooked("validate", say({"trading": "halted"}), task, notify=[{"url": f"{web(answer).url}/{SECRET}"}]))
    told = {body["event"]: body for body in bodies}
    assert told.keys() == {"started", result} and len(bodies) == 2, ran.output
    assert told["started"]["text"] == "It works on localhost." and told["started"]["run_id"] == ran.report["run_id"]
    assert told[result]["text"].startswith(ran.report["message"]) and told[result]["rto_s"] == 900
    assert {f"{event} was told to 127.0.0.1" for event in told} <= set(ran.report["notes"])
    assert SECRET not in ran.output + "".join(path.read_text() for path in playbooks.run_dir.iterdir())


def test_a_try_is_told_to_nobody(playbooks: Playbooks, web: Callable[..., Any]) -> None:
    asked: list[str] = []
    service = web(lambda _method, path, _body: asked.append(path) or (200, {}, b""))
    playbooks.run(hooked("validate", say(PASSED), notify=[{"url": service.url}]), arguments=("--check",))
    assert asked == []


@pytest.mark.parametrize("notify", ["{{ nothing_like_it }}", [{"uri": SECRET}], [SECRET]])
def test_hooks_that_cannot_be_read_are_a_note_and_no_harm(playbooks: Playbooks, notify: Any) -> None:
    ran = playbooks.run(hooked("validate", say(PASSED), notify=notify))
    assert (ran.rc, ran.report["result"]) == (0, "recovered"), ran.output
    assert any("nobody is told" in note or "was NOT told" in note for note in ran.report["notes"])
    assert SECRET not in (playbooks.run_dir / "ledger.jsonl").read_text()
