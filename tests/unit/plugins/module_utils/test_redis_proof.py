# SPDX-License-Identifier: GPL-3.0-or-later
"""What is proven is proven through redis_stage, see modules/test_restore_faults.py. Here is what stands alone."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _redis_proof
from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb_report import Contents, Finding


def test_what_is_written_is_hashed(box: Path) -> None:
    data = os.urandom(3_000_000)
    sink = _redis_proof.Sink(str(box / "dump"))
    for at in range(0, len(data), 70_000):
        sink.stream.write(data[at : at + 70_000])
    assert sink.close() == hashlib.sha256(data).hexdigest() and (box / "dump").read_bytes() == data


def test_what_cannot_be_written_is_no_digest(box: Path) -> None:
    sink = _redis_proof.Sink("/dev/full")
    with pytest.raises(OSError, match=r"Broken pipe|No space left"):
        for dummy in range(1000):
            sink.stream.write(b"x" * 100_000)
    with pytest.raises(OSError, match="No space left"):
        sink.close()


@pytest.mark.parametrize(
    ("rule", "broken"),
    [
        ({"min": 3}, False),
        ({"min": 4}, True),
        ({"max": 3}, False),
        ({"max": 2}, True),
        ({"expires_max": 1}, False),
        ({"expires_max": 0}, True),
        ({}, False),
    ],
)
def test_invariants(rule: dict[str, int], broken: bool) -> None:
    contents = Contents(classes={"orders": {"keys": 3, "expires": 1, "expired": 0}})
    assert bool(_redis_proof.invariant_faults([{"class": "orders", **rule}], contents)) is broken


def test_losses() -> None:
    assert _redis_proof.losses(Contents(classes={"orders": {"keys": 3, "expires": 1, "expired": 0}})) == []
    contents = Contents(
        classes={"orders": {"keys": 3, "expires": 2, "expired": 1}, "signals": {"keys": 9, "expires": 9, "expired": 9}},
        expired=10,
        findings=[Finding("empty-container", "x")],
    )
    assert _redis_proof.losses(contents) == [
        "10 keys expired since the snapshot and do not come back: signals 9, orders 1",
        "1 empty keys are dropped on loading",
    ]
