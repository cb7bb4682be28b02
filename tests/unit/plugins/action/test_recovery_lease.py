# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure

from ansible_collections.titan.disaster_recovery.plugins.action import recovery_lease

ROOT = Path(__file__).resolve().parents[4]
ME = {"user": "ann", "host": "bastion", "machine_id": "m", "boot_id": "b", "pid_ns": 7, "pid": 100, "started": 5000}


@pytest.mark.parametrize(
    ("holder", "began", "dead"),
    [
        ({}, 5000, False),
        ({}, -1, True),
        ({}, 6000, True),
        ({}, 0, False),
        ({"started": 0}, -1, False),
        ({"started": -1}, -1, False),
        ({"pid_ns": 8}, -1, False),
        ({"pid_ns": 0}, -1, False),
        ({"boot_id": ""}, -1, False),
        ({"boot_id": "old"}, 5000, True),
        ({"boot_id": "old", "host": "desk"}, -1, False),
        ({"boot_id": "old", "machine_id": "n"}, -1, False),
        ({"boot_id": "old", "pid_ns": 8}, -1, True),
    ],
)
def test_proven_dead(holder: dict[str, Any], began: int, dead: bool) -> None:
    """By the end of its process, by another one under its number, by a restart of its machine; by nothing else."""
    assert recovery_lease.proven_dead({**ME, **holder}, ME, lambda pid: began) == dead


def test_nothing_is_known_without_knowing_ones_own_machine() -> None:
    assert not recovery_lease.proven_dead({**ME, "boot_id": "old", "machine_id": ""}, {**ME, "machine_id": ""})
    assert not recovery_lease.proven_dead(ME, {**ME, "boot_id": ""}) and not recovery_lease.proven_dead({}, ME)


