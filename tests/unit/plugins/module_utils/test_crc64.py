# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import random
from pathlib import Path

import anycrc
import pytest

import rdb_writer
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _crc64

NOISE = random.Random(64).randbytes(3_000_000)
FOLDED = 2 * 267  # more blocks than that are folded
SIZES = [
    0,
    1,
    7,
    8,
    9,
    4096,
    FOLDED * 16,
    FOLDED * 16 + 1,
    30_011,
    FOLDED * 256,
    FOLDED * 256 + 1,
    262_143,
    262_144,
    FOLDED * 4096,
    FOLDED * 4096 + 1,
    2_999_999,
]


@pytest.fixture(params=["anycrc", "python"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "python":
        monkeypatch.setattr(_crc64, "_anycrc", lambda: None)
    return str(request.param)


def test_check_value() -> None:
    assert _crc64.crc64(b"123456789") == 0xE9C6D914C4B8D9CA


@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_another_implementation(engine: str, size: int) -> None:
    data = NOISE[:size]
    assert _crc64.crc64(data) == anycrc.Model("CRC64-REDIS").calc(data)


def test_agrees_with_a_table_walk() -> None:
    assert _crc64.crc64(NOISE[:50_000]) == rdb_writer.crc64(NOISE[:50_000])


@pytest.mark.parametrize("cut", [0, 1, 300_000, len(NOISE)])
def test_continues_and_combines(engine: str, cut: int) -> None:
    first, second = NOISE[:cut], NOISE[cut:]
    whole = _crc64.crc64(NOISE)
    assert _crc64.crc64(second, _crc64.crc64(first)) == whole
    assert _crc64.combine(_crc64.crc64(first), _crc64.crc64(second), len(second)) == whole


@pytest.mark.parametrize("bit", [0, 7, 8 * 1_234_567, 8 * len(NOISE) - 1])
def test_sees_every_bit(engine: str, bit: int) -> None:
    changed = bytearray(NOISE)
    changed[bit // 8] ^= 1 << bit % 8
    assert _crc64.crc64(changed) != _crc64.crc64(NOISE)


def test_zeros_count(engine: str) -> None:
    assert _crc64.crc64(bytes(1_000_000)) == 0
    assert _crc64.crc64(b"\1" + bytes(1_000_000)) != _crc64.crc64(b"\1" + bytes(999_999))


def test_buffers_of_every_kind() -> None:
    wanted = _crc64.crc64(NOISE[:1000])
    assert _crc64.crc64(bytearray(NOISE[:1000])) == wanted == _crc64.crc64(memoryview(NOISE)[:1000])


def test_file(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "noise"
    path.write_bytes(NOISE)
    handle = os.open(path, os.O_RDONLY)
    try:
        assert _crc64.of_file(handle, 0, len(NOISE)) == _crc64.crc64(NOISE)
        assert _crc64.of_file(handle, 11, 2_500_000) == _crc64.crc64(NOISE[11:2_500_000])
        with pytest.raises(EOFError, match="ends before offset 3000001"):
            _crc64.of_file(handle, 0, len(NOISE) + 1)
    finally:
        os.close(handle)


def test_engine_is_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _crc64.engine() == "anycrc"
    monkeypatch.setattr(_crc64.importlib.util, "find_spec", lambda name: None)
    assert _crc64.engine() == "python"
