# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs that hang, are stopped, killed or not listened to: real ansible-playbook processes on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkout import PASSED, ROOT, SCENARIO, Checkout

from titan_dr import cli, display, recovery, report, safe_state, supervisor
from titan_dr.cancel import Cancellation
from titan_dr.events import Outcome, StepFailed

# Measured on two processors with other work on them: the last process of the run ends 1.6 to 1.8 s after the deadline, and the safe state begins 1.9 to 2.1 s
# after it; 2.3 and 2.7 s when the controller is stopped (SIGSTOP). What else a machine does must not make a test fail.
BOUND_S = 3.0
SLACK_S = 4.0
HALTED = {"trading": "halted"}
LOOKUP = "{{ lookup('ansible.builtin.pipe', 'sleep 4322') }}"
STUBBORN = "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nos.setsid()\ntime.sleep(4323)"
HANGS: dict[str, dict[str, Any]] = {
    "command": {"ansible.builtin.command": {"argv": ["sleep", "4321"]}},
    "lookup": {"ansible.builtin.debug": {"msg": LOOKUP}},
    "lookup in the controller": {"ansible.builtin.debug": {}, "loop": LOOKUP},
    "process that ignores SIGTERM": {"ansible.builtin.command": {"argv": [sys.executable, "-c", STUBBORN]}},
    "asynchronous process": {"ansible.builtin.command": {"argv": ["sleep", "4324"]}, "async": 4000, "poll": 1},
}


def hang(kind: str = "command") -> dict[str, Any]:
    return {"name": "Hang", **HANGS[kind]}


def row(event: str, **fields: Any) -> dict[str, Any]:
    """A task that writes a row of the ledger, as the clock does."""
    line = json.dumps({"at": 0, "t": 0, "event": event, **fields})
    return {"name": "Row", "ansible.builtin.shell": {"cmd": f"echo '{line}' >> $TITAN_DR_RUN_DIR/ledger.jsonl"}}


def deadline_soon() -> dict[str, Any]:
    """Whatever time Ansible took until here."""
    line = '{"at": 0, "t": 0, "event": "note", "deadline_at": {{ now().timestamp() + 1 }}}'
    return {"name": "Row", "ansible.builtin.shell": {"cmd": f"echo '{line}' >> $TITAN_DR_RUN_DIR/ledger.jsonl"}}


def look_until(found: Callable[[], Any], seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < deadline, "did not come about"
        time.sleep(0.05)
    return result


@contextmanager
def command(checkout: Checkout, *arguments: str, **how: Any) -> Iterator[subprocess.Popen[bytes]]:
    words = [sys.executable, "-m", "titan_dr", "recover", SCENARIO, "-i", "hosts", *arguments]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **how}
    with subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, start_new_session=True, **streams) as process:
        try:
            yield process
        finally:
            process.kill()


def ledger(checkout: Checkout) -> str:
    return "".join(path.read_text() for path in (checkout.root / "runs").glob("*/ledger.jsonl"))


def controller(checkout: Checkout, process: subprocess.Popen[bytes]) -> int:
    """The ansible-playbook process."""
    words = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    return int(words[0])


def assert_stopped_and_safe(checkout: Checkout, found: dict[str, Any]) -> None:
    assert (found["result"], found["trading"]) == ("failed", "halted"), found
    assert found["message"].startswith("Stopped at the deadline") and found["message"].endswith("Trading is halted.")
    (begun,) = checkout.made_safe()
    assert begun[1:] == [SCENARIO, found["run_id"], "failed"]
    print(
        f"gone {found['stop']['gone_s']} s, safe state {found['stop']['safe_state_s']} s and in its task {begun[0] - found['stop']['deadline_at']:.2f} s later"
    )
    assert supervisor.MARGIN_S <= found["stop"]["gone_s"] < found["stop"]["safe_state_s"] < BOUND_S + SLACK_S
    assert checkout.alive() == []


@pytest.mark.parametrize("kind", HANGS)
def test_the_deadline_ends_what_hangs(checkout: Checkout, kind: str) -> None:
    checkout.safe_state()
    checkout.play("provision", HALTED, deadline_soon(), hang(kind))
    assert checkout.recover() == report.FAILED
    found = checkout.report()
    assert_stopped_and_safe(checkout, found)
    assert "in the step: Hang" in found["message"] or kind == "lookup in the controller"


