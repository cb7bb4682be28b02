# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's hosts: up, status, down, and what drills do to single hosts."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import re
import secrets
import shutil
import signal
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from titan_dr.lab import images, patient, profiles, wiring
from titan_dr.lab.engine import Completed, Engine, LabError, detect, find, run_process, wait_for
from titan_dr.lab.images import SFTP_USER, Progress, copy_in
from titan_dr.lab.stage import Stage
from titan_dr.lab.state import Host, LabState, find_state, load_state, private_file, save_state, state_file
from titan_dr.paths import lab_dir, lab_sources

# Host name -> last part of its address. Fixed, so that a host destroyed and made again is found where it was.
ADDRESSES = {"titan": 10, "replacement": 11, "backup": 12, "exchange": 13}
ADDRESSES |= {"data": 20, "core": 21, "phases": 22, "data2": 30, "core2": 31, "phases2": 32}
SUBNETS = [ipaddress.IPv4Network(f"10.213.{n}.0/24") for n in range(256)]
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,80}")
S3_PORT, S3_BUCKET, S3_REGION = 8333, "titan-backups", "us-east-1"
CONTROL_PORT = 9003
BOOT_DEADLINE_S, SERVICE_DEADLINE_S, TITAN_DEADLINE_S = 30.0, 40.0, 90.0
# Only addresses: nothing is resolved, and nothing is sent when one of them does answer.
OUTSIDE = (("1.1.1.1", 443), ("9.9.9.9", 53), ("8.8.8.8", 443))

ISOLATION_PROBE = """
import json, re, socket, struct, sys
order = json.load(sys.stdin)
routes = []
for line in open("/proc/net/route").read().splitlines()[1:]:
    part = line.split()
    if part[1] == "00000000" and part[7] == "00000000" and int(part[3], 16) & 1:
        routes.append("default via %s dev %s" % (socket.inet_ntoa(struct.pack("<L", int(part[2], 16))), part[0]))
try:
    for line in open("/proc/net/ipv6_route"):
        part = line.split()
        if part[0] == "0" * 32 and part[1] == "00" and part[9] != "lo":
            routes.append("IPv6 default dev " + part[9])
except FileNotFoundError:
    pass
tried, reached = [], []
targets = [tuple(item) for item in order["addresses"]]
try:
    targets += [(host, 80) for host in sorted(set(re.findall(r"^deb\\S* (?:\\[.*\\] )?\\w+://([^/\\s:]+)", open("/etc/apt/sources.list").read(), re.M)))]
except FileNotFoundError:
    pass
for host, port in targets:
    try:
        socket.create_connection((host, port), timeout=2).close()
        reached.append("%s:%s" % (host, port))
    except OSError as exc:
        tried.append("%s:%s: %s" % (host, port, exc))
print(json.dumps({"default_routes": routes, "reached": reached, "failed": tried}))
"""


@dataclass
class LabStatus:
    """`hosts`: name -> running, exited, ... or gone. `leftovers`: what carries this lab's label and is not in its state."""

    state: LabState | None
    hosts: dict[str, str] = field(default_factory=dict)
    leftovers: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        if self.state is None:
            head = ["no lab is running here"]
        else:
            head = [f"lab {self.state.run_id}, profile {self.state.profile}, network {self.state.network} ({self.state.subnet})"]
            head += [f"  {name:<12} {self.state.hosts[name]['address']:<15} {how}" for name, how in self.hosts.items()]
            if not self.state.ready:
                head.append("  it was never completed: `titan-dr lab down` removes it")
        return head + [f"  left over: {item} (`titan-dr lab down` removes it)" for item in self.leftovers]


# --- up -----------------------------------------------------------------------------------------------------------------


