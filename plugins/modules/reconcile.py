#!/usr/bin/python
# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: reconcile
short_description: Compare the book in Redis with what the exchanges report, and rebuild what was lost
version_added: "0.1.0"
author: [Titan DR maintainers (@titan-dr)]
description:
  - Reads clock, key rights, instruments, settings, open orders, positions, fills and orders since the restore point, and balances of every exchange twice.
    What an exchange explicitly reports is the truth. What it does not report is unknown, never flat.
  - Orders and fills that the book has lost are adopted when they are ours and explain every position to the last lot. Anything else stops, with a table of what
    it is and what to do.
  - The book is written in one transaction for each exchange, and only while trading is halted.
options:
  mode:
    description: V(observe) reads once, keeps what it saw for V(settle) and never fails. V(settle) reads again, compares and corrects the book.
    type: str
    choices: [observe, settle]
    default: settle
  venues:
    description: The exchanges, each as an entry of C(titan_venues).
    type: list
    elements: dict
    required: true
  skip_venues:
    description: Names of exchanges that stay halted by policy. They are not asked.
    type: list
    elements: str
    default: []
  book:
    description: Where the services keep positions and orders, with C(db), C(position) and C(order).
    type: dict
    required: true
  redis:
    description:
      - The server that holds the book, with C(config), or on another server with C(host) and C(port), and C(username) for a user other than the default one.
    type: dict
    required: true
  redis_password:
    description: Password of Redis. Without it the one that its configuration or its ACL file holds in clear.
    type: str
    default: ""
  canary:
    description: Where the canary lies, with C(key) and C(db). Its time is one of those that the lost time is told by.
    type: dict
    required: true
  latch:
    description: The halt latch. An order of ours that is later than it was placed by somebody else.
    type: path
    required: true
  halt_takes:
    description: Seconds from the fastening of the latch on until the halt has its effect and no order is under way any more.
    type: float
    default: 15
  run_id:
    description: The run. Written on what is rebuilt.
    type: str
    required: true
  since:
    description: When the restored data was taken, in seconds since the epoch. 0 when nothing was restored or it is not known.
    type: float
    default: 0
  overlap:
    description: Seconds before the oldest of restore point, canary and newest order in the book, from which on fills are asked for.
    type: float
    default: 60
  lookback:
    description: Seconds to look back when none of these is known.
    type: float
    default: 86400
  own_ids:
    description: Regular expression that the client ids of all orders of this Titan match, and nobody else's.
    type: str
    default: "^t-"
  accepted_ids:
    description: Ids of orders of others, the client's or the exchange's, that a person has accounted for in the book. They are left out.
    type: list
    elements: str
    default: []
  interval:
    description: Least seconds between the two reads.
    type: float
    default: 5
  timeout:
    description: Seconds within which two equal reads must have been made.
    type: float
    default: 30
  call_timeout:
    description: Seconds for each list of an exchange, with all its pages.
    type: float
    default: 5
  lot_share:
    description: Quantities are equal when they differ by no more than this share of a lot.
    type: float
    default: 0.5
  entry_ticks:
    description: Entry prices are equal when they differ by no more than so many ticks.
    type: float
    default: 1
  entry_bp:
    description: Or by no more than so many hundredths of a percent.
    type: float
    default: 1
  clock_ms:
    description: Largest acceptable difference of the clocks in milliseconds.
    type: float
    default: 500
  balance_share:
    description: Balances of two reads are equal when they differ by no more than this share.
    type: float
    default: 0.001
  settings:
    description:
      - What C(leverage), C(margin) and C(position_mode) must be, by symbol, by exchange. Without it the position mode must be C(one_way).
    type: dict
    default: {}
extends_documentation_fragment:
  - titan.disaster_recovery.attributes
  - titan.disaster_recovery.lease
attributes:
  check_mode:
    support: full
    details: Reads and compares, and does not write the book.
  diff_mode:
    support: none
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Read the exchanges for the first time
  titan.disaster_recovery.reconcile:
    mode: observe
    venues: "{{ titan_venues }}"
    book: "{{ titan_book }}"
    redis: "{{ titan_redis }}"
    canary: "{{ titan_canary }}"
    latch: "{{ titan_latch }}"
    run_id: 20260101T000000Z-1234

