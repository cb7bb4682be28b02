# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _pm2
from ansible_collections.titan.disaster_recovery.plugins.module_utils._components import Component
from ansible_collections.titan.disaster_recovery.plugins.module_utils._pm2 import App, Finding, Pm2Error, Proc, Process, Sample, Watcher, judge
from ansible_collections.titan.disaster_recovery.plugins.module_utils._probe import Verdict

DAEMON, UID = 10, 1000
BRAIN = Component("brain", "pm2", "titan-brain", port=3000)
JOB = Component("job", "pm2", "job", pm2_status=("stopped",))


def raw(name: str = "titan-brain", status: str = "online", **more: Any) -> dict[str, Any]:
    env = {"status": status, "restart_time": 2, "DB_PASSWORD": "hush", "pm_err_log_path": "/log", "exec_mode": "fork_mode"}
    return {"name": name, "pid": 20, "pm_id": 0, "monit": {"memory": 7, "cpu": 0}, "pm2_env": env, **more}


# --- parsing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "{}", ">>>> In-memory PM2 is out-of-date, do:\n>>>> $ pm2 update\n[PM2] Spawning PM2 daemon\n[PM2][WARN] x\n{}\n",
        "{}\n[PM2] done\n", "  {}", "[PM2] [1, 2]\n[1, 2]\n{}",
    ],
)
def test_jlist_with_noise(text: str) -> None:
    apps = _pm2.parse_jlist(text.replace("{}", json.dumps([raw()])))
    assert apps == [App("titan-brain", 0, 20, "online", 2, 7, error_log="/log")]
    assert "hush" not in repr(apps)


def test_jlist_empty_list() -> None:
    assert _pm2.parse_jlist("noise\n[]\n") == []


@pytest.mark.parametrize("text", ["", "[PM2][ERROR] Permission denied", "null", '{"a": []}', "[{", "[1]"])
def test_jlist_without_a_list_is_unknown(text: str) -> None:
    with pytest.raises(Pm2Error) as error:
        _pm2.parse_jlist(text)
    assert error.value.verdict == "unknown"


@pytest.mark.parametrize("items", [{}, None, ["x"], [{}], [{"name": "x"}], [{"name": 3, "pm2_env": {"status": "online"}}], [{"name": "x", "pm2_env": {}}]])
def test_a_list_that_is_not_understood_is_unknown(items: object) -> None:
    with pytest.raises(Pm2Error) as error:
        _pm2.parse_apps(items)
    assert error.value.verdict == "unknown"


def reader(data: bytes) -> Callable[[int], bytes]:
    view = bytearray(data)

    def read(count: int) -> bytes:
        if count > len(view):
            raise ConnectionError
        out = bytes(view[:count])
        del view[:count]
        return out

    return read


def test_message_round_trip_and_foreign_protocol() -> None:
    assert _pm2.decode_message(reader(_pm2.encode_message({"a": [1]}, "id"))) == [{"a": [1]}, "id"]
    for wrong in (b"HTTP/1.1", bytes([0x11]) + struct.pack(">I", 2**31)):
        with pytest.raises(Pm2Error):
            _pm2.decode_message(reader(wrong))


# --- the kernel -----------------------------------------------------------------------------------------------------


def fake_process(root: Path, pid: int, ppid: int = 1, uid: int = UID, state: str = "S", cmdline: str = "node", environ: str = "", ticks: int = 0) -> None:
    folder = root / str(pid)
    (folder / "fd").mkdir(parents=True)
    (folder / "stat").write_text(f"{pid} (a ) b) {state} {ppid} " + "0 " * 17 + f"{ticks} 0 0\n")
    (folder / "status").write_text(f"Name:\tx\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n")
    (folder / "cmdline").write_text(cmdline)
    (folder / "environ").write_text(environ)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    proc = tmp_path / "proc"
    (proc / "net").mkdir(parents=True)
    (proc / "uptime").write_text("1000.0 1.0\n")
    header = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    line = "   0: {}:{:04X} 00000000:0000 {} 00000000:00000000 00:00000000 00000000  1000 0 {} 1 0 100 0 0 10 0\n"
    tcp = line.format("0100007F", 3000, "0A", 111) + line.format("0100007F", 3001, "01", 112) + line.format("0100007F", 3003, "0A", 114)
    (proc / "net/tcp").write_text(header + tcp)
    (proc / "net/tcp6").write_text(header + line.format("0" * 32, 3002, "0A", 113))
    return proc


