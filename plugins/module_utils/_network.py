# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""What is wrong with the way to an exchange or a store, from what was seen on each layer; and when it is well again. Pure: no network, no clock.

An endpoint is one address of a venue (its REST or its WebSocket URL) or a store. Its cause is the lowest layer that explains what is seen.
"""

from __future__ import annotations

import dataclasses
import typing as t
import urllib.parse

OK = "ok"
PASS, FAIL, UNKNOWN = "pass", "fail", "unknown"
# From the ground up. What failed on a lower layer explains what is seen above it.
CAUSES = (
    "interface", "route", "dns", "tcp_refused", "tcp_silent", "tls_failed", "clock", "tls_untrusted", "tls_expired", "tls_not_yet_valid",
    "maintenance", "rate_limited", "http_unusable", "key_refused", "ws_refused", "ws_silent",
)  # fmt: skip
# The playbook may mend these itself.
OURS = frozenset(("interface", "route", "dns", "tcp_silent"))
# Waiting changes nothing about these, and with most of them a key must not even be shown.
DEFINITE = frozenset(("clock", "tls_untrusted", "tls_expired", "tls_not_yet_valid", "key_refused"))
ADVICE = {
    "interface": "bring the network interface up; nothing that may be tried here helped",
    "route": "no way leads there: ask the provider, or name another one in titan_network.routes",
    "dns": "name resolvers that answer in titan_network.resolvers, or known good addresses in titan_venues",
    "tcp_refused": "the other side refuses connections: look at its status page",
    "tcp_silent": "packets get lost on the way: ask the provider, or name another way in titan_network.routes",
    "tls_failed": "the TLS handshake breaks off: something on the way meddles with it, or the other side is broken",
    "clock": "set the server's clock (time synchronisation), then run again",
    "tls_untrusted": "somebody else answers in the place of the exchange, or its authority is new: find out who before any key is shown to it",
    "tls_expired": "the certificate of the other side has run out: only they can renew it",
    "tls_not_yet_valid": "the certificate of the other side is not valid yet: only they can change it",
    "maintenance": "the exchange is in maintenance: wait for its end, the network is well",
    "rate_limited": "the exchange limits this address: send less, the network is well",
    "http_unusable": "what answers does not speak the exchange's language: look at its status page",
    "key_refused": "the network is well, the key is not accepted: check the key, its rights and its list of allowed addresses at the exchange",
    "ws_refused": "the exchange or something on the way refuses WebSockets: look at its status page",
    "ws_silent": "the stream is open and carries no data: look at the exchange's status page",
}


class NetworkError(ValueError):
    """What is to be looked at is described wrongly."""


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """One thing to be reached. `spec` is the venue's or the store's own description."""

    name: str
    kind: str  # venue | store
    part: str  # rest | ws | s3 | ssh
    host: str
    port: int
    tls: bool
    path: str = ""
    ca: str = ""
    pinned: tuple[str, ...] = ()
    required: bool = True
    spec: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)

    @property
    def owner(self) -> str:
        """The venue or store it belongs to."""
        return str(self.spec.get("name") or self.name)


@dataclasses.dataclass(frozen=True)
class Evidence:
    """One word for each layer. What was not looked at proves nothing: an evidence without words is no good one."""

    interface: str = "unknown"  # up | down | no_address | unknown
    route: str = "unknown"  # ok | none | blackhole | unknown
    dns: str = "dead"  # ok | dead | nxdomain | differs (from the pinned addresses)
    pinned: str = "none"  # none | works | fails: tried where the name leads elsewhere and nothing good is there
    tcp: str = "untried"  # ok | refused | silent | unreachable | untried
    tls: str = "untried"  # ok | plain | untrusted | name | expired | not_yet_valid | failed | untried
    clock: str = "unknown"  # ok | off | unknown: ours, against the controller's
    http: str = "untried"  # ok | rate_limited | unusable | untried
    status: str = "unknown"  # ok | maintenance | unknown
    key: str = "untried"  # ok | refused | clock | unknown | untried
    ws: str = "untried"  # ok | refused | silent | untried


@dataclasses.dataclass(frozen=True)
class Layer:
    layer: str
    verdict: str
    evidence: str
    ms: float = 0.0

    def row(self) -> dict[str, t.Any]:
        return {"layer": self.layer, "verdict": self.verdict, "evidence": self.evidence, "ms": round(self.ms, 1)}


# --- what to look at -------------------------------------------------------------------------------------------------


def _split(url: t.Any, schemes: t.Mapping[str, tuple[bool, int]], what: str) -> tuple[str, int, bool, str]:
    parts = urllib.parse.urlsplit(str(url or ""))
    try:
        tls, port = schemes[parts.scheme]
        host, port = parts.hostname, parts.port or port
    except (KeyError, ValueError):
        host = None
    if not host:
        raise NetworkError(f"{what}: {url!r} is not an address like {' or '.join(f'{name}://host' for name in schemes)}")
    return host, port, tls, parts.path + (f"?{parts.query}" if parts.query else "")


_HTTP = {"https": (True, 443), "http": (False, 80)}
_WS = {"wss": (True, 443), "ws": (False, 80)}


def endpoints(venues: t.Sequence[t.Mapping[str, t.Any]], stores: t.Sequence[t.Mapping[str, t.Any]]) -> list[Endpoint]:
    """What the inventory describes; NetworkError when it cannot be looked at."""
    found = []
    for venue in venues:
        name = str(venue.get("name") or "")
        if not name or venue.get("kind") not in ("binance", "bybit"):
            raise NetworkError(f"venue {name or venue!r}: it needs a name, and kind binance or bybit")
        for part, schemes in (("rest", _HTTP), ("ws", _WS)):
            host, port, tls, path = _split(venue.get(part), schemes, f"venue {name}: {part}")
            pinned = tuple(str(address) for address in venue.get("addresses") or ())
            required = bool(venue.get("required", True))
            found.append(Endpoint(f"{name}/{part}", "venue", part, host, port, tls, path, str(venue.get("ca") or ""), pinned, required, venue))
    for store in stores:
        name, kind = str(store.get("name") or ""), store.get("kind")
        if kind == "s3":
            url = store.get("endpoint") or f"https://s3.{store.get('region') or 'us-east-1'}.amazonaws.com"
            host, port, tls, path = _split(url, _HTTP, f"store {name}: endpoint")
            found.append(Endpoint(name, "store", "s3", host, port, tls, path or "/", required=False, spec=store))
        elif kind == "sftp" and store.get("host"):
            found.append(Endpoint(name, "store", "ssh", str(store["host"]), int(store.get("port") or 22), False, required=False, spec=store))
    if len({endpoint.name for endpoint in found}) != len(found):
        raise NetworkError("two venues or stores have the same name")
    if not any(endpoint.kind == "venue" for endpoint in found):
        raise NetworkError("titan_venues names no exchange, so nothing could be proven")
    return found


# --- the cause -------------------------------------------------------------------------------------------------------


def _below_the_name(seen: Evidence) -> tuple[str, str]:
    """The cause when nothing could be connected to, whatever the name said."""
    if seen.tcp == "refused":
        # somebody was reached who said so
        return "tcp_refused", ""
    if seen.interface in ("down", "no_address"):
        return "interface", seen.interface
    if seen.route in ("none", "blackhole"):
        return "route", seen.route
    return ("route", "unreachable") if seen.tcp == "unreachable" else ("tcp_silent", "")


def _of_the_certificate(seen: Evidence) -> tuple[str, str]:
    if seen.tls in ("expired", "not_yet_valid"):
        return ("clock", seen.tls) if seen.clock == "off" else (f"tls_{seen.tls}", "")
    return {"untrusted": ("tls_untrusted", ""), "name": ("tls_untrusted", "name")}.get(seen.tls, ("tls_failed", ""))


def _of_the_exchange(seen: Evidence) -> tuple[str, str]:
    if seen.status == "maintenance":
        return "maintenance", ""
    if seen.http == "rate_limited":
        return "rate_limited", ""
    if seen.http == "unusable" or (seen.http, seen.ws) == ("untried", "untried"):
        return "http_unusable", ""
    by_key = {"refused": ("key_refused", ""), "clock": ("clock", "signed call"), "unknown": ("http_unusable", "signed call")}
    if seen.key in by_key:
        return by_key[seen.key]
    return {"refused": ("ws_refused", ""), "silent": ("ws_silent", "")}.get(seen.ws, (OK, ""))


def decide(seen: Evidence) -> tuple[str, str]:
    """The cause, and a word more on it."""
    reached, well = seen.tcp == OK, seen.tls in (OK, "plain")
    cut = seen.tcp in ("silent", "unreachable", "untried")
    if cut and seen.interface in ("down", "no_address"):
        return "interface", seen.interface
    if seen.dns == "nxdomain" or (seen.dns == "dead" and not cut):
        return "dns", seen.dns
    if seen.dns == "dead" and seen.tcp == "untried":
        return "dns", "dead"
    if seen.dns == "differs" and seen.pinned == "works" and not (reached and well):
        return "dns", "wrong"
    if not reached:
        # no resolver answers and no known address either: more than the names are cut off
        return _below_the_name(seen)
    return _of_the_exchange(seen) if well else _of_the_certificate(seen)


def row(
    endpoint: Endpoint, seen: Evidence, layers: t.Sequence[Layer], latency_ms: float | None, loss: float | None, retry_after: float = 0.0
) -> dict[str, t.Any]:
    """One endpoint in the result."""
    cause, detail = decide(seen)
    return {
        "name": endpoint.name,
        "owner": endpoint.owner,
        "kind": endpoint.kind,
        "required": endpoint.required,
        "cause": cause,
        "detail": detail,
        "ours": cause in OURS,
        "layers": [layer.row() for layer in layers],
        "latency_ms": latency_ms,
        "loss": loss,
        "retry_after": retry_after,
    }


def summary(rows: t.Sequence[t.Mapping[str, t.Any]], at: float) -> dict[str, t.Any]:
    """All endpoints, the cause of each venue, and the one cause to begin with: of the required ones, the lowest."""
    rank = {cause: number for number, cause in enumerate(CAUSES)}

    def lowest(found: t.Iterable[t.Mapping[str, t.Any]]) -> str:
        return min((row["cause"] for row in found if row["cause"] != OK), key=lambda cause: rank[cause], default=OK)

    owners = dict.fromkeys(row["owner"] for row in rows if row["kind"] == "venue")
    cause = lowest(row for row in rows if row["required"])
    return {
        "endpoints": list(rows),
        "venues": {owner: lowest(row for row in rows if row["kind"] == "venue" and row["owner"] == owner) for owner in owners},
        "cause": cause,
        "ours": cause in OURS,
        "at": at,
    }


def bad(network: t.Mapping[str, t.Any], required: bool = True) -> list[t.Mapping[str, t.Any]]:
    """The endpoints that are not well."""
    return [row for row in network["endpoints"] if row["cause"] != OK and (row["required"] or not required)]


def told(row: t.Mapping[str, t.Any]) -> str:
    """An endpoint that is not well, in a sentence: what its cause was seen by, or else what was seen last."""
    found = {layer["layer"]: layer["evidence"] for layer in row["layers"]}
    last = next((layer["evidence"] for layer in reversed(row["layers"]) if layer["verdict"] != PASS), "")
    why = found.get({"maintenance": "status", "rate_limited": "http"}.get(row["cause"], row["cause"].partition("_")[0]), last)
    return f"{row['name']}: {row['cause']}{' (' + row['detail'] + ')' if row['detail'] else ''}: {why}"


def progress(before: t.Mapping[str, t.Any], after: t.Mapping[str, t.Any]) -> bool:
    """Whether a measure helped: some endpoint got further up, and none of what matters fell back."""
    rank = {**{cause: number for number, cause in enumerate(CAUSES)}, OK: len(CAUSES)}
    was = {row["name"]: (rank[row["cause"]], row["required"]) for row in before["endpoints"]}
    steps = [(rank[row["cause"]] - was[row["name"]][0], row["required"]) for row in after["endpoints"] if row["name"] in was]
    return any(step > 0 for step, dummy in steps) and not any(step < 0 for step, required in steps if required)


# --- when it is well again -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Verdict:
    kind: str  # go | wait | stop
    down: tuple[str, ...] = ()  # venues to go on without


def judge(network: t.Mapping[str, t.Any], one_down: str, waited: float, patience: float, given_up: t.AbstractSet[str] = frozenset()) -> Verdict:
    """Go on, wait, or stop because waiting is no use. `one_down`: halt_venue goes on without a venue that stays away for longer than `patience`."""
    wrong = {row["owner"] for row in bad(network)} - given_up
    definite = {row["owner"] for row in bad(network) if row["cause"] in DEFINITE} - given_up
    well = {owner for owner, cause in network["venues"].items() if cause == OK} - given_up
    # one that is not required is never waited for, but nobody trades there either
    away = tuple(sorted(set(network["venues"]) - well))
    if not wrong and well:
        return Verdict("go", away)
    if one_down == "halt_venue" and well and wrong <= (wrong if waited >= patience else definite):
        return Verdict("go", away)
    if one_down == "halt_venue":
        return Verdict("stop" if wrong == definite else "wait")
    return Verdict("stop" if definite else "wait")


def pause(waited: float, retry_after: float) -> float:
    """Seconds until the next look: quickly at first, but an exchange counts the connections, and one that asks for peace gets it."""
    return max(retry_after, 0.5 if waited < 30 else 2.0)


class Stability:
    """So many good looks in a row over so many seconds. Each relapse doubles the seconds."""

    def __init__(self, looks: int, seconds: float, cap: float = 60.0) -> None:
        self.looks, self.seconds, self.cap = looks, min(seconds, cap), cap
        self.relapses = 0
        self._good = 0
        self._since = 0.0

    @property
    def interval(self) -> float:
        """Between two good looks."""
        return min(2.0, self.seconds / max(1, self.looks - 1))

    def see(self, good: bool, at: float) -> bool:
        """One look; whether it is stable now."""
        if not good:
            if self._good:
                self.relapses += 1
                self.seconds = min(self.cap, self.seconds * 2)
            self._good = 0
            return False
        self._since = self._since if self._good else at
        self._good += 1
        # the looks are not made to the millisecond
        return self._good >= self.looks and at - self._since >= self.seconds * 0.98

    @property
    def good(self) -> int:
        return self._good


def first_window(seconds: float, cap: float, recoveries: int) -> float:
    """The seconds to begin with: doubled by each recovery of the network that is not long ago."""
    return float(min(cap, seconds * 2**recoveries))


def recoveries(journal: t.Sequence[t.Mapping[str, t.Any]], run_id: str, now: float, memory: float = 900.0) -> int:
    """How many other runs have mended a network and resumed lately."""
    mended = {row.get("run_id") for row in journal if row["step"] == "network_mend"}
    resumed = {
        row.get("run_id"): row["at"] for row in journal if (row["step"], row["event"]) == ("trading_resume", "done") and isinstance(row.get("at"), (int, float))
    }
    return sum(run in mended and run != run_id and 0 <= now - at <= memory for run, at in resumed.items())
