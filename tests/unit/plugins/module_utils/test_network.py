# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _network
from ansible_collections.titan.disaster_recovery.plugins.module_utils._network import Evidence, Stability, Verdict, decide

VENUE = {"name": "binance", "kind": "binance", "rest": "https://api.b.lab:9001", "ws": "wss://api.b.lab:9001/ws", "addresses": ["10.0.0.1"], "ca": "/ca.pem"}
REACHED = {"dns": "ok", "tcp": "ok", "tls": "ok", "clock": "ok"}
WELL = {**REACHED, "http": "ok", "status": "ok", "key": "ok"}


def cause(**seen: str) -> str:
    return "/".join(part for part in decide(Evidence(**seen)) if part)


# --- the cause, in words ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (WELL, "ok"),
        ({**WELL, "tls": "plain"}, "ok"),
        ({**REACHED, "ws": "ok"}, "ok"),
        ({}, "dns/dead"),
        ({**WELL, "dns": "dead"}, "dns/dead"),
        ({**WELL, "dns": "nxdomain"}, "dns/nxdomain"),
        ({"dns": "nxdomain", "tcp": "silent"}, "dns/nxdomain"),
        # the new address is one that the exchange has since yesterday: its certificate says so
        ({**WELL, "dns": "differs"}, "ok"),
        ({"dns": "differs", "tcp": "silent", "pinned": "works"}, "dns/wrong"),
        ({"dns": "differs", "tcp": "ok", "tls": "untrusted", "pinned": "works"}, "dns/wrong"),
        ({"dns": "differs", "tcp": "ok", "tls": "untrusted", "pinned": "fails"}, "tls_untrusted"),
        ({"dns": "differs", "tcp": "silent", "pinned": "fails"}, "tcp_silent"),
        # the cut is wider than the names
        ({"dns": "dead", "tcp": "silent"}, "tcp_silent"),
        ({"dns": "dead", "tcp": "silent", "interface": "down"}, "interface/down"),
        ({"dns": "dead", "tcp": "untried", "interface": "down"}, "interface/down"),
        ({"dns": "dead", "tcp": "unreachable", "route": "blackhole"}, "route/blackhole"),
        ({"dns": "ok", "tcp": "unreachable", "route": "none"}, "route/none"),
        ({"dns": "ok", "tcp": "unreachable"}, "route/unreachable"),
        ({"dns": "ok", "tcp": "silent", "interface": "up", "route": "ok"}, "tcp_silent"),
        ({"dns": "ok", "tcp": "refused", "interface": "no_address", "route": "none"}, "tcp_refused"),
        ({**REACHED, "tls": "untrusted"}, "tls_untrusted"),
        ({**REACHED, "tls": "name"}, "tls_untrusted/name"),
        ({**REACHED, "tls": "expired"}, "tls_expired"),
        ({**REACHED, "tls": "expired", "clock": "unknown"}, "tls_expired"),
        ({**REACHED, "tls": "expired", "clock": "off"}, "clock/expired"),
        ({**REACHED, "tls": "not_yet_valid"}, "tls_not_yet_valid"),
        ({**REACHED, "tls": "not_yet_valid", "clock": "off"}, "clock/not_yet_valid"),
        ({**REACHED, "tls": "failed"}, "tls_failed"),
        ({**WELL, "http": "unusable"}, "http_unusable"),
        ({**WELL, "http": "unusable", "status": "maintenance"}, "maintenance"),
        ({**WELL, "key": "unknown", "status": "maintenance"}, "maintenance"),
        ({**WELL, "http": "rate_limited"}, "rate_limited"),
        ({**WELL, "key": "refused"}, "key_refused"),
        ({**WELL, "key": "clock"}, "clock/signed call"),
        ({**WELL, "key": "unknown"}, "http_unusable/signed call"),
        ({**REACHED, "ws": "refused"}, "ws_refused"),
        ({**REACHED, "ws": "silent"}, "ws_silent"),
        # nothing was asked above the certificate
        (REACHED, "http_unusable"),
    ],
)
def test_cause(seen: dict[str, str], expected: str) -> None:
    assert cause(**seen) == expected


# --- the cause, over all combinations -----------------------------------------------------------------------------------

