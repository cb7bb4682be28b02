# SPDX-License-Identifier: GPL-3.0-or-later
"""Against the lab's exchange simulators with real certificates, and against a world whose every layer hangs."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import exchange_simulator
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _network, _network_dns, _network_look, _network_wire
from ansible_collections.titan.disaster_recovery.plugins.module_utils._network_look import Plan, examine, interface_of, judge_name, judge_time, route_to
from titan_dr.lab import certificates


def no_command(argv: Sequence[str]) -> tuple[int, str]:
    return 127, f"{argv[0]} is not installed"


PLAN = Plan(("127.0.0.1",), clock="ok", command=no_command)


class Exchanges:
    def __init__(self, folder: Path) -> None:
        authority, files = certificates.make(["localhost"])
        for name, text in {"ca.pem": authority, **files}.items():
            (folder / name).write_text(text)
        self.simulator = exchange_simulator.start(folder, "--tls-dir", str(folder))
        keys = {venue: {"apiKey": pair["api_key"], "apiSecret": pair["api_secret"]} for venue, pair in exchange_simulator.KEYS.items()}
        (folder / "secrets.json").write_text(json.dumps({"exchanges": keys}))
        self.folder = folder

    def venue(self, name: str, **more: Any) -> dict[str, Any]:
        stream = {"binance": "/ws", "bybit": "/v5/public/linear"}[name]
        port = self.simulator.ports[name]
        keys = {"file": str(self.folder / "secrets.json"), "api_key": f"exchanges.{name}.apiKey", "api_secret": f"exchanges.{name}.apiSecret"}
        where = {"rest": f"https://localhost:{port}", "ws": f"wss://localhost:{port}{stream}", "ca": str(self.folder / "ca.pem")}
        return {"name": name, "kind": name, **where, "symbols": ["BTCUSDT"], "keys": keys, **more}

    def look(self, plan: Plan = PLAN, stores: Sequence[dict[str, Any]] = (), **more: Any) -> dict[str, Any]:
        found = examine(_network.endpoints([self.venue("binance", **more), self.venue("bybit", **more)], stores), plan)
        return _network.summary(found, time.time())

    def causes(self, **more: Any) -> dict[str, str]:
        return {row["name"]: row["cause"] for row in self.look(**more)["endpoints"]}

    def faults(self, **faults: Any) -> None:
        for venue in ("binance", "bybit"):
            self.simulator.faults(venue, **faults)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchanges]:
    found = Exchanges(tmp_path_factory.mktemp("exchanges"))
    yield found
    exchange_simulator.end(found.simulator)


@pytest.fixture
def exchanges(running: Exchanges) -> Exchanges:
    running.faults()
    return running


def every(cause: str, stream: str = "") -> dict[str, str]:
    return {f"{venue}/{part}": (stream or cause) if part == "ws" else cause for venue in ("binance", "bybit") for part in ("rest", "ws")}


def test_healthy_and_quick(exchanges: Exchanges) -> None:
    began = time.monotonic()
    found = exchanges.look()
    assert time.monotonic() - began < 3.9
    assert {row["name"]: row["cause"] for row in found["endpoints"]} == every("ok"), found
    layers = {row["name"]: [layer["layer"] for layer in row["layers"]] for row in found["endpoints"]}
    assert layers["binance/rest"] == ["dns", "tcp", "tls", "http", "status", "key"] and layers["bybit/ws"] == ["dns", "tcp", "tls", "ws"]
    assert all(layer["verdict"] == "pass" for row in found["endpoints"] for layer in row["layers"])
    assert all((row["latency_ms"], row["loss"]) != (None, None) for row in found["endpoints"] if row["name"].endswith("/rest"))
    # what is secret stays where it is
    assert not any(secret in json.dumps(found) for pair in exchange_simulator.KEYS.values() for secret in pair.values())


def test_a_light_look_asks_for_no_key(exchanges: Exchanges) -> None:
    found = exchanges.look(Plan(("127.0.0.1",), clock="ok", deep=False, command=no_command))
    assert found["cause"] == "ok" and all("key" not in {layer["layer"] for layer in row["layers"]} for row in found["endpoints"])


@pytest.mark.parametrize(
    ("faults", "rest", "stream"),
    [
        ({"tls": "expired"}, "tls_expired", ""),
        ({"tls": "not_yet_valid"}, "tls_not_yet_valid", ""),
        ({"tls": "unknown_ca"}, "tls_untrusted", ""),
        ({"rate_limit": 429}, "rate_limited", "ws_refused"),
        ({"rate_limit": 418}, "rate_limited", "ws_refused"),
        ({"html": True}, "http_unusable", "ws_refused"),
        ({"drop": "close"}, "http_unusable", "ws_refused"),
        ({"drop": "hang"}, "http_unusable", "ws_refused"),
        ({"reject_upgrade": True}, "ok", "ws_refused"),
        ({"ws_silent": True}, "ok", "ws_silent"),
        ({"key_not_whitelisted": True}, "key_refused", "ok"),
        ({"maintenance": True}, "maintenance", "ok"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_faults(exchanges: Exchanges, faults: dict[str, Any], rest: str, stream: str) -> None:
    exchanges.faults(**faults)
    began = time.monotonic()
    assert exchanges.causes() == every(rest, stream)
    assert time.monotonic() - began < 10


def test_no_key_is_shown_to_a_stranger(exchanges: Exchanges, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_network_look, "ask_venue", lambda *args: pytest.fail("the exchange was asked with a key"))
    exchanges.faults(tls="unknown_ca")
    assert exchanges.causes() == every("tls_untrusted")


def test_an_expired_certificate_and_a_clock_that_is_off(exchanges: Exchanges) -> None:
    exchanges.faults(tls="expired")
    assert exchanges.look(Plan(("127.0.0.1",), clock="off", command=no_command))["cause"] == "clock"


def test_the_wrong_key_and_no_key(exchanges: Exchanges, tmp_path: Path) -> None:
    keys = {"api_key": "exchanges.binance.apiSecret", "api_secret": "exchanges.binance.apiKey"}
    file = exchanges.folder / "secrets.json"
    assert exchanges.causes(keys={**keys, "file": str(file)})["binance/rest"] == "key_refused"
    assert exchanges.causes(keys={**keys, "file": str(tmp_path / "missing")})["binance/rest"] == "key_refused"


def test_the_exchanges_clock(exchanges: Exchanges) -> None:
    exchanges.faults(clock_offset=30)
    assert set(exchanges.causes().values()) <= {"clock", "ok"} and exchanges.causes()["binance/rest"] == "clock"


# --- names ------------------------------------------------------------------------------------------------------------------


def named(monkeypatch: pytest.MonkeyPatch, addresses: list[str], answers: str = "silent") -> None:
    monkeypatch.setattr(_network_dns, "system", lambda name, seconds: (addresses, "" if addresses else "no answer"))
    monkeypatch.setattr(_network_dns, "ask", lambda server, name, seconds: _network_dns.Answer(server, answers, (), answers))


def test_dead_names_with_known_addresses(exchanges: Exchanges, monkeypatch: pytest.MonkeyPatch) -> None:
    named(monkeypatch, [])
    found = exchanges.look(addresses=["127.0.0.1"])
    assert {(row["cause"], row["detail"]) for row in found["endpoints"]} == {("dns", "dead")} and found["ours"]
    # whatever else may be wrong is seen all the same
    assert {"tcp", "tls"} <= {layer["layer"] for layer in found["endpoints"][0]["layers"] if layer["verdict"] == "pass"}


def test_names_that_do_not_exist(exchanges: Exchanges, monkeypatch: pytest.MonkeyPatch) -> None:
    named(monkeypatch, [], "nxdomain")
    assert {(row["cause"], row["detail"]) for row in exchanges.look()["endpoints"]} == {("dns", "nxdomain")}


def test_names_that_lead_elsewhere(exchanges: Exchanges, monkeypatch: pytest.MonkeyPatch) -> None:
    named(monkeypatch, ["127.0.0.9"])
    found = exchanges.look(addresses=["127.0.0.1"])
    assert {(row["cause"], row["detail"]) for row in found["endpoints"]} == {("dns", "wrong")}
    # the exchange has moved, and its certificate proves it
    named(monkeypatch, ["127.0.0.1"])
    assert exchanges.look(addresses=["127.0.0.9"])["cause"] == "ok"
    # nobody is there, and not at the known address either
    named(monkeypatch, ["127.0.0.9"])
    assert exchanges.look(addresses=["127.0.0.8"])["cause"] == "tcp_refused"


def test_what_the_lookup_and_the_servers_say_together() -> None:
    def answers(*verdicts: str) -> list[_network_dns.Answer]:
        return [_network_dns.Answer(f"10.0.0.{number}", verdict, (), verdict) for number, verdict in enumerate(verdicts)]

    assert judge_name(["10.0.0.1"], "", [], ["10.0.0.1", "10.0.0.2"]).verdict == "ok"
    assert judge_name(["10.0.0.1"], "", [], []).verdict == "ok"
    assert judge_name(["6.6.6.6"], "", [], ["10.0.0.1"]).verdict == "differs"
    assert judge_name([], "x", answers("nxdomain"), []).verdict == "nxdomain"
    assert judge_name([], "x", answers("silent", "nxdomain"), []).verdict == "nxdomain"
    assert judge_name([], "x", answers("silent", "silent"), []).verdict == "dead"
    assert judge_name([], "x", answers("refused"), []).verdict == "dead"
    # one of two knows the name: the other one lies or is behind, and the lookup gave up
    assert judge_name([], "x", answers("ok", "nxdomain"), []).verdict == "dead"


# --- everything hangs ---------------------------------------------------------------------------------------------------------


def test_everything_hangs_and_it_takes_four_seconds(exchanges: Exchanges, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step takes nearly all of its time, and the last one for ever."""
    real = _network_wire.secure

    def slow_name(endpoint: Any, servers: Any, seconds: float) -> Any:
        time.sleep(0.9)
        return _network_look.Named("ok", ("127.0.0.1",), "slow")

    def slow_tls(*args: Any) -> Any:
        time.sleep(0.9)
        return real(*args)

    monkeypatch.setattr(_network_look, "look_up", slow_name)
    monkeypatch.setattr(_network_wire, "secure", slow_tls)
    monkeypatch.setattr(_network_wire, "get", lambda *args: time.sleep(60))
    monkeypatch.setattr(_network_wire, "websocket", lambda *args: time.sleep(60))
    began = time.monotonic()
    look = _network_look.Looker(_network.endpoints([exchanges.venue("binance")], []), "", "", "ok")
    found = look()
    assert time.monotonic() - began < 10
    assert {row["cause"] for row in found["endpoints"]} == {"http_unusable"}


