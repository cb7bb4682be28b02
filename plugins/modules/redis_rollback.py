#!/usr/bin/python
# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_rollback
short_description: Put back the Redis data that the last restore moved aside, or say why it must not be
version_added: "0.2.0"
author: [Titan DR maintainers (@titan-dr)]
description:
  - Takes the data directory that M(titan.disaster_recovery.redis_swap) kept, verifies it, and exchanges it with the live one by renames. What was live is
    kept in turn. Redis is started and checked; when a gate fails everything is put back as it was.
  - Refused while trading is not halted, when nothing is kept, and when what is kept is damaged or would start empty.
  - Refused without O(confirm) when trading was resumed on the restored data, which the rollback sets aside, and when what is kept cannot be proven whole.
options:
  run_id:
    description: Names the directory that keeps what was live.
    type: str
    required: true
  latch:
    description: The halt latch.
    type: path
    required: true
  confirm:
    description: Go on although data is set aside that was traded with, or although nothing proves that what is kept is whole.
    type: bool
    default: false
extends_documentation_fragment:
  - titan.disaster_recovery.attributes
  - titan.disaster_recovery.lease
  - titan.disaster_recovery.exchange
attributes:
  check_mode:
    support: full
    details: Everything is asked and verified but the latch, and nothing is changed. Fails when the rollback would be refused.
  diff_mode:
    support: none
  idempotent:
    support: full
    details: Nothing is done when the last restore was rolled back before and Redis serves.
"""

EXAMPLES = r"""
- name: Put back what was live before the last restore
  titan.disaster_recovery.redis_rollback:
    run_id: 20260101T000000Z-1234
    data_dir: /var/lib/redis
    latch: /var/lib/titan-dr/halt
    timeout: 300
"""

RETURN = r"""
kept:
  description: Where the data lies that was live before the rollback.
  type: str
  returned: when something was put back
put_back:
  description: Where the data lay that was put back, or would be in check mode; empty when there was nothing to do.
  type: str
  returned: success
pending:
  description: Whether there is a rollback to make, or one to go on with that put the data back and did not come to its end.
  type: bool
  returned: in check mode, or when the data was put back before
trading:
  description: How the last recovery of this server left trading, C(resumed) or C(awaiting resume).
  type: str
  returned: when the data was put back before
titan_dr:
  description: Rows for the ledger.
  type: dict
  returned: always
