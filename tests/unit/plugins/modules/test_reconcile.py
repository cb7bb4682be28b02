# SPDX-License-Identifier: GPL-3.0-or-later
"""The module with real parts: a Redis with the book in it, and the exchange simulators with their faults."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import exchange_simulator
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _reconcile, _venue_binance, _venue_bybit
from ansible_collections.titan.disaster_recovery.plugins.modules import reconcile
from exchange_simulator import Simulator

VENUES = ("binance", "bybit")
SECRETS = [text for pair in exchange_simulator.KEYS.values() for text in pair.values()]
INTERVAL = 0.2


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    simulator = exchange_simulator.start(tmp_path_factory.mktemp("exchange"))
    yield simulator
    exchange_simulator.end(simulator)


class Titan:
    """A book in Redis as the services write it, the exchanges it trades on, and the module that reconciles the two."""

    def __init__(self, server: Any, simulator: Simulator, latch: Path, run: Callable[..., dict[str, Any]]) -> None:
        self.server, self.simulator, self.latch, self.run = server, simulator, latch, run
        self.client = server.client
        self.client.call("SELECT", 1)
        self.ordered = 0

    def halt(self) -> None:
        self.latch.write_text(json.dumps({"generation": 1, "reason": "test", "run_id": "r", "since": time.time()}))

    def order(self, venue: str, side: str = "buy", qty: str = "0.5", booked: str = "filled", client_id: str = "", **more: Any) -> str:
        """An order as trader.js sends and records it; `booked`: what of it the book knows (nothing: empty)."""
        self.ordered += 1
        client_id = client_id or f"t-{self.ordered}"
        body = {"venue": venue, "symbol": "BTCUSDT", "side": side, "qty": qty, "type": "market", "clientOrderId": client_id, **more}
        at = time.time()
        told = self.simulator.control("POST", "/orders", body) if booked != "never sent" else {}
        if booked:
            self.book_order(venue, client_id, side, qty, "pending" if booked == "never sent" else booked, told.get("average", "50000"), at)
        if booked == "filled":
            state = self.simulator.control("GET", "/state")["venues"][venue]["positions"]["BTCUSDT"]
            self.book_position(venue, state["size"], state["entryPrice"])
        return client_id

    def book_order(self, venue: str, client_id: str, side: str, qty: str, status: str, price: str, at: float) -> None:
        fields = {"venue": venue, "symbol": "BTCUSDT", "side": side, "qty": qty, "price": price, "status": status, "signalId": "s", "createdAt": int(at * 1000)}
        self.client.call("HSET", f"titan:orders:{client_id}", *[word for pair in fields.items() for word in pair])

    def book_position(self, venue: str, size: str, entry: str, symbol: str = "BTCUSDT") -> None:
        amount = Decimal(size)
        side = "long" if amount > 0 else "short" if amount < 0 else "flat"
        self.client.call("HSET", f"titan:positions:{venue}:{symbol}", "side", side, "size", str(abs(amount)), "entryPrice", entry if amount else "0")

    def booked(self, key: str) -> dict[str, str]:
        words = self.client.call("HGETALL", key)
        return dict(zip(words[::2], words[1::2], strict=True))

    def position(self, venue: str) -> tuple[str, str]:
        found = self.booked(f"titan:positions:{venue}:BTCUSDT")
        return (found["side"], found["size"]) if found else ("", "")

    def venues(self, *names: str) -> list[dict[str, Any]]:
        keys = str(self.simulator.log_file.parent / "keys.json")
        return [
            {"name": name, "kind": name, "rest": f"http://127.0.0.1:{self.simulator.ports[name]}", "symbols": ["BTCUSDT"], "required": True, "ca": "",
             "addresses": [], "keys": {"file": keys, "api_key": f"{name}.api_key", "api_secret": f"{name}.api_secret"}}
            for name in names
        ]  # fmt: skip

    def reconcile(self, mode: str = "settle", check: bool = False, **more: Any) -> dict[str, Any]:
        arguments = {
            "mode": mode, "venues": self.venues(*VENUES), "book": {"db": 1, "position": "titan:positions:{venue}:{symbol}", "order": "titan:orders:{id}"},
            "redis": {"config": str(self.server.config)}, "canary": {"key": "titan:dr:canary", "db": 1}, "latch": str(self.latch), "run_id": "run-1",
            "interval": INTERVAL, "timeout": 0, "call_timeout": 5, **more,
        }  # fmt: skip
        result = self.run(reconcile, arguments, check)
        text = json.dumps(result)
        assert not [secret for secret in SECRETS if secret in text]
        return result


@pytest.fixture
def titan(running: Simulator, redis_server: Any, tmp_path: Path, run_module: Callable[..., dict[str, Any]]) -> Titan:
    running.control("POST", "/reset")
    found = Titan(redis_server(), running, tmp_path / "halt", run_module)
    found.halt()
    return found


def verdicts(result: dict[str, Any]) -> dict[str, str]:
    return {gate["name"]: gate["verdict"] for gate in result["titan_dr"]["gates"]}


def rows(result: dict[str, Any], **wanted: str) -> list[dict[str, str]]:
    return [row for row in result["titan_dr"]["reconciliation"] if all(row[name] == value for name, value in wanted.items())]


ALL = {f"{kind}_{venue}": "pass" for venue in VENUES for kind in ("clock", "rights", "reconcile")}


# --- what agrees -----------------------------------------------------------------------------------------------------


def test_a_flat_account_and_an_empty_book(titan: Titan) -> None:
    result = titan.reconcile(timeout=10)
    assert (result["failed"], result["changed"], verdicts(result)) == (False, False, ALL)
    assert [row["venue_value"] for row in rows(result, what="position", action="match")] == ["flat", "flat"]
    assert all(abs(time.time() - gate["at"]) < 10 for gate in result["titan_dr"]["gates"]) and abs(result["at"] - time.time()) < 10


@pytest.mark.parametrize("venue", VENUES)
def test_a_book_that_is_right_is_left_alone(titan: Titan, venue: str) -> None:
    titan.order(venue)
    titan.order(venue, "sell", "0.2")
    titan.halt()
    before = titan.booked(f"titan:positions:{venue}:BTCUSDT")
    titan.client.call("CONFIG", "RESETSTAT")
    result = titan.reconcile(timeout=10)
    assert (result["failed"], result["changed"], verdicts(result)) == (False, False, ALL)
    assert titan.client.info("commandstats")["cmdstat_scan"].startswith("calls=1,"), "all keys are searched once where nobody writes"
    assert titan.booked(f"titan:positions:{venue}:BTCUSDT") == before
    [position] = rows(result, venue=venue, what="position")
    assert position["book"].startswith("long 0.3 at ") and position["action"] == "match"
    assert rows(result, venue=venue, what="orders")[0]["book"] == "2"
    assert "rpo" not in result["titan_dr"]


# --- what was lost ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("venue", VENUES)
def test_fills_after_the_restore_point_are_adopted(titan: Titan, venue: str) -> None:
    titan.order(venue)
    lost = [titan.order(venue, "sell", "0.2", booked=""), titan.order(venue, "sell", "0.7", booked="")]
    titan.halt()
    result = titan.reconcile(timeout=10)
    assert (result["failed"], result["changed"], verdicts(result)) == (False, True, ALL)
    assert titan.position(venue) == ("short", "0.4")
    true = titan.simulator.control("GET", "/state")["venues"][venue]
    assert Decimal(titan.booked(f"titan:positions:{venue}:BTCUSDT")["entryPrice"]) == Decimal(true["positions"]["BTCUSDT"]["entryPrice"])
    fills = {fill["clientOrderId"]: fill for fill in true["fills"]}
    for client_id in lost:
        found = titan.booked(f"titan:orders:{client_id}")
        fill = fills[client_id]
        assert (found["venue"], found["side"], found["qty"], found["status"], found["rebuilt"]) == (venue, "sell", fill["qty"], "filled", "run-1")
        assert Decimal(found["price"]) == Decimal(fill["price"]) and abs(int(found["createdAt"]) / 1000 - fill["at"]) < 0.01
    rebuilt = result["titan_dr"]["rpo"]["rebuilt"]
    assert (rebuilt["orders"], rebuilt["fills"], sorted(rebuilt["ids"])) == (2, 2, sorted(lost)) and "signals" in rebuilt["not_rebuilt"]
    # two orders of the same millisecond come in any order
    assert sorted(row["id"] for row in rows(result, venue=venue, what="order", action="adopt")) == sorted(lost)
    again = titan.reconcile(timeout=10)
    assert (again["failed"], again["changed"], verdicts(again)) == (False, False, ALL)


@pytest.mark.parametrize("venue", VENUES)
def test_a_book_that_lost_everything_is_rebuilt(titan: Titan, venue: str) -> None:
    """No order and no canary in it: it looks back as far as it is told."""
    for side in ("buy", "buy", "sell"):
        titan.order(venue, side, "0.1", booked="")
    titan.halt()
    assert not titan.reconcile(timeout=10)["failed"]
    assert titan.position(venue) == ("long", "0.1")


@pytest.mark.parametrize("status", ["pending", "unknown"])
@pytest.mark.parametrize("venue", VENUES)
def test_an_order_without_an_end_that_was_filled(titan: Titan, venue: str, status: str) -> None:
    client_id = titan.order(venue, booked=status)
    titan.halt()
    result = titan.reconcile(timeout=10)
    assert not result["failed"], result["msg"]
    assert titan.booked(f"titan:orders:{client_id}")["status"] == "filled" and titan.position(venue) == ("long", "0.5")
    [row] = rows(result, what="order", id=client_id)
    assert (row["action"], row["book"]) == ("adopt", f"buy 0.5, {status}")


@pytest.mark.parametrize("venue", VENUES)
def test_an_order_that_never_arrived(titan: Titan, venue: str) -> None:
    client_id = titan.order(venue, booked="never sent")
    too_soon = titan.reconcile()
    assert too_soon["failed"] and verdicts(too_soon)[f"reconcile_{venue}"] == "unknown"
    later = int((time.time() - _reconcile.IN_FLIGHT - 1) * 1000)
    titan.client.call("HSET", f"titan:orders:{client_id}", "createdAt", later)
    result = titan.reconcile(timeout=10)
    assert not result["failed"], result["msg"]
    assert titan.booked(f"titan:orders:{client_id}")["status"] == "cancelled" and titan.position(venue) == ("", "")


@pytest.mark.parametrize("venue", VENUES)
def test_an_order_of_ours_that_rests_is_imported(titan: Titan, venue: str) -> None:
    client_id = titan.order(venue, booked="", type="limit", price="40000")
    titan.halt()
    result = titan.reconcile(timeout=10)
    assert not result["failed"], result["msg"]
    found = titan.booked(f"titan:orders:{client_id}")
    assert (found["status"], found["price"], found["filled"]) == ("pending", "40000", "0")
    assert rows(result, what="order", id=client_id)[0]["action"] == "import"
    assert not titan.reconcile(timeout=10)["changed"]


def test_a_position_that_nobody_ordered_is_dropped(titan: Titan) -> None:
    titan.book_position("binance", "3", "3000", "ETHUSDT")
    result = titan.reconcile(timeout=10)
    assert not result["failed"], result["msg"]
    assert titan.booked("titan:positions:binance:ETHUSDT") == {"side": "flat", "size": "0", "entryPrice": "0"}
    assert rows(result, symbol="ETHUSDT", what="position")[0]["action"] == "drop"


# --- what stops --------------------------------------------------------------------------------------------------------


def stopped(titan: Titan, result: dict[str, Any], venue: str, verdict: str = "fail") -> str:
    """It failed, said why, wrote nothing of this venue, and said what to do."""
    assert result["failed"] and verdicts(result)[f"reconcile_{venue}"] == verdict
    bad = [row for row in rows(result, venue=venue) if row["verdict"] != "pass"]
    assert bad and all(row["why"] for row in bad) and all(row["do"] for row in bad)
    return str(result["msg"])


@pytest.mark.parametrize("venue", VENUES)
@pytest.mark.parametrize(("fault", "verdict"), [
    ({"wrong_position": True}, "fail"),
    ({"wrong_position": {"BTCUSDT": "0"}}, "fail"),
    ({"positions_empty": True}, "unknown"),
    ({"positions_partial": True}, "unknown"),
    ({"positions_error": True}, "unknown"),
    ({"positions_html": True}, "unknown"),
    ({"html": True}, "unknown"),
    ({"drop": "close"}, "unknown"),
    ({"rate_limit": 429}, "unknown"),
    ({"rate_limit": 418}, "unknown"),
    ({"maintenance": True}, "unknown"),
    ({"key_not_whitelisted": True}, "unknown"),
    ({"clock_offset": 20}, "unknown"),
], ids=str)  # fmt: skip
def test_a_report_that_is_wrong_or_missing_never_passes(titan: Titan, venue: str, fault: dict[str, Any], verdict: str) -> None:
    titan.order(venue)
    titan.halt()
    before = titan.booked(f"titan:positions:{venue}:BTCUSDT")
    titan.simulator.faults(venue, **fault)
    stopped(titan, titan.reconcile(timeout=1), venue, verdict)
    assert titan.booked(f"titan:positions:{venue}:BTCUSDT") == before


@pytest.mark.parametrize("venue", VENUES)
@pytest.mark.parametrize("fault", [{"wrong_position": True}, {"positions_empty": True}, {"positions_partial": True}, {"positions_html": True}], ids=str)
def test_nor_for_an_account_that_is_flat(titan: Titan, venue: str, fault: dict[str, Any]) -> None:
    titan.simulator.faults(venue, **fault)
    result = titan.reconcile()
    assert result["failed"] and verdicts(result)[f"reconcile_{venue}"] != "pass"


def test_what_each_fault_is_called(titan: Titan) -> None:
    for fault, told in (("key_not_whitelisted", "rights_binance"), ("clock_offset", "clock_binance")):
        titan.simulator.faults("binance", **{fault: 20 if fault == "clock_offset" else True})
        assert verdicts(titan.reconcile())[told] == "fail"


def test_a_silent_exchange_ends_in_time(titan: Titan) -> None:
    titan.simulator.faults("bybit", drop="hang")
    began = time.monotonic()
    result = titan.reconcile(call_timeout=1)
    assert time.monotonic() - began < 12
    assert verdicts(result)["reconcile_bybit"] == verdicts(result)["clock_bybit"] == "unknown"
    assert verdicts(result)["reconcile_binance"] == "unknown"  # read only once so far


@pytest.mark.parametrize("venue", VENUES)
@pytest.mark.parametrize("kind", ["market", "limit"])
def test_a_foreign_order_stops(titan: Titan, venue: str, kind: str) -> None:
    titan.order(venue)
    titan.order(venue, booked="", client_id="web-77", type=kind, **({"price": "40000"} if kind == "limit" else {}))
    titan.halt()
    text = stopped(titan, titan.reconcile(timeout=10), venue)
    assert "web-77" in text and "H09" in text


@pytest.mark.parametrize("venue", VENUES)
def test_an_order_of_ours_after_the_halt_stops(titan: Titan, venue: str) -> None:
    """An old server that came back signs with our keys and numbers its orders as we do."""
    titan.latch.write_text(json.dumps({"generation": 1, "since": time.time() - 60}))
    titan.order(venue, booked="")
    assert "while trading was halted" in stopped(titan, titan.reconcile(timeout=10), venue)
    assert titan.position(venue) == ("", "")


@pytest.mark.parametrize("venue", VENUES)
def test_a_position_without_a_fill_stops(titan: Titan, venue: str) -> None:
    titan.simulator.control("POST", "/positions", {"venue": venue, "symbol": "BTCUSDT", "size": "-2"})
    assert "only at the exchange" in stopped(titan, titan.reconcile(timeout=10), venue)


@pytest.mark.parametrize(("size", "why"), [("0.4", "another size"), ("-0.5", "the other side"), ("0", "flat at the exchange")])
def test_a_change_without_a_fill_stops(titan: Titan, size: str, why: str) -> None:
    titan.order("binance")
    titan.halt()
    titan.simulator.control("POST", "/positions", {"venue": "binance", "symbol": "BTCUSDT", "size": size, "entryPrice": "50000"})
    assert why in stopped(titan, titan.reconcile(timeout=10), "binance")
    assert titan.position("binance") == ("long", "0.5")


@pytest.mark.parametrize("venue", VENUES)
def test_an_order_that_only_the_book_calls_filled_stops(titan: Titan, venue: str) -> None:
    titan.book_order(venue, "t-x", "buy", "0.5", "filled", "50000", time.time())
    titan.book_position(venue, "0.5", "50000")
    assert "the exchange does not know it" in stopped(titan, titan.reconcile(timeout=10), venue)


@pytest.mark.parametrize("venue", VENUES)
def test_settings_that_were_reset_stop(titan: Titan, venue: str) -> None:
    wanted = {venue: {"BTCUSDT": {"leverage": 10, "margin": "cross"}}}
    assert not titan.reconcile(timeout=10, settings=wanted)["failed"]
    titan.simulator.control("POST", "/settings", {"venue": venue, "symbol": "BTCUSDT", "leverage": "20"})
    assert "leverage" in stopped(titan, titan.reconcile(timeout=10, settings=wanted), venue)
    titan.simulator.control("POST", "/settings", {"venue": venue, "hedged": True})
    assert "position_mode" in stopped(titan, titan.reconcile(timeout=10), venue)


def test_a_book_that_cannot_be_read_stops(titan: Titan) -> None:
    titan.client.call("HSET", "titan:positions:binance:BTCUSDT", "side", "long", "size", "NaN", "entryPrice", "1")
    assert "titan:positions:binance:BTCUSDT" in stopped(titan, titan.reconcile(timeout=10), "binance")


def test_a_redis_that_does_not_answer_is_unknown(titan: Titan) -> None:
    titan.server.process.kill()
    titan.server.process.wait()
    result = titan.reconcile()
    assert result["failed"] and verdicts(result) == {"reconcile": "unknown"}


def test_positions_at_an_exchange_that_is_not_configured(titan: Titan) -> None:
    titan.book_position("mexc", "1", "50000")
    assert verdicts(titan.reconcile(timeout=10))["reconcile_mexc"] == "unknown"


def test_no_exchange_at_all_is_unknown(titan: Titan) -> None:
    for more in ({"venues": []}, {"skip_venues": list(VENUES)}):
        result = titan.reconcile(**more)
        assert result["failed"] and verdicts(result) == {"reconcile": "unknown"}


def test_one_that_is_halted_by_policy_is_not_asked(titan: Titan) -> None:
    titan.simulator.faults("bybit", drop="close")
    result = titan.reconcile(timeout=10, skip_venues=["bybit"])
    assert not result["failed"], result["msg"]
    assert verdicts(result) == {name: verdict for name, verdict in ALL.items() if "binance" in name}
    assert [(row["action"], row["why"]) for row in rows(result, venue="bybit")] == [("skipped", "halted")]


def test_the_book_is_not_touched_while_trading_goes_on(titan: Titan) -> None:
    titan.order("binance", booked="")
    titan.latch.unlink()
    assert "not halted" in stopped(titan, titan.reconcile(timeout=10), "binance", "unknown")
    assert titan.position("binance") == ("", "")


def test_one_exchange_that_stops_does_not_keep_the_other_from_being_corrected(titan: Titan) -> None:
    titan.order("binance", booked="")
    titan.simulator.control("POST", "/positions", {"venue": "bybit", "symbol": "BTCUSDT", "size": "1"})
    titan.halt()
    result = titan.reconcile(timeout=10)
    assert result["failed"] and titan.position("binance") == ("long", "0.5") and titan.position("bybit") == ("", "")


# --- two reads -----------------------------------------------------------------------------------------------------------


def test_observe_keeps_what_it_saw_and_settle_needs_one_read_more(titan: Titan, lease_dirs: Path) -> None:
    titan.order("binance")
    titan.halt()
    first = titan.reconcile("observe")
    assert not first["failed"] and any("BTCUSDT 0.5" in note for note in first["titan_dr"]["notes"])
    path = lease_dirs / "run" / "reconcile-run-1.json"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert not [secret for secret in SECRETS if secret in path.read_text()]
    time.sleep(INTERVAL)
    began = time.monotonic()
    result = titan.reconcile()
    assert not result["failed"], result["msg"]
    assert time.monotonic() - began < 5
    assert titan.reconcile(run_id="run-2")["failed"]  # what another run saw does not count


def test_observe_never_fails(titan: Titan) -> None:
    titan.simulator.faults("binance", html=True)
    titan.simulator.faults("bybit", drop="close")
    result = titan.reconcile("observe")
    assert not result["failed"] and len(result["titan_dr"]["notes"]) == 2
    assert all("not completely read" in note for note in result["titan_dr"]["notes"])
    titan.server.process.kill()
    assert not titan.reconcile("observe", venues=[{"name": "x", "kind": "y"}])["failed"]


def test_reads_that_differ_are_made_again_until_two_are_the_same(titan: Titan) -> None:
    titan.order("binance")
    titan.halt()
    titan.simulator.faults("binance", wrong_position=True)
    titan.reconcile("observe")
    titan.simulator.faults("binance")
    assert "positions: BTCUSDT" in stopped(titan, titan.reconcile(), "binance", "unknown")
    assert not titan.reconcile(timeout=10)["failed"]


def test_a_position_that_turns_wrong_between_the_two_reads(titan: Titan) -> None:
    titan.order("binance")
    titan.halt()
    titan.reconcile("observe")
    titan.simulator.faults("binance", wrong_position=True)
    stopped(titan, titan.reconcile(), "binance", "unknown")
    stopped(titan, titan.reconcile(timeout=10), "binance", "fail")


def test_a_fault_that_goes_is_waited_for(titan: Titan) -> None:
    titan.order("bybit", booked="")
    titan.halt()
    titan.simulator.faults("bybit", positions_html=True)
    timer = threading.Timer(1.0, titan.simulator.faults, ["bybit"])
    timer.start()
    result = titan.reconcile(timeout=20)
    timer.join()
    assert not result["failed"], result["msg"]
    assert titan.position("bybit") == ("long", "0.5")


@pytest.mark.parametrize("hears", [True, False])
def test_something_that_writes_to_the_book_meanwhile(titan: Titan, monkeypatch: pytest.MonkeyPatch, hears: bool) -> None:
    titan.order("binance", booked="")
    titan.halt()
    if not hears:
        titan.client.call("ACL", "SETUSER", "default", "-client")
    looked = reconcile._reconcile.look

    def look(venue: Any, since: float) -> Any:
        if venue.name == "binance":
            titan.book_position("binance", "7", "1")
        return looked(venue, since)

    monkeypatch.setattr(reconcile._reconcile, "look", look)
    result = titan.reconcile(timeout=10)
    assert result["failed"] and "something still writes" in result["msg"] and titan.position("binance") == ("long", "7")


def test_check_mode_writes_nothing(titan: Titan) -> None:
    titan.order("binance", booked="")
    titan.halt()
    result = titan.reconcile(timeout=10, check=True)
    assert (result["failed"], result["changed"]) == (False, True) and titan.position("binance") == ("", "")


# --- much --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("venue", VENUES)
def test_more_fills_than_fit_on_a_page(titan: Titan, venue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(120):
        titan.order(venue, "buy" if number % 3 else "sell", "0.01", booked="")
    titan.halt()
    monkeypatch.setattr(_venue_bybit, "EXECUTIONS", 7)
    monkeypatch.setattr(_venue_bybit, "ORDERS", 7)
    monkeypatch.setattr(_venue_binance, "LIMIT", 7)
    result = titan.reconcile(timeout=20)
    assert not result["failed"], result["msg"]
    assert titan.position(venue) == ("long", "0.4") and result["titan_dr"]["rpo"]["rebuilt"]["orders"] == 120


def test_what_was_lost_before_the_newest_record_is_asked_for_too(titan: Titan) -> None:
    """The oldest of restore point, canary and newest order tells from when on; a canary that is written again already does not hide anything."""
    titan.order("binance", booked="")
    titan.halt()
    titan.client.call("SET", "titan:dr:canary", json.dumps({"seq": 9, "at": time.time() + 100}))
    assert titan.reconcile(timeout=10, overlap=0)["failed"]  # the canary alone says: nothing can be lost
    result = titan.reconcile(timeout=10, overlap=0, since=time.time() - 30)
    assert not result["failed"], result["msg"]
    assert titan.position("binance") == ("long", "0.5")


# --- Redis on another server --------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_book_on_another_server(running: Simulator, redis_server: Any, tmp_path: Path, run_module: Callable[..., dict[str, Any]]) -> None:
    running.control("POST", "/reset")
    port = free_port()
    titan = Titan(redis_server(port=str(port), requirepass="over-the-net"), running, tmp_path / "halt", run_module)
    lost = titan.order("binance", booked="")
    titan.halt()
    there = {"host": "127.0.0.1", "port": port}
    wrong = titan.reconcile(redis=there, redis_password="not-this-one", timeout=10)
    assert wrong["failed"] and "WRONGPASS" in wrong["msg"] and "not-this-one" not in json.dumps(wrong)
    result = titan.reconcile(redis=there, redis_password="over-the-net", timeout=10)
    assert (result["failed"], result["changed"], verdicts(result)) == (False, True, ALL), result
    assert titan.booked(f"titan:orders:{lost}")["status"] == "filled" and titan.position("binance") == ("long", "0.5")
    gone = titan.reconcile(redis={"host": "127.0.0.1", "port": free_port()}, redis_password="over-the-net")
    assert gone["failed"] and verdicts(gone) == {"reconcile": "unknown"} and "cannot connect" in gone["msg"]
