# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose server it is, and what its last recovery came to: what cannot be read is not what is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _state

DAMAGED = ["", "{", "[]", "null", '"lab"', "\xff", "{}", '{"environment_id": null}', '{"environment_id": 7}', '{"run_id": "r"}']


@pytest.fixture(autouse=True)
def state() -> Path:
    folder = Path(_state.STATE_DIR)
    folder.mkdir(parents=True)
    return folder


def test_nobody_claimed_it() -> None:
    assert _state.owner() == {} and _state.belongs("lab") == (True, "claimed by no environment")


@pytest.mark.parametrize(("asked", "good"), [("lab", True), ("prod", False)])
def test_claimed(state: Path, asked: str, good: bool) -> None:
    (state / "owner.json").write_text('{"environment_id": "lab", "run_id": "r"}')
    assert _state.owner() == {"environment_id": "lab", "run_id": "r"}
    assert _state.belongs(asked) == (good, f"claimed by environment lab, this is a run for {asked}")


@pytest.mark.parametrize("text", DAMAGED)
def test_a_claim_that_cannot_be_read_is_nobodys(state: Path, text: str) -> None:
    (state / "owner.json").write_text(text, encoding="latin-1")
    with pytest.raises(_state.StateError, match=r"owner\.json cannot be read"):
        _state.owner()
    known, evidence = _state.belongs("lab")
    assert known is None and "it is not known whose server this is" in evidence


def test_what_the_last_recovery_came_to(state: Path) -> None:
    assert _state.recovered() == {}
    (state / "recovered.json").write_text('{"run_id": "r"}')
    assert _state.recovered() == {"run_id": "r"}
    (state / "recovered.json").write_text("{")
    assert _state.recovered() == {}
