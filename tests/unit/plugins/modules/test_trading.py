# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _journal, _latch, _lease
from ansible_collections.titan.disaster_recovery.plugins.modules import trading_halt, trading_resume

# Nobody on this machine has this user id: what runs under it was started here.
UID = 2_123_456_001
USER = "titan-test"


class Titan:
    """The services: trade or not, do as they are told or not."""

    def __init__(self, web: Any, latch: Path) -> None:
        self.trading, self.obeys, self.html, self.latch = True, True, False, latch
        self.service = web(self.answer)
        self.calls: list[str] = []

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if method == "POST":
            self.calls.append(path)
            if path == "/resume" and self.latch.exists():
                return 409, {}, b"{}"
            if self.obeys:
                self.trading = path == "/resume"
            return 200, {}, b'{"ok": true}'
        if self.html:
            return 200, {}, b"<html>trading: false</html>"
        return 200, {}, json.dumps({"trading": self.trading}).encode()

    def call(self, path: str, trading: bool) -> dict[str, Any]:
        confirm = {"url": f"{self.service.url}/trading", "status": [200], "expect": {"trading": [trading]}}
        return {"url": f"{self.service.url}{path}", "method": "POST", "body": {}, "confirm": confirm}


@pytest.fixture
def titan(web: Any, tmp_path: Path) -> Titan:
    return Titan(web, tmp_path / "halt")