def test_proc(root: Path) -> None:
    fake_process(root, 20, DAEMON, ticks=500 * os.sysconf("SC_CLK_TCK"), environ="A=1\0PM2_HOME=/h\0")
    fake_process(root, 21, 20)
    fake_process(root, 22, state="Z")
    (root / "20/fd/3").symlink_to("socket:[111]")
    (root / "21/fd/3").symlink_to("socket:[113]")
    proc = Proc(str(root))
    process = proc.process(20)
    assert process and (process.ppid, process.uid) == (DAEMON, UID) and proc.age(process) == 500
    assert proc.process(22) is None and proc.process(23) is None and set(proc.processes()) == {20, 21}
    assert proc.variable(20, "PM2_HOME") == "/h" and proc.variable(20, "HOME") is None
    # 3001 is a connection, 3003 is held by somebody who cannot be seen
    assert proc.listeners([3000, 3001, 3002, 3003, 3004]) == {3000: {20}, 3002: {21}, 3003: set()}


@pytest.mark.parametrize(("owner", "looks"), [(UID, 2), (0, 1)])
def test_looks_as_the_owner_where_root_may_not(root: Path, monkeypatch: pytest.MonkeyPatch, owner: int, looks: int) -> None:
    ids: list[tuple[str, int]] = []
    seen: list[int] = []

    def look() -> str:
        seen.append(1)
        if len(seen) == 1:
            raise PermissionError
        return "found"

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "getegid", lambda: 0)
    monkeypatch.setattr(os, "seteuid", lambda number: ids.append(("uid", number)))
    monkeypatch.setattr(os, "setegid", lambda number: ids.append(("gid", number)))
    monkeypatch.setattr(os, "stat", lambda path: os.stat_result((0, 0, 0, 0, owner, 7, 0, 0, 0, 0)))
    if looks == 2:
        assert Proc(str(root))._as_owner(20, look) == "found"
        assert ids == [("gid", 7), ("uid", UID), ("uid", 0), ("gid", 0)]
    else:
        with pytest.raises(PermissionError):
            Proc(str(root))._as_owner(20, look)
        assert ids == []
    assert len(seen) == looks


def tree(*processes: tuple[int, int, int]) -> dict[int, Process]:
    return {pid: Process(pid, ppid, uid, "S", pid) for pid, ppid, uid in processes}


def test_descends() -> None:
    processes = tree((1, 0, 0), (20, 1, UID), (21, 20, UID), (22, 21, UID), (30, 31, UID), (31, 30, UID))
    assert _pm2.descends(22, 20, processes) and _pm2.descends(20, 20, processes)
    assert not _pm2.descends(20, 22, processes) and not _pm2.descends(30, 20, processes) and not _pm2.descends(99, 20, processes)


@pytest.mark.parametrize(
    ("processes", "stray"),
    [
        (tree((1, 0, 0), (20, 1, UID)), True),
        (tree((1, 0, 0), (19, 1, UID), (20, 19, UID)), True),
        (tree((1, 0, 0), (DAEMON, 1, UID), (20, DAEMON, UID)), True),
        (tree((1, 0, 0), (5, 1, 0), (6, 5, UID), (20, 6, UID)), False),  # a login of that user
        (tree((1, 0, 0), (20, 1, 0)), False),
        (tree((1, 0, 0), (20, 1, UID + 1)), False),
        (tree((20, 7, UID)), False),
        ({}, False),
    ],
)
def test_what_may_be_ended(processes: dict[int, Process], stray: bool) -> None:
    assert _pm2.is_stray(20, UID, DAEMON, processes) is stray


# --- the daemon -----------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, root: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    (home / "pm2.pid").write_text(f"{DAEMON}\n")
    fake_process(root, DAEMON, cmdline=f"PM2 v7.0.4: God Daemon ({home})", environ=f"PM2_HOME={home}\0")
    return home


def test_find_daemon(home: Path, root: Path) -> None:
    assert _pm2.find_daemon(str(home), UID, Proc(str(root))).pid == DAEMON


