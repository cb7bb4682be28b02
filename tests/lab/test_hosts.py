# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's own parts: pure ones at once, and one real lab without its Titan (marker `lab`)."""

from __future__ import annotations

import contextlib
import io
import ipaddress
import json
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from titan_dr import lab
from titan_dr.lab import certificates, engine, hosts, images, patient, profiles, state, wiring
from titan_dr.lab.engine import LabError
from titan_dr.lab.stage import Stage, ids_of
from titan_dr.paths import project_root

NETWORK = ipaddress.IPv4Network
BYBIT = "https://api.bybit.lab:9002"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "lab"
    monkeypatch.setenv("TITAN_DR_LAB_DIR", str(path))
    return path


def some_state(**override: Any) -> state.LabState:
    values: dict[str, Any] = {
        "run_id": "r1",
        "profile": "guide",
        "network": "titan-lab-r1",
        "subnet": "10.213.0.0/24",
        "engine": {"podman": "4.3.1", "runtime": "runc", "ulimits": []},
        "hosts": {"titan": {"name": "titan-lab-r1-titan", "address": "10.213.0.10", "image": "x"}},
        "ssh": {"user": "root", "private_key_file": "/k", "known_hosts": "/h"},
        "s3": {},
        "sftp": {},
        "age": {},
        "redis_password": 'a"b\\c',
        "redis_config_command": "CONFIG_1",
        "exchange_keys": {"binance": {"api_key": "k1", "api_secret": "s1"}, "bybit": {"api_key": "k2", "api_secret": "s2"}},
        "exchange_control": "http://10.213.0.13:9003",
        "venues": {
            "binance": {"name": "api.binance.lab", "address": "10.213.0.13", "port": 9001},
            "bybit": {"name": "api.bybit.lab", "address": "10.213.0.14", "port": 9002},
        },
        "exchange_ca": "-----BEGIN CERTIFICATE-----",
    }
    return state.LabState(**{**values, **override})


# --- engine -------------------------------------------------------------------------------------------------------------


def test_missing_podman_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match=r"podman is not installed.*apt-get install.*netavark"):
        engine.find()


