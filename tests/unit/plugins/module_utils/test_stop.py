# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pm2_world import DAEMON, GUIDE, UID, World, connect, raw

from ansible_collections.titan.disaster_recovery.plugins.module_utils._components import parse_components
from ansible_collections.titan.disaster_recovery.plugins.module_utils._pm2 import Process
from ansible_collections.titan.disaster_recovery.plugins.module_utils._start import StartError, dumped_names
from ansible_collections.titan.disaster_recovery.plugins.module_utils._stop import Stopper, users_of
from ansible_collections.titan.disaster_recovery.plugins.modules import component_stop

TITAN = [*GUIDE[:4], raw("job", "brain", pm2_status=["stopped"]), raw("console", port=3100)]
Make = Callable[..., tuple[World, Stopper]]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A Titan that runs, with its list saved."""

    def build(saved: bool = True, **settings: Any) -> tuple[World, Stopper]:
        world = World(tmp_path, TITAN)
        for component in world.components:
            if component.kind == "pm2":
                world.spawn(component.app)
        if saved:
            world.spawn_cli(["save"])
            world.log.clear()
        stopper = connect(world, Stopper, monkeypatch, unit="pm2-titan.service", **settings)
        assert isinstance(stopper, Stopper)
        return world, stopper

    return build


def left(world: World) -> set[str]:
    return {app.name for app in world.apps.values() if app.pid in world.processes}


def fails(stopper: Stopper) -> str:
    with pytest.raises(StartError) as error:
        stopper.run()
    return str(error.value)


def test_who_uses_redis() -> None:
    components = parse_components([{"name": "db", "kind": "redis", "port": 6379}, raw("a", "db"), raw("b", "a"), raw("c"), raw("d", "b", "c")])
    assert users_of("redis", components) == {"a", "b", "d"}
    assert users_of("port", components) == set()


def test_the_last_started_first_and_others_are_left_alone(make: Make) -> None:
    world, stopper = make()
    ids = {name: app.pm_id for name, app in world.apps.items()}
    outcome = stopper.run()
    assert world.log == [f"delete {ids['phase1']} {ids['phase2']} {ids['job']}", f"delete {ids['brain']}"]
    assert left(world) == {"console"} and set(world.apps) == {"console"} and outcome.changed
    assert {name: finding.verdict for name, finding in outcome.findings.items()} == dict.fromkeys(("brain", "phase1", "phase2", "job"), "pass")
    assert outcome.findings["brain"].evidence == "not known to PM2, no process, port 3000 is free"
    assert dumped_names(str(world.home / "dump.pm2")) == {"brain", "phase1", "phase2", "job", "console"}, "PM2 lost its list"


def test_chosen_ones_with_what_depends_on_them(make: Make) -> None:
    world, stopper = make()
    stopper.only = {"phase1"}
    outcome = stopper.run()
    assert set(world.apps) == {"brain", "phase2", "job", "console"} and set(outcome.findings) == {"phase1"}
    stopper.only = {"redis"}
    assert set(stopper.run().findings) == {"phase1", "phase2", "job", "brain"} and set(world.apps) == {"console"}


SPLIT = [
    {**GUIDE[0], "server": "data"},
    {**GUIDE[1], "server": "core"},
    *({**component, "server": "phases"} for component in GUIDE[2:4]),
    raw("console", port=3100, server="console"),
]


def test_what_uses_redis_through_another_server_is_stopped_too_and_no_port_of_others_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, SPLIT, server="phases")
    for name in ("phase1", "phase2"):
        world.spawn(name)
    world.ports[3000] = {77}
    world.spawn_cli(["save"])
    outcome = connect(world, Stopper, monkeypatch).run()
    assert set(outcome.findings) == {"phase1", "phase2"} and world.apps == {} and outcome.changed and world.ports[3000] == {77}


def test_a_chosen_one_of_another_server_stops_what_depends_on_it_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, SPLIT, server="phases")
    world.spawn("phase1")
    stopper = connect(world, Stopper, monkeypatch)
    assert isinstance(stopper, Stopper)
    stopper.only = {"brain"}
    assert set(stopper.run().findings) == {"phase1", "phase2"} and world.apps == {}


def test_a_server_that_has_none_of_them_is_left_alone_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, SPLIT, server="console", daemon=False)
    outcome = connect(world, Stopper, monkeypatch, unit="pm2-titan.service").run()
    assert outcome.notes == ["none of brain, phase1, phase2 is on this server"] and not outcome.changed and world.log == [] and outcome.findings == {}


def test_of_nothing_nothing_is_stopped(make: Make) -> None:
    world, stopper = make()
    stopper.only = set()
    outcome = stopper.run()
    assert not outcome.changed and outcome.findings == {} and world.log == []


def test_a_second_run_changes_nothing(make: Make) -> None:
    world, stopper = make()
    stopper.run()
    world.log.clear()
    stopper.outcome.changed = False
    assert not stopper.run().changed and world.log == [] and set(stopper.outcome.actions.values()) == {"none"}


def test_check_mode_only_tells(make: Make) -> None:
    world, stopper = make()
    outcome = stopper.run(check=True)
    assert world.log == [] and outcome.changed and outcome.actions == dict.fromkeys(("brain", "phase1", "phase2", "job"), "would stop")


@pytest.mark.parametrize("old", ["", "[]", '[{"name": "brain"}]', "not JSON"])
def test_a_list_that_is_not_saved_is_saved_first(make: Make, old: str) -> None:
    world, stopper = make(saved=False)
    if old:
        (world.home / "dump.pm2").write_text(old)
    assert stopper.run().saved and world.log[0] == "save"
    assert dumped_names(str(world.home / "dump.pm2")) == {"brain", "phase1", "phase2", "job", "console"}


def test_nothing_is_stopped_when_the_list_cannot_be_saved(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    world, stopper = make(saved=False)
    monkeypatch.setattr(world, "home", world.home / "elsewhere")
    (world.home).mkdir()
    assert "could not be saved; nothing was stopped" in fails(stopper)
    assert left(world) == {"brain", "phase1", "phase2", "console"}


def test_a_process_that_outlives_its_deletion_is_ended(make: Make) -> None:
    world, stopper = make()
    world.survives.add("brain")
    pid = world.apps["brain"].pid
    outcome = stopper.run()
    assert [line for line in world.log if "signal" in line] == [f"signal 15 to {pid}", f"signal 9 to {pid}"]
    assert pid not in world.processes and "brain" not in left(world) and len(outcome.ended) == 1


def test_a_stranger_on_a_port_is_named_and_left_alone(make: Make) -> None:
    world, stopper = make()
    world.processes[77] = Process(77, 1, UID + 1, "S", 77)
    world.ports[3000] = {77}
    assert "process 77 (node) holds port 3000 and is not a left-over of PM2" in fails(stopper) and 77 in world.processes


@pytest.mark.parametrize("how", ["dead", "frozen"])
def test_without_an_answer_of_pm2_its_unit_is_stopped_and_orphans_are_ended(make: Make, how: str) -> None:
    """A daemon that comes back by itself in the middle of the swap would bring its services with it."""
    world, stopper = make()
    world.daemon, world.frozen = how != "dead", how == "frozen"
    world.survives.add("phase1")
    world.processes[world.apps["phase1"].pid] = Process(world.apps["phase1"].pid, 1, UID, "S", 1)
    outcome = stopper.run()
    assert "systemctl stop pm2-titan.service" in world.log and "stopped as a whole" in outcome.notes[0]
    assert left(world) == set() and {finding.verdict for finding in outcome.findings.values()} == {"pass"}


def test_whoever_comes_back_is_named(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    world, stopper = make()
    original = stopper._clear

    def clear(members: Any, daemon: Any) -> None:
        original(members, daemon)
        if members[0].name == "brain":
            world.spawn("phase2")

    monkeypatch.setattr(stopper, "_clear", clear)
    assert "phase2 is not gone: PM2 knows phase2 as online; port 3003 is listened on" in fails(stopper)


def test_a_process_under_another_name_tag_is_seen(make: Make) -> None:
    world, stopper = make()
    world.processes[90] = Process(90, DAEMON, UID, "S", 90)
    world.named["phase1"] = 90
    stopper.run()
    assert 90 not in world.processes


def test_a_titan_in_which_nothing_uses_redis_is_not_believed(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = World(tmp_path, [GUIDE[0], raw("brain")])
    stopper = connect(world, Stopper, monkeypatch)
    with pytest.raises(StartError, match="no component uses Redis"):
        stopper.run()


def test_one_deadline(make: Make) -> None:
    world, stopper = make(end=0.0)
    world.survives.add("brain")
    assert "deadline" in fails(stopper)


# --- the module -----------------------------------------------------------------------------------------------------


def test_the_module_tells_what_it_did(make: Make, monkeypatch: pytest.MonkeyPatch, run_module: Any) -> None:
    world, stopper = make()
    monkeypatch.setattr(component_stop, "prepare", lambda params: stopper)
    params = {"pm2_home": "/h", "pm2_prefix": "/p", "user": "titan", "components": TITAN, "timeout": 5}
    result = run_module(component_stop, params, check=True)
    assert result["changed"] and result["titan_dr"]["notes"] == ["would stop brain, phase1, phase2, job"] and result["titan_dr"]["gates"] == []
    result = run_module(component_stop, params)
    assert result["changed"] and result["stopped"] == ["brain", "job", "phase1", "phase2"]
    assert {gate["name"] for gate in result["titan_dr"]["gates"]} == {"stop:brain", "stop:phase1", "stop:phase2", "stop:job"}
    world.processes[77] = Process(77, 1, 0, "S", 77)
    world.ports[3000] = {77}
    result = run_module(component_stop, params)
    assert result["failed"] and "could not be stopped" in result["msg"] and result["titan_dr"]["gates"][-1]["verdict"] == "fail"


def test_the_module_refuses_what_it_cannot_work_with(tmp_path: Path, run_module: Any) -> None:
    user = pwd.getpwuid(0).pw_name
    params = {"pm2_home": str(tmp_path), "pm2_prefix": "/p", "user": user, "components": TITAN, "timeout": 5}
    assert "there is no user" in run_module(component_stop, {**params, "user": "no-such-user"})["msg"]
    assert "nobody is not a component" in run_module(component_stop, {**params, "only": ["brain", "nobody"]})["msg"]
    assert "cycle" in json.dumps(run_module(component_stop, {**params, "components": [raw("a", "b"), raw("b", "a")]}))