def up(profile: str, progress: Progress, run_id: str | None = None, hosts: Sequence[str] | None = None) -> LabState:
    """Start the lab and return when every host really answers. Whatever stops it half way, nothing is left behind."""
    wanted = profiles.find(profile)
    hosts = wanted.hosts if hosts is None else hosts
    run_id = run_id or f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-lab-{secrets.token_hex(2)}"
    if not RUN_ID.fullmatch(run_id):
        raise LabError(f"{run_id!r} cannot be part of a container's name: letters, digits, dot, dash and underscore only")
    unknown = set(hosts) - set(wanted.hosts)
    if unknown:
        raise LabError(f"Unknown hosts: {', '.join(sorted(unknown))}; there are {', '.join(wanted.hosts)}")
    engine = detect()
    with _own_lab(), _terminable():
        old = find_state()
        if old is not None and old.ready:
            raise LabError(f"Lab {old.run_id} is already up here: use it, or remove it with `titan-dr lab down`")
        for item in _remove(engine):
            progress(f"removed a leftover of an earlier run: {item}")
        base, engine = images.base(engine, progress)
        services = images.services(engine, base, progress) if set(profiles.AROUND) & set(hosts) else base
        production = patient.image(engine, base, profile, progress) if set(wanted.servers) & set(hosts) else base
        made_of = {name: production if name in wanted.servers else services if name in profiles.AROUND else base for name in wanted.hosts}
        try:
            state = _prepare(engine, profile, run_id, {name: image for name, image in made_of.items() if name in hosts})
            progress(f"starting {', '.join(state.hosts)} in {state.subnet}, which has no way out")
            _start_all(engine, state, progress)
            state.ready = True
            save_state(state)
        except BaseException:
            with _deaf():
                for item in _remove(engine):
                    progress(f"removed {item}")
            raise
    progress(f"lab {state.run_id} is up")
    return state


def _prepare(engine: Engine, profile: str, run_id: str, made_of: dict[str, str]) -> LabState:
    """Secrets, keys, network; the state is on disk before the first object exists."""
    folder = lab_dir()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / "cm").mkdir(exist_ok=True, mode=0o700)
    network = f"titan-lab-{run_id}"
    host_keys = {name: _keypair(f"host-{name}") for name in ("client", "sftp", *made_of)}
    private_file(folder / "id_ed25519", host_keys["client"][0])
    private_file(folder / "id_ed25519.pub", host_keys["client"][1] + "\n")
    identity, recipient = _age_pair()
    authority, shown = _certificates()
    empty = LabState(
        run_id=run_id,
        profile=profile,
        network=network,
        subnet="",
        engine={"podman": engine.version, "runtime": engine.runtime, "ulimits": list(engine.ulimits)},
        hosts={},
        ssh={"user": "root", "private_key_file": str(folder / "id_ed25519"), "known_hosts": str(folder / "known_hosts")},
        s3={
            "endpoint": "",
            "bucket": S3_BUCKET,
            "region": S3_REGION,
            "access_key": f"LAB{secrets.token_hex(8).upper()}",
            "secret_key": secrets.token_urlsafe(30),
        },
        sftp={},
        age={"identity": identity, "recipient": recipient},
        redis_password=secrets.token_urlsafe(24),
        redis_config_command=f"CONFIG_{secrets.token_hex(6)}",
        exchange_keys={venue: {"api_key": secrets.token_hex(16), "api_secret": secrets.token_hex(32)} for venue in ("binance", "bybit")},
        exchange_control="",
        exchange_ca=authority,
    )
    save_state(empty)
    subnet = _make_network(engine, network, run_id)
    addresses = {name: str(subnet.network_address + last) for name, last in ADDRESSES.items()}
    state = replace(
        empty,
        subnet=str(subnet),
        hosts={name: Host(name=f"titan-lab-{run_id}-{name}", address=addresses[name], image=image) for name, image in made_of.items()},
        s3={**empty.s3, "endpoint": f"http://{addresses['backup']}:{S3_PORT}"},
        sftp={
            "host": addresses["backup"],
            "port": 22,
            "user": SFTP_USER,
            "path": "/backups",
            "host_key": host_keys["backup"][1] if "backup" in host_keys else "",
            "private_key": host_keys["sftp"][0],
        },
        exchange_control=f"http://{addresses['exchange']}:{CONTROL_PORT}",
        venues={name: {"name": venue.name, "address": str(subnet.network_address + venue.last), "port": venue.port} for name, venue in wiring.VENUES.items()},
    )
    known = [f"{name},{addresses[name]} {host_keys[name][1]}\n" for name in made_of]
    private_file(folder / "known_hosts", "".join(known))
    for name in made_of:
        private_file(_host_key_file(name), host_keys[name][0])
        private_file(_host_key_file(name).with_suffix(".pub"), host_keys[name][1] + "\n")
    private_file(folder / "sftp.pub", host_keys["sftp"][1] + "\n")
    for file, text in shown.items():
        private_file(folder / "tls" / file, text)
    save_state(state)
    return state