@pytest.fixture
def systemctl(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The user, and a systemd that knows no such unit and stops nothing."""
    asked: list[list[str]] = []

    def run(argv: list[str], **more: Any) -> Any:
        asked.append(argv)
        return subprocess.CompletedProcess(argv, 5, "", "")

    real = pwd.getpwnam
    monkeypatch.setattr(trading_halt.subprocess, "run", run)
    monkeypatch.setattr(trading_halt.pwd, "getpwnam", lambda name: SimpleNamespace(pw_uid=UID) if name == USER else real(name))
    return asked


@pytest.fixture
def process(systemctl: list[list[str]]) -> Any:
    """A process of the services' user that does not heed SIGTERM."""
    child = subprocess.Popen(["sh", "-c", "trap '' TERM; echo; exec sleep 60"], user=UID, group=UID, extra_groups=[], stdout=subprocess.PIPE)
    assert child.stdout and child.stdout.readline()
    yield child
    child.kill()
    child.wait()


def halt(titan: Titan, **more: Any) -> dict[str, Any]:
    return {
        "latch": str(titan.latch),
        "reason": "test",
        "run_id": "r1",
        "call": titan.call("/halt", False),
        "user": USER,
        "unit": "pm2-test",
        "timeout": 0.7,
        **more,
    }


def resume(titan: Titan, generation: int, **more: Any) -> dict[str, Any]:
    return {
        "latch": str(titan.latch),
        "generation": generation,
        "run_id": "r1",
        "environment_id": "lab",
        "call": titan.call("/resume", True),
        "halt_call": titan.call("/halt", False),
        "timeout": 0.7,
        **more,
    }


# --- halt -----------------------------------------------------------------------------------------------------------


def test_confirmed(titan: Titan, process: Any, systemctl: list[list[str]], run_module: Any) -> None:
    result = run_module(trading_halt, halt(titan))
    assert result["changed"] and result["generation"] == 1 and result["titan_dr"]["trading"] == "halted" and not titan.trading
    assert result["titan_dr"]["gates"][0]["verdict"] == "pass" and "confirmed" in result["titan_dr"]["gates"][0]["evidence"]
    assert systemctl == [] and process.poll() is None, "services that halted go on running"
    again = run_module(trading_halt, halt(titan))
    assert again["changed"] is False and again["generation"] == 1


def test_services_that_would_forget_their_halt_are_stopped_for_good(titan: Titan, process: Any, systemctl: list[list[str]], run_module: Any) -> None:
    result = run_module(trading_halt, {**halt(titan), "latch_honoured": False})
    assert systemctl == [["systemctl", "disable", "--now", "pm2-test"]] and process.wait(5) == -signal.SIGKILL
    assert not titan.trading and "would forget it" in result["titan_dr"]["gates"][0]["evidence"] and result["titan_dr"]["trading"] == "halted"
    again = run_module(trading_halt, {**halt(titan), "latch_honoured": False})
    assert again["titan_dr"]["gates"][0]["verdict"] == "pass" and len(systemctl) == 2, "what is stopped is kept from the next boot too"


@pytest.mark.parametrize("lie", ["obeys", "html", "gone"])
def test_a_halt_that_is_not_confirmed_stops_the_services(titan: Titan, process: Any, systemctl: list[list[str]], run_module: Any, lie: str) -> None:
    """200 and go on trading; a page instead of JSON; no answer at all."""
    titan.obeys, titan.html = lie != "obeys", lie == "html"
    if lie == "gone":
        titan.service.close()
    result = run_module(trading_halt, halt(titan))
    assert systemctl == [["systemctl", "stop", "pm2-test"]]
    assert process.wait(5) == -signal.SIGKILL
    gate = result["titan_dr"]["gates"][0]
    assert gate["verdict"] == "pass" and "did not confirm" in gate["evidence"] and "0 processes" in gate["evidence"]
    assert result["titan_dr"]["trading"] == "halted" and titan.latch.exists()


def test_a_process_that_survives_fails_the_halt(titan: Titan, process: Any, run_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    titan.obeys = False
    with monkeypatch.context() as patch:
        patch.setattr(trading_halt.os, "kill", lambda pid, number: None)
        result = run_module(trading_halt, halt(titan, timeout=0.3))
    assert result["failed"] and "could not be halted" in result["msg"] and result["titan_dr"]["gates"][0]["verdict"] == "fail"
    assert "trading" not in result["titan_dr"] and titan.latch.exists(), "the latch stays all the same"


def test_no_process_no_question(titan: Titan, systemctl: list[list[str]], run_module: Any) -> None:
    result = run_module(trading_halt, halt(titan))
    assert "no process of user" in result["titan_dr"]["gates"][0]["evidence"] and titan.calls == [] and systemctl == []


def test_a_user_that_does_not_exist_has_no_process() -> None:
    assert trading_halt.processes_of("no-such-user") == []


def test_processes_are_those_of_the_user(process: Any) -> None:
    assert trading_halt.processes_of(USER) == [process.pid] and os.getpid() not in trading_halt.processes_of(USER)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert trading_halt.processes_of(USER) == [], "a zombie trades no more"


def test_a_call_that_nobody_could_confirm_is_refused(titan: Titan, run_module: Any) -> None:
    result = run_module(trading_halt, halt(titan, call={"url": "http://127.0.0.1:1/", "method": "POST"}))
    assert result["failed"] and "confirm" in result["msg"]


def test_an_unreadable_latch_counts_as_halted(titan: Titan, process: Any, run_module: Any) -> None:
    titan.latch.write_text("{")
    result = run_module(trading_halt, halt(titan))
    assert result["changed"] is False and result["generation"] == 0 and not titan.trading and titan.latch.read_text() == "{"


def test_halt_in_check_mode(titan: Titan, process: Any, run_module: Any) -> None:
    result = run_module(trading_halt, halt(titan), check=True)
    assert result["changed"] and not titan.latch.exists() and titan.calls == []


# --- resume ---------------------------------------------------------------------------------------------------------


def test_resumed(titan: Titan, run_module: Any) -> None:
    titan.trading = False
    latch, _fresh = _latch.fasten(str(titan.latch), "x", "r1", 1.0)
    result = run_module(trading_resume, resume(titan, latch["generation"]))
    assert result["changed"] and result["titan_dr"]["trading"] == "resumed" and titan.trading and not titan.latch.exists()
    again = run_module(trading_resume, resume(titan, latch["generation"]))
    assert again["changed"] is False and again["titan_dr"]["trading"] == "resumed" and titan.calls == ["/resume"]


@pytest.mark.parametrize("fault", ["obeys", "html"])
def test_not_confirmed_is_latched_again(titan: Titan, run_module: Any, fault: str) -> None:
    titan.trading = False
    _latch.fasten(str(titan.latch), "x", "r1", 1.0)
    titan.obeys, titan.html = fault != "obeys", fault == "html"
    result = run_module(trading_resume, resume(titan, 1))
    assert result["failed"] and "not confirmed" in result["msg"] and titan.calls == ["/resume", "/halt"]
    assert _latch.read(str(titan.latch))["generation"] == 2  # type: ignore[index]
    assert result["titan_dr"]["gates"][0]["verdict"] == ("fail" if fault == "obeys" else "unknown")
    assert result["titan_dr"].get("trading") == ("halted" if fault == "obeys" else None), "nothing is claimed that was not seen"


def test_an_old_generation(titan: Titan, run_module: Any) -> None:
    titan.trading = False
    _latch.fasten(str(titan.latch), "x", "r1", 1.0)
    _latch.release(str(titan.latch), 1)
    _latch.fasten(str(titan.latch), "another operator", "r2", 1.0)
    result = run_module(trading_resume, resume(titan, 1))
    assert result["failed"] and "somebody halted trading again" in result["msg"] and result["titan_dr"]["trading"] == "halted"
    assert titan.latch.exists() and titan.calls == [] and not titan.trading


def test_resume_in_check_mode(titan: Titan, run_module: Any) -> None:
    _latch.fasten(str(titan.latch), "x", "r1", 1.0)
    assert run_module(trading_resume, resume(titan, 1), check=True)["changed"] and titan.latch.exists() and titan.calls == []


# --- under the lease ------------------------------------------------------------------------------------------------


@pytest.fixture
def lease(monkeypatch: pytest.MonkeyPatch) -> None:
    _lease.write(_lease.Lease(3, "r1", "aaaa", "x", 1.0, 1.0, {}, "held"))
    monkeypatch.setenv("TITAN_DR_COMMAND", "r1/aaaa/3")


def closed() -> tuple[str, str]:
    found = _lease.read()
    assert found
    return found.state, found.result


def recovered() -> Any:
    path = Path(_lease.STATE_DIR) / "recovered.json"
    assert not path.exists() or path.stat().st_mode & 0o777 == 0o644
    return json.loads(path.read_text()) if path.exists() else None


def test_the_resume_ends_the_lease(titan: Titan, lease: None, run_module: Any) -> None:
    titan.trading = False
    _latch.fasten(str(titan.latch), "x", "r1", 1.0)
    result = run_module(trading_resume, resume(titan, 1))
    assert result["changed"] and result["titan_dr"]["notes"] == []
    assert recovered() == {"environment_id": "lab", "run_id": "r1"} and closed() == ("closed", "recovered")
    assert [(row["step"], row["event"]) for row in _journal.read(_lease.journal_path())] == [("trading_resume", "intent"), ("trading_resume", "done")]
    again = run_module(trading_resume, resume(titan, 1))
    assert again["failed"] and "the lease is closed" in again["titan_dr"]["refused"], "after that the run changes nothing more"
    assert not run_module(trading_halt, halt(titan))["failed"], "but halt"


def test_trading_that_goes_on_already_ends_it_too(titan: Titan, lease: None, run_module: Any) -> None:
    result = run_module(trading_resume, resume(titan, 1))
    assert result["changed"] is False and recovered() and closed() == ("closed", "recovered")


@pytest.mark.parametrize("fault", ["not confirmed", "old generation"])
def test_a_resume_that_failed_keeps_the_lease(titan: Titan, lease: None, run_module: Any, fault: str) -> None:
    titan.trading = False
    _latch.fasten(str(titan.latch), "x", "r1", 1.0)
    titan.obeys = fault != "not confirmed"
    result = run_module(trading_resume, resume(titan, 1 if fault == "not confirmed" else 7))
    assert result["failed"] and recovered() is None and closed() == ("held", "")
    assert _journal.steps(_journal.read(_lease.journal_path()), "r1") == {"trading_resume": "failed"}


def test_what_cannot_be_recorded_does_not_halt_trading_again(titan: Titan, lease: None, run_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    titan.trading = False
    _latch.fasten(str(titan.latch), "x", "r1", 1.0)

    def full(path: str, text: str, mode: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_lease, "write_file", full)
    result = run_module(trading_resume, resume(titan, 1))
    assert not result["failed"] and titan.trading and "No space left" in result["titan_dr"]["notes"][0]


@pytest.mark.parametrize("mark", ["r1/aaaa/2", "r2/bbbb/0", ""])
def test_only_the_holder_resumes(titan: Titan, lease: None, run_module: Any, monkeypatch: pytest.MonkeyPatch, mark: str) -> None:
    titan.trading = False
    _latch.fasten(str(titan.latch), "x", "r1", 1.0)
    monkeypatch.setenv("TITAN_DR_COMMAND", mark)
    result = run_module(trading_resume, resume(titan, 1))
    assert result["titan_dr"]["refused"] and titan.latch.exists() and titan.calls == [] and not titan.trading


@pytest.mark.parametrize(("mark", "halts"), [("r1/aaaa/3", True), ("r2/bbbb/0", True), ("", True), ("r1/aaaa/2", False)])
def test_everybody_halts_but_an_old_run(titan: Titan, process: Any, lease: None, run_module: Any, monkeypatch: Any, mark: str, halts: bool) -> None:
    monkeypatch.setenv("TITAN_DR_COMMAND", mark)
    result = run_module(trading_halt, halt(titan))
    assert result["failed"] != halts and titan.latch.exists() == halts and titan.trading != halts
    assert halts or result["titan_dr"] == {"refused": result["msg"]}


def test_a_halt_needs_no_journal(titan: Titan, process: Any, lease: None, run_module: Any) -> None:
    os.mkdir(_lease.journal_path())
    assert not run_module(trading_halt, halt(titan))["failed"] and not titan.trading
    titan.trading = False
    assert "cannot be written" in run_module(trading_resume, resume(titan, 1))["titan_dr"]["refused"]
