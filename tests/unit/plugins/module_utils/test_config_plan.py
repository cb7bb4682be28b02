# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _config_history, _config_live, _config_plan, _state
from ansible_collections.titan.disaster_recovery.plugins.module_utils._config import Finding
from ansible_collections.titan.disaster_recovery.plugins.module_utils._config_history import digest
from ansible_collections.titan.disaster_recovery.plugins.module_utils._config_live import Running
from ansible_collections.titan.disaster_recovery.plugins.module_utils._config_plan import Plan, PlanError
from config_world import CANARY, TOOLS, World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path)
    monkeypatch.setattr(_state, "STATE_DIR", str(world.state))
    world.commit()
    return world


def choose(world: World, whole: bool = False, copies: Any = None, running: dict[str, Running] | None = None, **more: Any) -> Plan:
    settings = world.settings(**more)
    wanted = _config_live.wanted(settings.paths)
    revisions, _notes = _config_history.read_history(settings.history, settings.repository, wanted, time.time() + 20)
    proof = _config_history.prove(revisions, settings, TOOLS)
    tree = _config_live.read_tree(settings.paths)
    report = _config_live.check_live(tree, proof.reference(), proof.expected(), settings, TOOLS)
    return _config_plan.choose(report, tree, proof, settings, TOOLS, running or {}, copies or (lambda path: []), whole)


