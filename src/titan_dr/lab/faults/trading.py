# SPDX-License-Identifier: GPL-3.0-or-later
"""Trading is halted on a server that is well, and what a person who wants to resume it must not be told by the exchanges."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from titan_dr.lab import hosts, wiring
from titan_dr.lab.engine import LabError
from titan_dr.lab.faults.base import VICTIM, Fault
from titan_dr.lab.faults.network import exchanges
from titan_dr.lab.state import load_state

BOTH = tuple(wiring.VENUES)
# As somebody halts it by hand, who knows the latch. The services of the profile guide confirm it.
HALT = r"""
import json, sys, time, urllib.request
latch, ask = "/var/lib/titan-dr/halt", "http://127.0.0.1:3000"
with open(latch + ".generation", "w") as handle:
    handle.write("1\n")
with open(latch, "w") as handle:
    json.dump({"generation": 1, "reason": "the lab", "run_id": "the lab", "since": time.time()}, handle)
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
wire = urllib.request.Request(ask + "/emergency/halt", b'{"reason": "the lab"}', {"Content-Type": "application/json"})
end = time.monotonic() + 10
while True:
    try:
        opener.open(wire, timeout=3).close()
        told = json.load(opener.open(ask + "/health/trading", timeout=3))
        if told["trading"] is False and told["mode"] == "halted":
            break
    except (OSError, ValueError, KeyError) as error:
        told = error
    if time.monotonic() > end:
        sys.exit("not halted: %s" % told)
    time.sleep(0.1)
print(json.dumps(told))
"""


def control(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Ask the exchanges' control API, which no fault of theirs touches."""
    url = f"{load_state().exchange_control.rstrip('/')}/{path}"
    wire = urllib.request.Request(url, json.dumps(dict(body)).encode(), {"Content-Type": "application/json"}, method="POST")
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(wire, timeout=5) as reply:
            found: dict[str, Any] = json.load(reply)
            return found
    except (OSError, ValueError) as error:
        raise LabError(f"{url}: {error}") from error


def foreign_order(venue: str = "bybit", side: str = "buy", qty: str = "0.05", client_id: str = "x-somebody-else", **more: str) -> dict[str, str]:
    """An order with this account that is not ours."""
    order = control("orders", {"venue": venue, "symbol": "BTCUSDT", "side": side, "qty": qty, "type": "market", "clientOrderId": client_id, **more})
    return {"order": f"{venue}: {client_id}, {side} {qty} BTCUSDT, {order.get('status')}"}


def halted() -> dict[str, str]:
    done = hosts.exec(VICTIM, ["/usr/bin/python3", "-c", HALT], timeout=30, check=False)
    if done.returncode != 0:
        raise LabError(f"trading could not be halted: {(done.stderr or done.stdout).strip()[-300:]}")
    return {"halt": done.stdout.strip()}


def and_the_exchanges(body: Mapping[str, Any], venues: Sequence[str] = BOTH) -> dict[str, str]:
    return {**halted(), **exchanges(body, venues)}


def and_somebody_else_trades() -> dict[str, str]:
    return {**halted(), **foreign_order()}


def _told(name: str, summary: str, body: Mapping[str, Any], cause: str, venues: Sequence[str] = BOTH) -> Fault:
    return Fault(name, f"trading is halted, and {summary}", partial(and_the_exchanges, body, venues), expect="halted", cause=cause, cure=partial(exchanges, {}))


FAULTS = (
    Fault("halted", "somebody halted trading, and nothing is wrong", halted),
    _told("positions-html", "the exchanges answer with a page when they are asked for positions", {"positions_html": True}, "HTML"),
    _told("positions-error", "the exchanges cannot tell positions", {"positions_error": True}, "500"),
    _told("positions-empty", "the exchanges tell no position at all", {"positions_empty": True}, "position"),
    _told("positions-partial", "the exchanges tell a part of the positions", {"positions_partial": True}, "position"),
    _told("positions-wrong", "one exchange tells another position than the book", {"wrong_position": True}, "position", ["bybit"]),
    Fault("foreign-order", "trading is halted, and somebody else trades with this account", and_somebody_else_trades, expect="halted", cause="x-somebody-else"),
)
