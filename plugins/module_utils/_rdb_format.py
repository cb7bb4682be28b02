# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Numbers and lengths of the RDB format: RDB 1 to 12 of Redis and RDB 80 of Valkey.

Source of the format: https://rdb.fnordig.de/file_format.html and rdb.h of Redis 7.4 and Valkey 9.
"""

from __future__ import annotations

import typing as t

NEWEST_REDIS = 12
VALKEY = 80
HEADER_SIZE = 9
FOOTER_SIZE = 8
FIRST_WITH_CHECKSUM = 5

OP_SLOT_INFO = 244
OP_FUNCTION2 = 245
OP_FUNCTION_PRE_GA = 246
OP_MODULE_AUX = 247
OP_IDLE = 248
OP_FREQ = 249
OP_AUX = 250
OP_RESIZEDB = 251
OP_EXPIRE_MS = 252
OP_EXPIRE_S = 253
OP_SELECTDB = 254
OP_EOF = 255

STRING = 0
LIST = 1
SET = 2
ZSET = 3
HASH = 4
ZSET_2 = 5
MODULE_PRE_GA = 6
MODULE_2 = 7
HASH_ZIPMAP = 9
LIST_ZIPLIST = 10
SET_INTSET = 11
ZSET_ZIPLIST = 12
HASH_ZIPLIST = 13
LIST_QUICKLIST = 14
STREAM_LISTPACKS = 15
HASH_LISTPACK = 16
ZSET_LISTPACK = 17
LIST_QUICKLIST_2 = 18
STREAM_LISTPACKS_2 = 19
SET_LISTPACK = 20
STREAM_LISTPACKS_3 = 21
# 22 depends on the magic: HASH_2 (fields with a time to live) in Valkey, a pre-release format in Redis
HASH_2_VALKEY = 22
HASH_METADATA_PRE_GA = 22
HASH_LISTPACK_EX_PRE_GA = 23
HASH_METADATA = 24
HASH_LISTPACK_EX = 25

# Name that TYPE of Redis gives, by value type.
TYPE_NAMES = {
    STRING: "string",
    **dict.fromkeys((LIST, LIST_ZIPLIST, LIST_QUICKLIST, LIST_QUICKLIST_2), "list"),
    **dict.fromkeys((SET, SET_INTSET, SET_LISTPACK), "set"),
    **dict.fromkeys((ZSET, ZSET_2, ZSET_ZIPLIST, ZSET_LISTPACK), "zset"),
    **dict.fromkeys((HASH, HASH_ZIPMAP, HASH_ZIPLIST, HASH_LISTPACK, 22, 23, HASH_METADATA, HASH_LISTPACK_EX), "hash"),
    **dict.fromkeys((STREAM_LISTPACKS, STREAM_LISTPACKS_2, STREAM_LISTPACKS_3), "stream"),
    MODULE_2: "module",
}

# Special encodings of a string, the low six bits of a first byte >= 0xC0.
ENC_INT8 = 0
ENC_INT16 = 1
ENC_INT32 = 2
ENC_LZF = 3


class Corrupt(Exception):
    """Bytes that break the format. `code` is one of _rdb_report.CODES, `at` the position in the buffer that was read."""

    def __init__(self, code: str, text: str, at: int) -> None:
        super().__init__(text)
        self.code = code
        self.at = at


def length(buf: t.Any, at: int) -> tuple[int, int, bool]:
    """Read a length at `at`: (value, position after it, whether it is a special string encoding). IndexError when the buffer ends.

    `buf` is anything that gives int for an index and bytes for a slice (bytes, mmap).
    """
    first = buf[at]
    kind = first >> 6
    if kind == 0:
        return first, at + 1, False
    if kind == 1:
        return (first & 0x3F) << 8 | buf[at + 1], at + 2, False
    if kind == 3:
        return first & 0x3F, at + 1, True
    if first == 0x80:
        buf[at + 4]
        return int.from_bytes(buf[at + 1 : at + 5], "big"), at + 5, False
    if first == 0x81:
        buf[at + 8]
        return int.from_bytes(buf[at + 1 : at + 9], "big"), at + 9, False
    raise Corrupt("bad-length", f"0x{first:02x} begins no length", at)
