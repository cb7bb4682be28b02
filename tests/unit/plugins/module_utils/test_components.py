# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils._components import ComponentError, here, parse_component, parse_components, start_levels


def raw(name: str, *depends_on: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "pm2", "depends_on": list(depends_on), **more}


def test_defaults_and_probe() -> None:
    brain = parse_component(raw("brain", port=3000, health={"path": "/health", "expect": {"status": ["healthy"]}}))
    assert (brain.app, brain.pm2_status, brain.required, brain.start_timeout, brain.is_job) == ("brain", ("online",), True, 30.0, False)
    assert brain.probe_spec() == {"name": "brain", "url": "http://127.0.0.1:3000/health", "status": [200], "expect": {"status": ["healthy"]}}
    job = parse_component(raw("job", app="nightly", pm2_status=["stopped"], port=None, health=None))
    assert job.is_job and job.app == "nightly" and job.probe_spec() is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "systemd"}, "component x: kind"),
        ({"port": "3000"}, "component x: port"),
        ({"port": 0}, "component x: port"),
        ({"port": True}, "component x: port"),
        ({"kind": "redis", "port": None}, "component x: port: is needed"),
        ({"app": "a,b"}, "component x: app"),
        ({"app": "all"}, "component x: app"),
        ({"depends_on": "redis"}, "component x: depends_on"),
        ({"pm2_status": []}, "component x: pm2_status"),
        ({"pm2_status": ["fine"]}, "component x: pm2_status"),
        ({"required": "yes"}, "component x: required"),
        ({"start_timeout": 0}, "component x: start_timeout"),
        ({"start_timeout": "30"}, "component x: start_timeout"),
        ({"server": 3}, "component x: server: must be a text"),
        ({"server": "titan core"}, "component x: server: must be a host name"),
        ({"server": "core/../x"}, "component x: server: must be a host name"),
        ({"server": "-core"}, "component x: server: must be a host name"),
        ({"config": 3}, "component x: config: must be a text"),
        ({"config_digest": ["a"]}, "component x: config_digest: must be a text"),
        ({"helth": None}, "component x: helth: is not a known key"),
        ({"health": {"path": "/health"}}, "component x: health: needs a port"),
        ({"health": "yes", "port": 1}, "component x: health"),
        ({"health": {"path": "health"}, "port": 1}, "component x: health.path"),
        ({"health": {"path": "/", "status": []}, "port": 1}, "component x: health.status"),
        ({"health": {"path": "/", "expect": {"status": "ok"}}, "port": 1}, "component x: health.expect.status"),
        ({"health": {"path": "/", "expect": {"status": []}}, "port": 1}, "component x: health.expect.status"),
        ({"health": {"path": "/", "expected": {}}, "port": 1}, "component x: health.expected"),
    ],
)
def test_message_names_component_and_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ComponentError) as error:
        parse_component({**raw("x"), **change})
    assert str(error.value).startswith(message)


SPLIT = [
    {"name": "redis", "kind": "redis", "port": 6379, "server": "data"},
    raw("brain", "redis", port=3000, server="core", health={"path": "/health"}),
    raw("phase", "brain", port=3000, app="brain", server="phases.example"),
    raw("agent"),
]


def test_a_component_of_another_server_is_remote_and_asked_there() -> None:
    found = {component.name: component for component in parse_components(SPLIT, "core")}
    assert {name: component.remote for name, component in found.items()} == {"redis": True, "brain": False, "phase": True, "agent": False}
    assert {name: component.address for name, component in found.items()} == {
        "redis": "data",
        "brain": "127.0.0.1",
        "phase": "phases.example",
        "agent": "127.0.0.1",
    }
    assert found["brain"].probe_spec()["url"] == "http://127.0.0.1:3000/health"  # type: ignore[index]
    assert parse_components(SPLIT, "data")[1].probe_spec()["url"] == "http://core:3000/health"  # type: ignore[index]
    assert [component.name for component in here(found.values())] == ["brain", "agent"]
    assert [component.name for component in here(parse_components(SPLIT))] == ["agent"], "a host without a name has what is nowhere else"


@pytest.mark.parametrize("server", ["core", "data", "phases.example", ""])
def test_the_order_of_the_start_is_the_same_on_every_server(server: str) -> None:
    levels = [{component.name for component in level} for level in start_levels(parse_components(SPLIT, server))]
    assert levels == [{"redis", "agent"}, {"brain"}, {"phase"}]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"port": 3000, "server": "core"}, "component x: port: 3000 is already used by component brain"),
        ({"app": "brain", "server": "core"}, "component x: app: brain is already used by component brain"),
        ({"port": 3000}, "component x: port: 3000 is already used by component brain"),
        ({"name": "redis", "server": "other"}, "component redis: name: redis is already used"),
    ],
)
def test_what_is_taken_is_taken_on_one_server(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ComponentError) as error:
        parse_components([*SPLIT, {**raw("x"), **more}], "core")
    assert str(error.value).startswith(message)
    assert parse_components([*SPLIT, raw("x", port=3000, server="other", app="brain")], "core")


@pytest.mark.parametrize("wrong", [None, [], {}, "redis"])
def test_an_empty_list_is_refused(wrong: object) -> None:
    with pytest.raises(ComponentError, match="empty"):
        parse_components(wrong)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (raw("a"), "component a: name"),
        (raw("b", app="a"), "component b: app"),
        (raw("b", port=1), "component b: port: 1 is already used by component a"),
        (raw("b", "c"), "component b: depends_on: c is not a component"),
        ({"kind": "pm2"}, "component number 2: name"),
        ("b", "component number 2"),
    ],
)
def test_list_is_checked_as_a_whole(second: object, message: str) -> None:
    with pytest.raises(ComponentError) as error:
        parse_components([raw("a", port=1), second])
    assert str(error.value).startswith(message)


def levels(*items: dict[str, Any]) -> list[list[str]]:
    return [[component.name for component in level] for level in start_levels(parse_components(list(items)))]


def test_levels() -> None:
    guide = [raw(f"phase{number}", "shared") for number in (1, 2, 3)]
    assert levels(*guide, raw("shared", "brain"), raw("brain", "redis"), {"name": "redis", "kind": "redis", "port": 6379}) == [
        ["redis"], ["brain"], ["shared"], ["phase1", "phase2", "phase3"],
    ]
    assert levels(raw("a"), raw("b"), raw("c", "a", "b"), raw("d", "a")) == [["a", "b"], ["c", "d"]]


@pytest.mark.parametrize(
    ("items", "cycle"),
    [
        ([raw("a", "a")], "a -> a"),
        ([raw("a", "b"), raw("b", "a")], "a -> b -> a"),
        ([raw("free"), raw("x", "a"), raw("a", "free", "b"), raw("b", "c"), raw("c", "a")], "a -> b -> c -> a"),
    ],
)
def test_a_cycle_is_named(items: list[dict[str, Any]], cycle: str) -> None:
    with pytest.raises(ComponentError) as error:
        start_levels(parse_components(items))
    assert str(error.value).endswith(f"cycle: {cycle}")


def test_levels_refuse_an_unknown_dependency() -> None:
    with pytest.raises(ComponentError, match="nobody is not a component"):
        start_levels([parse_component(raw("a", "nobody"))])
