# SPDX-License-Identifier: GPL-3.0-or-later
"""The disasters that a drill can cause: each really happens, and shows that it has before anything is recovered."""

from __future__ import annotations

from collections.abc import Mapping

from titan_dr.lab.faults import configuration, network, redis, server, trading
from titan_dr.lab.faults.base import VICTIM, Fault, UnknownFault

__all__ = ["FAULTS", "VICTIM", "Fault", "UnknownFault", "find_fault"]

# Scenario -> its faults, the one of a plain drill first.
FAULTS: Mapping[str, tuple[Fault, ...]] = {
    "complete_system_failure": server.FAULTS,
    "configuration_corruption": configuration.FAULTS,
    "database_corruption": redis.FAULTS,
    "network_partition": network.FAULTS,
    "resume": trading.FAULTS,
}


def find_fault(scenario: str, name: str | None = None, profile: str = "guide") -> Fault:
    """By name; without one that of a plain drill."""
    known = FAULTS.get(scenario, ())
    if not known:
        raise UnknownFault(f"The lab has no fault for scenario {scenario}; it has some for {', '.join(FAULTS)}")
    for fault in known:
        if name in (None, fault.name):
            if profile not in fault.profiles:
                raise UnknownFault(f"The fault {fault.name} of scenario {scenario} cannot be caused on profile {profile}; {_possible(profile)}")
            return fault
    raise UnknownFault(f"There is no fault {name} in scenario {scenario}; there are {', '.join(fault.name for fault in known)}")


def _possible(profile: str) -> str:
    found = {scenario: [fault.name for fault in known if profile in fault.profiles] for scenario, known in FAULTS.items()}
    return "there it can be " + "; ".join(f"{', '.join(names)} of {scenario}" for scenario, names in found.items() if names)
