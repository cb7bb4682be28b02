# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _fence, _halt, _journal, _latch, _lease, _state
from ansible_collections.titan.disaster_recovery.plugins.module_utils._pm2 import Finding
from ansible_collections.titan.disaster_recovery.plugins.modules import trading_halt, trading_resume

# Nobody on this machine has this user id, nor have other test runs: what runs under it was started here.
UID = 2_123_000_000 + os.getpid() % 1_000_000
USER = "titan-test"


class Titan:
    """The services: trade or not, do as they are told or not."""

    def __init__(self, web: Any, latch: Path) -> None:
        self.trading, self.obeys, self.html, self.latch = True, True, False, latch
        self.mode = "full"
        self.service = web(self.answer)
        self.calls: list[str] = []
        self.modes: list[str] = []
        self.well = True

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if method == "POST":
            self.calls.append(path)
            allowed = (json.loads(self.latch.read_text()).get("mode", "halted") if self.latch.exists() else "full") if path == "/resume" else "halted"
            if path == "/resume" and allowed == "halted":
                return 409, {}, b"{}"
            if self.obeys:
                self.mode = json.loads(body).get("mode", "full") if path == "/resume" else "halted"
                self.trading = self.mode == allowed == "full"
                self.modes.append(self.mode)
            return 200, {}, b'{"ok": true}'
        if self.html:
            return 200, {}, b"<html>trading: false</html>"
        if path == "/health":
            return 200 if self.well else 503, {}, b"{}"
        venues = sorted(item.name for item in Path(f"{self.latch}.d").glob("*")) if self.obeys else []
        return 200, {}, json.dumps({"trading": self.trading, "mode": self.mode, "halted_venues": venues}).encode()

    def call(self, path: str, trading: bool) -> dict[str, Any]:
        confirm = {"url": f"{self.service.url}/trading", "status": [200], "expect": {"trading": [trading]}}
        return {"url": f"{self.service.url}{path}", "method": "POST", "body": {}, "confirm": confirm}


@pytest.fixture
def titan(web: Any, tmp_path: Path) -> Titan:
    return Titan(web, tmp_path / "halt")


