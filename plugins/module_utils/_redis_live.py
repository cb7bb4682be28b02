# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""The live Redis: what to ask before it is stopped, and the gates after it was started on other data.

Neither CONFIG, DEBUG, KEYS, EVAL nor SHUTDOWN is ever sent to it, and every other command by the name that the configuration gives it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import os
import socket
import time
import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _redis, _redis_unit, _restore_point, _scratch

WRITE_PROBE = "titan:dr:write-probe"

Gates = list[dict[str, str]]


class Refused(Exception):
    """Nothing was changed; why, and what to do about it."""


def gate(name: str, good: bool, evidence: str) -> dict[str, str]:
    """A gate for the ledger."""
    return {"name": name, "verdict": "pass" if good else "fail", "evidence": evidence}


def failing(gates: Gates) -> str:
    """The gates that did not pass, in words."""
    return "; ".join(f"{found['name']}: {found['evidence']}" for found in gates if found["verdict"] != "pass")


# --- before it is stopped -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Interview:
    """What the running server said before it is stopped."""

    runs: bool = False
    hangs: bool = False
    was_replica: bool = False
    notes: tuple[str, ...] = ()


def interview(conf: _redis.RedisConf, pid: int, replicas_consent: bool) -> Interview:
    """Ask the running server, if any, whether it may be stopped. Refused when data elsewhere would be lost with it."""
    if not pid:
        return Interview()
    try:
        if _redis_unit.state(pid) == "T":
            raise _redis.RedisError("it was stopped by a signal: timed out")
        client = _redis.connect(conf, 3.0)
        replication = client.info("replication")
    except (_redis.AuthError, _redis.TlsError) as exc:
        raise Refused(
            f"Redis is up but refuses what the configuration and the inventory say: {exc}. It was not stopped. "
            "Set titan_redis.username and titan_redis_password, or mend the configuration, and run again"
        ) from exc
    except _redis.RedisError as exc:
        text = str(exc)
        if text.startswith("LOADING"):
            return Interview(runs=True, notes=("Redis was still loading its old data when it was stopped",))
        if text.startswith("ERR"):
            raise Refused(f"Redis is up and cannot be asked whether replicas are attached: {text}. It was not stopped") from exc
        return _ask_nobody(conf, pid, replicas_consent, text)
    notes = _replicas(replication, replicas_consent)
    was_replica = replication.get("role") != "master"
    if was_replica:
        notes.append(f"Redis was a replica of {replication.get('master_host')} by a command; by its configuration it starts as master")
    notes += _sentinels(client, conf)
    client.close()
    return Interview(runs=True, was_replica=was_replica, notes=tuple(notes))


def _ask_nobody(conf: _redis.RedisConf, pid: int, consent: bool, why: str) -> Interview:
    others = sorted(_redis_unit.peers(pid, conf.ports))
    if others and not consent:
        raise Refused(
            f"Redis (process {pid}) does not answer ({why}) and {', '.join(others)} hold connections to it, which may be replicas with newer data: promote "
            "one of them (REPLICAOF NO ONE there), or stop them, or set redis_restore_replicas_consent: true"
        )
    return Interview(runs=True, hangs="timed out" in why, notes=(f"Redis (process {pid}) did not answer: {why}",))


def _replicas(replication: dict[str, str], consent: bool) -> list[str]:
    attached = []
    for number in range(int(replication.get("connected_slaves", "0"))):
        fields = dict(part.split("=", 1) for part in replication.get(f"slave{number}", "").split(",") if "=" in part)
        attached.append(f"{fields.get('ip')}:{fields.get('port')} (offset {fields.get('offset')} of {replication.get('master_repl_offset')})")
    if not attached:
        return []
    if not consent:
        raise Refused(
            f"replicas are attached and hold newer data than any restore point: {', '.join(attached)}. A restore would wipe them. Promote one instead "
            "(REPLICAOF NO ONE there, and point the services to it), or set redis_restore_replicas_consent: true"
        )
    return [f"with consent: {', '.join(attached)} take over what is restored and lose what they held"]


