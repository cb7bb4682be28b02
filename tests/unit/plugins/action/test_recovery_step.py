# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from tiny_playbooks import ARMED, PASSED, ROOT, SECRET, Playbooks, Ran, play, say

from ansible_collections.titan.disaster_recovery.plugins.action import recovery_step
from rdb_writer import rdb

COLLECTION = "titan.disaster_recovery."
# Nothing listens there.
DEAD = {"delegate_to": "dead", "vars": {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_ssh_retries": 0}}
HALTED = say({"trading": "halted"}, name="Halt")


class Steps:
    """Steps of our own: verifying a dump stands for any of them."""

    def __init__(self, playbooks: Playbooks) -> None:
        self.playbooks = playbooks
        self.dump = playbooks.away / "dump.rdb"
        self.dump.write_bytes(rdb())

    def step(self, name: str = "Step", **keywords: Any) -> dict[str, Any]:
        return {"name": name, f"{COLLECTION}redis_rdb_verify": {"path": str(self.dump)}, **keywords}

    def role(self, name: str, *tasks: dict[str, Any]) -> dict[str, Any]:
        return self.playbooks.role(name, *(tasks or [self.step(f"Step of {name}")]))

    def run(self, *tasks: dict[str, Any], since: float = 0, ends: float = 600, policy: str = "continue", phase: str = "", **how: Any) -> Ran:
        """One play, so many seconds after the incident and before its deadline."""
        now = time.time()
        variables = {
            "titan_dr_scenario": "complete_system_failure",
            "titan_dr_incident_at": "{{ lookup('ansible.builtin.env', 'TITAN_DR_INCIDENT_STARTED_AT') | float }}",
            "titan_dr_deadline": f"{{{{ {now + ends} | float }}}}",
            "titan_dr_run_id": "{{ lookup('ansible.builtin.env', 'TITAN_DR_RUN_ID') }}",
            "titan_dr_policy": policy,
            **({"titan_dr_phase": phase} if phase else {}),
            **how.pop("variables", {}),
        }
        one = {"name": "Recover", "hosts": "localhost", "gather_facts": False, "vars": variables, "tasks": [ARMED, *tasks], **how.pop("play", {})}
        return self.playbooks.run(one, TITAN_DR_INCIDENT_STARTED_AT=str(now - since), **how)


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    return Steps(Playbooks(tmp_path))


def started(ran: Ran) -> dict[str, str]:
    return {row["name"].split(" : ")[-1]: row["status"] for row in ran.rows if row["event"] == "task" and "Step" in row["name"]}


def test_every_module_that_works_on_servers_is_led_here() -> None:
    routed = yaml.safe_load((ROOT / "meta/runtime.yml").read_text())["plugin_routing"]["modules"]
    modules = {path.stem for path in (ROOT / "plugins/modules").glob("*.py")}
    # the first two run on the controller, the last has an action plugin of its own
    assert set(routed) == modules - {"guard_claim", "restore_point_info", "recovery_lease"}
    assert {entry["action_plugin"] for entry in routed.values()} == {f"{COLLECTION}recovery_step"}


def test_a_step_in_time(steps: Steps) -> None:
    hidden = steps.step("Hidden step", no_log=True)
    ran = steps.run(steps.role("validate", steps.step("Step"), hidden), say(PASSED))
    assert ran.rc == 0, ran.output
    assert started(ran) == {"Step": "ok"} and ran.report["breach"] is None and ran.report["notes"] == []
    intents = [row for row in ran.rows if row["event"] == "step_start"]
    assert [(row["module"], row["phase"], row["host"]) for row in intents] == [("redis_rdb_verify", "validate", "localhost")] * 2
    assert "titan_dr" not in next(row for row in ran.rows if row["event"] == "task" and "Hidden" in row["name"])


def test_defaults_of_the_group_and_check_mode_reach_the_module(steps: Steps) -> None:
    defaults = {"module_defaults": {"group/titan.disaster_recovery.all": {"path": str(steps.dump), "level": "nonsense"}}}
    ran = steps.run({"name": "Step", f"{COLLECTION}redis_rdb_verify": {}}, phase="validate", play=defaults)
    assert "level must be one of" in ran.output
    assert steps.run(steps.step(check_mode=True), phase="validate").report["message"] != "failed"


def test_a_server_that_cannot_be_reached_is_a_failure_that_a_rescue_sees(steps: Steps) -> None:
    block = {"block": [HALTED, steps.step(**DEAD)], "rescue": [say({"notes": ["safe"]}), {"name": "End", "ansible.builtin.fail": {"msg": "ended"}}]}
    ran = steps.run(block, phase="services")
    assert ran.rc == 2 and "safe" in ran.report["notes"], ran.output
    assert "localhost cannot be reached" in ran.report["message"] and ran.report["result"] == "failed"
    assert ran.rows[-1]["stats"]["localhost"]["unreachable"] == 0
    assert [row["titan_dr"]["unreachable"] for row in ran.rows if "unreachable" in row.get("titan_dr", {})] == ["localhost"]


def test_a_play_that_expects_dead_servers_goes_on_without_them(steps: Steps) -> None:
    ran = steps.run(steps.step(**DEAD), say(PASSED), phase="trading_halt", play={"ignore_unreachable": True})
    assert ran.rc == 0 and ran.report["result"] == "recovered", ran.output
    assert any("is unreachable: Step was not done there" in note for note in ran.report["notes"])


def test_what_does_not_fit_is_not_started_and_the_rescue_is(steps: Steps) -> None:
    # provision is declared with 300 s, so it takes 150 by all that is known
    halt = steps.role("trading_halt")
    block = {"block": [HALTED, steps.role("provision")], "rescue": [steps.step("Step of the rescue"), halt]}
    ran = steps.run(block, ends=100)
    assert started(ran) == {"Step of provision": "failed", "Step of the rescue": "ok", "Step of trading_halt": "ok"}, ran.output
    assert re.search(r"Not started: phase provision still takes about 150 s and (9\d|100) s are left\.", ran.output), ran.output
    assert started(steps.run(steps.role("provision"), ends=170)) == {"Step of provision": "ok"}


def test_deep_in_a_rescue_and_in_the_role_that_halts_everything_may_start(steps: Steps) -> None:
    (steps.playbooks.folder / "deep.yml").write_text(yaml.safe_dump([steps.step("Step deep in the rescue")]))
    include = {"name": "In", "ansible.builtin.include_tasks": "deep.yml"}
    inner = {"block": [include], "always": [steps.step("Step at last")]}
    ran = steps.run(
        {"block": [{"name": "Break", "ansible.builtin.fail": {"msg": "x"}}], "rescue": [steps.role("services", inner)]},
        steps.role("trading_halt"),
        steps.role("validate"),
        ends=-1,
    )
    expected = {"Step deep in the rescue": "ok", "Step at last": "ok", "Step of trading_halt": "ok", "Step of validate": "failed"}
    assert started(ran) == expected, ran.output


def test_after_the_deadline_nothing_of_no_phase_starts_either(steps: Steps) -> None:
    assert started(steps.run(steps.step(), ends=-1)) == {"Step": "failed"}
    assert started(steps.run(steps.step(), ends=10)) == {"Step": "ok"}


def test_check_mode_holds_nothing_up(steps: Steps) -> None:
    assert started(steps.run(steps.role("provision"), ends=-1, arguments=("--check",))) == {"Step of provision": "ok"}


def test_a_breach_is_said_once_and_told_and_the_recovery_goes_on(steps: Steps, web: Callable[..., Any]) -> None:
    bodies: list[dict[str, Any]] = []

    def answer(_method: str, path: str, body: bytes) -> Any:
        if path.startswith("/bad"):
            return 500, {}, b""
        bodies.append(json.loads(body))
        return 200, {}, b""

    url = web(answer).url
    hooks = [{"url": f"{url}/{SECRET}"}, {"url": f"{url}/bad/{SECRET}"}, {"url": f"file:///{SECRET}"}]
    ran = steps.run(HALTED, steps.role("provision"), steps.role("validate"), say(PASSED), since=700, ends=1000, variables={"titan_dr_notify": hooks})
    assert (ran.rc, ran.report["result"], ran.report["rto"]["met"]) == (0, "recovered", True), ran.output
    assert started(ran) == {"Step of provision": "ok", "Step of validate": "ok"}
    breach = ran.report["breach"]
    # of 825 s of budgets half is what it takes; nothing is over yet
    assert breach["phase"] == "provision" and 700 <= breach["declared_s"] < 730 and 400 < breach["projected_s"] - breach["declared_s"] < 425
    assert ran.output.count("[titan-dr] BREACH: by the declared budgets the recovery ends about 11") == 1
    assert [row["event"] for row in ran.rows].count("breach") == 1
    told = {body["event"]: body for body in bodies}
    assert len(bodies) == 3 and told.keys() == {"started", "breach", "recovered"}
    assert told["breach"].pop("text").startswith("by the declared budgets")
    assert told["breach"] == {
        "run_id": ran.report["run_id"],
        "scenario": "complete_system_failure",
        "event": "breach",
        "projected_s": breach["projected_s"],
        "rto_s": 900,
    }
    assert [note for note in ran.report["notes"] if note.startswith("breach was")] == [
        "breach was told to 127.0.0.1",
        "breach was NOT told to 127.0.0.1: HTTPError 500",
        "breach was NOT told to a webhook without a host: only http and https are known",
    ]
    assert SECRET not in ran.output + "".join(path.read_text() for path in ran.directory.iterdir())


def test_a_late_one_is_warned_of_once(steps: Steps) -> None:
    ran = steps.run(HALTED, steps.role("provision"), steps.role("dependencies"), say(PASSED), since=300, ends=1000)
    assert ran.output.count("[titan-dr] LATE: ") == 1 and ran.report["breach"] is None, ran.output
    assert [row["limit_s"] for row in ran.rows if row["event"] == "late"] == [600]


def test_a_breach_that_is_to_stop_is_refused_before_damage(steps: Steps) -> None:
    ran = steps.run(steps.role("preflight"), since=700, policy="abort")
    assert (ran.rc, ran.report["result"]) == (3, "refused"), ran.output
    assert "titan_dr_on_breach is abort" in ran.report["message"] and ran.report["breach"]["phase"] == "preflight"


def test_a_breach_that_is_to_stop_later_ends_in_the_rescue(steps: Steps) -> None:
    block = {"block": [HALTED, steps.role("provision")], "rescue": [steps.role("trading_halt"), {"name": "End", "ansible.builtin.fail": {"msg": "ended"}}]}
    ran = steps.run(block, since=700, policy="abort")
    assert (ran.rc, ran.report["result"]) == (2, "failed"), ran.output
    assert started(ran) == {"Step of provision": "failed", "Step of trading_halt": "ok"}


def test_what_cannot_be_judged_goes_on_and_says_so(steps: Steps) -> None:
    remove = {"name": "Lose the budget", "ansible.builtin.file": {"path": str(steps.playbooks.run_dir / "budget.json"), "state": "absent"}}
    ran = steps.run(remove, steps.role("provision"), ends=-1)
    assert started(ran) == {"Step of provision": "ok"} and any("could not be judged" in note for note in ran.report["notes"])


def test_without_a_clock_there_is_no_gate(steps: Steps) -> None:
    ran = steps.playbooks.run(play("x", steps.step(), vars={"titan_dr_deadline": 1}))
    assert ran.rc == 0, ran.output


# without a playbook


class Templar:
    def template(self, value: Any) -> Any:
        return value


def action(directory: Path, monkeypatch: pytest.MonkeyPatch, module: str, arguments: dict[str, Any], budget: dict[str, Any], rows: str = "") -> Any:
    (directory / "budget.json").write_text(json.dumps(budget))
    (directory / "ledger.jsonl").write_text(rows)
    monkeypatch.setenv("TITAN_DR_CLOCK_ARMED", "1")
    monkeypatch.setenv("TITAN_DR_RUN_DIR", str(directory))
    made = recovery_step.ActionModule.__new__(recovery_step.ActionModule)
    role = SimpleNamespace(get_name=lambda: f"{COLLECTION}redis_restore")
    made._task = SimpleNamespace(_role=role, _parent=None, _uuid="u", action=COLLECTION + module, args=arguments, get_name=lambda: "Task")
    made._templar = Templar()
    made._display = SimpleNamespace(display=lambda text: None)
    return made


BUDGET = {
    "declared": {"redis_restore": 60},
    "order": ["redis_restore"],
    "learnt": {"redis_restore": {"p50": 120, "p95": 130, "n": 3, "ref_bytes": 100}},
    "stores": {"far": {"bytes_per_s": 1, "n": 3}, "near": {"bytes_per_s": 10, "n": 3}},
    "rto_target_s": 60,
    "rto_s": 100,
    "rpo_s": 300,
}


def candidate(name: str, age: float, store: str) -> dict[str, Any]:
    size = {"object": {"size": 100}, "details": {"size": 100}}
    return {"id": name, "taken_at": time.time() - age, "sources": [{"store": store}], **size}


@pytest.mark.parametrize(("mode", "first"), [("start", "old"), ("run", "old"), ("wait", "new")])
def test_a_restore_point_that_can_be_had_in_time_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, first: str) -> None:
    candidates = [candidate("new", 10, "far"), candidate("old", 200, "near")]
    step = action(tmp_path, monkeypatch, "redis_stage", {"mode": mode, "candidates": candidates}, BUDGET)
    variables = {"titan_dr_incident_at": time.time(), "titan_dr_deadline": time.time() + 1000, "titan_dr_policy": "continue"}
    said = step._gate(variables)
    assert step._task.args["candidates"][0]["id"] == first
    # what was averted is not declared
    assert ("breach" in said) is (first == "new")
    assert any("190 s more of data are lost" in note for note in said["notes"]) is (first == "old")


def test_the_modules_words_and_the_gates() -> None:
    step = recovery_step.ActionModule.__new__(recovery_step.ActionModule)
    both = step._with({"titan_dr": {"notes": "mine", "gates": []}}, {"notes": ["yours"], "breach": {}})
    assert both == {"titan_dr": {"notes": ["yours", "mine"], "gates": [], "breach": {}}}
    assert step._with({"titan_dr": "nonsense"}, {"notes": ["x"]}) == {"titan_dr": "nonsense"}


@pytest.mark.parametrize(
    ("arguments", "plan", "size"),
    [
        ({"restore_point": {"details": {"size": 5}}}, {"redis": [{"details": {"size": 7}}]}, 5),
        ({"candidates": [{"details": {"size": 6}}]}, None, 6),
        ({}, {"redis": [{"details": {"size": 7}}]}, 7),
        ({"restore_point": "p1"}, {"redis": []}, None),
    ],
)
def test_how_much_data_there_is(arguments: dict[str, Any], plan: Any, size: float | None) -> None:
    assert recovery_step.data_bytes(arguments, plan) == size


def test_the_gate_costs_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"event": "task", "t": 1.0, "at": 1.0, "name": "n" * 80, "titan_dr": {"gates": [{"name": "g", "evidence": "e" * 300, "verdict": "pass"}]}}
    step = action(tmp_path, monkeypatch, "redis_swap", {}, BUDGET, "".join(json.dumps(row) + "\n" for _number in range(400)))
    variables = {"titan_dr_incident_at": time.time(), "titan_dr_deadline": time.time() + 1000, "titan_dr_policy": "continue"}
    step._gate(variables)
    began = time.process_time()
    for _number in range(5):
        step._gate(variables)
    assert (time.process_time() - began) / 5 < 0.02


def test_hosts_side_by_side_say_it_once(tmp_path: Path) -> None:
    step = recovery_step.ActionModule.__new__(recovery_step.ActionModule)
    assert [step._first(tmp_path, "breach"), step._first(tmp_path, "breach"), step._first(tmp_path, "late")] == [True, False, True]
    # better twice than never
    assert step._first(tmp_path / "none", "breach")


def test_its_environment_is_left_alone() -> None:
    assert "TITAN_DR_CLOCK_ARMED" not in os.environ
