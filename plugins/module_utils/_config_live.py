# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""The configuration as it lies on the server, what its services have loaded of it, and the programs that read it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import fnmatch
import grp
import os
import pwd
import re
import shutil
import ssl
import stat
import subprocess
import time
import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _config, _probe
from ansible_collections.titan.disaster_recovery.plugins.module_utils._components import Component
from ansible_collections.titan.disaster_recovery.plugins.module_utils._config import FATAL, Finding, Settings, Tools, kind_of
from ansible_collections.titan.disaster_recovery.plugins.module_utils._config_history import digest
from ansible_collections.titan.disaster_recovery.plugins.module_utils._pm2 import Pm2Error, Proc, find_daemon, query_daemon

# What recoveries and editors leave beside a file.
_ASIDE = re.compile(r"\.(?:before|stage)-|~$|\.(?:swp|new|tmp|bak|orig)$|^\.git$|^\.#|^#")
# Nothing greater is a configuration.
MAX_SIZE = 8 << 20
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
# A process that started in the same second may have read the file before or after.
_CLOCK_GRAIN = 0.02


def aside(path: str) -> bool:
    return any(_ASIDE.search(part) for part in path.split("/"))


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file as it lies there. `error`: why it could not be read."""

    data: bytes
    mode: int
    uid: int
    gid: int
    mtime: float
    error: str = ""


def walk(paths: t.Iterable[str]) -> t.Iterator[str]:
    for root in paths:
        if os.path.isdir(root):
            for folder, names, files in os.walk(root):
                names[:] = sorted(name for name in names if not _ASIDE.search(name))
                yield from (os.path.join(folder, name) for name in sorted(files) if not _ASIDE.search(name))
        elif os.path.lexists(root):
            yield root


def wanted(paths: t.Sequence[str]) -> t.Callable[[str], bool]:
    """Whether a file belongs to the configuration."""

    def belongs(path: str) -> bool:
        return any(path == root or path.startswith(root.rstrip("/") + "/") for root in paths) and not aside(path)

    return belongs


def read_tree(paths: t.Iterable[str]) -> dict[str, Entry]:
    """Every file of the configuration."""
    found = {}
    for path in walk(paths):
        try:
            seen = os.stat(path)
            if not stat.S_ISREG(seen.st_mode):
                continue
            error = f"{seen.st_size >> 20} MiB are no configuration" if seen.st_size > MAX_SIZE else ""
            data = b""
            if not error:
                with open(path, "rb") as handle:
                    data = handle.read()
            found[path] = Entry(data, stat.S_IMODE(seen.st_mode), seen.st_uid, seen.st_gid, seen.st_mtime, error)
        except OSError as exc:
            found[path] = Entry(b"", 0, -1, -1, 0.0, exc.strerror or str(exc))
    return found


def contents(tree: t.Mapping[str, Entry]) -> dict[str, bytes]:
    return {path: entry.data for path, entry in tree.items() if not entry.error}


# --- owners and modes -----------------------------------------------------------------------------------------------------


def reader_of(path: str, settings: Settings) -> str:
    """The user who must be able to read a file."""
    kind = kind_of(path, settings)
    return "root" if kind == "unit" else str(settings.redis.get("user") or "redis") if kind == "redis" else settings.user


def _ids(user: str) -> tuple[int, int, set[int]] | None:
    try:
        found = pwd.getpwnam(user)
    except KeyError:
        return None
    return found.pw_uid, found.pw_gid, {found.pw_gid} | {group.gr_gid for group in grp.getgrall() if user in group.gr_mem}


def attributes(path: str, entry: Entry, settings: Settings) -> list[Finding]:
    """Who may read and write the file. A secret is its user's alone."""
    user = reader_of(path, settings)
    ids = _ids(user)
    if ids is None:
        return [Finding(path, "owner", "", f"there is no user {user}", FATAL)]
    uid, _gid, groups = ids
    found = []
    readable = uid == 0 or bool(entry.mode & (0o400 if entry.uid == uid else 0o040 if entry.gid in groups else 0o004))
    if path in settings.private:
        if entry.uid != uid:
            found.append(Finding(path, "owner", "", f"holds secrets and does not belong to {user}", FATAL))
        elif entry.mode & 0o177 or not readable:
            found.append(Finding(path, "mode", "", f"holds secrets and has mode {entry.mode:04o}, 0600 is wanted", FATAL))
    elif not readable:
        found.append(Finding(path, "owner", "", f"{user} cannot read it", FATAL))
    elif entry.mode & 0o002:
        found.append(Finding(path, "mode", "", f"anybody may write it: mode {entry.mode:04o}", FATAL))
    elif kind_of(path, settings) == "redis" and entry.mode & 0o007:
        found.append(Finding(path, "mode", "", f"holds a password and anybody may read it: mode {entry.mode:04o}", FATAL))
    return found


