# SPDX-License-Identifier: GPL-3.0-or-later
"""Where things are: the checkout the command works on, and the folders it writes."""

from __future__ import annotations

import os
from pathlib import Path

ROOT_VARIABLE = "TITAN_DR_ROOT"
LAB_VARIABLE = "TITAN_DR_LAB_DIR"


def _is_root(path: Path) -> bool:
    return (path / "galaxy.yml").is_file() and (path / "playbooks").is_dir()


def project_root() -> Path:
    """The project's checkout: named by TITAN_DR_ROOT, else where this file lives, else above the working directory."""
    named = os.environ.get(ROOT_VARIABLE)
    if named:
        return Path(named).resolve()
    for start in (Path(__file__).resolve().parent, Path.cwd()):
        for path in (start, *start.parents):
            if _is_root(path):
                return path
    raise FileNotFoundError(f"No titan.disaster_recovery checkout above {Path.cwd()}: run from one, or set {ROOT_VARIABLE}.")


def lab_dir() -> Path:
    """State of the running lab (keys, known_hosts, state.json)."""
    named = os.environ.get(LAB_VARIABLE)
    return Path(named).resolve() if named else project_root() / ".lab"


def lab_sources() -> Path:
    """What the lab's hosts are made of."""
    return project_root() / "lab"