- name: Reconcile
  titan.disaster_recovery.reconcile:
    venues: "{{ titan_venues }}"
    book: "{{ titan_book }}"
    redis: "{{ titan_redis }}"
    canary: "{{ titan_canary }}"
    latch: "{{ titan_latch }}"
    run_id: 20260101T000000Z-1234
    since: 1767225600
"""

RETURN = r"""
at:
  description: When the last reads began, in seconds since the epoch.
  type: float
  returned: always
titan_dr:
  description: Rows for the ledger, with C(gates) and C(reconciliation).
  type: dict
  returned: always
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import re
import time
import typing as t
from decimal import Decimal

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _book, _latch, _lease, _reconcile, _redis, _venue

# Between two reads of which the first failed.
RETRY = 1.0


@dataclasses.dataclass
class Outcome:
    """What came of one exchange."""

    snapshot: _reconcile.Snapshot
    judgement: _reconcile.Judgement
    apart: float = 0.0


def state_path(run_id: str) -> str:
    return os.path.join(_lease.RUN_DIR, f"reconcile-{re.sub(r'[^A-Za-z0-9._-]', '_', run_id)}.json")


def open_venues(params: dict[str, t.Any], more_symbols: dict[str, set[str]]) -> list[_venue.Venue]:
    """Those that are to be asked, also for symbols that only the book has."""
    found = []
    for spec in params["venues"]:
        if spec.get("name") not in params["skip_venues"]:
            symbols = [*(spec.get("symbols") or []), *sorted(more_symbols.get(str(spec.get("name")), set()) - set(spec.get("symbols") or []))]
            found.append(_venue.open_venue({**spec, "symbols": symbols}, params["call_timeout"]))
    return found


def side_by_side(items: list[t.Any], work: t.Callable[[t.Any], t.Any]) -> list[t.Any]:
    if not items:
        return []
    with concurrent.futures.ThreadPoolExecutor(max_workers=len(items)) as pool:
        return list(pool.map(work, items))


# --- observe ----------------------------------------------------------------------------------------------------------


def observe(params: dict[str, t.Any], check: bool) -> dict[str, t.Any]:
    """Read once and keep it. What could not be read is a note: whether it matters is decided later."""
    since = (params["since"] or time.time() - params["lookback"]) - params["overlap"]

    def one(venue: _venue.Venue) -> dict[str, t.Any]:
        return {"venue": venue.name, **_reconcile.stable(_reconcile.look(venue, since))}

    reads = side_by_side(open_venues(params, {}), one)
    if not check:
        os.makedirs(_lease.RUN_DIR, mode=0o755, exist_ok=True)
        _lease.write_file(state_path(params["run_id"]), json.dumps({read["venue"]: read for read in reads}) + "\n", 0o600)
    notes = []
    for read in reads:
        faults = [fault["text"] for fault in read["faults"].values()]
        held = ", ".join(f"{symbol} {entry[0]}" for symbol, entry in sorted(read["positions"].items()) if entry[0] != "0") or "flat"
        notes.append(f"{read['venue']}: " + (f"not completely read: {faults[0]}" if faults else f"{held}, {len(read['open_orders'])} open orders"))
    return {"at": min((read["at"] for read in reads), default=time.time()), "titan_dr": {"notes": notes}}


def observed(run_id: str) -> dict[str, t.Any]:
    """What this run saw earlier; nothing when it did not look or that cannot be used."""
    with contextlib.suppress(OSError, ValueError), open(state_path(run_id), encoding="utf-8") as handle:
        found = json.load(handle)
        if isinstance(found, dict):
            return found
    return {}


# --- settle -----------------------------------------------------------------------------------------------------------


def not_yet(venue: str, why: str) -> _reconcile.Judgement:
    row = {"venue": venue, "what": "reads", "symbol": "", "id": "", "book": "-", "venue_value": "-", "action": "stop", "verdict": "unknown"}
    return _reconcile.Judgement([{**row, "why": why, "do": "Find out what still moves on this account, then again."}])