WORDS: dict[str, tuple[str, ...]] = {
    "interface": ("up", "down", "no_address", "unknown"),
    "route": ("ok", "none", "blackhole", "unknown"),
    "dns": ("ok", "dead", "nxdomain", "differs"),
    "pinned": ("none", "works", "fails"),
    "tcp": ("ok", "refused", "silent", "unreachable", "untried"),
    "tls": ("ok", "plain", "untrusted", "name", "expired", "not_yet_valid", "failed", "untried"),
    "clock": ("ok", "off", "unknown"),
    "http": ("ok", "rate_limited", "unusable", "untried"),
    "status": ("ok", "maintenance", "unknown"),
    "key": ("ok", "refused", "clock", "unknown", "untried"),
    "ws": ("ok", "refused", "silent", "untried"),
}
ABOVE_TCP, ABOVE_TLS = ("tls", "clock"), ("http", "status", "key", "ws")


def all_evidence() -> Iterator[Evidence]:
    """Each combination that can be: what lies above a layer that broke was not looked at."""
    ground = [name for name in WORDS if name not in (*ABOVE_TCP, *ABOVE_TLS)]
    for below in itertools.product(*(WORDS[name] for name in ground)):
        words = dict(zip(ground, below, strict=True))
        if words["tcp"] != "ok":
            yield from (Evidence(**words, clock=clock) for clock in WORDS["clock"])
            continue
        for tls, clock in itertools.product(WORDS["tls"], WORDS["clock"]):
            if tls not in ("ok", "plain"):
                yield Evidence(**words, tls=tls, clock=clock)
            elif words["interface"] == "up" and words["route"] == "ok":
                # nobody looks at the ground when a connection came about
                for above in itertools.product(*(WORDS[name] for name in ABOVE_TLS)):
                    yield Evidence(**words, tls=tls, clock=clock, **dict(zip(ABOVE_TLS, above, strict=True)))


def test_every_combination_has_the_lowest_cause_that_explains_it() -> None:
    count = 0
    for seen in all_evidence():
        count += 1
        found, _detail = decide(seen)
        assert found in (*_network.CAUSES, "ok"), seen
        reached, named = seen.tcp == "ok", seen.dns in ("ok", "differs")
        proven = reached and seen.tls in ("ok", "plain")
        if found == "ok":
            # each layer that was looked at is well, and something above the certificate was looked at
            assert named and proven, seen
            assert seen.status != "maintenance" and seen.key in ("ok", "untried") and (seen.http, seen.ws) != ("untried", "untried"), seen
            assert seen.http in ("ok", "untried") and seen.ws in ("ok", "untried"), seen
        if found.startswith("tls_") or found in ("maintenance", "rate_limited", "http_unusable", "key_refused", "ws_refused", "ws_silent"):
            assert reached and named, seen
        if found in ("maintenance", "rate_limited", "http_unusable", "key_refused", "ws_refused", "ws_silent"):
            assert proven, seen
        if found == "interface":
            assert seen.interface in ("down", "no_address") and not reached, seen
        if found in ("route", "tcp_silent", "tcp_refused"):
            assert not reached and seen.dns != "nxdomain", seen
        if found == "dns":
            assert seen.dns != "ok" and (seen.dns != "differs" or (seen.pinned == "works" and not proven)), seen
        if found == "clock":
            assert (seen.clock == "off" and seen.tls in ("expired", "not_yet_valid")) or seen.key == "clock", seen
        # what nobody can mend by trying is never taken for ours
        assert not (found in _network.OURS and proven and named), seen
    assert count > 20_000


def test_every_cause_has_advice_and_a_word_in_some_evidence() -> None:
    assert set(_network.ADVICE) == set(_network.CAUSES)
    assert {decide(seen)[0] for seen in all_evidence()} == {*_network.CAUSES, "ok"}


# --- what to look at ----------------------------------------------------------------------------------------------------


def test_endpoints_of_venues_and_stores() -> None:
    stores = [
        {"name": "cloud", "kind": "s3", "endpoint": "http://10.0.0.9:8333"},
        {"name": "aws", "kind": "s3", "region": "eu-west-1", "endpoint": None},
        {"name": "offhost", "kind": "sftp", "host": "10.0.0.8", "port": 2222},
    ]
    found = {endpoint.name: endpoint for endpoint in _network.endpoints([VENUE, {**VENUE, "name": "spare", "required": False, "ca": ""}], stores)}
    rest, stream = found["binance/rest"], found["binance/ws"]
    assert (rest.host, rest.port, rest.tls, rest.path, rest.ca, rest.pinned, rest.required) == ("api.b.lab", 9001, True, "", "/ca.pem", ("10.0.0.1",), True)
    assert (stream.part, stream.path, stream.owner) == ("ws", "/ws", "binance")
    assert found["spare/rest"].required is False
    assert (found["cloud"].port, found["cloud"].tls, found["cloud"].required) == (8333, False, False)
    assert (found["aws"].host, found["aws"].port, found["aws"].tls) == ("s3.eu-west-1.amazonaws.com", 443, True)
    assert (found["offhost"].part, found["offhost"].port) == ("ssh", 2222)


