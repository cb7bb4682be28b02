# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""What a component is, and in which order components start. Pure functions only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# A kind other than pm2 is known by its listening port alone.
KINDS = ("pm2", "redis", "port")
PM2_STATES = ("online", "stopped", "launching", "stopping", "errored", "one-launch-status", "waiting restart")
_KEYS = ("name", "kind", "server", "app", "depends_on", "port", "health", "config", "config_digest", "pm2_status", "required", "start_timeout")
_HEALTH_KEYS = ("path", "status", "expect")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")


class ComponentError(ValueError):
    """A component is described wrongly; the message names the component and the key."""


@dataclass(frozen=True)
class Component:
    """One component, checked and with its defaults filled in."""

    name: str
    kind: str
    app: str
    depends_on: tuple[str, ...] = ()
    port: int | None = None
    health: Mapping[str, Any] | None = None
    pm2_status: tuple[str, ...] = ("online",)
    required: bool = True
    start_timeout: float = 30.0
    config: str = ""
    # dotted path in the health body, to the SHA-256 of the file that was loaded
    config_digest: str = ""
    # host name of the server it is on, where there are several
    server: str = ""
    # on another server than this one: it is waited for, never touched
    remote: bool = False

    @property
    def address(self) -> str:
        """Where it is asked from here."""
        return self.server if self.remote else "127.0.0.1"

    @property
    def is_job(self) -> bool:
        """A component that may rest as stopped, such as a cron application."""
        return "stopped" in self.pm2_status

    def probe_spec(self) -> dict[str, Any] | None:
        """Return what to ask the component itself, or None when only PM2 knows about it."""
        if self.health is None:
            return None
        return {
            "name": self.name,
            "url": f"http://{self.address}:{self.port}{self.health['path']}",
            "status": list(self.health.get("status") or [200]),
            "expect": dict(self.health.get("expect") or {}),
        }


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _names(where: str, key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) and item for item in value):
        raise ComponentError(f"{where}: {key}: must be a list of names, not {value!r}")
    return tuple(value)


def _text(where: str, key: str, value: object) -> str:
    if value is not None and not isinstance(value, str):
        raise ComponentError(f"{where}: {key}: must be a text, not {value!r}")
    return value or ""


def _health(where: str, value: object, port: int | None) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ComponentError(f"{where}: health: must be a dictionary or null, not {value!r}")
    for key in value:
        if key not in _HEALTH_KEYS:
            raise ComponentError(f"{where}: health.{key}: is not a known key; known are {', '.join(_HEALTH_KEYS)}")
    if port is None:
        raise ComponentError(f"{where}: health: needs a port to ask")
    path = value.get("path")
    if not isinstance(path, str) or not path.startswith("/"):
        raise ComponentError(f"{where}: health.path: must be a path that starts with a slash, not {path!r}")
    status = value.get("status", [200])
    if not isinstance(status, list) or not status or not all(_is_int(code) and 100 <= code <= 599 for code in status):
        raise ComponentError(f"{where}: health.status: must be a list of HTTP status codes, not {status!r}")
    expect = value.get("expect", {})
    if not isinstance(expect, Mapping):
        raise ComponentError(f"{where}: health.expect: must map a dotted path to acceptable values, not {expect!r}")
    for dotted, acceptable in expect.items():
        if not isinstance(acceptable, list) or not acceptable:
            raise ComponentError(f"{where}: health.expect.{dotted}: must be a list of acceptable values that is not empty, not {acceptable!r}")
    return {"path": path, "status": list(status), "expect": dict(expect)}


