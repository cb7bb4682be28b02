# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from pathlib import Path

import yaml

from ansible_collections.titan.disaster_recovery.plugins.doc_fragments.configuration import ModuleDocFragment
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _config
from ansible_collections.titan.disaster_recovery.plugins.module_utils._config_options import CONFIGURATION
from config_world import World

ROLE = Path(__file__).resolve().parents[4] / "roles" / "config_restore"


def test_what_is_documented_is_what_is_taken() -> None:
    documented = yaml.safe_load(ModuleDocFragment.DOCUMENTATION)["options"]["configuration"]["suboptions"]
    assert list(documented) == list(CONFIGURATION["options"])
    for name, option in CONFIGURATION["options"].items():
        assert {key: documented[name].get(key) for key in ("type", "elements", "required", "default")} == {
            key: option.get(key) for key in ("type", "elements", "required", "default")
        }, name


def test_the_role_gives_all_of_it(tmp_path: Path) -> None:
    given = yaml.safe_load((ROLE / "vars" / "main.yml").read_text())["__config_restore_configuration"]
    assert list(given) == list(CONFIGURATION["options"])
    assert set(World(tmp_path).raw()) == set(given)


def test_the_rules_of_the_role_are_understood(tmp_path: Path) -> None:
    rules = yaml.safe_load((ROLE.parent / "titan" / "defaults" / "main.yml").read_text())["titan_config_rules"]
    assert _config.parse_settings(World(tmp_path).raw(rules=rules)).rules
