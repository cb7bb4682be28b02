# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """Options of the modules that may have to halt trading by all means."""

    DOCUMENTATION = r"""
options:
  user:
    description: User of the services.
    type: str
    required: true
  unit:
    description: The systemd unit that runs the services.
    type: str
    required: true
  latch_honoured:
    description: Whether the services stay halted while the latch exists.
    type: bool
    default: true
  exchanges:
    description:
      - The exchanges, as C(titan_venues) describes them. Their keys are read on the server. An exchange whose key file is not there is left out.
    type: list
    elements: dict
    default: []
  cancel:
    description:
      - When open orders are cancelled at the exchanges. With V(on_escalation) as soon as the services did not halt by their own word, or were seen to go on.
    type: str
    choices: [never, on_escalation, always]
    default: on_escalation
  app_timeout:
    description: Seconds for the services to halt themselves.
    type: float
    default: 2
  stop_timeout:
    description: Seconds for the services to end. The last fifth is for those that have to be killed.
    type: float
    default: 5
  venue_timeout:
    description: Seconds for the exchanges to answer. One that has not answered at all after 2 seconds counts as unreachable.
    type: float
    default: 5
  fence_timeout:
    description: Seconds for each command that puts up the fence.
    type: float
    default: 1
  watch:
    description: Seconds for which the exchanges must get no new order after a halt.
    type: float
    default: 1.5
"""
