# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest

from ansible_collections.titan.disaster_recovery.plugins.filter import servers as filters

SPLIT = [{"name": "redis", "server": "data"}, {"name": "brain", "server": "core"}, {"name": "shared", "server": "core"}, {"name": "anywhere"}]
ONE = [{"name": "redis"}, {"name": "brain", "server": ""}]


def test_each_server_once() -> None:
    assert filters.servers(SPLIT, {"a": "data", "b": "core"}) == []
    assert filters.servers(ONE, {"a": ""}) == []
    # a name that nothing asks for is no reason to refuse the only server
    assert filters.servers(ONE, {"a": "titan"}) == []


@pytest.mark.parametrize(
    ("hosts", "told"),
    [
        ({"a": "data"}, ["no host is the server core"]),
        ({}, ["no host is the server data", "no host is the server core"]),
        ({"a": "data", "b": "core", "c": "core"}, ["b and c are all the server core"]),
        ({"a": "data", "b": "core", "c": ""}, ["c is '' by its titan_server, which no component names"]),
        ({"a": "data", "b": "cores"}, ["no host is the server core", "b is 'cores' by its titan_server, which no component names"]),
    ],
)
def test_what_is_missing_doubled_or_unknown(hosts: dict[str, str], told: list[str]) -> None:
    assert filters.servers(SPLIT, hosts) == told


def test_a_titan_on_one_server_takes_one() -> None:
    assert "exactly one server" in filters.servers(ONE, {})[0]
    [told] = filters.servers(ONE, {"a": "", "b": ""})
    assert "exactly one server" in told and "2: a, b" in told
    # no component at all says nothing of several servers either
    assert filters.servers([], {"a": "", "b": ""}) != []


def test_names() -> None:
    assert set(filters.FilterModule().filters()) == {"servers"}
