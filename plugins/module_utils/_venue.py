# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""An exchange as a client sees it: time, rights, instruments, account, orders, positions, fills. Standard library only."""

from __future__ import annotations

import time
import typing as t
from collections.abc import Callable, Mapping

from ansible_collections.titan.disaster_recovery.plugins.module_utils._venue_base import (
    Account,
    Fill,
    Instrument,
    Order,
    Position,
    Rights,
    Venue,
    VenueSpecError,
)
from ansible_collections.titan.disaster_recovery.plugins.module_utils._venue_binance import Binance
from ansible_collections.titan.disaster_recovery.plugins.module_utils._venue_bybit import Bybit
from ansible_collections.titan.disaster_recovery.plugins.module_utils._venue_wire import Answer, Ask, Opener, VenueError

__all__ = [
    "Account",
    "Answer",
    "Ask",
    "Fill",
    "Instrument",
    "Opener",
    "Order",
    "Position",
    "Rights",
    "Venue",
    "VenueError",
    "VenueSpecError",
    "open_venue",
]

_KINDS: dict[str, type[Venue]] = {"binance": Binance, "bybit": Bybit}


def open_venue(spec: Mapping[str, t.Any], timeout: float, opener: Opener | None = None, clock: Callable[[], float] = time.time) -> Venue:
    """The exchange of this description (an entry of titan_venues). Nothing is asked and no key is read yet. `timeout` is for each method."""
    kind = _KINDS.get(str(spec.get("kind", "")))
    if kind is None:
        raise VenueSpecError(f"exchange {spec.get('name')}: kind: must be one of {', '.join(_KINDS)}")
    if not spec.get("name"):
        raise VenueSpecError("an exchange has no name")
    return kind(spec, timeout, opener, clock)
