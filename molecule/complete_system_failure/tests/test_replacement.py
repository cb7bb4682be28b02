# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks at the recovered server with eyes of its own: none of the collection's modules are asked."""

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

from titan_dr import lab

ROOT = Path(__file__).resolve().parents[3]
STATE = json.loads((Path(os.environ["TITAN_DR_LAB_DIR"]) / "state.json").read_text(encoding="utf-8"))


def described() -> dict[str, Any]:
    """What the role titan says of the guide's Titan, templates filled in. The lab's inventory adds only its stores and keys."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "roles/titan/defaults/main.yml").read_text(encoding="utf-8"))
    return {name: jinja2.Template(value).render(found) if isinstance(value, str) else value for name, value in found.items()}


TITAN = described()
CONFIG = f"{TITAN['titan_home']}/config"
DATA = TITAN["titan_redis"]["data_dir"]
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


def ask_redis(host: testinfra.host.Host, *command: str) -> str:
    # the password goes from the services' own file into the environment, and onto no command line
    program = f"import json; print(json.load(open('{CONFIG}/secrets.json'))['redisPassword'])"
    return str(host.check_output("REDISCLI_AUTH=$(python3 -c %s) redis-cli -n %s" + " %s" * len(command), program, str(TITAN["titan_canary"]["db"]), *command))


def test_redis_holds_the_restored_data(replacement: testinfra.host.Host) -> None:
    assert json.loads(ask_redis(replacement, "get", TITAN["titan_canary"]["key"]))["seq"] > 0
    assert int(ask_redis(replacement, "dbsize")) > 1000


def test_redis_has_a_fresh_append_only_file_on_the_restored_data(replacement: testinfra.host.Host) -> None:
    """Without a manifest that names the restored snapshot, the next start would begin empty."""
    manifest = replacement.file(f"{DATA}/appendonlydir/appendonly.aof.manifest").content_string
    entries = re.findall(r"^file (\S+) seq \d+ type ([bi])$", manifest, re.MULTILINE)
    assert [kind for _, kind in entries] == ["b", "i"]
    assert sorted(replacement.file(f"{DATA}/appendonlydir").listdir()) == sorted(["appendonly.aof.manifest", *(name for name, _ in entries)])
    assert replacement.file(f"{DATA}/appendonlydir/{entries[0][0]}").content.startswith(b"REDIS")
    assert replacement.check_output("find %s ! -user redis", DATA) == ""
    info = ask_redis(replacement, "info", "persistence")
    for wanted in ("aof_enabled:1", "aof_last_write_status:ok", "aof_last_bgrewrite_status:ok", "loading:0"):
        assert wanted in info


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
def test_owner_and_mode(replacement: testinfra.host.Host, path: str, mode: int, owner: str) -> None:
    found = replacement.file(path)
    assert (oct(found.mode), found.user) == (oct(mode), owner)


def test_the_secrets_are_those_of_the_lost_server(replacement: testinfra.host.Host) -> None:
    restored = json.loads(replacement.file(f"{CONFIG}/secrets.json").content_string)
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


def test_no_secret_is_where_it_does_not_belong(replacement: testinfra.host.Host) -> None:
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


def test_the_latch_is_gone(replacement: testinfra.host.Host) -> None:
    assert not replacement.file(TITAN["titan_latch"]).exists


def test_live_release_is_a_link_into_the_releases(replacement: testinfra.host.Host) -> None:
    current = replacement.file(TITAN["titan_current"])
    assert current.is_symlink
    assert current.linked_to.startswith(f"{TITAN['titan_home']}/releases/")


def test_services_start_at_boot(replacement: testinfra.host.Host) -> None:
    unit = replacement.service(TITAN["titan_pm2_unit"])
    assert unit.is_running
    assert unit.is_enabled
    saved = json.loads(replacement.file(f"{TITAN['titan_pm2_home']}/dump.pm2").content_string)
    assert {app["name"] for app in saved} == {service["app"] for service in SERVICES}


def test_one_pm2_daemon_of_the_right_user(replacement: testinfra.host.Host) -> None:
    daemons = [line.split()[0] for line in replacement.check_output("ps -eo user:32=,args=").splitlines() if "God Daemon" in line]
    assert daemons == [TITAN["titan_user"]]


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service["name"])
def test_service_listens_and_says_what_is_expected(replacement: testinfra.host.Host, service: dict[str, Any]) -> None:
    if service["port"]:
        listening = replacement.check_output("ss --no-header --listening --tcp --numeric --extended %s", f"sport = :{service['port']}")
        assert len(listening.splitlines()) == 1
        assert f"uid:{replacement.user(TITAN['titan_user']).uid} " in listening
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


def test_redis_survives_its_next_start(replacement: testinfra.host.Host) -> None:
    """The last test: the services lose their connection for a moment."""
    before = int(ask_redis(replacement, "dbsize"))
    replacement.check_output("systemctl restart %s", TITAN["titan_redis"]["unit"])
    # the services write on: the number may have grown
    assert int(ask_redis(replacement, "dbsize")) >= before
