# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""What a server tells of itself before anybody decides what is wrong with it. Only reads; what cannot be found out is left out, never guessed.

The judgement is made on the controller, by plugin_utils/_doctor.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import re
import shutil
import socket
import subprocess
import time
import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _aof, _latch, _lease, _rdb, _rdb_walk, _redis, _redis_unit

# Verifying more than this would take longer than a diagnosis may: 2 s for a GiB.
QUICK_BYTES = 256 << 20
# Of the book at most so much is read.
BOOK_KEYS, BOOK_SECONDS = 5000, 1.0
SIDES = ("long", "short", "flat")
STATUSES = ("pending", "filled", "rejected", "cancelled", "unknown")
_HEARD = {
    "answers": "an SSH server answers",
    "other": "something answers that is no SSH server",
    "silent": "the connection is taken and nothing is said",
}
_UNIT = ("LoadState", "ActiveState", "SubState", "Result", "NRestarts", "MainPID", "ExecMainStatus")

Found = dict[str, t.Any]


# --- from outside ---------------------------------------------------------------------------------------------------


def reach(host: str, port: int, timeout: float) -> Found:
    """How far a connection to an SSH server gets. C(answers), C(silent) (the kernel lives, sshd says nothing), C(refused), C(no_answer), C(no_route), ..."""
    started = time.monotonic()
    try:
        with socket.create_connection((host, port), timeout) as link:
            link.settimeout(timeout)
            try:
                banner = link.recv(64)
            except TimeoutError:
                banner = b""
        how = "answers" if banner.startswith(b"SSH-") else "other" if banner else "silent"
        text = _HEARD[how]
    except socket.gaierror as exc:
        how, text = "unresolved", f"the name cannot be resolved: {exc.strerror}"
    except ConnectionRefusedError:
        how, text = "refused", "the connection is refused: the machine lives, nothing listens"
    except TimeoutError:
        how, text = "no_answer", f"no answer within {timeout:g} s"
    except OSError as exc:
        how = "no_route" if exc.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH) else "error"
        text = os.strerror(exc.errno) if exc.errno else str(exc)
    return {"host": host, "port": port, "tcp": how, "text": f"{host} port {port}: {text}", "ms": round((time.monotonic() - started) * 1000)}


# --- Redis ----------------------------------------------------------------------------------------------------------


def ask_redis(conf: _redis.RedisConf, canary: t.Mapping[str, t.Any], book: t.Mapping[str, t.Any], patience: float) -> Found:
    """What the running Redis says. `answer` is ok, loading, auth, tls, down, hung or error."""
    try:
        client = _redis.connect(conf, patience)
    except _redis.RedisError as exc:
        return _no_answer(exc)
    found: Found = {"answer": "ok", "text": "it answers"}
    try:
        try:
            client.call("PING")
        except _redis.RedisError as exc:
            if str(exc).startswith("LOADING"):
                return {"answer": "loading", "text": _redis.loading_text(client.info("persistence")) or str(exc)}
            if isinstance(exc, (_redis.AuthError, _redis.TlsError)) or _silent(exc):
                raise
            # such as MISCONF: it speaks, and says what is wrong
            found = {"answer": "error", "text": str(exc)}
        persistence, replication, server = client.info("persistence"), client.info("replication"), client.info("server")
        names = ("rdb_last_bgsave_status", "aof_last_write_status", "aof_last_bgrewrite_status", "aof_enabled", "loading")
        found["persistence"] = {name: persistence.get(name) for name in names}
        found["role"] = replication.get("role")
        found["replicas"] = int(replication.get("connected_slaves", "0"))
        found["evicted"] = int(client.info("stats").get("evicted_keys", "0"))
        found["uptime_s"] = int(server.get("uptime_in_seconds", "0"))
        found["keyspace"] = _redis.keyspace(client)
        found["keys"] = sum(entry["keys"] for entry in found["keyspace"].values())
        found["canary"] = _canary(client, canary)
        found["book"] = read_book(client, conf, book) if book else {}
    except (_redis.RedisError, ValueError, KeyError) as exc:
        return _no_answer(exc) if found["answer"] == "ok" else found
    finally:
        client.close()
    return found


def _silent(exc: Exception) -> bool:
    return "timed out" in str(exc)


