# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Start PM2 components in dependency order, each level gated on health, under one deadline."""
from __future__ import annotations

import json
import os
import pwd
import re
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from urllib.parse import urlsplit

from ansible_collections.titan.disaster_recovery.plugins.module_utils._components import Component, here, start_levels
from ansible_collections.titan.disaster_recovery.plugins.module_utils._pm2 import (
    Finding,
    Pm2Error,
    Process,
    Sample,
    Watcher,
    descends,
    find_daemon,
    is_stray,
    strays,
)
from ansible_collections.titan.disaster_recovery.plugins.module_utils._probe import FAIL, PASS, Verdict, call, probe

_POLL = 0.1
# So many restarts right after a start are a crash loop; the rest of the start timeout is not spent on it.
_CRASHES = 3
_TERM_AFTER, _KILL_AFTER, _GIVE_UP_AFTER = 0.5, 3.0, 5.0
FENCE_TABLE = "titan_dr_fence"
# A service that is up already is given this long to halt.
_HALT_WITHIN = 15.0
_DAEMON_WITHIN = 20.0
# What another server may take for its PM2 daemon and for looking around, besides the start timeouts of its components.
_ELSEWHERE = _DAEMON_WITHIN + 10.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class StartError(Exception):
    """Starting cannot go on; the message says why and in which state things are left."""


# --- seams ----------------------------------------------------------------------------------------------------------

# argv, standard input, timeout -> return code, standard output
Command = Callable[[Sequence[str], str, float], tuple[int, str]]


def run_command(argv: Sequence[str], stdin: str, timeout: float) -> tuple[int, str]:
    """Run a command as root; a timeout is a return code like that of timeout(1)."""
    try:
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=max(0.1, timeout), check=False)
    except subprocess.TimeoutExpired:
        return 124, ""
    except OSError:
        return 127, ""
    return done.returncode, done.stdout


def connect(address: str, port: int, timeout: float) -> str:
    """Return why nobody takes a connection there, or nothing."""
    try:
        socket.create_connection((address, port), timeout).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


class Running(Protocol):
    """A PM2 command on its way."""

    def poll(self) -> int | None: ...
    def errors(self) -> str: ...
    def stop(self) -> None: ...


