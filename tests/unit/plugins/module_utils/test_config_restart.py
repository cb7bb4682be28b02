# SPDX-License-Identifier: GPL-3.0-or-later
"""With a real redis-server; only systemd is a stand-in."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _config_restart, _redis
from ansible_collections.titan.disaster_recovery.plugins.module_utils._config_restart import RestartError


@pytest.fixture(autouse=True)
def no_systemd_memory(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the server of the tests listens is its socket."""
    monkeypatch.setattr(_config_restart._redis_unit, "listening", lambda pid: set())


def restart(host: Any) -> tuple[str, list[str]]:
    return _config_restart.restart(str(host.config), "redis-test", "", "", time.time() + 20)


def test_no_key_is_lost(host: Any) -> None:
    host.configure("appendonly yes")
    host.run_old(7).call("SET", "soon", "1", "EX", "100")
    evidence, notes = restart(host)
    assert "7 before, 7 now" in evidence and notes == []
    assert "stop --no-block redis-test" in host.log and host.log.index("stop --no-block redis-test") < host.log.index("start redis-test")


def test_without_an_append_only_file_it_is_saved_first(host: Any) -> None:
    host.configure("appendonly no")
    host.run_old(3)
    assert "3 before, 3 now" in restart(host)[0]


def test_one_that_does_not_run_is_started(host: Any) -> None:
    host.configure("appendonly no")
    (host.data / "dump.rdb").unlink(missing_ok=True)
    assert "not known before" in restart(host)[0]
    assert "reset-failed redis-test" in host.log


@pytest.mark.parametrize(
    ("ran", "proven", "word"),
    [
        (("appendonly no",), ("appendonly yes",), "no append only file"),
        (("appendonly yes",), ("appendonly no",), "an append only file"),
        (("appendonly no",), ("appendonly no", "rename-command SAVE ''"), "SAVE is disabled"),
    ],
)
def test_a_restart_that_would_bring_up_other_data_is_refused(host: Any, ran: tuple[str, ...], proven: tuple[str, ...], word: str) -> None:
    host.configure(*ran)
    host.run_old(2)
    host.configure(*proven)
    with pytest.raises(RestartError, match=word):
        restart(host)
    assert host.alive() and not any(word.startswith("stop") for word in host.log)


def test_data_that_lies_elsewhere(host: Any) -> None:
    host.configure("appendonly no")
    host.run_old(2)
    other = host.box / "elsewhere"
    other.mkdir()
    host.configure("appendonly no", f"dir {other}")
    with pytest.raises(RestartError, match="elsewhere"):
        restart(host)


def test_keys_that_are_gone_afterwards_are_told(host: Any) -> None:
    host.configure("appendonly no")
    host.run_old(4)

    def lose() -> None:
        for name in os.listdir(host.data):
            os.unlink(host.data / name)

    host.before_start = lose
    with pytest.raises(RestartError, match="lost keys at its restart: 4 before, 0 now"):
        restart(host)


def test_a_server_that_does_not_come_up(host: Any) -> None:
    host.configure("appendonly no", "maxclien 3")
    with pytest.raises(_redis.RedisError):
        restart(host)
