# SPDX-License-Identifier: GPL-3.0-or-later
"""The Titans that the lab can raise: which hosts each has, and which of them holds what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from titan_dr.lab.engine import LabError
from titan_dr.paths import project_root

AROUND = ("backup", "exchange")


@dataclass(frozen=True)
class Profile:
    """`replacements`: server in production -> the blank host that takes its place. `data` has Redis, `trades` talks to the exchanges."""

    inventory: str
    replacements: Mapping[str, str]
    data: str
    trades: str
    # the profile whose production image and templates its servers have their parts of
    image: str

    @property
    def servers(self) -> tuple[str, ...]:
        return tuple(self.replacements)

    @property
    def hosts(self) -> tuple[str, ...]:
        return (*self.replacements, *self.replacements.values(), *AROUND)

    @property
    def split(self) -> bool:
        return len(self.replacements) > 1

    @property
    def folder(self) -> Path:
        return project_root() / "inventories" / self.inventory

    def recovered(self, group: str, server: str) -> str:
        """The host that this server is after a recovery of this inventory group."""
        return self.replacements[server] if group == "titan_replacement" else server


ONE = {"titan": "replacement"}
PROFILES: Mapping[str, Profile] = {
    "guide": Profile("lab", ONE, "titan", "titan", "guide"),
    "variant": Profile("lab_variant", ONE, "titan", "titan", "variant"),
    "split": Profile("lab_split", {"data": "data2", "core": "core2", "phases": "phases2"}, "data", "core", "guide"),
}


def find(name: str) -> Profile:
    if name not in PROFILES:
        raise LabError(f"Unknown profile {name!r}; there are {', '.join(PROFILES)}")
    return PROFILES[name]


def server_name(host: str) -> str:
    """How the configuration of a split Titan calls one of its servers."""
    return f"titan-{host}"
