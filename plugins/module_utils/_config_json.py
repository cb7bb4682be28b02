# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""JSON as RFC 8259 has it and as a service in JavaScript reads it, with the place of everything.

What the parser of the standard library lets pass is found here: keys that occur twice, NaN, numbers that JavaScript would round or that are none.
No message quotes what stands in the file: it may be a secret.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

MAX_DEPTH = 100
# Above it JavaScript does not tell neighbouring integers apart.
MAX_SAFE = 2**53 - 1
BOM = b"\xef\xbb\xbf"
FATAL, MEANING, DRIFT = "fatal", "meaning", "drift"
_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_HEX = re.compile(r"[0-9a-fA-F]{4}")
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_WORDS: dict[str, t.Any] = {"true": True, "false": False, "null": None}
_NO_NUMBERS = ("NaN", "Infinity", "-Infinity", "undefined")


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is wrong and where. `severity` fatal: a parser refuses it, or reads something else than the next one."""

    text: str
    where: str
    severity: str = FATAL


@dataclasses.dataclass
class Document:
    """What was read. `places`: JSON pointer -> (line, column)."""

    value: t.Any = None
    places: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    problems: list[Problem] = dataclasses.field(default_factory=list)
    complete: bool = False


class _Stop(Exception):
    """The text cannot be read on."""

    def __init__(self, text: str, at: int) -> None:
        super().__init__(text)
        self.at = at


def step(pointer: str, key: str | int) -> str:
    """The pointer (RFC 6901) of a member."""
    return f"{pointer}/{str(key).replace('~', '~0').replace('/', '~1')}"


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.found = Document()

    def where(self, at: int) -> tuple[int, int]:
        return self.text.count("\n", 0, at) + 1, at - (self.text.rfind("\n", 0, at) + 1) + 1

    def say(self, text: str, at: int, severity: str = FATAL) -> None:
        line, column = self.where(at)
        self.found.problems.append(Problem(text, f"line {line}, column {column}", severity))

    def skip(self, at: int) -> int:
        return _SPACE.match(self.text, at).end()  # type: ignore[union-attr]

    def run(self) -> Document:
        try:
            self.found.value, at = self.read(self.skip(0), "", 0)
            at = self.skip(at)
            if at != len(self.text):
                raise _Stop("something follows after the end of the document", at)
            self.found.complete = True
        except _Stop as stop:
            cut = stop.at >= len(self.text)
            self.say(f"{stop}: the file ends in the middle" if cut else str(stop), min(stop.at, len(self.text)))
        return self.found

    def read(self, at: int, pointer: str, depth: int) -> tuple[t.Any, int]:
        if depth > MAX_DEPTH:
            raise _Stop(f"nested deeper than {MAX_DEPTH}", at)
        self.found.places[pointer] = self.where(at)
        first = self.text[at : at + 1]
        if first == "{":
            return self.object(at, pointer, depth)
        if first == "[":
            return self.array(at, pointer, depth)
        if first == '"':
            return self.string(at)
        for word, value in _WORDS.items():
            if self.text.startswith(word, at):
                return value, at + len(word)
        for word in _NO_NUMBERS:
            if self.text.startswith(word, at):
                self.say(f"{word} is not JSON", at)
                return None, at + len(word)
        return self.number(at)

    def number(self, at: int) -> tuple[t.Any, int]:
        match = _NUMBER.match(self.text, at)
        if not match:
            raise _Stop("a value is missing" if at >= len(self.text) else "this is no value", at)
        if match[1] is None and match[2] is None:
            # more digits than int() takes are no number of any configuration
            digits = match[0].lstrip("-")
            whole = int(match[0]) if len(digits) <= 400 else None
            if whole is None or abs(whole) > MAX_SAFE:
                self.say("the number has more digits than JavaScript keeps", at, MEANING)
            return (float("1e400") if whole is None else whole), match.end()
        value = float(match[0])
        if value in (float("inf"), float("-inf")):
            self.say("the number is greater than any that can be kept", at)
        return value, match.end()

    def string(self, at: int) -> tuple[str, int]:
        parts, begin, at = [], at, at + 1
        while True:
            end = _PLAIN.match(self.text, at).end()  # type: ignore[union-attr]
            parts.append(self.text[at:end])
            mark = self.text[end : end + 1]
            if mark == '"':
                break
            if mark != "\\":
                raise _Stop("a text is not closed" if not mark else "a control character in a text", end)
            letter = self.text[end + 1 : end + 2]
            if letter == "u" and (code := _HEX.match(self.text, end + 2)):
                parts.append(chr(int(code[0], 16)))
                at = end + 6
            elif letter in _ESCAPES and letter:
                parts.append(_ESCAPES[letter])
                at = end + 2
            else:
                raise _Stop("an escape that does not exist", end + (0 if letter else 1))
        # a pair of halves is one character; one half alone is none
        value = "".join(parts).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if "\ufffd" in value and "\ufffd" not in "".join(parts):
            self.say("half a character in a text", begin)
        return value, end + 1

    def array(self, at: int, pointer: str, depth: int) -> tuple[list[t.Any], int]:
        found: list[t.Any] = []
        at = self.skip(at + 1)
        if self.text[at : at + 1] == "]":
            return found, at + 1
        while True:
            value, at = self.read(at, step(pointer, len(found)), depth + 1)
            found.append(value)
            at = self.skip(at)
            mark = self.text[at : at + 1]
            if mark == "]":
                return found, at + 1
            if mark != ",":
                raise _Stop("a comma or ] is missing", at)
            at = self.skip(at + 1)

    def object(self, at: int, pointer: str, depth: int) -> tuple[dict[str, t.Any], int]:
        found: dict[str, t.Any] = {}
        at = self.skip(at + 1)
        if self.text[at : at + 1] == "}":
            return found, at + 1
        while True:
            if self.text[at : at + 1] != '"':
                raise _Stop("a name in quotes is missing", at)
            begin = at
            key, at = self.string(at)
            if key in found:
                self.say(f"the name at {step(pointer, key)} occurs twice", begin)
            at = self.skip(at)
            if self.text[at : at + 1] != ":":
                raise _Stop("a colon is missing", at)
            found[key], at = self.read(self.skip(at + 1), step(pointer, key), depth + 1)
            at = self.skip(at)
            mark = self.text[at : at + 1]
            if mark == "}":
                return found, at + 1
            if mark != ",":
                raise _Stop("a comma or } is missing", at)
            at = self.skip(at + 1)


def parse(data: bytes) -> Document:
    """Read a JSON file. Without a fatal problem the document is complete."""
    if data.startswith(BOM):
        return Document(problems=[Problem("the file begins with a byte order mark", "line 1, column 1")])
    if not data.strip():
        return Document(problems=[Problem("the file is empty", "line 1, column 1")])
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        return Document(problems=[Problem("not UTF-8", f"line {line}, byte {exc.start}")])
    found = _Parser(text).run()
    if "\r\n" in text:
        found.problems.append(Problem("lines end as on Windows", "line 1", DRIFT))
    return found
