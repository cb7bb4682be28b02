# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """Options of the modules that verify Redis data for a target."""

    DOCUMENTATION = r"""
options:
  target:
    description:
      - The server that is to load it. What is not given here is taken from O(config), or not held against the data.
    type: dict
    suboptions:
      server:
        description: Its family.
        type: str
        choices: [redis, valkey]
      version:
        description: Its version, as in V(7.0.15).
        type: str
      databases:
        description: How many databases it has.
        type: int
      maxmemory:
        description: Its memory limit in bytes; 0 stands for none.
        type: int
      policy:
        description: Its C(maxmemory-policy).
        type: str
      modules:
        description: The modules it has loaded, as C(MODULE LIST) names them.
        type: list
        elements: str
      renamed:
        description: What C(rename-command) made of its commands; an empty name stands for a disabled one. An AOF names commands, a snapshot does not.
        type: dict
  config:
    description: Configuration file of the target on this host; it completes O(target).
    type: path
  server:
    description: Server program on this host. It tells the version that O(target) does not, and is the scratch server where one is needed.
    type: path
    default: redis-server
  accept_unknown:
    description: Whether the task succeeds when the verdict is C(unknown).
    type: bool
    default: false
"""
