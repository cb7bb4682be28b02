# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Wait until the way to the exchanges is back, and until it is stable. Looking, time and sleep are passed in."""

from __future__ import annotations

import dataclasses
import time
import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _network

Look = t.Callable[[bool], dict[str, t.Any]]


@dataclasses.dataclass
class Waited:
    """How the waiting ended: go, stop (waiting is no use), wait (the time was over)."""

    kind: str
    network: dict[str, t.Any]
    down: tuple[str, ...] = ()
    seconds: float = 0.0
    window: float = 0.0
    relapses: int = 0
    seen: tuple[str, ...] = ()  # causes in the order of their first appearance


@dataclasses.dataclass
class Policy:
    one_down: str
    patience: float
    timeout: float
    stability: _network.Stability | None = None  # without: the first good look is enough
    given_up: frozenset[str] = frozenset()  # what was gone on without before


class Waiting:
    def __init__(self, look: Look, policy: Policy, clock: t.Callable[[], float] = time.monotonic, sleep: t.Callable[[float], None] = time.sleep) -> None:
        self.look, self.policy, self.clock, self.sleep = look, policy, clock, sleep
        self.started = clock()
        self.given_up = policy.given_up
        self.suspected: set[str] = set()
        self.seen: list[str] = []

    def until_well(self) -> Waited:
        """The waiting as a whole."""
        end = self.started + self.policy.timeout
        hopeless = 0
        # only a deep look asks the exchange for all it has to say; a good stretch begins and ends with one
        deep = True
        while True:
            began = self.clock()
            network, verdict = self.judged(deep)
            hopeless = hopeless + 1 if verdict.kind == "stop" else 0
            # what is hopeless is looked at twice
            if hopeless > 1:
                return self.ended("stop", network, verdict)
            good = verdict.kind == "go" and self.given_up_twice(network, verdict)
            if self.stable(good, began):
                if not deep:
                    network, verdict = self.judged(True)
                if verdict.kind == "go":
                    return self.ended("go", network, verdict)
                self.stable(False, self.clock())
                good = False
            if self.clock() >= end:
                return self.ended("stop" if verdict.kind == "stop" else "wait", network, verdict)
            deep = not good
            self.sleep(min(max(0.0, end - self.clock()), self.pause(good, network, began)))

    def judged(self, deep: bool) -> tuple[dict[str, t.Any], _network.Verdict]:
        network = self.look(deep)
        if network["cause"] not in self.seen:
            self.seen.append(network["cause"])
        waited = self.clock() - self.started
        return network, _network.judge(network, self.policy.one_down, waited, self.policy.patience, self.given_up)

    def given_up_twice(self, network: dict[str, t.Any], verdict: _network.Verdict) -> bool:
        """What is gone on without is given up for the whole run, so it is looked at twice before."""
        away = {row["owner"] for row in network["endpoints"] if row["required"] and row["owner"] in verdict.down} - self.given_up
        sure = away <= self.suspected
        self.suspected = away
        self.given_up |= away if sure else frozenset()
        return sure

    def stable(self, good: bool, at: float) -> bool:
        stability = self.policy.stability
        return good if stability is None else stability.see(good, at)

    def pause(self, good: bool, network: dict[str, t.Any], began: float) -> float:
        if good and self.policy.stability is not None:
            return max(0.0, began + self.policy.stability.interval - self.clock())
        retry_after = max((row["retry_after"] for row in network["endpoints"] if row["cause"] == "rate_limited"), default=0.0)
        return _network.pause(self.clock() - self.started, retry_after)

    def ended(self, kind: str, network: dict[str, t.Any], verdict: _network.Verdict) -> Waited:
        stability = self.policy.stability
        waited = Waited(kind, network, verdict.down if kind == "go" else (), self.clock() - self.started, seen=tuple(self.seen))
        if stability is not None:
            waited.window, waited.relapses = stability.seconds, stability.relapses
        return waited
