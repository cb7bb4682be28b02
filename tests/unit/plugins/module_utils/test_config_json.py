# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import random
import shutil
import subprocess
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils._config_json import FATAL, Problem, parse

GOOD = '{"a": [1, -2.5e3, true, null, "x\\u00e9\\n"], "b": {"c": ""}, "/~": 0}'


def fatal(data: bytes) -> list[Problem]:
    return [problem for problem in parse(data).problems if problem.severity == FATAL]


def test_a_good_document_with_the_places_of_its_values() -> None:
    found = parse(b'{\n  "a": {"b": [1,\n 2]}\n}\n')
    assert (found.value, found.problems, found.complete) == ({"a": {"b": [1, 2]}}, [], True)
    assert found.places == {"": (1, 1), "/a": (2, 8), "/a/b": (2, 14), "/a/b/0": (2, 15), "/a/b/1": (3, 2)}


@pytest.mark.parametrize(
    ("text", "where", "word"),
    [
        ("", "line 1, column 1", "empty"),
        (" \n", "line 1, column 1", "empty"),
        ('\ufeff{"a": 1}', "line 1, column 1", "byte order mark"),
        ('{"a": 1', "line 1, column 8", "ends in the middle"),
        ('{"a": "x', "line 1, column 9", "ends in the middle"),
        ('{"a": ', "line 1, column 7", "ends in the middle"),
        ('{"a": 1}\n}', "line 2, column 1", "follows after the end"),
        ('{"a": 1,}', "line 1, column 9", "name in quotes"),
        ("[1,]", "line 1, column 4", "no value"),
        ("{'a': 1}", "line 1, column 2", "name in quotes"),
        ('{"a" 1}', "line 1, column 6", "colon"),
        ('{"a": 1 "b": 2}', "line 1, column 9", "comma"),
        ("[1 2]", "line 1, column 4", "comma"),
        ('{\n "a": NaN}', "line 2, column 7", "NaN"),
        ('{"a": -Infinity}', "line 1, column 7", "Infinity"),
        ('{"a": 01}', "line 1, column 8", "comma"),
        ('{"a": .5}', "line 1, column 7", "no value"),
        ('{"a": 1e999}', "line 1, column 7", "greater than any"),
        ('{"a": 1, "b": 2,\n "a": 3}', "line 2, column 2", "/a occurs twice"),
        ('{"x": {"a": 1, "a": 1}}', "line 1, column 16", "/x/a occurs twice"),
        ('{"a": "\t"}', "line 1, column 8", "control character"),
        ('{"a": "\\x"}', "line 1, column 8", "escape"),
        ('{"a": "\\ud800"}', "line 1, column 7", "half a character"),
        ('{"a": 1}\0\0', "line 1, column 9", "follows after the end"),
        ("\0\0\0", "line 1, column 1", "no value"),
        ("[" * 200, "line 1, column 102", "nested"),
        ("// comment\n{}", "line 1, column 1", "no value"),
    ],
)
def test_what_is_refused_and_where(text: str, where: str, word: str) -> None:
    (problem,) = fatal(text.encode())
    assert problem.where == where and word in problem.text


def test_bytes_that_are_no_text() -> None:
    assert fatal(b'{"a":\n "\xff"}') == [Problem("not UTF-8", "line 2, byte 8")]


@pytest.mark.parametrize("number", ["9007199254740993", "-9007199254740992", "1" * 5000])
def test_numbers_that_javascript_rounds_are_found(number: str) -> None:
    found = parse(b'{"a": %s}' % number.encode())
    assert [problem.severity for problem in found.problems] == ["meaning"] and found.complete


def test_lines_of_windows_are_noted_only() -> None:
    assert [problem.severity for problem in parse(b'{\r\n "a": 1\r\n}').problems] == ["drift"]


def test_no_message_quotes_the_file() -> None:
    secret = "CANARY-5f3a"
    for text in (f'{{"k": "{secret}', f'{{"k": "{secret}" "{secret}"}}', f'{{"k": {secret}}}', f'{{"k": "{secret}"}} {secret}', f'{{"k": "{secret}\t"}}'):
        assert fatal(text.encode())
        assert secret not in str(parse(text.encode()).problems)


def strictly(text: str) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(items)) != len(items):
            raise ValueError("twice")
        return dict(items)

    def constant(name: str) -> None:
        raise ValueError(name)

    return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)


@pytest.mark.parametrize("seed", range(8))
def test_as_the_standard_library_on_damaged_documents(seed: int) -> None:
    rng = random.Random(seed)
    good = bad = 0
    for _ in range(1500):
        text = list(GOOD)
        for _ in range(rng.randrange(3)):
            at = rng.randrange(len(text))
            kind = rng.randrange(3)
            if kind == 0:
                del text[at:]
                text.append(" ")
            elif kind == 1:
                text[at] = rng.choice('{}[]",:01e+-. \\nut')
            else:
                text.insert(at, rng.choice('{}[]",:01e+-. \\nut'))
        damaged = "".join(text)
        try:
            wanted = strictly(damaged)
        except (ValueError, RecursionError):
            bad += 1
            assert fatal(damaged.encode()), damaged
            continue
        found = parse(damaged.encode())
        if not fatal(damaged.encode()):
            good += 1
            assert found.value == wanted, damaged
        else:
            # what the standard library lets pass: numbers without end, halves of characters
            assert "1e" in damaged or "e" in damaged or "\\ud" in damaged, damaged
    assert good > 100 and bad > 100


@pytest.mark.skipif(not shutil.which("node"), reason="no node here")
def test_javascript_refuses_what_is_cut_off() -> None:
    for cut in range(1, len(GOOD)):
        assert fatal(GOOD[:cut].encode())
    done = subprocess.run(["node", "-e", "process.stdout.write(JSON.stringify(JSON.parse(process.argv[1])))", GOOD], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == parse(GOOD.encode()).value
