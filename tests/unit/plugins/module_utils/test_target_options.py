# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _target_options
from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb_report import Target


def test_nothing_is_known() -> None:
    assert _target_options.target_of({"target": None, "config": None, "server": "redis-server"}) is None


def test_what_the_task_says_wins_over_this_host(tmp_path: Path) -> None:
    config = tmp_path / "redis.conf"
    config.write_text("databases 4\nmaxmemory 1gb\nrename-command FLUSHALL nuke\n")
    given = {"databases": 2, "version": None, "modules": ["bf"]}
    found = _target_options.target_of({"target": given, "config": str(config), "server": "redis-server"})
    assert found is not None and found.version is not None and found.version.startswith("7.")
    assert (found.databases, found.maxmemory, found.modules, found.renamed) == (2, 1 << 30, ("bf",), {"FLUSHALL": "nuke"})


def test_the_task_alone() -> None:
    params = {"target": {"server": "valkey", "version": "9.1.2"}, "config": None, "server": "redis-server"}
    assert _target_options.target_of(params) == Target("valkey", "9.1.2")


@pytest.mark.parametrize(("name", "value"), [("version", "seven"), ("maxmemory", -1)])
def test_a_target_that_cannot_be(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        _target_options.target_of({"target": {name: value}, "config": None, "server": "redis-server"})
