# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks at the recovered server with eyes of its own: none of the collection's modules are asked."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jinja2
import pytest
import testinfra
import yaml

ROOT = Path(__file__).resolve().parents[3]
STATE = json.loads((Path(os.environ["TITAN_DR_LAB_DIR"]) / "state.json").read_text(encoding="utf-8"))


def described() -> dict[str, Any]:
    """What the inventory says about Titan: the defaults of the role titan, overridden by the lab's, templates filled in."""
    described: dict[str, Any] = {}
    for path in (ROOT / "roles/titan/defaults/main.yml", *sorted((ROOT / "inventories/lab/group_vars").rglob("*.yml"))):
        described |= yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return {name: jinja2.Template(value).render(described) if isinstance(value, str) and "lab." not in value else value for name, value in described.items()}


TITAN = described()
SERVICES = [component for component in TITAN["titan_components"] if component["kind"] == "pm2"]


@pytest.fixture(scope="module")
def replacement(tmp_path_factory: pytest.TempPathFactory) -> testinfra.host.Host:
    config = tmp_path_factory.mktemp("ssh") / "config"
    config.write_text(f"Host *\n  UserKnownHostsFile {STATE['ssh']['known_hosts']}\n  StrictHostKeyChecking yes\n  BatchMode yes\n", encoding="utf-8")
    address = STATE["hosts"]["replacement"]["address"]
    return testinfra.get_host(f"ssh://{STATE['ssh']['user']}@{address}", ssh_config=str(config), ssh_identity_file=STATE["ssh"]["private_key_file"])


def get(host: testinfra.host.Host, url: str) -> Any:
    """A blank server has no curl."""
    program = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"
    return json.loads(host.check_output("python3 -c %s %s", program, url))


def test_the_server_has_no_failed_unit(replacement: testinfra.host.Host) -> None:
    assert replacement.check_output("systemctl list-units --failed --plain --no-legend") == ""


def test_redis_runs_and_starts_at_boot(replacement: testinfra.host.Host) -> None:
    unit = replacement.service(TITAN["titan_redis"]["unit"])
    assert unit.is_running
    assert unit.is_enabled


def test_redis_refuses_strangers(replacement: testinfra.host.Host) -> None:
    assert "NOAUTH" in replacement.run("redis-cli ping").stdout


def test_redis_holds_the_restored_canary(replacement: testinfra.host.Host) -> None:
    # the password goes from the services' own file into the environment, and onto no command line
    program = f"import json; print(json.load(open('{TITAN['titan_home']}/config/secrets.json'))['redisPassword'])"
    ask = "REDISCLI_AUTH=$(python3 -c %s) redis-cli -n %s get %s"
    reply = replacement.check_output(ask, program, str(TITAN["titan_canary"]["db"]), TITAN["titan_canary"]["key"])
    assert json.loads(reply)["seq"] > 0


def test_the_latch_is_gone(replacement: testinfra.host.Host) -> None:
    assert not replacement.file(TITAN["titan_latch"]).exists


def test_live_release_is_a_link_into_the_releases(replacement: testinfra.host.Host) -> None:
    current = replacement.file(TITAN["titan_current"])
    assert current.is_symlink
    assert current.linked_to.startswith(f"{TITAN['titan_home']}/releases/")


def test_one_pm2_daemon_of_the_right_user(replacement: testinfra.host.Host) -> None:
    daemons = [process for process in replacement.process.filter() if "God Daemon" in process.args]
    assert [process.user for process in daemons] == [TITAN["titan_user"]]


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service["name"])
def test_service_listens_and_says_what_is_expected(replacement: testinfra.host.Host, service: dict[str, Any]) -> None:
    if service["port"]:
        assert replacement.socket(f"tcp://{service['port']}").is_listening
    if service.get("health"):
        body = get(replacement, f"http://127.0.0.1:{service['port']}{service['health']['path']}")
        for dotted, accepted in service["health"]["expect"].items():
            value = body
            for part in dotted.split("."):
                value = value[part]
            assert value in accepted, f"{dotted}: {value!r}"


def test_trading_has_resumed(replacement: testinfra.host.Host) -> None:
    confirm = TITAN["titan_resume_call"]["confirm"]
    body = get(replacement, confirm["url"])
    assert {key: body[key] for key in confirm["expect"]} == {key: accepted[0] for key, accepted in confirm["expect"].items()}


def test_no_package_registry_can_be_reached(replacement: testinfra.host.Host) -> None:
    """The lab's network leads nowhere: what was installed came from the offline bundle."""
    assert replacement.run("ip -4 route show default").stdout.strip() == ""
    program = "import socket; socket.create_connection(('192.0.2.1', 443), timeout=2)"
    assert replacement.run("python3 -c %s", program).rc != 0