def _start_all(engine: Engine, state: LabState, progress: Progress) -> None:
    stop = threading.Event()
    said = threading.Lock()

    def say(text: str) -> None:
        with said:
            progress(text)

    def one(name: str) -> None:
        begun = time.monotonic()
        _create(engine, state, name)
        try:
            _wait_host(engine, state, name, stop)
        except LabError as exc:
            raise LabError(f"{exc}\n{journal(engine, state, name)}") from exc
        say(f"  {name} answers after {time.monotonic() - begun:.1f} s")

    _together([lambda name=name: one(name) for name in state.hosts], stop)  # type: ignore[misc]
    closed = [name for name in state.hosts if name not in profiles.AROUND] or list(state.hosts)
    _together([lambda name=name: state.isolation.__setitem__(name, prove_isolated(engine, state, name)) for name in closed], stop)  # type: ignore[misc]
    say(f"  no way out of {', '.join(closed)}: proven")


def _together(jobs: Iterable[Callable[[], None]], stop: threading.Event) -> None:
    """Run side by side; the first failure, or a Ctrl-C, ends the others."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        futures = [pool.submit(job) for job in jobs]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            stop.set()
            for future in futures:
                future.cancel()
            raise


def _create(engine: Engine, state: LabState, name: str) -> None:
    """Make the container, put its files in, start it: everything is in place before the first boot."""
    host = state.host(name)
    stage = _stage(engine, state, name)
    engine.run(
        "create",
        *("--name", host["name"], "--hostname", name, *_labels(state.run_id)),
        *("--systemd=always", "--cap-add=NET_ADMIN", "--http-proxy=false", "--no-hosts", "--dns=none", *engine.ulimits),
        *("--network", state.network, "--ip", host["address"], "--mac-address", mac_of(host["address"])),
        *(["--sysctl=net.ipv4.ip_forward=1"] if name == "backup" else []),
        *(host["image"], "/sbin/init"),
    )
    copy_in(engine, host["name"], stage)
    engine.run("start", host["name"])


def mac_of(address: str) -> str:
    """The same for the same address: a host that is made again is not taken for its predecessor's in anyone's ARP cache."""
    return "02:54:" + ":".join(f"{int(part):02x}" for part in address.split("."))


def _stage(engine: Engine, state: LabState, name: str) -> Stage:
    stage = base_stage(name, (lab_dir() / "id_ed25519.pub").read_text(), _host_key_file(name), hosts_file(state, name))
    names = {venue["name"]: venue["address"] for venue in state.venues.values()}
    if name == "backup":
        identity = {
            "name": "titan-backup",
            "credentials": [{"accessKey": state.s3["access_key"], "secretKey": state.s3["secret_key"]}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        uid = patient.owners(engine, state.hosts[name]["image"])["seaweedfs"]
        stage.file("/etc/seaweedfs/s3.json", json.dumps({"identities": [identity]}), 0o600, uid)
        stage.file(f"/etc/ssh/authorized_keys.d/{SFTP_USER}", (lab_dir() / "sftp.pub").read_text())
        stage.enable("seaweedfs.service")
        wiring.dns_server(stage, state.hosts[name]["address"], names)
        wiring.router(stage, state.hosts[name]["address"], list(names.values()))
    elif name == "exchange":
        exchanges = lab_sources() / "exchanges"
        stage.tree("/opt/lab/exchanges", exchanges)
        stage.directory("/etc/titan-exchange", 0o700)
        stage.file("/etc/titan-exchange/keys.json", json.dumps(state.exchange_keys), 0o600)
        for path in sorted((lab_dir() / "tls").iterdir()):
            stage.file(f"/etc/titan-exchange/tls/{path.name}", path.read_text(), 0o600)
        bind = " ".join(f"--{venue}-bind {known['address']}" for venue, known in state.venues.items())
        stage.file("/etc/titan-exchange/options", f"OPTIONS=--tls-dir /etc/titan-exchange/tls {bind}\n")
        wiring.second_address(stage, state.venues["bybit"]["address"])
        wiring.dns_server(stage, state.hosts[name]["address"], names)
        stage.unit("titan-exchange.service", (exchanges / "titan-exchange.service").read_text())
    elif "exchange" in state.hosts:
        stage.file("/etc/resolv.conf", resolv_conf(state))
    if name in profiles.find(state.profile).servers:
        patient.configure(stage, patient.owners(engine, state.hosts[name]["image"]), state, name)
    return stage


def resolv_conf(state: LabState) -> str:
    return f"nameserver {state.host('exchange')['address']}\n"


def hosts_file(state: LabState, name: str) -> str:
    """The hosts know each other; the exchanges are known by DNS alone. The servers of a split Titan, and no others, know theirs by name."""
    servers = profiles.find(state.profile).servers
    names = [(profiles.server_name(server), server) for server in servers if name in servers and len(servers) > 1 and server in state.hosts]
    pairs = [*((known, known) for known in sorted(state.hosts)), *names]
    return "127.0.0.1 localhost\n" + "".join(f"{state.hosts[host]['address']} {known}\n" for known, host in pairs)


def base_stage(name: str, client_key: str, host_key: Path, names: str = "127.0.0.1 localhost\n") -> Stage:
    """What every host has: who may log in, its own identity, and the names of the others."""
    stage = Stage()
    stage.directory("/root/.ssh", 0o700)
    stage.file("/root/.ssh/authorized_keys", client_key, 0o600)
    stage.file("/etc/ssh/ssh_host_ed25519_key", host_key.read_text(), 0o600)
    stage.file("/etc/ssh/ssh_host_ed25519_key.pub", host_key.with_suffix(".pub").read_text())
    stage.file("/etc/hostname", f"{name}\n")
    stage.file("/etc/hosts", names)
    return stage


def _wait_host(engine: Engine, state: LabState, name: str, stop: threading.Event, first: bool = True) -> None:
    host = state.hosts[name]
    wait_for(f"ssh of {name}", BOOT_DEADLINE_S, lambda: ssh_complaint(state, host["address"]), stop)
    if name in ("backup", "exchange"):
        wait_for(f"DNS of {name}", SERVICE_DEADLINE_S, lambda: _dns_complaint(state, host["address"]), stop)
    if name == "backup":
        wait_for("the S3 store", SERVICE_DEADLINE_S, lambda: _bucket_complaint(state), stop)
        engine.exec(host["name"], ["nft", "list", "table", "ip", wiring.ROUTER])
    elif name == "exchange":
        wait_for("the exchange simulators", SERVICE_DEADLINE_S, lambda: _http_complaint(f"{state.exchange_control}/state"), stop)
    elif name in (titan := profiles.find(state.profile)).servers:
        if first:
            if titan.split:
                patient.trim(engine, host["name"], state.profile, name)
            patient.start(engine, host["name"], state.profile, name)
        wait_for(name, TITAN_DEADLINE_S, lambda: patient.complaint(engine, host["name"], state.profile, name), stop, interval=0.4)
        if first and "exchange" in state.hosts and name == titan.trades:
            # Before its first trade Redis is empty, and there would be nothing to back up.
            wait_for("a first trade", TITAN_DEADLINE_S, lambda: _trade_complaint(f"{state.exchange_control}/log"), stop, interval=0.4)


def ssh_complaint(state: LabState, address: str, connect_s: int = 5) -> str | None:
    # ssh takes the first value it sees
    done = run_process(["ssh", "-o", f"ConnectTimeout={connect_s}", *ssh_options(state), f"{state.ssh['user']}@{address}", "true"], timeout=15)
    return None if done.returncode == 0 else (done.stderr.strip() or f"ssh ended with {done.returncode}")


def journal(engine: Engine, state: LabState, name: str) -> str:
    """The last words of a host that did not come up."""
    done = engine.exec(state.host(name)["name"], ["journalctl", "--no-pager", "--no-hostname", "-n", "25", "-o", "short-monotonic"], timeout=20, check=False)
    return f"The journal of {name} ends with:\n{done.stdout or done.stderr}"


def _dns_complaint(state: LabState, server: str) -> str | None:
    for venue in state.venues.values():
        try:
            found = wiring.lookup(server, venue["name"])
        except OSError as exc:
            return f"{server}: {exc}"
        if found != venue["address"]:
            return f"{server} says that {venue['name']} is {found}"
    return None


def _http_complaint(url: str) -> str | None:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=3) as reply:
            return None if isinstance(json.load(reply), dict) else f"{url} answered no JSON object"
    except (OSError, ValueError) as exc:
        return f"{url}: {exc}"


def _trade_complaint(url: str) -> str | None:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=3) as reply:
            orders = json.load(reply)["orders"]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        return f"{url}: {exc}"
    return None if any(order["outcome"] == "accepted" for order in orders) else "the exchanges have not accepted an order yet"


def s3_client(state: LabState, **override: Any) -> Any:
    import boto3  # half a second, and only the lab's own start needs it
    from botocore.config import Config

    options = {"aws_access_key_id": state.s3["access_key"], "aws_secret_access_key": state.s3["secret_key"], **override}
    config = Config(connect_timeout=2, read_timeout=20, retries={"max_attempts": 0}, s3={"addressing_style": "path"}, proxies={})
    return boto3.session.Session().client("s3", endpoint_url=state.s3["endpoint"], region_name=state.s3["region"], config=config, **options)


def _bucket_complaint(state: LabState) -> str | None:
    """Make the bucket, and prove that the store keeps what it is given."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client = s3_client(state)
        if state.s3["bucket"] not in [item["Name"] for item in client.list_buckets().get("Buckets", [])]:
            client.create_bucket(Bucket=state.s3["bucket"])
        client.put_object(Bucket=state.s3["bucket"], Key="lab-probe", Body=b"probe")
        kept = client.get_object(Bucket=state.s3["bucket"], Key="lab-probe")["Body"].read()
        client.delete_object(Bucket=state.s3["bucket"], Key="lab-probe")
    except (BotoCoreError, ClientError, OSError) as exc:
        return f"{state.s3['endpoint']}: {exc}"
    return None if kept == b"probe" else "the store gave back something else than was put"


