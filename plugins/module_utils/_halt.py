# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""The halt ladder. The latch is fastened before it; then: the services halt themselves, the services are stopped, their orders are cancelled at the exchanges,
the fence. Each rung is believed by its effect only, and the next one is taken when that is missing.

The effect at the exchanges is the only one that a service cannot make up. An exchange that cannot be asked is unknown, never quiet: then a halt that the
services confirm is accepted if they honour the latch, because they have to look at it before each order, and if not they are stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pwd
import signal
import subprocess
import threading
import time
import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _fence, _probe, _venue
from ansible_collections.titan.disaster_recovery.plugins.module_utils._probe import FAIL, PASS, UNKNOWN
from ansible_collections.titan.disaster_recovery.plugins.module_utils._venue import VenueError

NEVER, ON_ESCALATION, ALWAYS = POLICIES = ("never", "on_escalation", "always")
# An order that was on its way when the services confirmed the halt.
GRACE = 0.3
# Nobody listens when a connection was refused twice, so far apart at least.
REFUSED_FOR = 0.2
# An exchange that is there answers within this; it must not cost more when it is not.
FIRST_ANSWER = 2.0

SPEC: dict[str, t.Any] = {
    "user": {"type": "str", "required": True},
    "unit": {"type": "str", "required": True},
    "latch_honoured": {"type": "bool", "default": True},
    "exchanges": {"type": "list", "elements": "dict", "default": []},
    "cancel": {"type": "str", "choices": list(POLICIES), "default": ON_ESCALATION},
    "app_timeout": {"type": "float", "default": 2},
    "stop_timeout": {"type": "float", "default": 5},
    "venue_timeout": {"type": "float", "default": 5},
    "fence_timeout": {"type": "float", "default": 1},
    "watch": {"type": "float", "default": 1.5},
}

T = t.TypeVar("T")
Specs = t.Sequence[dict[str, t.Any]]


# --- the exchanges ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Mark:
    """A moment at an exchange: its time, and the orders that rest there."""

    at: float
    resting: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Seen:
    """What an exchange says of the time after a mark. `names` of orders are client ids where there are some."""

    verdict: str
    evidence: str
    names: tuple[str, ...] = ()


def newer(mark: Mark, orders: t.Iterable[t.Any], fills: t.Iterable[t.Any]) -> tuple[str, ...]:
    """Orders after the mark, and fills of none that rested there before."""
    found = {order.id: order.client_id or order.id for order in orders if order.at > mark.at + GRACE and order.id not in mark.resting}
    for fill in fills:
        if fill.at > mark.at + GRACE and fill.order_id not in mark.resting:
            found.setdefault(fill.order_id, fill.client_id or fill.order_id)
    return tuple(sorted(found.values()))


class Venues:
    """The exchanges whose keys lie on this server, asked side by side."""

    def __init__(self, specs: Specs, opener: t.Callable[..., t.Any] = _venue.open_venue, sleep: t.Callable[[float], None] = time.sleep) -> None:
        self.specs = {str(spec["name"]): spec for spec in specs if os.path.exists(str(spec["keys"]["file"]))}
        self.missing = sorted(str(spec["name"]) for spec in specs if str(spec["name"]) not in self.specs)
        self.opener = opener
        self.sleep = sleep

    def each(self, names: t.Iterable[str], work: t.Callable[[str, t.Any], T], limit: float) -> dict[str, T | VenueError]:
        """The result of `work(name, venue)` for each, or why there is none."""
        results: dict[str, T | VenueError] = {}

        def ask(name: str) -> None:
            try:
                results[name] = work(name, self.opener(self.specs[name], limit))
            except VenueError as exc:
                results[name] = exc
            except Exception as exc:  # whatever an exchange sends, it must not stop a halt
                results[name] = VenueError("unusable", f"{type(exc).__name__} while it was asked")

        names = list(names)
        _side_by_side(ask, names, limit)
        late = VenueError("network", f"no answer within {limit:g} s")
        return {name: results.get(name, late) for name in names}

    def mark(self, limit: float) -> dict[str, Mark | VenueError]:
        def look(name: str, venue: t.Any) -> Mark:
            resting = frozenset(order.id for order in venue.open_orders())
            return Mark(venue.server_time(), resting)

        return self.each(self.specs, look, limit)

    def since(self, marks: t.Mapping[str, Mark | VenueError], limit: float) -> dict[str, Seen]:
        """What came after the marks."""
        known = {name: mark for name, mark in marks.items() if isinstance(mark, Mark)}

        def look(name: str, venue: t.Any) -> Seen:
            mark = known[name]
            found = newer(mark, venue.orders_since(mark.at), venue.fills(mark.at))
            if found:
                return Seen(FAIL, f"{name} has {len(found)} orders that are newer: {', '.join(found[:5])}", found)
            return Seen(PASS, f"{name} has no newer order")

        answers = self.each(known, look, limit)
        said: dict[str, t.Any] = {**marks, **answers}
        return {name: found if isinstance(found, Seen) else Seen(UNKNOWN, f"{name} cannot be asked: {found}") for name, found in sorted(said.items())}

    def watch(self, seconds: float, limit: float) -> dict[str, Seen]:
        """What the exchanges get in so many seconds from now on."""
        marks = self.mark(min(limit, FIRST_ANSWER))
        if any(isinstance(mark, Mark) for mark in marks.values()):
            self.sleep(GRACE + seconds)
        return self.since(marks, limit)

    def cancel(self, names: t.Iterable[str], limit: float) -> dict[str, dict[str, t.Any]]:
        """Cancel every open order; what was open and is not any more, and what is left or unknown."""

        def work(name: str, venue: t.Any) -> dict[str, t.Any]:
            before = {order.id: order.client_id or order.id for order in venue.open_orders()}
            end = time.monotonic() + limit
            left = dict(before)
            # asked even when nothing is seen: an order may come in between
            venue.cancel_all()
            while True:
                left = {order.id: order.client_id or order.id for order in venue.open_orders()}
                if not left or time.monotonic() > end - 0.5:
                    break
                self.sleep(0.2)
                venue.cancel_all()
            gone = sorted(text for key, text in before.items() if key not in left)
            return {"count": len(gone), "ids": gone, "left": sorted(left.values())}

        answers = self.each(names, work, limit)
        return {name: {"error": str(found)} if isinstance(found, VenueError) else found for name, found in sorted(answers.items())}