def ask(venue: _venue.Venue, wanted: dict[str, str]) -> dict[str, _venue.Order | None]:
    """The orders by name; those that could not be asked for are left out."""

    def one(client_id: str) -> tuple[str, _venue.Order | None] | None:
        try:
            return client_id, venue.order(wanted[client_id], client_id)
        except _venue.VenueError:
            return None

    if not wanted:
        return {}
    with concurrent.futures.ThreadPoolExecutor(max_workers=8) as pool:
        return dict(answer for answer in pool.map(one, wanted) if answer is not None)


class Settler:
    """Reads until two reads in a row are equal, or the time is over."""

    def __init__(self, params: dict[str, t.Any], book: _book.Book, keys: _book.Keys, policy: _reconcile.Policy, since: float) -> None:
        self.params, self.book, self.keys, self.policy, self.since = params, book, keys, policy, since
        self.first = observed(params["run_id"])
        self.end = time.monotonic() + params["timeout"]

    def policy_of(self, venue: str) -> _reconcile.Policy:
        return dataclasses.replace(self.policy, settings=self.params["settings"].get(venue, {}))

    def settle(self, venue: _venue.Venue) -> Outcome:
        policy = self.policy_of(venue.name)
        first = self.first.get(venue.name)
        before = first if first and not first["faults"] else None
        while True:
            if before:
                # the clock may have been set since then
                time.sleep(min(self.params["interval"], max(0.0, before["at"] + self.params["interval"] - time.time())))
            snapshot = _reconcile.look(venue, self.since)
            read = _reconcile.stable(snapshot)
            outcome = self._judge(venue, snapshot, before, read, policy)
            faults = {fault["kind"] for fault in snapshot.faults.values()}
            pause = RETRY if faults else self.params["interval"]
            final = faults & set(_reconcile.FINAL) or (snapshot.status and snapshot.status[0] != "ok")
            if outcome.judgement.verdict != _reconcile.UNKNOWN or final or time.monotonic() + pause > self.end:
                return outcome
            if faults:
                time.sleep(RETRY)
            else:
                before = read

    def _judge(self, venue: _venue.Venue, snapshot: _reconcile.Snapshot, before: t.Any, read: dict[str, t.Any], policy: _reconcile.Policy) -> Outcome:
        asked: dict[str, _venue.Order | None] = {}
        broken = snapshot.faults.keys() - {"rights", "clock"}
        if not broken:
            if before is None:
                return Outcome(snapshot, not_yet(venue.name, "read only once so far"))
            changed = _reconcile.differences(before, read, policy.balance_share)
            if changed:
                return Outcome(snapshot, not_yet(venue.name, f"two reads are not the same: {'; '.join(changed)}"))
            asked = ask(venue, _reconcile.to_ask(snapshot, self.book, policy))
        judgement = _reconcile.judge(snapshot, self.book, self.keys, asked, policy, time.time(), self.params["run_id"])
        return Outcome(snapshot, judgement, snapshot.at - before["at"] if before else 0.0)


def symbols_of(book: _book.Book) -> dict[str, set[str]]:
    """Of each exchange, what the book holds or waits for: its end must be told even when it is not traded any more."""
    found: dict[str, set[str]] = {}
    for held in book.positions.values():
        if held.size:
            found.setdefault(held.venue, set()).add(held.symbol)
    for order in book.orders.values():
        if order.status in ("pending", "unknown"):
            found.setdefault(order.venue, set()).add(order.symbol)
    return found


def lost_since(params: dict[str, t.Any], book: _book.Book, canary: dict[str, float] | None) -> tuple[float, str]:
    """From when on the book may lack something, and what tells so. The oldest counts: after a restore no record in it is younger than that."""
    known = {"restore point": params["since"] or None, "newest order in the book": book.newest(), "canary": canary["at"] if canary else None}
    times = {name: at for name, at in known.items() if at}
    if not times:
        return time.time() - params["lookback"], "nothing"
    name = min(times, key=lambda one: times[one])
    return times[name], name