def prove_isolated(engine: Engine, state: LabState, name: str) -> dict[str, Any]:
    """No default route, and no connection to anything outside, tried from inside the host."""
    order = json.dumps({"addresses": [*OUTSIDE, *((address, 53) for address in _resolvers())]}).encode()
    done = engine.exec(state.host(name)["name"], ["/usr/bin/python3", "-c", ISOLATION_PROBE], stdin=order, timeout=60)
    return check_isolation(name, done.stdout)


def check_isolation(name: str, text: str) -> dict[str, Any]:
    try:
        evidence = json.loads(text)
        routes, reached, failed = evidence["default_routes"], evidence["reached"], evidence["failed"]
    except (ValueError, KeyError, TypeError) as exc:
        raise LabError(f"The isolation of {name} could not be proven: its probe answered {text[:200]!r}") from exc
    if routes or reached:
        found = f"routes {routes or 'none'}, reached {reached or 'nothing'}"
        raise LabError(f"{name} is not isolated: {found}. The lab must never be able to reach a real exchange")
    if not failed:
        raise LabError(f"The isolation of {name} could not be proven: its probe tried nothing")
    return {"default_routes": routes, "reached": reached, "failed": failed}


def _resolvers() -> list[str]:
    """The machine's name servers: an address that a leak would reach first."""
    try:
        found = re.findall(r"^nameserver\s+(\d+\.\d+\.\d+\.\d+)", Path("/etc/resolv.conf").read_text(), re.MULTILINE)
    except OSError:
        return []
    return [address for address in found if not ipaddress.ip_address(address).is_loopback]


