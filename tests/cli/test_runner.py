# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from titan_dr import processes, runner
from titan_dr.cancel import Cancellation, Cancelled
from titan_dr.events import Event, LedgerTail, Output, StepFailed, StepStarted

SECRET = "extra-variable-secret-51c2"


@pytest.fixture(autouse=True)
def local_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSIBLE_PYTHON_INTERPRETER", sys.executable)


def job(tmp_path: Path, tasks: str, **more: object) -> runner.Job:
    playbook = tmp_path / "play.yml"
    playbook.write_text(f"- hosts: localhost\n  connection: local\n  gather_facts: false\n  tasks:\n{tasks}")
    inventory = tmp_path / "hosts"
    inventory.write_text("localhost ansible_connection=local\n")
    return runner.Job(playbook=str(playbook), inventory=[str(inventory)], run_dir=tmp_path / "run", project_dir=tmp_path, **more)  # type: ignore[arg-type]


def sleepers(seconds: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"sleep" in words[0] and seconds.encode() in words:
                found.append(int(entry.name))
    return found


def test_events_and_what_is_left(tmp_path: Path) -> None:
    tasks = "    - {name: Say, ansible.builtin.debug: {var: told}}\n    - {name: Break, ansible.builtin.fail: {msg: broken}}\n"
    events: list[Event] = []
    with Cancellation() as cancellation:
        outcome = runner.run(job(tmp_path, tasks, extra_vars={"told": "it's", "password": SECRET}), events.append, cancellation)
    assert (outcome.rc, outcome.cancelled) == (2, False)
    assert [event for event in events if isinstance(event, StepStarted)] == [StepStarted("Say", None), StepStarted("Break", None)]
    assert StepFailed("Break", "localhost", "broken") in events
    assert any(isinstance(event, Output) and "it's" in event.text for event in events)
    # nothing stays but the log
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["ansible.log"]
    log = tmp_path / "run" / "ansible.log"
    assert SECRET not in log.read_text() and log.stat().st_mode & 0o077 == 0


def test_secrets_are_on_no_command_line_and_host_keys_are_checked(tmp_path: Path) -> None:
    files = tmp_path / "it's a file.yml"
    files.write_text("from_file: yes-it-is\n")
    tasks = (
        "    - ansible.builtin.shell: tr '\\0' ' ' < /proc/$(ps -o ppid= -p $PPID | tr -d ' ')/cmdline; cat /proc/[0-9]*/cmdline | tr '\\0' ' '; env\n"
        "      register: seen\n"
        "    - {ansible.builtin.debug: {msg: '{{ from_file }} {{ seen.stdout }}'}}\n"
    )
    wanted = job(tmp_path, tasks, extra_vars={"password": SECRET}, extra_vars_files=[str(files)])
    lines: list[str] = []
    with Cancellation() as cancellation:
        outcome = runner.run(wanted, lambda event: lines.append(event.text) if isinstance(event, Output) else None, cancellation)
    text = "\n".join(lines)
    assert outcome.rc == 0 and "yes-it-is" in text and "ANSIBLE_HOST_KEY_CHECKING=True" in text
    assert SECRET not in text


def test_check_mode(tmp_path: Path) -> None:
    target = tmp_path / "made"
    tasks = f"    - {{ansible.builtin.copy: {{dest: '{target}', content: x}}}}\n"
    with Cancellation() as cancellation:
        assert runner.run(job(tmp_path, tasks, check=True), lambda event: None, cancellation).rc == 0
    assert not target.exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_cancelling_leaves_no_process(tmp_path: Path, signum: int) -> None:
    seconds = f"{3000 + os.getpid() % 997}.{int(signum)}"
    started = threading.Event()

    def kill() -> None:
        deadline = time.monotonic() + 30
        while not sleepers(seconds) and time.monotonic() < deadline:
            time.sleep(0.05)
        started.set()
        os.kill(os.getpid(), signum)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with Cancellation() as cancellation:
            outcome = runner.run(job(tmp_path, f"    - ansible.builtin.command: sleep {seconds}\n"), lambda event: None, cancellation)
    finally:
        killer.join()
    assert started.is_set() and outcome.cancelled and cancellation.requested == signal.Signals(signum).name
    assert sleepers(seconds) == []
    assert not (tmp_path / "run" / "runner").exists()


def test_a_daemon_that_left_the_family_is_found_by_its_mark(tmp_path: Path) -> None:
    mark = f"titan-dr-test-{os.getpid()}-{time.monotonic_ns()}"
    script = "import os, sys, time\nif os.fork(): os._exit(0)\nos.setsid()\nif os.fork(): os._exit(0)\ntime.sleep(300)"
    subprocess.run([sys.executable, "-c", script], env={**os.environ, "MARK": mark}, check=True)
    bystander = subprocess.Popen(["sleep", "300"])
    try:
        deadline = time.monotonic() + 10
        # the second of its three processes ends in its own time
        while len(processes.of_run(mark)) != 1:
            assert time.monotonic() < deadline
        assert processes.end_run(mark) == [] and processes.of_run(mark) == set()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_one_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    mark = f"titan-dr-test-{os.getpid()}-{time.monotonic_ns()}"
    script = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(300)"
    child = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "MARK": mark}, stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    assert processes.end_run(mark, grace=0.3) == []
    assert child.wait(5) == -signal.SIGKILL
    child.stdout.close()


