# SPDX-License-Identifier: GPL-3.0-or-later
"""Corrupts the lab's Redis as a drill does, and fails when it does not show."""

from __future__ import annotations

from titan_dr.lab.faults import find_fault

fault = find_fault("database_corruption", "bitflip")
fault.prepare()
print(fault.strike())
