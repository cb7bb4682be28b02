# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab: a real Titan, a blank replacement, a backup store and simulated exchanges on one machine, without a way out."""

from __future__ import annotations

from titan_dr.lab.engine import LabError
from titan_dr.lab.hosts import LabStatus, destroy_host, down, exec, ssh_options, start_host, status, up
from titan_dr.lab.state import LabState, load_state

__all__ = ["LabError", "LabState", "LabStatus", "destroy_host", "down", "exec", "load_state", "ssh_options", "start_host", "status", "up"]