def test_the_deadline_ends_a_controller_that_is_stopped(checkout: Checkout) -> None:
    checkout.safe_state()
    checkout.play("provision", HALTED, deadline_soon(), hang())
    with command(checkout) as process:
        look_until(lambda: '"deadline_at"' in ledger(checkout).partition('"note"')[2])
        os.kill(controller(checkout, process), signal.SIGSTOP)
        assert process.wait(40) == report.FAILED
    assert_stopped_and_safe(checkout, checkout.report())


def test_abort_counts_from_the_incident(checkout: Checkout) -> None:
    checkout.limit(rto_s=107, limit_s=600)
    checkout.safe_state()
    checkout.play("provision", HALTED, hang())
    assert checkout.recover("--on-breach", "abort", "--incident-started-at", str(time.time() - 100)) == report.FAILED
    assert_stopped_and_safe(checkout, checkout.report())


def test_what_began_nothing_needs_no_safe_state(checkout: Checkout) -> None:
    """And a run that hangs before its clock is armed is stopped too."""
    checkout.limit(limit_s=3)
    checkout.safe_state()
    inventory = checkout.root / "slow"
    inventory.write_text("#!/bin/sh\nsleep 4325\n")
    inventory.chmod(0o755)
    assert checkout.recover("-i", str(inventory)) == report.FAILED
    found = checkout.report()
    assert found["message"].startswith("Stopped at the deadline") and found["trading"] is None
    assert checkout.made_safe() == [] and checkout.alive() == []


