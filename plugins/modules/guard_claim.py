#!/usr/bin/python
# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guard_claim
short_description: Claim an environment in the store, so that the guard of every other server fences it off
version_added: "0.1.0"
author: [Titan DR maintainers (@titan-dr)]
description:
  - Writes the next epoch into C(<environment>/epoch.json) of the first store of kind V(s3). The guards of servers with a lower epoch
    (see M(titan.disaster_recovery.guard_install)) withdraw the permit of their services and fasten their latch within seconds.
  - A run claims once. Claimed again by the same run, the epoch stays.
  - Runs on the controller, where the credentials of the stores are.
  - A store that cannot be written does not fail it. It is a note, and C(claimed) is false. Nothing can be read from a claim that was not made.
options:
  stores:
    description: The stores, as M(titan.disaster_recovery.restore_point_info) takes them.
    type: list
    elements: dict
    required: true
  environment_id:
    description: The environment that is claimed.
    type: str
    required: true
  run_id:
    description: The run that claims it.
    type: str
    required: true
requirements: [boto3]
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
- name: Claim the environment
  titan.disaster_recovery.guard_claim:
    stores: "{{ titan_stores }}"
    environment_id: production
    run_id: 20260101T000000Z-1234
  delegate_to: localhost
  register: claim
"""

RETURN = r"""
claimed:
  description: Whether the environment is claimed by this run.
  type: bool
  returned: always
epoch:
  description: The epoch of this run, 0 when it is not claimed.
  type: int
  returned: always
key:
  description: Full name of the object in the store.
  type: str
  returned: always
titan_dr:
  description: Rows for the ledger.
  type: dict
  returned: always
"""

import json
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _guard, _stores


def read(client: t.Any, bucket: str, key: str) -> _guard.Claim:
    try:
        return _guard.parse(200, client.get_object(Bucket=bucket, Key=key)["Body"].read(65536))
    except client.exceptions.NoSuchKey:
        return _guard.Claim(0)


def claim(store: dict[str, t.Any], key: str, run_id: str, check: bool) -> tuple[int, bool]:
    """The epoch of this run, and whether it is new."""
    client = _stores.s3_client(store)
    before = read(client, store["bucket"], key)
    if before.run_id == run_id or check:
        return before.epoch, before.run_id != run_id
    epoch = before.epoch + 1
    client.put_object(Bucket=store["bucket"], Key=key, Body=json.dumps({"epoch": epoch, "run_id": run_id}).encode() + b"\n")
    # two that claim at the same moment: one of them reads the other's name
    after = read(client, store["bucket"], key)
    if (after.epoch, after.run_id) != (epoch, run_id):
        raise _stores.StoreError(f"run {after.run_id} claimed epoch {after.epoch} at the same moment")
    return epoch, True


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "stores": {"type": "list", "elements": "dict", "required": True},
            "environment_id": {"type": "str", "required": True},
            "run_id": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    store = next((item for item in params["stores"] if item["kind"] == "s3"), None)
    if store is None:
        note = "there is no store of kind s3: a server that was given up and comes back is not fenced off"
        module.exit_json(changed=False, claimed=False, epoch=0, key="", titan_dr={"notes": [note]})
    key = _stores.object_path(store, params["environment_id"], "epoch.json")
    try:
        epoch, changed = claim(store, key, params["run_id"], module.check_mode)
    except Exception as exc:  # botocore raises from several trees; each means the same here
        note = f"the environment could not be claimed in {store['name']} ({type(exc).__name__}: {exc}): a server that was given up is NOT fenced off"
        module.exit_json(changed=False, claimed=False, epoch=0, key=key, titan_dr={"notes": [note]})
    module.exit_json(
        changed=changed, claimed=not module.check_mode, epoch=epoch, key=key, titan_dr={"notes": [f"epoch {epoch} of the environment is this run's"]}
    )


if __name__ == "__main__":
    main()