# --- network, keys ------------------------------------------------------------------------------------------------------


def pick_subnet(used: Iterable[ipaddress.IPv4Network], skip: Iterable[ipaddress.IPv4Network] = ()) -> ipaddress.IPv4Network:
    """The first of our subnets that overlaps nothing this machine already routes."""
    taken = [network for network in used if network.prefixlen > 0]
    passed = set(skip)
    for subnet in SUBNETS:
        if subnet not in passed and not any(subnet.overlaps(network) for network in taken):
            return subnet
    raise LabError(f"No free subnet between {SUBNETS[0]} and {SUBNETS[-1]}: remove old networks (podman network ls)")


def used_subnets(engine: Engine) -> list[ipaddress.IPv4Network]:
    found = []
    for network in engine.networks():
        found += [item.get("subnet", "") for item in network.get("subnets") or []]
    routes = run_process(["ip", "-4", "-j", "route", "show", "table", "all"], timeout=20)
    if routes.returncode != 0:
        raise LabError(f"`ip route` failed: {routes.stderr.strip()} (package iproute2)")
    found += [route.get("dst", "") for route in json.loads(routes.stdout or "[]")]
    return [ipaddress.IPv4Network(text, strict=False) for text in found if re.fullmatch(r"[\d.]+(/\d+)?", text)]


