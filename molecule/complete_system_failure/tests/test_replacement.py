# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks at the recovered server with eyes of its own: none of the collection's modules are asked."""

from __future__ import annotations

import json

import pytest
import testinfra
from server_checks import (  # noqa: F401 - the tests that every recovered server must pass
    CONFIG,
    DATA,
    STATE,
    TITAN,
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
    return connect("replacement", tmp_path_factory.mktemp("ssh"))


@pytest.mark.parametrize(
    ("path", "mode", "owner"),
    [
        (TITAN["titan_redis"]["config"], 0o640, "redis"),
        (DATA, 0o750, "redis"),
        (CONFIG, 0o750, TITAN["titan_user"]),
        (f"{CONFIG}/secrets.json", 0o600, TITAN["titan_user"]),
        (f"{CONFIG}/brain.config.json", 0o640, TITAN["titan_user"]),
        (TITAN["titan_ecosystem"], 0o640, TITAN["titan_user"]),
        (TITAN["titan_pm2_home"], 0o700, TITAN["titan_user"]),
        (f"{TITAN['titan_pm2_home']}/dump.pm2", 0o600, TITAN["titan_user"]),
        (TITAN["titan_config_history"], 0o600, "root"),
    ],
)
def test_owner_and_mode(server: testinfra.host.Host, path: str, mode: int, owner: str) -> None:
    found = server.file(path)
    assert (oct(found.mode), found.user) == (oct(mode), owner)


def test_the_secrets_are_those_of_the_lost_server(server: testinfra.host.Host) -> None:
    restored = json.loads(server.file(f"{CONFIG}/secrets.json").content_string)
    assert restored["redisPassword"] == STATE["redis_password"]
    assert restored["exchanges"]["binance"]["apiSecret"] == STATE["exchange_keys"]["binance"]["api_secret"]


SEARCH = """
import json, os, sys
secrets = {name: value.encode() for name, value in json.load(sys.stdin).items()}
found, looked = [], 0
for top in ("/etc", "/opt", "/root", "/run", "/srv", "/tmp", "/var", "/proc"):
    for folder, folders, names in os.walk(top):
        if top == "/proc":
            folders[:] = [name for name in folders if folder == "/proc" and name.isdigit() and name != str(os.getpid())]
            names = [name for name in names if name in ("cmdline", "environ")]
        for path in (os.path.join(folder, name) for name in names):
            try:
                if os.path.islink(path) or (top != "/proc" and not os.path.isfile(path)):
                    continue
                content = open(path, "rb").read()
            except OSError:
                continue
            looked += 1
            found += [[name, path] for name, value in secrets.items() if value in content]
print(json.dumps({"looked": looked, "found": found}))
"""


def test_no_secret_is_where_it_does_not_belong(server: testinfra.host.Host) -> None:
    """The keys of the stores and of the restore points were needed for the recovery alone; files, journal, processes."""
    # the first lines of all keys of a kind are alike
    foreign = {"s3 key": STATE["s3"]["secret_key"], "sftp key": STATE["sftp"]["private_key"].splitlines()[3], "age identity": STATE["age"]["identity"]}
    own = {"redis password": STATE["redis_password"], "exchange secret": STATE["exchange_keys"]["bybit"]["api_secret"]}
    assert all(len(secret) >= 20 for secret in (foreign | own).values())
    answer = json.loads(lab.exec("replacement", ["python3", "-c", SEARCH], json.dumps(foreign | own)).stdout)
    assert answer["looked"] > 1000
    places = {(name, path) for name, path in answer["found"]}
    secrets = f"{CONFIG}/secrets.json"
    assert places == {("redis password", secrets), ("exchange secret", secrets), ("redis password", TITAN["titan_redis"]["config"])}


def test_live_release_is_a_link_into_the_releases(server: testinfra.host.Host) -> None:
    current = server.file(TITAN["titan_current"])
    assert current.is_symlink
    assert current.linked_to.startswith(f"{TITAN['titan_home']}/releases/")


def test_no_package_registry_can_be_reached(server: testinfra.host.Host) -> None:
    """The lab's network leads nowhere: what was installed came from the offline bundle."""
    assert server.run("ip -4 route show default").stdout.strip() == ""
    program = "import socket; socket.create_connection(('192.0.2.1', 443), timeout=2)"
    assert server.run("python3 -c %s", program).rc != 0


def test_redis_survives_its_next_start(server: testinfra.host.Host) -> None:
    restart_redis(server)
