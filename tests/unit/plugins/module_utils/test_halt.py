# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import itertools
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _fence, _halt, _venue
from ansible_collections.titan.disaster_recovery.plugins.module_utils._probe import FAIL, PASS, UNKNOWN, NoAnswer, Refused, Response, Verdict

ONE = Decimal(1)


class Exchange:
    """Counts its time in reads; `flow` are the client ids of orders that come in after a mark."""

    def __init__(self, name: str = "binance", flow: tuple[str, ...] = (), open_orders: tuple[str, ...] = (), cancels: bool = True) -> None:
        self.name, self.now, self.cancels, self.asked = name, 1000.0, cancels, 0
        self.broken: Exception | None = None
        self.hangs = 0.0
        self.open = [self.order(name) for name in open_orders]
        self.flow, self.sent, self.filled = flow, list(self.open), []  # type: ignore[var-annotated]

    def order(self, client_id: str, at: float = 900.0) -> _venue.Order:
        return _venue.Order(f"{self.name}-{client_id}", client_id, "BTCUSDT", "buy", ONE, ONE * 0, ONE, "limit", "open", at)

    def fill(self, order_id: str, at: float) -> _venue.Fill:
        return _venue.Fill(f"f-{order_id}", order_id, order_id, "BTCUSDT", "buy", ONE, ONE, ONE, at)

    def opener(self, spec: dict[str, Any], timeout: float) -> Exchange:
        self.asked += 1
        time.sleep(self.hangs)
        if self.broken:
            raise self.broken
        return self

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.sent += [self.order(name, self.now - 0.1) for name in self.flow]

    def server_time(self) -> float:
        return self.now

    def open_orders(self) -> list[_venue.Order]:
        return list(self.open)

    def orders_since(self, since: float) -> list[_venue.Order]:
        return [order for order in self.sent if order.at >= since]

    def fills(self, since: float) -> list[_venue.Fill]:
        return [fill for fill in self.filled if fill.at >= since]

    def cancel_all(self) -> int:
        count = len(self.open)
        if self.cancels:
            self.open = []
        return count


class Wall:
    """A fence that never was in this machine's kernel."""

    def __init__(self, standing: bool = False, why: str | None = None, breaks: bool = False) -> None:
        self.standing, self.why, self.breaks = standing, why, breaks

    def exists(self) -> bool:
        return self.standing

    def usable(self) -> str | None:
        return self.why

    def up(self) -> None:
        if self.breaks:
            raise _fence.FenceError("the fence could not be put up")
        self.standing = True

    def down(self) -> None:
        self.standing = False


class Server:
    """Services, exchanges and a fence, and a ladder for them."""

    def __init__(self, folder: Path, *exchanges: Exchange, processes: int = 3, left: int = 0, app: str = PASS, **wall: Any) -> None:
        keys = folder / "secrets.json"
        keys.write_text("{}")
        self.exchanges = {exchange.name: exchange for exchange in exchanges}
        self.running, self.left, self.app, self.stops, self.asks = processes, left, app, 0, 0
        self.wall = Wall(**wall)
        self.has_call = True
        self.venues = _halt.Venues([{"name": name, "keys": {"file": str(keys)}} for name in self.exchanges], self.open, self.sleep)
        self.slept = 0.0

    def open(self, spec: dict[str, Any], timeout: float) -> Exchange:
        return self.exchanges[spec["name"]].opener(spec, timeout)

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        for exchange in self.exchanges.values():
            exchange.pass_time(seconds)

    def ask(self) -> Verdict:
        self.asks += 1
        return Verdict("halt", self.app, "POST /halt: status 200")

    def stop(self) -> list[int]:
        self.stops += 1
        self.running = self.left
        for exchange in self.exchanges.values():
            # what is stopped orders no more
            exchange.flow = exchange.flow if self.left else ()
        return list(range(self.left))

    def climb(self, **params: Any) -> tuple[str, list[tuple[str, str]], _halt.Ladder]:
        means = _halt.Means(
            self.ask if self.has_call else None, self.stop, lambda: list(range(self.running)), self.venues, self.wall, itertools.count().__next__
        )
        known = {"user": "titan", "unit": "pm2-titan", "latch_honoured": True, "cancel": "on_escalation", "watch": 1.5, "venue_timeout": 2.0, **params}
        ladder = _halt.Ladder(means, known)
        gate = ladder.climb()
        assert gate["name"] == "halted" and gate["evidence"].startswith("latch fastened; ")
        return gate["verdict"], [(rung["rung"], rung["verdict"]) for rung in ladder.rungs], ladder


