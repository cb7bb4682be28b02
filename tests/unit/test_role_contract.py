# SPDX-License-Identifier: GPL-3.0-or-later
"""Each role keeps the same contract: what it takes is in defaults or required, documented in its argument specification, in step.

Ansible never applies the defaults of an argument specification and refuses no unknown variable, so nothing else keeps the two together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
MISSION = {"titan", "provision", "dependencies", "redis_restore", "config_restore", "app_restore", "validate", "trading_halt", "backup"}

TASKS_MAIN_LINES = 60
TITAN_DEFAULTS_LINES = 130


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None


def options(role: str) -> dict[str, Any]:
    return load(ROOT / "roles" / role / "meta/argument_specs.yml")["argument_specs"]["main"].get("options") or {}


def test_all_roles_of_the_mission_exist() -> None:
    assert set(ROLES) >= MISSION


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", ["README.md", "meta/main.yml", "meta/argument_specs.yml", "tasks/main.yml"])
def test_role_has_its_files(role: str, name: str) -> None:
    path = ROOT / "roles" / role / name
    assert path.is_file(), f"roles/{role}/{name} is missing"
    assert path.read_text(encoding="utf-8").strip(), f"roles/{role}/{name} is empty"


@pytest.mark.parametrize("role", ROLES)
def test_defaults_and_argument_specs_name_the_same_variables(role: str) -> None:
    defaults = load(ROOT / "roles" / role / "defaults/main.yml") or {}
    optional = {name for name, option in options(role).items() if not (option.get("required") and "default" not in option)}
    assert sorted(defaults) == sorted(optional)


@pytest.mark.parametrize("role", ROLES)
def test_a_documented_default_is_the_default(role: str) -> None:
    defaults = load(ROOT / "roles" / role / "defaults/main.yml") or {}
    differing = {name: option["default"] for name, option in options(role).items() if "default" in option and defaults.get(name) != option["default"]}
    assert differing == {}


@pytest.mark.parametrize("role", ROLES)
def test_every_entry_point_and_option_is_described(role: str) -> None:
    specs = load(ROOT / "roles" / role / "meta/argument_specs.yml")["argument_specs"]
    for entry_point, spec in specs.items():
        assert spec.get("short_description"), f"{entry_point} has no short_description"
        assert spec.get("description"), f"{entry_point} has no description"
        bare = [name for name, option in (spec.get("options") or {}).items() if not option.get("description") or not option.get("type")]
        assert bare == [], f"{entry_point}: options without description or type"


@pytest.mark.parametrize("role", ROLES)
def test_public_variables_carry_the_name_of_their_role(role: str) -> None:
    assert [name for name in options(role) if not name.startswith((f"{role}_", "titan_"))] == []


@pytest.mark.parametrize("role", ROLES)
def test_tasks_main_is_a_table_of_contents(role: str) -> None:
    lines = (ROOT / "roles" / role / "tasks/main.yml").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= TASKS_MAIN_LINES, "move the steps into files of their own"


def test_the_titan_role_stays_a_list_of_nouns() -> None:
    lines = (ROOT / "roles/titan/defaults/main.yml").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= TITAN_DEFAULTS_LINES, "knobs belong to the role that turns them"