def proper(path: str, entry: Entry | None, settings: Settings) -> tuple[int, int, int]:
    """Owner, group and mode that a file is to have: its own, but for what is wrong with them."""
    kind = kind_of(path, settings)
    ids = _ids(reader_of(path, settings)) or (0, 0, {0})
    usual = 0o600 if path in settings.private else 0o644 if kind == "unit" else 0o640
    if entry is None or entry.uid < 0 or attributes(path, entry, settings):
        if entry is not None and entry.uid >= 0 and path not in settings.private:
            # the bits that were right stay
            closed = entry.mode & ~(0o007 if kind == "redis" else 0o002)
            if not attributes(path, dataclasses.replace(entry, mode=closed), settings):
                return entry.uid, entry.gid, closed
        return ids[0], ids[1], usual
    return entry.uid, entry.gid, entry.mode


def check_live(tree: t.Mapping[str, Entry], reference: t.Mapping[str, bytes], expected: t.Iterable[str], settings: Settings, tools: Tools) -> _config.Report:
    """Everything that is wrong with the files of this server."""
    report = _config.check_all(contents(tree), reference, expected, settings, tools)
    unreadable = {path: entry.error for path, entry in tree.items() if entry.error}
    report.findings = [finding for finding in report.findings if not (finding.kind == "missing" and finding.path in unreadable)]
    report.findings += [Finding(path, "unreadable", "", error, FATAL) for path, error in unreadable.items()]
    for path, entry in tree.items():
        if not entry.error:
            report.findings += [item for item in attributes(path, entry, settings) if f"{path}:{item.kind}" not in settings.approved]
    return report


# --- the programs ---------------------------------------------------------------------------------------------------------


def _run(argv: list[str], data: bytes, user: str, timeout: float = 10.0) -> subprocess.CompletedProcess[bytes] | str:
    """Run a program that reads a file from its standard input; as its own user where we are root. A text: why it could not run."""
    identity: dict[str, t.Any] = {}
    ids = _ids(user)
    if os.geteuid() == 0 and ids and ids[0]:
        identity = {"user": ids[0], "group": ids[1], "extra_groups": []}
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    try:
        return subprocess.run(argv, input=data, capture_output=True, timeout=timeout, check=False, cwd="/", env=environment, **identity)
    except subprocess.TimeoutExpired:
        return f"{argv[0]} did not end within {timeout:g} s"
    except (OSError, subprocess.SubprocessError) as exc:
        return f"{argv[0]} could not be run: {exc}"