@pytest.mark.parametrize(("says", "message"), [("podman version 3.4.4", "3.4.4 is too old"), ("nonsense", "answered 'nonsense'")])
def test_podman_that_will_not_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, says: str, message: str) -> None:
    script = tmp_path / "podman"
    script.write_text(f"#!/bin/sh\necho '{says}'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match=message):
        engine.find()


def test_failure_names_the_step_but_no_argument(tmp_path: Path) -> None:
    script = tmp_path / "podman"
    script.write_text("#!/bin/sh\necho 'failed to connect to syslog: x' >&2\necho 'no such image' >&2\nexit 125\n")
    script.chmod(0o755)
    with pytest.raises(LabError) as caught:
        engine.Engine(str(script), "4.3.1", "runc").run("create", "--env=SECRET=1")
    assert str(caught.value) == "podman create failed (125): no such image"


def test_command_past_its_deadline_is_ended_with_its_children(tmp_path: Path) -> None:
    marker = tmp_path / "child"
    begun = time.monotonic()
    with pytest.raises(LabError, match=r"sh did not finish in 0\.3 s"):
        engine.run_process(["sh", "-c", f"(echo $$ >{marker}; exec sleep 60) & wait"], timeout=0.3)
    assert time.monotonic() - begun < 5
    assert marker.exists()


@pytest.mark.parametrize(
    ("hard", "expected"),
    [
        ({"nofile": 1048576, "nproc": -1}, ()),
        ({"nofile": 20000, "nproc": 96365}, ("--ulimit=nofile=16384:16384", "--ulimit=nproc=16384:16384")),
        ({"nofile": 4096, "nproc": -1}, ("--ulimit=nofile=4096:4096", "--ulimit=nproc=16384:16384")),
    ],
)
def test_ulimits_only_where_they_cannot_be_raised(hard: dict[str, int], expected: tuple[str, ...]) -> None:
    assert engine.ulimit_options(hard) == expected


def test_capability_to_raise_limits() -> None:
    assert engine.can_raise_limits("CapEff:\t000001ffffffffff\n")
    assert not engine.can_raise_limits("CapEff:\t000001fffeffffff\n")
    assert not engine.can_raise_limits("")


def test_runtime_order_follows_the_cgroups() -> None:
    assert engine.candidates(True, ())[0] == (None, ())
    assert engine.candidates(False, ("--ulimit=nofile=1:1",))[0] == ("runc", ("--ulimit=nofile=1:1",))


def test_too_little_room_is_named() -> None:
    with pytest.raises(LabError, match="100 MiB of memory"):
        engine.check_room(100, 99999, "/var")
    with pytest.raises(LabError, match=r"5 MiB are free under /var"):
        engine.check_room(9999, 5, "/var")
    engine.check_room(9999, 99999, "/var")


def test_wait_gives_up_with_the_last_reason() -> None:
    with pytest.raises(LabError, match=r"the store was not ready within 0\.2 s: refused"):
        engine.wait_for("the store", 0.2, lambda: "refused", interval=0.05)


# --- images -------------------------------------------------------------------------------------------------------------


def test_recipe_names_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    before, services = images.base_tag(), images.services_tag()
    assert before == images.base_tag()
    monkeypatch.setattr(images, "BASE_PACKAGES", (*images.BASE_PACKAGES, "less"))
    assert images.base_tag() != before
    assert images.services_tag() != services  # it stands on the base


def test_tree_digest_sees_content_and_names_but_no_caches(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.yml").write_text("1")
    first = images.tree_digest([tmp_path / "a"], tmp_path)
    (tmp_path / "a" / "__pycache__").mkdir()
    (tmp_path / "a" / "__pycache__" / "x.pyc").write_text("2")
    assert images.tree_digest([tmp_path / "a"], tmp_path) == first
    (tmp_path / "a" / "x.yml").write_text("2")
    second = images.tree_digest([tmp_path / "a"], tmp_path)
    (tmp_path / "a" / "x.yml").rename(tmp_path / "a" / "y.yml")
    assert len({first, second, images.tree_digest([tmp_path / "a"], tmp_path)}) == 3


def test_modules_used() -> None:
    text = "- name: x\n  titan.disaster_recovery.one:\n    a: 1\n- titan.disaster_recovery.two:\n  # titan.disaster_recovery.three\n"
    assert images.modules_used([text]) == {"one", "two"}


# --- stage --------------------------------------------------------------------------------------------------------------


def test_stage_keeps_owner_mode_and_links(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("#!/bin/sh\n")
    (tmp_path / "run").chmod(0o755)
    stage = Stage()
    stage.file("/etc/secret", "s", 0o600, (999, 997))
    stage.tree("/opt/x", tmp_path)
    stage.enable("a.service")
    with tarfile.open(fileobj=io.BytesIO(stage.tar())) as archive:
        secret = archive.getmember("etc/secret")
        assert (secret.mode, secret.uid, secret.gid) == (0o600, 999, 997)
        assert archive.getmember("opt/x/run").mode == 0o755
        assert archive.getmember("etc/systemd/system/multi-user.target.wants/a.service").linkname == "/etc/systemd/system/a.service"


def test_stage_refuses_relative_paths() -> None:
    with pytest.raises(ValueError, match="not absolute"):
        Stage().file("etc/x", "")


def test_ids_of() -> None:
    assert ids_of("root:x:0:0:root:/root:/bin/sh\ntitan:x:998:996::/opt/titan:/bin/sh\n\n")["titan"] == (998, 996)


# --- state --------------------------------------------------------------------------------------------------------------


def test_state_round_trip_and_nobody_else_reads_it(folder: Path) -> None:
    state.save_state(some_state(ready=True))
    assert stat.S_IMODE(state.state_file().stat().st_mode) == 0o600
    assert state.load_state() == some_state(ready=True)
    assert [path.name for path in folder.iterdir()] == ["state.json"]


def test_no_lab_and_broken_state_are_told_apart(folder: Path) -> None:
    assert state.find_state() is None
    with pytest.raises(LabError, match="titan-dr lab up"):
        lab.load_state()
    state.private_file(state.state_file(), "{")
    with pytest.raises(LabError, match="not JSON"):
        state.find_state()
    state.private_file(state.state_file(), json.dumps({"run_id": "x"}))
    with pytest.raises(LabError, match=r"lacks .*redis_password"):
        state.find_state()


def test_unknown_host_is_named() -> None:
    with pytest.raises(LabError, match="no host 'x'; it has titan"):
        some_state().host("x")


# --- network, isolation -------------------------------------------------------------------------------------------------


def test_subnet_is_the_first_that_overlaps_nothing() -> None:
    assert hosts.pick_subnet([]) == NETWORK("10.213.0.0/24")
    assert hosts.pick_subnet([NETWORK("0.0.0.0/0"), NETWORK("10.213.0.0/25"), NETWORK("10.213.1.128/32")]) == NETWORK("10.213.2.0/24")
    assert hosts.pick_subnet([], [NETWORK("10.213.0.0/24")]) == NETWORK("10.213.1.0/24")
    with pytest.raises(LabError, match="No free subnet"):
        hosts.pick_subnet([NETWORK("10.0.0.0/8")])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"default_routes": ["default via 1.2.3.4 dev eth0"], "reached": [], "failed": ["x"]}, "is not isolated"),
        ({"default_routes": [], "reached": ["1.1.1.1:443"], "failed": []}, "is not isolated"),
        ({"default_routes": [], "reached": [], "failed": []}, "tried nothing"),
        ({"reached": []}, "could not be proven"),
    ],
)
def test_isolation_is_never_assumed(answer: dict[str, list[str]], message: str) -> None:
    with pytest.raises(LabError, match=message):
        hosts.check_isolation("titan", json.dumps(answer))
    with pytest.raises(LabError, match="could not be proven"):
        hosts.check_isolation("titan", "")