def test_the_services_halt_and_no_order_comes(tmp_path: Path) -> None:
    server = Server(tmp_path, Exchange("binance", open_orders=("t-1",)), Exchange("bybit"))
    verdict, rungs, ladder = server.climb()
    assert (verdict, rungs) == (PASS, [("app", PASS)]) and server.stops == 0
    assert "binance has no newer order; bybit has no newer order" in ladder.rungs[0]["evidence"]
    assert 1.5 < server.slept < 2, "watched"
    assert ladder.cancelled == {} and server.exchanges["binance"].open, "what rests there is not touched without need"


def test_a_halt_that_lies_is_caught_at_the_exchange(tmp_path: Path) -> None:
    """H02: 200, halted, and goes on ordering."""
    server = Server(tmp_path, Exchange("binance", open_orders=("t-1",)), Exchange("bybit", flow=("t-9",)))
    verdict, rungs, ladder = server.climb()
    assert (verdict, rungs) == (PASS, [("app", FAIL), ("stop", PASS), ("cancel", PASS), ("exchanges", PASS)])
    assert "say that they halted" in ladder.rungs[0]["evidence"] and "bybit has 1 orders that are newer: t-9" in ladder.rungs[0]["evidence"]
    assert ladder.cancelled["binance"] == {"count": 1, "ids": ["t-1"], "left": []} and ladder.cancelled["bybit"]["count"] == 0
    assert not server.wall.standing


@pytest.mark.parametrize("said", [FAIL, UNKNOWN])
def test_a_halt_that_is_not_confirmed_stops_the_services(tmp_path: Path, said: str) -> None:
    """H01."""
    server = Server(tmp_path, Exchange(), app=said)
    assert server.climb()[:2] == (PASS, [("app", FAIL), ("stop", PASS), ("cancel", PASS), ("exchanges", PASS)])


def test_unreachable_exchanges_are_unknown_not_quiet(tmp_path: Path) -> None:
    exchange = Exchange()
    exchange.broken = _venue.VenueError("network", "binance: no way there")
    server = Server(tmp_path, exchange)
    verdict, rungs, ladder = server.climb()
    # the services look at the latch before each order
    assert (verdict, rungs) == (PASS, [("app", PASS)]) and "binance cannot be asked: binance: no way there" in ladder.rungs[0]["evidence"]
    assert server.slept == 0, "there is nothing to watch"
    server = Server(tmp_path, exchange, app=UNKNOWN)
    verdict, rungs, ladder = server.climb()
    assert (verdict, rungs) == (PASS, [("app", FAIL), ("stop", PASS), ("cancel", UNKNOWN)])
    assert "whether orders are open could not be asked: binance" in ladder.notes[0]
    assert ladder.rows()["halt"]["cancelled"] == {"binance": {"error": "binance: no way there"}}


def test_what_hangs_costs_its_time_and_no_more(tmp_path: Path) -> None:
    slow, quick = Exchange("slow"), Exchange("quick")
    slow.hangs = 5
    server = Server(tmp_path, slow, quick)
    began = time.monotonic()
    verdict, rungs, ladder = server.climb(venue_timeout=0.3)
    assert (verdict, rungs) == (PASS, [("app", PASS)]) and time.monotonic() - began < 4
    assert "slow cannot be asked: no answer within 0.3 s" in ladder.rungs[0]["evidence"] and "quick has no newer order" in ladder.rungs[0]["evidence"]


def test_an_exchange_that_sends_anything_stops_no_halt(tmp_path: Path) -> None:
    exchange = Exchange()
    exchange.broken = KeyError("secret")
    verdict, _rungs, ladder = Server(tmp_path, exchange).climb()
    assert verdict == PASS and "KeyError while it was asked" in ladder.rungs[0]["evidence"] and "secret" not in ladder.rungs[0]["evidence"]


def test_services_that_forget_are_stopped_without_a_watch(tmp_path: Path) -> None:
    server = Server(tmp_path, Exchange(open_orders=("t-1",)))
    assert server.climb(latch_honoured=False)[:2] == (PASS, [("app", PASS), ("stop", PASS)])
    assert server.slept == 0 and server.exchanges["binance"].open


def test_no_process_is_halted_at_once(tmp_path: Path) -> None:
    exchange = Exchange(open_orders=("t-1",))
    server = Server(tmp_path, exchange, processes=0)
    assert server.climb()[:2] == (PASS, [("processes", PASS)]) and (exchange.asked, server.asks, server.stops, server.slept) == (0, 0, 0, 0)
    server.climb(latch_honoured=False)
    assert server.stops == 1, "and kept from the next boot"
    assert server.climb(cancel="always")[2].cancelled["binance"]["ids"] == ["t-1"]


