# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _halt, _resume, _venue
from ansible_collections.titan.disaster_recovery.plugins.module_utils._components import Component
from ansible_collections.titan.disaster_recovery.plugins.module_utils._pm2 import Finding, Pm2Error
from ansible_collections.titan.disaster_recovery.plugins.module_utils._probe import FAIL, PASS, UNKNOWN, Verdict

NOW = 10_000.0


def gate(name: str = "redis", verdict: Any = PASS, age: float = 1.0) -> dict[str, Any]:
    return {"name": name, "verdict": verdict, "at": NOW - age}


def asked(name: str = "reconcile_binance", verdict: Any = PASS, age: float = 1.0) -> dict[str, Any]:
    return {**gate(name, verdict, age), "of": "reconcile"}


# --- gates -----------------------------------------------------------------------------------------------------------


def test_fresh_gates_that_passed() -> None:
    assert _resume.judge([gate(), asked("reconcile_binance")], NOW) == []
    assert _resume.judge([asked(age=60), gate(age=-5)], NOW) == [], "up to the limits"
    with pytest.raises(_resume.ResumeError, match="nothing was reconciled"):
        _resume.judge([gate(), gate("reconcile_binance")], NOW)
    with pytest.raises(_resume.ResumeError, match="nothing was validated"):
        _resume.judge([asked()], NOW)


@pytest.mark.parametrize("age", [60.1, -5.1])
def test_only_now_counts(age: float) -> None:
    for reason in ("", "a long enough reason"):
        with pytest.raises(_resume.ResumeError):
            _resume.judge([asked(age=age)], NOW, reason)


@pytest.mark.parametrize("at", [None, True, "10000", ""])
def test_a_gate_says_when(at: Any) -> None:
    with pytest.raises(_resume.ResumeError, match="does not say when"):
        _resume.judge([{"name": "redis", "verdict": PASS, "at": at}], NOW)


def test_everything_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(_resume.ResumeError, match=r"a is fail; b is unknown; c is 61 s old.*d is unknown"):
        _resume.judge([gate("a", FAIL), gate("b", UNKNOWN), gate("c", age=61), gate("d", "PASS"), gate("e")], NOW)


def test_each_server_must_have_been_validated() -> None:
    of = {host: {**gate(), "host": host} for host in ("core", "data", "phases")}
    found = {**asked(), "host": "core"}
    assert _resume.judge([*of.values(), found], NOW, "", ["core", "data", "phases"]) == []
    with pytest.raises(_resume.ResumeError, match="nothing was validated on data; nothing was validated on phases"):
        _resume.judge([of["core"], found, {**asked(), "host": "data"}], NOW, "", ["core", "data", "phases"])
    for wrong in ({"verdict": FAIL}, {"verdict": UNKNOWN}, {"at": NOW - 61}, {"at": None}):
        for reason in ("", "a long enough reason"):
            with pytest.raises(_resume.ResumeError, match="redis of phases "):
                _resume.judge([of["core"], of["data"], {**of["phases"], **wrong}, found], NOW, reason, ["core", "data", "phases"])
    with pytest.raises(_resume.ResumeError, match="nothing was validated on core"):
        _resume.judge([gate(), asked()], NOW, "", ["core"])


@pytest.mark.parametrize("reason", ["x", "fourteen chars", "     short       ", "               "])
def test_a_reason_has_to_be_one(reason: str) -> None:
    with pytest.raises(_resume.ResumeError):
        _resume.judge([asked(verdict=FAIL)], NOW, reason)


def test_a_reason_overrules_reconciliation_and_nothing_else() -> None:
    reason = "checked by phone with the desk"
    assert _resume.judge([gate(), asked("reconcile_binance", FAIL), asked("rights_bybit", UNKNOWN)], NOW, reason) == ["reconcile_binance", "rights_bybit"]
    for name in ("redis", "exchanges", "reconcile_binance", "halted", ""):
        with pytest.raises(_resume.ResumeError):
            _resume.judge([asked(verdict=FAIL), gate(name, UNKNOWN)], NOW, reason)
    with pytest.raises(_resume.ResumeError, match="no gate"):
        _resume.judge([], NOW, reason)


# --- steps -----------------------------------------------------------------------------------------------------------


def test_steps() -> None:
    assert _resume.stages_of([]) == [_resume.Stage("full", 0)]
    assert [stage.mode for stage in _resume.stages_of([{"mode": "reduce_only", "seconds": 1}, {"mode": "full"}])] == ["reduce_only", "full"]