@pytest.fixture
def systemctl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The user, and a systemd that knows no such unit and stops nothing."""
    asked: list[list[str]] = []

    def run(argv: list[str], **more: Any) -> Any:
        asked.append(argv)
        return subprocess.CompletedProcess(argv, 5, "", "")

    real = pwd.getpwnam
    monkeypatch.setattr(_halt.subprocess, "run", run)
    monkeypatch.setattr(_halt.pwd, "getpwnam", lambda name: SimpleNamespace(pw_uid=UID) if name == USER else real(name))
    # no fence on this machine, and no unit
    monkeypatch.setattr(_fence, "UNITS", str(tmp_path / "units"))
    monkeypatch.setattr(_fence.Fence, "exists", lambda self: False)
    monkeypatch.setattr(_fence.Fence, "usable", lambda self: "not on this machine")
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
        "app_timeout": 0.7,
        "stop_timeout": 0.7,
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
        "gates": [
            {"name": "redis", "verdict": "pass", "at": time.time()},
            {"name": "reconcile_binance", "verdict": "pass", "at": time.time(), "of": "reconcile"},
        ],
        "user": USER,
        "unit": "pm2-test",
        "app_timeout": 0.7,
        "stop_timeout": 0.7,
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
    assert systemctl == [["systemctl", "daemon-reload"], ["systemctl", "disable", "--now", "pm2-test"]] and process.wait(5) == -signal.SIGKILL
    drop_in = Path(_fence.UNITS, "pm2-test.service.d", _fence.DROP_IN).read_text()
    assert f"ExecCondition=+/bin/sh -c 'test ! -e {titan.latch} ||" in drop_in and "titan_dr_fence" in drop_in
    assert not titan.trading and "would forget it" in result["titan_dr"]["gates"][0]["evidence"] and result["titan_dr"]["trading"] == "halted"
    again = run_module(trading_halt, {**halt(titan), "latch_honoured": False})
    assert again["titan_dr"]["gates"][0]["verdict"] == "pass" and len(systemctl) == 3, "what is stopped is kept from the next boot too"


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
        patch.setattr(_halt.os, "kill", lambda pid, number: None)
        result = run_module(trading_halt, halt(titan, stop_timeout=0.3))
    assert result["failed"] and "could not be halted" in result["msg"] and result["titan_dr"]["gates"][0]["verdict"] == "fail"
    assert "trading" not in result["titan_dr"] and titan.latch.exists(), "the latch stays all the same"


def test_no_process_no_question(titan: Titan, systemctl: list[list[str]], run_module: Any) -> None:
    result = run_module(trading_halt, halt(titan))
    assert "no process of user" in result["titan_dr"]["gates"][0]["evidence"] and titan.calls == [] and systemctl == []


def test_a_user_that_does_not_exist_has_no_process() -> None:
    assert _halt.processes_of("no-such-user") == []


def test_processes_are_those_of_the_user(process: Any) -> None:
    assert _halt.processes_of(USER) == [process.pid] and os.getpid() not in _halt.processes_of(USER)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert _halt.processes_of(USER) == [], "a zombie trades no more"


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
def test_not_confirmed_is_latched_again_and_stopped(titan: Titan, process: Any, systemctl: list[list[str]], run_module: Any, fault: str) -> None:
    titan.trading = False
    _latch.fasten(str(titan.latch), "x", "r1", 1.0)
    titan.obeys, titan.html = fault != "obeys", fault == "html"
    result = run_module(trading_resume, resume(titan, 1))
    assert result["failed"] and "was not confirmed" in result["msg"] and titan.calls == ["/resume", "/halt"]
    assert _latch.read(str(titan.latch))["generation"] == 2  # type: ignore[index]
    gates = {gate["name"]: gate["verdict"] for gate in result["titan_dr"]["gates"]}
    assert gates == {"resumed": "fail", "halted": "pass"} and result["titan_dr"]["trading"] == "halted"
    # a service that does not even say that it is halted is stopped
    assert (process.poll() is None) == (fault == "obeys") and len(systemctl) == (0 if fault == "obeys" else 1)


def test_what_cannot_be_halted_again_is_not_called_halted(titan: Titan, process: Any, run_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    titan.trading, titan.html = False, True
    _latch.fasten(str(titan.latch), "x", "r1", 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(_halt.os, "kill", lambda pid, number: None)
        result = run_module(trading_resume, resume(titan, 1, stop_timeout=0.3))
    assert result["failed"] and "trading" not in result["titan_dr"], "nothing is claimed that was not seen"


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


# --- gates ----------------------------------------------------------------------------------------------------------


GATES = {
    "none": ([], "no gate was reported"),
    "failed": ([("redis", "fail", 0)], "redis is fail"),
    "unknown": ([("redis", "pass", 0), ("exchanges", "unknown", 0)], "exchanges is unknown"),
    "no verdict": ([("redis", None, 0)], "redis is unknown"),
    "stale": ([("redis", "pass", 61)], "redis is 61 s old"),
    "timeless": ([("redis", "pass", None)], "redis does not say when"),
    "of the future": ([("redis", "pass", -30)], "in the future"),
    "reconcile": ([("redis", "pass", 0), ("reconcile_bybit", "unknown", 0)], "reconcile_bybit is unknown"),
}


@pytest.mark.parametrize("name", GATES)
def test_a_gate_that_is_not_passed_and_fresh_refuses(titan: Titan, run_module: Any, name: str) -> None:
    """H08."""
    titan.trading = False
    _latch.fasten(str(titan.latch), "x", "r1", 1.0)
    rows, said = GATES[name]
    gates = [{"name": gate, "verdict": verdict, "at": None if age is None else time.time() - age} for gate, verdict, age in rows]
    result = run_module(trading_resume, resume(titan, 1, gates=gates))
    assert result["failed"] and said in result["msg"] and result["titan_dr"]["gates"][0]["verdict"] == "fail"
    assert titan.latch.exists() and titan.calls == [] and not titan.trading


def test_a_reason_overrules_reconciliation_alone(titan: Titan, run_module: Any) -> None:
    titan.trading = False
    _latch.fasten(str(titan.latch), "x", "r1", 1.0)
    bad = {"name": "reconcile_bybit", "verdict": "fail", "at": time.time(), "of": "reconcile"}
    health = {"name": "redis", "verdict": "fail", "at": time.time()}
    reason = "bybit is closed for good, positions checked by phone"
    for gates, why, said in (([bad], "because", "15 characters"), ([bad], "", "reconcile_bybit is fail"), ([bad, health], reason, "redis is fail")):
        result = run_module(trading_resume, resume(titan, 1, gates=gates, force_reason=why))
        assert result["failed"] and said in result["msg"] and titan.calls == [] and titan.latch.exists()
    result = run_module(trading_resume, resume(titan, 1, gates=[bad, {**health, "verdict": "pass"}], force_reason=reason))
    assert result["titan_dr"]["trading"] == "resumed" and titan.trading
    assert result["titan_dr"]["forced"] == {"reason": reason, "gates": ["reconcile_bybit"]}
    assert _journal.read(_lease.journal_path())[-2]["precondition"] == {"generation": 1, "force_reason": reason}


# --- step by step ----------------------------------------------------------------------------------------------------


STAGES = [{"mode": "observe", "seconds": 0.2}, {"mode": "reduce_only", "seconds": 0.2}, {"mode": "full", "seconds": 0.2}]


def test_step_by_step(titan: Titan, run_module: Any) -> None:
    titan.trading = False
    _latch.fasten(str(titan.latch), "x", "r1", 1.0)
    health = {"name": "brain", "url": f"{titan.service.url}/health"}
    result = run_module(trading_resume, resume(titan, 1, stages=STAGES, probes=[health]))
    assert titan.modes == ["observe", "reduce_only", "full"] and titan.trading and not titan.latch.exists()
    assert set(result["titan_dr"]["timings"]) == {"resume:observe", "resume:reduce_only", "resume:full"} and result["titan_dr"]["trading"] == "resumed"


def test_a_service_that_falls_ill_while_it_is_watched_halts_again(titan: Titan, process: Any, run_module: Any) -> None:
    titan.trading, titan.well = False, False
    _latch.fasten(str(titan.latch), "x", "r1", 1.0)
    result = run_module(trading_resume, resume(titan, 1, stages=STAGES, probes=[{"name": "brain", "url": f"{titan.service.url}/health"}]))
    assert result["failed"] and "brain is fail" in result["msg"] and titan.modes == ["observe", "halted"]
    latch = _latch.read(str(titan.latch))
    assert latch and latch["generation"] == 2 and "mode" not in latch and "brain is fail" in latch["reason"] and result["titan_dr"]["trading"] == "halted"


BRAIN = {"name": "brain", "kind": "pm2"}


class Processes:
    """Of a PM2 that is not there in a unit test: they stay, or one was started anew by the time that everything is to be allowed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, latch: Path, stay: bool) -> None:
        self.latch, self.stay = latch, stay
        self.seen: list[str] = []
        monkeypatch.setattr(trading_resume, "Watcher", lambda home, uid, prober: SimpleNamespace(sample=self.sample, watch=self.watch))

    def sample(self, components: list[Any]) -> str:
        self.seen.append(f"begins with {', '.join(item.name for item in components)}")
        return "first"

    def watch(self, components: list[Any], window: float, first: str | None = None) -> Any:
        self.seen.append(f"{window:g} s since {first}, latch {'fastened' if self.latch.exists() else 'gone'}")
        return [Finding(item.name, "pass" if self.stay else "fail", "1 restarts within 0.4 s") for item in components], None


