# SPDX-License-Identifier: GPL-3.0-or-later
"""What ends the command with a message and no traceback."""

from __future__ import annotations


class UsageError(Exception):
    """Exit code 2."""
