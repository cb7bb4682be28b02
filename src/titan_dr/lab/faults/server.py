# SPDX-License-Identifier: GPL-3.0-or-later
"""Every server of the Titan is lost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from titan_dr.lab import hosts, profiles
from titan_dr.lab.engine import LabError, find
from titan_dr.lab.faults.base import ANY, Fault
from titan_dr.lab.state import load_state


def servers() -> tuple[str, ...]:
    return profiles.find(load_state().profile).servers


def destroy() -> dict[str, str]:
    """All at once, as when a building is lost."""
    names = servers()
    with ThreadPoolExecutor(max_workers=len(names)) as pool:
        found = list(pool.map(hosts.destroy_host, names))
    return {key: ", ".join(evidence[key] for evidence in found) for key in found[0]}


def must_be_gone() -> dict[str, str]:
    """Removed, not merely stopped."""
    state = load_state()
    for name in servers():
        container = state.host(name)["name"]
        # 0: there, 1: not there, anything else: podman could not say
        code = find().run("container", "exists", container, check=False, timeout=30).returncode
        if code != 1:
            raise LabError(f"{container} is not gone (podman container exists: exit code {code}), so a recovery would prove nothing")
    return {"podman": "no such container"}


FAULTS = (Fault("destroyed", "the server is gone with its disk; of a Titan on several all of them", destroy, prove=must_be_gone, profiles=ANY),)