def _make_network(engine: Engine, name: str, run_id: str) -> ipaddress.IPv4Network:
    tried: set[ipaddress.IPv4Network] = set()
    while True:
        subnet = pick_subnet(used_subnets(engine), tried)
        tried.add(subnet)
        # --disable-dns: podman's resolver would answer for names outside the lab. --gateway: without it this machine itself has no address
        # in an internal network; the hosts get no default route all the same.
        where = ("--subnet", str(subnet), "--gateway", str(subnet.network_address + 1))
        done = engine.run("network", "create", "--internal", "--disable-dns", *where, *_labels(run_id), name, check=False)
        if done.returncode == 0:
            return subnet
        if len(tried) >= 5 or "subnet" not in done.stderr:
            raise LabError(f"podman network create failed: {done.stderr}")


def _labels(run_id: str) -> list[str]:
    """Which run made it, and which lab folder: several checkouts may each run a lab on one machine."""
    return ["--label", f"titan-lab={run_id}", "--label", f"titan-lab-dir={lab_dir()}"]


def _host_key_file(name: str) -> Path:
    return lab_dir() / "host_keys" / f"{name}.key"


def _keypair(comment: str) -> tuple[str, str]:
    """A new ed25519 key: private text, public `type key` without the comment."""
    keygen = shutil.which("ssh-keygen")
    if keygen is None:
        raise LabError("ssh-keygen is not installed. On Debian: apt-get install openssh-client")
    with tempfile.TemporaryDirectory(prefix="titan-lab-key-") as folder:
        path = Path(folder) / "key"
        done = run_process([keygen, "-q", "-t", "ed25519", "-N", "", "-C", f"titan-lab {comment}", "-f", str(path)], timeout=20)
        if done.returncode != 0:
            raise LabError(f"ssh-keygen failed: {done.stderr.strip()}")
        return path.read_text(), " ".join(path.with_name("key.pub").read_text().split()[:2])


def _certificates() -> tuple[str, dict[str, str]]:
    from titan_dr.lab import certificates  # only the lab's own start needs it

    return certificates.make([venue.name for venue in wiring.VENUES.values()])


def _age_pair() -> tuple[str, str]:
    import pyrage

    identity = pyrage.x25519.Identity.generate()
    return str(identity), str(identity.to_public())


def ssh_options(state: LabState) -> list[str]:
    """Options for ssh, scp and sftp to the lab's hosts: only their keys, only their known_hosts, no user's configuration."""
    options = {
        "IdentityFile": state.ssh["private_key_file"],
        "UserKnownHostsFile": state.ssh["known_hosts"],
        "GlobalKnownHostsFile": "/dev/null",
        "IdentitiesOnly": "yes",
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "BatchMode": "yes",
        "ConnectTimeout": "5",
        "LogLevel": "ERROR",
    }
    return ["-F", "/dev/null", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]


# --- single hosts -------------------------------------------------------------------------------------------------------


def engine_of(state: LabState) -> Engine:
    """The engine as it was when the lab came up."""
    return replace(find(), runtime=state.engine.get("runtime"), ulimits=tuple(state.engine.get("ulimits") or ()))


def exec(name: str, argv: Sequence[str], input: str | None = None, timeout: float = 60, check: bool = True) -> Completed:
    """Run a command in a host, past ssh: for the lab's own look at things, not for a recovery."""
    state = load_state()
    return engine_of(state).exec(state.host(name)["name"], argv, stdin=None if input is None else input.encode(), timeout=timeout, check=check)


