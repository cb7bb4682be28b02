#!/usr/bin/python
# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: tree_restore
short_description: Restore files from a restore point and swap them in, keeping what was there
version_added: "0.1.0"
author: [Titan DR maintainers (@titan-dr)]
description:
  - Fetches an archive of a restore point, unpacks it into a private stage, checks it and swaps the paths named in O(paths) into place.
  - Each path is replaced as a whole by renames on its own file system. What was there is kept beside it as C(<path>.before-<run id>).
  - Every JSON file below O(paths) is parsed before anything is swapped.
options:
  paths:
    description: Absolute paths of files or directories to take from the archive.
    type: list
    elements: path
  link:
    description: A symbolic link that is to name the release afterwards, whose path the restore point that is used tells.
    type: path
  run_id:
    description: Names stage and kept files.
    type: str
    required: true
  gate:
    description: Name of the gate for the ledger.
    type: str
    required: true
  timeout:
    description: Seconds for all of it.
    type: float
    required: true
extends_documentation_fragment:
  - titan.disaster_recovery.attributes
  - titan.disaster_recovery.lease
  - titan.disaster_recovery.candidates
attributes:
  check_mode:
    support: full
    details: Says which restore point would be used. Nothing is fetched.
  diff_mode:
    support: none
  idempotent:
    support: full
    details: A path whose content, mode and owner are those of the restore point already is left alone.
"""

EXAMPLES = r"""
- name: Restore the configuration
  titan.disaster_recovery.tree_restore:
    candidates: "{{ plan.config }}"
    identity: "{{ titan_age_identity }}"
    paths: [/etc/redis/redis.conf, /opt/titan/config]
    run_id: 20260101T000000Z-1234
    gate: config_restored
    timeout: 60
"""

RETURN = r"""
restore_point:
  description: Id of the restore point that was used.
  type: str
  returned: success
kept:
  description: What was moved aside.
  type: list
  elements: str
  returned: success
titan_dr:
  description: Rows for the ledger.
  type: dict
  returned: always
