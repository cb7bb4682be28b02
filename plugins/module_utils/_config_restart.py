# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Let Redis take another configuration: a restart that must not lose a key.

A server that ran with the damaged file may keep its data elsewhere than the proven file says. Then a restart would bring up older data, and is refused.
"""

from __future__ import annotations

import os
import ssl
import time
import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _redis, _redis_unit


class RestartError(Exception):
    """Redis was not restarted, or does not hold what it held."""


def lasting(client: _redis.Redis) -> dict[str, int]:
    """How many keys of each database never expire: nothing but a command takes one away."""
    return {name: entry["keys"] - entry["expires"] for name, entry in _redis.keyspace(client).items() if entry["keys"] > entry["expires"]}


def _addresses(conf: _redis.RedisConf, pid: int) -> list[str | tuple[str, int]]:
    """Where the running server listens: as its process says, which may not be as the file does."""
    seen: list[str | tuple[str, int]] = [("127.0.0.1" if host in ("0.0.0.0", "127.0.0.1") else host, port) for host, port in sorted(_redis_unit.listening(pid))]
    return [*seen, *([conf.address] if conf.address not in seen else [])]


def _transport(conf: _redis.RedisConf) -> ssl.SSLContext | None:
    return _redis.client_context(conf.tls) if conf.tls_only and conf.tls else None


def interview(conf: _redis.RedisConf, pid: int) -> tuple[dict[str, int] | None, str]:
    """The keys of the running server, and why it must not be restarted onto this configuration. None: it could not be asked."""
    said = "it does not listen"
    for address in _addresses(conf, pid):
        try:
            client = _redis.Redis(address, conf.password, 3.0, conf.username, _transport(conf))
        except (_redis.RedisError, OSError) as exc:
            said = str(exc)
            continue
        try:
            persistence = client.info("persistence")
            keys = lasting(client)
            on = persistence.get("aof_enabled") == "1"
            if on != conf.appendonly:
                return keys, f"it writes {'an' if on else 'no'} append only file, and the proven configuration {'does' if conf.appendonly else 'does not'}"
            place = os.path.realpath(_redis_unit.cwd(pid))
            if place != os.path.realpath(conf.directory):
                return keys, f"it works in {place}, and the proven configuration in {conf.directory}"
            if not conf.appendonly and keys:
                save = conf.command("SAVE")
                if not save:
                    return keys, "what it holds cannot be saved: the command SAVE is disabled"
                client.call(save)
        except (_redis.RedisError, OSError, ValueError) as exc:
            said = str(exc)
            continue
        finally:
            client.close()
        return keys, ""
    return None, said


def restart(config: str, unit_name: str, username: str, password: str, deadline: float) -> tuple[str, list[str]]:
    """Restart the unit and prove that no key was lost; returns the evidence and notes."""
    conf = _redis.load_conf(config, username, password)
    unit = _redis_unit.Unit(unit_name, deadline)
    pid = unit.main_pid()
    notes: list[str] = []
    before: dict[str, int] | None = None
    if pid:
        before, why = interview(conf, pid)
        if before is not None and why:
            raise RestartError(f"Redis was not restarted: {why}. Its data is the concern of database_corruption")
        if before is None:
            notes.append(f"the running Redis could not be asked before its restart: {why}")
        if told := unit.stop():
            notes.append(told)
    # one that failed too often is not started again without this
    _redis_unit.systemctl("reset-failed", unit_name, deadline=deadline)
    unit.start()
    client = _redis.wait_ready(conf.address, conf.password, deadline, unit.active, conf.username, _transport(conf))
    try:
        after = lasting(client)
    finally:
        client.close()
    if before is not None and any(after.get(name, 0) < count for name, count in before.items()):
        raise RestartError(f"Redis lost keys at its restart: {_counted(before)} before, {_counted(after)} now. Recover with database_corruption")
    since = time.strftime("%H:%M:%S UTC", time.gmtime())
    return f"restarted {since} on the proven configuration; keys that do not expire: {_counted(before)} before, {_counted(after)} now", notes


def _counted(keys: t.Mapping[str, int] | None) -> str:
    return "not known" if keys is None else str(sum(keys.values()))