def policy_from(params: dict[str, t.Any]) -> _reconcile.Policy:
    latch = _latch.read(params["latch"])
    return _reconcile.Policy(
        re.compile(params["own_ids"]),
        Decimal(str(params["lot_share"])),
        Decimal(str(params["entry_ticks"])),
        Decimal(str(params["entry_bp"])),
        params["clock_ms"],
        Decimal(str(params["balance_share"])),
        # a latch that cannot be read halts all the same
        float(latch.get("since") or time.time()) if latch else 0.0,
        params["halt_takes"],
        accepted=frozenset(params["accepted_ids"]),
    )


def store(client: _book.Connection, keys: _book.Keys, book: _book.Book, outcomes: list[Outcome], check: bool) -> bool:
    """Write what was decided; what cannot be written is a row that stops."""
    changed = False
    for outcome in outcomes:
        changes = outcome.judgement.changes
        if not changes:
            continue
        changed = True
        if check:
            continue
        try:
            _book.write(client, keys, book, changes)
        except (_book.BookError, _redis.RedisError) as exc:
            row = {
                "venue": outcome.snapshot.venue,
                "what": "book",
                "symbol": "",
                "id": "",
                "book": "-",
                "venue_value": "-",
                "action": "stop",
                "verdict": "fail",
            }
            outcome.judgement.rows.append({**row, "why": str(exc), "do": "Find out what writes to the book while trading is halted, then again."})
            outcome.judgement.rebuilt = []
    return changed


def report(params: dict[str, t.Any], outcomes: list[Outcome], book: _book.Book, policy: _reconcile.Policy, window: tuple[float, str]) -> dict[str, t.Any]:
    """The rows for the ledger."""
    gates, rows, notes = [], [], []
    for outcome in outcomes:
        snapshot, found = outcome.snapshot, outcome.judgement.rows
        of_venue = [
            _reconcile.clock_gate(snapshot, policy),
            _reconcile.rights_gate(snapshot),
            _reconcile.venue_gate(snapshot.venue, found, outcome.apart, "two reads"),
        ]
        gates += [{**gate, "at": snapshot.at} for gate in of_venue]
        rows += found
    for name in params["skip_venues"]:
        row = {"venue": name, "what": "exchange", "symbol": "", "id": "", "book": "-", "venue_value": "-", "action": "skipped", "verdict": "skipped"}
        rows.append({**row, "why": "halted", "do": "Reconcile it before it trades again."})
    known = {str(spec.get("name")) for spec in params["venues"]}
    for venue in sorted({position.venue for position in book.positions.values() if position.size} - known):
        evidence = "the book has positions there, and it is none of the exchanges that are configured"
        gates.append({"name": f"reconcile_{venue}", "verdict": "unknown", "evidence": evidence, "at": time.time()})
    if book.others:
        notes.append(f"{book.others} orders in the book have other ids than {params['own_ids']}: they are not compared")
    titan_dr: dict[str, t.Any] = {"gates": gates, "reconciliation": rows, "notes": notes}
    rebuilt = [order for outcome in outcomes for order in outcome.judgement.rebuilt]
    if rebuilt:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(window[0]))
        titan_dr["rpo"] = {
            "rebuilt": {
                "orders": len(rebuilt),
                "fills": sum(outcome.judgement.fills for outcome in outcomes),
                "since": window[0],
                "ids": rebuilt,
                "not_rebuilt": "the signals behind these orders are not marked as processed: no exchange knows them",
            }
        }
        notes.append(f"{len(rebuilt)} orders since {since} ({window[1]}) were rebuilt from the exchanges; their signals are not marked as processed")
    return titan_dr


def table(rows: list[dict[str, str]], gates: list[dict[str, t.Any]]) -> str:
    """What is open, and what to do about it, for a person."""
    lines = []
    for row in rows:
        if row["verdict"] in ("fail", "unknown"):
            where = " ".join(part for part in (row["venue"], row["what"], row["symbol"], row["id"]) if part)
            lines.append(f"{where}: book {row['book']}, exchange {row['venue_value']}: {row['why']}. {row['do']}".rstrip())
    told = {f"reconcile_{row['venue']}" for row in rows}
    lines += [f"{gate['name']} is {gate['verdict']}: {gate['evidence']}" for gate in gates if gate["verdict"] != "pass" and gate["name"] not in told]
    return "\n".join(lines)


