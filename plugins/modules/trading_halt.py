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
  - Fastens the halt latch first. Then, if services run, asks them to halt and confirms the effect. If that cannot be confirmed, stops the services' unit
    and proves that no process of their user is left.
  - Services that do not look at the latch are stopped and kept from starting at the next boot in any case, because they would forget a halt at their next
    restart.
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
    description: The halt call of the services with C(url), C(method), C(body) and C(confirm).
    type: dict
    required: true
  user:
    description: User of the services.
    type: str
    required: true
  unit:
    description: The systemd unit that runs the services.
    type: str
    required: true
  latch_honoured:
    description: Whether the services stay halted while the latch exists.
    type: bool
    default: true
  timeout:
    description: Seconds for each rung, the call and the stop.
    type: float
    default: 5
extends_documentation_fragment:
  - titan.disaster_recovery.attributes
  - titan.disaster_recovery.lease
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
    details: A latch that is fastened keeps its generation.
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
"""

RETURN = r"""
generation:
  description: Generation of the latch. A resume must carry it.
  type: int
  returned: success
titan_dr:
  description: Rows for the ledger.
  type: dict
  returned: always
"""

import os
import pwd
import subprocess
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _latch, _lease, _probe


def processes_of(user: str) -> list[int]:
    """Live processes of a user; a user that does not exist has none."""
    try:
        uid = pwd.getpwnam(user).pw_uid
    except KeyError:
        return []
    found = []
    for name in os.listdir("/proc"):
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
    verb = ["disable", "--now"] if for_good else ["stop"]
    subprocess.run(["systemctl", *verb, unit], capture_output=True, timeout=timeout + 90, check=False)
    end = time.monotonic() + timeout
    while processes_of(user) and time.monotonic() < end:
        time.sleep(0.1)
    for pid in processes_of(user):
        try:
            os.kill(pid, 9)
        except ProcessLookupError:
            continue
    end = time.monotonic() + timeout
    while (left := processes_of(user)) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def halt(params: dict[str, t.Any]) -> dict[str, str]:
    """The rungs; the gate with its evidence."""
    if not processes_of(params["user"]):
        if not params["latch_honoured"]:
            stop(params["unit"], params["user"], params["timeout"], for_good=True)
        return {"name": "halted", "verdict": "pass", "evidence": f"latch fastened, no process of user {params['user']}"}
    asked = _probe.call(params["call"], params["timeout"])
    confirmed = asked.verdict == _probe.PASS
    if confirmed and params["latch_honoured"]:
        return {"name": "halted", "verdict": "pass", "evidence": f"latch fastened, {asked.evidence}"}
    left = stop(params["unit"], params["user"], params["timeout"], for_good=not params["latch_honoured"])
    why = "the services would forget it at a restart" if confirmed else f"the services did not confirm ({asked.evidence})"
    evidence = f"{why}; unit {params['unit']} stopped, {len(left)} processes of {params['user']} left"
    return {"name": "halted", "verdict": "fail" if left else "pass", "evidence": evidence}


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "latch": {"type": "path", "required": True},
            "reason": {"type": "str", "required": True},
            "run_id": {"type": "str", "required": True},
            "call": {"type": "dict", "required": True},
            "user": {"type": "str", "required": True},
            "unit": {"type": "str", "required": True},
            "latch_honoured": {"type": "bool", "default": True},
            "timeout": {"type": "float", "default": 5},
        },
        supports_check_mode=True,
    )
    params = module.params
    if module.check_mode:
        found = _latch.read(params["latch"])
        note = "trading is halted already" if found else "would fasten the halt latch and halt trading"
        module.exit_json(changed=not found, generation=found["generation"] if found else 0, titan_dr={"notes": [note]})
    with _lease.command(module, "trading_halt", halts=True):
        try:
            _probe.check_call(params["call"], "call")
            latch, fresh = _latch.fasten(params["latch"], params["reason"], params["run_id"], time.time())
            gate = halt(params)
        except (_probe.ProbeSpecError, OSError, subprocess.TimeoutExpired) as exc:
            module.fail_json(msg=f"Trading could not be halted: {exc}", titan_dr={"gates": [{"name": "halted", "verdict": "fail", "evidence": str(exc)}]})
        if gate["verdict"] != "pass":
            module.fail_json(msg=f"Trading could not be halted: {gate['evidence']}", titan_dr={"gates": [gate]})
        module.exit_json(changed=fresh, generation=latch["generation"], titan_dr={"gates": [gate], "trading": "halted"})


if __name__ == "__main__":
    main()
