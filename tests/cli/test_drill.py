# SPDX-License-Identifier: GPL-3.0-or-later
"""The drill's own logic, with the lab and the playbooks replaced: what it must report when things go wrong."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from titan_dr import drill, recovery, report, runner
from titan_dr.cancel import Cancellation
from titan_dr.display import Display
from titan_dr.events import Outcome
from titan_dr.lab import LabError, LabState, faults, oracle

SCENARIO = "complete_system_failure"
ORDER = {"venue": "binance", "clientOrderId": "c1"}


@pytest.mark.parametrize(
    ("received", "resumed", "verdict", "count"),
    [
        ([90, 95, 210], 200.0, "pass", 0),
        ([90, 150, 199, 210], 200.0, "fail", 2),
        ([90, 150], None, "fail", 1),
        ([90, 100], 200.0, "fail", 1),
        ([], 200.0, "unknown", None),
        ([210], 200.0, "unknown", None),
    ],
)
def test_orders_while_halted(received: list[float], resumed: float | None, verdict: str, count: int | None) -> None:
    orders = [{**ORDER, "received": at} for at in received]
    assert drill.orders_while_halted(orders, 100.0, resumed)[::2] == (verdict, count)


@pytest.mark.parametrize(
    ("received", "verdict", "count"),
    [
        ([("binance", 90), ("bybit", 91), ("binance", 210)], "pass", 0),
        ([("binance", 90), ("bybit", 91), ("bybit", 210)], "fail", 1),
        ([("binance", 90), ("bybit", 91), ("binance", 150)], "fail", 1),
        # it never traded there, so its silence now says nothing
        ([("binance", 90), ("binance", 210)], "unknown", None),
    ],
)
def test_an_exchange_that_stays_halted_while_the_other_resumes(received: list[tuple[str, float]], verdict: str, count: int | None) -> None:
    orders = [{**ORDER, "venue": venue, "received": at} for venue, at in received]
    found = drill.orders_while_halted(orders, 100.0, 200.0, ["bybit"])
    assert (found[::2] == (verdict, count) and "bybit" in found[1]) or verdict == "fail"


def test_a_resume_counts_from_its_call_and_a_halt_from_its_proof(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    said = ((50.0, "halted"), (60.0, "halted"), (100.0, "resumed"))
    rows = [{"event": "task", "at": at, "duration_s": 3.0, "titan_dr": {"trading": state}} for at, state in said]
    ledger.write_text("".join(json.dumps(row) + "\n" for row in [{"event": "task", "at": 40}, *rows]))
    assert (drill.trading_time(ledger, "halted"), drill.trading_time(ledger, "resumed")) == (50.0, 97.0)
    ledger.write_text(json.dumps({"event": "task", "at": 40}) + "\n")
    assert drill.trading_time(ledger, "resumed") is None


class Stage:
    """Stands for lab, writer, playbooks and exchanges, and keeps a list of what was asked of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.done: list[str] = []
        self.contents = {"titan:seed:order:1": "as written"}
        self.kept = "dump.rdb 9 bytes, "
        self.ledger = [("halted", 2.0), ("resumed", 9e9)]
        self.run_dir = tmp_path / "runs" / "r1"
        self.orders: Any = [{**ORDER, "received": 1.0}]
        self.loss = oracle.Loss(100, 90, 10, 0, 0, 0, 1.0, 1.0, 2.0, [])
        self.trouble: dict[str, Callable[[], None]] = {}
        self.takes_s = 0.0
        host: Any = {"name": "titan-lab-x-titan", "address": "10.0.0.1", "image": "i"}
        empty: dict[str, Any] = {}
        hosts = {"titan": host, "replacement": host}
        self.state = LabState("x", "guide", "n", "s", empty, hosts, {"user": "root"}, {}, {}, {}, "p", "c", {}, "http://exchange", ready=True)
        stage = self

        class Tunnel:
            host, port = "127.0.0.1", 1

            def __init__(self, *_: Any) -> None: ...
            def __enter__(self) -> Tunnel:
                return self

            def __exit__(self, *_: Any) -> None: ...
            def close(self) -> None:
                stage.step("tunnel closed")

        class Writer(Tunnel):
            def start(self) -> None: ...
            def wait_acknowledged(self, *_: Any, **__: Any) -> None: ...
            def stop(self) -> None:
                stage.step("writer stopped")

        monkeypatch.setattr(drill, "find_state", lambda: None)
        monkeypatch.setattr(drill, "WATCH_S", 0.0)
        monkeypatch.setattr(drill.lab, "up", lambda *_: self.step("up", self.state))
        monkeypatch.setattr(drill.lab, "down", lambda *_: self.step("down"))
        monkeypatch.setattr(drill.lab, "ssh_options", lambda state: [])
        monkeypatch.setattr(drill.lab, "exec", lambda *_, **__: self.step("look", SimpleNamespace(stdout=self.kept, stderr="No such file")))
        monkeypatch.setattr(faults, "FAULTS", {name: tuple(self.fault(one) for one in found) for name, found in faults.FAULTS.items()})
        monkeypatch.setattr(oracle, "Tunnel", Tunnel)
        monkeypatch.setattr(oracle, "Writer", Writer)
        monkeypatch.setattr(oracle, "seed", lambda client, keys: self.step("seed", oracle.Seeded(keys, {}, 1, 1.0)))
        monkeypatch.setattr(oracle, "read_seed", lambda *_: dict(self.contents))
        monkeypatch.setattr(oracle, "count_loss", lambda *_: self.step("count", self.loss))
        monkeypatch.setattr(recovery, "job", lambda request, name, run_dir: name)
        monkeypatch.setattr(runner, "run", lambda job, on_event, cancellation: self.step(f"run {job}", Outcome(0, False, "successful")))
        monkeypatch.setattr(recovery, "recover", self.recover)
        monkeypatch.setattr(drill.urllib.request, "urlopen", lambda *_, **__: StringIO(json.dumps({"orders": self.orders})))
        self.recovered: dict[str, Any] = {"result": "recovered"}

    def fault(self, real: faults.Fault) -> faults.Fault:
        """The same, without doing harm."""
        steps: dict[str, Any] = {name: partial(self.step, name) for name in ("prepare", "cure", *(["heal"] if real.heal else []))}
        strike = partial(self.step, f"strike {real.name}", {"effect": "gone"})
        prove = partial(self.step, "gone", {"podman": "no such container"})
        return replace(real, strike=strike, prove=prove, heal_after_s=min(real.heal_after_s, 0.01), **steps)

    def step(self, name: str, result: Any = None) -> Any:
        self.done.append(name)
        if name in self.trouble:
            self.trouble[name]()
        return result

    def recover(self, request: recovery.Request, *_: Any) -> dict[str, Any]:
        self.step("recover")
        time.sleep(self.takes_s)
        assert request.kind == "drill" and request.incident_at is not None
        self.told = request.extra_vars
        rows = [{"event": "task", "at": at, "titan_dr": {"trading": state}} for state, at in self.ledger]
        (self.run_dir / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = report.empty("r1", "drill", SCENARIO, {"rto_s": 900, "rpo_s": 300}, "recovered", "All gates passed.")
        found["rto"]["met"] = found["rpo"]["met"] = True
        found["restore_point"] = {"id": "rp", "taken_at": 5.0}
        return {**found, **self.recovered}

    def run(self, scenario: str = SCENARIO, **options: Any) -> dict[str, Any]:
        with Cancellation() as cancellation:
            returned = drill.run(drill.Options(scenario, **options), self.run_dir, Display(Console(file=StringIO())), cancellation)
        on_disk = report.load(self.run_dir / "report.json")
        assert on_disk["result"] == returned["result"]
        return on_disk


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stage:
    return Stage(monkeypatch, tmp_path)


COURSE = ["up", "seed", "prepare", "run backup", "strike destroyed", "writer stopped", "tunnel closed", "gone", "recover", "count", "down"]


def test_the_course_of_a_drill(stage: Stage) -> None:
    found = stage.run(keys=5)
    assert stage.done == COURSE
    assert (found["result"], report.exit_code(found)) == ("recovered", 0)
    assert found["rpo"]["lost_acked_writes"] == 10 and found["orders_while_halted"] == 0
    assert found["drill"]["disaster"] == {"effect": "gone", "podman": "no such container"}
    assert {gate["name"]: gate["verdict"] for gate in found["gates"]} == dict.fromkeys(("acknowledged_writes", "seeded_data", "no_orders_while_halted"), "pass")


CORRUPTION = "database_corruption"


def test_the_course_of_a_drill_in_place(stage: Stage) -> None:
    found = stage.run(CORRUPTION)
    assert stage.done[4:6] == ["strike bitflip", "writer stopped"] and "destroy" not in " ".join(stage.done)
    assert found["drill"]["fault"] == "bitflip" and report.exit_code(found) == 0
    assert found["gates"][2] == {"name": "old_data_kept", "verdict": "pass", "evidence": "/var/lib/redis.before-r1: dump.rdb 9 bytes"}


def test_the_fault_that_was_asked_for(stage: Stage) -> None:
    assert stage.run(CORRUPTION, fault="hung")["drill"]["fault"] == "hung"
    assert "strike hung" in stage.done


def test_what_an_operator_would_say_besides(stage: Stage) -> None:
    stage.run(CORRUPTION, fault="keys-deleted", extra_vars={"redis_restore_to": "5", "own": 1})
    assert stage.told == {"database_corruption_confirm": True, "redis_restore_to": "5", "own": 1}


def test_corrupt_data_that_is_not_kept(stage: Stage) -> None:
    stage.kept = ""
    found = stage.run(CORRUPTION)
    assert found["result"] == "failed" and "old_data_kept (fail)" in found["message"]


@pytest.mark.parametrize("contents", [{}, {"titan:seed:order:1": "another value"}, {"titan:seed:order:1": "as written", "titan:seed:order:2": "new"}])
def test_data_that_is_not_as_it_was(stage: Stage, monkeypatch: pytest.MonkeyPatch, contents: dict[str, str]) -> None:
    answers = [stage.contents, contents]
    monkeypatch.setattr(oracle, "read_seed", lambda *_: answers.pop(0))
    found = stage.run()
    assert found["result"] == "failed" and "seeded_data (fail)" in found["message"]


def test_a_titan_that_trades_on_is_judged_from_its_halt(stage: Stage) -> None:
    now = time.time()
    stage.orders = [{**ORDER, "received": at} for at in (1.0, now + 40, now + 60)]
    stage.ledger = [("halted", now + 50), ("resumed", now + 70)]
    found = stage.run(CORRUPTION, fault="manifest-missing")
    assert (found["orders_while_halted"], found["drill"]["orders_before_the_halt"]) == (1, 1)
    stage.done, stage.ledger = [], [("halted", now + 65), ("resumed", now + 70)]
    found = stage.run(CORRUPTION, fault="manifest-missing")
    assert (found["result"], found["orders_while_halted"], found["drill"]["orders_before_the_halt"]) == ("recovered", 0, 2)
    assert stage.run(CORRUPTION, fault="hung")["orders_while_halted"] == 2


def test_a_titan_that_was_never_halted_proves_nothing(stage: Stage) -> None:
    stage.ledger = [("resumed", 9e9)]
    found = stage.run(CORRUPTION, fault="manifest-missing")
    assert found["gates"][-1]["verdict"] == "unknown" and "names no halt" in found["gates"][-1]["evidence"]


def test_keep(stage: Stage) -> None:
    stage.run(keep=True)
    assert "down" not in stage.done


@pytest.mark.parametrize("change", [{"lost_before_restore_point": 1}, {"holes": [(1, 2)]}, {"phantom": 1}])
def test_a_loss_that_must_not_be(stage: Stage, change: dict[str, Any]) -> None:
    stage.loss = oracle.Loss(**{**stage.loss.__dict__, **change})
    found = stage.run()
    assert (found["result"], report.exit_code(found)) == ("failed", 1)


def test_orders_during_the_halt(stage: Stage) -> None:
    stage.orders = [{**ORDER, "received": 1.0}, {**ORDER, "received": 8e9}]
    found = stage.run()
    assert (found["result"], found["orders_while_halted"]) == ("failed", 1)


@pytest.mark.parametrize("orders", [[], [{"venue": "binance"}], None, "<html>"])
def test_a_log_that_says_nothing_is_no_proof(stage: Stage, orders: Any) -> None:
    stage.orders = orders
    found = stage.run()
    assert found["result"] == "failed" and found["gates"][-1]["verdict"] == "unknown"


def test_a_restore_point_without_a_time_proves_no_loss(stage: Stage) -> None:
    stage.recovered = {"result": "recovered", "restore_point": {}}
    found = stage.run()
    assert found["result"] == "failed" and found["rpo"]["lost_acked_writes"] is None


@pytest.mark.parametrize("place", ["up", "seed", "prepare", "run backup", "strike destroyed", "gone", "recover"])
def test_trouble_is_reported_and_the_lab_taken_down(stage: Stage, place: str) -> None:
    def trouble() -> None:
        raise LabError(f"no {place}")

    stage.trouble[place] = trouble
    found = stage.run()
    assert (found["result"], report.exit_code(found)) == ("failed", 1)
    assert f"no {place}" in found["message"] and stage.done[-1] == "down"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", [name for name in COURSE if name not in ("writer stopped", "tunnel closed", "down")])
def test_ctrl_c_anywhere(stage: Stage, place: str, signum: int) -> None:
    stage.trouble[place] = lambda: os.kill(os.getpid(), signum)
    found = stage.run()
    assert (found["result"], report.exit_code(found)) == ("cancelled", 5)
    assert signal.Signals(signum).name in found["message"] and stage.done[-1] == "down"


def test_ctrl_c_while_cleaning_up_changes_nothing(stage: Stage) -> None:
    stage.trouble["down"] = lambda: os.kill(os.getpid(), signal.SIGINT)
    assert stage.run()["result"] == "recovered"


def test_a_lab_that_is_up_already_is_left_alone(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drill, "find_state", lambda: stage.state)
    found = stage.run()
    assert found["result"] == "failed" and "lab down" in found["message"] and stage.done == []


def test_check_counts_nothing(stage: Stage) -> None:
    stage.recovered = {"kind": "check", "result": "recovered"}
    found = stage.run(check=True)
    assert "count" not in stage.done and report.exit_code(found) == 0


def test_a_failed_recovery_is_still_watched_for_orders(stage: Stage) -> None:
    stage.recovered = {"result": "failed", "message": "gates"}
    found = stage.run()
    assert "count" not in stage.done and found["gates"][-1]["name"] == "no_orders_while_halted" and found["message"] == "gates"


PARTITION = "network_partition"
NOTHING_LOST = oracle.Loss(100, 100, 0, 0, 0, 0, None, 1.0, 0.0, [])


@pytest.fixture
def cut_off(stage: Stage) -> Stage:
    """A server whose data nothing happens to."""
    stage.loss = NOTHING_LOST
    now = time.time()
    stage.orders = [{"venue": venue, "clientOrderId": "c", "received": at} for venue in ("binance", "bybit") for at in (1.0, now + 1)]
    stage.ledger = [("halted", now + 2), ("resumed", now + 9)]
    return stage


def test_without_a_restore_nothing_may_be_lost(cut_off: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(oracle, "count_loss", lambda *what: [asked.append(what), cut_off.loss][1])
    cut_off.recovered = {"result": "recovered", "restore_point": {}, "rpo": {"target_s": 0, "actual_s": None, "basis": None, "met": None}}
    found = cut_off.run(PARTITION)
    assert (found["result"], report.exit_code(found), found["rpo"]["met"]) == ("recovered", 0, True), found
    # up to the disaster, and no old data is looked for
    assert asked[0][2] == asked[0][3] and "old_data_kept" not in {gate["name"] for gate in found["gates"]}
    assert "cure" not in cut_off.done and found["drill"]["expected"] == "recovered"
    cut_off.loss = replace(NOTHING_LOST, present=99, lost=1, lost_seconds=0.1)
    assert "acknowledged_writes (fail)" in cut_off.run(PARTITION)["message"]


def test_what_heals_outside(cut_off: Stage) -> None:
    cut_off.takes_s = 0.3
    found = cut_off.run(PARTITION, fault="link-down")
    assert (found["result"], cut_off.done.count("heal")) == ("recovered", 1), found
    assert found["drill"]["healed_at"] < cut_off.ledger[1][1] and found["drill"]["heal_to_resumed_s"] > 5
    # a resume before that had not looked
    cut_off.ledger[1] = ("resumed", found["drill"]["healed_at"] - 60)
    assert "resumed_after_heal (fail)" in cut_off.run(PARTITION, fault="link-down")["message"]


def test_what_never_healed(cut_off: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "FAULTS", {PARTITION: tuple(replace(fault, heal_after_s=99.0) for fault in faults.FAULTS[PARTITION])})
    found = cut_off.run(PARTITION, fault="link-down")
    assert "heal" not in cut_off.done and "resumed_after_heal (fail)" in found["message"]


def test_a_heal_that_fails(cut_off: Stage) -> None:
    def trouble() -> None:
        raise LabError("no podman")

    cut_off.trouble["heal"], cut_off.takes_s = trouble, 0.3
    found = cut_off.run(PARTITION, fault="link-down")
    assert "resumed_after_heal (unknown)" in found["message"] and found["drill"]["heal_error"] == "no podman"


HALTED = {"result": "failed", "trading": "halted", "message": "Gates not passed: network (fail)"}
WHY = [{"name": "network", "verdict": "fail", "evidence": "binance: tls_untrusted"}]


def test_what_has_to_end_halted(cut_off: Stage) -> None:
    cut_off.ledger = cut_off.ledger[:1]
    cut_off.recovered = {**HALTED, "gates": WHY}
    found = cut_off.run(PARTITION, fault="tls-interception")
    assert (found["result"], report.exit_code(found)) == ("halted", 0), found
    assert "tls_untrusted" in found["message"] and HALTED["message"] in found["message"]
    assert cut_off.done[-2:] == ["cure", "down"], "an exchange that is well again must not see orders either"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"gates": []}, "does not name the cause"),
        ({"trading": None}, "trading is unknown"),
        ({"result": "recovered", "trading": "resumed"}, "calls itself recovered"),
    ],
)
def test_what_has_to_end_halted_and_does_not(cut_off: Stage, change: dict[str, Any], word: str) -> None:
    cut_off.recovered = {**HALTED, "gates": WHY, **change}
    found = cut_off.run(PARTITION, fault="tls-interception")
    assert (found["result"], report.exit_code(found)) == ("failed", 1), found
    assert word in next(gate["evidence"] for gate in found["gates"] if gate["name"] == "stays_halted")


