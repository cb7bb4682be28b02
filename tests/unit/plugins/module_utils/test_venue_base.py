# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _venue_base as base
from ansible_collections.titan.disaster_recovery.plugins.module_utils._venue_wire import Answer, VenueError

SECRET = "s3cret-of-the-test"


class Plain(base.Venue):
    kind = "plain"


def venue(path: Path | str = "", **more: Any) -> Plain:
    keys = {"file": str(path), "api_key": "a.key", "api_secret": "a.secret"}
    return Plain({"name": "v", "rest": "http://h:1/", "keys": keys, **more}, 1.0)


@pytest.mark.parametrize(("read", "row"), [
    (base.number, {"x": "NaN"}), (base.number, {"x": "Infinity"}), (base.number, {"x": "1e"}), (base.number, {"x": ""}), (base.number, {"x": None}),
    (base.number, {"x": True}), (base.number, {}), (base.number, []), (base.amount, {"x": "-1"}), (base.text, {"x": None}), (base.text, {"x": True}),
    (base.word, {"x": ""}), (base.flag, {"x": "true"}), (base.flag, {"x": 1}), (base.moment, {"x": 0}), (base.moment, {"x": "1e20"}),
    (base.side, {"x": "long"}),
])  # fmt: skip
def test_what_cannot_be_read(read: Callable[[Any, str], Any], row: Any) -> None:
    with pytest.raises(base.Unreadable):
        read(row, "x")


def test_what_can() -> None:
    assert base.number({"x": "-1.50"}, "x") == Decimal("-1.5") and base.number({"x": 0.1}, "x") == Decimal("0.1")
    assert base.moment({"x": 1767225600123}, "x") == 1767225600.123
    assert base.side({"x": "Sell"}, "x") == "sell" and base.text({"x": 7}, "x") == "7"
    assert base.iso("2026-01-01T00:00:00Z") == base.iso("2026-01-01T00:00:00") == 1767225600
    assert base.unique([(1, "a"), (2, "b"), (1, "c")], lambda item: item[0]) == [(1, "c"), (2, "b")]
    for bad in ("soon", ""):
        with pytest.raises(base.Unreadable):
            base.iso(bad)
    for bad_rows in ({}, None, [1], "[]"):
        with pytest.raises(base.Unreadable):
            base.rows(bad_rows, "list")
    with pytest.raises(base.Unreadable, match="'New Word' is not known"):
        base.chosen({"x": "New Word"}, "x", {"old": "o"})


@pytest.mark.parametrize("rest", ["", "ftp://h", "fapi.example", "https://"])
def test_an_address_that_is_none(rest: str) -> None:
    with pytest.raises(base.VenueSpecError, match="rest"):
        venue(rest=rest)


@pytest.mark.parametrize("text", [
    "", "{", "[]", '{"a": {"key": "k"}}', '{"a": {"key": "k", "secret": ""}}', '{"a": {"key": "k", "secret": 7}}',
    '{"a": {"key": "k\\n", "secret": "s3cret-of-the-test"}}',
    '{"a": {"key": "s3cret-of-the-test", "secret": "s3cret-of-the-test"}, "a": {}}', '{"a": s3cret-of-the-test}',
])  # fmt: skip
def test_keys_that_cannot_be_used(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(VenueError) as caught:
        venue(tmp_path / "keys").keys()
    assert (caught.value.kind, caught.value.cause) == ("key", "key_file") and SECRET not in f"{caught.value!r} {caught.value.__context__!r}".replace(
        "s3cret'", ""
    )


def test_a_key_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(VenueError, match="No such file"):
        venue(tmp_path / "none").keys()


def test_nothing_secret_is_shown(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(json.dumps({"a": {"key": "the-key", "secret": SECRET}}))
    found = venue(tmp_path / "keys")
    assert found.keys() == ("the-key", SECRET)
    assert repr(found) == "<plain v>"
    said = found._fault("refused", "w", f"sign! origin_string[1700the-key5000] {SECRET} {'ab' * 32} and {'x' * 400}\x00\n").text
    assert "the-key" not in said and SECRET not in said and "abab" not in said and "\n" not in said and len(said) < 250


@pytest.mark.parametrize(("answer", "kind", "cause"), [
    (Answer(200, b"<html>maintenance</html>"), "unusable", "http_html"),
    (Answer(503, b"<html>"), "unusable", "http_html"),
    (Answer(500, b"Internal Server Error"), "unusable", "http_500"),
    (Answer(200, b""), "unusable", "http_unusable"),
    (Answer(200, b'{"a": 1, "a": 2}'), "unusable", "http_unusable"),
    (Answer(200, b'{"a": NaN}'), "unusable", "http_unusable"),
    (Answer(200, b'[{"a": 1}, {'), "unusable", "http_unusable"),
    (Answer(401, b""), "key", "key"),
    (Answer(429, b"<html>"), "rate_limited", "rate_limited"),
    (Answer(418, b"{}"), "rate_limited", "rate_limited"),
])  # fmt: skip
def test_answers_that_are_none(answer: Answer, kind: str, cause: str) -> None:
    with pytest.raises(VenueError) as caught:
        venue()._document("positions", answer)
    assert (caught.value.kind, caught.value.cause) == (kind, cause) and caught.value.text.startswith("v: positions: ")


def test_every_question_has_to_be_answered_by_its_kind() -> None:
    found = venue()
    for ask in (found.server_time, found.status, found.rights, found.instruments, found.account, found.open_orders, found.positions, found.cancel_all):
        with pytest.raises(NotImplementedError):
            ask()
    for ask_since in (found.fills, found.orders_since):
        with pytest.raises(NotImplementedError):
            ask_since(0)
    with pytest.raises(NotImplementedError):
        found.order("s", "c")
