#!/usr/bin/python
# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_aof_verify
short_description: Tell whether an append-only file of Redis is intact and how far it can be used
version_added: "0.1.0"
author: [Titan DR maintainers (@titan-dr)]
description:
  - Reads the AOF of Redis or Valkey, a directory with its manifest or a single file with or without an RDB in front, and reports what is in it, what is wrong
    with it, and where. Nothing is written but the copy that O(salvage_to) asks for.
  - The state tells what is usable; C(intact), C(recoverable tail) (a server drops the incomplete end and comes up), C(corrupt middle) (usable up to a
    place that is named) or C(unusable).
  - The verdict tells what is proven. An AOF has no checksum, so a changed value cannot be seen; without the digests in O(recorded) an intact AOF is
    C(unknown), never C(pass).
options:
  path:
    description: The directory (C(appendonlydir)), its manifest, or a single file.
    type: path
    required: true
  recorded:
    description:
      - SHA-256 by file name, as recorded when the AOF was copied. C(report.digests) of that time has them, the manifest's included.
    type: dict
  salvage_to:
    description:
      - Directory that does not exist yet. A copy of the usable part is put there and verified in turn when the AOF is not intact or O(until) is given.
      - The copy of a directory is one, with a manifest of its own; the copy of a single file lies in it under the name of the file.
    type: path
  until:
    description:
      - Time in seconds since the epoch. The copy ends with the last command that was written up to then.
      - Needs an AOF that was written with C(aof-timestamp-enabled yes).
    type: float
extends_documentation_fragment:
  - titan.disaster_recovery.attributes
  - titan.disaster_recovery.target
attributes:
  check_mode:
    support: full
    details: Verifies, and makes no copy.
  diff_mode:
    support: none
  idempotent:
    support: partial
    details: Verifying is; a copy is made once, into a directory that does not exist.
"""

EXAMPLES = r"""
- name: What is the AOF of the failed server worth
  titan.disaster_recovery.redis_aof_verify:
    path: /mnt/old/var/lib/redis/appendonlydir
    config: /etc/redis/redis.conf
    salvage_to: /var/lib/titan-dr/salvaged/appendonlydir
    accept_unknown: true
  register: aof

- name: As it was before the wrong deployment
  titan.disaster_recovery.redis_aof_verify:
    path: /var/lib/redis.before-20260101T000000Z-1234/appendonlydir
    target: {server: redis, version: 7.0.15, databases: 16, modules: []}
    salvage_to: /var/lib/titan-dr/salvaged/appendonlydir
    until: 1767225600
    accept_unknown: true
"""

RETURN = r"""
report:
  description:
    - Everything that was found. C(verdict), C(state), C(findings) with file and offset, C(files) with size, digest, number of commands and timestamps,
      C(orphans), C(usable) (file, offset, command, timestamp, and at least so many bytes and commands behind it that are lost), C(digests).
  type: dict
  returned: always
  sample:
    path: /var/lib/redis/appendonlydir
    kind: aof
    verdict: unknown
    state: recoverable tail
    usable: {file: appendonly.aof.1.incr.aof, offset: 19600, command: 342, timestamp: 1767225600, bytes_lost: 17, commands_lost: 0}
salvaged:
  description:
    - The copy. C(path), C(file) and C(offset) where it was cut, C(timestamp) of that place, C(digests), and the C(report) of its own verification.
    - The verdict of the task is then that of the copy.
  type: dict
  returned: when a copy was made
titan_dr:
  description: Rows for the ledger.
  type: dict
  returned: always
"""

import subprocess
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _aof, _rdb_walk, _redis_conf, _target_options
from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb_report import Contents


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "recorded": {"type": "dict"},
            "salvage_to": {"type": "path"},
            "until": {"type": "float"},
            **_target_options.ARGUMENTS,
        },
        required_by={"until": "salvage_to"},
        supports_check_mode=True,
    )
    params = module.params
    now = time.time()

    def walk(path: str) -> Contents:
        return _rdb_walk.walk(path, now=now)

    result: dict[str, t.Any] = {"changed": False}
    try:
        target = _target_options.target_of(params)
        recorded = {name: str(digest) for name, digest in (params["recorded"] or {}).items()}
        report = judged = _aof.verify(params["path"], target=target, now=now, base=walk, recorded=recorded)
        result["report"] = report.as_dict()
        evidence = report.evidence()
        wanted = params["salvage_to"] and report.usable and (params["until"] is not None or report.state != _aof.INTACT)
        if wanted and module.check_mode:
            rows = {"notes": [f"{evidence}; would copy what is usable to {params['salvage_to']}"]}
            module.exit_json(**{**result, "changed": True}, titan_dr=rows)
        if wanted:
            salvaged = _aof.cut(report, params["salvage_to"], params["until"])
            result["changed"] = True
            # The copy is what its source was proven to be; its own digests only tell that it was copied well.
            judged = _aof.verify(salvaged["path"], target=target, now=now, base=walk, recorded=salvaged["digests"] if report.matched else None)
            if judged.digests != salvaged["digests"]:
                raise _aof.AofError(f"{salvaged['path']} is not what was written to it")
            result["salvaged"] = {**salvaged, "report": judged.as_dict()}
            evidence = f"{evidence}; the copy in {salvaged['path']}: {judged.evidence()}"
    except (_aof.AofError, _redis_conf.RedisError, OSError, ValueError, subprocess.TimeoutExpired) as exc:
        module.fail_json(msg=str(exc), **result, titan_dr={"gates": [{"name": "redis_aof", "verdict": "unknown", "evidence": str(exc)}]})
    result["titan_dr"] = {"gates": [{"name": "redis_aof", "verdict": judged.verdict, "evidence": evidence}]}
    if judged.verdict == "fail" or (judged.verdict == "unknown" and not params["accept_unknown"]):
        module.fail_json(msg=f"{params['path']}: {evidence}", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
