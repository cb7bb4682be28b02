# SPDX-License-Identifier: GPL-3.0-or-later
"""The waiting, with a clock of its own: hours pass in no time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _network
from ansible_collections.titan.disaster_recovery.plugins.module_utils._network_wait import Policy, Waited, Waiting

LOOK_S = 0.1


class World:
    """Two exchanges whose causes are functions of time; each look takes a moment."""

    def __init__(self, a: Callable[[float], str], b: Callable[[float], str] = lambda at: "ok", retry_after: float = 0.0) -> None:
        self.a, self.b, self.retry_after = a, b, retry_after
        self.now = 0.0
        self.looks: list[tuple[float, bool]] = []

    def look(self, deep: bool) -> dict[str, Any]:
        self.now += LOOK_S
        self.looks.append((self.now, deep))
        rows = []
        for name, cause in (("a", self.a(self.now)), ("b", self.b(self.now))):
            more = {"detail": "", "ours": False, "layers": [], "latency_ms": None, "loss": None, "retry_after": self.retry_after}
            rows.append({"name": f"{name}/rest", "owner": name, "kind": "venue", "required": True, "cause": cause, **more})
        return _network.summary(rows, self.now)

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += max(seconds, 0.001)

    def wait(self, one_down: str = "halt_all", timeout: float = 300.0, stability: _network.Stability | None = None) -> Waited:
        return Waiting(self.look, Policy(one_down, 30.0, timeout, stability), lambda: self.now, self.sleep).until_well()


def back_at(moment: float, cause: str = "tcp_silent") -> Callable[[float], str]:
    return lambda at: cause if at < moment else "ok"


def five() -> _network.Stability:
    return _network.Stability(5, 5.0)


def test_what_is_well_is_not_waited_for() -> None:
    found = World(back_at(0)).wait()
    assert (found.kind, found.seconds < 1, found.seen) == ("go", True, ("ok",))


def test_it_goes_on_soon_after_the_network_is_back() -> None:
    world = World(back_at(20))
    found = world.wait()
    assert found.kind == "go" and 20 <= world.now < 21.5
    assert found.seen == ("tcp_silent", "ok")


def test_stable_means_five_seconds_of_good_looks_and_a_deep_one_at_the_end() -> None:
    world = World(back_at(20))
    found = world.wait(stability=five())
    assert found.kind == "go" and 25 <= world.now < 27.5
    assert (found.window, found.relapses) == (5.0, 0)
    assert world.looks[-1][1] and world.looks[0][1]
    assert not world.looks[-2][1], "an exchange is not asked for everything at every look"


def test_a_relapse_doubles_the_time_and_nothing_swings() -> None:
    # three seconds there, three seconds gone, three times; then there
    flaps = World(lambda at: "ok" if at > 18 or (at % 6) >= 3 else "tcp_silent")
    found = flaps.wait(stability=five())
    assert found.kind == "go" and found.relapses >= 2 and found.window >= 20
    assert flaps.now - 18 >= 17


def test_a_network_that_never_stays_is_never_called_stable() -> None:
    found = World(lambda at: "ok" if (at % 8) >= 3 else "tcp_silent").wait(stability=five(), timeout=200)
    assert found.kind == "wait" and found.seconds <= 205


def test_what_only_shows_in_a_deep_look_is_seen_before_it_goes_on() -> None:
    world = World(back_at(0))
    look = world.look

    def key(deep: bool) -> dict[str, Any]:
        found = look(deep)
        if deep and world.now > 1:
            for row in found["endpoints"]:
                row["cause"] = "key_refused"
            return _network.summary(found["endpoints"], found["at"])
        return found

    world.look = key  # type: ignore[method-assign]
    assert world.wait(stability=five()).kind == "stop"


def test_the_time_is_kept() -> None:
    world = World(lambda at: "tcp_silent")
    found = world.wait(timeout=60)
    assert found.kind == "wait" and 60 <= world.now < 63


def test_what_waiting_does_not_change_ends_after_two_looks() -> None:
    world = World(lambda at: "key_refused")
    found = world.wait()
    assert found.kind == "stop" and len(world.looks) == 2
    # once is no proof
    world = World(back_at(0.2, "tls_untrusted"))
    assert world.wait().kind == "go"


def test_an_exchange_that_stays_away_is_gone_on_without() -> None:
    world = World(lambda at: "ok", lambda at: "tcp_silent")
    found = world.wait("halt_venue", stability=five())
    assert (found.kind, found.down) == ("go", ("b",)) and 35 <= world.now < 40
    # what is certain is not waited for
    world = World(lambda at: "ok", lambda at: "key_refused")
    found = world.wait("halt_venue", stability=five())
    assert (found.kind, found.down) == ("go", ("b",)) and world.now < 8
    assert World(lambda at: "ok", lambda at: "tcp_silent").wait(timeout=100).kind == "wait", "halt_all waits for both"


def test_given_up_it_may_come_and_go() -> None:
    world = World(lambda at: "ok", lambda at: "key_refused" if at % 2 < 1 else "ok")
    found = world.wait("halt_venue", stability=five())
    assert (found.kind, found.down, found.relapses) == ("go", ("b",), 0)


def test_what_was_given_up_before_is_not_waited_for_again() -> None:
    world = World(lambda at: "ok", lambda at: "tcp_silent")
    policy = Policy("halt_venue", 30.0, 300.0, five(), frozenset("b"))
    found = Waiting(world.look, policy, lambda: world.now, world.sleep).until_well()
    assert (found.kind, found.down) == ("go", ("b",)) and world.now < 8


def test_nothing_is_given_up_for_one_bad_look() -> None:
    found = World(lambda at: "ok", back_at(0.2, "key_refused")).wait("halt_venue", stability=five())
    assert (found.kind, found.down) == ("go", ())


def test_a_rate_limit_is_waited_for_as_the_exchange_says() -> None:
    world = World(back_at(25, "rate_limited"), retry_after=30)
    assert world.wait().kind == "go"
    assert len(world.looks) == 2 and world.now > 30


def test_looks_get_rarer() -> None:
    world = World(lambda at: "ws_silent")
    world.wait(timeout=300)
    assert len(world.looks) < 200, "an exchange counts connections"
