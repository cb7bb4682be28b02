# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: servers
short_description: Tell why the hosts of a play are not each server of one Titan, once
version_added: "0.3.0"
author: Titan DR maintainers (@titan-dr)
description:
  - A Titan has the servers that its components name. A component without a C(server) is on each of them; a Titan that names none is on exactly one.
positional: hosts
options:
  _input:
    description: The components, as the inventory describes them.
    type: list
    elements: dict
    required: true
  hosts:
    description: The name of the server that each host is, by the name of the host; empty where the host has none.
    type: dict
    required: true
"""

EXAMPLES = r"""
wrong: "{{ titan_components | titan.disaster_recovery.servers({'titan1': 'titan-data', 'titan2': 'titan-core'}) }}"
"""

RETURN = r"""
_value:
  description: What is missing, doubled or unknown, a text each. Empty when the hosts are right.
  type: list
  elements: str
"""

import typing as t


def servers(components: list[dict[str, t.Any]], hosts: dict[str, str]) -> list[str]:
    """Why these hosts are not each server of this Titan, once."""
    wanted = list(dict.fromkeys(str(component["server"]) for component in components if component.get("server")))
    if not wanted:
        names = f": {', '.join(hosts)}" if hosts else ""
        return [] if len(hosts) == 1 else [f"it takes exactly one server, because titan_components names none, and there are {len(hosts)}{names}"]
    wrong = []
    for name in wanted:
        found = [host for host, server in hosts.items() if server == name]
        if len(found) != 1:
            wrong.append(f"{' and '.join(found)} are all the server {name}" if found else f"no host is the server {name}")
    strange = [f"{host} is {server!r} by its titan_server, which no component names" for host, server in hosts.items() if server not in wanted]
    return wrong + strange


class FilterModule:
    """Filters of the collection."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Name to function."""
        return {"servers": servers}