def test_started(monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen(["sleep", "60"])
    first = recovery_lease.started(process.pid)
    assert first > 0 and recovery_lease.started(process.pid) == first
    process.send_signal(signal.SIGSTOP)
    assert recovery_lease.started(process.pid) == first, "what was stopped is not dead"
    with monkeypatch.context() as patch:
        patch.setattr(recovery_lease, "_line", lambda path: "")
        assert recovery_lease.started(process.pid) == 0, "what is hidden is not dead"
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert recovery_lease.started(process.pid) == -1
    process.wait()
    assert recovery_lease.started(process.pid) == -1


def test_another_users_process_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(recovery_lease.os, "kill", forbidden)
    assert recovery_lease.started(os.getpid()) > 0


def test_who_asks_is_the_process_that_runs_the_playbook() -> None:
    """A task runs in a child of it."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(recovery_lease.myself()))
    child.start()
    found = queue.get()
    child.join()
    assert found == recovery_lease.myself()
    assert found["pid"] == os.getpid() and found["started"] > 0 and found["boot_id"] and found["pid_ns"]


def test_an_attempt_has_a_name_without_the_clock_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TITAN_DR_ATTEMPT", raising=False)
    named = recovery_lease.attempt_of(ME)
    assert len(named) == 8 and named == recovery_lease.attempt_of(dict(ME)) != recovery_lease.attempt_of({**ME, "started": 5001})
    monkeypatch.setenv("TITAN_DR_ATTEMPT", "0a1b2c3d")
    assert recovery_lease.attempt_of(ME) == "0a1b2c3d"


class Action(recovery_lease.ActionModule):
    """With a server that answers as it is told."""

    def __init__(self, *answers: Any, ignore_unreachable: bool = False, **args: Any) -> None:
        self._task = SimpleNamespace(args=args, ignore_unreachable=ignore_unreachable)
        self.answers, self.asked = list(answers), []  # type: ignore[var-annotated]

    def _execute_module(self, **call: Any) -> dict[str, Any]:
        self.asked.append(call["module_args"])
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery_lease.ActionBase, "run", lambda self, tmp=None, task_vars=None: {})
    monkeypatch.setattr(recovery_lease, "myself", lambda: ME)
    monkeypatch.setenv("TITAN_DR_ATTEMPT", "0a1b2c3d")


def refused(**owner: Any) -> dict[str, Any]:
    return {"failed": True, "msg": "Run R holds", "holder": {"epoch": 3, "owner": {**ME, **owner}}}


def test_the_module_is_told_who_asks(plain: None) -> None:
    action = Action({"changed": True}, state="held")
    assert action.run(task_vars={}) == {"changed": True}
    assert action.asked == [{"state": "held", "owner": ME, "attempt": "0a1b2c3d"}]


def test_a_named_attempt_is_kept(plain: None) -> None:
    action = Action({}, state="held", attempt="x")
    action.run(task_vars={})
    assert action.asked[0]["attempt"] == "x"


def test_a_dead_holder_is_said_to_be_dead(plain: None) -> None:
    action = Action(refused(boot_id="old"), {"changed": True}, state="held")
    assert action.run(task_vars={}) == {"changed": True}
    assert [asked.get("dead_epoch") for asked in action.asked] == [None, 3]


@pytest.mark.parametrize("answer", [refused(host="desk", boot_id="other"), {"failed": True, "msg": "x", "holder": {}}, {"failed": True, "msg": "x"}])
def test_what_is_not_known_to_be_dead_is_asked_once(plain: None, answer: dict[str, Any]) -> None:
    action = Action(answer, state="held")
    assert action.run(task_vars={}) == answer and len(action.asked) == 1


def test_a_server_that_cannot_be_reached_is_a_failure_that_a_rescue_sees(plain: None) -> None:
    found = Action(AnsibleConnectionFailure("no route"), state="held").run(task_vars={"inventory_hostname": "titan-1"})
    assert found["failed"] and "titan-1 cannot be reached" in found["msg"] and found["titan_dr"] == {"unreachable": "titan-1"}
    with pytest.raises(AnsibleConnectionFailure):
        Action(AnsibleConnectionFailure("no route"), ignore_unreachable=True, state="held").run(task_vars={})


PLAYBOOK = """
- hosts: localhost
  gather_facts: false
  tasks:
    - titan.disaster_recovery.recovery_lease: {state: held, run_id: "{{ run }}", scenario: x, incident_at: "{{ at }}"}
      register: found
    - ansible.builtin.copy: {dest: "{{ out }}", content: "{{ found | to_json }}", mode: "0600"}
    - ansible.builtin.command: sleep {{ sleep }}
      changed_when: true
"""


def test_with_real_playbooks_the_next_goes_on_when_the_first_was_killed(tmp_path: Path) -> None:
    """And is refused while it lives. All of it on a /var/lib and a /run of its own."""
    (tmp_path / "play.yml").write_text(PLAYBOOK)
    playbook = shutil.which("ansible-playbook", path=f"{ROOT}/.venv/bin:{os.environ['PATH']}")
    mount = 'mount -t tmpfs none /run && mkdir -p /var/lib && mount --bind "$0" /var/lib && exec "$@"'
    (tmp_path / "lib").mkdir()

    def command(name: str, at: int, sleep: int) -> list[str]:
        variables = json.dumps({"run": name, "at": at, "out": str(tmp_path / name), "sleep": sleep})
        inside = [str(playbook), "-i", "localhost,", "-c", "local", "-e", variables, "-e", "ansible_python_interpreter=/usr/bin/python3", "play.yml"]
        return ["unshare", "--mount", "sh", "-c", mount, str(tmp_path / "lib"), *inside]

    if not playbook or subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "playbooks/collections"), "ANSIBLE_FORCE_COLOR": "0"}
    environment = {name: value for name, value in environment.items() if not name.startswith("TITAN_DR_")}
    options: dict[str, Any] = {"cwd": tmp_path, "env": environment, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    first = subprocess.Popen(command("one", 1000, 60), start_new_session=True, **options)
    try:
        end = time.monotonic() + 30
        while not (tmp_path / "one").exists():
            assert time.monotonic() < end and first.poll() is None
            time.sleep(0.05)
        second = subprocess.run(command("two", 2000, 0), check=False, timeout=60, **options)
        assert second.returncode and "Run one (scenario x, epoch 1) holds" in second.stdout, second.stdout
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
    third = subprocess.run(command("three", 3000, 0), check=False, timeout=60, **options)
    assert third.returncode == 0, third.stdout
    found = json.loads((tmp_path / "three").read_text())
    assert (found["lease"]["run_id"], found["lease"]["epoch"], found["lease"]["incident_at"]) == ("one", 2, 1000.0)
