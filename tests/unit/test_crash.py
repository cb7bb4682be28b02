# SPDX-License-Identifier: GPL-3.0-or-later
"""The crash sweep's own means: a sweep that kills nobody, or that compares nothing, would pass."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import crash
import pytest
from crash import Controller, Point, chosen_of, differences, halts, points

PLAYBOOK = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars: {ansible_python_interpreter: /usr/bin/python3}
  tasks:
    - ansible.builtin.command: sleep 0.01
    - ansible.builtin.command: sleep 30
    - ansible.builtin.command: touch survived
"""


@pytest.fixture
def sleeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A playbook without any server, run the way the real ones are."""
    (tmp_path / "playbooks").mkdir()
    (tmp_path / "playbooks" / "sleeper.yml").write_text(PLAYBOOK)
    (tmp_path / "hosts").write_text("localhost\n")
    monkeypatch.setattr(crash, "ROOT", tmp_path)
    monkeypatch.setattr(crash, "INVENTORY", tmp_path / "hosts")
    return tmp_path


@pytest.mark.parametrize(("point", "seen"), [(Point(2, 0.0, "after the first"), 2), (Point(3, 0.5, "in the second"), 3)])
def test_a_controller_dies_at_its_point_with_all_that_is_its(sleeper: Path, point: Point, seen: int) -> None:
    run = Controller(sleeper / "run", "sleeper", crash=point)
    run.process.wait(60)
    until = time.monotonic() + 5
    while (left := crash.processes.of_run(run.mark)) and time.monotonic() < until:
        time.sleep(0.05)  # killed, and not gone yet
    run.end()
    assert run.died, run.output
    assert left == set(), "a worker or what it had started outlived the controller"
    assert [event["n"] for event in run.events() if event["kind"] != "crash"] == list(range(1, seen + 1))
    assert not (sleeper / "run" / "survived").exists()


def event(n: int, kind: str, action: str, at: float, status: str = "ok") -> dict[str, Any]:
    return {"n": n, "kind": kind, "task": action, "role": "r", "host": "titan", "action": action, "status": "" if kind == "start" else status, "at": at}


EVENTS = [
    event(1, "start", "assert", 0.0), event(2, "end", "assert", 0.1),
    event(3, "start", "trading_halt", 0.1), event(4, "end", "trading_halt", 0.2),
    event(5, "start", "copy", 0.2), event(6, "end", "copy", 0.2, "skipped"),
    event(7, "start", "redis_swap", 0.2), event(8, "end", "redis_swap", 10.2),
]  # fmt: skip


def test_points_are_before_in_and_after_what_the_server_notices() -> None:
    found = points(EVENTS, random.Random(1))
    assert [(point.n, point.name.partition("r/")[2].split(" ")[0]) for point in found if not point.delay] == [
        (3, "trading_halt"), (4, "trading_halt"), (7, "redis_swap"), (8, "redis_swap"),
    ]  # fmt: skip
    inside = [point.delay for point in found if point.delay]
    assert len(inside) == 4 and inside == sorted(inside) and inside[-1] < 10
    assert points(EVENTS, random.Random(1)) == found, "the same seed is not the same sweep"


def test_a_sample_is_spread_over_the_run() -> None:
    found = [Point(n, 0.0, str(n)) for n in range(100)]
    chosen = chosen_of(found, "4", random.Random(1))
    assert [point.n // 25 for point in chosen] == [0, 1, 2, 3]
    assert chosen_of(found[:3], "4", random.Random(1)) == found[:3] == chosen_of(found[:3], "all", random.Random(1))


def test_the_parts_of_a_sweep_are_all_of_it() -> None:
    found = [Point(n, 0.0, str(n)) for n in range(10)]
    parts = [chosen_of(found, f"{part}/4", random.Random(part)) for part in (1, 2, 3, 4)]
    assert [point.n for point in parts[1]] == [1, 5, 9] and sorted(point.n for part in parts for point in part) == list(range(10))


def test_a_difference_is_found_wherever_it_lies() -> None:
    whole = {"files": {"/etc/a": "file 644"}, "latch": False, "leftovers": {"x": []}}
    assert differences(whole, json.loads(json.dumps(whole))) == []
    assert len(differences(whole, {**whole, "latch": True})) == 1
    assert len(differences(whole, {**whole, "files": {"/etc/a": "file 600", "/etc/b": "file 644"}})) == 2
    assert len(differences(whole, {**whole, "leftovers": {}})) == 1


class Told:
    def __init__(self, halted: float | None, resumed: float | None) -> None:
        self.halted_at, self.resume_began_at = (lambda: halted), (lambda: resumed)


def test_trading_is_off_from_the_halt_to_the_resume_over_all_runs() -> None:
    assert halts([Told(10.0, None), Told(30.0, 40.0)], None) == [(10.0, 40.0)]  # type: ignore[list-item]
    assert halts([Told(10.0, 20.0), Told(30.0, 40.0)], 5.0) == [(5.0, 20.0), (30.0, 40.0)]  # type: ignore[list-item]
    with pytest.raises(AssertionError):
        halts([Told(10.0, None)], None)  # type: ignore[list-item]


def test_an_order_in_that_time_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crash, "orders", lambda: [5.0, 39.0, 41.0])
    assert crash.orders_while_halted([Told(10.0, 40.0)], None) != []  # type: ignore[list-item]
    monkeypatch.setattr(crash, "orders", lambda: [5.0, 41.0])
    assert crash.orders_while_halted([Told(10.0, 40.0)], None) == []  # type: ignore[list-item]