def _side_by_side(work: t.Callable[[str], None], names: t.Sequence[str], limit: float) -> None:
    """In threads that are left behind when the time is over: a name that is being resolved cannot be interrupted."""
    end = time.monotonic() + limit
    threads = [threading.Thread(target=work, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))


def summed(seen: t.Mapping[str, Seen]) -> tuple[str, str]:
    """One verdict of all: what one exchange shows is shown, what one does not tell is unknown."""
    verdict = _probe.worst(found.verdict for found in seen.values())
    return verdict, "; ".join(found.evidence for found in seen.values())


def told(confirm: t.Mapping[str, t.Any], timeout: float, opener: _probe.Opener = _probe.http_open) -> dict[str, t.Any]:
    """What the services say of their trading, as it stands; nothing when they say nothing usable."""
    try:
        found = _probe.parse_body(opener(_probe.Request("GET", confirm["url"], None, timeout)).body)
    except (_probe.NoAnswer, ValueError):
        return {}
    return dict(found) if isinstance(found, dict) else {}


class _NobodyListens(Exception):
    """Asking goes on until the time is over; this ends it."""


def asked(
    call: t.Mapping[str, t.Any],
    timeout: float,
    opener: _probe.Opener = _probe.http_open,
    clock: t.Callable[[], float] = time.monotonic,
    sleep: t.Callable[[float], None] = time.sleep,
) -> _probe.Verdict:
    """The halt call. Services that do not run cannot halt themselves: two refusals end it."""
    since: float | None = None

    def once(request: _probe.Request) -> _probe.Response:
        nonlocal since
        try:
            answer = opener(request)
        except _probe.Refused as exc:
            since = clock() if since is None else since
            if clock() - since >= REFUSED_FOR:
                raise _NobodyListens(f"nobody listens at {_probe.shown_url(request.url)}: {exc}") from None
            raise
        except _probe.NoAnswer:
            since = None
            raise
        since = None
        return answer

    try:
        return _probe.call(call, timeout, once, clock, sleep)
    except _NobodyListens as exc:
        return _probe.Verdict(str(call.get("name") or "halt"), UNKNOWN, str(exc))


# --- the services ---------------------------------------------------------------------------------------------------------


def uid_of(user: str) -> int | None:
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return None


def processes_of(user: str) -> list[int]:
    """Live processes of a user; a user that does not exist has none."""
    uid = uid_of(user)
    found = []
    for name in os.listdir("/proc") if uid is not None else []:
        if name.isdigit():
            try:
                with open(f"/proc/{name}/status", encoding="utf-8") as handle:
                    fields = dict(line.split(":\t", 1) for line in handle if ":\t" in line)
            except OSError:
                continue
            if int(fields["Uid"].split()[0]) == uid and not fields["State"].startswith("Z"):
                found.append(int(name))
    return found


