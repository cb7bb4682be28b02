#!/usr/bin/python
# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: trading_halt
short_description: Halt trading on a server and prove it by effect
version_added: "0.1.0"
author: [Titan DR maintainers (@titan-dr)]
description:
  - Fastens the halt latch first. Then it climbs a ladder, each rung with its time and believed by its effect only, and takes the next when that is missing.
  - V(app), the services halt themselves. The confirmation must pass, and the exchanges, where they can be asked, must get no order after it. An exchange that
    cannot be asked is unknown. Then the confirmed halt is enough for services that honour the latch.
  - V(stop), the services' unit is stopped and no process of their user is left.
  - V(cancel), all open orders are cancelled at the exchanges and none is open after it, by the policy O(cancel). Then they must get no new order.
  - V(fence), when processes were left or orders still appear, nftables (table C(inet titan_dr_fence)) drops what the services' user sends to anything but
    loopback. It stands after a reboot too. Orders that appear even then come from another host, and the halt fails.
  - Services that do not look at the latch are stopped in any case, because they would forget a halt at their next restart. Their unit is disabled and a drop-in
    keeps it from starting while the latch is fastened, but behind a fence.
  - Services that nobody can reach, because a connection is refused twice, are not asked any longer.
  - Where no process of the user runs there is nothing to ask, and a fence of an earlier halt is taken down.
  - A halt that cannot be proven fails.
options:
  latch:
    description: Path of the latch.
    type: path
    required: true
  reason:
    description: Why, kept in the latch.
    type: str
    required: true
  run_id:
    description: The run that halts.
    type: str
    required: true
  call:
    description:
      - The halt call of the services with C(url), C(method), C(body) and C(confirm).
      - With none the services of this server have no halt of their own, such as those of a server that does not trade itself. They are stopped.
    type: dict
    required: true
  anew:
    description: Give the latch a new generation even if it is fastened, so that no resume of an earlier run can take it away.
    type: bool
    default: false
  venues:
    description:
      - Halt only these exchanges, by a file for each in the directory O(latch) with C(.d) appended. Trading goes on elsewhere.
      - The services confirm by listing them under C(halted_venues) in the body that C(call.confirm) asks for, and the exchanges that can be asked must get no
        order. If one of that is missing, all trading is halted.
    type: list
    elements: str
    default: []
extends_documentation_fragment:
  - titan.disaster_recovery.attributes
  - titan.disaster_recovery.halt
  - titan.disaster_recovery.lease
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
    details: A latch that is fastened keeps its generation, unless O(anew) is set.
"""

EXAMPLES = r"""
- name: Halt trading
  titan.disaster_recovery.trading_halt:
    latch: /var/lib/titan-dr/halt
    reason: complete_system_failure
    run_id: 20260101T000000Z-1234
    call: "{{ titan_halt_call }}"
    user: titan
    unit: pm2-titan
    exchanges: "{{ titan_venues }}"

- name: Halt one exchange of two
  titan.disaster_recovery.trading_halt:
    latch: /var/lib/titan-dr/halt
    reason: network_partition
    run_id: 20260101T000000Z-1234
    call: "{{ titan_halt_call }}"
    user: titan
    unit: pm2-titan
    exchanges: "{{ titan_venues }}"
    venues: [bybit]
"""

RETURN = r"""
generation:
  description: Generation of the latch. A resume must carry it. 0 when there is no latch, or one that cannot be read.
  type: int
  returned: success
latched:
  description: Whether the latch is fastened. It is not when only single exchanges were halted.
  type: bool
  returned: success
halted_venues:
  description: Exchanges that are halted alone.
  type: list
  elements: str
  returned: success
titan_dr:
  description: Rows for the ledger. C(halt) tells each rung with its evidence and seconds, and what was cancelled at each exchange.
  type: dict
  returned: always