def test_isolation_probe_sees_what_answers() -> None:
    """The probe itself, run where something can be reached: it must not call that isolated."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        order = json.dumps({"addresses": [server.getsockname()]})
        probe = hosts.ISOLATION_PROBE.replace("/etc/apt/sources.list", "/nonexistent")
        done = subprocess.run([sys.executable, "-c", probe], input=order, capture_output=True, text=True, timeout=30, check=True)
    with pytest.raises(LabError, match="is not isolated"):
        hosts.check_isolation("here", done.stdout)


def test_up_refuses_names_and_profiles_it_cannot_use(folder: Path) -> None:
    with pytest.raises(LabError, match="Unknown profile"):
        lab.up("nonsense", print)
    with pytest.raises(LabError, match="cannot be part of a container's name"):
        lab.up("guide", print, "a b")
    with pytest.raises(LabError, match="Unknown hosts: x"):
        hosts.up("guide", print, None, ["x"])
    with pytest.raises(LabError, match="Unknown hosts: titan; there are data, core, phases, data2"):
        hosts.up("split", print, None, ["titan"])
    assert not folder.exists()


def test_ssh_trusts_only_the_labs_keys() -> None:
    options = " ".join(lab.ssh_options(some_state()))
    for wanted in ("-F /dev/null", "StrictHostKeyChecking=yes", "UserKnownHostsFile=/h", "IdentitiesOnly=yes", "IdentityFile=/k"):
        assert wanted in options


# --- patient ------------------------------------------------------------------------------------------------------------


SERVERS = [(name, server) for name, profile in sorted(profiles.PROFILES.items()) for server in profile.servers]


def rendered(profile: str, server: str) -> dict[str, str]:
    return patient.render_configuration(profile, patient.titan_vars(profile, server), some_state(profile=profile), server)


def all_hosts() -> dict[str, Any]:
    return {host: {"name": host, "address": f"10.213.0.{last}", "image": "x"} for host, last in hosts.ADDRESSES.items()}


def test_every_host_of_every_profile_has_an_address_of_its_own() -> None:
    lasts = [*hosts.ADDRESSES.values(), wiring.VENUES["bybit"].last]
    assert len(set(lasts)) == len(lasts)
    for profile in profiles.PROFILES.values():
        assert set(profile.hosts) <= set(hosts.ADDRESSES)
        assert {profile.data, profile.trades} <= set(profile.servers)
        assert profiles.PROFILES[profile.image].image == profile.image


def test_only_the_servers_of_a_split_titan_know_each_other_by_its_names() -> None:
    of_split = some_state(profile="split", hosts=all_hosts())
    for name in ("data", "core", "phases"):
        assert "10.213.0.20 titan-data\n10.213.0.21 titan-core\n10.213.0.22 titan-phases\n" in hosts.hosts_file(of_split, name)
    # a replacement learns them from the recovery
    for name in ("data2", "core2", "phases2", "backup", "exchange"):
        assert "titan-" not in hosts.hosts_file(of_split, name) and "10.213.0.20 data\n" in hosts.hosts_file(of_split, name)
    assert "titan-" not in hosts.hosts_file(some_state(hosts=all_hosts()), "titan")


def test_a_split_titan_finds_its_servers_by_name_and_each_has_only_its_own_part() -> None:
    data, core, phases = (rendered("split", server) for server in ("data", "core", "phases"))
    assert set(data) == {"redis.conf"} and "bind 127.0.0.1 titan-data\n" in data["redis.conf"] and "requirepass " in data["redis.conf"]
    own = {"ecosystem.config.js", "secrets.json"}
    assert set(core) == {"brain.config.json", "shared.config.json", *own}
    assert set(phases) == {"phase1.config.json", "phase2.config.json", "phase3.config.json", *own}
    for files in (core, phases):
        configs = [json.loads(text) for name, text in files.items() if name.endswith(".config.json")]
        assert {config["redis"]["host"] for config in configs} == {"titan-data"}
        assert all(f"'{config['service']}'" in files["ecosystem.config.js"] for config in configs)
    assert json.loads(core["shared.config.json"])["host"] == "0.0.0.0"
    assert "host" not in json.loads(core["brain.config.json"])
    assert json.loads(phases["phase2.config.json"])["signalUrl"] == "http://titan-core:3001/signal"
    # who does not trade has no keys
    assert json.loads(phases["secrets.json"])["exchanges"] == {} != json.loads(core["secrets.json"])["exchanges"]


def test_each_server_of_a_split_titan_belongs_to_its_own_environment() -> None:
    for server, trades in (("data", False), ("core", True), ("phases", False)):
        stage = Stage()
        patient.configure(stage, {"titan": (999, 999), "redis": (998, 998)}, some_state(profile="split"), server)
        assert json.loads(stage.entries[patient.OWNER][1])["environment_id"] == f"titan-lab-{server}"
        assert ("/opt/titan/config/exchange-ca.pem" in stage.entries) is trades
        assert ("/etc/redis/redis.conf" in stage.entries) is (server == "data")
    stage = Stage()
    patient.configure(stage, {"titan": (999, 999), "redis": (998, 998)}, some_state(), "titan")
    assert patient.OWNER not in stage.entries and "/opt/titan/config/exchange-ca.pem" in stage.entries


@pytest.mark.parametrize(("server", "present"), [("data", {"redis"}), ("core", {"pm2"}), ("phases", {"pm2"})])
def test_a_server_of_a_split_titan_keeps_its_own_part_of_the_image(server: str, present: set[str]) -> None:
    titan = patient.titan_vars("split", server)
    assert titan["titan_server"] == profiles.server_name(server) and patient.kinds(titan) == present
    told: list[str] = []
    podman: Any = type("Engine", (), {"exec": staticmethod(lambda _container, argv, **_: told.append(argv[-1]))})
    patient.trim(podman, "x", "split", server)
    assert ("disable --quiet --now redis-server" in told[0]) is (present == {"pm2"})
    assert ("disable --quiet --now pm2-titan" in told[0] and "/opt/titan/* /opt/pm2" in told[0]) is (present == {"redis"})


@pytest.mark.parametrize(
    ("stdout", "stderr", "code", "complaint"),
    [
        ("NOAUTH Authentication required.\n", "", 0, None),
        ("", "Could not connect to Redis at 127.0.0.1:6379: Connection refused\n", 1, "Connection refused"),
        ("", "", 0, "said nothing"),
        ("PONG\n", "", 0, "PONG"),
    ],
)
def test_a_server_with_redis_alone_is_healthy_when_it_asks_for_the_password(stdout: str, stderr: str, code: int, complaint: str | None) -> None:
    done = engine.Completed([], code, stdout, stderr)
    podman: Any = type("Engine", (), {"exec": staticmethod(lambda *_, **__: done)})
    found = patient.complaint(podman, "x", "split", "data")
    assert found is None if complaint is None else complaint in str(found)


def test_a_host_that_is_no_server_has_no_configuration() -> None:
    with pytest.raises(LabError, match="data2 is no server of profile split; it has data, core, phases"):
        patient.render_configuration("split", patient.titan_vars("split"), some_state(profile="split"), "data2")


@pytest.mark.parametrize("profile", ["guide", "variant"])
def test_configuration_of_each_profile_renders(profile: str) -> None:
    files = rendered(profile, "titan")
    secrets = json.loads(files["secrets.json"])
    assert secrets["redisPassword"] == some_state().redis_password
    assert secrets["exchanges"]["bybit"] == {"apiKey": "k2", "apiSecret": "s2"}
    assert "rename-command CONFIG CONFIG_1" in files["redis.conf"]
    trader = next(json.loads(text) for name, text in files.items() if '"exchanges"' in text and name != "secrets.json")
    ca = patient.exchange_ca(patient.titan_vars(profile))
    assert trader["exchanges"]["bybit"] == {"rest": BYBIT, "ws": f"{BYBIT.replace('https', 'wss')}/v5/public/linear", "ca": ca, "symbol": "BTCUSDT"}
    for name, text in files.items():
        assert "{{" not in text
        if name.endswith(".json"):
            json.loads(text)


@pytest.mark.parametrize(("profile", "server"), SERVERS)
def test_variables_are_filled_in(profile: str, server: str) -> None:
    titan = patient.titan_vars(profile, server)
    assert titan["titan_ecosystem"] == f"{titan['titan_home']}/config/ecosystem.config.js"
    assert titan["titan_pm2_unit"] == f"pm2-{titan['titan_user']}"
    checks = patient.health_checks(titan)
    wanted = {"data": 0, "core": 4, "phases": 3}.get(server, 3)
    assert len({check["name"] for check in checks}) == len(checks) >= wanted
    assert all(check["url"].startswith("http://127.0.0.1:") and check["expect"] for check in checks)


@pytest.mark.parametrize("name", sorted(profiles.PROFILES))
def test_inventory_reads_the_running_lab(name: str, folder: Path) -> None:
    profile = profiles.PROFILES[name]
    state.save_state(some_state(hosts=all_hosts()))
    inventory = profile.folder
    (folder / "ansible.cfg").touch()  # nobody's settings
    environment = {**os.environ, "ANSIBLE_CONFIG": str(folder / "ansible.cfg")}
    ansible = patient.ansible_playbook().removesuffix("-playbook")
    listed = subprocess.run([f"{ansible}-inventory", "-i", str(inventory), "--list"], capture_output=True, text=True, timeout=60, check=True, env=environment)
    groups = json.loads(listed.stdout)
    assert (groups["titan_servers"]["hosts"], groups["titan_replacement"]["hosts"]) == (list(profile.servers), list(profile.replacements.values()))
    known = "{{ titan_venues[1].rest }}|{{ titan_venues[1].addresses[0] }}|{{ titan_network.resolvers[0] }}|{{ titan_network.routes[1].values() | join('~') }}"
    shown = "msg={{ ansible_host }}|{{ ansible_ssh_common_args }}|" + known
    trading = f"{profile.trades},{profile.replacements[profile.trades]}"
    argv = [ansible, trading, "-i", str(inventory), "-m", "ansible.builtin.debug", "-a", shown]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True, env=environment)
    for host in trading.split(","):
        assert f"10.213.0.{hosts.ADDRESSES[host]}|" in done.stdout
    assert "UserKnownHostsFile=/h " in done.stdout
    assert f"|{BYBIT}|10.213.0.14|10.213.0.12|10.213.0.14~10.213.0.12" in done.stdout
    # the services find the exchanges where the recovery does
    for server in profile.servers:
        configs = {Path(item["config"]).name for item in patient.here(patient.titan_vars(name, server))}
        assert configs and configs <= set(rendered(name, server))


def test_the_replacements_of_a_split_titan_are_told_their_new_addresses(folder: Path) -> None:
    state.save_state(some_state(profile="split", hosts=all_hosts()))
    (folder / "ansible.cfg").touch()
    environment = {**os.environ, "ANSIBLE_CONFIG": str(folder / "ansible.cfg")}
    ansible = patient.ansible_playbook().removesuffix("-playbook")
    argv = [ansible, "titan_replacement", "-i", str(profiles.PROFILES["split"].folder), "-m", "ansible.builtin.debug"]
    shown = "msg={{ titan_server }}={{ titan_server_addresses[titan_server] }}={{ ansible_host }}={{ titan_environment_id }}"
    done = subprocess.run([*argv, "-a", shown], capture_output=True, text=True, timeout=60, check=True, env=environment)
    for server, new in profiles.PROFILES["split"].replacements.items():
        address = f"10.213.0.{hosts.ADDRESSES[new]}"
        assert f"titan-{server}={address}={address}=titan-lab-{server}" in done.stdout


# --- certificates and names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [("good", None), ("expired", "has expired"), ("not_yet_valid", "not yet valid"), ("unknown_ca", "unable to get (local )?issuer certificate")],
)
def test_each_certificate_is_wrong_in_its_own_way(tmp_path: Path, kind: str, complaint: str | None) -> None:
    authority, files = certificates.make(["api.binance.lab", "api.bybit.lab"])
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cadata=authority)
    server.load_cert_chain(tmp_path / f"{kind}.pem", tmp_path / f"{kind}.key")
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    asks = client.wrap_bio(ours, theirs, server_hostname="api.bybit.lab")
    answers = server.wrap_bio(theirs, ours, server_side=True)
    found = None
    with contextlib.suppress(ssl.SSLWantReadError):
        asks.do_handshake()
    with contextlib.suppress(ssl.SSLWantReadError):
        answers.do_handshake()
    try:
        asks.do_handshake()
    except ssl.SSLCertVerificationError as error:
        found = error.verify_message
    assert (found is None) if complaint is None else re.search(complaint, found or "")


class Resolver:
    """Answers one question with these bytes behind the question's number."""

    def __init__(self, *replies: bytes) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        threading.Thread(target=self.answer, args=(replies,), daemon=True).start()

    def answer(self, replies: tuple[bytes, ...]) -> None:
        for reply in replies:
            question, sender = self.socket.recvfrom(512)
            self.socket.sendto((question[:2] if len(reply) > 2 else b"") + reply, sender)


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        (b"\x81\x80\0\1\0\1\0\0\0\0" + b"...." + bytes([10, 213, 0, 14]), "10.213.0.14"),
        (b"\x81\x83\0\1\0\0\0\0\0\0", None),
        (b"\x81\x85\0\1\0\0\0\0\0\0", "code 5"),
        (b"no", "code 0"),
        (b"", "timed out"),
    ],
)
def test_a_lookup_says_what_the_server_said(monkeypatch: pytest.MonkeyPatch, reply: bytes, found: str | None) -> None:
    resolver = Resolver(*([reply] if reply else []))
    monkeypatch.setattr(wiring, "DNS_PORT", resolver.socket.getsockname()[1])
    try:
        assert wiring.lookup("127.0.0.1", "api.bybit.lab", timeout=0.5) == found
    except OSError as error:
        assert found is not None and found in str(error)


