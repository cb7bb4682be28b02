#!/usr/bin/python
# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_swap
short_description: Put a proven Redis snapshot live and check what the server then holds
version_added: "0.1.0"
author: [Titan DR maintainers (@titan-dr)]
description:
  - Stops Redis, moves the data directory aside as a whole, moves the stage made by M(titan.disaster_recovery.redis_stage) into its place and starts Redis.
  - What can be known is known before Redis is stopped. Refused are a configuration that makes a replica or a cluster node of the server, a missing ACL file,
    certificates that no client would accept, data that the limits of the configuration cannot hold, a place where nothing can be renamed or that has no room,
    a second process on the data, attached replicas, and a Sentinel that watches.
  - Redis is stopped within bounds, by SIGKILL if it hangs, and cannot be started by anybody until its data directory is whole again.
  - With C(appendonly yes) the dump becomes the base of a multi-part AOF, because Redis ignores C(dump.rdb) then and would start empty.
  - A drop-in gives the unit a start timeout that fits the size of the data, so that systemd does not kill Redis while it loads.
  - After the start keys, canary, fingerprint, role, evictions, process, directory, listening addresses and a write are checked, and a new base is written.
    When a gate fails the old directory is put back, and Redis runs on it if it ran before. What failed is kept as evidence.
  - Speaks TLS where the configuration offers nothing else, and takes password, directories and renamed commands from it. Neither CONFIG, DEBUG, KEYS, EVAL
    nor SHUTDOWN is used.
options:
  stage:
    description: Directory with the proven dump.
    type: path
    required: true
  expected:
    description: The C(expected) that M(titan.disaster_recovery.redis_stage) returned.
    type: dict
    required: true
  restore_point:
    description: Restore point id, recorded beside the data.
    type: str
    required: true
  run_id:
    description: Names the directory that keeps the old data.
    type: str
    required: true
extends_documentation_fragment:
  - titan.disaster_recovery.attributes
  - titan.disaster_recovery.lease
  - titan.disaster_recovery.exchange
attributes:
  check_mode:
    support: full
    details: Says what would be swapped.
  diff_mode:
    support: none
  idempotent:
    support: full
    details: Nothing is done when this run put this restore point live before and Redis still serves it.
"""

EXAMPLES = r"""
- name: Put the proven snapshot live
  titan.disaster_recovery.redis_swap:
    stage: "{{ staged.stage }}"
    expected: "{{ staged.expected }}"
    restore_point: "{{ staged.restore_point.id }}"
    run_id: 20260101T000000Z-1234
    data_dir: /var/lib/redis
    timeout: 300
"""

RETURN = r"""
kept:
  description: Where the data that was there before lies now.
  type: str
  returned: when something was swapped
titan_dr:
  description: Rows for the ledger.
  type: dict
  returned: always
