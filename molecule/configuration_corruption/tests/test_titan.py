# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks at the server whose configuration was mended, with eyes of its own."""

from __future__ import annotations

import hashlib
import json

import pytest
import testinfra
from server_checks import (  # noqa: F401 - the tests that every recovered server must pass
    CONFIG,
    TITAN,
    connect,
    get,
    test_one_pm2_daemon_of_the_right_user,
    test_redis_refuses_strangers,
    test_redis_runs_and_starts_at_boot,
    test_service_listens_and_says_what_is_expected,
    test_services_start_at_boot,
    test_the_latch_is_gone,
    test_the_server_has_no_failed_unit,
    test_trading_has_resumed,
)

BROKEN = f"{CONFIG}/brain.config.json"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> testinfra.host.Host:
    return connect("titan", tmp_path_factory.mktemp("ssh"))


def test_the_file_is_whole_and_the_service_runs_with_it(server: testinfra.host.Host) -> None:
    data = server.file(BROKEN).content
    assert json.loads(data)["service"] == "titan-brain"
    assert get(server, "http://127.0.0.1:3000/health")["config_digest"] == hashlib.sha256(data).hexdigest()


def test_the_owner_and_the_mode_are_as_they_were(server: testinfra.host.Host) -> None:
    found, neighbour = server.file(BROKEN), server.file(f"{CONFIG}/shared.config.json")
    assert (found.user, found.group, found.mode) == (neighbour.user, neighbour.group, neighbour.mode)


def test_the_broken_file_is_kept_beside(server: testinfra.host.Host) -> None:
    run_id = json.loads(server.file("/var/lib/titan-dr/recovered.json").content_string)["run_id"]
    kept = server.file(f"{BROKEN}.before-{run_id}")
    with pytest.raises(ValueError, match="line"):
        json.loads(kept.content)
    assert kept.mode & 0o077 == 0, "it may hold what nobody else may read"


def test_the_secrets_stay_secret(server: testinfra.host.Host) -> None:
    assert server.file(f"{CONFIG}/secrets.json").mode == 0o600
    assert TITAN["titan_user"] == server.file(f"{CONFIG}/secrets.json").user
