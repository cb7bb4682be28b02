# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""The option that all modules of the configuration take."""

from __future__ import annotations

import typing as t

CONFIGURATION: dict[str, t.Any] = {
    "type": "dict",
    "required": True,
    "options": {
        "environment_id": {"type": "str", "required": True},
        "paths": {"type": "list", "elements": "path", "required": True},
        "components": {"type": "list", "elements": "dict", "required": True},
        "server": {"type": "str", "default": ""},
        "venues": {"type": "list", "elements": "dict", "default": []},
        "schemas": {"type": "dict", "default": {}},
        "rules": {"type": "list", "elements": "dict", "default": []},
        "approved": {"type": "list", "elements": "str", "default": []},
        "redis": {"type": "dict", "required": True},
        "redis_password": {"type": "str", "default": "", "no_log": True},
        "user": {"type": "str", "required": True},
        "pm2_home": {"type": "path", "required": True},
        "ecosystem": {"type": "path", "required": True},
        "history": {"type": "path", "required": True},
        "repository": {"type": "path", "required": True},
    },
}
