# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the playbooks and their objectives are: in the checkout, or in the installed collection."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from titan_dr import paths

COLLECTION = "titan.disaster_recovery"
_DEFAULT_PATHS = "~/.ansible/collections:/usr/share/ansible/collections"


class NotFound(Exception):
    """Names what was looked for and where."""


def folder(installed: bool) -> Path:
    if not installed:
        try:
            return paths.project_root() / "playbooks"
        except FileNotFoundError as error:
            raise NotFound(f"{error} With --installed the installed collection is used.") from error
    searched = (os.environ.get("ANSIBLE_COLLECTIONS_PATH") or _DEFAULT_PATHS).split(":")
    for place in searched:
        found = Path(place).expanduser() / "ansible_collections" / "titan" / "disaster_recovery" / "playbooks"
        if found.is_dir():
            return found
    raise NotFound(f"The collection {COLLECTION} is not installed in any of: {', '.join(searched)}")


def scenarios(installed: bool) -> dict[str, dict[str, Any]]:
    import yaml  # not above: `titan-dr verify` has milliseconds

    path = folder(installed) / "vars" / "scenarios.yml"
    try:
        known = yaml.safe_load(path.read_text(encoding="utf-8"))["titan_dr_scenarios"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise NotFound(f"{path} holds no scenarios: {error}") from error
    return dict(known)


def playbook(name: str, installed: bool) -> str:
    path = folder(installed) / f"{name}.yml"
    if not path.is_file():
        raise NotFound(f"No playbook {path}")
    return f"{COLLECTION}.{name}" if installed else str(path)


def working_directory(installed: bool) -> Path | None:
    """ansible.cfg is read from here. An installed collection must do without the checkout's."""
    return None if installed else paths.project_root()