def make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda home, root: (home / "pm2.pid").unlink(), "no PM2 daemon"),
        (lambda home, root: (home / "pm2.pid").write_text(""), "no PM2 daemon"),
        (lambda home, root: (home / "pm2.pid").write_text("99"), "not alive"),
        (lambda home, root: ((home / "pm2.pid").unlink(), (home / "pm2.pid").symlink_to(root / "uptime")), "no PM2 daemon"),
        (lambda home, root: make_fifo(home / "pm2.pid"), "not a file"),
        (lambda home, root: (root / f"{DAEMON}/cmdline").write_text("vim PM2 v7: God Daemon"), "something else"),
        (lambda home, root: (root / f"{DAEMON}/environ").write_text("PM2_HOME=/root/.pm2\0"), "has PM2_HOME /root/.pm2"),
        (lambda home, root: (root / f"{DAEMON}/environ").write_text(""), "has PM2_HOME None"),
        (lambda home, root: (root / f"{DAEMON}/status").write_text("Uid:\t0\t0\t0\t0\n"), "runs as uid 0"),
    ],
)
def test_no_daemon_is_a_fail(home: Path, root: Path, spoil: Callable[[Path, Path], Any], message: str) -> None:
    spoil(home, root)
    with pytest.raises(Pm2Error, match=message) as error:
        _pm2.find_daemon(str(home), UID, Proc(str(root)))
    assert error.value.verdict == "fail"


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (_pm2.encode_message({"args": [[raw()]]}, "titan:0"), None),
        (_pm2.encode_message({"error": "no"}, "titan:0"), "refused to list"),
        (_pm2.encode_message({"args": []}, "titan:0"), "refused to list"),
        (_pm2.encode_message({"args": [{}]}, "titan:0"), "not a list"),
        (_pm2.encode_message("text"), "refused to list"),
        (_pm2.encode_message({"args": [[raw()]]})[:40], "could not be asked"),
        (bytes([0x11]) + struct.pack(">I", 3) + b"j:{", "could not be asked"),
        (b"HTTP", "unknown protocol"),
        (b"", "could not be asked"),
        (None, "did not answer"),
    ],
)
def test_query(tmp_path: Path, reply: bytes | None, message: str | None) -> None:
    stop = threading.Event()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "rpc.sock"))
        listener.listen()

        def work() -> None:
            link, _address = listener.accept()
            with link:
                link.recv(65536)
                if reply is None:
                    stop.wait(5)
                else:
                    link.sendall(reply)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        daemon = Process(os.getpid(), 1, os.geteuid(), "S", 0)
        if message is None:
            assert [app.name for app in _pm2.query_daemon(str(tmp_path), daemon, 5)] == ["titan-brain"]
        else:
            with pytest.raises(Pm2Error, match=message) as error:
                _pm2.query_daemon(str(tmp_path), daemon, 0.3 if reply is None else 5)
            assert error.value.verdict == "unknown"
        stop.set()
        thread.join(5)
        with pytest.raises(Pm2Error, match="is held by process"):
            _pm2.query_daemon(str(tmp_path), replace(daemon, pid=1), 5)


# --- judging --------------------------------------------------------------------------------------------------------


def app(name: str = "titan-brain", status: str = "online", pid: int = 20, restarts: int = 0, **more: Any) -> App:
    return App(name, more.pop("pm_id", 0), pid, status, restarts, 1000, **more)


def sample(*apps: App, at: float = 0.0, listeners: dict[int, set[int]] | None = None, named: dict[str, set[int]] | None = None, age: float = 100.0,
           extra: tuple[tuple[int, int, int], ...] = ()) -> Sample:
    processes = tree((1, 0, 0), (DAEMON, 1, UID), (20, DAEMON, UID), (21, 20, UID), (30, 1, UID), *extra)
    holders = {3000: {20}} if listeners is None else listeners
    return Sample(at, list(apps), processes, holders, {one.pid: age for one in apps if one.pid in processes}, DAEMON, UID, named or {})


def test_healthy() -> None:
    finding = judge(BRAIN, sample(app()), None, 10)
    assert finding.verdict == "pass" and finding.settled and finding.registered and "owns port 3000" in finding.evidence
    assert finding.result() == {
        "name": "brain", "verdict": "pass", "evidence": finding.evidence, "pid": 20, "restarts": 0, "uptime_s": 100.0, "memory_bytes": 1000,
    }
    assert judge(BRAIN, sample(app(), listeners={3000: {21}})).verdict == "pass", "a child may hold the port"
    assert judge(BRAIN, sample(app(exec_mode="cluster_mode"), listeners={3000: {DAEMON}})).verdict == "pass"


