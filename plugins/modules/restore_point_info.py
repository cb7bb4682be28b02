#!/usr/bin/python
# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: restore_point_info
short_description: Find the restore points that may be used, without fetching their data
version_added: "0.1.0"
author: [Titan DR maintainers (@titan-dr)]
description:
  - Runs on the controller. Reads the manifests of the newest restore points from every store at once, opens their seals with the age identity and
    lists the candidates for each kind of object, the newest first.
  - A store that does not answer, a manifest that is damaged, belongs to another environment or was altered is left out, with the reason.
  - Fails when no restore point is left. Nothing is changed anywhere.
options:
  stores:
    description: The stores that hold restore points, the preferred one first.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name for messages.
        type: str
        required: true
      kind:
        description: How it is reached.
        type: str
        required: true
        choices: [sftp, s3]
      host:
        description: Address, for V(sftp).
        type: str
      port:
        description: Port, for V(sftp).
        type: int
        default: 22
      user:
        description: User, for V(sftp).
        type: str
      path:
        description: Directory of the restore points, for V(sftp).
        type: str
      host_key:
        description: Host key as in a known_hosts file, without the name, for V(sftp).
        type: str
      private_key:
        description: Private key, for V(sftp).
        type: str
      endpoint:
        description: Address of the service, for V(s3). Empty for the cloud of the library.
        type: str
      region:
        description: Region, for V(s3).
        type: str
      bucket:
        description: Bucket, for V(s3).
        type: str
      prefix:
        description: Prefix of every object, for V(s3).
        type: str
        default: ""
      access_key:
        description: Access key, for V(s3).
        type: str
      secret_key:
        description: Secret key, for V(s3).
        type: str
  environment_id:
    description: The environment whose restore points are wanted.
    type: str
    required: true
  identity:
    description: The age identity (private key) that opens the restore points.
    type: str
    required: true
  at_most:
    description: How many restore points to consider in each store.
    type: int
    default: 5
  restore_to:
    description:
      - Consider only what was taken before this point in time, in ISO 8601 (UTC when it names no zone) or seconds since the epoch. Empty for no such limit.
      - A time that cannot be read, that is in the future or before every restore point is refused, with what there is.
    type: str
    default: ""
  needs:
    description:
      - What a restore point must have beside the configuration and the offline bundle. One that lacks it is left out.
      - A server of several may have no Redis, or no release of services.
    type: list
    elements: str
    choices: [app, redis]
    default: [app, redis]
requirements: [boto3, pyrage]
extends_documentation_fragment:
  - titan.disaster_recovery.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Which restore points are there
  titan.disaster_recovery.restore_point_info:
    stores: "{{ titan_stores }}"
    environment_id: "{{ titan_environment_id }}"
    identity: "{{ titan_age_identity }}"
  delegate_to: localhost
  register: found
"""

RETURN = r"""
plan:
  description: Candidates by kind of object (V(bootstrap), V(bundle), V(config), V(app), V(redis)), the newest restore point first. A kind may have none.
  type: dict
  returned: success
restore_to:
  description: The point in time in seconds since the epoch.
  type: float
  returned: when O(restore_to) is given
titan_dr:
  description: Rows for the ledger.
  type: dict
  returned: always
