# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _redis, _redis_cause, _redis_unit

SHOWN = "LoadState={load}\nActiveState={active}\nSubState={sub}\nResult={result}\nExecMainStatus=1\nNRestarts=5\nMainPID={pid}\n"


def said(monkeypatch: pytest.MonkeyPatch, load: str = "loaded", active: str = "active", sub: str = "running", result: str = "success", pid: int = 0) -> None:
    text = SHOWN.format(load=load, active=active, sub=sub, result=result, pid=pid)
    monkeypatch.setattr(_redis_unit, "systemctl", lambda *words, deadline: str(pid) if "--value" in words else text)


def causes(tmp_path: Path, port: int = 0, config: str = "", user: str = "root") -> list[str]:
    conf = _redis.parse_conf(f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\n")
    return _redis_cause.causes(conf, config, "redis-test", str(tmp_path), user, time.time() + 5)


def test_nothing_can_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said(monkeypatch)
    assert causes(tmp_path) == []


def test_the_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said(monkeypatch, active="failed", sub="failed", result="exit-code")
    assert causes(tmp_path) == ["unit redis-test is failed/failed, result exit-code, exit status 1, 5 restarts"]
    said(monkeypatch, load="masked")
    assert causes(tmp_path) == ["unit redis-test is masked"]
    said(monkeypatch, active="inactive", sub="dead")
    assert causes(tmp_path) == ["unit redis-test is inactive/dead"]


def test_the_lock_of_a_swap_that_broke_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said(monkeypatch)
    lock = tmp_path / "redis-swap"
    lock.touch()
    monkeypatch.setattr(_redis_unit, "LOCK", str(lock))
    (found,) = causes(tmp_path)
    assert f"a swap that broke off left {lock}" in found


def test_a_process_that_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        process.send_signal(signal.SIGSTOP)
        while _redis_unit.state(process.pid) != "T":
            time.sleep(0.01)
        said(monkeypatch, pid=process.pid)
        assert causes(tmp_path) == [f"process {process.pid} of redis-test is stopped by a signal"]
    finally:
        process.kill()
        process.wait()


def test_a_foreign_process_on_the_port_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said(monkeypatch, active="failed", sub="failed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = f"import socket, time; listener = socket.create_server(('127.0.0.1', {port})); print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        process.stdout.readline()
        found = causes(tmp_path, port)[0]
        assert found.startswith(f"process {process.pid} (python") and f"listens on 127.0.0.1 port {port}" in found
        # one of the unit's own is not foreign
        monkeypatch.setattr(_redis_cause, "_of_unit", lambda pid, unit: True)
        assert not any("listens" in text for text in causes(tmp_path, port))
    finally:
        process.kill()
        process.wait()


def test_which_processes_are_the_units(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not _redis_cause._of_unit(os.getpid(), "redis-test") and _redis_cause._of_unit(2**22 + 1, "redis-test")
    with open("/proc/self/cgroup", encoding="utf-8") as handle:
        own = handle.readline().rstrip().rpartition("/")[2]
    if own:
        assert _redis_cause._of_unit(os.getpid(), own.removesuffix(".service"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said(monkeypatch)
    inner = tmp_path / "appendonlydir"
    inner.mkdir()
    (inner / "x.aof").write_bytes(b"x")
    for path in (tmp_path, inner, inner / "x.aof"):
        os.chown(path, 65534, 65534)
    assert causes(tmp_path, user="nobody") == []
    os.chown(inner / "x.aof", 0, 0)
    (found,) = causes(tmp_path, user="nobody")
    assert "x.aof belongs to user id 0" in found and "nobody cannot use it" in found and "A restore mends that" in found
    assert causes(tmp_path, user="no-such-user") == ["there is no user no-such-user"]
    assert causes(tmp_path / "gone", user="nobody") == [f"{tmp_path}/gone is not there"]


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said(monkeypatch)
    real = os.statvfs(tmp_path)

    def full(**change: int) -> None:
        values = {name: getattr(real, name) for name in dir(real) if name.startswith("f_")} | change
        monkeypatch.setattr(_redis_cause.os, "statvfs", lambda path: type("Found", (), values))

    full(f_bavail=0)
    assert causes(tmp_path) == [f"the disk of {tmp_path} is full"]
    full(f_files=1000, f_favail=0)
    assert causes(tmp_path) == [f"the disk of {tmp_path} has no inodes left"]
    full(f_flag=os.ST_RDONLY)
    assert causes(tmp_path) == [f"the file system of {tmp_path} is read-only"]


def test_what_redis_said_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said(monkeypatch)
    log = tmp_path / "redis.log"
    lines = [
        "Server initialized",
        "WARNING overcommit_memory is set to 0!",
        "Bad file format reading the append only file",
        "Bad file format reading the append only file",
    ]
    log.write_text("".join(f"1:M 01 Jan 2026 00:00:00.000 # {line}\n" for line in lines) + "1:M 01 Jan 2026 00:00:00.000 * Ready\n")
    assert causes(tmp_path, config=f"logfile {log}\n") == ["its log says: Bad file format reading the append only file"]
    assert causes(tmp_path, config='logfile "/nonexistent/log"\n') == ["its log /nonexistent/log: No such file or directory"]


def test_a_systemd_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*words: str, deadline: float) -> Any:
        if "--value" in words:
            return "0"
        raise _redis_unit.UnitError("no bus")

    monkeypatch.setattr(_redis_unit, "systemctl", broken)
    assert causes(tmp_path) == ["unit redis-test cannot be asked: no bus"]