def test_a_look_that_breaks_is_no_good_look(exchanges: Exchanges, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_network_wire, "websocket", lambda *args: 1 / 0)
    assert exchanges.causes() == every("ok", "http_unusable")
    monkeypatch.setattr(_network_look, "examine", lambda *args: os._exit(3))
    look = _network_look.Looker(_network.endpoints([exchanges.venue("binance")], []), "", "", "ok")
    assert look()["cause"] != "ok"


# --- as the services' user ------------------------------------------------------------------------------------------------------


def test_the_look_is_the_services_own() -> None:
    assert _network_look.as_user("nobody", os.geteuid, 5) == 65534
    assert _network_look.as_user("", os.geteuid, 5) == os.geteuid()


def test_what_hangs_ends_with_its_time() -> None:
    began = time.monotonic()
    assert _network_look.as_user("", lambda: time.sleep(60), 0.3) is None
    assert time.monotonic() - began < 10
    assert _network_look.as_user("", lambda: 1 / 0, 5) is None


# --- the ground -------------------------------------------------------------------------------------------------------------------

LINK = {"ifname": "eth0", "flags": ["BROADCAST", "UP", "LOWER_UP"], "addr_info": [{"family": "inet", "local": "10.0.0.5", "scope": "global"}]}
LO = {"ifname": "lo", "flags": ["LOOPBACK", "UP", "LOWER_UP"], "addr_info": [{"local": "127.0.0.1", "scope": "host"}]}