@pytest.mark.parametrize(
    ("seen", "evidence"),
    [
        (sample(), "PM2 does not know titan-brain"),
        (sample(app("other")), "does not know titan-brain, but process 20 of uid 1000 holds port 3000"),
        (sample(app(status="waiting restart", pid=0), listeners={}), "state is waiting restart, expected online"),
        (sample(app(status="errored", pid=0), listeners={}), "state is errored"),
        (sample(app(status="launching")), "state is launching"),
        (sample(app(status="stopped", pid=0), listeners={}), "state is stopped"),
        (sample(app(pid=99), listeners={}), "process 99 is not alive"),
        (sample(app(pid=0), listeners={}), "process 0 is not alive"),
        (sample(app(pid=40), extra=((40, DAEMON, 0),), listeners={3000: {40}}), "belongs to uid 0, not 1000"),
        (sample(app(), listeners={}), "nothing listens on port 3000"),
        (sample(app(), listeners={3000: set()}), "owner of port 3000 cannot be seen"),
        (sample(app(), listeners={3000: {30}}), "process 30 of uid 1000 holds port 3000"),
        (sample(app(), listeners={3000: {20, 30}}), "process 30 of uid 1000 holds port 3000"),
        (sample(app(), listeners={3000: {DAEMON}}), f"process {DAEMON} of uid 1000 holds port 3000"),
        (sample(app(), named={"titan-brain": {20, 21, 30}}), "process 30 of uid 1000 runs as titan-brain but is not known to PM2"),
        (sample(app(), app(pm_id=1)), "2 processes of the name"),
    ],
)
def test_fails(seen: Sample, evidence: str) -> None:
    finding = judge(BRAIN, seen)
    assert finding.verdict == "fail" and evidence in finding.evidence, finding


def test_restarts_within_the_window() -> None:
    first = sample(app(restarts=4))
    assert judge(BRAIN, sample(app(restarts=4), at=5), first).verdict == "pass"
    for later, why in ((app(restarts=5), "1 restarts within 5.0 s"), (app(restarts=0), "registered anew"), (app(restarts=4, pm_id=9), "registered anew")):
        finding = judge(BRAIN, sample(later, at=5), first)
        assert finding.verdict == "fail" and why in finding.evidence


def test_optional_and_jobs() -> None:
    optional = replace(BRAIN, required=False)
    assert judge(optional, sample(listeners={})).verdict == "pass"
    assert judge(optional, sample()).verdict == "fail", "somebody sits on its port"
    assert judge(optional, sample(app(status="errored", pid=0), listeners={})).verdict == "fail"
    done = judge(JOB, sample(app("job", "stopped", 0, exit_code=1)))
    assert done.verdict == "pass" and "last exit code 1" in done.evidence
    assert judge(JOB, sample(app("job"))).verdict == "fail"
    assert judge(replace(JOB, pm2_status=("stopped", "online")), sample(app("job", restarts=2)), sample(app("job", "stopped", 0))).verdict == "pass"


class Film:
    """A Watcher that sees prepared samples one after the other, with a clock that only sleeping moves."""

    def __init__(self, frames: Callable[[float], Sample], answer: str = "pass") -> None:
        self.now, self.asked, self.frames = 0.0, 0, frames

        def prober(spec: Any, timeout: float) -> Verdict:
            self.asked += 1
            return Verdict(spec["name"], answer, "asked")

        self.watcher = Watcher("/h", UID, Proc("/nonexistent"), prober=prober, clock=lambda: self.now, sleep=self.sleep)
        self.watcher.sample = lambda components: replace(frames(self.now), at=self.now)  # type: ignore[method-assign]

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds

    def watch(self, window: float = 10, min_uptime: float = 0, component: Component = BRAIN) -> Finding:
        return self.watcher.watch([component], window, min_uptime)[0][0]


def test_long_uptime_needs_no_waiting() -> None:
    film = Film(lambda now: sample(app(restarts=7), age=10))
    assert film.watch().verdict == "pass" and film.now == 0


