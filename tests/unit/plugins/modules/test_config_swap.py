# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import io
import json
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _config_live, _config_plan, _config_restart, _redis_unit, _state
from ansible_collections.titan.disaster_recovery.plugins.modules import config_swap
from config_world import CANARY, TOOLS, World

Run = Callable[..., dict[str, Any]]
NAME = "points/20260101T000000Z-abcdef/config.tar.zst.age"


class Case:
    def __init__(self, world: World, run_module: Run, key: Any) -> None:
        self.world, self.run_module, self.key = world, run_module, key
        self.restarts: list[str] = []
        self.systemctl: list[str] = []
        self.candidates: list[dict[str, Any]] = []

    def __call__(self, state: str, check: bool = False, **more: Any) -> dict[str, Any]:
        parameters = {"state": state, "configuration": self.world.raw(), "run_id": "r1", "timeout": 20, "incident_at": 1767225600 + 600.0}
        if self.candidates:
            parameters |= {"candidates": self.candidates, "identity": self.key.identity}
        result = self.run_module(config_swap, {**parameters, **more}, check)
        assert CANARY not in json.dumps(result)
        return result

    def cut(self, path: str) -> bytes:
        data = Path(path).read_bytes()
        self.world.write(path, data[: len(data) // 2])
        return data

    def restore_point(self, name: str, damaged: bool = False) -> None:
        """A restore point of the files and the history as they are."""
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w") as archive:
            for path in (self.world.redis, self.world.home, self.world.bundle):
                archive.add(path, arcname=str(path).lstrip("/"))
        data, entry = self.key.stored(raw.getvalue(), NAME)
        place = self.world.root / f"{name}.object"
        place.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if damaged else data)
        source = {"store": "near", "kind": "file", "path": str(place)}
        self.candidates.insert(0, {"id": name, "taken_at": 1767225660.0 + len(self.candidates), "object": entry, "sources": [source]})

    def no_history(self) -> None:
        self.world.bundle.unlink()
        (self.world.repository / ".git" / "HEAD").write_text("damaged")


@pytest.fixture
def swap(tmp_path: Path, run_module: Run, key: Any, monkeypatch: pytest.MonkeyPatch) -> Case:
    world = World(tmp_path)
    world.commit()
    case = Case(world, run_module, key)
    monkeypatch.setattr(_state, "STATE_DIR", str(world.state))
    monkeypatch.setattr(_config_live, "tools", lambda settings: TOOLS)
    monkeypatch.setattr(_config_live, "look", lambda *arguments, **named: {})

    def restart(config: str, *arguments: Any) -> tuple[str, list[str]]:
        case.restarts.append(config)
        return "restarted", ["a word on it"]

    def systemctl(*words: str, deadline: float) -> str:
        case.systemctl.append(" ".join(words))
        return ""

    monkeypatch.setattr(_config_restart, "restart", restart)
    monkeypatch.setattr(_redis_unit, "systemctl", systemctl)
    return case


def test_from_damage_to_the_proven_version(swap: Case) -> None:
    good = swap.cut(swap.world.brain)
    staged = swap("staged")
    assert not staged["failed"] and staged["affected"] == ["brain"] and staged["unproven"] == {}
    assert staged["titan_dr"]["gates"][0]["verdict"] == "pass" and staged["titan_dr"]["rpo"]["actual_s"] == 0.0
    assert staged["titan_dr"]["restore_point"]["id"].startswith("revision ")
    done = swap("swapped")
    assert done["changed"] and done["replaced"][0]["kept"] == swap.world.brain + ".before-r1"
    assert list(done["not_before"]) == [swap.world.brain] and swap.restarts == []
    assert Path(swap.world.brain).read_bytes() == good
    again = swap("swapped")
    assert not again["failed"] and not again["changed"] and again["not_before"] == {}


def test_check_mode_says_it_and_does_nothing(swap: Case) -> None:
    swap.cut(swap.world.brain)
    os.chmod(swap.world.secrets, 0o644)
    before = sorted((str(path), path.stat().st_mtime_ns) for path in swap.world.root.rglob("*"))
    result = swap("staged", check=True)
    notes = "\n".join(result["titan_dr"]["notes"])
    assert f"would replace {swap.world.brain} by revision" in notes and f"would put owner and mode of {swap.world.secrets} right" in notes
    assert swap("swapped", check=True)["changed"]
    assert sorted((str(path), path.stat().st_mtime_ns) for path in swap.world.root.rglob("*")) == before


def test_a_valid_edit_stays_unless_a_person_says_otherwise(swap: Case) -> None:
    swap.cut(swap.world.brain)
    swap.world.edit(swap.world.phase, everyMs=4100)
    assert [item["path"] for item in swap("staged")["replaced"]] == [swap.world.brain]
    staged = swap("staged", whole=True)
    assert {item["path"] for item in staged["replaced"]} == {swap.world.brain, swap.world.phase}
    assert "by consent" in staged["titan_dr"]["rpo"]["basis"] and staged["titan_dr"]["rpo"]["actual_s"] > 0
    swap("swapped", whole=True)
    assert b"4100" in Path(swap.world.phase + ".before-r1").read_bytes()


def test_modes_only(swap: Case) -> None:
    os.chmod(swap.world.secrets, 0o644)
    assert swap("staged")["affected"] == []
    done = swap("swapped")
    assert done["changed"] and stat.S_IMODE(os.stat(swap.world.secrets).st_mode) == 0o600
    assert any("think of its secrets" in note for note in done["titan_dr"]["notes"])


def test_redis_is_restarted_when_its_file_was_exchanged(swap: Case) -> None:
    swap.world.write(swap.world.redis, Path(swap.world.redis).read_text().replace("6379", "6380"))
    assert swap("staged")["affected"] == ["redis"]
    done = swap("swapped")
    assert swap.restarts == [swap.world.redis] and "redis_restarted" in [gate["name"] for gate in done["titan_dr"]["gates"]]


def test_a_restart_that_must_not_be_fails(swap: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise _config_restart.RestartError("Redis was not restarted: no")

    monkeypatch.setattr(_config_restart, "restart", refuse)
    swap.world.write(swap.world.redis, "port 6380\n")
    swap("staged")
    done = swap("swapped")
    assert done["failed"] and "not restarted" in done["msg"] and done["titan_dr"]["gates"][0]["verdict"] == "fail"


def test_a_unit_is_read_again_by_systemd(swap: Case) -> None:
    unit = str(swap.world.etc / "pm2-titan.service")
    text = f"[Unit]\n[Service]\nUser={swap.world.user}\nExecStart=/x\n[Install]\n"
    swap.world.write(unit, text)
    raw = swap.world.raw()
    raw["paths"].append(unit)
    target = str(swap.world.repository) + unit
    swap.world.commit()
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).write_text(text)
    swap.world.git("add", "--all", "--force")
    swap.world.git("commit", "--quiet", "--message", "Restore point 20260101T000009Z-abcdef")
    swap.world.git("bundle", "create", "--quiet", str(swap.world.bundle), "main")
    swap.world.write(unit, "[Unit]\nnonsense\n")
    assert swap("staged", configuration=raw)["affected"] == ["brain", "phase"]
    swap("swapped", configuration=raw)
    assert swap.systemctl == ["daemon-reload", "stop pm2-titan.service"] and Path(unit).read_text() == text


# --- where the server holds no proven version


def test_without_candidates_it_asks_for_them(swap: Case) -> None:
    swap.cut(swap.world.brain)
    swap.no_history()
    result = swap("staged")
    assert not result["failed"] and list(result["unproven"]) == [swap.world.brain]
    assert not Path(_config_plan.folder_of("r1")).exists()


def test_the_restore_points_are_the_next_place(swap: Case) -> None:
    swap.restore_point("older")
    swap.restore_point("newest", damaged=True)
    good = swap.cut(swap.world.brain)
    swap.no_history()
    result = swap("staged")
    assert not result["failed"], result
    assert any("passed over" in note and "newest" in note for note in result["titan_dr"]["notes"])
    swap("swapped")
    assert Path(swap.world.brain).read_bytes() == good
    assert os.listdir(swap.world.state / "stage") == ["r1-config"], "what was fetched is gone"
    assert os.listdir(swap.world.state / "stage" / "r1-config") == ["plan.json"], "and so are the copies, for the secrets in them"


def test_a_bad_restore_point_is_passed_over_for_the_history_in_it(swap: Case) -> None:
    good = swap.cut(swap.world.brain)
    swap.restore_point("newest")  # taken after the damage: the file in it is bad, its history is not
    swap.no_history()
    assert swap("staged")["unproven"] == {}
    swap("swapped")
    assert Path(swap.world.brain).read_bytes() == good


def test_when_nothing_is_proven_it_fails_and_touches_nothing(swap: Case) -> None:
    swap.restore_point("only", damaged=True)
    swap.cut(swap.world.brain)
    half = Path(swap.world.brain).read_bytes()
    swap.no_history()
    result = swap("staged")
    assert result["failed"] and "No proven version of the configuration was found" in result["msg"]
    assert result["titan_dr"]["gates"] == [{"name": "config_proof", "verdict": "fail", "evidence": result["msg"].partition("found. ")[2]}]
    assert Path(swap.world.brain).read_bytes() == half
    swapped = swap("swapped")
    assert swapped["failed"] and "nothing is staged" in swapped["msg"]


def test_a_wrong_inventory(swap: Case) -> None:
    assert swap("staged", configuration=swap.world.raw(rules=[{"at": "/x"}]))["failed"]