def saying(found: Any, code: int = 0) -> _network_look.Command:
    return lambda argv: (code, found if isinstance(found, str) else json.dumps(found))


@pytest.mark.parametrize(
    ("links", "state"),
    [
        ([LO, LINK], "up"),
        ([LO], "down"),
        ([LO, {**LINK, "flags": ["BROADCAST"]}], "down"),
        ([LO, {**LINK, "flags": ["BROADCAST", "UP", "NO-CARRIER"]}], "down"),
        ([LO, {**LINK, "addr_info": []}], "no_address"),
        ([LO, {**LINK, "addr_info": [{"local": "fe80::1", "scope": "link"}]}], "no_address"),
        ([LO, {**LINK, "flags": []}, {**LINK, "ifname": "eth1"}], "up"),
    ],
)
def test_interfaces(links: list[dict[str, Any]], state: str) -> None:
    assert interface_of("", saying(links))[0] == state


def test_an_interface_that_is_not_there_and_no_tool() -> None:
    assert interface_of("eth9", saying('Device "eth9" does not exist.', 1))[0] == "down"
    assert interface_of("", no_command)[0] == "unknown"


@pytest.mark.parametrize(
    ("said", "code", "state"),
    [
        ([{"dst": "10.0.0.1", "dev": "eth0", "gateway": "10.0.0.254"}], 0, "ok"),
        ([{"type": "blackhole", "dst": "10.0.0.1"}], 0, "blackhole"),
        ("RTNETLINK answers: Invalid argument", 2, "blackhole"),
        ("RTNETLINK answers: Network is unreachable", 2, "none"),
        ("ip is not installed", 127, "unknown"),
    ],
)
def test_routes(said: Any, code: int, state: str) -> None:
    assert route_to("10.0.0.1", saying(said, code))[0] == state


