# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """What the inventory says of the configuration."""

    DOCUMENTATION = r"""
options:
  configuration:
    description: What the inventory says of the configuration. The role P(titan.disaster_recovery.config_restore#role) makes it.
    type: dict
    required: true
    suboptions:
      environment_id:
        description: Name of the environment.
        type: str
        required: true
      paths:
        description: Files and directories of the configuration.
        type: list
        elements: path
        required: true
      components:
        description:
          - The components. C(config) is the file of one, C(config_digest) the dotted path in the answer of its health that tells the SHA-256 of
            what it loaded.
        type: list
        elements: dict
        required: true
      server:
        description: The name of this server, where the components are on several. Those of others are left alone.
        type: str
        default: ""
      venues:
        description: The exchanges, with their addresses and the files that hold their keys.
        type: list
        elements: dict
        default: []
      schemas:
        description: JSON Schemas by the path of the file. Of a schema everything must be understood, see the documentation of the scenario.
        type: dict
        default: {}
      rules:
        description:
          - What a value may be, each with C(at), a pattern for JSON pointers, C(file), a pattern for paths, and C(equals), C(minimum), C(maximum) or
            C(factor), by which a number may differ from the last proven revision (V(0) - by any). Where no rule says otherwise it is 10.
        type: list
        elements: dict
        default: []
      approved:
        description: Findings that a person has approved, each as C(path:JSON pointer).
        type: list
        elements: str
        default: []
      redis:
        description: The Redis server, with C(config), C(data_dir), C(unit) and C(user); on another server C(host).
        type: dict
        required: true
      redis_password:
        description: Password of Redis, where its configuration does not hold it in clear.
        type: str
        default: ""
      user:
        description: User of the services.
        type: str
        required: true
      pm2_home:
        description: The PM2_HOME of the daemon.
        type: path
        required: true
      ecosystem:
        description: The file that PM2 starts the services from.
        type: path
        required: true
      history:
        description: The git history of the configuration as one file.
        type: path
        required: true
      repository:
        description: The git repository that it is made from, used when it cannot be read.
        type: path
        required: true
"""
