# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known about the running lab: one JSON file, readable by root alone, because every secret of the lab is in it."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypedDict

from titan_dr.lab.engine import LabError
from titan_dr.paths import lab_dir


class Host(TypedDict):
    name: str
    address: str
    image: str


@dataclass
class LabState:
    run_id: str
    profile: str
    network: str
    subnet: str
    engine: dict[str, Any]
    hosts: dict[str, Host]
    ssh: dict[str, str]
    s3: dict[str, str]
    sftp: dict[str, Any]
    age: dict[str, str]
    redis_password: str
    redis_config_command: str
    exchange_keys: dict[str, dict[str, str]]
    exchange_control: str
    # what a server that trades there must know: venue -> name, address, port; and the authority to trust
    venues: dict[str, dict[str, Any]] = field(default_factory=dict)
    exchange_ca: str = ""
    isolation: dict[str, Any] = field(default_factory=dict)
    ready: bool = False

    def host(self, name: str) -> Host:
        if name not in self.hosts:
            raise LabError(f"The lab has no host {name!r}; it has {', '.join(sorted(self.hosts))}")
        return self.hosts[name]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> LabState:
        try:
            data = json.loads(text)
            missing = {item.name for item in fields(cls) if item.default is MISSING and item.default_factory is MISSING} - set(data)
        except (ValueError, TypeError) as exc:
            raise LabError(f"The lab's state is not JSON: {exc}") from exc
        if missing:
            raise LabError(f"The lab's state lacks {', '.join(sorted(missing))}")
        return cls(**{item.name: data[item.name] for item in fields(cls) if item.name in data})


def state_file() -> Path:
    return lab_dir() / "state.json"


def find_state() -> LabState | None:
    """The state of this lab, or None when there is none. A file that cannot be understood is an error, not an absence."""
    try:
        return LabState.from_json(state_file().read_text())
    except FileNotFoundError:
        return None


def load_state() -> LabState:
    state = find_state()
    if state is None:
        raise LabError(f"No lab is running here ({state_file()} does not exist): start one with `titan-dr lab up`")
    return state


def save_state(state: LabState) -> None:
    private_file(state_file(), state.to_json())


def private_file(path: Path, text: str) -> None:
    """Write atomically, never readable by others at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as temporary:
            temporary.write(text)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
