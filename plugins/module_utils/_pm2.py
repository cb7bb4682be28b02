# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""What PM2 says about its processes, and whether the kernel agrees.

PM2 is asked over the socket of its daemon, never through its command: the command starts a
daemon of its own when it finds none, and then truthfully answers that it has no processes.
Nothing of C(pm2_env) but a few harmless fields is ever kept: it holds every secret in clear text.
"""
from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ansible_collections.titan.disaster_recovery.plugins.module_utils._components import Component
from ansible_collections.titan.disaster_recovery.plugins.module_utils._probe import FAIL, PASS, UNKNOWN, Verdict, probe, worst

_T = TypeVar("_T")
_MAX_REPLY = 32 * 1024 * 1024
_POLL = 0.25
# States in which PM2 claims that there is a process.
_RUNNING = ("online", "launching", "stopping", "one-launch-status")


class Pm2Error(Exception):
    """PM2 could not be asked. The verdict says whether that is a fail (no daemon) or unknown (no answer)."""

    def __init__(self, message: str, verdict: str = FAIL) -> None:
        super().__init__(message)
        self.verdict = verdict


# --- what PM2 says --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class App:
    """One process of PM2's list, without its environment."""

    name: str
    pm_id: int
    pid: int
    status: str
    restarts: int
    memory: int
    exec_mode: str = "fork_mode"
    exit_code: int | None = None
    error_log: str = ""


def _number(value: object) -> int:
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0


def parse_apps(items: object) -> list[App]:
    """Take what is needed from PM2's process list."""
    if not isinstance(items, list):
        raise Pm2Error("PM2 answered something that is not a list", UNKNOWN)
    apps = []
    for index, item in enumerate(items):
        env = item.get("pm2_env") if isinstance(item, Mapping) else None
        name = item.get("name") if isinstance(item, Mapping) else None
        if not isinstance(env, Mapping) or not isinstance(name, str) or not isinstance(env.get("status"), str):
            raise Pm2Error(f"process {index} of PM2's list has no name or no state", UNKNOWN)
        monit = item.get("monit")
        exit_code = env.get("exit_code")
        apps.append(
            App(
                name=name,
                pm_id=_number(item.get("pm_id")),
                pid=_number(item.get("pid")),
                status=env["status"],
                restarts=_number(env.get("restart_time")),
                memory=_number(monit.get("memory")) if isinstance(monit, Mapping) else 0,
                exec_mode=str(env.get("exec_mode") or "fork_mode"),
                exit_code=exit_code if isinstance(exit_code, int) else None,
                error_log=str(env.get("pm_err_log_path") or ""),
            )
        )
    return apps


def parse_jlist(text: str) -> list[App]:
    """Parse the output of C(pm2 jlist); PM2 may print notices before (and after) the JSON."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r"^\s*\[", text, re.MULTILINE):
        try:
            value, _end = decoder.raw_decode(text, match.end() - 1)
        except ValueError:
            continue
        # A notice such as "[]" cannot be told from an empty list; "[PM2] ..." does not parse.
        if isinstance(value, list) and all(isinstance(item, dict) for item in value):
            return parse_apps(value)
    raise Pm2Error("the output of PM2 holds no process list", UNKNOWN)


def encode_message(*arguments: object) -> bytes:
    """Encode a message of PM2's socket: version 1, JSON (j:) and text (s:) arguments."""
    parts = [f"s:{item}".encode() if isinstance(item, str) else b"j:" + json.dumps(item).encode() for item in arguments]
    return bytes([0x10 | len(parts)]) + b"".join(struct.pack(">I", len(part)) + part for part in parts)


def decode_message(read: Callable[[int], bytes]) -> list[Any]:
    """Decode one message; C(read) returns exactly as many bytes as asked for."""
    meta = read(1)[0]
    if meta >> 4 != 1:
        raise Pm2Error("the daemon speaks an unknown protocol", UNKNOWN)
    arguments: list[Any] = []
    total = 0
    for _index in range(meta & 0x0F):
        (length,) = struct.unpack(">I", read(4))
        total += length
        if total > _MAX_REPLY:
            raise Pm2Error("the answer of the daemon is too long", UNKNOWN)
        blob = read(length)
        arguments.append(json.loads(blob[2:]) if blob[:2] == b"j:" else blob[2:].decode("utf-8", "replace") if blob[:2] == b"s:" else None)
    return arguments