def check_redis(data: bytes, user: str) -> tuple[str, str]:
    """Redis reads the file from its standard input and, told to listen nowhere, ends before it touches anything."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if not program:
        return _probe.UNKNOWN, "redis-server is not installed, so it could not be asked"
    quiet = ["--port", "0", "--tls-port", "0", "--unixsocket", "", "--logfile", "", "--syslog-enabled", "no", "--daemonize", "no", "--supervised", "no"]
    done = _run([program, *quiet, "--replicaof", "no", "one", "-"], data, user)
    if isinstance(done, str):
        return _probe.UNKNOWN, done
    said = (done.stdout + done.stderr).decode("utf-8", "replace")
    if "Configured to not listen anywhere" in said:
        return _probe.PASS, ""
    line = re.search(r"at line (\d+)", said)
    if "FATAL CONFIG FILE ERROR" in said:
        # it quotes the line, which may hold a password; the reason after it is Redis's own
        reason = _QUOTED.sub("'...'", said.strip().splitlines()[-1])[:120]
        if reason.endswith("Permission denied"):
            # Redis looks at the places that it names: whose they are is no matter of this file
            return _probe.UNKNOWN, f"user {user} may not use a place that it names{f' in line {line[1]}' if line else ''}: see its owner and mode"
        return _probe.FAIL, f"line {line[1]}: Redis refuses it: {reason}" if line else f"Redis refuses it: {reason}"
    return _probe.UNKNOWN, f"redis-server ended with {done.returncode} and did not say why"


def check_script(data: bytes, user: str) -> tuple[str, str]:
    """Node.js parses the file and runs nothing of it."""
    program = shutil.which("node") or shutil.which("nodejs")
    if not program:
        return _probe.UNKNOWN, "node is not installed, so it could not be asked"
    done = _run([program, "--check", "-"], data, user)
    if isinstance(done, str):
        return _probe.UNKNOWN, done
    if done.returncode == 0:
        return _probe.PASS, ""
    line = re.search(rb"^\[stdin\]:(\d+)", done.stderr, re.MULTILINE)
    if b"SyntaxError" in done.stderr:
        return _probe.FAIL, f"line {int(line[1])}: is not JavaScript" if line else "is not JavaScript"
    return _probe.UNKNOWN, f"node ended with {done.returncode} and did not say why"


def check_certificate(data: bytes, user: str = "") -> tuple[str, str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=data.decode("ascii"))
    except (ssl.SSLError, ValueError):
        return _probe.FAIL, "holds no certificate"
    return _probe.PASS, ""


def tools(settings: Settings) -> Tools:
    """Each asked once for the same content."""
    known: dict[tuple[str, str], tuple[str, str]] = {}

    def once(name: str, ask: t.Callable[[bytes, str], tuple[str, str]], user: str) -> _config.Tool:
        def tool(data: bytes) -> tuple[str, str]:
            mark = (name, digest(data))
            if mark not in known:
                known[mark] = ask(data, user)
            return known[mark]

        return tool

    redis_user = str(settings.redis.get("user") or "redis")
    return Tools(once("redis", check_redis, redis_user), once("script", check_script, settings.user), once("certificate", check_certificate, ""))


# --- what runs --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Running:
    """A component that runs: since when (epoch), and the SHA-256 of the file it says it loaded."""

    name: str
    pid: int = 0
    since: float = 0.0
    loaded: str = ""
    note: str = ""


def look(settings: Settings, pm2_home: str, timeout: float, proc: Proc | None = None, opener: _probe.Opener = _probe.http_open) -> dict[str, Running]:
    """Every component that has a configuration file of its own, and Redis."""
    proc = proc or Proc()
    ports = {component.port for component in settings.components if component.port}
    owners = proc.listeners(port for port in ports if port)
    listed: dict[str, int] = {}
    with contextlib.suppress(Pm2Error, OSError, KeyError):
        uid = pwd.getpwnam(settings.user).pw_uid
        daemon = find_daemon(pm2_home, uid, proc)
        listed = {app.name: app.pid for app in query_daemon(pm2_home, daemon, timeout) if app.pid > 0}
    looked = [component for component in settings.components if component.config or component.kind == "redis"]

    def one(component: Component) -> Running:
        held = sorted(owners.get(component.port or 0, set()))
        pid = held[0] if held else listed.get(component.app, 0) if component.kind == "pm2" else 0
        process = proc.process(pid) if pid else None
        if process is None:
            return Running(component.name, note="it does not run")
        return Running(component.name, pid, time.time() - proc.age(process), *_loaded(component, timeout, opener))

    # side by side: several that hang take no longer than one
    with concurrent.futures.ThreadPoolExecutor(max_workers=8) as pool:
        return {seen.name: seen for seen in pool.map(one, looked)}


def _loaded(component: Component, timeout: float, opener: _probe.Opener) -> tuple[str, str]:
    spec = component.probe_spec()
    if not component.config_digest or spec is None:
        return "", ""
    try:
        response = opener(_probe.Request("GET", spec["url"], None, timeout))
        value = _probe.lookup(_probe.parse_body(response.body), component.config_digest)
    except (_probe.NoAnswer, ValueError, KeyError) as exc:
        return "", f"it does not say what it loaded: {type(exc).__name__}"
    return (value, "") if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) else ("", f"its health names no SHA-256 at {component.config_digest}")


def stale(running: t.Mapping[str, Running], tree: t.Mapping[str, Entry], settings: Settings) -> dict[str, str]:
    """Components that run with other values than their files hold: name -> why. One that tells its digest is believed, of others the times decide."""
    found = {}
    for component in settings.components:
        seen = running.get(component.name)
        path = settings.redis_config if component.kind == "redis" else component.config
        entry = tree.get(path)
        if seen is None or not seen.pid or entry is None or entry.error:
            continue
        if seen.loaded and seen.loaded != digest(entry.data):
            found[component.name] = f"{component.name} runs with other values than {path} holds"
        elif not seen.loaded and seen.since + _CLOCK_GRAIN < entry.mtime:
            found[component.name] = f"{component.name} was started before {path} was written"
    return found


def loaded_gate(running: t.Mapping[str, Running], tree: t.Mapping[str, Entry], settings: Settings, not_before: t.Mapping[str, float]) -> tuple[str, str]:
    """Verdict and evidence: every process uses the files as they are, and those whose file was exchanged started after that."""
    old = stale(running, tree, settings)
    bad, unknown, good = list(old.values()), [], 0
    for component in settings.components:
        seen = running.get(component.name)
        path = settings.redis_config if component.kind == "redis" else component.config
        if seen is None or component.name in old:
            continue
        if not seen.pid:
            if not component.is_job and component.required:
                bad.append(f"{component.name} does not run")
            continue
        changed = max((at for name, at in not_before.items() if component.name in _config.affected([name], contents(tree), settings)), default=0.0)
        if seen.since + _CLOCK_GRAIN < changed:
            bad.append(f"{component.name} was started before its configuration was exchanged")
        elif component.config_digest and not seen.loaded:
            unknown.append(f"{component.name}: {seen.note}")
        else:
            good += 1
        if path not in tree:
            bad.append(f"{path} is missing")
    verdict = _probe.FAIL if bad else _probe.UNKNOWN if unknown or not good else _probe.PASS
    return verdict, "; ".join([*bad, *unknown]) or f"{good} processes use the files as they are" if good or bad or unknown else "no process was looked at"


# --- what was kept ------------------------------------------------------------------------------------------------------------


def kept_copies(path: str, roots: t.Sequence[str]) -> list[tuple[str, float, bytes]]:
    """What recoveries moved aside from this place: beside the file, or beside the directory that it was in. (name, time, content), the oldest first."""
    places = [(os.path.dirname(path), os.path.basename(path), "")]
    for root in roots:
        if path.startswith(root.rstrip("/") + "/"):
            places.append((os.path.dirname(root.rstrip("/")), os.path.basename(root.rstrip("/")), os.path.relpath(path, root)))
    found = []
    for folder, name, rest in places:
        for item in os.listdir(folder) if os.path.isdir(folder) else []:
            if fnmatch.fnmatchcase(item, f"{name}.before-*"):
                copy = os.path.join(folder, item, rest) if rest else os.path.join(folder, item)
                with contextlib.suppress(OSError):
                    if os.path.isfile(copy) and os.path.getsize(copy) <= MAX_SIZE:
                        with open(copy, "rb") as handle:
                            found.append((copy, os.path.getmtime(copy), handle.read()))
    return sorted(found, key=lambda item: item[1])