@pytest.mark.parametrize(
    ("venues", "word"),
    [
        ([], "names no exchange"),
        ([{**VENUE, "name": ""}], "a name"),
        ([{**VENUE, "kind": "kraken"}], "kind binance or bybit"),
        ([{**VENUE, "rest": "ftp://x"}], "rest"),
        ([{**VENUE, "ws": "https://x"}], "ws"),
        ([{**VENUE, "rest": "https://x:port"}], "rest"),
        ([VENUE, VENUE], "same name"),
    ],
)
def test_a_wrong_description_is_refused(venues: list[dict[str, Any]], word: str) -> None:
    with pytest.raises(_network.NetworkError, match=word):
        _network.endpoints(venues, [])


# --- all endpoints together -----------------------------------------------------------------------------------------------


def row(name: str, cause: str = "ok", required: bool = True, kind: str = "venue", retry_after: float = 0.0) -> dict[str, Any]:
    layers = [{"layer": "tcp", "verdict": "pass" if cause == "ok" else "fail", "evidence": "seen", "ms": 1.0}]
    more = {"detail": "", "ours": cause in _network.OURS, "layers": layers, "latency_ms": None, "loss": None, "retry_after": retry_after}
    return {"name": name, "owner": name.split("/")[0], "kind": kind, "required": required, "cause": cause, **more}


def network(**causes: str) -> dict[str, Any]:
    rows = []
    for name, found in causes.items():
        venue, _, part = name.partition("_")
        rows.append(row(f"{venue}/{part or 'rest'}", found))
    return _network.summary(rows, 1.0)


def test_the_summary_names_the_lowest_cause_of_what_is_required() -> None:
    found = _network.summary(
        [row("a/rest", "ws_silent"), row("a/ws", "dns"), row("b/rest", "interface", required=False), row("s", "route", required=False, kind="store")], 5.0
    )
    assert (found["cause"], found["ours"], found["venues"], found["at"]) == ("dns", True, {"a": "dns", "b": "interface"}, 5.0)
    assert _network.summary([row("a/rest"), row("s", "route", required=False, kind="store")], 5.0)["cause"] == "ok"


@pytest.mark.parametrize(
    ("before", "after", "helped"),
    [
        ({"a": "dns"}, {"a": "ok"}, True),
        ({"a": "dns"}, {"a": "maintenance"}, True),
        ({"a": "dns"}, {"a": "dns"}, False),
        ({"a": "dns", "b": "ok"}, {"a": "ok", "b": "route"}, False),
        ({"a": "ok"}, {"a": "dns"}, False),
        ({"a": "route", "b": "route"}, {"a": "ok", "b": "route"}, True),
    ],
)
def test_whether_a_measure_helped(before: dict[str, str], after: dict[str, str], helped: bool) -> None:
    assert _network.progress(network(**before), network(**after)) is helped


def test_the_sentence_names_what_the_cause_was_seen_by() -> None:
    seen = row("a/rest", "dns")
    seen["layers"] = [
        {"layer": "dns", "verdict": "pass", "evidence": "6.6.6.6, not the known 10.0.0.1", "ms": 1.0},
        {"layer": "tcp", "verdict": "fail", "evidence": "refused", "ms": 1.0},
    ]
    assert _network.told({**seen, "detail": "wrong"}) == "a/rest: dns (wrong): 6.6.6.6, not the known 10.0.0.1"
    assert _network.told({**seen, "cause": "key_refused"}) == "a/rest: key_refused: refused"