def _no_answer(exc: Exception) -> Found:
    if isinstance(exc, _redis.AuthError):
        how = "auth"
    elif isinstance(exc, _redis.TlsError):
        how = "tls"
    elif _silent(exc):
        how = "hung"
    else:
        how = "down" if "cannot connect" in str(exc) or "closed by Redis" in str(exc) else "error"
    return {"answer": how, "text": str(exc)}


def _canary(client: _redis.Redis, canary: t.Mapping[str, t.Any]) -> Found:
    try:
        found = _redis.canary(client, str(canary["key"]), int(canary["db"]))
    except _redis.RedisError as exc:
        return {"state": "broken", "text": str(exc)}
    return {"state": "present", **found} if found else {"state": "missing"}


def _pattern(template: str) -> str:
    return re.sub(r"\{[^}]*\}", "*", template)


def book_faults(kind: str, fields: t.Mapping[str, str]) -> list[str]:
    """What no service would have written: of a position or of an order."""

    def number(name: str, least: float) -> str:
        try:
            good = least <= float(fields[name]) < 1e15
        except (KeyError, ValueError):
            good = False
        return "" if good else name

    if kind == "position":
        wrong = ["side"] * (fields.get("side") not in SIDES) + [number("size", 0), number("entryPrice", 0)]
    else:
        wrong = ["side"] * (fields.get("side") not in ("buy", "sell")) + ["status"] * (fields.get("status") not in STATUSES) + [number("qty", 0)]
    return [name for name in wrong if name]


def read_book(client: _redis.Redis, conf: _redis.RedisConf, book: t.Mapping[str, t.Any]) -> Found:
    """Whether positions and orders have the shape that the services give them. Names of keys and fields are told, never a value."""
    scan, read = conf.command("SCAN"), conf.command("HGETALL")
    if not scan or not read:
        return {"looked": 0, "wrong": [], "text": "the configuration disables SCAN or HGETALL"}
    client.call(conf.command("SELECT") or "SELECT", int(book["db"]))
    end, looked, complete = time.monotonic() + BOOK_SECONDS, 0, True
    wrong: list[str] = []
    kinds = {"position": 0, "order": 0}
    for kind in kinds:
        cursor = "0"
        while True:
            cursor, keys = client.call(scan, cursor, "MATCH", _pattern(str(book[kind])), "COUNT", 1000)
            for key in keys:
                looked += 1
                kinds[kind] += 1
                try:
                    flat = client.call(read, key)
                    faults = book_faults(kind, dict(zip(flat[::2], flat[1::2], strict=True)))
                except _redis.RedisError as exc:
                    if not str(exc).startswith("WRONGTYPE"):
                        raise
                    faults = ["type"]
                if faults:
                    wrong.append(f"{_rdb.printable(key)}: {', '.join(faults)}")
                if looked >= BOOK_KEYS or time.monotonic() > end:
                    complete = False
                    break
            if cursor == "0" or not complete:
                break
    return {"looked": looked, "complete": complete, "wrong": wrong[:5], "count": len(wrong), "kinds": kinds}


