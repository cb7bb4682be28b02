# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""What recoveries write down on a server: where it lies, whose server it is, and what the last recovery of it came to."""

from __future__ import annotations

import json
import os
import typing as t

STATE_DIR = "/var/lib/titan-dr"


class StateError(Exception):
    """A record is there and cannot be read."""


def path(*names: str) -> str:
    return os.path.join(STATE_DIR, *names)


def read(name: str) -> dict[str, t.Any] | None:
    """The record; None when there is none."""
    try:
        with open(path(name), encoding="utf-8") as handle:
            found = json.load(handle)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        raise StateError(f"{path(name)} cannot be read: {type(exc).__name__}") from exc
    if not isinstance(found, dict):
        raise StateError(f"{path(name)} cannot be read: it is no mapping")
    return found


def owner() -> dict[str, t.Any]:
    """`environment_id` and `run_id` of the claim of this server; empty when no environment claimed it."""
    found = read("owner.json")
    if found is None:
        return {}
    if not isinstance(found.get("environment_id"), str):
        raise StateError(f"{path('owner.json')} cannot be read: it names no environment")
    return found


def belongs(environment_id: str) -> tuple[bool | None, str]:
    """(whether the server is this environment's, or nobody's yet; None: unknown), and the evidence."""
    try:
        claimed = owner().get("environment_id")
    except StateError as exc:
        return None, f"it is not known whose server this is: {exc}"
    if claimed is None:
        return True, "claimed by no environment"
    return claimed == environment_id, f"claimed by environment {claimed}, this is a run for {environment_id}"


def recovered() -> dict[str, t.Any]:
    """`environment_id`, `run_id` and, where trading waits for a person, `trading` of the last recovery. One that cannot be read proves nothing."""
    try:
        return read("recovered.json") or {}
    except StateError:
        return {}