def _sentinels(client: _redis.Redis, conf: _redis.RedisConf) -> list[str]:
    """A Sentinel that watches would fail over, or make a replica of the restored server."""
    try:
        listed = client.call(conf.command("CLIENT"), "LIST") if conf.command("CLIENT") else None
    except _redis.RedisError:
        listed = None
    if listed is None:
        return ["whether a Sentinel watches Redis could not be asked: CLIENT LIST is not allowed"]
    watching = sorted({word[5:] for line in listed.splitlines() if "name=sentinel-" in line for word in line.split() if word.startswith("addr=")})
    if watching:
        who = ", ".join(watching)
        raise Refused(f"a Sentinel watches this Redis ({who}) and would fail over: SENTINEL REMOVE this master there first, and MONITOR it afterwards")
    return []


# --- after it was started -------------------------------------------------------------------------------------------


def check(conf: _redis.RedisConf, expected: dict[str, t.Any], deadline: float, unit: _redis_unit.Unit, began: float | None = None) -> Gates:
    """Ask the started server; gates with their evidence. A write that is refused or a replica role fails, whatever PING says.

    `expected` has `keyspace`, `canary`, `fingerprint` and `samples` where they are known, `began` is when it was started.
    """
    heard = [""]
    tls = _redis.client_context(conf.tls) if conf.tls_only and conf.tls else None
    client = _redis.wait_ready(conf.address, conf.password, deadline, unit.active, conf.username, tls, heard.append)
    ready = f"answers {time.time() - began:.1f} s after the start" if began else "answers"
    gates = [gate("redis_start", True, ready + (f"; last heard while loading: {heard[-1]}" if heard[-1] else ""))]
    gates += _data(client, conf, expected)
    replication, stats, server = client.info("replication"), client.info("stats"), client.info("server")
    gates.append(gate("redis_role", replication.get("role") == "master", f"role {replication.get('role')}"))
    gates.append(gate("redis_no_eviction", stats.get("evicted_keys") == "0", f"{stats.get('evicted_keys')} keys evicted since the start"))
    gates += _process(conf, unit, int(server["process_id"]))
    gates.append(_write(client, conf))
    client.close()
    return gates


def _data(client: _redis.Redis, conf: _redis.RedisConf, expected: dict[str, t.Any]) -> Gates:
    found = _redis.keyspace(client)
    counted = f"{_restore_point.total_keys(found)} keys in {', '.join(sorted(found)) or 'no database'}"
    if "keyspace" in expected:
        problems = _restore_point.compare_keyspace(expected["keyspace"], found)
        gates = [gate("redis_keys", not problems, "; ".join(problems) or counted)]
    else:
        gates = [gate("redis_keys", bool(found), counted)]
    if expected.get("canary"):
        canary = _redis.canary(client, expected["canary"]["key"], expected["canary"]["db"])
        seen = canary["seq"] if canary else None
        wanted = expected["canary"]["seq"]
        gates.append(gate("redis_canary", seen is not None and seen >= wanted, f"sequence {seen}, the manifest recorded {wanted}"))
    if expected.get("fingerprint"):
        taken = _scratch.fingerprint(client, [(database, bytes.fromhex(key)) for database, key in expected["samples"]], conf.command)
        same = taken == expected["fingerprint"]
        text = f"{taken['keys']} sampled keys have the content that was recorded"
        gates.append(gate("redis_fingerprint", same, text if same else f"sampled keys differ: {taken}, recorded {expected['fingerprint']}"))
    return gates


