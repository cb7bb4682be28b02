# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import time
from pathlib import Path

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _config_live
from ansible_collections.titan.disaster_recovery.plugins.module_utils._config_history import HistoryError, Revision, prove, read_bundle, read_history
from config_world import CANARY, TOOLS, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def read(world: World) -> tuple[list[Revision], list[str]]:
    settings = world.settings()
    return read_history(settings.history, settings.repository, _config_live.wanted(settings.paths), time.time() + 20)


def test_every_file_of_every_revision(world: World) -> None:
    first = world.commit()
    world.edit(world.brain, note="second")
    world.write(str(world.home / "brain.json.before-r1"), "no file of ours")
    second = world.commit()
    revisions, notes = read(world)
    assert notes == []
    assert [revision.label for revision in revisions] == [f"revision {second} (20260101T000002Z-abcdef)", f"revision {first} (20260101T000001Z-abcdef)"]
    assert set(revisions[0].files) == {world.redis, world.brain, world.phase, world.secrets, world.ecosystem}
    assert b"second" in revisions[0].files[world.brain] and b"first" in revisions[1].files[world.brain]


def test_a_damaged_bundle_is_noticed_and_the_repository_taken(world: World) -> None:
    world.commit()
    data = bytearray(world.bundle.read_bytes())
    data[-30] ^= 1
    world.bundle.write_bytes(data)
    revisions, notes = read(world)
    assert len(revisions) == 1 and "cannot be read" in notes[0]
    (world.repository / ".git" / "HEAD").write_text("damaged")
    revisions, notes = read(world)
    assert revisions == [] and len(notes) == 2 and CANARY not in str(notes)


@pytest.mark.parametrize("cut", [0, 10, 200])
def test_a_bundle_that_was_cut_off(world: World, cut: int) -> None:
    world.commit()
    world.bundle.write_bytes(world.bundle.read_bytes()[:cut])
    with pytest.raises(HistoryError):
        read_bundle(str(world.bundle), lambda path: True, time.time() + 20)


def test_no_history_at_all(world: World) -> None:
    revisions, notes = read(world)
    assert revisions == [] and "there is no" in notes[0]
    proof = prove(revisions, world.settings(), TOOLS)
    assert proof.reference() == {} and proof.expected() == set()


def test_a_bad_newest_revision_is_passed_over_with_its_reason(world: World) -> None:
    world.commit()
    world.edit(world.phase, everyMs=4100)
    world.edit(world.brain, maxQty=10)
    bad = world.commit()
    proof = prove(read(world)[0], world.settings(), TOOLS)
    assert b"0.01" in proof.latest[world.brain].data
    assert b"4100" in proof.latest[world.phase].data, "the good file of the same revision is used"
    (reason,) = proof.passed_over[world.brain]
    assert bad in reason and "factor of 10" in reason


def test_a_bad_revision_is_not_what_later_ones_are_measured_by(world: World) -> None:
    world.commit()
    world.edit(world.brain, maxQty=10)
    world.commit()
    world.edit(world.brain, maxQty=20)  # only twice of the bad one
    world.commit()
    world.edit(world.brain, maxQty=0.02)
    good = world.commit()
    proof = prove(read(world)[0], world.settings(), TOOLS)
    assert good in proof.latest[world.brain].revision and b"0.02" in proof.latest[world.brain].data
    assert len(proof.passed_over[world.brain]) == 2
    assert len(proof.seen[world.brain]) == 4


def test_when_every_revision_is_bad_there_is_none(world: World) -> None:
    for environment in ("staging", "testing"):
        world.edit(world.brain, environment=environment)
        world.commit()
    proof = prove(read(world)[0], world.settings(), TOOLS)
    assert world.brain not in proof.latest and world.phase in proof.latest
    assert len(proof.passed_over[world.brain]) == 2 and CANARY not in str(proof.passed_over)