def destroy_host(name: str) -> dict[str, str]:
    """The host is gone with its disk, not merely stopped; returns the evidence."""
    state = load_state()
    host, engine = state.host(name), engine_of(state)
    engine.remove_container(host["name"])
    # brief: in a drill the clock of the recovery runs already
    complaint = ssh_complaint(state, host["address"], connect_s=1)
    if complaint is None:
        raise LabError(f"{name} still answers at {host['address']} after its container was removed")
    return {"host": name, "container": host["name"], "container_exists": "no", "ssh": complaint}


def start_host(name: str) -> None:
    """Start a host that is stopped; make one that is gone again from its image, at its old address and with its old keys."""
    state = load_state()
    host, engine = state.host(name), engine_of(state)
    known = engine.container_exists(host["name"])
    if known:
        engine.run("start", host["name"])
    else:
        _create(engine, state, name)
    _wait_host(engine, state, name, threading.Event(), first=not known)


# --- status, down -------------------------------------------------------------------------------------------------------


def status() -> LabStatus:
    state = find_state()
    engine = find() if state is None else engine_of(state)
    label = f"label=titan-lab-dir={lab_dir()}"
    found = {(item.get("Names") or ["?"])[0]: str(item.get("State", "unknown")) for item in engine.containers(label)}
    networks = [str(item.get("name")) for item in engine.networks(label)]
    ours: set[str] = set()
    hosts: dict[str, str] = {}
    if state is not None:
        hosts = {name: found.get(host["name"], "gone") for name, host in state.hosts.items()}
        ours = {state.network, *(host["name"] for host in state.hosts.values())}
    return LabStatus(state, hosts, [name for name in [*found, *networks] if name not in ours])


def down(progress: Progress | None = None) -> list[str]:
    """Remove this lab and every leftover of earlier runs of it; returns what was removed."""
    engine = find()
    with _own_lab(), _deaf():
        removed = _remove(engine)
    for item in removed if progress else []:
        progress(f"removed {item}")  # type: ignore[misc]
    return removed


def _remove(engine: Engine) -> list[str]:
    label = f"label=titan-lab-dir={lab_dir()}"
    removed = [f"ssh connection {path.name}" for path in _end_masters(lab_dir() / "cm")]
    names = [(item.get("Names") or [item["Id"]])[0] for item in engine.containers(label)]
    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(engine.remove_container, names))
    networks = [str(item["name"]) for item in engine.networks(label)]
    for network in networks:
        engine.remove_network(network)
    left = [*engine.containers(label), *engine.networks(label)]
    if left:
        raise LabError(f"Still there after removal: {left}")
    folder = lab_dir()
    for path in (state_file(), folder / "id_ed25519", folder / "id_ed25519.pub", folder / "known_hosts", folder / "sftp.pub"):
        path.unlink(missing_ok=True)
    for path in (folder / "host_keys", folder / "tls", folder / "cm"):
        shutil.rmtree(path, ignore_errors=True)
    return [*removed, *(f"host {name}" for name in names), *(f"network {name}" for name in networks)]


def _end_masters(folder: Path) -> list[Path]:
    """End shared ssh connections: they outlive the playbook that opened them."""
    ended = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_socket() and run_process(["ssh", "-F", "/dev/null", "-o", f"ControlPath={path}", "-O", "exit", "lab"], timeout=10).returncode == 0:
            ended.append(path)
    return ended


@contextlib.contextmanager
def _own_lab() -> Iterator[None]:
    """One command at a time changes a lab. The kernel frees the lock of a killed one."""
    folder = lab_dir()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "lock").open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError(f"Another command is starting or removing the lab in {folder}: wait for it") from None
        yield


def _on_terminate(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt("terminated")


@contextlib.contextmanager
def _signals(handler: Any, *which: signal.Signals) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    old = {sig: signal.signal(sig, handler) for sig in which}
    try:
        yield
    finally:
        for sig, previous in old.items():
            signal.signal(sig, previous)


def _terminable() -> contextlib.AbstractContextManager[None]:
    """SIGTERM unwinds like Ctrl-C, so that everything is removed; a caller that has its own way with it keeps it."""
    return _signals(_on_terminate, *([signal.SIGTERM] if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL else []))


def _deaf() -> contextlib.AbstractContextManager[None]:
    """A second Ctrl-C does not stop the removal half way."""
    return _signals(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM)
