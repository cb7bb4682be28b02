#!/usr/bin/python
# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: network_mend
short_description: Mend what is ours of the way to the exchanges
version_added: "0.1.0"
author: [Titan DR maintainers (@titan-dr)]
description:
  - Tries, in the order of the harm they may do, what fits the cause that M(titan.disaster_recovery.network_info) would tell. Routes to
    nowhere that no configuration names, other resolvers in C(/etc/resolv.conf), known addresses in a marked block of C(/etc/hosts), another route,
    the interface set up, the unit that configures the network restarted.
  - After each it looks again. What helped stays, what did not is undone. How it is undone is written to C(/var/lib/titan-dr/network.json) before it is done.
  - A change of route, interface or networking is undone by a timer of systemd after O(confirm_within) seconds, unless O(state=confirmed) was called by then,
    which shows that the server can still be reached. RV(confirm) tells whether that is needed.
  - That nothing helps is no failure. What is not ours (an exchange that is down, a certificate, a key) is left alone.
options:
  state:
    description:
      - V(mended) tries what fits. When everything is well, it goes back from the other resolvers, addresses and routes of an earlier run, if all stays well.
      - V(confirmed) keeps what waits for its confirmation.
      - V(reverted) puts everything back that was ever changed, well or not.
    type: str
    choices: [mended, confirmed, reverted]
    default: mended
  venues:
    description: The exchanges, as C(titan_venues) describes them. Not needed with V(confirmed) and V(reverted).
    type: list
    elements: dict
    default: []
  network:
    description: What may be used, with C(resolvers), C(routes) (each with C(to) and C(via)) and C(interface).
    type: dict
    default: {}
  user:
    description: Look as this user, if there is one of that name.
    type: str
    default: ""
  run_id:
    description: This run.
    type: str
    required: true
  confirm_within:
    description: Seconds after which a change that could cut off the operator is undone without O(state=confirmed).
    type: float
    default: 30
  timeout:
    description: Seconds after which nothing more is tried.
    type: float
    default: 60
  controller_time:
    description: The controller's clock in seconds since the epoch.
    type: float
  clock_tolerance:
    description: Seconds that the clocks may differ.
    type: float
    default: 5
extends_documentation_fragment:
  - titan.disaster_recovery.attributes
  - titan.disaster_recovery.lease
attributes:
  check_mode:
    support: full
    details: It looks, and names the first measure that it would try.
  diff_mode:
    support: none
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Mend what is ours
  titan.disaster_recovery.network_mend:
    venues: "{{ titan_venues }}"
    network: {resolvers: [192.0.2.53], routes: [{to: 198.51.100.0/24, via: 192.0.2.1}]}
    run_id: 20260101T000000Z-1234
  register: mended

- name: Keep it
  titan.disaster_recovery.network_mend:
    state: confirmed
    run_id: 20260101T000000Z-1234
  when: mended.confirm
"""

RETURN = r"""
network:
  description: What was seen last, as M(titan.disaster_recovery.network_info) returns it.
  type: dict
  returned: with O(state=mended)
kept:
  description: What was changed and stays.
  type: list
  elements: str
  returned: always
reverted:
  description: What was put back.
  type: list
  elements: str
  returned: always
confirm:
  description: Whether O(state=confirmed) has to follow.
  type: bool
  returned: always
titan_dr:
  description: Rows for the ledger.
  type: dict
  returned: always
"""

import pwd
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _lease, _network, _network_look, _network_mend


def routes_of(network: t.Mapping[str, t.Any]) -> tuple[dict[str, t.Any], ...]:
    found = network.get("routes") or []
    if not all(isinstance(route, dict) and route.get("to") and route.get("via") for route in found):
        raise _network.NetworkError("titan_network.routes: each needs to and via")
    return tuple(found)


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["mended", "confirmed", "reverted"], "default": "mended"},
            "venues": {"type": "list", "elements": "dict", "default": []},
            "network": {"type": "dict", "default": {}},
            "user": {"type": "str", "default": ""},
            "run_id": {"type": "str", "required": True},
            "confirm_within": {"type": "float", "default": 30},
            "timeout": {"type": "float", "default": 60},
            "controller_time": {"type": "float"},
            "clock_tolerance": {"type": "float", "default": 5},
        },
        required_if=[("state", "mended", ("venues",))],
        supports_check_mode=True,
    )
    params = module.params
    network, state = params["network"], params["state"]
    server = _network_mend.Server()
    try:
        endpoints = tuple(_network.endpoints(params["venues"], [])) if state == "mended" else ()
        interface = str(network.get("interface") or "")
        resolvers = tuple(str(address) for address in network.get("resolvers") or ())
        means = _network_mend.Means(endpoints, resolvers, routes_of(network), interface)
    except _network.NetworkError as exc:
        module.fail_json(msg=str(exc), titan_dr={"gates": [{"name": "network", "verdict": "unknown", "evidence": str(exc)}]})
    user = params["user"]
    try:
        pwd.getpwnam(user)
    except KeyError:
        user = ""
    clock = _network_look.clock_word(params["controller_time"], params["clock_tolerance"])
    look = _network_look.Looker(endpoints, user, interface, clock)
    record = _network_mend.Record(_network_mend.record_path())
    mender = _network_mend.Mender(server, record, look, params["run_id"], params["confirm_within"])
    options = _network_mend.Options(means, server)
    if module.check_mode:
        found = look() if endpoints else {}
        first = next(options.fitting(found), None) if found else None
        note = f"would try: {first.what}" if first else "there is nothing that could be tried"
        module.exit_json(changed=bool(first), network=found, kept=[], reverted=[], confirm=False, titan_dr={"notes": [f"network: {note}"]})
    with _lease.command(module, "network_mend", {"state": state}):
        try:
            if state == "mended":
                said = mender.mend(options, time.time() + params["timeout"])
            elif state == "confirmed":
                said = _network_mend.Mended({}, kept=mender.confirm())
            else:
                said = _network_mend.Mended({}, reverted=mender.revert())
        except (_network_mend.MendError, OSError) as exc:
            gate = {"name": "network_mend", "verdict": "fail", "evidence": str(exc)}
            module.fail_json(msg=f"The network could not be mended: {exc}", titan_dr={"gates": [gate]})
        notes = [f"network: {note}" for note in said.notes]
        notes += [f"network: put back: {what}" for what in said.reverted]
        if not said.confirm:
            notes += [f"network: kept, undone by network_mend state=reverted: {what}" for what in said.kept]
        module.exit_json(changed=said.changed, network=said.network, kept=said.kept, reverted=said.reverted, confirm=said.confirm, titan_dr={"notes": notes})


if __name__ == "__main__":
    main()