def stop(unit: str, user: str, timeout: float, for_good: bool) -> list[int]:
    """Stop the unit, with `for_good` also at the next boot, then end what is left of its user; returns the processes that survive."""
    end = time.monotonic() + timeout
    grace = end - timeout / 5
    # what does not heed systemd in time is ended here
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(["systemctl", *(["disable", "--now"] if for_good else ["stop"]), unit], capture_output=True, timeout=timeout * 0.8, check=False)
    while processes_of(user) and time.monotonic() < grace:
        time.sleep(0.05)
    # However late it is: what is killed needs a moment to be gone. PM2 starts again what is killed, as long as it lives itself.
    end = max(end, time.monotonic() + 1.0)
    while (left := processes_of(user)) and time.monotonic() < end:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    return left


# --- the ladder -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Means:
    """What the ladder works with. The times are limits of one rung each."""

    ask: t.Callable[[], _probe.Verdict] | None  # None where the services of this server have no halt of their own
    stop: t.Callable[[], list[int]]
    processes: t.Callable[[], list[int]]
    venues: Venues
    fence: t.Any  # _fence.Fence, or None for a user that does not exist
    clock: t.Callable[[], float] = time.monotonic


class Ladder:
    """Climbs until nothing can trade any more. `rungs` and `cancelled` tell what was done."""

    def __init__(self, means: Means, params: t.Mapping[str, t.Any]) -> None:
        self.means, self.params = means, params
        self.rungs: list[dict[str, t.Any]] = []
        self.cancelled: dict[str, dict[str, t.Any]] = {}
        self.notes: list[str] = []
        self._since = means.clock()

    def _rung(self, name: str, verdict: str, evidence: str) -> str:
        now = self.means.clock()
        self.rungs.append({"rung": name, "verdict": verdict, "evidence": evidence, "seconds": round(now - self._since, 2)})
        self._since = now
        return verdict

    def climb(self) -> dict[str, str]:
        """The gate `halted`."""
        verdict = self._climb()
        evidence = "latch fastened; " + "; ".join(rung["evidence"] for rung in self.rungs)
        return {"name": "halted", "verdict": verdict, "evidence": evidence}

    def rows(self) -> dict[str, t.Any]:
        """For the ledger."""
        return {"halt": {"rungs": self.rungs, "cancelled": self.cancelled}, **({"notes": self.notes} if self.notes else {})}

    def _climb(self) -> str:
        means, user = self.means, self.params["user"]
        fenced = means.fence is not None and means.fence.exists()
        if not means.processes():
            if not self.params["latch_honoured"]:
                means.stop()
            self._rung("processes", PASS, f"no process of user {user}")
            return self._quiet(fenced)
        # behind a fence nobody could see that a service goes on
        if not fenced and means.ask and self._app(means.ask) == PASS:
            return self._quiet(fenced)
        left = self._stop(fenced)
        escalated = not means.ask or any(rung["verdict"] != PASS for rung in self.rungs)
        if not escalated:
            # they halted and only had to be stopped because a restart would make them forget it
            return self._quiet(fenced)
        marks = means.venues.mark(min(self.params["venue_timeout"], FIRST_ANSWER))
        open_orders = self._cancel(marks) if self.params["cancel"] != NEVER else []
        seen = self._later(marks)
        if not left and not open_orders and seen != FAIL:
            if fenced:
                self._lift()
            return PASS
        return self._fence(bool(open_orders))

    def _quiet(self, fenced: bool) -> str:
        """Nothing trades: what policy and an earlier halt leave to be done."""
        if fenced:
            self._lift()
        if self.params["cancel"] == ALWAYS:
            self._cancel(self.means.venues.mark(self.params["venue_timeout"]))
        return PASS

    def _app(self, ask: t.Callable[[], _probe.Verdict]) -> str:
        said = ask()
        if said.verdict != PASS:
            return self._rung("app", FAIL, f"the services did not confirm ({said.evidence})")
        if not self.params["latch_honoured"]:
            self._rung("app", PASS, said.evidence)
            return UNKNOWN
        seen = self.means.venues.watch(self.params["watch"], self.params["venue_timeout"])
        verdict, evidence = summed(seen)
        if verdict == FAIL:
            return self._rung("app", FAIL, f"the services say that they halted ({said.evidence}), but {evidence}")
        if not seen:
            # such as a server whose configuration is lost
            names = f" ({', '.join(self.means.venues.missing)})" if self.means.venues.missing else ""
            evidence = f"no exchange could be asked with keys of this server{names}"
        return self._rung("app", PASS, f"{said.evidence}; {evidence}")

    def _stop(self, fenced: bool) -> list[int]:
        left = self.means.stop()
        why = "a fence of an earlier halt stands; " if fenced else ""
        why += "the services would forget it at a restart; " if not fenced and self.rungs and all(rung["verdict"] == PASS for rung in self.rungs) else ""
        why += "the services of this server have no halt of their own; " if not self.means.ask else ""
        evidence = f"{why}unit {self.params['unit']} stopped, {len(left)} processes of {self.params['user']} left"
        self._rung("stop", FAIL if left else PASS, evidence)
        return left

    def _cancel(self, marks: t.Mapping[str, Mark | VenueError]) -> list[str]:
        """At the exchanges that answer; orders that are still open after it."""
        answering = [name for name, mark in marks.items() if isinstance(mark, Mark)]
        silent = {name: {"error": str(mark)} for name, mark in marks.items() if not isinstance(mark, Mark)}
        found = {**silent, **self.means.venues.cancel(answering, self.params["venue_timeout"])}
        if not found:
            return []
        # what an earlier attempt cancelled stays cancelled
        for name, entry in found.items():
            ids = sorted({*self.cancelled.get(name, {}).get("ids", []), *entry.get("ids", [])})
            self.cancelled[name] = {**entry, **({"count": len(ids), "ids": ids} if ids or "count" in entry else {})}
        unknown = [f"{name}: {found['error']}" for name, found in self.cancelled.items() if "error" in found]
        if unknown:
            self.notes.append(f"whether orders are open could not be asked: {'; '.join(unknown)}")
        left = sorted(order for found in self.cancelled.values() for order in found.get("left", []))
        told = ", ".join(f"{found['count']} at {name}" for name, found in self.cancelled.items() if "count" in found)
        evidence = f"orders cancelled: {told or 'none could be'}" + (f"; still open: {', '.join(left[:5])}" if left else "")
        self._rung("cancel", FAIL if left else UNKNOWN if unknown else PASS, evidence)
        return left

    def _later(self, marks: t.Mapping[str, t.Any]) -> str:
        """Whether orders appear after the stop: from what survived it, or from somewhere else."""
        if not any(isinstance(mark, Mark) for mark in marks.values()):
            return UNKNOWN
        self.means.venues.sleep(GRACE + self.params["watch"])
        verdict, evidence = summed(self.means.venues.since(marks, self.params["venue_timeout"]))
        self._rung("exchanges", verdict, evidence)
        return verdict

    def _fence(self, open_orders: bool) -> str:
        try:
            why = self.means.fence.usable() if self.means.fence else f"there is no user {self.params['user']}"
            if why is None:
                self.means.fence.up()
        except _fence.FenceError as exc:
            why = str(exc)
        if why:
            return self._rung("fence", FAIL, f"no fence: {why}")
        self._rung("fence", PASS, f"nftables table inet {_fence.TABLE} drops what {self.params['user']} sends to others")
        # what goes on now comes from another host with the same keys
        marks = self.means.venues.mark(min(self.params["venue_timeout"], FIRST_ANSWER))
        left = self._cancel(marks) if open_orders else []
        return FAIL if self._later(marks) == FAIL or left else PASS

    def _lift(self) -> None:
        try:
            self.means.fence.down()
            self.notes.append(f"the fence of an earlier halt (nftables table inet {_fence.TABLE}) was taken down: nothing is left behind it")
        except _fence.FenceError as exc:
            self.notes.append(str(exc))


def trades(call: t.Mapping[str, t.Any], exchanges: Specs) -> bool:
    """Whether trading is on this server, so that it can say something of it: it has a halt or exchanges."""
    return bool(call or exchanges)


def ladder(params: t.Mapping[str, t.Any], call: t.Mapping[str, t.Any], latch: str, nft: str | None) -> Ladder:
    """The ladder of this server; without a call it begins with the stop of the services."""
    uid, honoured = uid_of(params["user"]), params["latch_honoured"]

    def ask() -> _probe.Verdict:
        return asked(call, params["app_timeout"])

    def ended() -> list[int]:
        if not honoured and _fence.hold_down(params["unit"], latch, nft):
            subprocess.run(["systemctl", "daemon-reload"], capture_output=True, timeout=30, check=False)
        return stop(params["unit"], params["user"], params["stop_timeout"], for_good=not honoured)

    def processes() -> list[int]:
        return processes_of(params["user"])

    fence = _fence.Fence(uid, nft, params["fence_timeout"]) if uid is not None else None
    return Ladder(Means(ask if call else None, ended, processes, Venues(params["exchanges"]), fence), params)