def _process(conf: _redis.RedisConf, unit: _redis_unit.Unit, pid: int) -> Gates:
    """Who answers is the unit's process, works in the configured directory and listens where it should."""
    main = unit.main_pid()
    gates = [gate("redis_process", pid == main, f"process {pid} answers, {unit.name} runs {main}")]
    here, wanted = _redis_unit.cwd(pid), os.path.realpath(conf.directory)
    gates.append(gate("redis_dir", here == wanted, f"works in {here or 'a directory that cannot be seen'}, the configuration says {wanted}"))
    found = _redis_unit.listening(pid)
    allowed = {(host, port) for port in conf.ports for host in _hosts(conf.bind)}
    missing = {(host, port) for port in conf.ports for host in _hosts(tuple(name for name in conf.bind if not name.startswith("-")))} - found
    strange = found - allowed
    text = ", ".join(f"{host} port {port}" for host, port in sorted(found)) or "no TCP port"
    if strange or missing:
        text += f"; the configuration says {', '.join(f'{host} port {port}' for host, port in sorted(allowed)) or 'none'}"
    return [*gates, gate("redis_bind", not strange and not missing, f"listens on {text}")]


def _hosts(bind: tuple[str, ...]) -> set[str]:
    found = set()
    for name in bind:
        name = {"*": "0.0.0.0", "::*": "::"}.get(name.lstrip("-"), name.lstrip("-"))
        try:
            found.add(str(ipaddress.ip_address(name)))
        except ValueError:
            with contextlib.suppress(OSError):
                found |= {str(entry[4][0]) for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
    return found


def _write(client: _redis.Redis, conf: _redis.RedisConf) -> dict[str, str]:
    if not conf.command("SET"):
        return gate("redis_write", False, "the configuration disables SET")
    try:
        client.call(conf.command("SET"), WRITE_PROBE, "1", "PX", "1")
        if conf.command("DEL"):
            client.call(conf.command("DEL"), WRITE_PROBE)  # until Redis gets to it, a key that expired is still counted
    except _redis.RedisError as exc:
        return gate("redis_write", False, str(exc))
    return gate("redis_write", True, "a write was accepted")


def new_base(conf: _redis.RedisConf, deadline: float) -> tuple[Gates, list[str]]:
    """Have Redis write all it holds to its disk anew: (gates, notes). A disk that is full shows here and not at the next crash.

    What is not written by the deadline goes on being written; whoever validates the server waits for it.
    """
    name, running, status = (
        ("BGREWRITEAOF", "aof_rewrite_in_progress", "aof_last_bgrewrite_status")
        if conf.appendonly
        else ("BGSAVE", "rdb_bgsave_in_progress", "rdb_last_bgsave_status")
    )
    if not conf.command(name):
        return [], [f"no new base was written: the configuration disables {name}"]
    client = _redis.connect(conf)
    try:
        client.call(conf.command(name), *(["SCHEDULE"] if name == "BGSAVE" else []))
        while time.time() < deadline:
            info = client.info("persistence")
            if info[running] == "0" and info.get("aof_rewrite_scheduled", "0") == "0":
                good = info[status] == "ok" and info.get("aof_last_write_status", "ok") == "ok"
                return [gate("redis_new_base", good, f"{name} ended with {info[status]}" + ("" if good else ": is the disk full?"))], []
            time.sleep(0.05)
        return [], [f"a new base is still being written ({name})"]
    except _redis.AuthError as exc:
        return [], [f"no new base was written: {exc}"]
    except _redis.RedisError as exc:
        return [gate("redis_new_base", False, f"{name}: {exc}: is the disk full?")], []
    finally:
        with contextlib.suppress(OSError):
            client.close()


def settled(conf: _redis.RedisConf, seconds: float, deadline: float) -> dict[str, str]:
    """Whether the server is still master after `seconds`: a peer that turns it into a replica needs some time for it."""
    end = min(deadline, time.time() + seconds)
    client = _redis.connect(conf)
    role = "unknown"
    while time.time() < end:
        role = client.info("replication").get("role", "unknown")
        if role != "master":
            break
        time.sleep(min(0.5, max(0.0, end - time.time())))
    client.close()
    return gate("redis_stays_master", role == "master", f"role {role} over {seconds:.0f} s")
