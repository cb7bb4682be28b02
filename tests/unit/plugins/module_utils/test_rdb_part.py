# SPDX-License-Identifier: GPL-3.0-or-later
"""One part by itself; what the parts come to together is in test_rdb_walk.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import rdb_writer as w
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb_format as fmt
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb_part

HEAD = 9
KEYS = [w.key(f"order:{number}", fmt.STRING, w.string("v")) for number in range(10)]


@pytest.fixture
def handle(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "dump.rdb"
    path.write_bytes(w.rdb(b"".join(KEYS)))
    handle = os.open(path, os.O_RDONLY)
    yield handle
    os.close(handle)


def job(handle: int, magic: str = "REDIS", version: int = 10) -> _rdb_part.Job:
    return _rdb_part.Job(handle, os.fstat(handle).st_size, magic, version, 0)


def border(handle: int) -> int:
    """Where the key order:4 begins."""
    return _rdb_part.read(handle, 0, os.fstat(handle).st_size).index(KEYS[4])


def test_a_part_ends_at_the_next_border_and_the_last_one_with_the_file(handle: int) -> None:
    middle = border(handle)
    first, second = _rdb_part.Walker(job(handle), HEAD, 0, [middle]), _rdb_part.Walker(job(handle), middle, _rdb_part.UNKNOWN)
    first.run()
    second.run()
    assert (first.part.entries, first.part.end, first.part.ended) == (4, middle, False)
    assert (second.part.entries, second.part.ended, second.part.findings) == (6, True, [])
    assert second.part.databases == {_rdb_part.UNKNOWN: [6, 0]}, "whose keys they are is not known in the middle of a file"


def test_a_border_in_the_middle_of_an_entry_is_passed_over(handle: int) -> None:
    walker = _rdb_part.Walker(job(handle), HEAD, 0, [border(handle) + 1])
    walker.run()
    assert (walker.part.entries, walker.part.ended) == (10, True)


@pytest.mark.parametrize(("magic", "version", "kind", "held"), [
    ("REDIS", 9, fmt.HASH_LISTPACK, False),
    ("REDIS", 10, fmt.HASH_LISTPACK, True),
    ("REDIS", 11, fmt.HASH_METADATA, False),
    ("REDIS", 12, fmt.HASH_METADATA, True),
    ("VALKEY", 80, fmt.HASH_LISTPACK, True),
    ("VALKEY", 80, fmt.HASH_METADATA, False),
])  # fmt: skip
def test_a_file_holds_the_types_of_its_version(handle: int, magic: str, version: int, kind: int, held: bool) -> None:
    assert bool(job(handle, magic, version).layouts()[kind]) is held


def test_a_file_that_became_shorter_is_told(handle: int) -> None:
    with pytest.raises(OSError, match="became shorter"):
        _rdb_part.read(handle, 0, os.fstat(handle).st_size + 1)


def test_the_salt_of_a_database_leaves_the_partition() -> None:
    salts = [_rdb_part.salt_of(database) for database in range(16)]
    assert salts[0] == 0 and len(set(salts)) == 16 and max(salts) < 1 << 52
