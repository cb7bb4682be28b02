# SPDX-License-Identifier: GPL-3.0-or-later
"""The server is lost."""

from __future__ import annotations

from titan_dr.lab import hosts
from titan_dr.lab.engine import LabError, find
from titan_dr.lab.faults.base import VICTIM, Fault
from titan_dr.lab.state import load_state


def must_be_gone() -> dict[str, str]:
    """Removed, not merely stopped."""
    container = load_state().host(VICTIM)["name"]
    # 0: there, 1: not there, anything else: podman could not say
    code = find().run("container", "exists", container, check=False, timeout=30).returncode
    if code != 1:
        raise LabError(f"{container} is not gone (podman container exists: exit code {code}), so a recovery would prove nothing")
    return {"podman": "no such container"}


FAULTS = (Fault("destroyed", "the server is gone with its disk", lambda: hosts.destroy_host(VICTIM), prove=must_be_gone),)
