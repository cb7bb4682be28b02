# SPDX-License-Identifier: GPL-3.0-or-later
"""Ctrl-C and SIGTERM at any moment of a real drill: the report says so, and nothing of the drill is left on the machine.

All drills of this module use one lab folder one after the other, so each one also shows that what the one before left is in nobody's way.
"""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TITAN_DR = str(Path(sys.executable).with_name("titan-dr"))
SCENARIO = "complete_system_failure"

pytestmark = pytest.mark.lab


class Drill:
    """`titan-dr drill` as a shell starts it: a process group of its own, its output read as it comes."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.mark = f"drill-{secrets.token_hex(8)}"
        self.runs = folder / self.mark
        (folder / "tmp").mkdir(exist_ok=True)
        environment = {**os.environ, "TITAN_DR_LAB_DIR": str(folder / "lab"), "TMPDIR": str(folder / "tmp"), "TITAN_DR_TEST_MARK": self.mark}
        argv = [TITAN_DR, "drill", SCENARIO, "--runs-dir", str(self.runs), *arguments]
        self.process = subprocess.Popen(
            argv, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line)
                self._news.notify_all()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def wait_for(self, pattern: str, timeout: float = 240) -> None:
        def said() -> bool:
            return any(re.search(pattern, line) for line in self.lines)

        deadline = time.monotonic() + timeout
        with self._news:
            while not said():
                assert self.process.poll() is None or self._reader.is_alive(), f"it ended without a line like {pattern!r}:\n{self.output}"
                assert time.monotonic() < deadline, f"no line like {pattern!r}:\n{self.output}"
                self._news.wait(0.2)

    def interrupt(self) -> None:
        """What the terminal does at Ctrl-C: the signal goes to the whole foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self, timeout: float = 90) -> int:
        code = self.process.wait(timeout)
        # an open pipe would mean that somebody who inherited it still lives
        self._reader.join(10)
        assert not self._reader.is_alive(), f"somebody still holds the output: {self.processes()}"
        return code

    def processes(self) -> list[str]:
        """Whatever carries this drill's mark, its lab's folder or its temporary folder, in its environment or on its command line."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                command = (entry / "cmdline").read_bytes()
                text = (entry / "environ").read_bytes() + command
                zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except OSError:
                continue
            if not zombie and (self.mark.encode() in text or str(self.folder).encode() in text):
                found.append(f"{entry.name}: " + command.replace(b"\0", b" ").decode(errors="replace"))
        return found

    def kill(self) -> None:
        """Only after a failed test."""
        for line in self.processes():
            os.kill(int(line.partition(":")[0]), signal.SIGKILL)


def podman(*arguments: str) -> list[str]:
    return subprocess.run(["podman", *arguments], capture_output=True, text=True, timeout=60, check=True).stdout.split()


def left_on_the_machine(folder: Path) -> dict[str, Any]:
    label = f"label=titan-lab-dir={folder / 'lab'}"
    return {
        "containers": podman("ps", "--all", "--quiet", "--filter", label),
        "networks": podman("network", "ls", "--quiet", "--filter", label),
        "in the lab's folder": sorted(path.name for path in (folder / "lab").iterdir() if path.name not in ("lock", "build-guide.log")),
        "temporary": sorted(path.name for path in (folder / "tmp").iterdir()),
    }


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # short: ssh's sockets lie in there
    with tempfile.TemporaryDirectory(prefix="dr-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def drill(folder: Path, request: pytest.FixtureRequest) -> Iterator[Drill]:
    started = Drill(folder, *getattr(request, "param", ()))
    try:
        yield started
    finally:
        if started.process.poll() is None or started.processes():
            started.kill()
            environment = {**os.environ, "TITAN_DR_LAB_DIR": str(folder / "lab")}
            subprocess.run([TITAN_DR, "lab", "down"], env=environment, capture_output=True, timeout=120, check=False)


def must_be_cancelled(drill: Drill, code: int, name: str) -> dict[str, Any]:
    assert code == 5, drill.output
    (path,) = drill.runs.glob("*/report.json")
    found: dict[str, Any] = json.loads(path.read_text())
    assert found["result"] == "cancelled", found
    assert name in found["message"]
    assert found["trading"] != "resumed"
    assert "CANCELLED" in drill.output
    assert "Traceback" not in drill.output
    assert [note for note in found["notes"] if "not taken down" in note or "ended badly" in note] == []
    assert drill.processes() == []
    left = left_on_the_machine(drill.folder)
    assert not any(left.values()), left
    assert [path.name for path in drill.runs.glob("*/*/runner")] + [path.name for path in drill.runs.glob("*/runner")] == []
    return found


slow = pytest.mark.slow
MOMENTS = [
    pytest.param("starting titan, replacement", id="the-lab-rises"),
    pytest.param("Drill: writing \\d+ keys", id="seeding", marks=slow),
    pytest.param("Drill: taking a restore point", id="backup", marks=slow),
    pytest.param("Drill: DISASTER", id="disaster"),
    pytest.param("preflight starts", id="preflight", marks=slow),
    pytest.param("dependencies starts", id="dependencies", marks=slow),
    pytest.param("services starts", id="services"),
    pytest.param("validate starts", id="validate", marks=slow),
]


@pytest.mark.parametrize("line", MOMENTS)
def test_ctrl_c(drill: Drill, line: str) -> None:
    drill.wait_for(line)
    # somewhere in this stage, and at the same moment each time
    time.sleep(random.Random(line).uniform(0.0, 1.5))
    drill.interrupt()
    found = must_be_cancelled(drill, drill.end(), "SIGINT")
    assert (found["kind"], found["scenario"]) == ("drill", SCENARIO)
    if line.endswith(" starts"):
        assert line.split()[0] in [phase["name"] for phase in found["phases"]]


def test_sigterm(drill: Drill) -> None:
    drill.wait_for("redis_restore starts")
    drill.process.terminate()
    assert must_be_cancelled(drill, drill.end(), "SIGTERM")["trading"] == "halted"


def test_impatience_changes_nothing(drill: Drill) -> None:
    """Ctrl-C again and again, while it already cleans up."""
    drill.wait_for("Drill: taking a restore point")
    time.sleep(2)  # until Ansible runs
    drill.interrupt()
    for pause in (0.1, 0.5, 1.0):
        time.sleep(pause)
        drill.interrupt()
    must_be_cancelled(drill, drill.end(), "SIGINT")
    assert "already stopping" in drill.output


@slow
def test_ctrl_c_while_a_finished_drill_cleans_up(drill: Drill) -> None:
    drill.wait_for("Drill: taking the lab down")
    drill.interrupt()
    assert drill.end() == 0, drill.output
    assert drill.processes() == []
    left = left_on_the_machine(drill.folder)
    assert not any(left.values()), left