"""

import os
import shutil
import subprocess
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _lease, _rdb_report, _redis, _redis_data, _redis_live, _redis_unit, _target
from ansible_collections.titan.disaster_recovery.plugins.module_utils._redis_live import Gates, Refused, failing

FAULTS = (Refused, _redis_unit.UnitError, _redis.RedisError, OSError, subprocess.TimeoutExpired)


def refuse_configuration(conf: _redis.RedisConf, params: dict[str, t.Any]) -> None:
    """What the configuration alone tells."""
    if conf.refused:
        raise Refused(f"{params['config']}, {'; '.join(conf.refused)}")
    if os.path.realpath(conf.directory) != os.path.realpath(params["data_dir"]):
        raise Refused(f"{params['config']} says dir {conf.directory}, the inventory says {params['data_dir']}")
    if conf.tls:
        _redis.check_tls(conf.tls)
    facts = params["expected"].get("facts")
    if facts:
        with open(params["config"], encoding="utf-8") as handle:
            target = _target.of_server(handle.read(), facts["server"])
        contents = _rdb_report.Contents(**facts["contents"])
        findings = [*_target.judge(contents, target), *_target.memory(facts["used_memory"], target)]
        faults = [found.text for found in findings if found.severity == _rdb_report.FATAL]
        if faults:
            raise Refused(f"{params['config']} does not fit the data: {'; '.join(dict.fromkeys(faults))}. Raise the limit or take another restore point")


def go_on(data_dir: str, run_id: str) -> list[str]:
    """What another run left that broke off in its exchange: the old directory is put back where there is none."""
    record = _redis_data.read_record()
    aside = record.get("aside", "")
    if record.get("state") != "exchanging" or record.get("run_id") == run_id or not aside or not os.path.exists(aside):
        return []
    if os.path.exists(data_dir):
        return [f"run {record['run_id']} broke off in its swap: the data from before it lies in {aside}"]
    os.rename(aside, data_dir)
    return [f"run {record['run_id']} broke off in its swap: {data_dir} was put back"]


def swap(params: dict[str, t.Any], conf: _redis.RedisConf, unit: _redis_unit.Unit) -> tuple[_redis_data.Exchange, Gates]:
    data_dir, run_id = params["data_dir"].rstrip("/"), params["run_id"]
    kept = f"{data_dir}.before-{run_id}"
    notes = go_on(data_dir, run_id)
    # Without a data directory an earlier swap of this run broke off between its two renames, with both after them: it goes on.
    record = _redis_data.read_record()
    exchanged = os.path.exists(data_dir) and os.path.exists(kept)
    broke_off = exchanged and (record.get("state"), record.get("run_id"), record.get("aside")) == ("exchanging", run_id, kept)
    if exchanged and not broke_off:
        raise Refused(f"{kept} exists already: data kept by an earlier swap of this run is not overwritten. Start a new run")
    size = _redis_data.size_of(data_dir if broke_off else params["stage"])
    _redis_data.refuse_place(data_dir, size + _redis_data.MARGIN)
    pid = unit.main_pid()
    held = _redis_unit.holders(conf, data_dir, _redis_unit.family(pid))
    if held:
        raise Refused(f"{'; '.join(held)}, and is not {unit.name}: nothing was stopped. Stop it, then run again")
    before = _redis_live.interview(conf, pid, params["replicas_consent"])
    live = "" if broke_off else _redis_data.build(params["stage"], conf, params["user"])
    exchange = _redis_data.Exchange(
        conf=conf,
        unit=unit,
        data_dir=data_dir,
        incoming=live,
        aside=kept,
        failed=f"{data_dir}.failed-{run_id}",
        deadline=unit.deadline,
        expected=params["expected"],
        before=before,
        record={"restore_point": params["restore_point"], "run_id": run_id, "at": time.time()},
        notes=[*notes, *before.notes],
    )
    if broke_off:
        unit.prepare(size)
        unit.unlock()
        gates = exchange.finish()
    else:
        gates = exchange.run()
    shutil.rmtree(params["stage"], ignore_errors=True)
    return exchange, gates


def served_before(params: dict[str, t.Any], conf: _redis.RedisConf, unit: _redis_unit.Unit) -> Gates:
    """Gates when this run already put this restore point live and it still serves; else an empty list."""
    record = _redis_data.read_record()
    if any(record.get(name) != params[name] for name in ("restore_point", "run_id")) or record.get("state") not in ("live", "exchanging"):
        return []
    # What is live was proven when it went live, and its services may have written since.
    expected = {"canary": params["expected"].get("canary")} if record["state"] == "live" else params["expected"]
    try:
        gates = _redis_live.check(conf, expected, time.time() + 5, unit)
    except (_redis.RedisError, _redis_unit.UnitError):
        return []
    if failing(gates):
        return []
    _redis_data.write_record({**record, "state": "live"})
    return gates


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "stage": {"type": "path", "required": True},
            "expected": {"type": "dict", "required": True},
            "restore_point": {"type": "str", "required": True},
            "run_id": {"type": "str", "required": True},
            **_redis_data.ARGUMENTS,
        },
        supports_check_mode=True,
    )
    params = module.params
    if module.check_mode:
        module.exit_json(changed=True, titan_dr={"notes": [f"would move {params['data_dir']} aside and put restore point {params['restore_point']} live"]})
    unit = _redis_unit.Unit(params["unit"], time.time() + params["timeout"])
    with _lease.command(module, "redis_swap", {"stage": params["stage"], "restore_point": params["restore_point"]}):
        exchange = None
        try:
            conf = _redis.load_conf(params["config"], params["username"], params["password"])
            refuse_configuration(conf, params)
            before = served_before(params, conf, unit)
            if before:
                shutil.rmtree(params["stage"], ignore_errors=True)
                module.exit_json(changed=False, titan_dr={"gates": before})
            exchange, gates = swap(params, conf, unit)
        except FAULTS as exc:
            msg = f"Redis was not restored: {exc}"
            module.fail_json(msg=msg, titan_dr={"gates": [_redis_live.gate("redis_start", False, str(exc))]})
        rows = {"gates": gates, "timings": exchange.timings, "notes": exchange.notes}
        if failing(gates):
            state = f"{params['data_dir']} is as it was before ({'; '.join(exchange.notes)})"
            msg = f"Redis was not restored, {state}. {failing(gates)}. What failed lies in {exchange.failed}"
            module.fail_json(msg=msg, failed_data=exchange.failed, titan_dr=rows)
        kept = exchange.aside if os.path.exists(exchange.aside) else ""
        if kept:
            rows["notes"] = [*exchange.notes, f"the data that was there before is kept in {kept}"]
        module.exit_json(changed=True, kept=kept, titan_dr=rows)


if __name__ == "__main__":
    main()
