#!/usr/bin/python
# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: network_info
short_description: Say what is wrong between this server and the exchanges, layer by layer, and when it is well again
version_added: "0.1.0"
author: [Titan DR maintainers (@titan-dr)]
description:
  - Looks at the REST and the WebSocket address of every exchange and at every store at once - name, connection, certificate, what the other side says, its word
    on maintenance, whether it takes our key, the first data of a stream, and where no connection comes about interface and route. It needs four seconds when
    everything hangs, and less than one when all is well.
  - Looks as the services' user, because firewalls tell users apart.
  - The cause of an endpoint is the lowest layer that explains what is seen. No key is shown to anybody who could not prove to be the exchange.
  - With O(until) it waits. What waiting cannot change (V(key_refused), V(tls_untrusted), V(tls_expired), V(tls_not_yet_valid), V(clock)) is looked at twice and
    then fails at once.
  - Changes nothing. Fails only with O(until), when what was waited for did not come.
options:
  venues:
    description: The exchanges, as C(titan_venues) describes them.
    type: list
    elements: dict
    required: true
  stores:
    description:
      - The stores, with C(name), C(kind), and C(endpoint) and C(region), or C(host) and C(port). Their keys are not needed.
      - A store is never waited for.
    type: list
    elements: dict
    default: []
  user:
    description: Look as this user, if there is one of that name.
    type: str
    default: ""
  interface:
    description: The interface that leads to the exchanges; without it the one of the route.
    type: str
    default: ""
  one_down:
    description: Whether to wait for every exchange that is required, or to go on without one that stays away when another is well.
    type: str
    choices: [halt_all, halt_venue]
    default: halt_all
  until:
    description:
      - Look once (V(now)), wait until all that is required is well (V(good)), or until it has been well for a while (V(stable)).
      - V(described) looks at nothing but the description of the exchanges and at this server's rights and environment, and refuses what is wrong with it.
    type: str
    choices: [now, described, good, stable]
    default: now
  timeout:
    description: Seconds to wait at most.
    type: float
    default: 60
  patience:
    description: Seconds after which O(one_down=halt_venue) goes on without an exchange.
    type: float
    default: 30
  given_up:
    description: Exchanges that were gone on without before. They are not waited for again.
    type: list
    elements: str
    default: []
  looks:
    description: How many looks in a row have to be good for V(stable).
    type: int
    default: 5
  seconds:
    description: The seconds that they have to span. Each relapse doubles them, and so does each recovery of the network in the last 15 minutes.
    type: float
    default: 5
  max_seconds:
    description: What they are never doubled beyond.
    type: float
    default: 60
  probes:
    description: What the services have to say once the network is stable, each with C(name), C(url), C(status) and C(expect).
    type: list
    elements: dict
    default: []
  probes_timeout:
    description: Seconds within which they have to say so.
    type: float
    default: 8
  environment_id:
    description: The environment that this server has to belong to. Needed with V(described).
    type: str
    default: ""
  run_id:
    description: This run, which does not count as an earlier recovery.
    type: str
    default: ""
  controller_time:
    description: The controller's clock in seconds since the epoch. It tells a certificate that has run out from a clock that is wrong.
    type: float
  clock_tolerance:
    description: Seconds that the clocks may differ.
    type: float
    default: 5
extends_documentation_fragment:
  - titan.disaster_recovery.attributes
attributes:
  check_mode:
    support: full
    details: It does not wait in check mode.
  diff_mode:
    support: none
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: What is wrong with the network
  titan.disaster_recovery.network_info:
    venues: "{{ titan_venues }}"
    user: titan
    controller_time: "{{ now(utc=true).timestamp() }}"
  register: found

- name: Wait until it has been well for ten seconds
  titan.disaster_recovery.network_info:
    venues: "{{ titan_venues }}"
    until: stable
    seconds: 10
    timeout: 120
