# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks at the server whose Redis was restored in place, with eyes of its own."""

from __future__ import annotations

import json

import pytest
import testinfra
from server_checks import (  # noqa: F401 - the tests that every recovered server must pass
    DATA,
    TITAN,
    ask_redis,
    connect,
    restart_redis,
    test_one_pm2_daemon_of_the_right_user,
    test_redis_has_a_fresh_append_only_file_on_the_restored_data,
    test_redis_holds_the_restored_data,
    test_redis_refuses_strangers,
    test_redis_runs_and_starts_at_boot,
    test_service_listens_and_says_what_is_expected,
    test_services_start_at_boot,
    test_the_latch_is_gone,
    test_the_server_has_no_failed_unit,
    test_trading_has_resumed,
)

from titan_dr import lab


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> testinfra.host.Host:
    return connect("titan", tmp_path_factory.mktemp("ssh"))


def test_the_corrupt_data_is_kept_beside(server: testinfra.host.Host) -> None:
    run_id = json.loads(server.file("/var/lib/titan-dr/recovered.json").content_string)["run_id"]
    kept = f"{DATA}.before-{run_id}"
    # it really is what was corrupt: Redis's own checker rejects it
    assert server.run(f"redis-check-rdb {kept}/dump.rdb").rc != 0
    assert server.run(f"redis-check-rdb {kept}/appendonlydir/*.base.rdb").rc != 0
    assert server.file(f"{kept}/appendonlydir/appendonly.aof.manifest").exists


def test_the_replacement_was_left_alone(server: testinfra.host.Host) -> None:
    """A blank server is in the inventory too, and none of this scenario's business."""
    assert lab.exec("replacement", ["sh", "-c", "ls /var/lib/titan-dr /var/lib/redis 2>&1 | grep -v 'No such file'"], check=False).stdout == ""


def test_the_data_directory(server: testinfra.host.Host) -> None:
    found = server.file(DATA)
    assert (oct(found.mode), found.user, found.group) == ("0o750", "redis", "redis")
    assert int(ask_redis(server, "dbsize")) > 1000
    assert TITAN["titan_redis"]["data_dir"] == DATA


def test_redis_survives_its_next_start(server: testinfra.host.Host) -> None:
    restart_redis(server)
