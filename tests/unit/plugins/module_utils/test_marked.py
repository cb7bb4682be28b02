# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _marked
from ansible_collections.titan.disaster_recovery.plugins.module_utils._marked import Mark, Process

# Runs of other tests on this machine must not be ended.
RUN = f"test-{os.getpid()}"


def ours(mark: Mark) -> bool:
    return mark.run_id == RUN


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A shell with this mark that says when it is ready."""
    started: list[subprocess.Popen[str]] = []

    def run(script: str, mark: str | None = f"{RUN}/a1/3") -> subprocess.Popen[str]:
        environment = {**os.environ, **({_marked.VARIABLE: mark} if mark else {})}
        started.append(subprocess.Popen(["bash", "-c", script], env=environment, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


def line(process: subprocess.Popen[str]) -> int:
    assert process.stdout
    return int(process.stdout.readline())


def gone(pid: int) -> bool:
    end = time.monotonic() + 5
    while _marked.look(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return _marked.look(pid) is None


@pytest.mark.parametrize(("text", "mark"), [("r/a/0", Mark("r", "a", 0)), ("20260101T000000Z-x-1/12345678/17", Mark("20260101T000000Z-x-1", "12345678", 17))])
def test_parse(text: str, mark: Mark) -> None:
    assert _marked.parse(text) == mark


@pytest.mark.parametrize("text", ["", "r", "r/a", "r/a/", "r/a/x"])
def test_what_is_no_mark(text: str) -> None:
    with pytest.raises(ValueError):
        _marked.parse(text)


def test_look(start: Any) -> None:
    process = start("echo $$; exec sleep 60")
    line(process)
    end = time.monotonic() + 5
    # while a process becomes another program it has no environment, and has its name a little before it
    while (found := _marked.look(process.pid)) and (found.name, found.mark is None) != ("sleep", False) and time.monotonic() < end:
        time.sleep(0.01)
    assert found and found.mark == Mark(RUN, "a1", 3) and found.parent == os.getpid() and found.started > 0
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert _marked.look(process.pid) is None, "a zombie has ended"


def test_a_damaged_mark_is_none(start: Any) -> None:
    process = start("echo $$; exec sleep 60", "nonsense")
    line(process)
    assert _marked.look(process.pid).mark is None  # type: ignore[union-attr]


def test_what_a_marked_process_started_is_ended_too(start: Any) -> None:
    """With a cleared environment, in a session of its own, and what heeds no SIGTERM."""
    plain = start("env -i sleep 60 & echo $!; wait")
    session = start("env -i setsid bash -c 'echo $$; trap \"\" TERM; while :; do sleep 0.1; done' & wait")
    other = start("echo $$; exec sleep 60", f"{RUN}-other/a1/3")
    unmarked = start("echo $$; exec sleep 60", None)
    pids = [line(process) for process in (plain, session, other, unmarked)]
    began = time.monotonic()
    ended, left = _marked.end(ours, polite=0.3)
    assert left == [] and {plain.pid, session.pid, pids[0], pids[1]} <= {process.pid for process in ended}
    assert time.monotonic() - began < 10 and gone(pids[0]) and gone(pids[1])
    assert other.poll() is None and unmarked.poll() is None, "nobody else's"


def test_a_stopped_process_is_ended(start: Any) -> None:
    process = start("echo $$; exec sleep 60")
    line(process)
    process.send_signal(signal.SIGSTOP)
    # of two signals that wait the kernel delivers the lower first, and SIGTERM is lower
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    ended, left = _marked.end(ours, polite=0.1)
    assert left == [] and [str(item) for item in ended] == [f"pid {process.pid} ({ended[0].name}, run {RUN})"]
    assert process.wait(5) == -signal.SIGKILL


def test_what_cannot_be_ended_is_named(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    process = start("echo $$; exec sleep 60")
    line(process)
    with monkeypatch.context() as patch:
        patch.setattr(_marked.os, "kill", lambda pid, number: None)
        ended, left = _marked.end(ours, polite=0.1, patience=0.1)
    assert ended == [] and [item.pid for item in left] == [process.pid]


def test_a_number_that_is_another_process_by_now_is_left_alone(start: Any) -> None:
    process = start("echo $$; exec sleep 60", None)
    line(process)
    found = _marked.look(process.pid)
    assert found
    _marked._send(Process(found.pid, found.parent, found.started - 1, found.name, None), signal.SIGKILL)
    assert process.poll() is None


def test_nothing_to_end_takes_no_time() -> None:
    began = time.monotonic()
    assert _marked.end(ours) == ([], []) and time.monotonic() - began < 5


def test_neither_ourselves_nor_what_we_descend_from() -> None:
    """A command of the run that asks descends from a marked shell."""
    script = (
        "import sys; from ansible_collections.titan.disaster_recovery.plugins.module_utils import _marked; "
        f"print(_marked.end(lambda mark: mark.run_id == '{RUN}', 0.1, 0.1))"
    )
    environment = {**os.environ, _marked.VARIABLE: f"{RUN}/a/1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(["bash", "-c", f'{sys.executable} -c "$0"; exit $?', script], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "([], [])\n"), done.stderr


def test_families_by_table() -> None:
    table = [(1, 0, ""), (2, 1, "r/a/1"), (3, 2, ""), (4, 3, ""), (5, 1, "r/b/2"), (6, 1, ""), (7, 6, "")]
    processes = {pid: Process(pid, parent, pid, "x", _marked.parse(mark) if mark else None) for pid, parent, mark in table}
    assert set(_marked.families(processes, lambda mark: mark.attempt == "a")) == {2, 3, 4}
    assert set(_marked.families(processes, lambda mark: False, known=[6])) == {6, 7}
    assert _marked.ancestors(processes, 4) == {4, 3, 2, 1}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a pid namespace")
def test_what_runs_in_a_container_is_not_ours() -> None:
    """A lab's hosts, or any container of a server, carry marks of their own recoveries."""
    with subprocess.Popen(["unshare", "--pid", "--fork", "sleep", "30"], env={**os.environ, "TITAN_DR_COMMAND": "r9/cafe/9"}) as process:
        try:
            end = time.monotonic() + 10
            while not (inside := _children(process.pid)):
                assert time.monotonic() < end
                time.sleep(0.05)
            seen = _marked.everything()
            assert _marked.look(inside[0]) is not None and inside[0] not in seen
            assert process.pid in seen, "the one that started it is here"
        finally:
            for pid in inside:
                os.kill(pid, 9)


def _children(pid: int) -> list[int]:
    return [int(name) for name in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
