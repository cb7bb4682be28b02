# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible loads what lies beside a playbook without being told to: so no configuration can leave the clock out."""

from __future__ import annotations

from ansible_collections.titan.disaster_recovery.plugins.callback.recovery_clock import CallbackModule as RecoveryClock


class CallbackModule(RecoveryClock):
    CALLBACK_NAME = "titan.disaster_recovery.recovery_clock"
    CALLBACK_NEEDS_ENABLED = False
