# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _latch


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "halt"


def fasten(path: Path) -> int:
    latch, fresh = _latch.fasten(str(path), "why", "run", 1000.0)
    assert fresh
    return int(latch["generation"])


def test_fasten_and_read(path: Path) -> None:
    assert _latch.read(str(path)) is None
    assert fasten(path) == 1
    assert _latch.read(str(path)) == json.loads(path.read_text()) == {"generation": 1, "reason": "why", "run_id": "run", "since": 1000.0}
    assert path.stat().st_mode & 0o777 == 0o644
    assert {item.name for item in path.parent.iterdir()} == {"halt", "halt.generation"}


def test_fastening_again_keeps_the_first(path: Path) -> None:
    fasten(path)
    latch, fresh = _latch.fasten(str(path), "other", "other-run", 2000.0)
    assert not fresh and latch["generation"] == 1 and latch["run_id"] == "run"


def test_the_generation_only_grows(path: Path) -> None:
    for generation in (1, 2, 3):
        assert fasten(path) == generation
        assert _latch.release(str(path), generation)
    path.with_name("halt.generation").write_text("41\n")
    assert fasten(path) == 42


@pytest.mark.parametrize("garbage", [b"", b"x", b"\xff\xfe", b"-5"])
def test_a_counter_that_cannot_be_read_does_not_start_again(path: Path, garbage: bytes) -> None:
    assert fasten(path) == 1
    _latch.release(str(path), 1)
    path.with_name("halt.generation").write_bytes(garbage)
    assert fasten(path) == 1000, "the clock is above any count"
    _latch.release(str(path), 1000)
    assert fasten(path) == 1001


def test_an_old_generation_releases_nothing(path: Path) -> None:
    fasten(path)
    _latch.release(str(path), 1)
    fasten(path)
    for generation in (1, 3, 0):
        with pytest.raises(_latch.LatchError, match="generation 2"):
            _latch.release(str(path), generation)
    assert path.exists()


def test_releasing_nothing(path: Path) -> None:
    assert _latch.release(str(path), 1) is False


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b'{"generation": "1"}', b"\xff", b"7"])
def test_an_unreadable_latch_is_a_latch(path: Path, text: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(text)
    found = _latch.read(str(path))
    assert found and found["generation"] == 0
    assert _latch.fasten(str(path), "why", "run", 1.0) == (found, False)
    with pytest.raises(_latch.LatchError):
        _latch.release(str(path), 1)
    assert path.read_bytes() == text


def test_a_latch_that_may_not_be_read_is_not_none(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(OSError):
        _latch.read(str(path))


# --- step by step -------------------------------------------------------------------------------------------------------


def test_a_latch_allows_more_and_keeps_its_generation(path: Path) -> None:
    fasten(path)
    for mode in _latch.MODES:
        _latch.loosen(str(path), 1, mode)
        assert json.loads(path.read_text()) == {"generation": 1, "reason": "why", "run_id": "run", "since": 1000.0, "mode": mode}
    assert _latch.release(str(path), 1)


@pytest.mark.parametrize("mode", ["full", "", "halted", "OBSERVE"])
def test_a_latch_allows_nothing_else(path: Path, mode: str) -> None:
    fasten(path)
    with pytest.raises(_latch.LatchError, match="cannot allow"):
        _latch.loosen(str(path), 1, mode)
    assert "mode" not in json.loads(path.read_text())


def test_only_the_current_generation_loosens(path: Path) -> None:
    with pytest.raises(_latch.LatchError, match="no latch any more"):
        _latch.loosen(str(path), 1, "observe")
    fasten(path)
    with pytest.raises(_latch.LatchError, match="halted trading again"):
        _latch.loosen(str(path), 7, "observe")
    assert "mode" not in json.loads(path.read_text()) and _latch.read(str(path.with_name("nothing"))) is None


def test_a_halt_takes_back_what_a_resume_had_allowed(path: Path) -> None:
    """A run that died in the middle of its resume left it; whoever halts now halts, and the old resume is void."""
    fasten(path)
    _latch.loosen(str(path), 1, "reduce_only")
    latch, fresh = _latch.fasten(str(path), "again", "r2", 5.0)
    assert fresh and latch["generation"] == 2 and "mode" not in latch and _latch.read(str(path)) == latch


def test_an_operator_halts_anew(path: Path) -> None:
    """The resume that another run is about to make carries the old generation."""
    fasten(path)
    latch, fresh = _latch.fasten(str(path), "operator", "r2", 5.0, anew=True)
    assert fresh and latch["generation"] == 2 and latch["reason"] == "operator"


def test_venues(path: Path) -> None:
    assert _latch.venues(str(path)) == []
    assert _latch.fasten_venue(str(path), "bybit", "down", "r1", 1.0) and not _latch.fasten_venue(str(path), "bybit", "again", "r2", 2.0)
    assert _latch.fasten_venue(str(path), "binance", "down", "r1", 1.0)
    assert _latch.venues(str(path)) == ["binance", "bybit"] and _latch.read(str(path)) is None
    assert json.loads((path.parent / "halt.d/bybit").read_text()) == {"venue": "bybit", "reason": "down", "run_id": "r1", "since": 1.0}
    assert _latch.release_venues(str(path), ["bybit", "kraken"]) == ["bybit"] and _latch.venues(str(path)) == ["binance"]


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden"])
def test_a_venue_is_a_name(path: Path, name: str) -> None:
    with pytest.raises(_latch.LatchError):
        _latch.fasten_venue(str(path), name, "down", "r1", 1.0)


# --- side by side ----------------------------------------------------------------------------------------------------


def halts(path: Path, count: int) -> list[subprocess.Popen[str]]:
    """Processes that fasten a new latch each, at the same moment."""
    program = "import sys, time; from ansible_collections.titan.disaster_recovery.plugins.module_utils import _latch\n"
    program += "sys.stdin.read(); print(_latch.fasten(sys.argv[1], 'why', 'run', time.time(), anew=True)[0]['generation'])"
    command = [sys.executable, "-c", program, str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(count)]


def test_halts_at_the_same_moment_all_count(path: Path) -> None:
    running = halts(path, 8)
    for process in running:
        assert process.stdin
        process.stdin.close()
    told = sorted(int(process.stdout.read()) for process in running if process.stdout)
    assert told == list(range(1, 9)) and [process.wait(10) for process in running] == [0] * 8
    assert json.loads(path.read_text())["generation"] == 8 and {item.name for item in path.parent.iterdir()} == {"halt", "halt.generation"}


@pytest.fixture
def frozen(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Somebody was stopped in the middle of a change."""
    monkeypatch.setattr(_latch, "PATIENCE", 0.2)
    fasten(path)
    folder = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    yield
    os.close(folder)


def test_a_halt_does_not_wait_for_one_that_is_frozen(path: Path, frozen: None) -> None:
    latch, fresh = _latch.fasten(str(path), "why", "run", 1000.0, anew=True)
    assert fresh and latch["generation"] == 2 == json.loads(path.read_text())["generation"]


def test_what_allows_more_is_refused_meanwhile(path: Path, frozen: None) -> None:
    for change in (lambda: _latch.loosen(str(path), 1, "observe"), lambda: _latch.release(str(path), 1)):
        with pytest.raises(_latch.LatchError, match="another process"):
            change()
    assert _latch.read(str(path)) == {"generation": 1, "reason": "why", "run_id": "run", "since": 1000.0}