def cut(world: World, path: str) -> bytes:
    data = Path(path).read_bytes()
    world.write(path, data[: len(data) // 2])
    return data


def test_nothing_damaged_nothing_chosen(world: World) -> None:
    plan = choose(world)
    assert (plan.files, plan.mended, plan.unproven) == ([], [], {})
    assert plan.rpo(time.time())["actual_s"] == 0.0


def test_only_the_damaged_file_is_replaced_and_a_valid_edit_stays(world: World) -> None:
    good = cut(world, world.brain)
    world.edit(world.phase, everyMs=4100)
    plan = choose(world)
    assert [item.path for item in plan.files] == [world.brain] and plan.content[world.brain] == good
    assert (plan.lost, plan.unsure) == ([], []) and plan.rpo(time.time())["actual_s"] == 0.0


def test_with_consent_the_valid_edit_goes_too_and_that_is_told(world: World) -> None:
    world.edit(world.phase, everyMs=4100)
    plan = choose(world, whole=True)
    assert [item.path for item in plan.files] == [world.phase]
    assert "by consent" in plan.lost[0] and plan.rpo(1767225600 + 60 + 500)["actual_s"] == 500.0


def test_a_missing_file_a_mode_and_a_file_without_a_version(world: World) -> None:
    os.unlink(world.phase)
    os.chmod(world.secrets, 0o644)
    world.write(str(world.home / "new.json"), "{")
    plan = choose(world)
    assert [item.path for item in plan.files] == [world.phase]
    assert [(item.path, item.mode) for item in plan.mended] == [(world.secrets, 0o600)]
    assert list(plan.unproven) == [str(world.home / "new.json")]


def test_what_a_process_has_loaded_tells_what_is_lost(world: World) -> None:
    committed = digest(Path(world.brain).read_bytes())
    os.unlink(world.brain)
    assert choose(world).rpo(0.0).get("actual_s") is None, "nothing is left to compare with"
    assert choose(world, running={"brain": Running("brain", 1, 0.0, committed)}).rpo(0.0)["actual_s"] == 0.0
    plan = choose(world, running={"brain": Running("brain", 1, 0.0, "d" * 64)})
    assert "no revision holds" in plan.lost[0] and plan.rpo(1767225600 + 60 + 30)["actual_s"] == 30.0


def test_an_edit_beside_the_damage_is_not_passed_over_in_silence(world: World) -> None:
    world.edit(world.brain, maxQty=10)
    assert choose(world).rpo(0.0)["actual_s"] == 0.0, "the damage is all that differs"
    world.edit(world.brain, maxQty=10, note="edited by hand")
    plan = choose(world)
    assert "actual_s" not in plan.rpo(0.0) and "differs from" in plan.unsure[0] and "edited by hand" not in plan.unsure[0]


@pytest.mark.parametrize(
    ("old", "where", "count"),
    [
        (b"a\nb\nc", [], 0),
        (b"a\nX\nc\n", ["line 2, column 1"], 0),
        (b"a\nX\nc\n", [], 1),
        (b"a\nX\nc\nY\n", ["/p (line 2, column 3)"], 1),
        (b"a\nc\n", ["line 2"], 0),
        (b"port 1\nb\nc\n", ["port"], 0),
    ],
)
def test_unexplained(old: bytes, where: list[str], count: int) -> None:
    findings = [Finding("p", "syntax", place, "x", "fatal") for place in where]
    assert len(_config_plan.unexplained(old, b"a\nb\nc\n", findings)) == count


def test_a_revision_that_was_passed_over_is_told(world: World) -> None:
    world.edit(world.brain, maxQty=10)
    bad = world.commit()
    plan = choose(world)
    assert any(bad in note and "factor" in note for note in plan.notes)
    assert CANARY not in str(plan.notes)


# --- copies that recoveries kept


def test_copies_are_the_last_resort_and_are_checked(world: World) -> None:
    good = cut(world, world.brain)
    world.bundle.unlink()
    (world.repository / ".git" / "HEAD").write_text("damaged")
    assert list(choose(world).unproven) == [world.brain]
    found = [("old", 1.0, good), ("new", 2.0, b"{"), ("newest", 3.0, Path(world.brain).read_bytes())]
    plan = choose(world, copies=lambda path: found if path == world.brain else [])
    assert plan.content[world.brain] == good and "the copy old" in plan.files[0].revision


def test_what_was_moved_aside_here_never_comes_back(world: World) -> None:
    world.write(world.brain + ".before-r0", "{}")
    assert _config_plan.undamaged_copies([str(world.home)])(world.brain) == [], "without a record nothing is known"
    cut(world, world.brain)
    _config_plan.save(choose(world), "r1", {"affected": []})
    _config_plan.swap(_config_plan.load("r1"), "r1")
    assert [name for name, _at, _data in _config_plan.undamaged_copies([str(world.home)])(world.brain)] == [world.brain + ".before-r0"]


# --- the exchange


def test_the_exchange_keeps_what_was_there(world: World) -> None:
    good = cut(world, world.secrets)
    os.chmod(world.secrets, 0o604)
    damaged = Path(world.secrets).read_bytes()
    _config_plan.save(choose(world), "r1", {"affected": ["brain"]})
    folder = _config_plan.folder_of("r1")
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    plan = _config_plan.load("r1")
    assert CANARY not in json.dumps(plan)
    done, mended = _config_plan.swap(plan, "r1")
    assert [(item["path"], item["kept"]) for item in done] == [(world.secrets, world.secrets + ".before-r1")] and mended == []
    assert Path(world.secrets).read_bytes() == good and stat.S_IMODE(os.stat(world.secrets).st_mode) == 0o600
    kept = Path(world.secrets + ".before-r1")
    assert kept.read_bytes() == damaged and stat.S_IMODE(kept.stat().st_mode) & 0o077 == 0
    assert not list(world.home.glob("*.stage-*"))
    assert _config_plan.swap(plan, "r1") == ([], []), "a second time nothing is left to do"


def test_a_missing_file_comes_back(world: World) -> None:
    os.unlink(world.phase)
    _config_plan.save(choose(world), "r1", {"affected": []})
    done, _mended = _config_plan.swap(_config_plan.load("r1"), "r1")
    assert done[0]["kept"] == "" and json.loads(Path(world.phase).read_text())["port"] == 3001


def test_modes_are_put_right_without_another_version(world: World) -> None:
    os.chmod(world.secrets, 0o644)
    _config_plan.save(choose(world), "r1", {"affected": []})
    assert _config_plan.swap(_config_plan.load("r1"), "r1") == ([], [world.secrets])
    assert stat.S_IMODE(os.stat(world.secrets).st_mode) == 0o600
    assert _config_plan.swap(_config_plan.load("r1"), "r1") == ([], [])


def test_a_file_that_somebody_changed_meanwhile_stops_all_of_it(world: World) -> None:
    cut(world, world.brain)
    cut(world, world.phase)
    _config_plan.save(choose(world), "r1", {"affected": []})
    world.write(world.phase, "{}")
    half = Path(world.brain).read_bytes()
    with pytest.raises(PlanError, match=r"phase.json was changed by somebody"):
        _config_plan.swap(_config_plan.load("r1"), "r1")
    assert Path(world.brain).read_bytes() == half and not list(world.home.glob("*.before-*"))


def test_a_stage_that_was_altered_is_refused(world: World) -> None:
    cut(world, world.brain)
    _config_plan.save(choose(world), "r1", {"affected": []})
    Path(_config_plan.folder_of("r1"), "0").write_text("{}")
    with pytest.raises(PlanError, match="not what was proven"):
        _config_plan.swap(_config_plan.load("r1"), "r1")
    with pytest.raises(PlanError, match="nothing is staged"):
        _config_plan.load("other")


def test_at_no_moment_is_there_no_file(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(world, world.brain)
    _config_plan.save(choose(world), "r1", {"affected": []})
    rename = os.rename
    seen = []

    def looking(source: str, target: str) -> None:
        seen.append(os.path.exists(world.brain))
        rename(source, target)
        seen.append(os.path.exists(world.brain))

    monkeypatch.setattr(os, "rename", looking)
    _config_plan.swap(_config_plan.load("r1"), "r1")
    assert seen and all(seen)
