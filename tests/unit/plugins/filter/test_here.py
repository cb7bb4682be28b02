# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from typing import Any

import pytest
import yaml

from ansible_collections.titan.disaster_recovery.plugins.filter import here as filters
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _components

REDIS = {"name": "redis", "kind": "redis", "port": 6379, "server": "titan-data"}
BRAIN = {"name": "brain", "kind": "pm2", "server": "titan-core"}
AGENT = {"name": "agent", "kind": "pm2"}
EMPTY = {"name": "phase", "kind": "pm2", "server": ""}


@pytest.mark.parametrize(
    ("server", "wanted"),
    [("titan-data", [REDIS, AGENT, EMPTY]), ("titan-core", [BRAIN, AGENT, EMPTY]), ("titan", [AGENT, EMPTY]), ("", [AGENT, EMPTY])],
)
def test_a_component_is_where_it_says_or_everywhere(server: str, wanted: list[dict[str, Any]]) -> None:
    given = [REDIS, BRAIN, AGENT, EMPTY]
    found = filters.here(given, server)
    assert found == wanted and all(any(component is other for other in given) for component in found), "they are handed on as they are"
    parsed = _components.here(_components.parse_components(given, server))
    assert [component.name for component in parsed] == [component["name"] for component in wanted], "roles and modules do not agree"


def test_one_server_has_all() -> None:
    assert filters.here([AGENT, EMPTY]) == [AGENT, EMPTY] and filters.here([]) == []


def test_documentation() -> None:
    assert set(filters.FilterModule().filters()) == {yaml.safe_load(filters.DOCUMENTATION)["name"]}