"""

RETURN = r"""
network:
  description: What was seen last.
  type: dict
  returned: always
  contains:
    cause:
      description: The cause to begin with, the lowest of what is required, or V(ok).
      type: str
    ours:
      description: Whether M(titan.disaster_recovery.network_mend) may be able to mend it.
      type: bool
    venues:
      description: The cause of each exchange.
      type: dict
    at:
      description: When it was seen, in seconds since the epoch.
      type: float
    endpoints:
      description: One entry for each address.
      type: list
      elements: dict
      contains:
        name:
          description: The exchange with C(/rest) or C(/ws), or the store.
          type: str
        owner:
          description: The exchange or the store.
          type: str
        kind:
          description: One of V(venue) and V(store).
          type: str
        required:
          description: Whether it has to be well.
          type: bool
        cause:
          description:
            - One of V(ok), V(interface), V(route), V(dns), V(tcp_refused), V(tcp_silent), V(tls_failed), V(tls_untrusted), V(tls_expired),
              V(tls_not_yet_valid), V(clock), V(maintenance), V(rate_limited), V(http_unusable), V(key_refused), V(ws_refused) and V(ws_silent).
          type: str
        detail:
          description: A word more on it, for V(dns) one of V(dead), V(nxdomain) and V(wrong).
          type: str
        ours:
          description: Whether it may be mended from here.
          type: bool
        layers:
          description: What was seen, each with C(layer), C(verdict), C(evidence) and C(ms).
          type: list
          elements: dict
        latency_ms:
          description: Median time of a connect, null where none was made.
          type: float
        loss:
          description: Share of the connects that failed.
          type: float
        retry_after:
          description: Seconds for which the exchange asked to be left alone.
          type: float
down:
  description: Exchanges to go on without.
  type: list
  elements: str
  returned: always
table:
  description: A line for each layer of each address, to be read by a person.
  type: list
  elements: str
  returned: with O(until=now)
advice:
  description: What there is to do.
  type: list
  elements: str
  returned: with O(until=now)
services_well:
  description: Whether O(probes) passed. That they did not is no failure.
  type: bool
  returned: with O(until=stable)
probes:
  description: The probes without what they expect of exchanges that are gone on without.
  type: list
  elements: dict
  returned: with O(until=stable)
recovered:
  description: The record of the last recovery of this server.
  type: dict
  returned: with O(until=described)
titan_dr:
  description: Rows for the ledger.
  type: dict
  returned: always
