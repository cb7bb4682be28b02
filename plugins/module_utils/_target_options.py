# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""The target as the options of a task name it, completed by what this host tells. Goes with the documentation fragment target."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _target
from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb_report import Target

ARGUMENTS: dict[str, dict[str, t.Any]] = {
    "target": {
        "type": "dict",
        "options": {
            "server": {"type": "str", "choices": ["redis", "valkey"]},
            "version": {"type": "str"},
            "databases": {"type": "int"},
            "maxmemory": {"type": "int"},
            "policy": {"type": "str"},
            "modules": {"type": "list", "elements": "str"},
            "renamed": {"type": "dict"},
        },
    },
    "config": {"type": "path"},
    "server": {"type": "path", "default": "redis-server"},
    "accept_unknown": {"type": "bool", "default": False},
}


def target_of(params: dict[str, t.Any]) -> Target | None:
    """The target out of the configuration and the program on this host, and out of what the task says, which wins; None when neither is given.

    OSError, RedisError, ValueError or TimeoutExpired when one of them cannot be read.
    """
    given = {name: value for name, value in (params["target"] or {}).items() if value is not None}
    stated = _target.parse(json.dumps(given))
    if not params["config"]:
        return stated if given else None
    with open(params["config"], encoding="utf-8") as handle:
        text = handle.read()
    done = subprocess.run([params["server"], "--version"], capture_output=True, text=True, timeout=30, check=False)
    return dataclasses.replace(_target.of_server(text, done.stdout), **{name: getattr(stated, name) for name in given})
