# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _redis, _redis_unit
from ansible_collections.titan.disaster_recovery.plugins.module_utils._redis_unit import Unit, UnitError


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*argv: str, **options: Any) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(argv, **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_start_timeout() -> None:
    assert [_redis_unit.start_timeout(size) for size in (0, 2**30 - 1, 2**30, 10 * 2**30)] == [90, 90, 120, 660]


def test_systemctl_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: list[str], **more: Any) -> Any:
        return subprocess.CompletedProcess(argv, 3, "inactive\n", "no such unit")

    monkeypatch.setattr(_redis_unit.subprocess, "run", fail)
    with pytest.raises(UnitError, match="systemctl stop x ended with 3: no such unit"):
        _redis_unit.systemctl("stop", "x", deadline=time.time() + 5)
    assert _redis_unit.systemctl("is-active", "x", deadline=time.time() + 5) == "inactive"


class Systemd:
    """Asks nothing of the process that it stops: it ignores the signal."""

    def __init__(self, process: subprocess.Popen[bytes] | None) -> None:
        self.process = process

    def __call__(self, *words: str, deadline: float) -> str:
        return str(self.process.pid) if words[0] == "show" and self.process else ""


def test_a_process_that_does_not_stop_is_killed(spawn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    process = spawn("sleep", "60")
    monkeypatch.setattr(_redis_unit, "systemctl", Systemd(process))
    monkeypatch.setattr(_redis_unit, "STOP_WITHIN", 0.2)
    assert Unit("redis", time.time() + 5).stop() == f"redis did not stop, its process {process.pid} was killed"
    assert process.wait() == -signal.SIGKILL


def test_a_process_that_is_frozen_is_not_waited_for(spawn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    process = spawn("sleep", "60")
    process.send_signal(signal.SIGSTOP)
    until(lambda: _redis_unit.state(process.pid) == "T")
    monkeypatch.setattr(_redis_unit, "systemctl", Systemd(process))
    monkeypatch.setattr(_redis_unit, "HUNG_STOP_WITHIN", 0.1)
    assert "was killed" in Unit("redis", time.time() + 5).stop() and process.wait() == -signal.SIGKILL


def test_a_unit_without_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_redis_unit, "systemctl", Systemd(None))
    unit = Unit("redis", time.time() + 5)
    assert unit.main_pid() == 0 and unit.stop() == "" and not unit.active()


def test_a_process_that_outlives_its_kill(spawn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that hangs in the kernel does."""
    process = spawn("sleep", "60")
    monkeypatch.setattr(_redis_unit, "systemctl", Systemd(process))
    monkeypatch.setattr(_redis_unit, "STOP_WITHIN", 0.05)
    monkeypatch.setattr(_redis_unit, "KILL_WITHIN", 0.05)
    monkeypatch.setattr(_redis_unit.os, "kill", lambda pid, number: None)
    with pytest.raises(UnitError, match="does not even end by SIGKILL"):
        Unit("redis", time.time() + 5).stop()


def test_a_start_that_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd may still be busy with the stop: that is not a server that ended."""
    states = iter(["deactivating", "inactive", "activating"])
    asked: list[str] = []

    def systemctl(*words: str, deadline: float) -> str:
        asked.append(" ".join(words))
        return next(states) if words[0] == "is-active" else ""

    monkeypatch.setattr(_redis_unit, "systemctl", systemctl)
    Unit("redis", time.time() + 5).begin()
    assert asked == ["start --no-block redis", *["is-active redis"] * 3]


def test_the_lock(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_redis_unit, "LOCK", str(box / "run" / "lock"))
    unit = Unit("redis", 0)
    unit.unlock()
    unit.lock()
    assert (box / "run" / "lock").exists()
    unit.unlock()
    assert not (box / "run" / "lock").exists()


def test_one_process_for_good(spawn: Any) -> None:
    process = spawn("sleep", "60")
    since = _redis_unit.started(process.pid)
    assert since and _redis_unit.runs(process.pid, since) and not _redis_unit.runs(process.pid, "1"), "an id that was used again is another process"
    process.kill()
    until(lambda: not _redis_unit.runs(process.pid, since))  # a zombie already
    assert not _redis_unit.started(0) and not _redis_unit.state(0) and _redis_unit.name_of(0) == "unknown" and _redis_unit.cwd(0) == ""


def test_family(spawn: Any) -> None:
    process = spawn("sh", "-c", "sleep 60 & wait")
    until(lambda: len(_redis_unit.family(process.pid)) == 2)
    (child,) = _redis_unit.family(process.pid) - {process.pid}
    assert _redis_unit.name_of(child) == "sleep" and _redis_unit.family(0) == set()
    os.kill(child, signal.SIGKILL)


def test_addresses() -> None:
    assert _redis_unit._address("0100007F:18EB") == ("127.0.0.1", 6379)
    assert _redis_unit._address("00000000000000000000000001000000:0050") == ("::1", 80)
    assert _redis_unit._address("0000000000000000FFFF00000100000A:0001") == ("10.0.0.1", 1)


def test_listening_and_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert ("127.0.0.1", port) in _redis_unit.listening(os.getpid())
        with socket.create_connection(("127.0.0.1", port)):
            assert _redis_unit.peers(os.getpid(), (port,)) == set(), "this machine is no other host"
    line = _redis_unit.Line("01", ("10.0.0.1", 6379), ("10.0.0.7", 40000), "1")
    other = _redis_unit.Line("01", ("10.0.0.1", 22), ("10.0.0.8", 40000), "1")
    monkeypatch.setattr(_redis_unit, "connections", lambda pid: [line, other])
    assert _redis_unit.peers(1, (6379,)) == {"10.0.0.7"} and _redis_unit.peers(0, (6379,)) == set()


def conf_of(port: int = 0) -> _redis.RedisConf:
    return _redis.parse_conf(f"port {port}")


WRITER = "import sys, time; f = open(sys.argv[1], sys.argv[2]); time.sleep(60)"


@pytest.mark.parametrize(("mode", "held"), [("a", True), ("r", False)])
def test_who_writes_into_the_data_holds_it(spawn: Any, box: Path, mode: str, held: bool) -> None:
    """A backup that reads does not."""
    (box / "file").touch()
    process = spawn(sys.executable, "-c", WRITER, str(box / "file"), mode)
    until(lambda: any(name == str(box / "file") for name, dummy in _redis_unit._open_files(process.pid)))
    found = _redis_unit.holders(conf_of(), str(box), set())
    assert (len(found) == 1 and f"process {process.pid}" in found[0]) if held else found == []
    assert _redis_unit.holders(conf_of(), str(box), {process.pid}) == []


def test_a_shell_in_the_data_directory_does_not_hold_it(spawn: Any, box: Path) -> None:
    process = spawn("sleep", "60", cwd=box)
    until(lambda: _redis_unit.cwd(process.pid) == str(box))
    assert _redis_unit.holders(conf_of(), str(box), set()) == []


def test_who_listens_on_the_port_holds_it(spawn: Any, box: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        process = spawn("sleep", "60", pass_fds=(listener.fileno(),))
    until(lambda: _redis_unit.name_of(process.pid) == "sleep")
    assert _redis_unit.holders(conf_of(port), str(box), set()) == [f"process {process.pid} (sleep) listens on 127.0.0.1 port {port}"]
