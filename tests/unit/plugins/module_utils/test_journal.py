# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def row(step: str, event: str = "intent", run_id: str = "r1", **more: Any) -> dict[str, Any]:
    return {"run_id": run_id, "step": step, "event": event, **more}


def test_what_was_appended_is_read(path: Path) -> None:
    rows = [row("one"), row("one", "done"), row("two", precondition={"x": "ü\n"})]
    for item in rows:
        _journal.append(str(path), item)
    assert _journal.read(str(path)) == rows and path.stat().st_mode & 0o777 == 0o600


def test_no_journal_has_no_rows(path: Path) -> None:
    assert _journal.read(str(path)) == []


@pytest.mark.parametrize("torn", [b'{"step": "tw', b'{"step": "two", "event": "done"}', b"\0\0\0", b"x"])
def test_a_torn_last_row_does_not_count_and_is_taken_away(path: Path, torn: bytes) -> None:
    _journal.append(str(path), row("one"))
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert _journal.read(str(path)) == [row("one")]
    _journal.append(str(path), row("three"))
    assert path.read_bytes() == whole + (json.dumps(row("three")) + "\n").encode()


def test_a_journal_that_is_all_torn(path: Path) -> None:
    path.write_bytes(b'{"step": "one", "ev')
    _journal.append(str(path), row("one"))
    assert _journal.read(str(path)) == [row("one")]


@pytest.mark.parametrize("garbage", [b"\xff\xfe", b"[]", b"7", b"{}", b'{"step": 1, "event": "done"}', b""])
def test_a_line_that_is_no_row_hides_no_other(path: Path, garbage: bytes) -> None:
    _journal.append(str(path), row("one"))
    path.write_bytes(path.read_bytes() + garbage + b"\n")
    _journal.append(str(path), row("two"))
    assert _journal.read(str(path)) == [row("one"), row("two")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_an_error_and_leaves_whole_rows(small_disk: Path) -> None:
    path = small_disk / "journal.jsonl"
    with pytest.raises(OSError) as error:
        for number in range(200):
            _journal.append(str(path), row(str(number), detail="x" * 100))
    assert error.value.errno == errno.ENOSPC
    assert path.read_bytes().endswith(b"\n") and [item["step"] for item in _journal.read(str(path))] == [str(number) for number in range(number)]


def test_a_command_that_was_stopped_in_its_row_does_not_stop_the_others(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_journal, "WAIT", 0.1)
    with open(path, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        began = time.monotonic()
        with pytest.raises(OSError):
            _journal.append(str(path), row("one"))
        assert time.monotonic() - began < 5
    _journal.append(str(path), row("one"))


def test_rows_of_many_processes_stay_whole(path: Path) -> None:
    children = []
    for child in range(4):
        pid = os.fork()
        if not pid:
            for number in range(25):
                _journal.append(str(path), row(f"{child}-{number}", detail="x" * 500))
            os._exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    assert {item["step"] for item in _journal.read(str(path))} == {f"{child}-{number}" for child in range(4) for number in range(25)}
    assert path.read_bytes().count(b"\n") == 100


ROWS = [
    row("baseline"),
    row("baseline", "done"),
    row("stage"),
    row("baseline", run_id="r2"),
    row("swap"),
    row("stage", "done"),
    row("start"),
    row("start", "failed"),
    row("swap"),
]


def test_steps_are_those_of_the_run_with_their_last_event() -> None:
    found = _journal.steps(ROWS, "r1")
    assert found == {"baseline": "done", "stage": "done", "start": "failed", "swap": "intent"}
    assert list(found)[-1] == "swap", "what was begun last comes last"
    assert _journal.steps(ROWS, "r2") == {"baseline": "intent"} and _journal.steps(ROWS, "r3") == {}


@pytest.mark.parametrize(
    ("count", "text"), [(0, "before its first step"), (1, "in baseline"), (2, "after baseline"), (8, "when start had failed"), (9, "in swap")]
)
def test_how_far_a_run_came(count: int, text: str) -> None:
    assert _journal.came_to(ROWS[:count], "r1") == text


def test_open_steps_are_told_by_their_process() -> None:
    rows = [
        row("stage", pid=1),
        row("stage", pid=2),
        row("stage", "done", pid=2),
        row("swap", pid=3),
        row("halt"),
        row("swap", "failed", pid=3),
        row("x", pid=3),
    ]
    assert _journal.open_steps(rows) == {1: "stage", 3: "x"}