"""

import contextlib
import errno
import filecmp
import json
import os
import shutil
import subprocess
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _fetch, _lease, _state


class TreeError(Exception):
    """The archive cannot be put in place."""


def unpack(candidate: dict[str, t.Any], source: dict[str, t.Any], identity: str, stage: str, deadline: float) -> None:
    shutil.rmtree(stage, ignore_errors=True)
    os.makedirs(stage, mode=0o700)
    sink = [_fetch.tool("tar"), "--extract", "--same-owner", "--same-permissions", "--directory", stage]
    _fetch.fetch(candidate["object"], source, identity, sink, deadline)


def check(stage: str, paths: list[str], parse: bool) -> int:
    """Each path is in the stage and, with `parse`, each JSON file of them parses; returns the number of files."""
    count = 0
    for path in paths:
        staged = stage + path
        if not os.path.lexists(staged):
            raise _fetch.FetchError(f"{path} is not in the archive")
        for name in [staged] if not os.path.isdir(staged) else [os.path.join(folder, item) for folder, dummy, files in os.walk(staged) for item in files]:
            count += 1
            if parse and name.endswith(".json"):
                try:
                    with open(name, encoding="utf-8") as handle:
                        json.load(handle)
                except ValueError as exc:
                    raise _fetch.FetchError(f"{name.removeprefix(stage)} is not JSON: {exc}") from exc
    return count


def same(one: str, other: str) -> bool:
    """Two paths hold the same files with the same content, mode and owner."""
    try:
        left, right = os.lstat(one), os.lstat(other)
    except FileNotFoundError:
        return False
    if (left.st_mode, left.st_uid, left.st_gid) != (right.st_mode, right.st_uid, right.st_gid):
        return False
    if os.path.islink(one):
        return os.readlink(one) == os.readlink(other)
    if os.path.isdir(one):
        names = sorted(os.listdir(one))
        return names == sorted(os.listdir(other)) and all(same(os.path.join(one, name), os.path.join(other, name)) for name in names)
    return filecmp.cmp(one, other, shallow=False)


def move(staged: str, fresh: str) -> None:
    """Rename, or copy with owners and modes onto another file system."""
    try:
        os.rename(staged, fresh)
    except OSError as exc:
        if exc.errno != errno.EXDEV:
            raise
        done = subprocess.run(["cp", "--archive", "--no-target-directory", staged, fresh], capture_output=True, text=True, check=False)
        if done.returncode:
            raise TreeError(f"{fresh} cannot be written: {done.stderr.strip()}") from exc


def swap(staged: str, path: str, run_id: str) -> str:
    """Put `staged` where `path` is, by renames beside it; returns where the old one lies, empty if there was none or it was the same."""
    if same(staged, path):
        return ""
    parent = os.path.dirname(path)
    os.makedirs(parent, exist_ok=True)
    fresh, kept = f"{path}.stage-{run_id}", _fetch.free_name(f"{path}.before-{run_id}")
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(fresh) if os.path.isdir(fresh) else os.unlink(fresh)
    move(staged, fresh)
    old = os.path.lexists(path)
    if old:
        os.rename(path, kept)
    os.rename(fresh, path)
    return kept if old else "-"


def point(link: str, target: str) -> bool:
    """Let `link` name `target`, atomically; True when it did not already."""
    if os.path.islink(link) and os.readlink(link) == target:
        return False
    fresh = f"{link}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(fresh)
    os.symlink(target, fresh)
    os.rename(fresh, link)
    return True


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "candidates": _fetch.CANDIDATES,
            "identity": _fetch.IDENTITY,
            "paths": {"type": "list", "elements": "path"},
            "link": {"type": "path"},
            "run_id": {"type": "str", "required": True},
            "gate": {"type": "str", "required": True},
            "timeout": {"type": "float", "required": True},
        },
        required_one_of=[("paths", "link")],
        mutually_exclusive=[("paths", "link")],
        supports_check_mode=True,
    )
    params = module.params

    def wanted(candidate: dict[str, t.Any]) -> list[str]:
        return [os.path.normpath(path) for path in params["paths"] or [candidate["details"]["path"]]]

    if module.check_mode:
        first = params["candidates"][0] if params["candidates"] else None
        point_id = first["id"] if first else "none"
        note = f"would restore {', '.join(wanted(first))} from restore point {point_id}" if first else "there is no restore point"
        module.exit_json(changed=True, restore_point=point_id, kept=[], titan_dr={"notes": [note]})
    stage = _state.path("stage", f"{params['run_id']}-{params['gate']}")
    deadline = time.time() + params["timeout"]
    started = time.monotonic()

    def attempt(candidate: dict[str, t.Any], source: dict[str, t.Any]) -> int:
        unpack(candidate, source, params["identity"], stage, deadline)
        return check(stage, wanted(candidate), bool(params["paths"]))

    with _lease.command(module, f"tree_restore:{params['gate']}"):
        try:
            candidate, store, count, rejected = _fetch.first_good(params["candidates"], attempt)
            paths = wanted(candidate)
            kept = [swap(stage + path, path, params["run_id"]) for path in paths]
            linked = point(params["link"], paths[0]) if params["link"] else False
        except (_fetch.FetchError, TreeError, OSError, KeyError) as exc:
            module.fail_json(msg=str(exc), titan_dr={"gates": [{"name": params["gate"], "verdict": "fail", "evidence": str(exc)}]})
        finally:
            shutil.rmtree(stage, ignore_errors=True)
        evidence = f"{count} files of restore point {candidate['id']} from {store}; {sum(bool(item) for item in kept)} of {len(kept)} paths replaced"
        rows = {
            "gates": [{"name": params["gate"], "verdict": "pass", "evidence": evidence}],
            "notes": [f"passed over: {reason}" for reason in rejected],
            "timings": {params["gate"]: round(time.monotonic() - started, 2)},
        }
        changed = linked or any(kept)
        module.exit_json(changed=changed, restore_point=candidate["id"], kept=[item for item in kept if item not in ("", "-")], titan_dr=rows)


if __name__ == "__main__":
    main()