@pytest.mark.parametrize("stay", [True, False])
def test_processes_must_stay_until_everything_is_allowed(titan: Titan, process: Any, run_module: Any, monkeypatch: pytest.MonkeyPatch, stay: bool) -> None:
    titan.trading = False
    _latch.fasten(str(titan.latch), "x", "r1", 1.0)
    processes = Processes(monkeypatch, titan.latch, stay)
    result = run_module(trading_resume, resume(titan, 1, stages=STAGES, components=[BRAIN], pm2_home="/h", window=3))
    assert processes.seen == ["begins with brain", "3 s since first, latch fastened"]
    assert titan.modes == ["observe", "reduce_only", "full" if stay else "halted"] and titan.latch.exists() != stay
    assert stay or (result["failed"] and "brain is fail: 1 restarts" in result["msg"] and result["titan_dr"]["trading"] == "halted")


def test_a_pm2_that_is_not_there_halts_again(titan: Titan, process: Any, run_module: Any, tmp_path: Path) -> None:
    titan.trading = False
    _latch.fasten(str(titan.latch), "x", "r1", 1.0)
    result = run_module(trading_resume, resume(titan, 1, stages=STAGES, components=[BRAIN], pm2_home=str(tmp_path)))
    assert result["failed"] and titan.modes == ["halted"] and titan.latch.exists() and result["titan_dr"]["trading"] == "halted"
    result = run_module(trading_resume, resume(titan, 2, components=[BRAIN], pm2_home=str(tmp_path), user="nobody-by-this-name"))
    assert result["failed"] and "there is no user" in result["msg"]


