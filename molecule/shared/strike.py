# SPDX-License-Identifier: GPL-3.0-or-later
"""Breaks the lab's Titan as a drill does, and fails when it does not show: strike.py SCENARIO FAULT."""

from __future__ import annotations

import sys

from titan_dr.lab.faults import find_fault

fault = find_fault(*sys.argv[1:])
fault.prepare()
print(fault.strike())
