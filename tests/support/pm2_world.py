# SPDX-License-Identifier: GPL-3.0-or-later
"""A host with PM2 in memory, for the tests of what starts and stops its components."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _start, _stop
from ansible_collections.titan.disaster_recovery.plugins.module_utils._components import parse_components
from ansible_collections.titan.disaster_recovery.plugins.module_utils._pm2 import App, Pm2Error, Process, Sample, Watcher
from ansible_collections.titan.disaster_recovery.plugins.module_utils._probe import Verdict
from ansible_collections.titan.disaster_recovery.plugins.module_utils._start import Fence, Settings, Starter

UID, DAEMON = 1000, 10


def raw(name: str, *depends_on: str, port: int | None = None, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "pm2", "depends_on": list(depends_on), "port": port, "start_timeout": 10, **more}


GUIDE = [
    {"name": "redis", "kind": "redis", "port": 6379, "start_timeout": 3},
    raw("brain", "redis", port=3000, health={"path": "/health"}),
    raw("phase1", "brain", port=3002, health={"path": "/health"}),
    raw("phase2", "brain", port=3003, health={"path": "/health"}),
    raw("job", pm2_status=["stopped"]),
]


class World:
    """A host in memory: kernel, PM2, services, nftables and systemd. Only sleeping moves the clock."""

    def __init__(self, home: Path, components: list[dict[str, Any]] | None = None, daemon: bool = True, server: str = "") -> None:
        self.home = home
        self.components = parse_components(components or GUIDE, server)
        self.now = 0.0
        self.daemon = daemon
        self.frozen = False
        self.named: dict[str, int] = {}
        self.apps: dict[str, App] = {}
        self.born: dict[int, float] = {}
        self.processes = {1: Process(1, 0, 0, "S", 1), DAEMON: Process(DAEMON, 1, UID, "S", DAEMON)}
        self.ports: dict[int, set[int]] = {6379: {5}}
        self.latch = True
        self.fenced = False
        self.halted = False
        self.log: list[str] = []
        self.absent: set[str] = set()
        self.crashing: set[str] = set()
        self.sick: set[str] = set()
        # what is asked over the network; and of other servers: from when on it answers
        self.asked: list[str] = []
        self.answers: dict[str, float] = {}
        self.survives: set[str] = set()
        self.halts: Callable[[], bool] = lambda: True
        self.next_pid = 100

    def by_app(self, name: str) -> Any:
        return next(component for component in self.components if component.app == name and not component.remote)

    def spawn(self, name: str) -> None:
        component = self.by_app(name)
        pid, self.next_pid = self.next_pid, self.next_pid + 1
        if component.is_job or name in self.crashing:
            self.apps[name] = App(name, pid, 0, "stopped" if component.is_job else "waiting restart", 0 if component.is_job else 5, 0)
            return
        self.apps[name] = App(name, pid, pid, "online", 0, 1)
        self.processes[pid] = Process(pid, DAEMON, UID, "S", pid)
        self.born[pid] = self.now
        if component.port:
            self.ports[component.port] = {pid}

    def end(self, pid: int) -> None:
        self.processes.pop(pid, None)
        self.ports = {port: holders - {pid} for port, holders in self.ports.items() if holders - {pid}}

    def sample(self, components: Any) -> Sample:
        if not self.daemon:
            raise Pm2Error("no PM2 daemon")
        if self.frozen:
            raise Pm2Error("the PM2 daemon did not answer", "unknown")
        return self.kernel(components, list(self.apps.values()), DAEMON)

    def kernel(self, components: Any, apps: list[App], daemon: int) -> Sample:
        ages = {pid: self.now - born for pid, born in self.born.items()}
        named = {name: {pid} for name, pid in self.named.items() if pid in self.processes}
        return Sample(self.now, apps, dict(self.processes), dict(self.ports), ages, daemon, UID, named)

    def probe(self, spec: Mapping[str, Any], timeout: float) -> Verdict:
        self.asked.append(spec["url"])
        late = self.now < self.answers.get(spec["name"], 0.0)
        return Verdict(spec["name"], "unknown" if late else "fail" if spec["name"] in self.sick else "pass", "asked")

    def connect(self, address: str, port: int, timeout: float) -> str:
        self.asked.append(f"{address}:{port}")
        return "Connection refused" if self.now < self.answers.get(address, 0.0) else ""

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    # Pm2Cli
    environment: Mapping[str, str] = {}
    base: Mapping[str, str] = {"PM2_HOME": "/h"}
    executable = "/pm2"

    def spawn_cli(self, arguments: Sequence[str], extra: Mapping[str, str] | None = None) -> Any:
        self.log.append(" ".join(arguments))
        if arguments[0] == "start":
            assert self.latch and not set(self.apps) & set(arguments[3].split(","))
            for name in arguments[3].split(","):
                if name not in self.absent:
                    self.spawn(name)
        elif arguments[0] == "delete":
            for name, app in list(self.apps.items()):
                if str(app.pm_id) in arguments[1:]:
                    del self.apps[name]
                    if name not in self.survives:
                        self.end(app.pid)
        elif arguments[0] == "save":
            (self.home / "dump.pm2").write_text(json.dumps([{"name": name} for name in self.apps]))
        world = self

        class Done:
            def poll(self) -> int | None:
                return 0

            def errors(self) -> str:
                return "[PM2][ERROR] no" if world.absent else ""

            def stop(self) -> None:
                return

        return Done()

    def command(self, argv: Sequence[str], stdin: str, timeout: float) -> tuple[int, str]:
        line = " ".join(argv)
        if "nft" in line:
            if "-f" in argv:
                self.log.append("fence up")
                self.fenced = True
            elif "delete" in argv:
                self.log.append("fence down")
                self.fenced = False
            return (0, f"meta skuid {UID} drop") if self.fenced else (1, "")
        self.log.append(line)
        if "restart" in argv or argv[0] == "systemd-run":
            self.daemon = True
        if "stop" in argv:
            self.daemon = self.frozen = False
            for app in self.apps.values():
                if app.name not in self.survives:
                    self.end(app.pid)
        return 0, ""

    def call(self, spec: Mapping[str, Any], timeout: float) -> Verdict:
        self.log.append("halt")
        self.now += 0.1
        return Verdict("halt", "pass" if self.halts() else "fail", "trading is False")

    def signal(self, process: Process, number: int, lookup: Any) -> None:
        self.log.append(f"signal {number} to {process.pid}")
        if number == signal.SIGKILL:
            self.end(process.pid)


def connect(world: World, kind: type[Starter], monkeypatch: pytest.MonkeyPatch, systemd: bool = True, **settings: Any) -> Starter:
    """A starter (or one of its kind) whose every seam leads into this world."""

    def find(home: str, uid: int, proc: Any) -> Process:
        if not world.daemon:
            raise Pm2Error("no PM2 daemon")
        return world.processes[DAEMON]

    home = str(world.home)
    for module in (_start, _stop):
        monkeypatch.setattr(module, "find_daemon", find)
    watcher = Watcher(home, UID, query=lambda *_args: list(world.apps.values()), prober=world.probe, clock=lambda: world.now, sleep=world.sleep)
    monkeypatch.setattr(watcher, "sample", world.sample)
    monkeypatch.setattr(watcher, "kernel_view", world.kernel)
    monkeypatch.setattr(watcher.proc, "listeners", lambda ports: {port: world.ports[port] for port in ports if port in world.ports})
    monkeypatch.setattr(watcher.proc, "cgroup", lambda pid: "0::/system.slice/pm2-titan.service")
    monkeypatch.setattr(watcher.proc, "comm", lambda pid: "node")
    cli: Any = type("Cli", (), {"spawn": staticmethod(world.spawn_cli), "base": world.base, "executable": world.executable})
    wanted = {"home": home, "ecosystem": "/eco", "end": 60.0, "latch_set": lambda: world.latch, "latch": "/halt", **settings}
    fence = Fence(UID, world.command)
    return kind(world.components, Settings(**wanted), watcher, cli, fence, world.command, world.call, world.signal, lambda: systemd, world.connect)
