# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest

import rdb_writer
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb_format
from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb_format import Corrupt, length


@pytest.mark.parametrize("value", [0, 63, 64, 16383, 16384, 2**32 - 1, 2**32, 2**64 - 1])
def test_lengths(value: int) -> None:
    data = b"x" + rdb_writer.length(value)
    assert length(data + b"y", 1) == (value, len(data), False)
    for end in range(1, len(data)):
        with pytest.raises(IndexError):
            length(data[:end], 1)


@pytest.mark.parametrize("kind", [_rdb_format.ENC_INT8, _rdb_format.ENC_INT16, _rdb_format.ENC_INT32, _rdb_format.ENC_LZF])
def test_special_encodings(kind: int) -> None:
    assert length(bytes([0xC0 | kind]), 0) == (kind, 1, True)


@pytest.mark.parametrize("first", [0x82, 0x8F, 0xBF])
def test_what_begins_no_length(first: int) -> None:
    with pytest.raises(Corrupt) as caught:
        length(bytes([0, first]) + bytes(8), 1)
    assert (caught.value.code, caught.value.at) == ("bad-length", 1)


def test_every_type_has_the_name_that_type_gives() -> None:
    assert set(_rdb_format.TYPE_NAMES.values()) == {"string", "list", "set", "zset", "hash", "stream", "module"}
    assert _rdb_format.MODULE_PRE_GA not in _rdb_format.TYPE_NAMES, "no server reads it"