"""

import datetime
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _restore_point, _stores

STORE: dict[str, t.Any] = {
    "name": {"type": "str", "required": True},
    "kind": {"type": "str", "required": True, "choices": ["sftp", "s3"]},
    "host": {"type": "str"},
    "port": {"type": "int", "default": 22},
    "user": {"type": "str"},
    "path": {"type": "str"},
    "host_key": {"type": "str", "no_log": False},
    "private_key": {"type": "str", "no_log": True},
    "endpoint": {"type": "str"},
    "region": {"type": "str"},
    "bucket": {"type": "str"},
    "prefix": {"type": "str", "default": ""},
    "access_key": {"type": "str", "no_log": True},
    "secret_key": {"type": "str", "no_log": True},
}


def moment(text: str, now: float) -> float:
    """Seconds since the epoch of a point in time that has been; ValueError says what is wrong with it."""
    try:
        found = float(text)
    except ValueError:
        try:
            parsed = datetime.datetime.fromisoformat(text.strip())
        except ValueError:
            raise ValueError(f"{text!r} is neither ISO 8601 nor seconds since the epoch") from None
        found = (parsed if parsed.tzinfo else parsed.replace(tzinfo=datetime.UTC)).timestamp()
    if not 0 < found < now:
        raise ValueError(f"{text!r} is {'in the future' if found >= now else 'no time'}")
    return found


def shown(at: float) -> str:
    return datetime.datetime.fromtimestamp(at, tz=datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "stores": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": STORE,
                "required_if": [
                    ("kind", "sftp", ("host", "user", "path", "host_key", "private_key")),
                    ("kind", "s3", ("bucket", "access_key", "secret_key")),
                ],
            },
            "environment_id": {"type": "str", "required": True},
            "identity": {"type": "str", "required": True, "no_log": True},
            "at_most": {"type": "int", "default": 5},
            "restore_to": {"type": "str", "default": ""},
            "needs": {"type": "list", "elements": "str", "choices": ["app", "redis"], "default": list(_restore_point.OPTIONAL)},
        },
        supports_check_mode=True,
    )
    params = module.params

    def refuse(reason: str, notes: list[str]) -> t.NoReturn:
        gate = {"name": "restore_points", "verdict": "fail", "evidence": reason}
        module.fail_json(msg=reason, titan_dr={"refused": reason, "gates": [gate], "notes": notes})

    try:
        until = moment(params["restore_to"], time.time()) if params["restore_to"] else None
    except ValueError as exc:
        refuse(f"The point in time cannot be restored to: {exc}", [])
    good, bad = _stores.read_all(params["stores"], params["environment_id"], params["at_most"], until)
    silent = [f"store {name} does not answer: {reason}" for name, reason in bad.items()]
    if not good:
        refuse(f"No store can be read: {'; '.join(silent)}", silent)
    plan, notes, locked = _stores.plan(good, params["environment_id"], params["identity"], params["needs"])
    notes += silent
    # what every restore point of this server has, and what it is for
    kind = "redis" if "redis" in params["needs"] else "config"
    if until is not None:
        # what a second later holds may be in it
        plan[kind] = [candidate for candidate in plan[kind] if candidate["taken_at"] + 1 <= until]
        if not plan[kind]:
            every = _stores.read_all(params["stores"], params["environment_id"], params["at_most"])[0]
            there = _stores.plan(every, params["environment_id"], params["identity"], params["needs"])
            times = sorted(candidate["taken_at"] for candidate in there[0][kind])
            listed = f"the newest {len(times)} are from {shown(times[0])} to {shown(times[-1])}" if times else "there is none at all"
            refuse(f"There is no usable restore point from before {shown(until)}: {listed}", notes)
    if not plan[kind]:
        if locked:
            refuse(f"titan_age_identity opens no restore point: {locked[0]}", notes)
        reasons = "; ".join(notes) or "they are empty"
        refuse(f"There is no usable restore point of environment {params['environment_id']} in {', '.join(good)}: {reasons}", notes)
    newest = plan[kind][0]
    evidence = f"{len(plan[kind])} usable, newest {newest['id']} of {shown(newest['taken_at'])} in {', '.join(newest['stores'])}; its seal opens"
    if until is not None:
        evidence = f"before {shown(until)}: {evidence}"
    module.exit_json(
        changed=False,
        plan=plan,
        **({} if until is None else {"restore_to": until}),
        titan_dr={"gates": [{"name": "restore_points", "verdict": "pass", "evidence": evidence}], "notes": notes},
    )


if __name__ == "__main__":
    main()