@pytest.mark.parametrize(
    "raw",
    [
        [{"mode": "observe"}],
        [{"mode": "full"}, {"mode": "full"}],
        [{"mode": "reduce_only"}, {"mode": "observe"}, {"mode": "full"}],
        [{"mode": "halted"}, {"mode": "full"}],
        [{}],
        [{"mode": "full", "seconds": "2"}],
        [{"mode": "full", "seconds": True}],
        [{"mode": "full", "seconds": 3601}],
    ],
)
def test_steps_that_make_no_sense(raw: list[dict[str, Any]]) -> None:
    with pytest.raises(_resume.ResumeError):
        _resume.stages_of(raw)


def test_each_step_has_its_own_effect() -> None:
    call = {"url": "http://x/resume", "body": {"by": "dr"}, "confirm": {"url": "http://x/trading", "status": [200], "expect": {"trading": [True]}}}
    made = _resume.call_for(call, _resume.Stage("observe", 1), True)
    assert made["body"] == {"by": "dr", "mode": "observe"} and made["confirm"] == {"url": "http://x/trading", "status": [200], "expect": {"mode": ["observe"]}}
    full = _resume.call_for(call, _resume.Stage("full", 1), True)
    assert full["body"]["mode"] == "full" and full["confirm"] == call["confirm"]
    assert _resume.call_for(call, _resume.Stage("full", 0), False) == call, "services without modes are not told of any"


# --- tripwires ---------------------------------------------------------------------------------------------------------


def order(client_id: str, side: str = "buy", qty: str = "1", symbol: str = "BTCUSDT", at: float = 5.0, status: str = "filled") -> _venue.Order:
    number = Decimal(qty)
    return _venue.Order(f"id-{client_id}", client_id, symbol, side, number, number, Decimal(100), "market", status, at)


@pytest.mark.parametrize(
    ("size", "side", "qty", "larger"),
    [
        ("2", "sell", "1", False),
        ("2", "sell", "2", False),
        ("2", "sell", "3", True),
        ("2", "buy", "1", True),
        ("-2", "buy", "1", False),
        ("-2", "buy", "4", True),
        ("-2", "sell", "1", True),
        ("0", "buy", "1", True),
        ("0", "sell", "1", True),
    ],
)
def test_what_makes_a_position_larger(size: str, side: str, qty: str, larger: bool) -> None:
    assert _resume.enlarges(Decimal(size), order("t-1", side, qty))[0] is larger


def test_what_must_not_come() -> None:
    held = {"BTCUSDT": Decimal(2)}
    sells = [order("t-1", "sell", at=1), order("t-2", "sell", at=2)]
    assert _resume.trip("reduce_only", sells, {"t-1", "t-2"}, held) == ""
    assert "t-3" in _resume.trip("reduce_only", [order("t-3", "sell", at=3), *sells], {"t-1", "t-2", "t-3"}, held), "each after the ones before it"
    assert "not in our book" in _resume.trip("reduce_only", [order("x-9", "sell")], {"t-1"}, held)
    assert "not in our book" in _resume.trip("full", [order("")], set(), held)
    assert _resume.trip("full", [order("t-1")], {"t-1"}, held) == ""
    assert "nothing may be sent" in _resume.trip("observe", sells, {"t-1", "t-2"}, held)
    assert "not known" in _resume.trip("reduce_only", [order("t-1", symbol="ETHUSDT")], {"t-1"}, held), "unknown is not flat"
    assert _resume.trip("reduce_only", [order("t-1", status="rejected")], {"t-1"}, held) == "", "the venue saw to it"


class Exchange:
    def __init__(self) -> None:
        self.orders: list[_venue.Order] = []
        self.broken: list[Exception | None] = []

    def open(self, spec: dict[str, Any], timeout: float) -> Exchange:
        error = self.broken.pop(0) if self.broken else None
        if error:
            raise error
        return self

    def positions(self) -> dict[str, _venue.Position]:
        return {"BTCUSDT": _venue.Position(Decimal(2), Decimal(1), Decimal(1))}

    def open_orders(self) -> list[_venue.Order]:
        return [item for item in self.orders if item.status == "open"]

    def server_time(self) -> float:
        return 3.0

    def orders_since(self, since: float) -> list[_venue.Order]:
        return list(self.orders)


DOWN = _venue.VenueError("network", "no way there")