"""

import os
import pwd
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _journal, _lease, _network, _network_look, _network_wait, _probe, _state

Network = dict[str, t.Any]


def owner_line(network: Network, owner: str) -> str:
    """What was seen of a venue, in a sentence."""
    rows = [row for row in network["endpoints"] if row["owner"] == owner]
    times = [f"connect {row['latency_ms']} ms, {row['loss'] * 100:.0f} % lost" for row in rows if row["latency_ms"] is not None]
    wrong = [_network.told(row) for row in rows if row["cause"] != _network.OK]
    return "; ".join(wrong or [f"{', '.join(row['name'] for row in rows)} well", *times])


def advice(rows: t.Iterable[t.Mapping[str, t.Any]]) -> list[str]:
    """What there is to do about it, each once."""
    return list(dict.fromkeys(f"{row['cause']}: {_network.ADVICE[row['cause']]}" for row in rows if row["cause"] != _network.OK))


def table(network: Network) -> list[str]:
    """Layers for a person to read."""
    lines = []
    for row in network["endpoints"]:
        more = f", connect {row['latency_ms']} ms, {row['loss'] * 100:.0f} % lost" if row["latency_ms"] is not None else ""
        lines.append(f"{row['name']}: {row['cause']}{' (' + row['detail'] + ')' if row['detail'] else ''}{more}")
        lines += [f"  {layer['layer']:<9} {layer['verdict']:<7} {layer['ms']:>7.1f} ms  {layer['evidence']}" for layer in row["layers"]]
    return lines


def notes(network: Network) -> list[str]:
    """What is wrong, for the report."""
    found = [_network.told(row) for row in network["endpoints"] if row["cause"] != _network.OK]
    return [f"network: {text}" for text in found] or ["network: every exchange is well"]


def gates(waited: _network_wait.Waited, how: str) -> list[dict[str, str]]:
    """One for each venue that counts."""
    rows = []
    for owner, cause in waited.network["venues"].items():
        if owner in waited.down:
            continue
        verdict = _network.PASS if cause == _network.OK and waited.kind == "go" else _network.FAIL
        evidence = f"{owner_line(waited.network, owner)}; {how}"
        rows.append({"name": f"network:{owner}", "verdict": verdict, "evidence": evidence, "at": waited.network["at"]})
    return rows


def described(params: dict[str, t.Any]) -> list[dict[str, str]]:
    """Whether the run may begin; nothing is connected to."""
    ours, claimed = _state.belongs(params["environment_id"])
    try:
        names = ", ".join(endpoint.name for endpoint in _network.endpoints(params["venues"], params["stores"]))
        venues = {"verdict": _network.PASS, "evidence": names}
    except _network.NetworkError as exc:
        venues = {"verdict": _network.FAIL, "evidence": str(exc)}
    verdicts = {True: _network.PASS, False: _network.FAIL, None: _network.UNKNOWN}
    return [
        {"name": "root", "verdict": verdicts[os.geteuid() == 0], "evidence": f"user id {os.geteuid()}"},
        {"name": "environment", "verdict": verdicts[ours], "evidence": claimed},
        {"name": "venues", **venues},
    ]


def probes_for(probes: t.Sequence[dict[str, t.Any]], down: t.Container[str]) -> list[dict[str, t.Any]]:
    """The probes without what they expect of these exchanges; where there was something, the service may call itself unwell for it."""
    found = []
    for probe in probes:
        expect = probe.get("expect") or {}
        kept = {path: words for path, words in expect.items() if not any(part in down for part in path.split("."))}
        if kept == expect:
            found.append(dict(probe))
        elif kept:
            found.append({**probe, "expect": kept, "status": sorted({*probe.get("status", [200]), 200, 503})})
    return found


def services_well(probes: t.Sequence[dict[str, t.Any]], timeout: float) -> list[str]:
    """What the services still complain about after so long."""
    end = time.monotonic() + timeout
    waiting = list(probes)
    while waiting:
        asked = [(probe, _probe.probe(probe, 2.0)) for probe in waiting]
        waiting = [probe for probe, verdict in asked if verdict.verdict != _network.PASS]
        if waiting and time.monotonic() > end:
            return [f"{verdict.name}: {verdict.evidence}" for dummy, verdict in asked if verdict.verdict != _network.PASS]
        time.sleep(0.2 if waiting else 0)
    return []


def argument_spec() -> dict[str, t.Any]:
    return {
        "venues": {"type": "list", "elements": "dict", "required": True},
        "stores": {"type": "list", "elements": "dict", "default": []},
        "user": {"type": "str", "default": ""},
        "interface": {"type": "str", "default": ""},
        "one_down": {"type": "str", "choices": ["halt_all", "halt_venue"], "default": "halt_all"},
        "until": {"type": "str", "choices": ["now", "described", "good", "stable"], "default": "now"},
        "timeout": {"type": "float", "default": 60},
        "patience": {"type": "float", "default": 30},
        "given_up": {"type": "list", "elements": "str", "default": []},
        "looks": {"type": "int", "default": 5},
        "seconds": {"type": "float", "default": 5},
        "max_seconds": {"type": "float", "default": 60},
        "probes": {"type": "list", "elements": "dict", "default": []},
        "probes_timeout": {"type": "float", "default": 8},
        "environment_id": {"type": "str", "default": ""},
        "run_id": {"type": "str", "default": ""},
        "controller_time": {"type": "float"},
        "clock_tolerance": {"type": "float", "default": 5},
    }


def looker(params: dict[str, t.Any]) -> _network_look.Looker:
    endpoints = _network.endpoints(params["venues"], params["stores"])
    user = params["user"]
    try:
        pwd.getpwnam(user)
    except KeyError:
        user = ""
    return _network_look.Looker(endpoints, user, params["interface"], _network_look.clock_word(params["controller_time"], params["clock_tolerance"]))


def stability(params: dict[str, t.Any]) -> _network.Stability | None:
    if params["until"] != "stable":
        return None
    earlier = _network.recoveries(_journal.read(_lease.journal_path()), params["run_id"], time.time())
    return _network.Stability(params["looks"], _network.first_window(params["seconds"], params["max_seconds"], earlier), params["max_seconds"])


def main() -> t.NoReturn:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    params = module.params
    if params["until"] == "described":
        begin = described(params)
        wrong = [f"{gate['name']}: {gate['evidence']}" for gate in begin if gate["verdict"] != _network.PASS]
        if wrong:
            reason = "This recovery cannot begin: " + "; ".join(wrong)
            module.fail_json(msg=reason, network={}, down=[], titan_dr={"gates": begin, "refused": reason})
        module.exit_json(changed=False, network={}, down=[], recovered=_state.recovered(), titan_dr={"gates": begin})
    try:
        for probe in params["probes"]:
            _probe.check_spec(probe, "probes")
        look = looker(params)
        if params["until"] == "now" or module.check_mode:
            network = look()
            rows: dict[str, t.Any] = {"notes": notes(network)}
            said = {"table": table(network), "advice": advice(network["endpoints"])}
            module.exit_json(changed=False, network=network, down=[], services_well=True, probes=params["probes"], **said, titan_dr=rows)
        policy = _network_wait.Policy(params["one_down"], params["patience"], params["timeout"], stability(params), frozenset(params["given_up"]))
        waited = _network_wait.Waiting(look, policy).until_well()
    except (_network.NetworkError, _probe.ProbeSpecError, OSError) as exc:
        gate = {"name": "network", "verdict": _network.UNKNOWN, "evidence": str(exc)}
        module.fail_json(msg=str(exc), network={}, down=[], titan_dr={"gates": [gate]})
    how = f"waited {waited.seconds:.1f} s"
    if policy.stability is not None:
        how += f", {policy.stability.good} good looks in a row over at least {waited.window:.0f} s, {waited.relapses} relapses"
    told = [f"network: seen {', '.join(waited.seen)}; {how}"]
    if waited.kind != "go":
        bad = _network.bad(waited.network)
        why = "; ".join(_network.told(row) for row in bad) or "it did not stay well for long enough"
        end = "waiting does not change it" if waited.kind == "stop" else f"not well after {waited.seconds:.0f} s"
        todo = "".join(f". {text}" for text in advice(bad))
        rows = {"gates": gates(waited, how), "notes": told}
        module.fail_json(msg=f"The network is not well ({waited.network['cause']}), {end}: {why}{todo}", network=waited.network, down=[], titan_dr=rows)
    told += [f"network: goes on without {owner}: {owner_line(waited.network, owner)}" for owner in waited.down]
    told += [f"network: {_network.told(row)}" for row in waited.network["endpoints"] if row["kind"] == "store" and row["cause"] != _network.OK]
    result: dict[str, t.Any] = {}
    if policy.stability is not None:
        probes = probes_for(params["probes"], waited.down)
        complaints = services_well(probes, params["probes_timeout"])
        told += [f"network: the services have not noticed: {text}" for text in complaints]
        result = {"services_well": not complaints, "probes": probes}
    rows = {"gates": gates(waited, how), "notes": told}
    if policy.stability is not None:
        # no older data came in the place of newer; what was traded meanwhile is for the reconciliation to tell
        rows["rpo"] = {"actual_s": 0.0, "basis": "no data was replaced"}
    module.exit_json(changed=False, network=waited.network, down=list(waited.down), **result, titan_dr=rows)


if __name__ == "__main__":
    main()
