# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs one playbook. The only file that knows ansible-runner."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ansible_runner

from titan_dr import processes
from titan_dr.cancel import Cancellation
from titan_dr.events import Event, Outcome, Output, StepFailed, StepStarted, Tick
from titan_dr.supervisor import Supervisor, Watch

LOG_FILE = "ansible.log"
# What of a caller's environment would speak for another run.
_FOREIGN = tuple(f"TITAN_DR_{name}" for name in ("CLOCK_ARMED", "RUN_ID", "RUN_DIR", "KIND", "INCIDENT_STARTED_AT", "STARTED_AT", "ATTEMPT", "COMMAND"))


@dataclass(frozen=True)
class Job:
    playbook: str  # a file, or the name of an installed collection's playbook
    inventory: Sequence[str]
    run_dir: Path
    project_dir: Path | None = None  # where ansible.cfg is looked for
    check: bool = False
    extra_vars: Mapping[str, Any] = field(default_factory=dict)
    extra_vars_files: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    verbosity: int = 0


def run(job: Job, on_event: Callable[[Event], None], cancellation: Cancellation, watch: Watch | None = None) -> Outcome:
    """Runs the job until its end, its deadline or a signal. Afterwards none of its processes lives, and no input of it is left on the disk."""
    job.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    private = job.run_dir / "runner"
    # short, because a unix socket's path has 107 characters; unique, because the sockets' owners are found by it
    sockets = tempfile.mkdtemp(prefix=f"titan-dr-{secrets.token_hex(8)}-")
    left: list[int] = []
    with cancellation.attentive(False):
        try:
            (Path(sockets) / "tmp").mkdir()
            _write_inputs(private, job)
            with Supervisor(sockets, cancellation, watch or Watch()) as supervisor:
                rc, status = _run(job, private, sockets, on_event, supervisor)
        finally:
            left = processes.end_run(sockets)
            _keep_log(private, job.run_dir)
            shutil.rmtree(private, ignore_errors=True)
            shutil.rmtree(sockets, ignore_errors=True)
            if left:
                print(f"titan-dr: processes that could not be ended: {left}", file=sys.stderr)
        overdue = supervisor.reason == "deadline" and rc != 0
        return Outcome(rc, bool(cancellation.requested) and rc != 0 and not overdue, status, overdue, tuple(left))


def _run(job: Job, private: Path, sockets: str, on_event: Callable[[Event], None], supervisor: Supervisor) -> tuple[int, str]:
    def handle(data: dict[str, Any]) -> bool:
        for event in _events(data):
            on_event(event)
        return False  # no copy of every result on the disk

    def poll() -> bool:
        on_event(Tick())
        # not before the supervisor has ended everything: ansible-runner would kill the controller alone and orphan the workers
        return supervisor.reason is not None

    done = ansible_runner.run(
        private_data_dir=str(private),
        ident="run",
        playbook=job.playbook,
        inventory=[str(inventory) for inventory in job.inventory],
        project_dir=str(job.project_dir) if job.project_dir else None,
        cmdline=_cmdline(job) or None,
        verbosity=job.verbosity or None,
        envvars=_environment(job, sockets),
        event_handler=handle,
        cancel_callback=poll,
        quiet=True,
    )
    on_event(Tick())
    # a controller that was killed has no exit code
    return (254 if done.rc is None else int(done.rc)), str(done.status)


def _write_inputs(private: Path, job: Job) -> None:
    env = private / "env"
    env.mkdir(parents=True, mode=0o700)
    # ansible-runner ignores these settings when they come as an argument and no such file exists
    settings = {"pexpect_timeout": 1, "pexpect_use_poll": True}
    for name, content in (("settings", settings), ("extravars", dict(job.extra_vars))):
        with os.fdopen(os.open(env / name, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as stream:
            json.dump(content, stream)


def _cmdline(job: Job) -> str:
    words = ["--check", "--diff"] if job.check else []
    for path in job.extra_vars_files:
        words += ["-e", f"@{Path(path).resolve()}"]
    return " ".join(_quoted(word) for word in words)


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\"'\"'") + "'"


def _environment(job: Job, sockets: str) -> dict[str, str]:
    environment = {name: "" for name in _FOREIGN if name in os.environ}
    environment.update(job.environment)
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    # the mark by which every process of this run is found again
    environment["ANSIBLE_SSH_CONTROL_PATH_DIR"] = sockets
    # what a killed process leaves behind goes with the run
    environment["TMPDIR"] = environment["ANSIBLE_LOCAL_TEMP"] = f"{sockets}/tmp"
    # ansible-runner switches host key checking off unless told
    environment["ANSIBLE_HOST_KEY_CHECKING"] = os.environ.get("ANSIBLE_HOST_KEY_CHECKING", "True")
    return environment


def _events(data: Mapping[str, Any]) -> list[Event]:
    kind = data.get("event")
    details = data.get("event_data") or {}
    events: list[Event] = [Tick()]
    if kind in ("playbook_on_task_start", "playbook_on_handler_task_start"):
        events.append(StepStarted(str(details.get("task") or ""), details.get("role") or None))
    # an ignored unreachable host, one that is expected to be dead, differs from another in its text alone
    elif kind in ("runner_on_failed", "runner_on_unreachable") and not details.get("ignore_errors") and "...ignoring" not in str(data.get("stdout")):
        result = details.get("res") or {}
        message = result.get("msg") or result.get("censored") or "failed"
        said = result.get("titan_dr")
        # our own modules' steps fail, so that a rescue runs
        unreachable = kind == "runner_on_unreachable" or (isinstance(said, Mapping) and bool(said.get("unreachable")))
        events.append(StepFailed(str(details.get("task") or ""), str(details.get("host") or ""), str(message), unreachable))
    if data.get("stdout"):
        events.append(Output(str(data["stdout"])))
    return events


def _keep_log(private: Path, run_dir: Path) -> None:
    log = private / "artifacts" / "run" / "stdout"
    # a disk without space for it must not keep a run from its end
    with suppress(OSError):
        if log.is_file():
            kept = run_dir / LOG_FILE
            shutil.copyfile(log, kept)
            kept.chmod(0o600)