class Watch:
    def __init__(self, folder: Path, **spec: Any) -> None:
        self.exchange, self.verdicts, self.now = Exchange(), [PASS], 0.0
        keys = folder / "keys"
        keys.write_text("{}")
        venues = _halt.Venues([{"name": "binance", "keys": {"file": str(keys)}, **spec}], self.exchange.open)
        self.wires = _resume.Tripwires(venues, [{"name": "brain"}], self.ours, 1.0, self.probe, lambda: self.now, self.sleep)

    def ours(self, ids: Any) -> set[str]:
        return {name for name in ids if name.startswith("t-")}

    def probe(self, spec: Any, timeout: float) -> Verdict:
        return Verdict("brain", self.verdicts.pop(0) if len(self.verdicts) > 1 else self.verdicts[0], "seen")

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_quiet_step(tmp_path: Path) -> None:
    watch = Watch(tmp_path)
    watch.exchange.orders = [order("x-0", at=1), order("x-1", at=4, status="open")]
    watch.wires.begin()
    watch.wires.watch(_resume.Stage("observe", 2))
    assert watch.now == 2, "what was there before the step is not of it"


@pytest.mark.parametrize(("mode", "client_id", "said"), [("observe", "t-1", "nothing may be sent"), ("reduce_only", "t-1", "larger"), ("full", "x-1", "book")])
def test_an_order_trips(tmp_path: Path, mode: str, client_id: str, said: str) -> None:
    watch = Watch(tmp_path)
    watch.wires.begin()
    watch.exchange.orders = [order(client_id)]
    with pytest.raises(_resume.ResumeError, match=f"binance: .*{said}"):
        watch.wires.watch(_resume.Stage(mode, 2))


def test_one_bad_look_is_none_two_are(tmp_path: Path) -> None:
    watch = Watch(tmp_path)
    watch.verdicts = [FAIL, PASS]
    watch.exchange.broken = [DOWN, None, None, DOWN, None]
    watch.wires.begin()
    watch.wires.look("observe")
    watch.verdicts = [UNKNOWN]
    with pytest.raises(_resume.ResumeError, match="brain is unknown"):
        watch.wires.look("observe")
    watch.verdicts, watch.exchange.broken = [PASS], [DOWN, DOWN]
    with pytest.raises(_resume.ResumeError, match="an exchange cannot be read: binance: no way there"):
        watch.wires.look("observe")
    watch.exchange.broken = [DOWN, DOWN]
    with pytest.raises(_resume.ResumeError):
        watch.wires.begin()


def test_an_exchange_that_is_not_required(tmp_path: Path) -> None:
    watch = Watch(tmp_path, required=False)
    watch.exchange.broken = [DOWN] * 9
    watch.wires.begin()
    watch.wires.look("reduce_only")


def test_an_exchange_without_keys_cannot_be_watched() -> None:
    wires = _resume.Tripwires(_halt.Venues([{"name": "binance", "keys": {"file": "/none"}}]), [], set, 1.0)
    with pytest.raises(_resume.ResumeError, match="no keys for binance"):
        wires.begin()


def test_a_step_without_seconds_is_not_watched(tmp_path: Path) -> None:
    watch = Watch(tmp_path)
    watch.verdicts = [FAIL]
    watch.wires.watch(_resume.Stage("full", 0))


# --- the processes ----------------------------------------------------------------------------------------------------


class Pm2:
    """What a watcher finds; an error where PM2 does not answer."""

    def __init__(self, found: Any) -> None:
        self.found = found
        self.windows: list[Any] = []

    def sample(self, components: Any) -> Any:
        if isinstance(self.found, Exception):
            raise self.found
        return "the first"

    def watch(self, components: Any, window: float, first: Any = None) -> Any:
        self.windows.append((window, first))
        return [Finding(item.name, self.found, "seen") for item in components], self.sample(components)


BRAIN = Component("brain", "pm2", "brain")


def test_processes_that_stay() -> None:
    pm2: Any = Pm2(PASS)
    processes = _resume.Processes(pm2, [BRAIN], 10)
    processes.begin()
    processes.settled()
    assert pm2.windows == [(10, "the first")]


@pytest.mark.parametrize("verdict", [FAIL, UNKNOWN])
def test_processes_that_do_not(verdict: str) -> None:
    pm2: Any = Pm2(verdict)
    with pytest.raises(_resume.ResumeError, match=f"brain is {verdict}: seen"):
        _resume.Processes(pm2, [BRAIN], 10).settled()


def test_a_pm2_that_does_not_answer() -> None:
    pm2: Any = Pm2(Pm2Error("no daemon"))
    processes = _resume.Processes(pm2, [BRAIN], 10)
    for step in (processes.begin, processes.settled):
        with pytest.raises(_resume.ResumeError, match="no daemon"):
            step()