# --- what the kernel says -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Process:
    """One process; C(started) in clock ticks makes it unique where a process id alone is not."""

    pid: int
    ppid: int
    uid: int
    state: str
    started: int

    @property
    def alive(self) -> bool:
        return self.state not in ("Z", "X")


class Proc:
    """The seam to the kernel: reads /proc and nothing else."""

    def __init__(self, root: str = "/proc") -> None:
        self.root = root
        self.ticks = os.sysconf("SC_CLK_TCK")

    def _read(self, *path: object) -> bytes:
        try:
            with open(os.path.join(self.root, *map(str, path)), "rb") as handle:
                return handle.read()
        except OSError:
            return b""

    def _as_owner(self, pid: object, look: Callable[[], _T]) -> _T:
        """Look at a process; as its owner where root alone may not, as in containers without CAP_SYS_PTRACE."""
        try:
            return look()
        except PermissionError:
            owner, group = os.stat(os.path.join(self.root, str(pid))), os.getegid()
            if os.geteuid() != 0 or owner.st_uid == 0:
                raise
            os.setegid(owner.st_gid)
            os.seteuid(owner.st_uid)
            try:
                return look()
            finally:
                os.seteuid(0)
                os.setegid(group)

    def process(self, pid: int) -> Process | None:
        """Return the process, or None when there is none (or only its zombie)."""
        head, _paren, rest = self._read(pid, "stat").rpartition(b")")
        fields = rest.split()
        uid = re.search(rb"^Uid:\s+(\d+)", self._read(pid, "status"), re.MULTILINE)
        if not head or len(fields) < 20 or not uid:
            return None
        found = Process(pid, int(fields[1]), int(uid.group(1)), fields[0].decode(), int(fields[19]))
        return found if found.alive else None

    def processes(self) -> dict[int, Process]:
        """Return all processes."""
        found = (self.process(int(entry)) for entry in os.listdir(self.root) if entry.isdigit())
        return {process.pid: process for process in found if process}

    def age(self, process: Process) -> float:
        """Return the seconds since the process started; it does not depend on the wall clock."""
        uptime = self._read("uptime").split()
        return max(0.0, float(uptime[0]) - process.started / self.ticks) if uptime else 0.0

    def cmdline(self, pid: int) -> str:
        return self._read(pid, "cmdline").replace(b"\0", b" ").decode("utf-8", "replace").strip()

    def variable(self, pid: int, name: str) -> str | None:
        """Return one variable of the environment the process was started with."""
        prefix = name.encode() + b"="

        def look() -> bytes:
            with open(os.path.join(self.root, str(pid), "environ"), "rb") as handle:
                return handle.read()

        try:
            environment = self._as_owner(pid, look)
        except OSError:
            return None
        for entry in environment.split(b"\0"):
            if entry.startswith(prefix):
                return entry[len(prefix):].decode("utf-8", "replace")
        return None

    def comm(self, pid: int) -> str:
        """Return the short name of a process; its command line may hold secrets."""
        return self._read(pid, "comm").decode("utf-8", "replace").strip()

    def cgroup(self, pid: int) -> str:
        return self._read(pid, "cgroup").decode("utf-8", "replace")

    def listeners(self, ports: Iterable[int]) -> dict[int, set[int]]:
        """Return for each of the ports that is listened on the processes that hold the socket (maybe none that we may see)."""
        wanted = set(ports)
        inodes: dict[str, int] = {}
        for table in ("tcp", "tcp6"):
            for line in self._read("net", table).decode("ascii", "replace").splitlines()[1:]:
                fields = line.split()
                if len(fields) > 9 and fields[3] == "0A":
                    port = int(fields[1].rpartition(":")[2], 16)
                    if port in wanted:
                        inodes[f"socket:[{fields[9]}]"] = port
        owners: dict[int, set[int]] = {port: set() for port in inodes.values()}
        if inodes:
            for entry in os.listdir(self.root):
                if entry.isdigit():
                    for link in self._links(entry):
                        if link in inodes:
                            owners[inodes[link]].add(int(entry))
        return owners

    def _links(self, pid: str) -> list[str]:
        folder = os.path.join(self.root, pid, "fd")

        def look() -> list[str]:
            links = []
            for name in os.listdir(folder):
                with contextlib.suppress(FileNotFoundError):  # closed in the meantime
                    links.append(os.readlink(os.path.join(folder, name)))
            return links

        try:
            return self._as_owner(pid, look)
        except OSError:  # gone in the meantime, or not ours to see
            return []


