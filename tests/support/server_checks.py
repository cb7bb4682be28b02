# SPDX-License-Identifier: GPL-3.0-or-later
"""A look at a recovered lab server with eyes of its own: none of the collection's modules are asked. Molecule scenarios import what applies to them.

The fixture `server`, the host to look at, is that of the scenario.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import jinja2
import pytest
import testinfra
import yaml

ROOT = Path(__file__).resolve().parents[2]
STATE = json.loads((Path(os.environ["TITAN_DR_LAB_DIR"]) / "state.json").read_text(encoding="utf-8"))


def described() -> dict[str, Any]:
    """What the role titan says of the guide's Titan, templates filled in. The lab's inventory adds only its stores and keys."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "roles/titan/defaults/main.yml").read_text(encoding="utf-8"))
    return {name: jinja2.Template(value).render(found) if isinstance(value, str) else value for name, value in found.items()}


TITAN = described()
CONFIG = f"{TITAN['titan_home']}/config"
DATA = TITAN["titan_redis"]["data_dir"]
SERVICES = [component for component in TITAN["titan_components"] if component["kind"] == "pm2"]


def connect(name: str, folder: Path) -> testinfra.host.Host:
    """The lab host, over ssh; `folder` is for its configuration."""
    config = folder / "config"
    config.write_text(f"Host *\n  UserKnownHostsFile {STATE['ssh']['known_hosts']}\n  StrictHostKeyChecking yes\n  BatchMode yes\n", encoding="utf-8")
    address = STATE["hosts"][name]["address"]
    return testinfra.get_host(f"ssh://{STATE['ssh']['user']}@{address}", ssh_config=str(config), ssh_identity_file=STATE["ssh"]["private_key_file"])


def get(host: testinfra.host.Host, url: str) -> Any:
    """A blank server has no curl."""
    program = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"
    return json.loads(host.check_output("python3 -c %s %s", program, url))


def ask_redis(host: testinfra.host.Host, *command: str) -> str:
    # the password goes from the services' own file into the environment, and onto no command line
    program = f"import json; print(json.load(open('{CONFIG}/secrets.json'))['redisPassword'])"
    return str(host.check_output("REDISCLI_AUTH=$(python3 -c %s) redis-cli -n %s" + " %s" * len(command), program, str(TITAN["titan_canary"]["db"]), *command))


def test_the_server_has_no_failed_unit(server: testinfra.host.Host) -> None:
    assert server.check_output("systemctl list-units --failed --plain --no-legend") == ""


def test_redis_runs_and_starts_at_boot(server: testinfra.host.Host) -> None:
    unit = server.service(TITAN["titan_redis"]["unit"])
    assert unit.is_running
    assert unit.is_enabled


def test_redis_refuses_strangers(server: testinfra.host.Host) -> None:
    assert "NOAUTH" in server.run("redis-cli ping").stdout


def test_redis_holds_the_restored_data(server: testinfra.host.Host) -> None:
    assert json.loads(ask_redis(server, "get", TITAN["titan_canary"]["key"]))["seq"] > 0
    assert int(ask_redis(server, "dbsize")) > 1000


def test_redis_has_a_fresh_append_only_file_on_the_restored_data(server: testinfra.host.Host) -> None:
    """Without a manifest that names the restored snapshot, the next start would begin empty."""
    manifest = server.file(f"{DATA}/appendonlydir/appendonly.aof.manifest").content_string
    entries = re.findall(r"^file (\S+) seq \d+ type ([bi])$", manifest, re.MULTILINE)
    assert [kind for _, kind in entries] == ["b", "i"]
    assert sorted(server.file(f"{DATA}/appendonlydir").listdir()) == sorted(["appendonly.aof.manifest", *(name for name, _ in entries)])
    assert server.file(f"{DATA}/appendonlydir/{entries[0][0]}").content.startswith(b"REDIS")
    assert server.check_output("find %s ! -user redis", DATA) == ""
    info = ask_redis(server, "info", "persistence")
    for wanted in ("aof_enabled:1", "aof_last_write_status:ok", "aof_last_bgrewrite_status:ok", "loading:0"):
        assert wanted in info


def test_the_latch_is_gone(server: testinfra.host.Host) -> None:
    assert not server.file(TITAN["titan_latch"]).exists


def test_services_start_at_boot(server: testinfra.host.Host) -> None:
    unit = server.service(TITAN["titan_pm2_unit"])
    assert unit.is_running
    assert unit.is_enabled
    saved = json.loads(server.file(f"{TITAN['titan_pm2_home']}/dump.pm2").content_string)
    assert {app["name"] for app in saved} == {service["app"] for service in SERVICES}


def test_one_pm2_daemon_of_the_right_user(server: testinfra.host.Host) -> None:
    daemons = [line.split()[0] for line in server.check_output("ps -eo user:32=,args=").splitlines() if "God Daemon" in line]
    assert daemons == [TITAN["titan_user"]]


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service["name"])
def test_service_listens_and_says_what_is_expected(server: testinfra.host.Host, service: dict[str, Any]) -> None:
    if service["port"]:
        listening = server.check_output("ss --no-header --listening --tcp --numeric --extended %s", f"sport = :{service['port']}")
        assert len(listening.splitlines()) == 1
        assert f"uid:{server.user(TITAN['titan_user']).uid} " in listening
    if service.get("health"):
        body = get(server, f"http://127.0.0.1:{service['port']}{service['health']['path']}")
        for dotted, accepted in service["health"]["expect"].items():
            value = body
            for part in dotted.split("."):
                value = value[part]
            assert value in accepted, f"{dotted}: {value!r}"


def test_trading_has_resumed(server: testinfra.host.Host) -> None:
    confirm = TITAN["titan_resume_call"]["confirm"]
    body = get(server, confirm["url"])
    assert {key: body[key] for key in confirm["expect"]} == {key: accepted[0] for key, accepted in confirm["expect"].items()}


def restart_redis(server: testinfra.host.Host) -> None:
    """What is on the disk is what is served. For the last test: the services lose their connection for a moment."""
    before = int(ask_redis(server, "dbsize"))
    server.check_output("systemctl restart %s", TITAN["titan_redis"]["unit"])
    # the services write on: the number may have grown
    assert int(ask_redis(server, "dbsize")) >= before
