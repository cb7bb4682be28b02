#!/usr/bin/python
# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_rdb_verify
short_description: Tell whether a Redis snapshot is intact and what a server will make of it
version_added: "0.1.0"
author: [Titan DR maintainers (@titan-dr)]
description:
  - Reads an RDB file of Redis (RDB 1 to 12) or Valkey (RDB 80) and reports what is in it, what is wrong with it, and where. The file is only read.
  - The verdict is of this file on this target; C(pass), C(fail), or C(unknown) when nothing can tell, as with a file that was saved without a checksum and
    whose SHA-256 was not recorded.
  - Needs the Python standard library alone. Where the Python package C(anycrc) can be imported, the checksum takes less time.
  - "The levels, the verdicts and the report are explained in
    L(docs/verification.md,https://github.com/titan-dr/disaster_recovery/blob/main/docs/verification.md)."
options:
  path:
    description: The file.
    type: path
    required: true
  level:
    description:
      - V(fast) checks what the file is, its digest, checksum and structure.
      - V(deep) also looks into every value, finds keys that stand twice, and asks C(redis-check-rdb) where it is installed.
      - V(proof) also has a scratch Redis load the file and compares what that holds.
    type: str
    choices: [fast, deep, proof]
    default: fast
  recorded:
    description:
      - What the backup recorded of the file, as in the C(redis) section of a restore point's manifest. Of it C(sha256), C(size), C(rdb_version),
        C(keyspace) and C(expired) are held against the file, at O(level=proof) C(fingerprint) too; the rest may be there.
      - A C(.sha256) file beside O(path) is held against it in any case.
    type: dict
  checksum:
    description:
      - What proves that no value changed. V(required) is content with the checksum in the file, or with a recorded SHA-256 when the file has none.
      - V(digest) is content with a recorded SHA-256 only, because whoever changes a file can also correct its checksum.
    type: str
    choices: [required, digest]
    default: required
  max_age:
    description: Oldest snapshot, in seconds, that meets the RPO.
    type: float
  user:
    description: User that runs the scratch server; the user of this task when it is not given. It must be able to read the file.
    type: str
  timeout:
    description: Seconds that C(redis-check-rdb) and the scratch server may take.
    type: float
    default: 900
extends_documentation_fragment:
  - titan.disaster_recovery.attributes
  - titan.disaster_recovery.target
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Is the dump that was fetched the one that was saved, and can this server load it
  titan.disaster_recovery.redis_rdb_verify:
    path: /var/lib/titan-dr/fetched/redis.rdb
    level: deep
    config: /etc/redis/redis.conf
    recorded: "{{ restore_point.redis }}"
    max_age: 300

- name: Look at any dump
  titan.disaster_recovery.redis_rdb_verify:
    path: /root/dump.rdb
    accept_unknown: true
  register: dump
"""

RETURN = r"""
report:
  description: Everything that was found, see docs/verification.md for its fields.
  type: dict
  returned: always
  sample:
    path: /root/dump.rdb
    kind: rdb
    level: fast
    verdict: fail
    findings:
      - {code: truncated, severity: fatal, text: the file ends inside a value, offset: 1999, key: "titan:order:8"}
titan_dr:
  description: Rows for the ledger.
  type: dict
  returned: always
"""

import subprocess
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb, _redis_conf, _target_options


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "level": {"type": "str", "choices": list(_rdb.LEVELS), "default": "fast"},
            "recorded": {"type": "dict"},
            "checksum": {"type": "str", "choices": list(_rdb.POLICIES), "default": "required"},
            "max_age": {"type": "float"},
            "user": {"type": "str"},
            "timeout": {"type": "float", "default": _rdb.TIMEOUT},
            **_target_options.ARGUMENTS,
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        target = _target_options.target_of(params)
        recorded = _rdb.check_recorded(params["recorded"], "recorded") if params["recorded"] else None
    except (_redis_conf.RedisError, _rdb.RecordedError, OSError, ValueError, subprocess.TimeoutExpired) as exc:
        module.fail_json(msg=str(exc), titan_dr={"gates": [{"name": "redis_rdb", "verdict": "unknown", "evidence": str(exc)}]})
    report = _rdb.verify(
        params["path"],
        level=params["level"],
        target=target,
        now=time.time(),
        recorded=recorded,
        max_age_s=params["max_age"],
        checksum=params["checksum"],
        user=params["user"],
        server=params["server"],
        timeout=params["timeout"],
    )
    evidence = _rdb.evidence(report)
    rows = {"gates": [{"name": "redis_rdb", "verdict": report["verdict"], "evidence": evidence}], "timings": report["seconds"]}
    if report["verdict"] == "fail" or (report["verdict"] == "unknown" and not params["accept_unknown"]):
        module.fail_json(msg=f"{params['path']}: {evidence}", report=report, titan_dr=rows)
    module.exit_json(changed=False, report=report, titan_dr=rows)


if __name__ == "__main__":
    main()