def test_what_an_unmarked_orphan_starts_is_found(tmp_path: Path) -> None:
    """Such as sudo, which clears the environment, when its parent is ended first."""
    mark = f"titan-dr-test-{os.getpid()}-{time.monotonic_ns()}"
    shell = "import subprocess, time\nsubprocess.Popen(['sh', '-c', 'sleep 0.7; sleep 300 & wait'], env={'PATH': '/usr/bin:/bin'})\n"
    script = f"{shell}print('started', flush=True)\ntime.sleep(300)"
    child = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "MARK": mark}, stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline()
    found = processes.of_run(mark)
    child.kill()
    child.wait()
    child.stdout.close()
    deadline = time.monotonic() + 10
    while not (sleeping := set(sleepers("300")) & {process.pid for process in found}):
        assert time.monotonic() < deadline
        time.sleep(0.05)
        found = processes.of_run(mark, found)
    for pid in {process.pid for process in found} | sleeping:
        os.kill(pid, signal.SIGKILL)


def test_another_users_process_is_reported_and_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = f"titan-dr-test-{os.getpid()}-{time.monotonic_ns()}"
    child = subprocess.Popen(["sleep", "300"], env={**os.environ, "MARK": mark})

    def refuse(pid: int, signum: int) -> None:
        raise PermissionError(pid)

    try:
        with monkeypatch.context() as patched:
            patched.setattr(os, "kill", refuse)
            assert processes.end_run(mark, grace=0.1, reach=0.2) == [child.pid]
    finally:
        child.kill()
        child.wait()


def _interrupt(cancellation: Cancellation, body: Callable[[], None]) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    body()


def test_a_signal_interrupts_only_where_it_may() -> None:
    reached: list[str] = []
    with Cancellation() as cancellation:
        _interrupt(cancellation, lambda: reached.append("noted"))
        with pytest.raises(Cancelled), cancellation.attentive():
            reached.append("never")
    with Cancellation() as cancellation, cancellation.attentive():
        with cancellation.attentive(False):
            _interrupt(cancellation, lambda: reached.append("protected"))
        with pytest.raises(Cancelled):
            cancellation.check()
    with pytest.raises(Cancelled), Cancellation() as cancellation, cancellation.attentive():
        _interrupt(cancellation, lambda: reached.append("not reached"))
    assert reached == ["noted", "protected"]


def test_ledger_tail_waits_for_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    tail = LedgerTail(path)
    assert tail.rows() == []
    path.write_text('{"event": "a"}\n{"event"')
    assert tail.rows() == [{"event": "a"}]
    with path.open("a") as stream:
        stream.write(': "b"}\n')
    assert tail.rows() == [{"event": "b"}] and tail.rows() == []