def test_a_server_without_keys_asks_nobody(tmp_path: Path) -> None:
    venues = _halt.Venues([{"name": "binance", "keys": {"file": str(tmp_path / "none")}}])
    assert venues.specs == {} and venues.missing == ["binance"] and venues.watch(1, 1) == {} and venues.cancel([], 1) == {}


@pytest.mark.parametrize(("policy", "cancelled"), [("never", False), ("on_escalation", False), ("always", True)])
def test_the_policy_of_cancelling(tmp_path: Path, policy: str, cancelled: bool) -> None:
    exchange = Exchange(open_orders=("t-1",))
    assert Server(tmp_path, exchange).climb(cancel=policy)[0] == PASS and (exchange.open == []) == cancelled
    exchange = Exchange(open_orders=("t-1",))
    assert Server(tmp_path, exchange, app=FAIL).climb(cancel=policy)[0] == PASS and (exchange.open == []) == (policy != "never")


def test_processes_that_survive_are_fenced(tmp_path: Path) -> None:
    server = Server(tmp_path, app=FAIL, left=2)
    verdict, rungs, ladder = server.climb()
    assert (verdict, rungs) == (PASS, [("app", FAIL), ("stop", FAIL), ("fence", PASS)]) and server.wall.standing
    assert "2 processes of titan left" in ladder.rungs[1]["evidence"]


@pytest.mark.parametrize("wall", [{"why": "nft is not installed"}, {"breaks": True}])
def test_without_a_fence_what_survives_fails_the_halt(tmp_path: Path, wall: dict[str, Any]) -> None:
    verdict, rungs, ladder = Server(tmp_path, app=FAIL, left=1, **wall).climb()
    assert (verdict, rungs[-1]) == (FAIL, ("fence", FAIL)) and "no fence: " in ladder.rungs[-1]["evidence"]


def test_orders_from_somewhere_else_fail_the_halt(tmp_path: Path) -> None:
    """Nothing runs here any more, and the exchange still gets orders with our keys."""
    exchange = Exchange(flow=("x-1",))
    server = Server(tmp_path, exchange)
    server.stop = lambda: []  # type: ignore[method-assign]
    verdict, rungs, _ladder = server.climb()
    assert (verdict, rungs) == (FAIL, [("app", FAIL), ("stop", PASS), ("cancel", PASS), ("exchanges", FAIL), ("fence", PASS), ("exchanges", FAIL)])


def test_orders_that_nobody_can_cancel_fail_the_halt(tmp_path: Path) -> None:
    server = Server(tmp_path, Exchange(open_orders=("t-1",), cancels=False), app=FAIL)
    verdict, rungs, ladder = server.climb(venue_timeout=0.6)
    assert verdict == FAIL and ("cancel", FAIL) in rungs and server.wall.standing
    assert ladder.cancelled["binance"] == {"count": 0, "ids": [], "left": ["t-1"]}


def test_behind_a_fence_nothing_is_believed(tmp_path: Path) -> None:
    server = Server(tmp_path, Exchange(), standing=True)
    verdict, rungs, ladder = server.climb()
    assert (verdict, rungs) == (PASS, [("stop", PASS)]) and server.asks == 0 and not server.wall.standing
    assert "was taken down" in ladder.notes[0] and "a fence of an earlier halt stands" in ladder.rungs[0]["evidence"]
    stuck = Server(tmp_path, Exchange(), standing=True, left=1)
    assert stuck.climb()[0] == PASS and stuck.wall.standing, "it stays as long as there is something behind it"
    gone = Server(tmp_path, standing=True, processes=0)
    assert gone.climb()[0] == PASS and not gone.wall.standing


def test_what_is_newer() -> None:
    exchange = Exchange()
    mark = _halt.Mark(1000.0, frozenset({"binance-old"}))
    order, fill = exchange.order, exchange.fill
    assert _halt.newer(mark, [order("a", 999.9), order("b", 1000.2), order("old", 1001)], []) == (), "on its way, or resting"
    assert _halt.newer(mark, [order("c", 1000.4)], [fill("binance-c", 1000.4)]) == ("c",)
    assert _halt.newer(mark, [], [fill("binance-old", 1001.0), fill("x", 1000.1)]) == (), "what rested there may well fill"
    assert _halt.newer(mark, [], [fill("unseen", 1001.0)]) == ("unseen",)


def test_what_the_services_tell() -> None:
    spec = {"url": "http://127.0.0.1:1/health/trading"}

    def silent(request: Any) -> Response:
        raise NoAnswer("refused")

    assert _halt.told(spec, 1, silent) == {}
    for body, found in ((b'{"halted_venues": ["a"]}', {"halted_venues": ["a"]}), (b"<html>", {}), (b"[]", {}), (b'{"a": 1, "a": 2}', {})):
        assert _halt.told(spec, 1, lambda request, body=body: Response(200, "", body)) == found  # type: ignore[misc]


