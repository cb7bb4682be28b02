# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""A resume: which gates it needs, in which steps it goes, and what makes it halt again at once.

Between two steps the latch says how much the services may do at most, so a resume that dies leaves no more than it had proven.
"""

from __future__ import annotations

import dataclasses
import time
import typing as t
from decimal import Decimal

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _halt, _latch, _probe
from ansible_collections.titan.disaster_recovery.plugins.module_utils._components import Component
from ansible_collections.titan.disaster_recovery.plugins.module_utils._pm2 import Pm2Error, Sample, Watcher
from ansible_collections.titan.disaster_recovery.plugins.module_utils._probe import PASS
from ansible_collections.titan.disaster_recovery.plugins.module_utils._venue import VenueError

FULL = "full"
# A gate that is older says nothing of now; nor does one from the future.
MAX_AGE = 60.0
MAX_AHEAD = 5.0
# The gates that a person may overrule say that they are `of` it; what a service's health says nobody may.
RECONCILE = "reconcile"
SHORTEST_REASON = 15
# Between two looks, and between a look that did not go well and the one that decides.
PAUSE = 0.5


class ResumeError(Exception):
    """Trading must not be resumed, or must be halted again, and why."""


# --- the gates ----------------------------------------------------------------------------------------------------------


def judge(gates: t.Sequence[t.Mapping[str, t.Any]], now: float, reason: str = "", hosts: t.Iterable[str] = (), reconciled: bool = True) -> list[str]:
    """Names of the gates that `reason` overrules; ResumeError with everything that is wrong. Each of `hosts` must have been validated.

    Without `reconciled`, where trading goes on already, no gate of the reconciliation has to be there.
    """
    reason = reason.strip()
    if reason and len(reason) < SHORTEST_REASON:
        raise ResumeError(f"a forced resume needs a reason of at least {SHORTEST_REASON} characters, this one has {len(reason)}")
    if not gates:
        raise ResumeError("no gate was reported, so nothing proves that trading may go on")
    wrong = [] if not reconciled or any(gate.get("of") == RECONCILE for gate in gates) else ["nothing was reconciled with the exchanges"]
    wrong += [] if any(gate.get("of") != RECONCILE for gate in gates) else ["nothing was validated"]
    validated = {gate.get("host") for gate in gates if gate.get("of") != RECONCILE}
    wrong += [f"nothing was validated on {host}" for host in hosts if host not in validated]
    several = len({gate.get("host") for gate in gates}) > 1
    forced = []
    for gate in gates:
        name, verdict, at = str(gate.get("name") or "a gate without a name"), gate.get("verdict"), gate.get("at")
        # on several servers the same gates
        name += f" of {gate['host']}" if several and gate.get("host") else ""
        if isinstance(at, bool) or not isinstance(at, (int, float)):
            wrong.append(f"{name} does not say when it was looked at")
        elif now - at > MAX_AGE:
            wrong.append(f"{name} is {now - at:.0f} s old, at most {MAX_AGE:.0f} s are allowed")
        elif at - now > MAX_AHEAD:
            wrong.append(f"{name} was looked at {at - now:.0f} s in the future")
        elif verdict != PASS:
            if reason and gate.get("of") == RECONCILE:
                forced.append(name)
            else:
                wrong.append(f"{name} is {verdict if verdict in ('fail', 'unknown') else 'unknown'}")
    if wrong:
        raise ResumeError("; ".join(wrong))
    return forced


# --- the steps ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Stage:
    mode: str
    seconds: float


def stages_of(raw: t.Sequence[t.Mapping[str, t.Any]]) -> list[Stage]:
    """The steps; without any, one to the full. They only ever allow more, and the last one allows everything."""
    modes = (*_latch.MODES, FULL)
    found = []
    for item in raw:
        seconds = item.get("seconds", 0)
        if item.get("mode") not in modes or isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= 3600:
            raise ResumeError(f"a step of the resume needs a mode ({', '.join(modes)}) and seconds from 0 to 3600")
        found.append(Stage(str(item["mode"]), float(seconds)))
    places = [modes.index(stage.mode) for stage in found]
    if found and (places != sorted(set(places)) or found[-1].mode != FULL):
        raise ResumeError(f"the steps of the resume must be in the order {', '.join(modes)}, each once at most, and end with {FULL}")
    return found or [Stage(FULL, 0.0)]


def call_for(call: t.Mapping[str, t.Any], stage: Stage, staged: bool) -> dict[str, t.Any]:
    """The resume call of a step. The effect of the last one is what the inventory says; before it, that the services tell this mode."""
    if not staged:
        return dict(call)
    made = {**call, "body": {**(call.get("body") or {}), "mode": stage.mode}}
    if stage.mode != FULL:
        made["confirm"] = {**call["confirm"], "expect": {"mode": [stage.mode]}}
    return made


# --- the processes --------------------------------------------------------------------------------------------------------


class Processes:
    """The processes of these components: watched from `begin` on, and up for `window` seconds before everything is allowed."""

    def __init__(self, watcher: Watcher, components: list[Component], window: float) -> None:
        self.watcher, self.components, self.window = watcher, components, window
        self.first: Sample | None = None

    def begin(self) -> None:
        try:
            self.first = self.watcher.sample(self.components)
        except Pm2Error as exc:
            raise ResumeError(str(exc)) from exc

    def settled(self) -> None:
        """ResumeError when one of them was started anew since, or is not up for long enough at the end of the window; waits for what is missing of it."""
        try:
            findings, dummy = self.watcher.watch(self.components, self.window, first=self.first)
        except Pm2Error as exc:
            raise ResumeError(str(exc)) from exc
        wrong = [f"{finding.name} is {finding.verdict}: {finding.evidence}" for finding in findings if finding.verdict != PASS]
        if wrong:
            raise ResumeError("; ".join(wrong))


# --- the tripwires --------------------------------------------------------------------------------------------------------


def enlarges(size: Decimal, order: t.Any) -> tuple[bool, Decimal]:
    """Whether this order makes the position (signed size) larger or turns it around, and the position after it."""
    after = size + (order.qty if order.side == "buy" else -order.qty)
    return abs(after) > abs(size) or after * size < 0, after


def trip(mode: str, orders: t.Sequence[t.Any], ours: t.Container[str], sizes: t.Mapping[str, Decimal]) -> str:
    """What of the orders since the step began must not be there; empty when nothing is."""
    held = dict(sizes)
    for order in sorted(orders, key=lambda order: order.at):
        named = f"order {order.client_id or order.id} ({order.side} {order.qty} {order.symbol})"
        if mode == "observe":
            return f"{named} although nothing may be sent"
        if order.client_id not in ours:
            return f"{named} is not in our book"
        if mode == "reduce_only" and order.status not in ("cancelled", "rejected"):
            if order.symbol not in held:
                return f"{named} in a symbol whose position is not known"
            larger, held[order.symbol] = enlarges(held[order.symbol], order)
            if larger:
                return f"{named} makes the position larger although it may only be reduced"
    return ""


@dataclasses.dataclass(frozen=True)
class Base:
    """An exchange when a step begins."""

    mark: _halt.Mark
    sizes: dict[str, Decimal]


class Tripwires:
    """Looks at health and exchanges while a step is watched. `ours` tells which of these client ids are in the book."""

    def __init__(
        self,
        venues: _halt.Venues,
        probes: t.Sequence[t.Mapping[str, t.Any]],
        ours: t.Callable[[t.Iterable[str]], t.Container[str]],
        limit: float,
        prober: t.Callable[[t.Mapping[str, t.Any], float], _probe.Verdict] = _probe.probe,
        clock: t.Callable[[], float] = time.monotonic,
        sleep: t.Callable[[float], None] = time.sleep,
    ) -> None:
        self.venues, self.probes, self.ours, self.limit = venues, probes, ours, limit
        self.prober, self.clock, self.sleep = prober, clock, sleep
        self.bases: dict[str, Base] = {}

    def _all(self, work: t.Callable[[str, t.Any], _halt.T]) -> dict[str, _halt.T]:
        """From every exchange that is required; one that cannot be asked is asked once more."""
        found: dict[str, _halt.T] = {}
        missing = list(self.venues.specs)
        for attempt in range(2):
            answers = self.venues.each(missing, work, self.limit)
            found.update({name: answer for name, answer in answers.items() if not isinstance(answer, VenueError)})
            failed = {name: answer for name, answer in answers.items() if isinstance(answer, VenueError) and self.venues.specs[name].get("required", True)}
            if not failed:
                return found
            missing = list(failed)
            if attempt == 0:
                self.sleep(PAUSE)
        raise ResumeError(f"an exchange cannot be read: {'; '.join(f'{name}: {failed[name]}' for name in missing)}")

    def begin(self) -> None:
        """Before a step allows more: what is there by then is not of the step."""
        if self.venues.missing:
            raise ResumeError(f"there are no keys for {', '.join(self.venues.missing)} on this server")

        def look(name: str, venue: t.Any) -> Base:
            sizes = {symbol: position.size for symbol, position in venue.positions().items()}
            resting = frozenset(order.id for order in venue.open_orders())
            return Base(_halt.Mark(venue.server_time(), resting), sizes)

        self.bases = self._all(look)

    def look(self, mode: str) -> None:
        """ResumeError when something is wrong."""
        for spec in self.probes:
            verdict = self.prober(spec, 2.0)
            if verdict.verdict != PASS:
                self.sleep(PAUSE)
                verdict = self.prober(spec, 2.0)
            if verdict.verdict != PASS:
                raise ResumeError(f"{verdict.name} is {verdict.verdict}: {verdict.evidence}")

        def later(name: str, venue: t.Any) -> list[t.Any]:
            base = self.bases.get(name)
            orders = venue.orders_since(base.mark.at) if base else []
            return [order for order in orders if base and order.id not in base.mark.resting and order.at >= base.mark.at]

        for name, orders in self._all(later).items():
            why = trip(mode, orders, self.ours([order.client_id for order in orders]) if orders else (), self.bases[name].sizes if name in self.bases else {})
            if why:
                raise ResumeError(f"{name}: {why}")

    def watch(self, stage: Stage) -> None:
        """At least one look, and one at the end."""
        end = self.clock() + stage.seconds
        while stage.seconds:
            self.look(stage.mode)
            left = end - self.clock()
            if left <= 0:
                return
            self.sleep(min(PAUSE, left))