def unit(name: str) -> Found:
    """What systemd and the kernel say of Redis's unit; empty when systemd cannot be asked."""
    try:
        done = subprocess.run(["systemctl", "show", *(f"--property={key}" for key in _UNIT), name], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    shown = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    pid = int(shown.get("MainPID") or 0)
    return {
        "load": shown.get("LoadState"),
        "active": shown.get("ActiveState"),
        "sub": shown.get("SubState"),
        "result": shown.get("Result"),
        "restarts": int(shown.get("NRestarts") or 0),
        "pid": pid,
        "process": _redis_unit.state(pid),
    }


def owner_of(conf: _redis.RedisConf, user: str) -> Found:
    """Whether Redis may read and write what it would load."""
    try:
        wanted = pwd.getpwnam(user).pw_uid
    except KeyError:
        return {"verdict": "fail", "text": f"there is no user {user}"}
    wrong = []
    for folder, dummy, names in os.walk(conf.directory):
        for path in [folder, *(os.path.join(folder, name) for name in names)]:
            with contextlib.suppress(OSError):
                if os.stat(path).st_uid != wanted:
                    wrong.append(path)
    text = f"{', '.join(wrong[:3])} do not belong to {user}" if wrong else f"{conf.directory} belongs to {user}"
    return {"verdict": "fail" if wrong else "pass", "text": text}


def files(conf: _redis.RedisConf, user: str, now: float) -> Found:
    """What Redis would load: its AOF if it is on, and its dump; each with a verdict and the keys in it. Nothing of it when that would take long."""
    found: Found = {"owner": owner_of(conf, user)} if user and os.path.isdir(conf.directory) else {}
    dump, log = os.path.join(conf.directory, conf.dbfilename), os.path.join(conf.directory, conf.appenddirname)
    if conf.appendonly:
        found["aof"] = _aof_found(log, now)
    size = os.path.getsize(dump) if os.path.isfile(dump) else -1
    if size > QUICK_BYTES:
        found["dump"] = {"verdict": "unknown", "keys": None, "text": f"not verified, {size >> 20} MiB take too long"}
    elif size >= 0:
        report = _rdb.verify(dump, level="fast", now=now)
        contents = report["contents"] or {}
        found["dump"] = {"verdict": report["verdict"], "keys": contents.get("keys"), "text": _rdb.evidence(report)}
    return found


def _aof_found(path: str, now: float) -> Found:
    size = 0
    with contextlib.suppress(OSError):
        size = sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())
    if size > QUICK_BYTES:
        return {"verdict": "unknown", "text": f"not verified, {size >> 20} MiB take too long"}
    report = _aof.verify(path, target=None, now=now, base=lambda name: _rdb_walk.walk(name, now=now))
    # that an AOF proves nothing of its values is known; a torn end is what any running server has
    verdict = {_aof.INTACT: "pass", _aof.TAIL: "pass"}.get(report.state, "fail")
    return {"verdict": verdict, "state": report.state, "text": _rdb.printable(report.evidence())}


# --- the server -----------------------------------------------------------------------------------------------------


def disks(paths: t.Iterable[str]) -> list[Found]:
    """Room, inodes and mode of each file system below these paths."""
    found: dict[int, Found] = {}
    for wanted in paths:
        path = wanted
        while not os.path.isdir(path):
            path = os.path.dirname(path)
        device = os.stat(path).st_dev
        if device in found:
            continue
        usage, inodes = shutil.disk_usage(path), os.statvfs(path)
        used = round(100 * (1 - inodes.f_ffree / inodes.f_files)) if inodes.f_files else 0
        full = round(100 * (1 - usage.free / usage.total)) if usage.total else 0
        read_only = bool(inodes.f_flag & os.ST_RDONLY)
        found[device] = {"path": path, "percent": full, "inodes_percent": used, "free_mib": usage.free >> 20, "read_only": read_only}
    return list(found.values())


def memory() -> Found:
    """Memory and load."""
    with open("/proc/meminfo", encoding="ascii") as handle:
        numbers = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+)", handle.read(), re.M)}
    with open("/proc/uptime", encoding="ascii") as handle:
        uptime = float(handle.read().split()[0])
    percent = round(100 * (1 - numbers["MemAvailable"] / numbers["MemTotal"]))
    return {"percent": percent, "load": os.getloadavg()[0], "processors": os.cpu_count(), "uptime_s": uptime}


def lease(now: float) -> Found:
    """The recovery that holds this server, or held it last."""
    try:
        held = _lease.read()
    except _lease.LeaseError as exc:
        return {"state": "damaged", "text": str(exc)}
    if held is None:
        return {"state": "none"}
    owner = f"{held.owner.get('user', '?')}@{held.owner.get('host', '?')}"
    known = {name: getattr(held, name) for name in ("state", "run_id", "scenario", "result", "epoch", "since")}
    return {**known, "owner": owner, "sign_age_s": round(max(0.0, now - held.sign), 1)}


def latch(path: str, now: float) -> Found:
    """The halt latch and those of single venues."""
    found = _latch.read(path)
    venues = sorted(os.listdir(path + ".d")) if os.path.isdir(path + ".d") else []
    if found is None:
        return {"state": "none", "venues": venues}
    since = found.get("since")
    age = round(now - since) if isinstance(since, (int, float)) else None
    kept = {name: found.get(name) for name in ("generation", "reason", "run_id", "mode")}
    return {"state": "halted", **kept, "age_s": age, "venues": venues}