def descends(pid: int, ancestor: int, processes: Mapping[int, Process]) -> bool:
    """Tell whether pid is ancestor or one of its descendants."""
    seen: set[int] = set()
    while pid not in seen:
        if pid == ancestor:
            return True
        seen.add(pid)
        process = processes.get(pid)
        if process is None:
            return False
        pid = process.ppid
    return False


def is_stray(pid: int, uid: int, daemon: int | None, processes: Mapping[int, Process]) -> bool:
    """Tell whether a process is a left-over of PM2 that may be ended.

    It and all its parents up to the PM2 daemon or init belong to the user. What hangs below a
    login, a cron daemon or another service of another user is somebody else's and stays.
    """
    seen: set[int] = set()
    while pid not in seen:
        seen.add(pid)
        process = processes.get(pid)
        if process is None or process.uid != uid or pid == 1:
            return False
        if process.ppid in (0, 1) or (daemon is not None and process.ppid == daemon):
            return True
        pid = process.ppid
    return False


# --- the daemon -----------------------------------------------------------------------------------------------------


def _read_pid_file(path: str) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as handle:
        if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
            raise ValueError("not a file")
        return int(handle.read(32))


def find_daemon(home: str, uid: int, proc: Proc) -> Process:
    """Return the PM2 daemon of this user and this PM2_HOME. Reads only; it cannot start one."""
    path = os.path.join(home, "pm2.pid")
    try:
        pid = _read_pid_file(path)
    except (OSError, ValueError) as error:
        raise Pm2Error(f"no PM2 daemon for {home}: {path}: {getattr(error, 'strerror', None) or error}") from error
    process = proc.process(pid)
    if process is None:
        raise Pm2Error(f"no PM2 daemon for {home}: process {pid} of its pid file is not alive")
    title = proc.cmdline(pid)
    # The title may be cut short by the kernel, so the home is taken from the environment.
    if not (title.startswith("PM2 v") and "God D" in title) and not title.endswith("/pm2/lib/Daemon.js"):
        raise Pm2Error(f"no PM2 daemon for {home}: process {pid} of its pid file is something else")
    if process.uid != uid:
        raise Pm2Error(f"the PM2 daemon {pid} of {home} runs as uid {process.uid}, not {uid}")
    its_home = proc.variable(pid, "PM2_HOME")
    if its_home is None or os.path.realpath(its_home) != os.path.realpath(home):
        raise Pm2Error(f"the PM2 daemon {pid} has PM2_HOME {its_home}, not {home}")
    return process


def query_daemon(home: str, daemon: Process, timeout: float) -> list[App]:
    """Ask the daemon for its processes over its socket, after making sure who listens there."""
    end = time.monotonic() + timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:

        def read(count: int) -> bytes:
            chunks = []
            while count:
                left = end - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                link.settimeout(left)
                chunk = link.recv(min(count, 65536))
                if not chunk:
                    raise ConnectionError("closed")
                chunks.append(chunk)
                count -= len(chunk)
            return b"".join(chunks)

        try:
            link.settimeout(timeout)
            link.connect(os.path.join(home, "rpc.sock"))
            pid, uid, _gid = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
            if (pid, uid) != (daemon.pid, daemon.uid):
                raise Pm2Error(f"the socket of {home} is held by process {pid} of uid {uid}, not by the daemon {daemon.pid}", UNKNOWN)
            link.sendall(encode_message({"type": "call", "method": "getMonitorData", "args": [{}]}, "titan:0"))
            reply = decode_message(read)
        except TimeoutError as error:
            raise Pm2Error(f"the PM2 daemon {daemon.pid} did not answer within {timeout:g} s", UNKNOWN) from error
        except (OSError, ValueError, RecursionError) as error:
            raise Pm2Error(f"the PM2 daemon {daemon.pid} could not be asked: {type(error).__name__}", UNKNOWN) from error
    if not reply or not isinstance(reply[0], Mapping) or not isinstance(reply[0].get("args"), list) or not reply[0]["args"]:
        raise Pm2Error(f"the PM2 daemon {daemon.pid} refused to list its processes", UNKNOWN)
    return parse_apps(reply[0]["args"][0])


