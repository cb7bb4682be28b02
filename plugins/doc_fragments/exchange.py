# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """Options of the modules that exchange the data directory of the live Redis."""

    DOCUMENTATION = r"""
options:
  data_dir:
    description: The live data directory.
    type: path
    required: true
  config:
    description: The configuration file of the server.
    type: path
    default: /etc/redis/redis.conf
  unit:
    description: The systemd unit of the server.
    type: str
    default: redis-server
  user:
    description: User that owns the data.
    type: str
    default: redis
  username:
    description: ACL user for the checks. Without it the default user.
    type: str
    default: ""
  password:
    description: Its password. Without it the one that the configuration or its ACL file holds in clear.
    type: str
    default: ""
  replicas_consent:
    description: Go on although replicas are attached. They take over what is put live and lose what they hold.
    type: bool
    default: false
  timeout:
    description: Seconds for all of it.
    type: float
    required: true
"""
