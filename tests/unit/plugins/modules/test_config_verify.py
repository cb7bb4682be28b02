# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _config_live, _state
from ansible_collections.titan.disaster_recovery.plugins.modules import config_verify
from config_world import CANARY, TOOLS, World

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path)
    monkeypatch.setattr(_state, "STATE_DIR", str(world.state))
    monkeypatch.setattr(_config_live, "tools", lambda settings: TOOLS)
    world.commit()
    return world


@pytest.fixture
def verify(world: World, run_module: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    running: dict[str, _config_live.Running] = {}
    monkeypatch.setattr(_config_live, "look", lambda *arguments, **named: running)

    def run(running_now: dict[str, _config_live.Running] | None = None, check: bool = False, **more: Any) -> dict[str, Any]:
        running.clear()
        running.update(running_now or {})
        return run_module(config_verify, {"configuration": world.raw(), **more}, check)

    return run


def everyone(since: float | None = None) -> dict[str, _config_live.Running]:
    return {name: _config_live.Running(name, 7, since or time.time() + 1) for name in ("redis", "brain", "phase")}


def test_a_sound_configuration(verify: Run) -> None:
    result = verify(everyone(), require="loaded")
    assert not result["failed"] and not result["changed"]
    assert result["config"]["verdict"] == "pass" and result["config"]["findings"] == [] and result["config"]["affected"] == []
    assert result["config"]["revision"]["label"].startswith("revision ")
    gates = result["titan_dr"]["gates"]
    assert [(gate["name"], gate["verdict"]) for gate in gates] == [("config_sound", "pass"), ("config_loaded", "pass")]
    assert abs(gates[0]["at"] - time.time()) < 30


@pytest.mark.parametrize("check", [True, False])
def test_damage_is_told_and_fails_only_where_it_must_be_sound(world: World, verify: Run, check: bool) -> None:
    world.write(world.brain, Path(world.brain).read_text()[:-10])
    world.write(world.secrets, Path(world.secrets).read_text().replace(":", "", 1))
    before = sorted((str(path), path.stat().st_mtime_ns) for path in world.root.rglob("*"))
    result = verify(check=check)
    assert not result["failed"] and result["config"]["verdict"] == "fail"
    assert result["config"]["affected"] == ["brain"]
    assert {finding["path"] for finding in result["config"]["findings"]} == {world.brain, world.secrets}
    assert set(result["config"]["findings"][0]) == {"path", "kind", "where", "evidence", "severity"}
    assert "gates" not in result["titan_dr"] and len(result["titan_dr"]["notes"]) == 2
    result = verify(require="sound", check=check)
    assert result["failed"] and result["titan_dr"]["gates"][0]["verdict"] == "fail"
    assert CANARY not in json.dumps(result)
    assert sorted((str(path), path.stat().st_mtime_ns) for path in world.root.rglob("*")) == before


def test_what_cannot_be_found_out_is_no_pass(world: World, verify: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_config_live, "tools", lambda settings: TOOLS.__class__(TOOLS.redis, lambda data: ("unknown", "no node"), TOOLS.certificate))
    result = verify(require="sound")
    assert result["failed"] and result["titan_dr"]["gates"][0]["verdict"] == "unknown"
    assert result["config"]["unknown"] == [f"{world.ecosystem}: no node"]
    result = verify(require="known")
    assert result["failed"] and "no node" in result["titan_dr"]["refused"]
    monkeypatch.setattr(_config_live, "tools", lambda settings: TOOLS)
    world.write(world.brain, "{")
    assert not verify(require="known")["failed"], "damage is the reason for a recovery"


def test_processes_that_do_not_use_the_files(world: World, verify: Run) -> None:
    result = verify({**everyone(), "phase": _config_live.Running("phase", 7, time.time(), "a" * 64)}, require="loaded")
    assert result["failed"] and "phase runs with other values" in result["msg"] and result["config"]["affected"] == ["phase"]
    result = verify(everyone(), require="loaded", not_before={world.secrets: time.time() + 60})
    assert result["failed"] and "before its configuration was exchanged" in result["msg"]
    assert verify(require="loaded")["failed"], "nobody runs"


def test_without_a_history_it_says_so_and_judges_what_it_can(world: World, verify: Run) -> None:
    world.bundle.unlink()
    os.rename(world.repository, str(world.repository) + ".gone")
    result = verify(require="sound")
    assert not result["failed"] and result["config"]["revision"] == {} and len(result["titan_dr"]["notes"]) == 2


@pytest.mark.parametrize(("text", "word"), [('{"environment_id": "other"}', "claimed by environment other"), ("{", "cannot be read"), ("[]", "cannot be read")])
def test_another_environments_server_is_refused(world: World, verify: Run, text: str, word: str) -> None:
    (world.state / "owner.json").write_text('{"environment_id": "prod"}')
    assert not verify()["failed"]
    (world.state / "owner.json").write_text(text)
    result = verify()
    assert result["failed"] and word in result["titan_dr"]["refused"]


def test_a_wrong_inventory(world: World, run_module: Run) -> None:
    assert "says nothing" in run_module(config_verify, {"configuration": world.raw(rules=[{"at": "/x"}])})["msg"]
    assert "kind" in run_module(config_verify, {"configuration": world.raw(components=[{"name": "x", "kind": "y"}])})["msg"]
