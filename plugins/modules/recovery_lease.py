#!/usr/bin/python
# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: recovery_lease
short_description: Hold the lease of a server, so that one recovery at a time works on it
version_added: "0.1.0"
author: [Titan DR maintainers (@titan-dr)]
description:
  - Takes, examines or gives back the lease of a server in C(/var/lib/titan-dr/lease.json). Each taking has an epoch, one above the last. Modules that change
    the server are refused when they carry another one.
  - A lease whose holder is proven dead, or that is taken over by the name of its run, is gone on with by the same scenario, under the same run id and on the
    clock of the same incident. What of the old holder still runs on the server is ended first.
  - The action plugin of the same name adds who asks, and proves from the controller that a holder is dead.
options:
  state:
    description:
      - V(examined) changes nothing and says what V(held) would come to.
      - V(held) takes the lease, or fails and says who holds it and since when.
      - V(released) closes the lease of this attempt with O(result).
    type: str
    choices: [examined, held, released]
    required: true
  run_id:
    description: The run that asks, for a lease that is not gone on with.
    type: str
    required: true
  attempt:
    description: Names the process that runs the playbook. Filled in by the action plugin.
    type: str
    default: ""
  scenario:
    description: The scenario that is run.
    type: str
    required: true
  incident_at:
    description: Start of the incident in seconds since the epoch.
    type: float
    required: true
  deadline_at:
    description: When the run must have ended, in seconds since the epoch. It is passed on to the ledger.
    type: float
  owner:
    description: Who asks, from where and in which process. Filled in by the action plugin.
    type: dict
    default: {}
  resume:
    description: Go on with this run, which broke off or ended as a failure, or do nothing.
    type: str
    default: ""
  take_over:
    description:
      - Take the lease of this run although it is not known to be dead. Its processes on the server are ended.
      - With an epoch, V(RUN/EPOCH), only while it is the one of that taking.
    type: str
    default: ""
  ttl:
    description: Seconds without a sign after which O(resume) takes a lease of which nothing works.
    type: float
    default: 30
  dead_epoch:
    description: Epoch of a lease whose holder is proven dead. Filled in by the action plugin.
    type: int
    default: 0
  result:
    description: How the run ended.
    type: str
    choices: [recovered, failed, cancelled, refused]
    default: failed
extends_documentation_fragment:
  - titan.disaster_recovery.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
    details: A lease that this attempt holds is kept with its epoch, one that is closed stays as it was closed.
"""

EXAMPLES = r"""
- name: Take the lease
  titan.disaster_recovery.recovery_lease:
    state: held
    run_id: 20260101T000000Z-database_corruption-1234
    scenario: database_corruption
    incident_at: 1767225600.0
  register: lease

- name: Give it back
  titan.disaster_recovery.recovery_lease:
    state: released
    run_id: "{{ lease.lease.run_id }}"
    scenario: database_corruption
    incident_at: 1767225600.0
    result: failed
"""

RETURN = r"""
looked_at:
  description: The server's clock at that moment, in seconds since the epoch.
  type: float
  returned: success
lease:
  description: The lease that is held, or would be with epoch 0. Empty when there is none.
  type: dict
  returned: success
  contains:
    run_id:
      description: The run under which it goes on.
      type: str
    epoch:
      description: Number of this taking.
      type: int
    incident_at:
      description: Start of the incident.
      type: float
    scenario:
      description: The scenario.
      type: str
    adopted:
      description: Whether another run is gone on with.
      type: bool
    since:
      description: When it was taken.
      type: float
steps:
  description: The last event of each step of that run, one of intent, done and failed. A step that broke off is left at intent.
  type: dict
  returned: success
  sample: {server_baseline: done, redis_stage: intent}
ended:
  description: Processes of other attempts that were ended.
  type: list
  elements: str
  returned: success
holder:
  description: Epoch and owner of the lease that stands in the way.
  type: dict
  returned: when refused
titan_dr:
  description: Rows for the ledger.
  type: dict
  returned: always
"""

import dataclasses
import fcntl
import os
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _journal, _lease, _marked
from ansible_collections.titan.disaster_recovery.plugins.module_utils._lease import Decision, Lease, Request

# Seconds in which the commands of the old holder must have let go of the lock.
LOCK_WITHIN = 10.0


class Refused(Exception):
    """The lease is another's."""


def at_work(lease: Lease | None, rows: _journal.Rows, processes: _marked.Processes) -> list[str]:
    """What works on the server for the holder of the lease, or changes it without one."""
    steps = [f"{step} (pid {pid})" for pid, step in _journal.open_steps(rows).items() if pid in processes]
    if steps or lease is None:
        return steps
    marked = {pid: process for pid, process in processes.items() if process.mark and process.mark.attempt == lease.attempt}
    parents = {process.parent for process in marked.values()}
    return [str(process) for pid, process in marked.items() if pid not in parents]


def examine(request: Request, dead_epoch: int) -> tuple[Lease | None, Decision]:
    """The lease and what would become of the request now."""
    lease, rows = _lease.read(), _journal.read(_lease.journal_path())
    busy = at_work(lease, rows, _marked.everything()) if lease and lease.state == _lease.HELD else []
    came_to = _journal.came_to(rows, lease.run_id) if lease else ""
    dead = lease is not None and 0 < dead_epoch == lease.epoch
    return lease, _lease.decide(lease, request, time.time(), busy, dead, came_to)


