# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""The scratch Redis: loads a dump in private and tells what is in it, before any live data is touched.

Redis serves as the judge because loading is the only complete check of a dump; `sanitize-dump-payload yes` makes it look inside every value.
It listens on a socket in its own directory only, saves nothing, and is gone afterwards.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _redis, _restore_point

SERVER = "redis-server"


class ProofError(Exception):
    """The dump is not what the manifest says, or Redis does not load it."""


def prove(dump: str, directory: str, expected: dict[str, t.Any], user: str, deadline: float) -> dict[str, t.Any]:
    """Load `dump` (a path in `directory`) and compare it with the manifest's redis section; returns what was found, raises ProofError.

    `expected` has `keyspace` ({"db0": {"keys", "expires"}}), `expired` (keys that had expired when these were counted), `databases` (int) and
    `canary` ({"key", "db", "seq", "at"} or None).
    """
    found = load(dump, directory, expected["databases"], expected.get("canary"), user, deadline)
    problems = judge(expected, found)
    if problems:
        raise ProofError("; ".join(problems))
    return found


def load(dump: str, directory: str, databases: int, canary: dict[str, t.Any] | None, user: str, deadline: float) -> dict[str, t.Any]:
    """Load `dump` (a path in `directory`, readable by `user`) and tell what is in it; ProofError when Redis refuses it."""
    server = shutil.which(SERVER)
    if not server:
        raise ProofError(f"{SERVER} is not installed: nothing can prove the dump")
    socket_path = os.path.join(directory, "scratch.sock")
    config = "\n".join(
        [
            "port 0",
            f"unixsocket {socket_path}",
            f"dir {directory}",
            f"dbfilename {os.path.basename(dump)}",
            'save ""',
            "appendonly no",
            f"databases {databases}",
            "sanitize-dump-payload yes",
            "rdbchecksum yes",
            "loglevel notice",
            f"logfile {os.path.join(directory, 'scratch.log')}",
            "daemonize no",
        ]
    )
    nothing = subprocess.DEVNULL
    process = subprocess.Popen([server, "-"], stdin=subprocess.PIPE, stdout=nothing, stderr=nothing, user=user, group=user, extra_groups=[])
    try:
        with t.cast("t.IO[bytes]", process.stdin) as stdin:
            stdin.write(config.encode())
        client = _redis.wait_ready(socket_path, "", deadline, lambda: process.poll() is None)
        found = examine(client, canary)
        client.close()
    except _redis.RedisError as exc:
        raise ProofError(f"{exc}{_last_words(directory)}") from exc
    finally:
        process.kill()
        process.wait()
        for name in ("scratch.sock", "scratch.log"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(directory, name))
    return found


def examine(client: _redis.Redis, canary: dict[str, t.Any] | None) -> dict[str, t.Any]:
    """What a loaded server holds: keyspace, keys that expired while loading, canary, memory."""
    # One reply for all counts: keys go on expiring while we look.
    info = client.info("default")
    return {
        "keyspace": _redis.keyspace_of(info),
        "expired": int(info.get("rdb_last_load_keys_expired", "0")) + int(info["expired_keys"]),
        "used_memory": int(info["used_memory"]),
        "canary": _redis.canary(client, canary["key"], canary["db"]) if canary else None,
    }


def judge(expected: dict[str, t.Any], found: dict[str, t.Any]) -> list[str]:
    """Pure comparison of a loaded dump with the manifest; the list is empty when they agree."""
    problems = _restore_point.compare_keyspace(expected["keyspace"], found["keyspace"])
    want = _restore_point.total_keys(expected["keyspace"]) + expected["expired"]
    have = _restore_point.total_keys(found["keyspace"])
    if have + found["expired"] != want:
        problems.append(f"{have} keys loaded and {found['expired']} expired, {want} in the manifest")
    canary = expected.get("canary")
    if canary and (not found["canary"] or found["canary"]["seq"] != canary["seq"]):
        problems.append(f"canary is {found['canary'] and found['canary']['seq']}, {canary['seq']} in the manifest")
    return problems


def _last_words(directory: str) -> str:
    try:
        with open(os.path.join(directory, "scratch.log"), encoding="utf-8", errors="replace") as log:
            lines = [line.strip() for line in log if " # " in line]
    except OSError:
        return ""
    return f"; its log says: {lines[-1]}" if lines else ""