def settle(module: AnsibleModule, params: dict[str, t.Any]) -> t.NoReturn:
    try:
        keys, policy = _book.Keys.parse(params["book"]), policy_from(params)
        conf = _redis.conf_of(params["redis"], params["redis_password"])
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(contextlib.closing(_book.Connection.open(conf, params["call_timeout"])))
            watch = stack.enter_context(contextlib.closing(_book.Watch(conf, client, keys, params["call_timeout"])))
            canary = _redis.canary(client, params["canary"]["key"], params["canary"]["db"])
            book = _book.read(client, keys, policy.own)
            window = lost_since(params, book, canary)
            settler = Settler(params, book, keys, policy, window[0] - params["overlap"])
            outcomes = side_by_side(open_venues(params, symbols_of(book)), settler.settle)
            if not watch.quiet() and _book.read(client, keys, policy.own).raw != book.raw:
                raise _book.BookError("the book changed while it was reconciled: something still writes to it")
            changed = store(client, keys, book, outcomes, module.check_mode)
    except (_book.BookError, _redis.RedisError, _venue.VenueSpecError, OSError, ValueError, re.error) as exc:
        gate = {"name": "reconcile", "verdict": "unknown", "evidence": str(exc), "at": time.time()}
        module.fail_json(msg=f"Nothing was reconciled: {exc}", at=time.time(), titan_dr={"gates": [gate]})
    at = min((outcome.snapshot.at for outcome in outcomes), default=time.time())
    titan_dr = report(params, outcomes, book, policy, window)
    if not titan_dr["gates"]:
        titan_dr["gates"] = [{"name": "reconcile", "verdict": "unknown", "evidence": "no exchange was asked", "at": at}]
    open_ends = table(titan_dr["reconciliation"], titan_dr["gates"])
    if any(gate["verdict"] != "pass" for gate in titan_dr["gates"]):
        module.fail_json(msg=f"The book is not reconciled:\n{open_ends}", changed=changed, at=at, titan_dr=titan_dr)
    module.exit_json(changed=changed, at=at, titan_dr=titan_dr)


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "mode": {"type": "str", "choices": ["observe", "settle"], "default": "settle"},
            "venues": {"type": "list", "elements": "dict", "required": True},
            "skip_venues": {"type": "list", "elements": "str", "default": []},
            "book": {"type": "dict", "required": True},
            "redis": {"type": "dict", "required": True},
            "redis_password": {"type": "str", "default": "", "no_log": True},
            "canary": {"type": "dict", "required": True, "no_log": False},
            "latch": {"type": "path", "required": True},
            "halt_takes": {"type": "float", "default": 15},
            "run_id": {"type": "str", "required": True},
            "since": {"type": "float", "default": 0},
            "overlap": {"type": "float", "default": 60},
            "lookback": {"type": "float", "default": 86400},
            "own_ids": {"type": "str", "default": "^t-"},
            "accepted_ids": {"type": "list", "elements": "str", "default": []},
            "interval": {"type": "float", "default": 5},
            "timeout": {"type": "float", "default": 30},
            "call_timeout": {"type": "float", "default": 5},
            "lot_share": {"type": "float", "default": 0.5},
            "entry_ticks": {"type": "float", "default": 1},
            "entry_bp": {"type": "float", "default": 1},
            "clock_ms": {"type": "float", "default": 500},
            "balance_share": {"type": "float", "default": 0.001},
            "settings": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    params = module.params
    if params["mode"] == "observe":
        try:
            module.exit_json(changed=False, **observe(params, module.check_mode))
        except (_venue.VenueSpecError, OSError) as exc:
            module.exit_json(changed=False, at=time.time(), titan_dr={"notes": [f"the exchanges were not observed: {exc}"]})
    with _lease.command(module, "reconcile"):
        settle(module, params)


if __name__ == "__main__":
    main()
