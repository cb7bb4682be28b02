# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """What every module that changes a server has to do with its lease."""

    DOCUMENTATION = r"""
options: {}
notes:
  - Works only under the lease of the server (see M(titan.disaster_recovery.recovery_lease)). C(TITAN_DR_COMMAND) in the environment names the run, its attempt
    and the epoch of its lease, as C(run/attempt/epoch). It is refused when the lease is not held by this run with this epoch, and without an epoch when
    anybody holds it. Only M(titan.disaster_recovery.trading_halt) works without an epoch in any case.
  - Writes down in C(/var/lib/titan-dr/journal.jsonl) what it is about to do, before it, and what came of it. When that cannot be written it does nothing,
    except for M(titan.disaster_recovery.trading_halt). Check mode asks for no lease and writes nothing.
"""