"""

import os
import subprocess
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import (
    _aof,
    _fetch,
    _latch,
    _lease,
    _rdb,
    _rdb_walk,
    _redis,
    _redis_data,
    _redis_live,
    _redis_unit,
    _scratch,
    _state,
    _target,
)
from ansible_collections.titan.disaster_recovery.plugins.module_utils._redis_live import Gates, Refused, failing

FAULTS = (Refused, _redis_unit.UnitError, _redis.RedisError, _scratch.ProofError, OSError, ValueError, subprocess.TimeoutExpired)


def traded(record: dict[str, t.Any], latch: dict[str, t.Any] | None) -> bool:
    """Trading may have gone on since the restore: it is on, or the halt of now is a later one."""
    return latch is None or not latch.get("since", 0) or latch["since"] > record["at"]


def loss(record: dict[str, t.Any], latch: dict[str, t.Any] | None, now: float) -> dict[str, t.Any]:
    """What is lost with the data that is set aside: all that was written since the restore."""
    if not traded(record, latch):
        return {"actual_s": 0.0, "basis": "trading was halted since the restore"}
    return {"actual_s": round(max(0.0, now - record["at"]), 2), "basis": "everything since the restore that is rolled back"}


def refuse(params: dict[str, t.Any], record: dict[str, t.Any], check_mode: bool) -> list[str]:
    """What speaks against it before anything is looked into; returns notes."""
    if record.get("state") not in ("live", "exchanging"):
        reason = {"undone": "the last restore failed and was undone already"}.get(str(record.get("state")), "no restore is recorded")
        raise Refused(f"there is nothing to put back: {reason} ({_redis_data.record_path()})")
    if not record.get("aside") or not os.path.isdir(record["aside"]):
        raise Refused(f"there is nothing to put back: {record.get('aside') or 'no data was there before the restore'} is not there")
    if os.path.realpath(record["data_dir"]) != os.path.realpath(params["data_dir"]):
        raise Refused(f"the last restore was of {record['data_dir']}, the inventory says {params['data_dir']}")
    latch = _latch.read(params["latch"])
    if not check_mode and latch is None:
        raise Refused(f"trading is not halted ({params['latch']} is not there): halt it first, or data that is traded with is taken away")
    if not traded(record, latch):
        return []
    text = f"trading was resumed on restore point {record.get('restore_point')} after run {record['run_id']}: all that was written since"
    if not params["confirm"]:
        raise Refused(f"{text} would be set aside. Set rollback_confirm: true if that is right")
    return [f"{text} is set aside"]


def verify_kept(kept: str, conf: _redis.RedisConf, config: str, confirm: bool) -> tuple[str, dict[str, t.Any]]:
    """(evidence, what the server must hold) of the kept directory; Refused when it is damaged, would start empty, or is not proven without consent."""
    family, number = _scratch.version(_scratch.locate())
    with open(config, encoding="utf-8") as handle:
        target = _target.of_server(handle.read(), f"{family} {number}")
    now = time.time()
    if conf.appendonly:
        path = os.path.join(kept, conf.appenddirname)
        path = path if os.path.isdir(path) else os.path.join(kept, conf.appendfilename)
        if not os.path.exists(path):
            raise Refused(f"{kept} holds no AOF, and appendonly is on: Redis would start empty on it")
        aof = _aof.verify(path, target=target, now=now, base=lambda name: _rdb_walk.walk(name, now=now))
        if aof.state in (_aof.CORRUPT, _aof.UNUSABLE) or (aof.state != _aof.INTACT and not confirm):
            hint = ". Set rollback_confirm: true to put it back without its end" if aof.state == _aof.TAIL else ""
            raise Refused(f"what is kept in {kept} must not be put back: {aof.evidence()}{hint}")
        return f"AOF {aof.evidence()}", {}
    path = os.path.join(kept, conf.dbfilename)
    report = _rdb.verify(path, target=target, now=now)
    evidence = _rdb.evidence(report)
    if report["verdict"] == "fail" or (report["verdict"] != "pass" and not confirm):
        hint = "" if report["verdict"] == "fail" else ". Set rollback_confirm: true if that is enough"
        raise Refused(f"what is kept in {kept} must not be put back: {evidence}{hint}")
    if not report["contents"]["keys"]:
        raise Refused(f"what is kept in {kept} must not be put back: it holds no keys")
    return evidence, {"keyspace": report["contents"]["keyspace"]}


def broke_off() -> bool:
    """Whether the last recovery of this server was a rollback that did not come to its end: its services may be down, and trading halted."""
    lease = _lease.read()
    return lease is not None and lease.scenario == "rollback" and (lease.state, lease.result) != (_lease.CLOSED, "recovered")


def rollback(params: dict[str, t.Any], conf: _redis.RedisConf, unit: _redis_unit.Unit, check_mode: bool) -> tuple[_redis_data.Exchange | None, Gates]:
    record = _redis_data.read_record()
    notes = refuse(params, record, check_mode)
    data_dir, kept = record["data_dir"], record["aside"]
    if conf.refused:
        raise Refused(f"{params['config']}, {'; '.join(conf.refused)}")
    evidence, expected = verify_kept(kept, conf, params["config"], params["confirm"])
    _redis_data.refuse_place(data_dir, _redis_data.size_of(kept) + _redis_data.MARGIN)
    pid = unit.main_pid()
    held = _redis_unit.holders(conf, data_dir, _redis_unit.family(pid))
    if held:
        raise Refused(f"{'; '.join(held)}, and is not {unit.name}: stop it, then run again")
    before = _redis_live.interview(conf, pid, params["replicas_consent"])
    gates = [_redis_live.gate("redis_kept", True, evidence)]
    if check_mode:
        return None, gates
    _redis_data.hand_over(kept, params["user"])
    exchange = _redis_data.Exchange(
        conf=conf,
        unit=unit,
        data_dir=data_dir,
        incoming=kept,
        aside=_fetch.free_name(f"{data_dir}.rolled-back-{params['run_id']}"),
        failed=kept,
        deadline=unit.deadline,
        expected=expected,
        before=before,
        record={**record, "rolled_back_by": params["run_id"]},
        notes=[*notes, *before.notes],
        done="rolled back",
        undone=record,
    )
    return exchange, gates + exchange.run()


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "run_id": {"type": "str", "required": True},
            "latch": {"type": "path", "required": True},
            "confirm": {"type": "bool", "default": False},
            **_redis_data.ARGUMENTS,
        },
        supports_check_mode=True,
    )
    params = module.params
    unit = _redis_unit.Unit(params["unit"], time.time() + params["timeout"])
    with _lease.command(module, "redis_rollback"):
        try:
            conf = _redis.load_conf(params["config"], params["username"], params["password"])
            if _redis_data.read_record().get("state") == "rolled back":
                gates = _redis_live.check(conf, {}, time.time() + 5, unit)
                wrong = failing(gates)
                if wrong:
                    raise Refused(f"the last restore was rolled back before, and now Redis is not well: {wrong}")
                pending = broke_off()
                notes = ["the last restore was rolled back before" + (", by a run that did not come to its end: it is gone on with" if pending else "")]
                trading = _state.recovered().get("trading", "resumed")
                module.exit_json(changed=False, put_back="", pending=pending, trading=trading, titan_dr={"gates": gates, "notes": notes})
            put_back = _redis_data.read_record().get("aside", "")
            exchange, gates = rollback(params, conf, unit, module.check_mode)
        except FAULTS as exc:
            msg = f"Nothing was rolled back: {exc}"
            # As in check mode it is asked before anything is changed, its answer decides whether the run begins at all.
            refused = {"refused": msg} if module.check_mode else {}
            module.fail_json(msg=msg, titan_dr={"gates": [_redis_live.gate("redis_rollback", False, str(exc))], **refused})
        if exchange is None:
            module.exit_json(changed=True, put_back=put_back, pending=True, titan_dr={"notes": [f"would put back {put_back}: {gates[0]['evidence']}"]})
        rows = {"gates": gates, "timings": exchange.timings, "notes": exchange.notes, "rpo": loss(exchange.record, _latch.read(params["latch"]), time.time())}
        wrong = failing(gates)
        if wrong:
            msg = f"Nothing was rolled back, everything is as it was before ({'; '.join(exchange.notes)}). {wrong}. What is kept lies in {exchange.failed}"
            module.fail_json(msg=msg, titan_dr=rows)
        module.exit_json(changed=True, put_back=put_back, kept=exchange.aside if os.path.exists(exchange.aside) else "", titan_dr=rows)


if __name__ == "__main__":
    main()
