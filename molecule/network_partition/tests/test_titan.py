# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks at the server that lost its name server, with eyes of its own."""

from __future__ import annotations

import json

import pytest
import testinfra
from server_checks import (  # noqa: F401 - the tests that every recovered server must pass
    STATE,
    TITAN,
    connect,
    test_one_pm2_daemon_of_the_right_user,
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


def test_the_name_server_is_still_dead_and_another_one_is_asked(server: testinfra.host.Host) -> None:
    primary, other = (STATE["hosts"][name]["address"] for name in ("exchange", "backup"))
    asked = [line.split()[1] for line in server.file("/etc/resolv.conf").content_string.splitlines() if line.startswith("nameserver ")]
    assert asked[0] == other != primary
    assert "titan_lab_fault" in lab.exec("exchange", ["nft", "list", "tables"]).stdout


def test_the_exchanges_are_found_by_name(server: testinfra.host.Host) -> None:
    for venue in STATE["venues"].values():
        assert server.check_output("getent ahostsv4 %s", venue["name"]).split()[0] == venue["address"]


def test_what_was_changed_is_written_down_so_that_it_can_be_undone(server: testinfra.host.Host) -> None:
    assert "/etc/resolv.conf" in json.dumps(json.loads(server.file("/var/lib/titan-dr/network.json").content_string))


def test_the_latch_of_no_exchange_is_left(server: testinfra.host.Host) -> None:
    assert server.run("ls %s", f"{TITAN['titan_latch']}.d").stdout == ""