# --- the verdict ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """Everything seen at one moment."""

    at: float
    apps: list[App]
    processes: Mapping[int, Process]
    listeners: Mapping[int, set[int]]
    ages: Mapping[int, float]
    daemon: int
    uid: int
    # processes that were started by PM2 under the name of an application: name -> pids
    named: Mapping[str, set[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """The verdict on one component."""

    name: str
    verdict: str
    evidence: str
    pid: int = 0
    restarts: int | None = None
    uptime_s: float | None = None
    memory_bytes: int | None = None
    # False: all is well so far, but it has not been up for long enough to say so
    settled: bool = True
    registered: bool = False

    def result(self) -> dict[str, Any]:
        """Return what a module may show."""
        return {
            "name": self.name,
            "verdict": self.verdict,
            "evidence": self.evidence,
            "pid": self.pid,
            "restarts": self.restarts,
            "uptime_s": self.uptime_s,
            "memory_bytes": self.memory_bytes,
        }


def strays(component: Component, sample: Sample) -> dict[int, str]:
    """Return the processes that stand in the place of a component without belonging to it: pid -> why."""
    pids = [app.pid for app in sample.apps if app.name == component.app and app.pid > 0]
    clustered = any(app.name == component.app and app.exec_mode == "cluster_mode" for app in sample.apps)

    def ours(pid: int) -> bool:
        # In cluster mode the daemon itself holds the listening socket.
        return (clustered and pid == sample.daemon) or any(descends(pid, parent, sample.processes) for parent in pids)

    found = {pid: f"runs as {component.app} but is not known to PM2" for pid in sample.named.get(component.app, set()) if not ours(pid)}
    if component.port is not None:
        found.update({pid: f"holds port {component.port}" for pid in sample.listeners.get(component.port, set()) if not ours(pid)})
    return found


def _name_strays(found: Mapping[int, str], sample: Sample) -> str:
    parts = []
    for pid, why in sorted(found.items()):
        process = sample.processes.get(pid)
        parts.append(f"process {pid}{f' of uid {process.uid}' if process else ''} {why}")
    return ", ".join(parts)


def judge(component: Component, sample: Sample, first: Sample | None = None, min_uptime: float = 0.0) -> Finding:
    """Judge one PM2 component by one sample, compared with the first one of the window."""
    mine = [app for app in sample.apps if app.name == component.app]
    extra = strays(component, sample)
    if not mine:
        if extra:
            return Finding(component.name, FAIL, f"PM2 does not know {component.app}, but {_name_strays(extra, sample)}")
        if not component.required:
            return Finding(component.name, PASS, f"PM2 does not know {component.app}; it is optional")
        return Finding(component.name, FAIL, f"PM2 does not know {component.app}")
    app = mine[0]
    process = sample.processes.get(app.pid) if app.pid > 0 else None
    uptime = sample.ages.get(app.pid) if process else None
    finding = Finding(
        component.name, PASS, "", pid=app.pid, restarts=app.restarts, uptime_s=None if uptime is None else round(uptime, 1),
        memory_bytes=app.memory, registered=True,
    )
    problems: list[str] = []
    if len(mine) > 1:
        problems.append(f"PM2 has {len(mine)} processes of the name {component.app}")
    if app.status not in component.pm2_status:
        problems.append(f"state is {app.status}, expected {' or '.join(component.pm2_status)}")
    before = [old for old in first.apps if old.name == component.app] if first else []
    if before and not component.is_job:
        delta = app.restarts - before[0].restarts
        if delta or app.pm_id != before[0].pm_id:
            problems.append(f"{delta} restarts within {sample.at - first.at:.1f} s" if delta > 0 and first else "was registered anew during the check")
    running = app.status in _RUNNING
    if running:
        if process is None:
            problems.append(f"process {app.pid} is not alive")
        elif process.uid != sample.uid:
            problems.append(f"process {app.pid} belongs to uid {process.uid}, not {sample.uid}")
        elif component.port is not None and not component.is_job:
            holders = sample.listeners.get(component.port)
            if holders is None:
                problems.append(f"nothing listens on port {component.port}")
            elif not holders:
                problems.append(f"the owner of port {component.port} cannot be seen")
    if extra:
        problems.append(_name_strays(extra, sample))
    seen = f"state {app.status}, {app.restarts} restarts"
    if not running and app.exit_code is not None:
        seen += f", last exit code {app.exit_code}"
    if process:
        seen += f", process {app.pid} up {uptime or 0:.1f} s"
        if component.port is not None and not problems:
            seen += f", owns port {component.port}"
    if problems:
        return replace(finding, verdict=FAIL, evidence=f"{'; '.join(problems)} ({seen})" + (f"; see {app.error_log}" if app.error_log else ""))
    settled = not running or component.is_job or (uptime or 0.0) >= min_uptime
    return replace(finding, evidence=seen, settled=settled)


Prober = Callable[[Mapping[str, Any], float], Verdict]


class Watcher:
    """Takes samples and judges components; kernel, daemon, probes and clock are passed in."""

    def __init__(
        self,
        home: str,
        uid: int,
        proc: Proc | None = None,
        timeout: float = 5.0,
        query: Callable[[str, Process, float], list[App]] = query_daemon,
        prober: Prober | None = probe,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.home = home
        self.uid = uid
        self.proc = proc or Proc()
        self.timeout = timeout
        self.query = query
        self.prober = prober
        self.clock = clock
        self.sleep = sleep

    def kernel_view(self, components: Iterable[Component], apps: list[App], daemon: int) -> Sample:
        """Put together a sample from a list of applications and what the kernel says now."""
        ports = {component.port for component in components if component.port is not None}
        processes = self.proc.processes()
        named: dict[str, set[int]] = {}
        real_home = os.path.realpath(self.home)
        for process in processes.values():
            # PM2 starts each application with its name and pm_id in the environment.
            if process.uid == self.uid and process.pid != daemon and self.proc.variable(process.pid, "pm_id") is not None:
                home = self.proc.variable(process.pid, "PM2_HOME")
                name = self.proc.variable(process.pid, "name")
                if name and home and os.path.realpath(home) == real_home:
                    named.setdefault(name, set()).add(process.pid)
        ages = {app.pid: self.proc.age(processes[app.pid]) for app in apps if app.pid in processes}
        return Sample(self.clock(), apps, processes, self.proc.listeners(ports), ages, daemon, self.uid, named)

    def sample(self, components: Iterable[Component]) -> Sample:
        """Take a sample. Raises Pm2Error when there is no daemon to ask."""
        daemon = find_daemon(self.home, self.uid, self.proc)
        return self.kernel_view(components, self.query(self.home, daemon, self.timeout), daemon.pid)

    def judge(self, components: list[Component], sample: Sample, first: Sample | None, min_uptime: Mapping[str, float]) -> list[Finding]:
        """Judge all components; those that PM2 and the kernel call well are asked themselves, in parallel."""
        findings = [judge(component, sample, first, min_uptime.get(component.name, 0.0)) for component in components]
        asked = [
            (index, spec)
            for index, (component, finding) in enumerate(zip(components, findings, strict=True))
            if finding.verdict == PASS and finding.pid and self.prober and not component.is_job and (spec := component.probe_spec())
        ]
        if asked:
            prober = self.prober or probe
            with ThreadPoolExecutor(max_workers=len(asked)) as pool:
                answers = list(pool.map(lambda item: prober(item[1], self.timeout), asked))
            for (index, _spec), answer in zip(asked, answers, strict=True):
                findings[index] = replace(findings[index], verdict=answer.verdict, evidence=f"{findings[index].evidence}; {answer.evidence}")
        return findings

    def watch(self, components: list[Component], window: float, min_uptime: float = 0.0, first: Sample | None = None) -> tuple[list[Finding], Sample]:
        """Judge over a window, which began with the sample `first` if there is one. Who has been up for longer than the window already needs no waiting for."""
        sample = self.sample(components)
        first = first or sample
        needed = max(window, min_uptime)
        broken: dict[str, Finding] = {}
        while True:
            over = sample.at - first.at >= window
            limit = min_uptime if over else needed
            findings = self.judge(components, sample, first, {component.name: limit for component in components})
            for finding in findings:
                if finding.verdict == FAIL and finding.name not in broken and "restarts within" in finding.evidence:
                    broken[finding.name] = finding
            findings = [broken.get(finding.name, finding) for finding in findings]
            # also one that does not answer yet: it may be between two crashes
            pending = [finding for finding in findings if finding.verdict != FAIL and not finding.settled]
            if over or not pending:
                young = {finding.name for finding in pending}
                short = f"up for less than the {limit:g} s that are asked for"
                return [
                    replace(finding, verdict=FAIL, evidence=f"{short} ({finding.evidence})") if finding.name in young else finding for finding in findings
                ], sample
            self.sleep(min(_POLL, max(0.01, window - (sample.at - first.at))))
            sample = self.sample(components)


def overall(findings: Iterable[Finding]) -> str:
    """Combine the verdicts of components."""
    return worst(finding.verdict for finding in findings)