def parse_component(raw: object, index: int = 0, server: str = "") -> Component:
    """Check one component as the inventory writes it; `server` is the name of this server."""
    where = f"component number {index + 1}"
    if not isinstance(raw, Mapping):
        raise ComponentError(f"{where}: must be a dictionary, not {raw!r}")
    name = raw.get("name")
    if not isinstance(name, str) or not name:
        raise ComponentError(f"{where}: name: must be a text that is not empty, not {name!r}")
    where = f"component {name}"
    for key in raw:
        if key not in _KEYS:
            raise ComponentError(f"{where}: {key}: is not a known key; known are {', '.join(_KEYS)}")
    kind = raw.get("kind")
    if kind not in KINDS:
        raise ComponentError(f"{where}: kind: must be one of {', '.join(KINDS)}, not {kind!r}")
    place = _text(where, "server", raw.get("server"))
    if place and not _HOST.fullmatch(place):
        raise ComponentError(f"{where}: server: must be a host name, not {place!r}")
    port = raw.get("port")
    if port is not None and not (_is_int(port) and 0 < port < 65536):
        raise ComponentError(f"{where}: port: must be null or a number from 1 to 65535, not {port!r}")
    if kind != "pm2" and port is None:
        raise ComponentError(f"{where}: port: is needed for kind {kind}, it is the only sign that the component is up")
    app = raw.get("app") or name
    # PM2 takes the names as a comma separated list.
    if not isinstance(app, str) or "," in app or app.startswith("-") or app == "all":
        raise ComponentError(f"{where}: app: must be a PM2 process name without a comma, not {app!r}")
    states = _names(where, "pm2_status", raw["pm2_status"]) if raw.get("pm2_status") is not None else ("online",)
    if not states or any(state not in PM2_STATES for state in states):
        raise ComponentError(f"{where}: pm2_status: must be a list of PM2 states ({', '.join(PM2_STATES)}), not {list(states)!r}")
    required = raw.get("required", True)
    if not isinstance(required, bool):
        raise ComponentError(f"{where}: required: must be true or false, not {required!r}")
    start_timeout = raw.get("start_timeout", 30)
    if not _is_number(start_timeout) or start_timeout <= 0:
        raise ComponentError(f"{where}: start_timeout: must be a number of seconds above 0, not {start_timeout!r}")
    return Component(
        name=name,
        kind=kind,
        app=app,
        depends_on=_names(where, "depends_on", raw.get("depends_on") or []),
        port=port,
        health=_health(where, raw.get("health"), port),
        pm2_status=states,
        required=required,
        start_timeout=float(start_timeout),
        config=_text(where, "config", raw.get("config")),
        config_digest=_text(where, "config_digest", raw.get("config_digest")),
        server=place,
        remote=bool(place) and place != server,
    )


def parse_components(raw: object, server: str = "") -> list[Component]:
    """Check the whole list: names are unique, applications and ports on each server, dependencies are known. `server` is the name of this one."""
    if not isinstance(raw, (list, tuple)) or not raw:
        raise ComponentError("components: the list is empty; an empty list would make every check pass")
    components = [parse_component(item, index, server) for index, item in enumerate(raw)]
    for key, values in (
        ("name", [(c.name, "", c.name) for c in components]),
        ("app", [(c.name, c.server if c.remote else "", c.app) for c in components if c.kind == "pm2"]),
        ("port", [(c.name, c.server if c.remote else "", c.port) for c in components if c.port is not None]),
    ):
        seen: dict[Any, str] = {}
        for name, place, value in values:
            if (place, value) in seen:
                raise ComponentError(f"component {name}: {key}: {value} is already used by component {seen[place, value]}")
            seen[place, value] = name
    known = {component.name for component in components}
    for component in components:
        for dependency in component.depends_on:
            if dependency not in known:
                raise ComponentError(f"component {component.name}: depends_on: {dependency} is not a component")
    return components


def here(components: Iterable[Component]) -> list[Component]:
    """Those that are on this server."""
    return [component for component in components if not component.remote]


def start_levels(components: Iterable[Component]) -> list[list[Component]]:
    """Return the components in levels: each depends on earlier levels only. A cycle is refused by name."""
    waiting = {component.name: component for component in components}
    for component in waiting.values():
        for dependency in component.depends_on:
            if dependency not in waiting:
                raise ComponentError(f"component {component.name}: depends_on: {dependency} is not a component")
    levels: list[list[Component]] = []
    done: set[str] = set()
    while waiting:
        level = [component for component in waiting.values() if done.issuperset(component.depends_on)]
        if not level:
            raise ComponentError(f"component {next(iter(waiting))}: depends_on: the dependencies form a cycle: {' -> '.join(_cycle(waiting))}")
        levels.append(level)
        done.update(component.name for component in level)
        for component in level:
            del waiting[component.name]
    return levels


def _cycle(waiting: Mapping[str, Component]) -> list[str]:
    """Walk along unmet dependencies until a name comes back; there is one, as nobody here can start."""
    path = [next(iter(waiting))]
    while True:
        following = next(name for name in waiting[path[-1]].depends_on if name in waiting)
        if following in path:
            return [*path[path.index(following) :], following]
        path.append(following)