# --- go on, wait, stop ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("causes", "one_down", "waited", "expected"),
    [
        ({"a": "ok", "b": "ok"}, "halt_all", 0, Verdict("go")),
        ({"a": "ok", "b": "tcp_silent"}, "halt_all", 999, Verdict("wait")),
        ({"a": "ok", "b": "key_refused"}, "halt_all", 0, Verdict("stop")),
        ({"a": "ok", "b": "tcp_silent"}, "halt_venue", 0, Verdict("wait")),
        ({"a": "ok", "b": "tcp_silent"}, "halt_venue", 30, Verdict("go", ("b",))),
        ({"a": "ok", "b": "key_refused"}, "halt_venue", 0, Verdict("go", ("b",))),
        ({"a": "ok", "b": "key_refused", "c": "tcp_silent"}, "halt_venue", 0, Verdict("wait")),
        ({"a": "tls_untrusted", "b": "tls_untrusted"}, "halt_venue", 99, Verdict("stop")),
        ({"a": "tls_untrusted", "b": "tcp_silent"}, "halt_venue", 99, Verdict("wait")),
        ({"a": "tcp_silent", "b": "tcp_silent"}, "halt_venue", 99, Verdict("wait")),
        ({"a": "maintenance"}, "halt_all", 99, Verdict("wait")),
        ({"a": "rate_limited"}, "halt_all", 99, Verdict("wait")),
        ({"a": "ok", "a_ws": "ws_silent"}, "halt_all", 99, Verdict("wait")),
    ],
)
def test_judge(causes: dict[str, str], one_down: str, waited: float, expected: Verdict) -> None:
    assert _network.judge(network(**causes), one_down, waited, 30) == expected


def test_what_was_given_up_is_not_waited_for_again() -> None:
    seen = network(a="ok", b="tcp_silent")
    assert _network.judge(seen, "halt_venue", 0, 30, frozenset("b")) == Verdict("go", ("b",))
    # it comes back for a moment: it stays given up, and trading there stays halted
    assert _network.judge(network(a="ok", b="ok"), "halt_venue", 0, 30, frozenset("b")) == Verdict("go", ("b",))
    assert _network.judge(network(a="tcp_silent", b="ok"), "halt_venue", 99, 30, frozenset("b")) == Verdict("wait")


def test_an_exchange_that_is_not_required_is_not_waited_for_but_nobody_trades_there() -> None:
    seen = _network.summary([row("a/rest"), row("b/rest", "dns", required=False)], 0.0)
    assert _network.judge(seen, "halt_all", 0, 30) == Verdict("go", ("b",))
    # without any exchange there is nothing to go on with
    seen = _network.summary([row("b/rest", "dns", required=False)], 0.0)
    assert _network.judge(seen, "halt_all", 99, 30).kind == "wait"


def test_an_exchange_that_asks_for_peace_gets_it() -> None:
    assert _network.pause(0, 0) < 1 < _network.pause(60, 0)
    assert _network.pause(0, 30) == 30


# --- stability ----------------------------------------------------------------------------------------------------------------


def test_so_many_good_looks_over_so_many_seconds() -> None:
    stability = Stability(5, 5.0)
    assert [stability.see(True, at) for at in (0, 1.25, 2.5, 3.75, 5.0)] == [False] * 4 + [True]
    # many looks in a moment prove nothing, and few over a long time neither
    assert not any(Stability(5, 5.0).see(True, at / 10) for at in range(20))
    few = Stability(5, 5.0)
    assert [few.see(True, at) for at in (0, 100)] == [False, False]


def test_each_relapse_doubles_the_seconds() -> None:
    stability = Stability(2, 5.0, cap=30)
    assert not stability.see(False, 0)
    assert stability.seconds == 5, "what was never good has not relapsed"
    for at, expected in ((10, 10), (20, 20), (30, 30), (40, 30)):
        stability.see(True, at)
        stability.see(False, at + 1)
        stability.see(False, at + 2)
        assert stability.seconds == expected
    assert stability.relapses == 4 and not stability.see(True, 50)
    assert not stability.see(True, 79) and stability.see(True, 80)


def journal(run: str, at: float, *steps: str) -> list[dict[str, Any]]:
    return [{"run_id": run, "step": step, "event": "done", "at": at} for step in steps]


def test_a_recovery_that_is_not_long_ago_makes_the_next_one_careful() -> None:
    mended = journal("one", 1000.0, "network_mend", "trading_resume")
    assert _network.recoveries(mended, "two", 1000.0 + 900) == 1
    assert _network.recoveries(mended, "two", 1000.0 + 901) == 0
    assert _network.recoveries(mended, "one", 1001.0) == 0, "this run itself"
    assert _network.recoveries(journal("one", 1000.0, "network_mend"), "two", 1001.0) == 0, "it never resumed"
    assert _network.recoveries(journal("one", 1000.0, "redis_swap", "trading_resume"), "two", 1001.0) == 0, "another disaster"
    assert [_network.first_window(5, 60, count) for count in (0, 1, 2, 9)] == [5, 10, 20, 60]