@pytest.mark.parametrize("stay", [True, False])
def test_processes_of_a_server_that_does_not_trade(
    titan: Titan, systemctl: list[list[str]], run_module: Any, monkeypatch: pytest.MonkeyPatch, stay: bool
) -> None:
    _latch.fasten(str(titan.latch), "x", "r1", 1.0)
    Processes(monkeypatch, titan.latch, stay)
    result = run_module(trading_resume, aside(titan, 1, components=[BRAIN], pm2_home="/h"))
    assert titan.latch.exists() != stay and result["failed"] != stay


@pytest.mark.parametrize("stay", [True, False])
def test_nothing_is_left_to_a_person_before_the_processes_stay(
    titan: Titan, systemctl: list[list[str]], lease: None, run_module: Any, monkeypatch: pytest.MonkeyPatch, stay: bool
) -> None:
    titan.trading = False
    Processes(monkeypatch, titan.latch, stay)
    for made in (resume, aside):
        latch, _fresh = _latch.fasten(str(titan.latch), "x", "r1", 1.0, anew=True)
        result = run_module(trading_resume, made(titan, latch["generation"], mode="manual", components=[BRAIN], pm2_home="/h"))
        assert result["failed"] != stay and titan.latch.exists() and titan.calls == [], result
        if stay:
            break


@pytest.mark.parametrize("stay", [True, False])
def test_one_exchange_is_resumed_when_the_processes_stay(titan: Titan, process: Any, run_module: Any, monkeypatch: pytest.MonkeyPatch, stay: bool) -> None:
    _latch.fasten_venue(str(titan.latch), "bybit", "x", "r1", 1.0)
    Processes(monkeypatch, titan.latch, stay)
    result = run_module(trading_resume, resume(titan, 0, venues=["bybit"], components=[BRAIN], pm2_home="/h"))
    assert result["failed"] != stay and (_latch.venues(str(titan.latch)) == []) == stay and titan.latch.exists() != stay, result