# --- a real lab, without its Titan --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[state.LabState]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TITAN_DR_LAB_DIR", str(tmp_path_factory.mktemp("lab")))
        try:
            yield hosts.up("guide", print, hosts=["replacement", "backup", "exchange"])
        finally:
            hosts.down()
        assert leftovers() == []


def leftovers() -> list[str]:
    """What carries this lab's label, asked past the code under test."""
    label = f"label=titan-lab-dir={hosts.lab_dir()}"
    argv = [["podman", "ps", "-a", "-q", "--filter", label], ["podman", "network", "ls", "-q", "--filter", label]]
    return [line for command in argv for line in subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split()]


def ssh(small: state.LabState, name: str, *argv: str) -> subprocess.CompletedProcess[str]:
    command = ["ssh", *lab.ssh_options(small), f"root@{small.host(name)['address']}", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def sftp(small: state.LabState, tmp_path: Path, batch: str) -> subprocess.CompletedProcess[str]:
    """As a production server does it: its own key, the store's key known, nothing else trusted."""
    key, known = tmp_path / "key", tmp_path / "known"
    state.private_file(key, small.sftp["private_key"])
    known.write_text(f"{small.sftp['host']} {small.sftp['host_key']}\n")
    options = ["-F", "/dev/null", "-i", str(key), "-o", f"UserKnownHostsFile={known}", "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes", "-b", "-"]
    argv = ["sftp", *options, "-P", str(small.sftp["port"]), f"{small.sftp['user']}@{small.sftp['host']}"]
    return subprocess.run(argv, input=batch, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.lab
def test_hosts_answer_and_know_each_other(small_lab: state.LabState) -> None:
    for name in small_lab.hosts:
        assert ssh(small_lab, name, "hostname").stdout.strip() == name
    assert small_lab.host("backup")["address"] in ssh(small_lab, "replacement", "getent", "hosts", "backup").stdout
    assert lab.status().hosts == {"replacement": "running", "backup": "running", "exchange": "running"}
    assert lab.exec("backup", ["cat"], input="through").stdout == "through"


@pytest.mark.lab
def test_replacement_is_blank(small_lab: state.LabState) -> None:
    absent = "/opt/titan /opt/pm2 /opt/lab /var/lib/redis /var/lib/titan-dr /etc/redis /usr/bin/node /usr/bin/redis-server /usr/bin/age"
    done = ssh(small_lab, "replacement", f"ls -d {absent}")
    assert done.stdout == ""


@pytest.mark.lab
def test_another_host_key_is_refused(small_lab: state.LabState, tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.write_text((Path(small_lab.ssh["known_hosts"])).read_text().replace(small_lab.host("backup")["address"], "192.0.2.1"))
    options = [word.replace(small_lab.ssh["known_hosts"], str(known)) for word in lab.ssh_options(small_lab)]
    argv = ["ssh", *options, f"root@{small_lab.host('backup')['address']}", "true"]
    assert subprocess.run(argv, capture_output=True, timeout=30, check=False).returncode == 255


@pytest.mark.lab
def test_store_takes_the_right_key_only(small_lab: state.LabState) -> None:
    from botocore.exceptions import ClientError

    bucket = small_lab.s3["bucket"]
    client = hosts.s3_client(small_lab)
    client.put_object(Bucket=bucket, Key="test/one", Body=b"1" * 100_000)
    assert client.get_object(Bucket=bucket, Key="test/one")["Body"].read() == b"1" * 100_000
    for wrong in ({"aws_secret_access_key": "wrong"}, {"aws_access_key_id": "nobody"}):
        stranger = hosts.s3_client(small_lab, **wrong)
        for call in (
            lambda s=stranger: s.get_object(Bucket=bucket, Key="test/one"),
            lambda s=stranger: s.put_object(Bucket=bucket, Key="test/two", Body=b"2"),
        ):
            with pytest.raises(ClientError) as caught:
                call()
            assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


@pytest.mark.lab
def test_sftp_user_adds_files_and_nothing_else(small_lab: state.LabState, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("restore point")
    done = sftp(small_lab, tmp_path, f"mkdir /backups/a\nput {tmp_path / 'file'} /backups/a/.tmp\nrename /backups/a/.tmp /backups/a/file\n")
    assert done.returncode == 0, done.stderr
    assert ssh(small_lab, "backup", "cat", "/backups/a/file").stdout == "restore point"
    for refused in ("rm /backups/a/file", f"put {tmp_path / 'file'} /x", "get /etc/passwd /dev/null", "rename /backups/a /backups/b/c"):
        assert sftp(small_lab, tmp_path, refused + "\n").returncode != 0, refused
    assert ssh(small_lab, "backup", "ls", "/backups/a").stdout.split() == ["file"]
    shell = ["ssh", "-F", "/dev/null", "-i", str(tmp_path / "key"), "-o", f"UserKnownHostsFile={tmp_path / 'known'}", "-o", "BatchMode=yes"]
    done = subprocess.run([*shell, f"{small_lab.sftp['user']}@{small_lab.sftp['host']}", "id"], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0
    assert "uid=" not in done.stdout


@pytest.mark.lab
def test_no_way_out(small_lab: state.LabState) -> None:
    evidence = small_lab.isolation["replacement"]
    assert evidence["reached"] == evidence["default_routes"] == []
    assert len(evidence["failed"]) >= 3


@pytest.mark.lab
def test_both_name_servers_know_the_exchanges_and_nothing_else(small_lab: state.LabState) -> None:
    for server in ("exchange", "backup"):
        found = {name: wiring.lookup(small_lab.host(server)["address"], name) for name in ("api.binance.lab", "api.bybit.lab", "fapi.binance.com", "titan")}
        prefix = small_lab.subnet.rpartition(".")[0]
        assert found == {"api.binance.lab": f"{prefix}.13", "api.bybit.lab": f"{prefix}.14", "fapi.binance.com": None, "titan": None}
    assert ssh(small_lab, "replacement", "getent", "hosts", "api.bybit.lab").stdout.split() == [f"{prefix}.14", "api.bybit.lab"]
    assert ssh(small_lab, "replacement", "getent", "hosts", "fapi.binance.com").returncode == 2


def tls(small: state.LabState, host: str, venue: str) -> subprocess.CompletedProcess[str]:
    """A handshake from this host with the exchange, by its name, and where it ended."""
    known = small.venues[venue]
    code = (
        "import socket, ssl, sys; context = ssl.create_default_context(cadata=sys.stdin.read()); "
        f"link = socket.create_connection(({known['name']!r}, {known['port']}), 3); "
        f"print(context.wrap_socket(link, server_hostname={known['name']!r}).getpeername()[0])"
    )
    return subprocess.run(
        ["ssh", *lab.ssh_options(small), f"root@{small.host(host)['address']}", f'/usr/bin/python3 -c "{code}"'],
        input=small.exchange_ca, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


@pytest.mark.lab
def test_the_exchanges_show_certificates_of_the_labs_authority(small_lab: state.LabState) -> None:
    for venue, known in small_lab.venues.items():
        assert tls(small_lab, "replacement", venue).stdout.strip() == known["address"]
    stranger = replace(small_lab, exchange_ca=certificates.make(["api.binance.lab"])[0])
    assert "certificate verify failed" in tls(stranger, "replacement", "binance").stderr


@pytest.mark.lab
def test_the_backup_host_is_another_way_to_the_exchanges(small_lab: state.LabState) -> None:
    """What the exchanges drop from the host itself gets through by way of the other, which leads nowhere else."""
    own, way = (small_lab.host(name)["address"] for name in ("replacement", "backup"))
    address = small_lab.venues["bybit"]["address"]
    lab.exec("exchange", ["nft", "-f", "-"], input=f"table ip t {{ chain c {{ type filter hook input priority 0; ip saddr {own} tcp dport 9002 drop; }}; }}\n")
    try:
        assert "timed out" in tls(small_lab, "replacement", "bybit").stderr
        lab.exec("replacement", ["ip", "route", "add", f"{address}/32", "via", way])
        for _ in range(3):  # and it stays that way: nobody tells it of the direct one
            assert tls(small_lab, "replacement", "bybit").stdout.strip() == address
        beyond = small_lab.subnet.rpartition(".")[0] + ".1"
        lab.exec("replacement", ["ip", "route", "add", f"{beyond}/32", "via", way])
        done = lab.exec("replacement", ["/usr/bin/python3", "-c", f"import socket; socket.create_connection(({beyond!r}, 22), 2)"], check=False)
        assert "timed out" in done.stderr
    finally:
        lab.exec("exchange", ["nft", "delete", "table", "ip", "t"])
        lab.exec("replacement", ["ip", "route", "flush", "via", way])
    assert tls(small_lab, "replacement", "bybit").returncode == 0


@pytest.mark.lab
def test_second_lab_in_the_same_place_is_refused(small_lab: state.LabState) -> None:
    with pytest.raises(LabError, match="already up here"):
        lab.up("guide", print)
    assert lab.status().hosts["backup"] == "running"


@pytest.mark.lab
def test_destroyed_host_is_gone_and_comes_back_blank(small_lab: state.LabState) -> None:
    ssh(small_lab, "replacement", "touch", "/root/trace")
    assert lab.destroy_host("replacement")["container_exists"] == "no"
    assert lab.status().hosts["replacement"] == "gone"
    with pytest.raises(LabError):
        lab.exec("replacement", ["true"])
    lab.start_host("replacement")
    assert ssh(small_lab, "replacement", "ls", "/root/trace").returncode != 0


@pytest.mark.lab
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_start_leaves_nothing(folder: Path, sent: signal.Signals) -> None:
    # A shell that starts this in the background has SIGINT ignored, and Python keeps what it inherits.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from titan_dr.lab import hosts; hosts.up('guide', lambda text: print(text, flush=True), hosts=['replacement', 'backup'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(project_root() / "src")}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("starting"):
                break
        time.sleep(0.6)
        process.send_signal(sent)
        process.wait(60)
    if sent is signal.SIGKILL:  # nobody was left to tidy up: the next command finds it by its label
        assert leftovers()
        assert lab.status().lines()
        lab.down()
    assert leftovers() == []
    assert not (folder / "state.json").exists()
