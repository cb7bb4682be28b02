# SPDX-License-Identifier: GPL-3.0-or-later
"""What halts trading and what resumes it, on real hosts: a halt that is dead or lies, one that must outlive a reboot, exchanges that do not tell the truth,
somebody else who trades with the same keys, and a person who decides.

The tests run in the order of this file, on one lab. What the exchanges themselves got is the witness.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lab_runs import Run, refused, sh, titan_with_restore_points

from titan_dr import lab
from titan_dr.lab import hosts
from titan_dr.lab.faults import network, trading
from titan_dr.lab.state import LabState

LATCH = "/var/lib/titan-dr/halt"
SHORT = [{"mode": "observe", "seconds": 1}, {"mode": "reduce_only", "seconds": 1}, {"mode": "full", "seconds": 1}]
QUICK = ("-e", json.dumps({"validate_window": 1, "trading_halt_resume_window": 1, "reconcile_timeout": 10, "titan_resume_stages": SHORT}))
REASON = "bybit is known to be wrong, checked with its desk"
ANSWER = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:3000/health/trading', timeout=5).read().decode())"

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabState]:
    with titan_with_restore_points(tmp_path_factory.mktemp("lab"), 1) as raised:
        yield raised


def told() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(sh("titan", f'python3 -c "{ANSWER}"'))
    return found


def latch() -> dict[str, Any] | None:
    text = sh("titan", f"cat {LATCH} 2>/dev/null || echo null")
    found: dict[str, Any] | None = json.loads(text)
    return found


def orders(state: LabState, since: float) -> list[dict[str, Any]]:
    """What the exchanges' own log says that this Titan sent them."""
    with urllib.request.urlopen(f"{state.exchange_control.rstrip('/')}/log", timeout=10) as reply:
        return [order for order in json.load(reply)["orders"] if float(order["received"]) >= since]


def now(state: LabState) -> float:
    with urllib.request.urlopen(f"{state.exchange_control.rstrip('/')}/state", timeout=10) as reply:
        return float(json.load(reply)["now"])


def quiet(state: LabState, since: float, seconds: float = 3.0) -> None:
    """In twice the time that Titan takes for an order there is none."""
    time.sleep(max(0.0, since + seconds - now(state)))
    assert orders(state, since) == []


def until(what: str, check: Any, seconds: float = 30) -> Any:
    end = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.2)
    return found


def rungs(output: str) -> list[tuple[str, str]]:
    """What the halt said of itself, from the output of ansible-playbook -v."""
    line = next(line for line in output.splitlines() if '"rungs"' in line)
    found = json.loads(line[line.index("{") :])["titan_dr"]
    assert found["trading"] == "halted"
    return [(rung["rung"], rung["verdict"]) for rung in found["halt"]["rungs"]]


def services_are_up() -> None:
    until("the services are up", lambda: lab.exec("titan", ["python3", "-c", ANSWER], check=False).stdout.strip(), 60)


def halt(folder: Path) -> Run:
    run = Run(folder, "halt", "-v")
    assert run.rc == 0, run.output
    return run


def resume(tmp_path: Path, *arguments: str) -> Run:
    return Run(tmp_path / "resume", "resume", *QUICK, *arguments)


def test_an_operator_halts_and_a_reboot_keeps_it(state: LabState, tmp_path: Path) -> None:
    until("it trades", lambda: orders(state, now(state) - 5))
    run = halt(tmp_path / "halt")
    halted = now(state)
    assert rungs(run.output) == [("app", "pass")], run.output
    assert "binance has no newer order; bybit has no newer order" in run.output
    before = latch()
    hosts.engine_of(state).run("restart", state.host("titan")["name"], timeout=60)
    services_are_up()
    assert told()["status"] == "halted" and latch() == before
    quiet(state, now(state))
    assert orders(state, halted) == []


WORDS = [
    ("positions_html", "positions_error"),
    *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (("positions_empty", "positions_partial"), ("wrong_position", ""))),
]


@pytest.mark.parametrize(("binance", "bybit"), WORDS)
def test_what_the_exchanges_do_not_tell_is_never_resumed(state: LabState, tmp_path: Path, binance: str, bybit: str) -> None:
    """H06."""
    since = now(state)
    for venue, fault in (("binance", binance), ("bybit", bybit)):
        network.exchanges({fault: True} if fault else {}, [venue])
    try:
        run = resume(tmp_path)
        assert run.rc != 0 and (run.report["result"], run.report["trading"]) == ("failed", "halted"), run.output
        assert run.gate("reconcile_binance")["verdict"] != "pass"
        assert not bybit or run.gate("reconcile_bybit")["verdict"] != "pass"
    finally:
        network.exchanges({})
    latched = latch()
    assert latched and "mode" not in latched and orders(state, since) == []


def test_a_person_resumes_step_by_step(state: LabState, tmp_path: Path) -> None:
    halted = now(state)
    run = resume(tmp_path)
    assert run.rc == 0 and (run.report["result"], run.report["trading"]) == ("recovered", "resumed"), run.output
    assert {"resume:observe", "resume:reduce_only", "resume:full"} <= set(run.report["timings"])
    assert latch() is None and told()["status"] == "operational"
    rows = [json.loads(line) for line in (run.folder / "run" / "ledger.jsonl").read_text().splitlines()]
    ended = next(row["at"] for row in rows if row.get("titan_dr", {}).get("trading") == "resumed")
    free = ended - run.report["timings"]["resume:full"] - run.report["timings"]["resume:reduce_only"] - 1
    assert [order for order in orders(state, halted) if float(order["received"]) < free] == []
    until("it trades", lambda: orders(state, now(state) - 3))
    refused(Run(tmp_path / "again", "resume", *QUICK), "nothing to resume")