def test_an_operator_who_halts_in_between_is_heeded(titan: Titan, process: Any, run_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    titan.trading = False
    _latch.fasten(str(titan.latch), "x", "r1", 1.0)
    real = _latch.loosen

    def meanwhile(path: str, generation: int, mode: str) -> None:
        if mode == "reduce_only":
            _latch.fasten(path, "an operator", "by hand", 2.0, anew=True)
        real(path, generation, mode)

    monkeypatch.setattr(_latch, "loosen", meanwhile)
    result = run_module(trading_resume, resume(titan, 1, stages=STAGES))
    assert result["failed"] and "somebody halted trading again" in result["msg"] and not titan.trading
    assert _latch.read(str(titan.latch))["reason"] == "an operator"  # type: ignore[index]


@pytest.mark.parametrize(
    "stages", [[{"mode": "observe", "seconds": 1}], [{"mode": "full"}, {"mode": "observe"}], [{"mode": "some"}], [{"mode": "full", "seconds": -1}]]
)
def test_steps_that_make_no_sense(titan: Titan, run_module: Any, stages: list[dict[str, Any]]) -> None:
    _latch.fasten(str(titan.latch), "x", "r1", 1.0)
    assert run_module(trading_resume, resume(titan, 1, stages=stages))["failed"] and titan.calls == [] and titan.latch.exists()


def test_without_a_latch_nothing_bounds_the_services(titan: Titan, run_module: Any) -> None:
    titan.trading = False
    result = run_module(trading_resume, resume(titan, 1, stages=STAGES))
    assert result["failed"] and "no halt latch" in result["msg"] and titan.calls == []


# --- by hand, and one exchange -----------------------------------------------------------------------------------------


def test_trading_waits_for_a_person(titan: Titan, lease: None, run_module: Any) -> None:
    titan.trading = False
    _latch.fasten(str(titan.latch), "x", "r1", 1.0)
    result = run_module(trading_resume, resume(titan, 1, mode="manual"))
    assert result["titan_dr"]["trading"] == "awaiting resume" and "playbooks/resume.yml" in result["titan_dr"]["notes"][-1]
    assert titan.latch.exists() and titan.calls == [] and closed() == ("closed", "recovered")
    assert recovered() == {"environment_id": "lab", "run_id": "r1", "trading": "awaiting resume"}


def test_waiting_needs_the_same_gates_and_a_strict_latch(titan: Titan, process: Any, lease: None, run_module: Any) -> None:
    titan.trading = False
    _latch.fasten(str(titan.latch), "x", "r1", 1.0)
    assert run_module(trading_resume, resume(titan, 1, mode="manual", gates=[]))["failed"] and recovered() is None
    _latch.loosen(str(titan.latch), 1, "reduce_only")
    assert run_module(trading_resume, resume(titan, 1, mode="manual"))["failed"] and recovered() is None
    assert "mode" not in _latch.read(str(titan.latch))  # type: ignore[operator]


def test_one_exchange_is_halted_and_resumed(titan: Titan, process: Any, run_module: Any) -> None:
    result = run_module(trading_halt, halt(titan, venues=["bybit"]))
    assert result["changed"] and result["halted_venues"] == ["bybit"] and not result["latched"] and not titan.latch.exists()
    assert result["titan_dr"]["gates"][0] == {"name": "halted:bybit", "verdict": "pass", "evidence": "the services list ['bybit'] as halted"}
    assert "trading" not in result["titan_dr"] and titan.trading, "elsewhere it goes on"
    assert not run_module(trading_halt, halt(titan, venues=["bybit"]))["changed"]
    again = run_module(trading_resume, resume(titan, 0, venues=["bybit"]))
    assert again["changed"] and again["titan_dr"]["trading"] == "resumed" and _latch.venues(str(titan.latch)) == []


def test_services_that_cannot_halt_one_exchange_are_halted(titan: Titan, process: Any, run_module: Any) -> None:
    titan.obeys = False
    result = run_module(trading_halt, halt(titan, venues=["bybit"]))
    assert result["latched"] and result["titan_dr"]["trading"] == "halted" and "all trading is halted" in result["titan_dr"]["notes"][0]


def test_a_resume_releases_what_was_halted_alone_but_for_what_is_named(titan: Titan, run_module: Any) -> None:
    titan.trading = False
    _latch.fasten(str(titan.latch), "x", "r1", 1.0)
    for name in ("binance", "bybit"):
        _latch.fasten_venue(str(titan.latch), name, "down", "r1", 1.0)
    assert not run_module(trading_resume, resume(titan, 1, keep_halted=["bybit"]))["failed"] and _latch.venues(str(titan.latch)) == ["bybit"]


def test_an_operator_halts_anew(titan: Titan, process: Any, run_module: Any) -> None:
    run_module(trading_halt, halt(titan))
    assert run_module(trading_halt, halt(titan))["generation"] == 1
    result = run_module(trading_halt, halt(titan, anew=True))
    assert result["changed"] and result["generation"] == 2
    stale = run_module(trading_resume, resume(titan, 1))
    assert stale["failed"] and "somebody halted trading again" in stale["msg"] and titan.latch.exists()


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
    path = Path(_state.STATE_DIR) / "recovered.json"
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


@pytest.mark.parametrize("reconciled", [True, False])
def test_trading_that_goes_on_already_ends_it_too(titan: Titan, lease: None, run_module: Any, reconciled: bool) -> None:
    """As a run leaves it that died right after its resume: who closes it has validated, and reconciles no books that are being written."""
    gates = [gate for gate in resume(titan, 1)["gates"] if reconciled or "of" not in gate]
    result = run_module(trading_resume, resume(titan, 1, gates=gates))
    assert result["changed"] is False and recovered() and closed() == ("closed", "recovered")


def test_what_does_not_trade_needs_its_reconciliation(titan: Titan, lease: None, run_module: Any) -> None:
    titan.trading = False
    gates = [gate for gate in resume(titan, 1)["gates"] if "of" not in gate]
    assert "nothing was reconciled" in run_module(trading_resume, resume(titan, 1, gates=gates))["msg"] and recovered() is None


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


# --- a Titan on several servers: one that does not trade itself ----------------------------------------------------------


def aside(titan: Titan, generation: int, **more: Any) -> dict[str, Any]:
    now = time.time()
    return resume(titan, generation, **{"call": {}, "halt_call": {}, "judged_at": now, **more})


def test_a_halt_where_nothing_trades(titan: Titan, process: Any, systemctl: list[list[str]], run_module: Any) -> None:
    result = run_module(trading_halt, halt(titan, call={}))
    assert not result["failed"] and result["latched"] and titan.latch.exists() and process.poll() is not None and titan.calls == []
    assert [rung["rung"] for rung in result["titan_dr"]["halt"]["rungs"]] == ["stop"] and systemctl == [["systemctl", "stop", "pm2-test"]]
    assert result["titan_dr"]["gates"][0]["verdict"] == "pass" and "trading" not in result["titan_dr"]


def test_a_halt_of_the_server_of_redis(titan: Titan, run_module: Any) -> None:
    began = time.monotonic()
    result = run_module(trading_halt, halt(titan, call={}, user="nobody-by-this-name"))
    assert not result["failed"] and titan.latch.exists() and "no process of user" in result["titan_dr"]["gates"][0]["evidence"]
    assert time.monotonic() - began < 5 and "trading" not in result["titan_dr"]


def test_a_halt_there_that_cannot_be_proven(titan: Titan, process: Any, run_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(_halt.os, "kill", lambda pid, number: None)
        result = run_module(trading_halt, halt(titan, call={}, stop_timeout=0.3))
    assert result["failed"] and result["titan_dr"]["gates"][0]["verdict"] == "fail" and titan.latch.exists()


def test_with_exchanges_trading_is_there_without_a_call(titan: Titan, process: Any, run_module: Any) -> None:
    exchange = {"name": "binance", "kind": "binance", "keys": {"file": "/nonexistent"}}
    assert run_module(trading_halt, halt(titan, call={}, exchanges=[exchange]))["titan_dr"]["trading"] == "halted"


def test_one_exchange_alone_cannot_be_halted_there(titan: Titan, process: Any, run_module: Any) -> None:
    result = run_module(trading_halt, halt(titan, call={}, venues=["bybit"]))
    assert result["latched"] and process.poll() is not None and "all trading is halted" in result["titan_dr"]["notes"][0]


def test_services_that_do_not_run_are_not_asked_for_long(titan: Titan, process: Any, run_module: Any) -> None:
    call = {"url": "http://127.0.0.1:1/halt", "confirm": {"url": "http://127.0.0.1:1/trading", "expect": {"trading": [False]}}}
    result = run_module(trading_halt, halt(titan, call=call, app_timeout=30))
    first = result["titan_dr"]["halt"]["rungs"][0]
    assert (first["rung"], first["verdict"]) == ("app", "fail") and 0.2 <= first["seconds"] < 3 and "nobody listens" in first["evidence"]
    assert process.poll() is not None and not result["failed"]


def test_its_latch_is_taken_away_after_the_resume(titan: Titan, lease: None, run_module: Any) -> None:
    _latch.fasten(str(titan.latch), "x", "r1", 1.0)
    _latch.fasten_venue(str(titan.latch), "bybit", "down", "r1", 1.0)
    result = run_module(trading_resume, aside(titan, 1, keep_halted=["bybit"]))
    assert result["changed"] and not titan.latch.exists() and titan.calls == [] and _latch.venues(str(titan.latch)) == ["bybit"]
    assert "trading" not in result["titan_dr"] and result["titan_dr"]["gates"][0]["verdict"] == "pass"
    assert recovered() == {"environment_id": "lab", "run_id": "r1"} and closed() == ("closed", "recovered")


def test_gates_that_were_fresh_when_trading_resumed_are_fresh_enough(titan: Titan, run_module: Any) -> None:
    _latch.fasten(str(titan.latch), "x", "r1", 1.0)
    then = time.time() - 300
    gates = [{"name": "disk", "verdict": "pass", "at": then, "host": "data"}, {"name": "reconcile_binance", "verdict": "pass", "at": then, "of": "reconcile"}]
    assert "old" in run_module(trading_resume, aside(titan, 1, gates=gates, hosts=["data"]))["msg"] and titan.latch.exists()
    assert run_module(trading_resume, aside(titan, 1, gates=gates, hosts=["data"], judged_at=then + 5))["judged_at"] == then + 5
    assert not titan.latch.exists()


@pytest.mark.parametrize("fault", ["nobody resumed", "gate", "host", "generation", "no gates"])
def test_its_latch_stays(titan: Titan, lease: None, run_module: Any, fault: str) -> None:
    _latch.fasten(str(titan.latch), "x", "r1", 1.0)
    more: dict[str, Any] = {
        "nobody resumed": {"judged_at": 0},
        "gate": {"gates": [*resume(titan, 1)["gates"], {"name": "disk", "verdict": "unknown", "at": time.time(), "host": "data"}]},
        "host": {"hosts": ["data"]},
        "generation": {"generation": 7},
        "no gates": {"gates": []},
    }[fault]
    result = run_module(trading_resume, aside(titan, 1, **more) if fault != "generation" else aside(titan, 7))
    said = {"nobody resumed": "no server that trades", "gate": "disk of data is unknown", "host": "nothing was validated on data"}.get(fault, "")
    assert result["failed"] and said in result["msg"] and titan.latch.exists() and recovered() is None and closed() == ("held", "")
    assert result["titan_dr"]["gates"][0] == {"name": "resumed", "verdict": "fail", "evidence": result["titan_dr"]["gates"][0]["evidence"]}
    assert "trading" not in result["titan_dr"]


def test_a_server_that_was_not_validated_keeps_trading_halted(titan: Titan, run_module: Any) -> None:
    titan.trading = False
    _latch.fasten(str(titan.latch), "x", "r1", 1.0)
    gates = [{**gate, "host": "core"} for gate in resume(titan, 1)["gates"]]
    result = run_module(trading_resume, resume(titan, 1, gates=gates, hosts=["core", "phases"]))
    assert result["failed"] and "nothing was validated on phases" in result["msg"] and titan.calls == [] and titan.latch.exists()
    result = run_module(trading_resume, resume(titan, 1, gates=gates, hosts=["core"]))
    assert titan.trading and abs(time.time() - result["judged_at"]) < 10


def test_it_waits_for_a_person_too(titan: Titan, lease: None, run_module: Any) -> None:
    assert "no halt latch" in run_module(trading_resume, aside(titan, 1, mode="manual"))["msg"] and recovered() is None
    _latch.fasten(str(titan.latch), "x", "r1", 1.0)
    assert run_module(trading_resume, aside(titan, 7, mode="manual"))["failed"] and recovered() is None
    result = run_module(trading_resume, aside(titan, 1, mode="manual"))
    assert titan.latch.exists() and "trading" not in result["titan_dr"] and closed() == ("closed", "recovered")
    assert recovered() == {"environment_id": "lab", "run_id": "r1", "trading": "awaiting resume"}


def test_a_latch_that_is_gone_already_and_one_exchange(titan: Titan, run_module: Any) -> None:
    assert run_module(trading_resume, aside(titan, -1))["changed"] is False, "a run that broke off after it"
    _latch.fasten_venue(str(titan.latch), "bybit", "down", "r1", 1.0)
    assert run_module(trading_resume, aside(titan, 0, venues=["bybit"]))["changed"] and _latch.venues(str(titan.latch)) == []


def test_only_the_health_of_what_is_here_is_watched(titan: Titan, run_module: Any) -> None:
    titan.trading = False
    _latch.fasten(str(titan.latch), "x", "r1", 1.0)
    port = int(titan.service.url.rsplit(":", 1)[1])
    brain = {"name": "brain", "kind": "pm2", "server": "core", "port": port, "health": {"path": "/health"}}
    phase = {**brain, "name": "phase", "server": "phases.invalid"}
    result = run_module(trading_resume, resume(titan, 1, stages=STAGES[2:], components=[brain, phase], server="core"))
    assert not result["failed"], result["msg"]
    _latch.fasten(str(titan.latch), "x", "r1", 1.0)
    titan.well = False
    assert "brain is fail" in run_module(trading_resume, resume(titan, 2, stages=STAGES[2:], components=[brain, phase], server="core"))["msg"]