def test_the_real_route_to_ourselves() -> None:
    assert route_to("127.0.0.1", _network_look.run)[0] == "ok"
    assert interface_of("lo", _network_look.run)[0] == "up"


# --- what the other side says -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "status", "body", "expected"),
    [
        ("binance", 200, b'{"serverTime": 1700000000000}', "ok"),
        ("bybit", 200, b'{"retCode": 0, "result": {"timeSecond": "1700000000"}}', "ok"),
        ("bybit", 200, b'{"retCode": 10006, "result": {}}', "rate_limited"),
        ("binance", 429, b"<html>", "rate_limited"),
        ("binance", 418, b"{}", "rate_limited"),
        ("binance", 503, b'{"serverTime": 1700000000000}', "unusable"),
        ("binance", 200, b"<html>maintenance</html>", "unusable"),
        ("binance", 200, b'{"serverTime": "soon"}', "unusable"),
        ("binance", 200, b'{"serverTime": 1, "serverTime": 2}', "unusable"),
        ("binance", 200, b"[]", "unusable"),
        ("binance", 0, b"", "unusable"),
    ],
)
def test_the_time_that_an_exchange_tells(kind: str, status: int, body: bytes, expected: str) -> None:
    assert judge_time(kind, _network_wire.Reply(status, body))[0] == expected


@pytest.mark.parametrize(
    ("message", "data"),
    [
        (b'{"result": null, "id": 1}', False),
        (b'{"success": true, "op": "subscribe"}', False),
        (b'{"e": "24hrTicker", "s": "BTCUSDT"}', True),
        (b'{"topic": "tickers.BTCUSDT", "data": {}}', True),
        (b"<html>", False),
        (b"[]", False),
    ],
)
def test_data_and_what_is_none(message: bytes, data: bool) -> None:
    assert _network_look.is_data(message) is data


# --- stores -------------------------------------------------------------------------------------------------------------------------


def test_stores(exchanges: Exchanges) -> None:
    with socket.create_server(("127.0.0.1", 0)) as link:
        closed = link.getsockname()[1]
    # the control API answers as any web server does, and says no SSH
    control = exchanges.simulator.ports["control"]
    stores = [
        {"name": "cloud", "kind": "s3", "endpoint": f"http://127.0.0.1:{control}"},
        {"name": "gone", "kind": "s3", "endpoint": f"http://127.0.0.1:{closed}"},
        {"name": "offhost", "kind": "sftp", "host": "127.0.0.1", "port": control},
    ]
    found = exchanges.look(stores=stores)
    causes = {row["name"]: row["cause"] for row in found["endpoints"] if row["kind"] == "store"}
    assert causes == {"cloud": "ok", "gone": "tcp_refused", "offhost": "http_unusable"}
    assert found["cause"] == "ok", "a store is needed for backups, not for trading"