class _Running:
    def __init__(self, argv: Sequence[str], environment: Mapping[str, str], account: pwd.struct_passwd, cwd: str) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the command
        identity: dict[str, Any] = {}
        if os.geteuid() != account.pw_uid:
            groups = os.getgrouplist(account.pw_name, account.pw_gid)
            identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": groups}
        # umask: PM2 writes the whole environment of the services into its dump.
        self._process = subprocess.Popen(
            list(argv), stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, env=dict(environment), cwd=cwd,
            start_new_session=True, umask=0o077, **identity,
        )

    def poll(self) -> int | None:
        return self._process.poll()

    def errors(self) -> str:
        """Return PM2's own error lines only; anything else may quote a configuration file."""
        self._log.seek(0)
        lines = re.sub(r"\x1b\[[0-9;]*m", "", self._log.read(256 * 1024).decode("utf-8", "replace")).splitlines()
        return "; ".join(line.strip()[:200] for line in lines if "[PM2][ERROR]" in line)[:600]

    def stop(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Pm2Cli:
    """Runs the PM2 command as its user. Only ever called while the daemon is alive."""

    def __init__(self, prefix: str, home: str, account: pwd.struct_passwd, environment: Mapping[str, str]) -> None:
        self.executable = os.path.join(prefix, "node_modules/pm2/bin/pm2")
        self.account = account
        # PM2 hands this environment on to every service, so nothing of ours may be in it.
        self.base = {
            "PATH": environment.get("PATH", _PATH),
            "LANG": "C.UTF-8",
            "HOME": account.pw_dir,
            "USER": account.pw_name,
            "LOGNAME": account.pw_name,
            # no banner and no look for a newer version on the network
            "PM2_DISCRETE_MODE": "true",
            "PM2_HOME": home,
        }
        self.environment = {**environment, **self.base}

    def spawn(self, arguments: Sequence[str], extra: Mapping[str, str] | None = None) -> Running:
        cwd = self.account.pw_dir if os.path.isdir(self.account.pw_dir) else "/"
        try:
            return _Running([self.executable, *arguments], {**self.environment, **(extra or {})}, self.account, cwd)
        except (OSError, subprocess.SubprocessError) as error:
            raise StartError(f"{self.executable} could not be run as {self.account.pw_name}: {error}") from error


class Fence:
    """Keeps the services of one user off everything but loopback, with a table of its own in nftables."""

    def __init__(self, uid: int, command: Command = run_command, nft: str | None = "/usr/sbin/nft") -> None:
        self.uid = uid
        self.command = command
        self.nft = nft

    def _nft(self, arguments: Sequence[str], stdin: str = "") -> tuple[int, str]:
        return self.command([str(self.nft), *arguments], stdin, 10.0)

    def usable(self) -> str | None:
        """Return why the fence cannot be used, or None."""
        if self.uid == 0:
            return "the services run as root, and a fence around root would cut off the host"
        return None if self.nft else "nft is not installed"

    def exists(self) -> bool:
        return bool(self.nft) and self._nft(["list", "table", "inet", FENCE_TABLE])[0] == 0

    def up(self) -> None:
        rules = (
            f"table inet {FENCE_TABLE} {{}}\n"
            f"delete table inet {FENCE_TABLE}\n"
            f"table inet {FENCE_TABLE} {{ chain output {{ type filter hook output priority 0; policy accept;"
            f' meta skuid {self.uid} oifname != "lo" counter drop; }}; }}\n'
        )
        code, _out = self._nft(["-f", "-"], rules)
        listed, text = self._nft(["-n", "list", "table", "inet", FENCE_TABLE])
        if code != 0 or listed != 0 or f"skuid {self.uid}" not in text or "drop" not in text:
            raise StartError("the fence could not be put up, so nothing was started")

    def down(self) -> None:
        self._nft(["delete", "table", "inet", FENCE_TABLE])
        if self.exists():
            raise StartError(f"trading is halted, but the fence (nftables table inet {FENCE_TABLE}) could not be removed and keeps the services offline")


def latch_is_set(path: str) -> bool:
    """Tell whether the halt latch is a file that only root could have put there."""
    try:
        seen = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(seen.st_mode) and seen.st_uid in (0, os.geteuid()) and not seen.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def send_signal(process: Process, number: int, lookup: Callable[[int], Process | None]) -> None:
    """Signal exactly this process, even if its id was given to another one in the meantime."""
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:
        return
    try:
        now = lookup(process.pid)
        if now is not None and now.started == process.started:
            signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return
    finally:
        os.close(handle)


# --- the work -------------------------------------------------------------------------------------------------------


@dataclass
class Settings:
    """What the starter is told; times are of the starter's clock."""

    home: str
    ecosystem: str
    end: float
    latch_set: Callable[[], bool]
    latch: str = ""
    require_latch: bool = True
    latch_honoured: bool = True
    halt_call: Mapping[str, Any] | None = None
    unit: str | None = None
    settle: float = 3.0
    user: str = ""
    prefix: str = ""


@dataclass
class Outcome:
    """What happened, filled as it happens, so that a failure can tell it too."""

    changed: bool = False
    findings: dict[str, Finding] = field(default_factory=dict)
    actions: dict[str, str] = field(default_factory=dict)
    durations: dict[str, float] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    fence: str = "none"
    halt: Verdict | None = None
    saved: bool = False

    def result(self) -> dict[str, Any]:
        """Return the shape that the module shows."""
        rows = [
            {**finding.result(), "action": self.actions.get(name, "none"), "duration_s": self.durations.get(name)}
            for name, finding in self.findings.items()
        ]
        gates = [{"name": f"start:{name}", "verdict": finding.verdict, "evidence": finding.evidence} for name, finding in self.findings.items()
                 if not self.actions.get(name, "").startswith("would")]
        if self.halt:
            gates.append(self.halt.gate("start:halt"))
        notes = [*self.notes, *self.ended]
        titan_dr: dict[str, Any] = {"gates": gates, "timings": {f"start:{name}": value for name, value in self.durations.items()}}
        if notes:
            titan_dr["notes"] = notes
        return {
            "changed": self.changed,
            "components": rows,
            "started": sorted(name for name, action in self.actions.items() if action in ("started", "restarted")),
            "fence": self.fence,
            "saved": self.saved,
            "notes": notes,
            "titan_dr": titan_dr,
        }


def halt_component(components: Sequence[Component], halt_call: Mapping[str, Any]) -> Component:
    """Return the component that answers the halt call: the one that owns its port."""
    url = urlsplit(str(halt_call.get("url")))
    port = url.port or (443 if url.scheme == "https" else 80)
    if url.hostname in ("127.0.0.1", "localhost", "::1"):
        for component in components:
            if component.kind == "pm2" and component.port == port:
                return component
    raise StartError(f"no PM2 component of this host listens on port {port} of the halt call, so trading could not be halted after a start")


class Starter:
    """Starts what is not healthy. All effects go through the seams it is given."""

    def __init__(
        self,
        components: Sequence[Component],
        settings: Settings,
        watcher: Watcher,
        cli: Pm2Cli,
        fence: Fence,
        command: Command = run_command,
        caller: Callable[[Mapping[str, Any], float], Verdict] = call,
        signaller: Callable[[Process, int, Callable[[int], Process | None]], None] = send_signal,
        systemd: Callable[[], bool] = lambda: os.path.isdir("/run/systemd/system"),
        connector: Callable[[str, int, float], str] = connect,
    ) -> None:
        self.known = list(components)
        levels = start_levels(self.known)
        self.within: dict[str, float] = {}
        for component in (component for level in levels for component in level):
            self.within[component.name] = component.start_timeout + max((self.within[name] for name in component.depends_on), default=0.0)
        self.levels = [here(level) for level in levels]
        self.components = here(self.known)
        self.pm2 = [component for component in self.components if component.kind == "pm2"]
        self.settings = settings
        self.watcher = watcher
        self.cli = cli
        self.fence = fence
        self.command = command
        self.caller = caller
        self.signaller = signaller
        self.systemd = systemd
        self.connector = connector
        self.outcome = Outcome()
        self.set_aside: list[str] = []
        self.halting: Component | None = None

    # -- time

    def _left(self) -> float:
        return self.settings.end - self.watcher.clock()

    def _in_time(self, doing: str) -> float:
        left = self._left()
        if left <= 0:
            raise StartError(f"the deadline is over while {doing}")
        return left

    # -- looking

    def look(self) -> tuple[Process | None, list[Component]]:
        """Find what has to be started. Changes nothing."""
        self._in_time("looking at the components")
        try:
            daemon = find_daemon(self.settings.home, self.watcher.uid, self.watcher.proc)
        except Pm2Error as error:
            self.outcome.findings = {component.name: Finding(component.name, FAIL, str(error)) for component in self.pm2}
            return None, list(self.pm2)
        findings, _sample = self.watcher.watch(self.pm2, self.settings.settle, self.settings.settle)
        self.outcome.findings = {finding.name: finding for finding in findings}
        # A missing optional component is well, but it is still to be started.
        missing = [finding.name for finding in findings if finding.verdict != PASS or not finding.registered]
        return daemon, [component for component in self.pm2 if component.name in missing]

    # -- acting

    def run(self, check: bool = False) -> Outcome:
        """Start what has to be started."""
        settings, outcome = self.settings, self.outcome
        for component in self._elsewhere(self.pm2):
            if component.port is None or component.is_job:
                raise StartError(f"{component.name} on {component.server} listens on nothing that could be waited for from here")
        if not settings.latch_honoured:
            if not settings.halt_call:
                raise StartError("the services do not honour the latch: halt_call is needed to halt them right after their start")
            self.halting = halt_component(self.pm2, settings.halt_call)
        daemon, wanted = self.look()
        if daemon and settings.unit and settings.unit not in self.watcher.proc.cgroup(daemon.pid):
            outcome.notes.append(f"the PM2 daemon {daemon.pid} does not run in the cgroup of {settings.unit}")
        if wanted and settings.require_latch and not settings.latch_set() and not check:
            needed = [component.name for component in wanted if component.required]
            if needed or daemon is None:
                raise StartError(f"the halt latch {settings.latch} is not set; refusing to start {', '.join(needed)}, because it could trade at once")
            outcome.notes.append(f"optional components were not started, the halt latch is not set: {', '.join(component.name for component in wanted)}")
            wanted = []
        fenced = not settings.latch_honoured and self.fence.exists()
        if check:
            for component in wanted:
                outcome.actions[component.name] = "would restart" if outcome.findings[component.name].registered else "would start"
            if wanted and settings.require_latch and not settings.latch_set():
                outcome.notes.append(f"the halt latch {settings.latch} is not set; a real run would refuse to start anything")
            outcome.changed = bool(wanted) or fenced
            return outcome
        if wanted and not settings.latch_honoured and (why := self.fence.usable()):
            raise StartError(f"the services do not honour the latch and cannot be fenced: {why}; nothing was started")
        if wanted or fenced:
            self._start_all(daemon, wanted)
        self._save()
        return outcome

    def _start_all(self, daemon: Process | None, wanted: list[Component]) -> None:
        if self.halting:
            self.fence.up()
            self.outcome.changed = True
            self.outcome.fence = "up"
            if self.halting not in wanted:
                self._halt(min(_HALT_WITHIN, self._in_time("halting")))
        if daemon is None:
            daemon = self._start_daemon()
        for level in self.levels:
            for component in level:
                if component.kind != "pm2":
                    self._wait_for_port(component)
            members = [component for component in level if component in wanted]
            if members:
                # Only what these need, and not before: another server may be waiting for what was started here so far.
                for component in self._elsewhere(members):
                    self._wait_for_server(component)
                self._start_level(members, daemon)
        if self.halting and self.outcome.fence == "up":
            raise StartError(f"the halt was not confirmed: {self.outcome.halt.evidence if self.outcome.halt else 'no answer'}; the fence stays up")

    def _wait_for_port(self, component: Component) -> None:
        """Gate on a component that PM2 does not run."""
        if component.port is None:
            raise StartError(f"{component.name} listens on nothing that could be waited for")
        limit = min(self.settings.end, self.watcher.clock() + component.start_timeout)
        while not (owners := self.watcher.proc.listeners([component.port])):
            if self.watcher.clock() >= limit:
                finding = Finding(component.name, FAIL, f"nothing listens on port {component.port}")
                self.outcome.findings[component.name] = finding
                raise StartError(f"{component.name} is not up: {finding.evidence}; what depends on it was not started")
            self.watcher.sleep(_POLL)
        pids = ", ".join(map(str, sorted(owners[component.port]))) or "that cannot be seen"
        self.outcome.findings[component.name] = Finding(component.name, PASS, f"port {component.port} is listened on by process {pids}")

    def _elsewhere(self, members: Sequence[Component]) -> list[Component]:
        """What these depend on that is on other servers."""
        needed = {name for component in members for name in component.depends_on}
        return [component for component in self.known if component.remote and component.name in needed]

    def _wait_for_server(self, component: Component) -> None:
        """Gate on a component of another server, which is started there meanwhile."""
        watcher = self.watcher
        within = self.within[component.name] + _ELSEWHERE
        limit = min(self.settings.end, watcher.clock() + within)
        spec, port = component.probe_spec(), component.port or 0
        while True:
            if spec:
                answer = (watcher.prober or probe)(spec, watcher.timeout)
                up, evidence = answer.verdict == PASS, answer.evidence
            else:
                why = self.connector(component.address, port, watcher.timeout)
                up, evidence = not why, f"{component.address}:{port}: {why or 'takes connections'}"
            if up or watcher.clock() >= limit:
                break
            watcher.sleep(_POLL)
        self.outcome.findings[component.name] = Finding(component.name, PASS if up else FAIL, f"on {component.server}: {evidence}")
        if not up:
            raise StartError(f"{component.name} on {component.server} is not up within {within:g} s: {evidence}; what depends on it was not started")

    def _start_daemon(self) -> Process:
        settings = self.settings
        # The dump is from before the disaster: resurrecting it would start everything at once, in old versions.
        for name in ("dump.pm2", "dump.pm2.bak"):
            path = os.path.join(settings.home, name)
            if os.path.lexists(path):
                os.rename(path, f"{path}.set-aside")
                self.set_aside.append(f"{path}.set-aside")
        self.outcome.changed = True
        if settings.unit:
            # Enabled for the next boot; this also makes systemd read a unit that was just restored.
            code, _out = self.command(["systemctl", "enable", "--quiet", settings.unit], "", 10.0)
            if code != 0:
                raise StartError(f"{settings.unit} cannot be enabled (return code {code}): it is part of the configuration and must have been restored")
            # restart, not start: what a dead daemon left behind in the unit's cgroup ends with it.
            self.command(["systemctl", "reset-failed", settings.unit], "", 10.0)
            code, _out = self.command(["systemctl", "restart", settings.unit], "", self._in_time("starting the PM2 daemon"))
            what = settings.unit
        elif self.systemd():
            what = f"titan-dr-pm2-{settings.user}.service"
            code, _out = self.command(
                ["systemd-run", "--quiet", "--collect", f"--unit={what}", f"--uid={settings.user}", "--property=Type=forking",
                 f"--property=PIDFile={settings.home}/pm2.pid", "--property=KillMode=mixed", "--property=LimitNOFILE=65536",
                 *(f"--setenv={key}={value}" for key, value in sorted(self.cli.base.items())), self.cli.executable, "ping"],
                "", self._in_time("starting the PM2 daemon"),
            )
            self.outcome.notes.append(f"the PM2 daemon was started in the transient unit {what}; a reboot starts nothing")
        else:
            raise StartError("there is no PM2 daemon, no unit was given and this host has no systemd; a daemon started here would end with this session")
        limit = min(settings.end, self.watcher.clock() + _DAEMON_WITHIN)
        while True:
            try:
                daemon = find_daemon(settings.home, self.watcher.uid, self.watcher.proc)
                self.watcher.query(settings.home, daemon, self.watcher.timeout)
            except Pm2Error as error:
                if code != 0 or self.watcher.clock() >= limit:
                    raise StartError(f"the PM2 daemon did not start in {what} (return code {code}): {error}") from error
                self.watcher.sleep(_POLL)
                continue
            if what not in self.watcher.proc.cgroup(daemon.pid):
                self.outcome.notes.append(f"the PM2 daemon {daemon.pid} does not run in the cgroup of {what}")
            return daemon

    def _pm2(self, daemon: Process, arguments: Sequence[str], extra: Mapping[str, str] | None = None) -> Running:
        """Run a PM2 command, but never without its daemon: it would start another one."""
        try:
            now = find_daemon(self.settings.home, self.watcher.uid, self.watcher.proc)
        except Pm2Error as error:
            raise StartError(f"the PM2 daemon went away: {error}") from error
        if (now.pid, now.started) != (daemon.pid, daemon.started):
            raise StartError(f"the PM2 daemon {daemon.pid} was replaced by {now.pid} during the start")
        return self.cli.spawn(arguments, extra)

    def _finish(self, running: Running, doing: str) -> None:
        try:
            while running.poll() is None:
                self._in_time(doing)
                self.watcher.sleep(0.05)
        finally:
            running.stop()

    def _sample(self) -> Sample:
        try:
            return self.watcher.sample(self.components)
        except Pm2Error as error:
            raise StartError(f"PM2 cannot be asked any more: {error}") from error

    def _clear(self, members: Sequence[Component], daemon: Process | None) -> None:
        """Take away what is registered, and prove that its processes and ports are gone."""
        sample = self._sample()
        apps = [app for app in sample.apps if app.name in {component.app for component in members}]
        old: dict[int, Process] = {
            process.pid: process
            for app in apps
            if app.pid > 0 and app.exec_mode != "cluster_mode"
            for process in sample.processes.values()
            if descends(process.pid, app.pid, sample.processes)
        }
        if apps and daemon:
            self.outcome.changed = True
            running = self._pm2(daemon, ["delete", *(str(app.pm_id) for app in apps)])
            self._finish(running, "deleting applications")
        began = self.watcher.clock()
        signalled: dict[int, int] = {}
        while True:
            sample = self._sample()
            if left := [app.name for app in sample.apps if app.name in {component.app for component in members}]:
                raise StartError(f"PM2 did not delete {', '.join(left)}")
            found: dict[int, str] = {
                pid: "outlived its deletion" for pid, process in old.items() if pid in sample.processes and sample.processes[pid].started == process.started
            }
            for component in members:
                found.update(strays(component, sample))
                if component.port is not None and sample.listeners.get(component.port) == set():
                    found.setdefault(0, f"holds port {component.port}")
            if not found:
                return
            waited = self.watcher.clock() - began
            for pid, why in sorted(found.items()):
                process = sample.processes.get(pid)
                name = self.watcher.proc.comm(pid) if process else "cannot be seen"
                if process is None or not is_stray(pid, self.watcher.uid, daemon.pid if daemon else None, sample.processes):
                    if process is None and waited < _TERM_AFTER:  # it is just ending
                        continue
                    raise StartError(f"process {pid} ({name}) {why} and is not a left-over of PM2; it was not touched and nothing was started in its place")
                if waited >= _GIVE_UP_AFTER:
                    raise StartError(f"process {pid} ({name}) {why} and does not end")
                number = signal.SIGKILL if waited >= _KILL_AFTER else signal.SIGTERM
                if waited >= _TERM_AFTER and signalled.get(pid) != number:
                    if pid not in signalled:
                        self.outcome.ended.append(f"ended the orphan process {pid} ({name}), which {why}")
                    signalled[pid] = number
                    self.outcome.changed = True
                    self.signaller(process, number, self.watcher.proc.process)
            self._in_time("waiting for old processes to end")
            self.watcher.sleep(0.1)

    def _start_level(self, members: list[Component], daemon: Process) -> None:
        settings, outcome, watcher = self.settings, self.outcome, self.watcher
        if settings.require_latch and not settings.latch_set():
            raise StartError(f"the halt latch {settings.latch} was taken away during the start; nothing more was started")
        self._in_time(f"starting {members[0].name}")
        self._clear(members, daemon)
        for component in members:
            outcome.actions[component.name] = "restarted" if outcome.findings[component.name].registered else "started"
        began = watcher.clock()
        names = ",".join(component.app for component in members)
        running = self._pm2(daemon, ["start", settings.ecosystem, "--only", names], {"PM2_CONCURRENT_ACTIONS": str(len(members))})
        # What no probe can vouch for has to stay up for a while.
        uptime = {component.name: 0.0 if component.health else settings.settle for component in members}
        waiting = list(members)
        try:
            while waiting or (self.halting in members and outcome.fence == "up"):
                ended = running.poll() is not None
                sample = self._sample()
                if self.halting in members and outcome.fence == "up":
                    self._try_halt(sample)
                for finding in watcher.judge(waiting, sample, None, uptime):
                    component = next(item for item in waiting if item.name == finding.name)
                    passed = finding.verdict == PASS and finding.registered and finding.settled
                    why = self._hopeless(component, finding, ended, running, began)
                    outcome.changed |= finding.registered
                    if not passed and not why:
                        continue
                    waiting.remove(component)
                    outcome.findings[component.name] = finding if passed else replace(finding, verdict=FAIL, evidence=why)
                    outcome.durations[component.name] = round(watcher.clock() - began, 3)
                    if why and not passed:
                        self._give_up(component, finding, daemon, sample)
                if waiting or (self.halting in members and outcome.fence == "up"):
                    if self._left() <= 0:
                        seen = outcome.halt.evidence if outcome.halt else "it never listened"
                        raise StartError(f"the deadline is over before the halt was confirmed: {seen}; the fence stays up")
                    watcher.sleep(_POLL)
            # Everybody is well; PM2's command ends soon, and what it still waits for is of no interest.
            limit = min(settings.end, watcher.clock() + 2.0)
            while running.poll() is None and watcher.clock() < limit:
                watcher.sleep(0.05)
        finally:
            running.stop()

    def _hopeless(self, component: Component, finding: Finding, ended: bool, running: Running, began: float) -> str:
        """Return why there is no use in waiting any longer, or nothing."""
        waited = self.watcher.clock() - began
        if ended and not finding.registered:
            return f"PM2 did not take {component.app} from {self.settings.ecosystem}: {running.errors() or 'it is not in the file'}"
        if not component.is_job and (finding.restarts or 0) >= _CRASHES:
            return f"crash loop: {finding.restarts} restarts within {waited:.1f} s; {finding.evidence}"
        if "state is errored" in finding.evidence:
            return finding.evidence
        if waited >= component.start_timeout:
            return f"not healthy within its start timeout of {component.start_timeout:g} s; {finding.evidence}"
        if self._left() <= 0:
            return f"not healthy when the deadline was over; {finding.evidence}"
        return ""

    def _give_up(self, component: Component, finding: Finding, daemon: Process, sample: Sample) -> None:
        evidence = self.outcome.findings[component.name].evidence
        if component.required:
            fence = "; the fence stays up" if self.outcome.fence == "up" else ""
            raise StartError(f"{component.name} did not start: {evidence}; what depends on it was not started{fence}")
        dependents = [other.name for other in self.known if component.name in other.depends_on and other.required]
        if dependents:
            raise StartError(f"{component.name} did not start: {evidence}; {', '.join(dependents)} depends on it")
        ids = [str(app.pm_id) for app in sample.apps if app.name == component.app]
        if ids:
            self._finish(self._pm2(daemon, ["delete", *ids]), f"deleting {component.name}")
        else:
            del self.outcome.actions[component.name]
        self.outcome.durations.pop(component.name, None)
        self.outcome.findings[component.name] = Finding(component.name, PASS, f"optional and not running: {evidence}")
        self.outcome.notes.append(f"optional component {component.name} was left out: {evidence}")

    # -- halting

    def _try_halt(self, sample: Sample) -> None:
        if self.halting is not None and sample.listeners.get(self.halting.port or 0):
            self._halt(min(2.0, max(0.2, self._left())), final=False)

    def _halt(self, timeout: float, final: bool = True) -> None:
        """Halt trading and take the fence down once that is confirmed; else the fence stays."""
        if self.settings.halt_call is None:
            raise StartError("there is no halt_call, so a halt cannot be confirmed; the fence stays up")
        verdict = self.caller(self.settings.halt_call, timeout)
        self.outcome.halt = verdict
        if verdict.verdict == PASS:
            self.fence.down()
            self.outcome.fence = "removed"
            self.outcome.changed = True
        elif final:
            raise StartError(f"the halt was not confirmed: {verdict.evidence}; the fence stays up")

    # -- the dump

    def _save(self) -> None:
        """Save PM2's list for the next boot, when it is not what is running."""
        try:
            daemon = find_daemon(self.settings.home, self.watcher.uid, self.watcher.proc)
            apps = {app.name for app in self.watcher.query(self.settings.home, daemon, self.watcher.timeout)}
        except Pm2Error as error:
            raise StartError(f"PM2 cannot be asked any more: {error}") from error
        path = os.path.join(self.settings.home, "dump.pm2")
        if not self.outcome.changed and dumped_names(path) == apps:
            return
        self._finish(self._pm2(daemon, ["save"]), "saving PM2's list")
        if dumped_names(path) != apps:
            raise StartError(f"{path} does not hold what is running; a reboot would not bring it back")
        self.outcome.changed = self.outcome.saved = True
        for old in self.set_aside:
            os.unlink(old)
        for name in (path, f"{path}.bak"):
            if os.path.isfile(name) and not os.path.islink(name):
                os.chmod(name, 0o600)


def dumped_names(path: str) -> set[str] | None:
    """Return the names in PM2's dump, or None when it cannot be read. Its environment is not looked at."""
    try:
        with open(path, "rb") as handle:
            items = json.loads(handle.read())
        return {str(item["name"]) for item in items}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def monotonic_end(deadline: float | None, timeout: float | None) -> float:
    """Return the end in monotonic time, of epoch seconds or of seconds from now."""
    if deadline is not None:
        return time.monotonic() + (deadline - time.time())
    return time.monotonic() + float(timeout or 0)
