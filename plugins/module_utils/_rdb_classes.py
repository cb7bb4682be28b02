# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Counts of keys by class. The class of a key is its name up to the last colon."""

from __future__ import annotations

import collections
import itertools
import operator

from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb_report import text_of

Counts = collections.Counter[bytes]

_CLASSES = 4096  # key classes that are told apart
_CLASSES_TOLD = 256
_LONG_CLASS = 256
_WHOLE_NAMES, _FIRST_PARTS = 2, 1  # what tells classes apart
OTHER = "(other)"
_COLON = ord(":")  # bytes look for a number faster than for bytes


class Classes:
    """Keys by class in bounded memory. Of the same keys it says the same, in whatever order and portions they came.

    When there are too many classes, only the first parts of their names tell them apart; when these are too many, nothing does.
    """

    def __init__(self) -> None:
        # keys without expiry, with one, with one that has passed
        self.groups: list[Counts] = [collections.Counter() for dummy in range(3)]
        self.singles: list[Counts] = [collections.Counter() for dummy in range(3)]  # keys without a colon
        self.rest = [0, 0, 0]
        self.level = _WHOLE_NAMES
        self.single = True  # whether singles are told apart

    def add(self, index: int, keys: list[bytes]) -> None:
        counter = self.groups[index]
        known = len(counter)
        if self.level == _WHOLE_NAMES:
            counter.update(map(operator.itemgetter(0), map(bytes.rpartition, keys, itertools.repeat(b":"))))
            lonely = counter.pop(b"", 0)
            single = [key for key in keys if _COLON not in key] if lonely else []
            self.rest[index] += lonely - len(single)
        else:
            single = [key for key in keys if _COLON not in key]
            if single:
                keys = [key for key in keys if _COLON in key]
            if self.level == _FIRST_PARTS:
                counter.update(map(operator.itemgetter(0), map(bytes.partition, keys, itertools.repeat(b":"))))
                self.rest[index] += counter.pop(b"", 0)
            else:
                self.rest[index] += len(keys)
        if single:
            if self.single:
                self.singles[index].update(single)
            else:
                self.rest[index] += len(single)
        if single or len(counter) != known:
            self._bound()

    def merge(self, other: Classes) -> None:
        self.level = min(self.level, other.level)
        self.single = self.single and other.single
        self.rest = [a + b for a, b in zip(self.rest, other.rest, strict=True)]
        for mine, theirs in zip(self.groups + self.singles, other.groups + other.singles, strict=True):
            mine.update(theirs)
        self._regroup()
        self._bound()

    def told(self) -> dict[str, dict[str, int]]:
        counts = [group + single for group, single in zip(self.groups, self.singles, strict=True)]
        keys = counts[0] + counts[1]
        rest = list(self.rest)
        told = {}
        for place, name in enumerate(sorted(keys, key=lambda name: (-keys[name], name))):
            found = [counter[name] for counter in counts]
            if place < _CLASSES_TOLD:
                told[text_of(name)] = {"keys": found[0] + found[1], "expires": found[1], "expired": found[2]}
            else:
                rest = [a + b for a, b in zip(rest, found, strict=True)]
        if any(rest):
            told[OTHER] = {"keys": rest[0] + rest[1], "expires": rest[1], "expired": rest[2]}
        return told

    def _bound(self) -> None:
        if any(len(name) > _LONG_CLASS for name in itertools.chain(*self.groups, *self.singles)):
            self._shorten()
        while len(self.groups[0].keys() | self.groups[1].keys()) > _CLASSES:
            self.level -= 1
            self._regroup()
        if len(self.singles[0].keys() | self.singles[1].keys()) > _CLASSES:
            self.single = False
            self._regroup()

    def _shorten(self) -> None:
        """A long name is taken for its first part."""
        for index, (group, single) in enumerate(zip(self.groups, self.singles, strict=True)):
            for name in [name for name in group if len(name) > _LONG_CLASS]:
                first = name.partition(b":")[0]
                if 0 < len(first) <= _LONG_CLASS:
                    group[first] += group.pop(name)
                else:
                    self.rest[index] += group.pop(name)
            for name in [name for name in single if len(name) > _LONG_CLASS]:
                self.rest[index] += single.pop(name)

    def _regroup(self) -> None:
        """Bring the counters to the level."""
        for index, (group, single) in enumerate(zip(self.groups, self.singles, strict=True)):
            if self.level == _FIRST_PARTS:
                firsts: Counts = collections.Counter()
                for name, count in group.items():
                    firsts[name.partition(b":")[0]] += count
                self.rest[index] += firsts.pop(b"", 0)
                self.groups[index] = firsts
            elif self.level < _FIRST_PARTS:
                self.rest[index] += group.total()
                group.clear()
            if not self.single:
                self.rest[index] += single.total()
                single.clear()
