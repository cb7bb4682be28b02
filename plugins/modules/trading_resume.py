#!/usr/bin/python
# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: trading_resume
short_description: Resume trading with the current generation of the halt latch, and confirm it
version_added: "0.1.0"
author: [Titan DR maintainers (@titan-dr)]
description:
  - Takes the halt latch away if it is of the given generation, makes the resume call and confirms its effect.
  - Then it records the recovery on the server and closes the lease of the run. After that the run changes nothing more.
  - If the effect is not confirmed the latch is fastened again, the halt call is made, and the module fails.
options:
  latch:
    description: Path of the latch.
    type: path
    required: true
  generation:
    description: Generation that M(titan.disaster_recovery.trading_halt) returned.
    type: int
    required: true
  run_id:
    description: The run that resumes.
    type: str
    required: true
  environment_id:
    description: The environment that was recovered, for C(recovered.json).
    type: str
    required: true
  call:
    description: The resume call of the services with C(url), C(method), C(body) and C(confirm).
    type: dict
    required: true
  halt_call:
    description: The halt call, made when the resume is not confirmed.
    type: dict
    required: true
  timeout:
    description: Seconds until the effect must be confirmed.
    type: float
    default: 10
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
    details: Trading that is confirmed already is left alone.
"""

EXAMPLES = r"""
- name: Resume trading
  titan.disaster_recovery.trading_resume:
    latch: /var/lib/titan-dr/halt
    generation: "{{ halted.generation }}"
    run_id: 20260101T000000Z-1234
    environment_id: production
    call: "{{ titan_resume_call }}"
    halt_call: "{{ titan_halt_call }}"
"""

RETURN = r"""
titan_dr:
  description: Rows for the ledger.
  type: dict
  returned: always
"""

import json
import os
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _latch, _lease, _probe


def record(command: _lease.Command, environment_id: str, run_id: str) -> list[str]:
    """Write down that the server is recovered and end the lease; a note where that failed: it is no reason to halt trading again."""
    text = json.dumps({"environment_id": environment_id, "run_id": run_id}) + "\n"
    try:
        _lease.write_file(os.path.join(_lease.STATE_DIR, "recovered.json"), text, 0o644)
        command.close("recovered")
    except (OSError, _lease.LeaseError) as exc:
        return [f"trading goes on, but that could not be recorded on the server: {exc}"]
    return []


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "latch": {"type": "path", "required": True},
            "generation": {"type": "int", "required": True},
            "run_id": {"type": "str", "required": True},
            "environment_id": {"type": "str", "required": True},
            "call": {"type": "dict", "required": True},
            "halt_call": {"type": "dict", "required": True},
            "timeout": {"type": "float", "default": 10},
        },
        supports_check_mode=True,
    )
    params = module.params
    if module.check_mode:
        module.exit_json(changed=True, titan_dr={"notes": ["would resume trading if every gate passed"]})
    with _lease.command(module, "trading_resume", {"generation": params["generation"]}) as command:
        try:
            _probe.check_call(params["call"], "call")
            _probe.check_call(params["halt_call"], "halt_call")
            released = _latch.release(params["latch"], params["generation"])
            before = _probe.probe(params["call"]["confirm"], params["timeout"])
            if not released and before.verdict == _probe.PASS:
                notes = record(command, params["environment_id"], params["run_id"])
                module.exit_json(changed=False, titan_dr={"trading": "resumed", "gates": [before.gate("resumed")], "notes": notes})
            done = _probe.call(params["call"], params["timeout"])
        except (_probe.ProbeSpecError, _latch.LatchError, OSError) as exc:
            gate = {"name": "resumed", "verdict": "fail", "evidence": str(exc)}
            module.fail_json(msg=f"Trading stays halted: {exc}", titan_dr={"trading": "halted", "gates": [gate]})
        if done.verdict != _probe.PASS:
            _latch.fasten(params["latch"], "a resume was not confirmed", params["run_id"], time.time())
            halted = _probe.call(params["halt_call"], params["timeout"])
            evidence = f"{done.evidence}; halted again: {halted.evidence}"
            rows: dict[str, t.Any] = {"gates": [{"name": "resumed", "verdict": done.verdict, "evidence": evidence}]}
            if halted.verdict == _probe.PASS:
                rows["trading"] = "halted"
            module.fail_json(msg=f"The resume was not confirmed: {evidence}", titan_dr=rows)
        notes = record(command, params["environment_id"], params["run_id"])
        module.exit_json(changed=True, titan_dr={"trading": "resumed", "gates": [done.gate("resumed")], "notes": notes})


if __name__ == "__main__":
    main()
