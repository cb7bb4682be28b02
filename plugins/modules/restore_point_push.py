#!/usr/bin/python
# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: restore_point_push
short_description: Copy a restore point into the stores, the manifest last
version_added: "0.1.0"
author: [Titan DR maintainers (@titan-dr)]
description:
  - Copies every object to every store that does not have it yet, all stores at once, and checks the size of what arrived.
  - The manifest goes last, so that a store never shows a restore point that is not complete.
  - Fails when a store could not be served. What the other stores have stays there.
options:
  objects:
    description:
      - What to copy, in order, made by the filter P(titan.disaster_recovery.upload_targets#filter).
    type: list
    elements: dict
    required: true
    suboptions:
      key:
        description: Name in the stores.
        type: str
        required: true
      path:
        description: The file on this host.
        type: path
        required: true
      targets:
        description: Where to put it, once for each store.
        type: list
        elements: dict
        required: true
        suboptions:
          store:
            description: Name of the store, for messages.
            type: str
            required: true
          kind:
            description: How it is reached.
            type: str
            required: true
            choices: [http, sftp, file]
          url:
            description: Address to put it to for V(http), presigned.
            type: str
          head_url:
            description: Address to ask for its size for V(http), presigned.
            type: str
          path:
            description: Path in the store for V(sftp).
            type: path
          host:
            description: Address of an sftp store.
            type: str
          port:
            description: Port of an sftp store.
            type: int
            default: 22
          user:
            description: User of an sftp store.
            type: str
          host_key:
            description: Host key of an sftp store, as in a known_hosts file without the name.
            type: str
          private_key:
            description: Private key for an sftp store.
            type: str
  timeout:
    description: Seconds for all of it.
    type: float
    default: 600
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
- name: Copy the restore point into the stores
  titan.disaster_recovery.restore_point_push:
    objects: "{{ taken.objects | titan.disaster_recovery.upload_targets(titan_stores, titan_environment_id) }}"
  no_log: true
"""

RETURN = r"""
pushed:
  description: Number of objects copied, by store.
  type: dict
  returned: success
"""

import concurrent.futures
import http.client
import os
import time
import typing as t
import urllib.error
import urllib.request

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _fetch

# Not secret as a whole, or no message could name the store and the object that failed.
OBJECT_SPEC: dict[str, t.Any] = {
    "key": {"type": "str", "required": True, "no_log": False},
    "path": {"type": "path", "required": True},
    "targets": {"type": "list", "elements": "dict", "required": True, "options": {**_fetch.SOURCE_SPEC, "head_url": {"type": "str", "no_log": True}}},
}


def put_http(entry: dict[str, t.Any], target: dict[str, t.Any], deadline: float) -> bool:
    """PUT to a presigned address, unless the store has the object in this size already."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    size = os.path.getsize(entry["path"])
    timeout = max(1.0, deadline - time.time())
    try:
        with opener.open(urllib.request.Request(target["head_url"], method="HEAD"), timeout=min(10.0, timeout)) as answer:
            if int(answer.headers.get("Content-Length", "-1")) == size:
                return False
    except urllib.error.HTTPError as exc:
        # 403 is what some stores say of an absent object to whom may not list; if it means more, the PUT will tell.
        if exc.code not in (403, 404):
            raise _fetch.FetchError(f"the store answered {exc.code}") from exc
    with open(entry["path"], "rb") as handle:
        request = urllib.request.Request(target["url"], data=handle, method="PUT", headers={"Content-Length": str(size)})
        with opener.open(request, timeout=timeout):
            pass
    with opener.open(urllib.request.Request(target["head_url"], method="HEAD"), timeout=min(10.0, timeout)) as answer:
        if int(answer.headers.get("Content-Length", "-1")) != size:
            raise _fetch.FetchError(f"{entry['key']} arrived with another size")
    return True


def put_sftp(entry: dict[str, t.Any], target: dict[str, t.Any], deadline: float) -> bool:
    """Put under another name and rename: a name that exists is complete."""
    size = os.path.getsize(entry["path"])
    with _fetch.sftp_session(target) as argv:
        if listed_size(_fetch.sftp(argv, f'-ls -ln "{target["path"]}"\n', deadline)) == size:
            return False
        parts = os.path.dirname(target["path"]).split("/")
        folders = [folder for folder in ("/".join(parts[: count + 1]) for count in range(len(parts))) if folder]
        batch = "".join(f'-mkdir "{folder}"\n' for folder in folders)
        path = target["path"]
        batch += f'put "{entry["path"]}" "{path}.new"\n-rm "{path}"\nrename "{path}.new" "{path}"\nls -ln "{path}"\n'
        if listed_size(_fetch.sftp(argv, batch, deadline)) != size:
            raise _fetch.FetchError(f"{entry['key']} arrived with another size")
    return True


def listed_size(text: str) -> int:
    """Size in the last line of `ls -ln`; -1 when there is none."""
    fields = text.strip().splitlines()[-1].split() if text.strip() else []
    return int(fields[4]) if len(fields) >= 9 and fields[4].isdigit() else -1


def push(objects: list[dict[str, t.Any]], number: int, deadline: float) -> int:
    """Everything to the store that is `number` among the targets of each object."""
    done = 0
    for entry in objects:
        target = entry["targets"][number]
        try:
            done += (put_http if target["kind"] == "http" else put_sftp)(entry, target, deadline)
        except (OSError, http.client.HTTPException) as exc:
            raise _fetch.FetchError(f"{target['store']}: {entry['key']}: {exc}") from exc
        except _fetch.FetchError as exc:
            raise _fetch.FetchError(f"{target['store']}: {exc}") from exc
    return done


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "objects": {"type": "list", "elements": "dict", "required": True, "options": OBJECT_SPEC},
            "timeout": {"type": "float", "default": 600},
        },
        supports_check_mode=True,
    )
    objects = module.params["objects"]
    if module.check_mode or not objects:
        module.exit_json(changed=bool(objects), pushed={})
    stores = [target["store"] for target in objects[0]["targets"]]
    deadline = time.time() + module.params["timeout"]
    pushed, failed = {}, []
    with concurrent.futures.ThreadPoolExecutor(max_workers=max(1, len(stores))) as pool:
        waiting = {name: pool.submit(push, objects, number, deadline) for number, name in enumerate(stores)}
        for name, future in waiting.items():
            try:
                pushed[name] = future.result()
            except _fetch.FetchError as exc:
                failed.append(str(exc))
    if failed or not stores:
        module.fail_json(msg=f"The restore point is not in every store: {'; '.join(failed) or 'there is no store'}")
    module.exit_json(changed=any(pushed.values()), pushed=pushed)


if __name__ == "__main__":
    main()
