# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: here
short_description: Keep the components that are on one server
version_added: "0.3.0"
author: Titan DR maintainers (@titan-dr)
description:
  - A component is on a server when its C(server) names it, or when it has none.
positional: server
options:
  _input:
    description: The components, as the inventory describes them.
    type: list
    elements: dict
    required: true
  server:
    description: The name of the server.
    type: str
    default: ""
"""

EXAMPLES = r"""
services: "{{ titan_components | titan.disaster_recovery.here(titan_server) | selectattr('kind', 'equalto', 'pm2') }}"
"""

RETURN = r"""
_value:
  description: Those that are there, unchanged.
  type: list
  elements: dict
"""

import typing as t


def here(components: list[dict[str, t.Any]], server: str = "") -> list[dict[str, t.Any]]:
    """The components that are on this server."""
    return [component for component in components if not component.get("server") or component["server"] == server]


class FilterModule:
    """Filters of the collection."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Name to function."""
        return {"here": here}