def test_halted_with_an_order_afterwards(cut_off: Stage) -> None:
    cut_off.ledger = [("halted", 2.0)]
    cut_off.recovered = {**HALTED, "gates": WHY}
    cut_off.orders = [{**ORDER, "received": at} for at in (1.0, time.time() - 0.1)]
    found = cut_off.run(PARTITION, fault="tls-interception")
    assert (found["result"], report.exit_code(found)) == ("failed", 1)


def test_a_refusal_is_no_halt(cut_off: Stage) -> None:
    cut_off.recovered = {**HALTED, "result": "refused", "trading": None}
    assert cut_off.run(PARTITION, fault="tls-interception")["result"] == "refused"


def test_one_exchange_stays_halted(cut_off: Stage) -> None:
    assert cut_off.run(PARTITION, fault="venue-down")["result"] == "recovered"
    assert cut_off.done[-2:] == ["cure", "down"]
    now = time.time()
    cut_off.ledger = [("halted", now - 50), ("resumed", now - 40)]
    cut_off.orders = [{**order, "received": at} for order in cut_off.orders[::2] for at in (1.0, now - 10) if order["venue"] == "binance" or at == 1.0]
    assert cut_off.run(PARTITION, fault="venue-down")["orders_while_halted"] == 0
    cut_off.orders.append({"venue": "bybit", "clientOrderId": "late", "received": now - 10})
    assert "no_orders_while_halted (fail)" in cut_off.run(PARTITION, fault="venue-down")["message"]