"""

import subprocess
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _halt, _latch, _lease, _probe


def halt_venues(params: dict[str, t.Any]) -> tuple[dict[str, str], bool]:
    """Halt single exchanges; the gate, and whether any of it is new."""
    name = f"halted:{','.join(sorted(params['venues']))}"
    if not params["call"]:
        return {"name": name, "verdict": _probe.UNKNOWN, "evidence": "without a halt call nobody tells which exchanges are halted"}, False
    fresh = [_latch.fasten_venue(params["latch"], name, params["reason"], params["run_id"], time.time()) for name in params["venues"]]
    end = time.monotonic() + params["app_timeout"]
    while True:
        told = _halt.told(params["call"]["confirm"], params["app_timeout"]).get("halted_venues")
        confirmed = isinstance(told, list) and set(params["venues"]) <= set(told)
        if confirmed or time.monotonic() > end:
            break
        time.sleep(0.1)
    evidence = f"the services list {told!r} as halted" if isinstance(told, list) else "the services do not tell which exchanges are halted"
    verdict = _probe.PASS if confirmed else _probe.FAIL
    if confirmed:
        venues = _halt.Venues([spec for spec in params["exchanges"] if spec.get("name") in params["venues"]])
        seen, said = _halt.summed(venues.watch(params["watch"], params["venue_timeout"]))
        # the exchange that is halted is as a rule the one that cannot be asked
        verdict = _probe.FAIL if seen == _probe.FAIL else verdict
        evidence += f"; {said}" if said else ""
    return {"name": name, "verdict": verdict, "evidence": evidence}, any(fresh)


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "latch": {"type": "path", "required": True},
            "reason": {"type": "str", "required": True},
            "run_id": {"type": "str", "required": True},
            "call": {"type": "dict", "required": True},
            "anew": {"type": "bool", "default": False},
            "venues": {"type": "list", "elements": "str", "default": []},
            **_halt.SPEC,
        },
        supports_check_mode=True,
    )
    params = module.params
    if module.check_mode:
        found = _latch.read(params["latch"])
        note = "trading is halted already" if found else "would fasten the halt latch and halt trading"
        told = {"generation": found["generation"] if found else 0, "latched": bool(found), "halted_venues": _latch.venues(params["latch"])}
        module.exit_json(changed=not found, **told, titan_dr={"notes": [note]})
    rows: dict[str, t.Any] = {}
    with _lease.command(module, "trading_halt", halts=True):
        try:
            if params["call"]:
                _probe.check_call(params["call"], "call")
            if params["venues"]:
                gate, fresh = halt_venues(params)
                if gate["verdict"] == _probe.PASS:
                    module.exit_json(changed=fresh, generation=0, latched=False, halted_venues=_latch.venues(params["latch"]), titan_dr={"gates": [gate]})
                rows["notes"] = [f"{gate['name']}: {gate['evidence']}: all trading is halted"]
            latch, fresh = _latch.fasten(params["latch"], params["reason"], params["run_id"], time.time(), params["anew"])
            ladder = _halt.ladder(params, params["call"], params["latch"], module.get_bin_path("nft"))
            gate = ladder.climb()
        except (_probe.ProbeSpecError, _latch.LatchError, OSError, subprocess.TimeoutExpired) as exc:
            module.fail_json(msg=f"Trading could not be halted: {exc}", titan_dr={"gates": [{"name": "halted", "verdict": "fail", "evidence": str(exc)}]})
        rows = {**ladder.rows(), "notes": [*rows.get("notes", []), *ladder.notes], "gates": [gate]}
        if gate["verdict"] != _probe.PASS:
            module.fail_json(msg=f"Trading could not be halted: {gate['evidence']}", titan_dr=rows)
        told = {"generation": latch["generation"], "latched": True, "halted_venues": _latch.venues(params["latch"])}
        trading = {"trading": "halted"} if _halt.trades(params["call"], params["exchanges"]) else {}
        module.exit_json(changed=fresh, **told, titan_dr={**rows, **trading})


if __name__ == "__main__":
    main()