@pytest.mark.parametrize("kind", ["lookup in the controller", "process that ignores SIGTERM"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_in_the_middle(checkout: Checkout, kind: str, signum: int) -> None:
    checkout.safe_state()
    checkout.play("provision", HALTED, hang(kind))
    with command(checkout) as process:
        look_until(lambda: '"halted"' in ledger(checkout))
        sent = time.time()
        process.send_signal(signum)
        assert process.wait(40) == report.CANCELLED
    found = checkout.report()
    assert found["message"] == f"Cancelled by {signal.Signals(signum).name}. Trading is halted."
    (begun,) = checkout.made_safe()
    assert begun[1:] == [SCENARIO, found["run_id"], "cancelled"] and begun[0] - sent < BOUND_S + SLACK_S
    assert checkout.alive() == []


def test_a_terminal_that_takes_no_more_does_not_hold_the_safe_state(checkout: Checkout) -> None:
    checkout.safe_state()
    checkout.play("provision", HALTED, {"name": "Talk", "ansible.builtin.debug": {"msg": "{{ 'word ' * 100000 }}"}}, deadline_soon(), hang())
    with command(checkout, "-v", stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        look_until(checkout.made_safe)
        assert process.poll() is None and process.stdout is not None
        process.stdout.read()
        assert process.wait(40) == report.FAILED
    assert_stopped_and_safe(checkout, checkout.report())


def test_a_recovery_does_not_need_anybody_who_watches(checkout: Checkout) -> None:
    checkout.play("validate", PASSED, {"name": "Talk", "ansible.builtin.debug": {"msg": "{{ 'word ' * 20000 }}"}})
    reading, writing = os.pipe()
    os.close(reading)
    with command(checkout, "-v", stdout=writing) as process:
        os.close(writing)
        code = process.wait(40)
    found = checkout.report()
    assert found["result"] == "recovered" and code == report.exit_code(found)


def test_a_controller_that_is_killed(checkout: Checkout) -> None:
    checkout.safe_state()
    checkout.play("provision", HALTED, hang())
    with command(checkout) as process:
        look_until(lambda: '"halted"' in ledger(checkout))
        os.kill(controller(checkout, process), signal.SIGKILL)
        assert process.wait(40) == report.FAILED
    found = checkout.report()
    assert found["message"].startswith("Ansible ended before the end of the playbook") and found["message"].endswith("Trading is halted.")
    assert [row[3] for row in checkout.made_safe()] == ["failed"] and checkout.alive() == []


def flaky(checkout: Checkout, failures: int) -> dict[str, Any]:
    """A step that cannot reach its server a number of times."""
    library = checkout.root / "playbooks" / "library"
    library.mkdir()
    (library / "reach.py").write_text(
        "#!/usr/bin/python\nimport json, pathlib\n"
        f"tries = pathlib.Path({str(checkout.root / 'tries')!r})\n"
        "count = int(tries.read_text()) + 1 if tries.exists() else 1\n"
        "tries.write_text(str(count))\n"
        f"failed = count <= {failures}\n"
        "print(json.dumps({'failed': failed, 'msg': 'titan cannot be reached: refused', 'titan_dr': {'unreachable': 'titan'} if failed else {}}))\n"
    )
    return {"name": "Reach", "reach": {}}


def test_a_server_that_comes_back_is_made_safe(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout.safe_state(flaky(checkout, 2))
    checkout.play("provision", HALTED, deadline_soon(), hang())
    monkeypatch.setattr(safe_state, "PAUSE_S", 0.2)
    assert checkout.recover() == report.FAILED
    assert checkout.report()["message"].endswith("Trading is halted.")
    assert (checkout.root / "tries").read_text() == "3"
    # again with what it was told
    assert [row[1:] for row in checkout.made_safe()] == [[SCENARIO, checkout.report()["run_id"], "failed"]] * 3


def test_a_server_that_stays_away_is_unknown(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout.safe_state(flaky(checkout, 99))
    checkout.play("provision", HALTED, deadline_soon(), hang())
    # a busy machine takes seconds for one attempt
    monkeypatch.setattr(safe_state, "RETRY_S", 12.0)
    monkeypatch.setattr(safe_state, "PAUSE_S", 0.2)
    assert checkout.recover() == report.FAILED
    found = checkout.report()
    assert "WHETHER TRADING IS HALTED IS UNKNOWN: Reach on localhost: titan cannot be reached" in found["message"] and found["trading"] is None
    assert 1 < int((checkout.root / "tries").read_text()) < 30


def test_a_safe_state_that_hangs_is_unknown(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout.safe_state(hang())
    checkout.play("provision", HALTED, deadline_soon(), hang())
    monkeypatch.setattr(safe_state, "ATTEMPT_S", 3.0)
    assert checkout.recover() == report.FAILED
    assert "UNKNOWN: safe_state.yml did not end within 3 s" in checkout.report()["message"]
    assert checkout.alive() == []


def test_a_playbook_on_its_own_way_into_the_safe_state_is_let_go_on(checkout: Checkout) -> None:
    checkout.safe_state()
    halted = {"name": "Halted", "ansible.builtin.debug": {"var": "titan_dr"}, "vars": {"titan_dr": HALTED}}
    wait = {"name": "Wait", "ansible.builtin.command": {"argv": ["sleep", "4"]}}
    end = {"name": "End", "ansible.builtin.fail": {"msg": "as a failure"}}
    checkout.play("provision", HALTED, row("safe_state_start"), deadline_soon(), wait, halted, end)
    assert checkout.recover() == report.FAILED
    assert "as a failure" in checkout.report()["message"] and checkout.made_safe() == []
    assert checkout.alive() == []


def test_a_server_that_another_recovery_has_is_left_to_it(checkout: Checkout) -> None:
    checkout.safe_state()
    refused = {"name": "Halt", "ansible.builtin.debug": {"var": "titan_dr"}, "vars": {"titan_dr": {"refused": "taken over"}}, "failed_when": True}
    checkout.play("provision", HALTED, row("lease", run_id="r0", epoch=3), row("safe_state_start"), refused)
    assert checkout.recover() != report.OK
    assert checkout.made_safe() == []


def test_a_rescue_that_could_not_halt_is_made_good(checkout: Checkout) -> None:
    checkout.safe_state()
    lease = row("lease", run_id="20260101T000000Z-rollback-ab12", epoch=3)
    checkout.play("provision", {}, lease, row("safe_state_start"), {"name": "Halt", "ansible.builtin.fail": {"msg": "cannot be reached"}})
    assert checkout.recover() == report.FAILED
    found = checkout.report()
    assert found["message"].endswith("Trading is halted.")
    # what the lease of the server is called there, and which taking of it
    assert [row[2] for row in checkout.made_safe()] == ["20260101T000000Z-rollback-ab12/3"]
    assert any("--resume 20260101T000000Z-rollback-ab12" in note for note in found["notes"])


def test_the_scenario_has_a_deadline_before_the_ledger_says_so(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older collection's clock says none."""
    monkeypatch.setattr(supervisor.Seen, "row", lambda *_: None)
    checkout.limit(limit_s=3)
    checkout.play("provision", HALTED, hang())
    assert checkout.recover() == report.FAILED
    assert checkout.report()["message"].startswith("Stopped at the deadline") and checkout.alive() == []


def test_a_drill_is_stopped_and_left_to_its_lab(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout.safe_state()
    checkout.play("provision", HALTED, deadline_soon(), hang())
    run_dir = recovery.new_run_dir(checkout.root / "runs", SCENARIO)
    request = recovery.Request(SCENARIO, [str(checkout.root / "hosts")], run_dir, kind="drill")
    with Cancellation() as cancellation:
        found = recovery.recover(request, display.make(cli._console(True)), cancellation)
    assert found["result"] == "failed" and found["message"].startswith("Stopped at the deadline")
    assert found["trading"] == "halted" and checkout.made_safe() == [] and checkout.alive() == []


def test_resume_and_take_over(checkout: Checkout) -> None:
    show = {"name": "Show", "ansible.builtin.copy": {"dest": str(checkout.root / "told"), "content": "{{ told | to_json }}"}}
    names = ("titan_dr_resume", "titan_dr_take_over", "titan_dr_on_breach")
    show["vars"] = {"told": {name: f"{{{{ {name} | default(none) }}}}" for name in names}}
    checkout.play("validate", PASSED, show)
    told = checkout.root / "told"
    run = f"20260101T000000Z-{SCENARIO}-ab12"

    def recover(*arguments: str) -> list[Any]:
        assert cli.main(["recover", "-i", "hosts", *arguments]) in (report.OK, report.MISSED)
        return [yaml.safe_load(told.read_text())[name] for name in names]

    assert recover("--resume", run) == [run, None, None]
    assert recover(SCENARIO, "--take-over", run, "--on-breach", "abort") == [None, run, "abort"]
    # a run of this machine keeps its clock, and says what it was, whatever it is called
    earlier = checkout.root / "runs" / "mine"
    earlier.mkdir()
    (earlier / "report.json").write_text(json.dumps({"result": "failed", "scenario": SCENARIO, "incident_at": 1767225600.0}))
    assert recover("--resume", "mine") == ["mine", None, None]
    newest = max((checkout.root / "runs").glob("2*/report.json"), key=lambda path: path.stat().st_mtime)
    assert report.load(newest)["incident_at"] == 1767225600.0


# --- without processes ---


def judged(rc: int, ended: bool = False, cancelled: bool = False, **changes: Any) -> dict[str, Any]:
    found = report.empty("r", "real", SCENARIO, {"rto_s": 900, "rpo_s": 300}, "recovered", "All gates passed.")
    found["rto"]["met"] = found["rpo"]["met"] = True
    found.update(changes)
    request = recovery.Request(SCENARIO, [], Path("r"))
    return recovery.judge(found, Outcome(rc, cancelled, ""), request, {}, "SIGINT", ended)


@pytest.mark.parametrize(
    ("rc", "changes", "result"),
    [
        (0, {}, "recovered"),
        (4, {"rto": {"met": False}}, "recovered"),
        (4, {"rpo": {"met": None}}, "recovered"),
        # Ansible's own 4: a host could not be reached
        (4, {}, "failed"),
        (2, {"rto": {"met": False}}, "failed"),
        (3, {"result": "refused"}, "refused"),
        (2, {"result": "failed"}, "failed"),
        (254, {"result": "cancelled"}, "failed"),
    ],
)
def test_how_a_run_that_ended_by_itself_is_judged(rc: int, changes: dict[str, Any], result: str) -> None:
    assert judged(rc, **changes)["result"] == result


def test_a_signal_after_the_end_changes_nothing() -> None:
    assert judged(254, ended=True, cancelled=True)["message"] == "All gates passed."
    found = judged(254, cancelled=True)
    assert (found["result"], found["message"]) == ("cancelled", "Cancelled by SIGINT.")


def deadline(own: float | None, now: float = 1000.0) -> tuple[supervisor.Deadline, list[float]]:
    times = [50.0, now]
    return supervisor.Deadline(own, lambda: times[0], lambda: times[1]), times


def test_the_deadline_is_kept_on_the_monotonic_clock() -> None:
    known, times = deadline(1100.0)
    seen = supervisor.Seen()
    assert known.due(seen) == 150.0 + supervisor.MARGIN_S
    times[:] = [60.0, 5000.0]
    seen.deadline_at = 1100.0
    assert known.due(seen) == 150.0 + supervisor.MARGIN_S
    seen.deadline_at = 5020.0
    assert known.due(seen) == 80.0 + supervisor.MARGIN_S


def test_a_run_after_its_deadline_may_say_why_it_refuses() -> None:
    assert deadline(900.0)[0].due(supervisor.Seen()) == 50.0 + supervisor.LATE_S + supervisor.MARGIN_S


def test_no_deadline_no_stop() -> None:
    assert deadline(None)[0].due(supervisor.Seen()) is None
    assert supervisor.own_deadline({}, None, 1.0, 2.0) is None
    limits = {"rto_s": 10, "limit_s": 20}
    assert supervisor.own_deadline(limits, "abort", 1.0, 2.0) == 11.0
    assert supervisor.own_deadline(limits, "continue", 1.0, 2.0) == supervisor.own_deadline(limits, None, 1.0, 2.0) == 22.0


def test_what_a_ledger_says() -> None:
    seen = supervisor.Seen()
    for said in ({"event": "run_start", "deadline_at": "soon"}, {"event": "task"}, {"event": "gate", "titan_dr": None}, {"event": "lease"}):
        seen.row(said, 1.0)
    assert not seen.begun and seen.deadline_at is None
    seen.row({"event": "task", "titan_dr": {"lease": {"run_id": "r0", "epoch": 0}, "refused": "another's"}}, 2.0)
    assert not seen.begun and not seen.lost
    seen.row({"event": "task", "titan_dr": {"lease": {"run_id": "r0", "epoch": 2}, "deadline_at": 7}}, 2.0)
    assert seen.begun and (seen.lease, seen.deadline_at) == ("r0", 7.0)
    seen.row({"event": "task", "titan_dr": {"trading": "halted"}}, 3.0)
    assert seen.trading == "halted" and not seen.safe
    seen.row({"event": "safe_state_start"}, 4.0)
    seen.row({"event": "task", "titan_dr": {"trading": "halted"}}, 5.0)
    assert seen.safe and seen.leaving == 4.0 and not seen.ended
    seen.row({"event": "run_end", "cancelled": "by"}, 6.0)
    assert not seen.ended
    seen.row({"event": "run_end", "stats": {}}, 6.0)
    assert seen.ended and seen.begun
    seen.row({"event": "task", "titan_dr": {"refused": "taken over"}}, 7.0)
    assert not seen.begun


def told(host: str, status: str = "ok", **said: Any) -> dict[str, Any]:
    return {"event": "task", "host": host, "status": status, "titan_dr": said}


def test_several_servers_are_safe_when_each_is() -> None:
    seen = supervisor.Seen()
    for number, host in enumerate(("data", "core"), 1):
        seen.row(told(host, lease={"run_id": "r0", "epoch": number}), 1.0)
        # the halt at the beginning is not the safe state
        seen.row(told(host, halt={}), 2.0)
    seen.row({"event": "lease", "run_id": "r0", "epoch": 2}, 2.0)
    assert seen.taken == {"data": "r0/1", "core": "r0/2"}
    seen.row({"event": "safe_state_start"}, 3.0)
    seen.row(told("core", trading="halted", halt={}), 4.0)
    seen.row(told("data", "failed", halt={}), 4.0)
    assert not seen.safe
    # it does not trade itself, so of trading it says nothing
    seen.row(told("data", halt={}), 5.0)
    assert seen.safe
    seen.row(told("core", trading="resumed"), 6.0)
    assert not seen.safe


def stopped(tmp_path: Path, *rows: dict[str, Any]) -> dict[str, Any]:
    """What the safe state is told after a run with this ledger."""
    watch = recovery.RunWatch(recovery.Request(SCENARIO, ["i"], tmp_path / "run"), {"limit_s": 60})
    facts: dict[str, Any] = {}

    class Recorded:
        released = False

        def release(self, given: dict[str, Any]) -> None:
            facts.update(given)

    watch.safe_state = Recorded()  # type: ignore[assignment]
    for line in rows:
        watch.seen.row(line, 1.0)
    watch.release("signal")
    return facts


def test_each_server_is_taken_over_by_its_own_epoch(tmp_path: Path) -> None:
    core, data = told("core", lease={"run_id": "r0", "epoch": 7}), told("data", lease={"run_id": "r0", "epoch": 2})
    facts = stopped(tmp_path, core, data)
    assert facts["titan_dr_take_over"] == "r0" and facts["titan_dr_taken"] == {"core": "r0/7", "data": "r0/2"}
    facts = stopped(tmp_path, core)
    assert facts["titan_dr_take_over"] == "r0/7" and "titan_dr_taken" not in facts


def test_only_the_servers_that_were_away_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others have given their lease back: nothing of the run is to be taken over there any more."""
    failed = StepFailed("Take", "data", "it is another's")
    attempts: list[tuple[list[StepFailed], int]] = [([StepFailed("Reach", "core", "no route", unreachable=True), failed], 2), ([], 0)]
    asked: list[Any] = []

    def make_job(facts: Any, files: Any) -> Any:
        asked.append(facts.get("titan_dr_hosts"))
        return facts

    def run(job: Any, on_event: Any, *_: Any) -> Outcome:
        failures, rc = attempts.pop(0)
        for failure in failures:
            on_event(failure)
        return Outcome(rc, False, "done")

    monkeypatch.setattr(safe_state.runner, "run", run)
    monkeypatch.setattr(safe_state, "PAUSE_S", 0.0)
    made = safe_state.SafeState(make_job)
    made.release({})
    proof = made.wait()
    assert asked == [None, "core"]
    # that core came back makes data not safe
    assert not proof.halted and proof.reason == "Take on data: it is another's"


def test_what_was_resumed_is_not_stopped_by_the_deadline() -> None:
    known, _times = deadline(1100.0)
    seen = supervisor.Seen()
    seen.row({"event": "task", "titan_dr": {"trading": "resumed"}}, 149.0)
    assert known.due(seen) == 149.0 + supervisor.SAFE_STATE_S + supervisor.MARGIN_S


class Broken(supervisor.Watch):
    def due(self) -> float | None:
        raise ValueError("a row nobody expected")


def test_a_look_that_fails_does_not_end_the_supervision(capsys: pytest.CaptureFixture[str]) -> None:
    cancellation = Cancellation()
    with supervisor.Supervisor(f"titan-dr-test-{os.getpid()}-{time.monotonic_ns()}", cancellation, Broken()) as watched:
        look_until(lambda: "nobody expected" in capsys.readouterr().err)
        cancellation.requested = "SIGINT"
        look_until(lambda: watched.reason == "signal")


class Unprepared(supervisor.Watch):
    def due(self) -> float | None:
        return 0.0

    def soon(self) -> None:
        raise OSError("no space for a gate")


def test_what_cannot_be_prepared_does_not_put_the_stop_off() -> None:
    with supervisor.Supervisor(f"titan-dr-test-{os.getpid()}-{time.monotonic_ns()}", Cancellation(), Unprepared()) as watched:
        look_until(lambda: watched.reason == "deadline")


def test_a_ledger_that_was_lost_does_not_halt_what_was_recovered(tmp_path: Path) -> None:
    watch = recovery.RunWatch(recovery.Request(SCENARIO, [], tmp_path), {})
    watch.seen.row({"event": "task", "titan_dr": {"trading": "halted"}}, 1.0)
    assert [watch.wanted(None, rc) for rc in (0, 4, 2, 254)] == [False, False, True, True]
    assert watch.wanted("signal") and watch.wanted("deadline")


def test_a_disk_without_space_still_has_an_outcome(checkout: Checkout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "save", full)
    checkout.play("validate", PASSED)
    assert checkout.recover() == report.OK
    assert "could not be written" in capsys.readouterr().out
