# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb_feed

DATA = b"REDIS0010" + bytes(range(256)) * 2000
END = b"\xff" + bytes(8)


class Fed:
    """A file and a pipe; what was read from the pipe when nobody writes any more."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(DATA)
        self.handle = os.open(path, os.O_RDONLY)
        self.reader, self.writer = os.pipe()
        self.data = b""
        self.thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        while data := os.read(self.reader, 1 << 16):
            self.data += data

    def feeder(self, seconds: float = 10) -> _rdb_feed.Feeder:
        return _rdb_feed.Feeder(self.handle, [_rdb_feed.Feed(self.writer, time.monotonic() + seconds)])

    def read(self) -> bytes:
        os.close(self.writer)
        self.writer = -1
        self.thread.join(10)
        return self.data

    def close(self) -> None:
        for handle in (self.handle, self.reader, self.writer):
            if handle >= 0:
                os.close(handle)


@pytest.fixture
def fed(tmp_path: Path) -> Iterator[Fed]:
    made = Fed(tmp_path / "dump.rdb")
    yield made
    made.close()


def test_pieces_make_a_file_of_their_own(fed: Fed) -> None:
    feeder = fed.feeder()
    feeder.add(100, 400_000)  # more than the pipe takes: it does not wait
    feeder.add(20, 30)
    fed.thread.start()
    assert feeder.finish() is True
    assert fed.read() == DATA[:9] + DATA[100:400_000] + DATA[20:30] + END


@pytest.mark.parametrize(("limit", "value"), [("_AHEAD", 1000), ("_PIECES_AHEAD", 3)])
def test_too_far_ahead_it_waits(limit: str, value: int, fed: Fed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rdb_feed, limit, value)
    feeder = fed.feeder(0.2)
    began = time.monotonic()
    for number in range(200):
        feeder.add(number * 2000, number * 2000 + 2000)
    assert time.monotonic() - began >= 0.1
    assert feeder.fine is False and feeder.finish() is False, "nobody took anything in time"


def test_a_checker_that_has_ended(fed: Fed) -> None:
    os.close(fed.reader)
    fed.reader = -1
    feeder = fed.feeder()
    feeder.add(0, 100)
    assert feeder.fine is False and feeder.finish() is False


def test_a_checker_that_ends_before_the_end(fed: Fed) -> None:
    feeder = fed.feeder()
    assert feeder.fine
    os.close(fed.reader)
    fed.reader = -1
    assert feeder.finish() is False


def test_a_checker_that_takes_nothing(fed: Fed) -> None:
    feeder = fed.feeder(0.1)
    feeder.add(0, len(DATA))
    assert feeder.fine is True
    assert feeder.finish() is False


def test_a_file_that_became_shorter(fed: Fed, tmp_path: Path) -> None:
    os.truncate(tmp_path / "dump.rdb", 50)
    feeder = fed.feeder()
    feeder.add(40, 60)
    assert feeder.finish() is False
