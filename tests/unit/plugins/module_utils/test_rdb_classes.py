# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import random

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb_classes


def test_classes_are_bounded_whatever_the_order() -> None:
    chance = random.Random(1)
    few = [b"order:%d" % number for number in range(5000)]
    users = [b"user:%d:balance" % number for number in range(5000)]
    firsts = [b"t%d:x" % number for number in range(5000)]
    singles = [b"single%d" % number for number in range(5000)]
    odd = [b":a", b"::", b"", b"x" * 300 + b":y", b"long:" + b"x" * 300 + b":y"]

    def told(keys: list[bytes], portions: int) -> dict[str, dict[str, int]]:
        chance.shuffle(keys)
        total = _rdb_classes.Classes()
        size = len(keys) // portions + 1
        for start in range(0, len(keys), size):
            part = _rdb_classes.Classes()
            portion = keys[start : start + size]
            for at in range(0, len(portion), 700):
                part.add(at % 2, portion[at : at + 700])
            total.merge(part)
        return {name: {"keys": counts["keys"]} for name, counts in total.told().items()}

    for keys in (few, few + odd, few + users, few + users + odd, few + singles + odd, few + users + singles, few + users + firsts + odd):
        wanted = told(keys, 1)
        assert sum(counts["keys"] for counts in wanted.values()) == len(keys)
        assert len(wanted) <= 257
        for portions in (2, 5):
            assert told(keys, portions) == wanted
    assert told(few + users, 3) == {"order": {"keys": 5000}, "user": {"keys": 5000}}
    assert told(few + singles, 3) == {"order": {"keys": 5000}, "(other)": {"keys": 5000}}
    assert told(few + firsts, 3) == {"(other)": {"keys": 10000}}


def test_keys_that_expire_are_counted_apart() -> None:
    classes = _rdb_classes.Classes()
    classes.add(0, [b"order:1", b"order:2", b"lonely"])
    classes.add(1, [b"order:3", b"session:a:b"])
    classes.add(2, [b"order:3"])
    assert classes.told() == {
        "order": {"keys": 3, "expires": 1, "expired": 1},
        "lonely": {"keys": 1, "expires": 0, "expired": 0},
        "session:a": {"keys": 1, "expires": 1, "expired": 0},
    }