def test_a_fail_needs_no_waiting() -> None:
    film = Film(lambda now: sample(app(status="waiting restart", pid=0), listeners={}))
    assert film.watch().verdict == "fail" and film.now == 0


def test_young_is_watched_for_as_long_as_needed() -> None:
    film = Film(lambda now: sample(app(), age=4 + now))
    assert film.watch().verdict == "pass" and 6 <= film.now < 6.5


def test_crash_loop_that_is_online_at_both_ends() -> None:
    film = Film(lambda now: sample(app(restarts=int(now / 2.5)), age=now % 2.5))
    finding = film.watch()
    assert finding.verdict == "fail" and "restarts within" in finding.evidence


def test_crash_loop_that_answers_nothing_when_it_is_asked() -> None:
    asked = replace(BRAIN, health={"path": "/health", "status": [200], "expect": {}})
    film = Film(lambda now: sample(app(restarts=int((now + 2) / 2.5)), age=(now + 2) % 2.5), "unknown")
    finding = film.watch(component=asked)
    assert finding.verdict == "fail" and "restarts within" in finding.evidence
    slow = Film(lambda now: sample(app(), age=now), "unknown")
    assert slow.watch(component=asked).verdict == "unknown" and slow.now >= 10, "it might have answered in time"


def test_crash_of_one_is_kept_while_another_is_watched() -> None:
    """A restart early in the window is not forgiven because it was quiet later on."""
    other = Component("other", "pm2", "other")

    def frames(now: float) -> Sample:
        shown = sample(app(restarts=1 if now > 1 else 0), app("other", pid=30, pm_id=1))
        return replace(shown, ages={20: 0.5 + now % 100, 30: now})

    findings = {item.name: item for item in Film(frames).watcher.watch([BRAIN, other], 10)[0]}
    assert (findings["brain"].verdict, findings["other"].verdict) == ("fail", "pass")


def test_a_window_that_began_before() -> None:
    film = Film(lambda now: sample(app(), age=5 + now))
    first = film.watcher.sample([BRAIN])
    film.sleep(3)
    findings, dummy = film.watcher.watch([BRAIN], 10, first=first)
    assert findings[0].verdict == "pass" and 5 <= film.now < 5.5
    crashed = Film(lambda now: sample(app(restarts=int(now > 1)), age=5))
    first = crashed.watcher.sample([BRAIN])
    crashed.sleep(3)
    findings, dummy = crashed.watcher.watch([BRAIN], 4, first=first)
    assert findings[0].verdict == "fail" and "1 restarts within 3.0 s" in findings[0].evidence


def test_too_young_for_min_uptime_fails_at_the_end() -> None:
    film = Film(lambda now: sample(app(), age=now))
    finding = film.watch(10, 60)
    assert finding.verdict == "fail" and "60 s" in finding.evidence and film.now >= 10


@pytest.mark.parametrize("answer", ["pass", "fail", "unknown"])
def test_the_application_has_the_last_word(answer: str) -> None:
    asked = replace(BRAIN, health={"path": "/health", "status": [200], "expect": {}})
    film = Film(lambda now: sample(app()), answer)
    assert film.watch(component=asked).verdict == answer and film.asked == 1
    sick = Film(lambda now: sample(app(), listeners={}), answer)
    assert sick.watch(component=asked).verdict == "fail" and sick.asked == 0


def test_sample_of_the_kernel(root: Path, home: Path) -> None:
    env = f"name=titan-brain\0pm_id=0\0PM2_HOME={home}\0"
    fake_process(root, 20, DAEMON, environ=env)
    fake_process(root, 30, 1, environ=env)
    fake_process(root, 31, 1, environ=env.replace(str(home), "/other"))
    fake_process(root, 32, 1, uid=0, environ=env)
    (root / "30/fd/3").symlink_to("socket:[111]")
    watcher = Watcher(str(home), UID, Proc(str(root)), query=lambda *_args: [app()])
    seen = watcher.sample([BRAIN])
    assert seen.daemon == DAEMON and seen.named == {"titan-brain": {20, 30}} and seen.listeners == {3000: {30}} and set(seen.ages) == {20}
    assert set(_pm2.strays(BRAIN, seen)) == {30}


def test_overall() -> None:
    findings = [Finding("a", "pass", ""), Finding("b", "unknown", "")]
    assert _pm2.overall(findings) == "unknown" and _pm2.overall([]) == "unknown"