def struck_while_it_resumes(tmp_path: Path, seconds: float, strike: Callable[[], object]) -> str:
    """Why it halted again."""
    halt(tmp_path / "halt")
    generation = (latch() or {})["generation"]
    struck: list[float] = []

    def wait_and_strike() -> None:
        until("it may only reduce", lambda: (latch() or {}).get("mode") == "reduce_only", 120)
        struck.append(time.time())
        strike()

    thread = threading.Thread(target=wait_and_strike)
    thread.start()
    stages = {"titan_resume_stages": [{"mode": "reduce_only", "seconds": seconds}, {"mode": "full", "seconds": 0}]}
    run = resume(tmp_path, "-e", json.dumps(stages))
    thread.join(120)
    assert struck and run.rc != 0 and (run.report["result"], run.report["trading"]) == ("failed", "halted"), run.output
    latched = latch()
    assert latched and latched["generation"] > generation and "mode" not in latched
    assert told()["status"] == "halted"
    return str(run.report["message"])


def test_a_service_that_is_started_anew_while_it_resumes_halts_it_again(state: LabState, tmp_path: Path) -> None:
    """It is well again before it is asked twice, or, on a busy machine, not."""
    again = "su -s /bin/sh titan -c 'PM2_HOME=/opt/titan/.pm2 /opt/pm2/node_modules/pm2/bin/pm2 restart titan-phase2'"
    message = struck_while_it_resumes(tmp_path, 4, lambda: sh("titan", again))
    assert ("titan-phase2 is fail" in message and "1 restarts within" in message) or "titan-phase2 is unknown" in message, message


def test_somebody_else_who_trades_while_it_resumes_halts_it_again(state: LabState, tmp_path: Path) -> None:
    """H09, as far as our keys are in other hands."""
    message = struck_while_it_resumes(tmp_path, 12, lambda: trading.foreign_order("bybit", "buy", "0.001", "x-somebody-else"))
    assert "x-somebody-else" in message and "not in our book" in message, message


def test_a_person_decides_against_the_reconciliation(state: LabState, tmp_path: Path) -> None:
    """What came from somebody else is in no book: it stays halted until somebody says why not."""
    refused(Run(tmp_path / "short", "resume", *QUICK, "-e", "titan_resume_force_reason=because"), "15 characters")
    forced = resume(tmp_path, "-e", json.dumps({"titan_resume_force_reason": REASON}))
    assert forced.rc == 4 and (forced.report["result"], forced.report["trading"]) == ("recovered", "resumed"), forced.output
    assert forced.report["forced"] == {"reason": REASON, "gates": ["reconcile_bybit"]} and "BY FORCE" in forced.report["message"]
    assert forced.gate("reconcile_bybit")["verdict"] != "pass"
    assert REASON in sh("titan", "cat /var/lib/titan-dr/journal.jsonl")
    assert told()["status"] == "operational"


def test_a_halt_that_lies_and_one_that_is_dead(state: LabState, tmp_path: Path) -> None:
    """H02: it says that it halted and goes on. H01: it answers nothing at all."""
    config = "/opt/titan/config/brain.config.json"
    lying = f'sed -i \'s/"role": "brain",/& "lyingHalt": true,/\' {config}'
    pid = "cat /opt/titan/.pm2/pids/titan-brain-*.pid || true"
    honest = sh("titan", f"cp -a {config} /root/brain.kept; {lying}; {pid}").strip()
    sh("titan", f"kill {honest}")
    until("PM2 starts the liar", lambda: sh("titan", pid).strip() not in ("", honest))
    since = now(state)
    until("it trades", lambda: orders(state, since))
    trading.foreign_order("binance", "buy", "0.002", "t-resting", type="limit", price="1000")
    run = halt(tmp_path / "lies")
    halted = now(state)
    assert rungs(run.output) == [("app", "fail"), ("stop", "pass"), ("cancel", "pass"), ("exchanges", "pass")], run.output
    assert "say that they halted" in run.output and "t-resting" in run.output
    quiet(state, halted)
    sh("titan", f"cp -a /root/brain.kept {config}; systemctl start pm2-titan")
    services_are_up()
    assert told()["status"] == "halted"
    sh("titan", "kill -STOP $(cat /opt/titan/.pm2/pids/titan-brain-*.pid)")
    run = halt(tmp_path / "dead")
    assert rungs(run.output)[:2] == [("app", "fail"), ("stop", "pass")], run.output
    assert sh("titan", "pgrep --uid titan || echo none") == "none\n"


@pytest.mark.slow
def test_a_recovery_that_waits_for_a_person(state: LabState, tmp_path: Path) -> None:
    """H04 too: the restore point was taken while trading was on."""
    since = now(state)
    told_so = {"titan_resume": "manual", "titan_resume_force_reason": REASON, "reconcile_required": False, "database_corruption_confirm": True}
    run = Run(tmp_path / "run", "database_corruption", *QUICK, "-e", json.dumps(told_so))
    assert (run.report["result"], run.report["trading"]) == ("recovered", "awaiting resume"), run.output
    assert "technical recovery" in run.report["rto"]["basis"] and run.report["rto"]["met"] is True
    latched = latch()
    assert latched and "mode" not in latched and told()["status"] == "halted"
    quiet(state, now(state))
    assert orders(state, since) == []