def test_a_stop_that_systemd_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not heed it is killed within the time, and what kills its killers' time is not waited for."""
    child = subprocess.Popen(
        [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"], stdout=subprocess.PIPE
    )
    assert child.stdout and child.stdout.readline()

    def run(argv: list[str], timeout: float, **more: Any) -> Any:
        time.sleep(timeout)
        raise subprocess.TimeoutExpired(argv, timeout)

    monkeypatch.setattr(_halt.subprocess, "run", run)
    monkeypatch.setattr(_halt, "processes_of", lambda user: [child.pid] if child.poll() is None else [])
    began = time.monotonic()
    assert _halt.stop("pm2-test", "titan", 1.0, for_good=False) == [] and time.monotonic() - began < 3
    assert child.wait() == -9


# --- services that are not there, and servers without a halt of their own ------------------------------------------------


class Port:
    """What becomes of each request, by its number; the time passes with the asking's sleep alone."""

    def __init__(self, *answers: str) -> None:
        self.answers, self.asked, self.now = answers, 0, 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def open(self, request: Any) -> Response:
        what = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if what == "refused":
            raise Refused("[Errno 111] Connection refused")
        if what == "mute":
            self.now += 0.3
            raise NoAnswer("no complete answer within 0.3 s")
        return Response(200, "application/json", b'{"trading": false}' if what == "halted" else b'{"trading": true}')


CALL = {"url": "http://127.0.0.1:3000/halt", "confirm": {"url": "http://127.0.0.1:3000/trading", "expect": {"trading": [False]}}}


@pytest.mark.parametrize(
    ("answers", "verdict", "at_most"),
    [
        (("refused",), UNKNOWN, 0.3),
        (("trades", "refused"), UNKNOWN, 0.3),
        (("refused", "refused", "halted"), PASS, 0.3),
        (("refused", "mute", "refused", "halted"), PASS, 0.8),
        (("trades", "halted"), PASS, 0.1),
        (("mute",), UNKNOWN, 2.0),
        (("trades",), FAIL, 2.0),
    ],
)
def test_nobody_is_asked_who_is_not_there(answers: tuple[str, ...], verdict: str, at_most: float) -> None:
    """Two refusals 0.2 s apart: PM2 may just be starting them. Everything else is asked until the time is over."""
    port = Port(*answers)
    found = _halt.asked(CALL, 2.0, port.open, lambda: port.now, port.sleep)
    assert found.verdict == verdict and port.now <= at_most, (found, port.now)
    assert ("nobody listens at http://127.0.0.1:3000/" in found.evidence) == (answers[-1] == "refused")
    if answers == ("refused",):
        assert port.now >= _halt.REFUSED_FOR, "one refusal is not enough"


def test_without_a_halt_of_their_own_the_services_are_stopped(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.has_call = False
    verdict, rungs, ladder = server.climb()
    assert (verdict, rungs, server.asks, server.stops) == (PASS, [("stop", PASS)], 0, 1) and "no halt of their own" in ladder.rungs[0]["evidence"]
    assert "at a restart" not in ladder.rungs[0]["evidence"] and not server.wall.standing


def test_without_services_nothing_is_to_be_stopped(tmp_path: Path) -> None:
    server = Server(tmp_path, processes=0)
    server.has_call = False
    assert server.climb()[:2] == (PASS, [("processes", PASS)]) and server.stops == 0


def test_what_survives_the_stop_is_fenced_off_there_too(tmp_path: Path) -> None:
    server = Server(tmp_path, left=1)
    server.has_call = False
    assert server.climb()[:2] == (PASS, [("stop", FAIL), ("fence", PASS)]) and server.wall.standing
    walled = Server(tmp_path, left=1, why="nft is not installed")
    walled.has_call = False
    assert walled.climb()[:2] == (FAIL, [("stop", FAIL), ("fence", FAIL)])


def test_where_there_are_exchanges_their_orders_are_cancelled_without_a_call_too(tmp_path: Path) -> None:
    server = Server(tmp_path, Exchange("binance", open_orders=("t-1",)))
    server.has_call = False
    verdict, rungs, ladder = server.climb()
    assert (verdict, rungs) == (PASS, [("stop", PASS), ("cancel", PASS), ("exchanges", PASS)]) and ladder.cancelled["binance"]["count"] == 1


def test_where_trading_is() -> None:
    assert _halt.trades({"url": "x"}, []) and _halt.trades({}, [{"name": "binance"}]) and not _halt.trades({}, [])