def end_others(lease: Lease | None, request: Request) -> list[str]:
    """End what of other attempts still works. Another who asks at this moment too carries no epoch yet, or one above this lease's."""
    epoch, attempt = (lease.epoch, lease.attempt) if lease else (0, "")

    def other(mark: _marked.Mark) -> bool:
        if mark.attempt == request.attempt or mark.epoch > epoch:
            return False
        return mark.epoch > 0 or mark.attempt == attempt or (mark.run_id == request.take_over.partition("/")[0] != "")

    ended, left = _marked.end(other)
    if left:
        raise Refused(f"{request.server} is not free: {', '.join(map(str, left))} cannot be ended. Restart the server or wait")
    return [str(process) for process in ended]


def take(request: Request, owner: dict[str, t.Any], dead_epoch: int) -> tuple[Lease, list[str], str]:
    """The lease, which processes were ended for it, and a note. Refused when it is another's."""
    seen, decision = examine(request, dead_epoch)
    if decision.kind == "refused":
        raise Refused(decision.reason)
    if seen and decision.kind == "own":
        _lease.sign()
        return seen, [], ""
    ended = end_others(seen, request)
    handle = _lease.lock(fcntl.LOCK_EX, LOCK_WITHIN)
    if handle is None:
        busy = at_work(None, _journal.read(_lease.journal_path()), _marked.everything())
        raise Refused(f"{request.server} is not free: {', '.join(busy) or 'a command'} still works after {LOCK_WITHIN:.0f} s. Wait for its end or end it")
    try:
        # Somebody may have been quicker. What was said of the lease as it was is not said of theirs.
        now = _lease.read()
        if (now.epoch if now else 0) != (seen.epoch if seen else 0):
            request = dataclasses.replace(request, take_over="")
        lease, decision = examine(request, dead_epoch)
        if decision.kind == "refused":
            raise Refused(decision.reason)
        fresh = _lease.grant(lease, decision, request, owner, time.time())
        _lease.write(fresh)
        return fresh, ended, decision.reason
    finally:
        os.close(handle)


def release(attempt: str, result: str, check_mode: bool = False) -> tuple[Lease | None, bool]:
    """The lease and whether it was closed now. Refused when it is another's."""
    handle = None if check_mode else _lease.lock(fcntl.LOCK_SH, _lease.WAIT)
    try:
        lease = _lease.read()
        if lease is None or lease.state == _lease.CLOSED:
            return lease, False
        if lease.attempt != attempt or (handle is None and not check_mode):
            raise Refused(_lease.describe(lease, time.time(), _lease.server_name()))
        lease = dataclasses.replace(lease, state=_lease.CLOSED, result=result)
        if not check_mode:
            _lease.write(lease)
        return lease, True
    finally:
        if handle is not None:
            os.close(handle)


def facts(lease: Lease) -> dict[str, t.Any]:
    return {name: getattr(lease, name) for name in ("run_id", "epoch", "incident_at", "scenario", "adopted", "since")}


def work(params: dict[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    asked = {name: params[name] for name in ("run_id", "attempt", "scenario", "incident_at", "resume", "take_over", "ttl")}
    request = Request(**asked, server=_lease.server_name())
    ended: list[str] = []
    notes: list[str] = []
    changed = False
    lease: Lease | None
    if params["state"] == "released":
        lease, changed = release(request.attempt, params["result"], check_mode)
        # One that another has closed is nothing to us.
        lease = lease if lease and lease.attempt == request.attempt else None
    elif params["state"] == "held" and not check_mode:
        before = _lease.read()
        lease, ended, note = take(request, params["owner"], params["dead_epoch"])
        changed = before is None or before.epoch != lease.epoch
        notes = [text for text in (note, f"ended on {request.server}: {', '.join(ended)}" if ended else "") if text]
    else:
        lease, decision = examine(request, params["dead_epoch"])
        if decision.kind == "refused":
            raise Refused(decision.reason)
        if decision.kind != "own":
            changed = params["state"] == "held"
            notes = [decision.reason] if decision.reason and check_mode else []
            adopted = decision.kind == "adopt"
            lease = Lease(0, decision.run_id, request.attempt, request.scenario, decision.incident_at, 0.0, {}, "", adopted=adopted)
    found = facts(lease) if lease else {}
    steps = _journal.steps(_journal.read(_lease.journal_path()), lease.run_id) if lease else {}
    return {"changed": changed, "lease": found, "steps": steps, "ended": ended, "titan_dr": {"notes": notes, "lease": found}}


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["examined", "held", "released"], "required": True},
            "run_id": {"type": "str", "required": True},
            "attempt": {"type": "str", "default": ""},
            "scenario": {"type": "str", "required": True},
            "incident_at": {"type": "float", "required": True},
            "deadline_at": {"type": "float"},
            "owner": {"type": "dict", "default": {}},
            "resume": {"type": "str", "default": ""},
            "take_over": {"type": "str", "default": ""},
            "ttl": {"type": "float", "default": 30},
            "dead_epoch": {"type": "int", "default": 0},
            "result": {"type": "str", "choices": ["recovered", "failed", "cancelled", "refused"], "default": "failed"},
        },
        supports_check_mode=True,
    )
    deadline = {} if module.params["deadline_at"] is None else {"deadline_at": module.params["deadline_at"]}
    try:
        result = work(module.params, module.check_mode)
        result["titan_dr"].update(deadline)
        result["looked_at"] = time.time()
    except Refused as exc:
        lease = _lease.read()
        holder = {"epoch": lease.epoch, "owner": lease.owner} if lease and lease.state == _lease.HELD else {}
        module.fail_json(msg=str(exc), holder=holder, titan_dr={"refused": str(exc), **deadline})
    except (_lease.LeaseError, OSError) as exc:
        msg = f"The lease of {_lease.server_name()} cannot be had: {exc}"
        module.fail_json(msg=msg, titan_dr={"refused": msg, **deadline})
    module.exit_json(**result)


if __name__ == "__main__":
    main()
