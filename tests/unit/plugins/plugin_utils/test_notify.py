# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.plugin_utils import _notify

KEY = "canary-of-a-key-77aa"


def test_it_is_told_without_being_waited_for(tmp_path: Path, web: Callable[..., Any]) -> None:
    bodies: list[Any] = []
    started: list[float] = []

    def slow(_method: str, path: str, body: bytes) -> Any:
        if path == "/hangs":
            started.append(time.monotonic())
            service.ending.wait(10)
        bodies.append(json.loads(body))
        return 204, {}, b""

    service = web(slow)
    began = time.monotonic()
    _notify.send([{"url": f"{service.url}/{KEY}"}, {"url": f"{service.url}/hangs"}], {"event": "breach", "text": "x"}, tmp_path)
    assert time.monotonic() - began < 5
    notes = _notify.told(tmp_path, 15)
    assert notes == ["breach was told to 127.0.0.1", "breach was NOT told to 127.0.0.1: TimeoutError"]
    assert bodies[0] == {"event": "breach", "text": "x"} and started
    assert KEY not in (tmp_path / "notify.jsonl").read_text() and (tmp_path / "notify.jsonl").stat().st_mode & 0o077 == 0


def test_nobody_hears_a_closed_port(tmp_path: Path) -> None:
    _notify.send([{"url": f"http://127.0.0.1:1/{KEY}"}, {"url": "file:///etc/passwd"}, {"url": "http://[broken"}], {"event": "breach"}, tmp_path)
    notes = _notify.told(tmp_path, 15)
    assert [note.partition("told to ")[2] for note in notes] == [
        "127.0.0.1: URLError",
        "a webhook without a host: only http and https are known",
        "a webhook with an unreadable address: ValueError",
    ]
    assert all("was NOT told" in note for note in notes)


def test_what_has_no_answer_in_time_is_said(tmp_path: Path) -> None:
    (tmp_path / "notify.jsonl").write_text('{"event": "breach", "waiting": 2}\n{"event": "breach", "to": "h", "error": ""}\n')
    slept: list[float] = []
    assert _notify.told(tmp_path, 0.35, True, slept.append) == ["breach was told to h", "1 of the notifications had no answer at the end of the run"]
    assert len(slept) == 4
    assert _notify.told(tmp_path) == ["breach was told to h"]


@pytest.mark.parametrize("text", [None, "", "{torn"])
def test_nothing_was_sent(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "notify.jsonl").write_text(text)
    assert _notify.told(tmp_path, 5, True) == []


def test_only_the_host_of_an_address_is_shown() -> None:
    assert _notify.place(f"https://user:{KEY}@hooks.example.com:8443/{KEY}?k={KEY}") == "hooks.example.com"
