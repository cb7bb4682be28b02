# SPDX-License-Identifier: GPL-3.0-or-later
"""The production server of the lab: its image, made through the collection's own roles, and its configuration, made anew for each lab."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import yaml

from titan_dr.lab import images, profiles
from titan_dr.lab.engine import Engine, LabError, run_process, wait_for
from titan_dr.lab.images import Progress
from titan_dr.lab.stage import Stage, ids_of
from titan_dr.lab.state import Host, LabState, private_file
from titan_dr.paths import lab_dir, lab_sources, project_root

ROLES = ("titan", "provision", "dependencies", "app_restore")
NEEDED = (
    "titan_environment_id",
    "titan_user",
    "titan_home",
    "titan_components",
    "titan_ecosystem",
    "titan_redis",
    "titan_pm2_home",
    "titan_pm2_prefix",
    "titan_pm2_unit",
)
BUILD_TIMEOUT_S = 1200.0
OWNER = "/var/lib/titan-dr/owner.json"

# Runs in the host: the services listen on its loopback address only.
HEALTH_PROBE = """
import json, sys, urllib.error, urllib.request
bad = []
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
for check in json.load(sys.stdin):
    try:
        try:
            with opener.open(check["url"], timeout=3) as reply:
                status, text = reply.status, reply.read()
        except urllib.error.HTTPError as exc:
            status, text = exc.code, exc.read()
        body = json.loads(text)
    except (OSError, ValueError) as exc:
        bad.append("%s: %s" % (check["name"], exc))
        continue
    if status not in check.get("status", [200]):
        bad.append("%s: HTTP %s" % (check["name"], status))
    for path, wanted in check.get("expect", {}).items():
        value = body
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value not in wanted:
            bad.append("%s: %s is %r" % (check["name"], path, value))
print(json.dumps(bad))
"""


def inventory_vars(profile: str) -> Path:
    return profiles.find(profile).folder / "group_vars" / "all" / "titan.yml"


def server_vars(profile: str, server: str) -> list[Path]:
    """What the inventory of a split Titan says of one of its servers alone."""
    found = profiles.find(profile)
    return [found.folder / "group_vars" / f"titan_{server}" / "titan.yml"] if found.split else []


def titan_vars(profile: str, server: str | None = None) -> dict[str, Any]:
    """The nouns of this Titan (on a server of a split one; of itself the one with the data): the role's defaults, what its inventory says
    otherwise, and the role's own templates filled in."""
    merged: dict[str, Any] = {}
    own = server_vars(profile, server or profiles.find(profile).data)
    for path in (project_root() / "roles" / "titan" / "defaults" / "main.yml", inventory_vars(profile), *own):
        try:
            data = yaml.safe_load(path.read_text())
        except FileNotFoundError as exc:
            raise LabError(f"{path} does not exist: the profile {profile} cannot be known without it") from exc
        except yaml.YAMLError as exc:
            raise LabError(f"{path} is not YAML: {exc}") from exc
        merged.update(data or {})
    found = {key: value for key, value in merged.items() if key in (*NEEDED, "titan_probes", "titan_server")}
    missing = [key for key in NEEDED if not found.get(key)]
    if missing:
        raise LabError(f"The inventory of profile {profile} lacks {', '.join(missing)}")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    # twice: a template may name another one
    for _ in range(2):
        found = {key: _filled(environment, value, found) for key, value in found.items()}
    return found


def _filled(environment: jinja2.Environment, value: Any, found: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(environment, inner, found) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(environment, inner, found) for inner in value]
    return environment.from_string(value).render(found) if isinstance(value, str) else value


def without_lab(variables: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on a running lab: an image is built before there is one."""
    return {key: value for key, value in variables.items() if "lab." not in json.dumps(value)}


def load_builder() -> Any:
    """lab/titan/build.py: a script beside the patient's sources, not part of this package."""
    path = lab_sources() / "titan" / "build.py"
    spec = importlib.util.spec_from_file_location("titan_lab_build", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise LabError(f"{path} is missing: the lab has no patient to install")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its annotations are looked up there
    spec.loader.exec_module(module)
    return module


def recipe(profile: str) -> dict[str, Any]:
    root = project_root()
    sources = [*images.collection_sources(ROLES), lab_sources() / "hosts", lab_sources() / "titan", inventory_vars(profile)]
    return {"kind": "titan", "profile": profile, "base": images.digest(images.base_recipe()), "sources": images.tree_digest(sources, root)}


def tag_of(profile: str) -> str:
    return f"localhost/titan-lab-titan-{profile}:{images.digest(recipe(profile))}"


def image(engine: Engine, base: str, profile: str, progress: Progress) -> str:
    """The production server without its configuration and its data, as the collection's roles install it."""
    profile = profiles.find(profile).image
    titan_vars(profile)
    tag = tag_of(profile)
    if engine.image_exists(tag):
        return tag
    with images.build_lock(progress):
        if engine.image_exists(tag):
            return tag
        builder = load_builder()
        try:
            built = builder.build(project_root(), progress)
        except builder.BuildError as exc:
            raise LabError(str(exc)) from exc
        progress(f"building the production image {tag} through the collection's roles (some minutes, once)")
        _build(engine, base, profile, tag, built, progress)
    return tag


def _build(engine: Engine, base: str, profile: str, tag: str, built: Any, progress: Progress) -> None:
    from titan_dr.lab import hosts  # hosts builds on this module

    log = lab_dir() / f"build-{profile}.log"
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    begun = time.monotonic()
    with images.scratch() as room:
        room.chmod(0o700)
        client, host_key = hosts._keypair("build"), hosts._keypair("build-host")
        private_file(room / "id", client[0])
        private_file(room / "host.key", host_key[0])
        private_file(room / "host.pub", host_key[1] + "\n")
        stage = hosts.base_stage("titan", client[1] + "\n", room / "host.key")
        # The default network of podman, with its way out: packages come from their usual place, this once.
        options = ("--systemd=always", "--cap-add=NET_ADMIN", "--hostname=titan", "--network=podman")
        with images.build_container(engine, base, *options, command=("/sbin/init",), stage=stage) as name:
            address = container_address(engine, name)
            private_file(room / "known_hosts", f"{address} {host_key[1]}\n")
            state = _build_state(profile, name, address, base, room)
            wait_for("ssh of the host being built", hosts.BOOT_DEADLINE_S, lambda: hosts.ssh_complaint(state, address))
            trees = _pack(built, room)
            variables = {
                "titan_lab_release_id": built.release_id,
                "titan_lab_release_tar": str(trees["release"]),
                "titan_lab_pm2_tar": str(trees["pm2"]),
            }
            _play(profile, state, variables, room, log)
            images.commit(engine, name, tag)
    progress(f"built {tag} in {time.monotonic() - begun:.0f} s")


def container_address(engine: Engine, name: str) -> str:
    networks = engine.json("inspect", name)[0]["NetworkSettings"]["Networks"]
    for network in networks.values():
        if network.get("IPAddress"):
            return str(network["IPAddress"])
    raise LabError(f"Container {name} has no address: podman's default network does not work here")


def _build_state(profile: str, name: str, address: str, base: str, room: Path) -> LabState:
    """As much of a state as ssh_options needs."""
    return LabState(
        run_id="build",
        profile=profile,
        network="podman",
        subnet="",
        engine={},
        hosts={"titan": Host(name=name, address=address, image=base)},
        ssh={"user": "root", "private_key_file": str(room / "id"), "known_hosts": str(room / "known_hosts")},
        s3={},
        sftp={},
        age={},
        redis_password="",
        redis_config_command="",
        exchange_keys={},
        exchange_control="",
    )


def _pack(built: Any, room: Path) -> dict[str, Path]:
    """One file per tree: thousands of small files one by one would take minutes."""
    packed = {}
    for kind, source in (("release", built.release), ("pm2", built.pm2)):
        packed[kind] = room / f"{kind}.tar"
        argv = ["tar", "--create", f"--file={packed[kind]}", "--owner=0", "--group=0", "--sort=name", f"--directory={source}", "."]
        done = run_process(argv, timeout=120)
        if done.returncode != 0:
            raise LabError(f"tar of the {kind} failed: {done.stderr.strip()}")
    return packed


def ansible_playbook() -> str:
    """The one beside this Python first: another on PATH may be of another Ansible."""
    beside = Path(sys.executable).parent / "ansible-playbook"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("ansible-playbook")
    if not found:
        raise LabError("ansible-playbook is not installed beside this Python: `pip install ansible-core`")
    return found


def _play(profile: str, state: LabState, variables: dict[str, str], room: Path, log: Path) -> None:
    from titan_dr.lab import hosts

    root = project_root()
    host = {
        "ansible_host": state.hosts["titan"]["address"],
        "ansible_user": "root",
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_ssh_common_args": " ".join(hosts.ssh_options(state)) + " -o ControlMaster=no",
        **variables,
    }
    inventory = room / "inventory.json"
    nouns = room / "titan.json"
    nouns.write_text(json.dumps(without_lab(yaml.safe_load(inventory_vars(profile).read_text()))))
    inventory.write_text(json.dumps({"all": {"children": {"titan_servers": {"hosts": {"titan": host}}}}}))
    # Not this checkout's ansible.cfg, nor the user's: the image must not depend on who builds it.
    defaults = f"[defaults]\ncollections_path = {root / 'playbooks' / 'collections'}\nlocal_tmp = {room / 'tmp'}\n"
    (room / "ansible.cfg").write_text(f"{defaults}[connection]\npipelining = True\n")
    environment = images.clean_environment(ANSIBLE_CONFIG=str(room / "ansible.cfg"), ANSIBLE_NOCOLOR="1")
    argv = [ansible_playbook(), "-i", str(inventory), "-e", f"@{nouns}", str(lab_sources() / "hosts" / "production.yml")]
    with log.open("wb") as output:
        done = run_process(argv, timeout=BUILD_TIMEOUT_S, env=environment, cwd=room, output=output)
    if done.returncode != 0:
        raise LabError(f"The production server could not be built; all of it is in {log}:\n" + log.read_text(errors="replace")[-3000:])


# --- configuration, made when a lab comes up ----------------------------------------------------------------------------


@lru_cache(maxsize=8)
def owners(engine: Engine, image_name: str) -> dict[str, tuple[int, int]]:
    """Users of an image, by name: files are put in before it runs, when only numbers count."""
    options = ("--rm", "--label=titan-lab=probe", f"--label=titan-lab-dir={lab_dir()}", "--network=none", *engine.ulimits)
    done = engine.run("run", *options, image_name, "cat", "/etc/passwd")
    return dict(ids_of(done.stdout))


def configure(stage: Stage, ids: dict[str, tuple[int, int]], state: LabState, server: str) -> None:
    """The configuration and the secrets of one of the patient's servers, in its own places."""
    titan = titan_vars(state.profile, server)
    user = titan["titan_user"]
    for name in (user, "redis"):
        if name not in ids:
            raise LabError(f"The production image has no user {name}: `make clean` and build it again")
    files = render_configuration(state.profile, titan, state, server)
    folder = str(Path(titan["titan_ecosystem"]).parent)
    if "redis.conf" in files:
        stage.directory(titan["titan_redis"]["data_dir"], 0o750, ids["redis"])
        stage.file(titan["titan_redis"]["config"], files.pop("redis.conf"), 0o640, ids["redis"])
    if files:
        stage.directory(folder, 0o750, ids[user])
    for name, text in files.items():
        stage.file(f"{folder}/{name}", text, 0o600 if "secret" in name else 0o640, ids[user])
    if profiles.find(state.profile).split:
        # the image says whose it is: of the environment that it was built for
        stage.file(OWNER, json.dumps({"environment_id": titan["titan_environment_id"], "run_id": "lab"}) + "\n")
    if server == profiles.find(state.profile).trades:
        stage.file(exchange_ca(titan), state.exchange_ca, 0o640, ids[user])


def exchange_ca(titan: dict[str, Any]) -> str:
    """Where its services find the authority that the exchanges' certificates come from."""
    return str(Path(titan["titan_ecosystem"]).with_name("exchange-ca.pem"))


def render_configuration(profile: str, titan: dict[str, Any], state: LabState, server: str) -> dict[str, str]:
    """File name -> content, what this server has of the profile's templates; an undefined variable is an error."""
    known = profiles.find(profile)
    if server not in known.servers:
        raise LabError(f"{server} is no server of profile {profile}; it has {', '.join(known.servers)}")
    templates = lab_sources() / "titan" / "profiles" / known.image
    ours, present = here(titan), kinds(titan)
    elsewhere = {f"{Path(item['config']).name}.j2" for item in titan["titan_components"] if item not in ours and item.get("config")}
    sources = [templates / "redis.conf.j2"] if "redis" in present else []
    if "pm2" in present:
        sources += [path for path in sorted((templates / "config").iterdir()) if path.name not in elsewhere]
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True, autoescape=False)
    environment.filters["to_json"] = json.dumps
    variables = {
        "environment_id": titan["titan_environment_id"],
        "redis_password": state.redis_password,
        "redis_config_command": state.redis_config_command,
        "exchanges": {venue: f"{at['name']}:{at['port']}" for venue, at in state.venues.items()},
        "exchange_keys": state.exchange_keys if server == known.trades else {},
        "several": known.split,
        "hosts": {item["name"]: "127.0.0.1" if item in ours else item["server"] for item in titan["titan_components"]},
        "apps": [item["app"].removeprefix("titan-") for item in ours if item["kind"] == "pm2"],
    }
    try:
        return {path.name.removesuffix(".j2"): environment.from_string(path.read_text()).render(variables) for path in sources}
    except (jinja2.TemplateError, OSError) as exc:
        raise LabError(f"The configuration of profile {profile} cannot be rendered: {exc}") from exc


def kinds(titan: dict[str, Any]) -> set[str]:
    """What runs on this server: redis, pm2."""
    return {item["kind"] for item in here(titan)}


def here(titan: dict[str, Any]) -> list[dict[str, Any]]:
    return [item for item in titan["titan_components"] if item.get("server", "") in ("", titan.get("titan_server", ""))]


def trim(engine: Engine, container: str, profile: str, server: str) -> None:
    """The image has all of a Titan on it: a server of a split one keeps its own part."""
    titan = titan_vars(profile, server)
    present = kinds(titan)
    commands = []
    if "redis" not in present:
        commands += ["systemctl disable --quiet --now redis-server", "rm -rf /etc/redis /var/lib/redis"]
    if "pm2" not in present:
        unit = titan["titan_pm2_unit"]
        commands += [
            f"systemctl disable --quiet --now {unit}",
            f"rm -rf /etc/systemd/system/{unit}.service {titan['titan_home']}/* {titan['titan_pm2_prefix']}",
        ]
    engine.exec(container, ["sh", "-ec", "\n".join([*commands, "systemctl daemon-reload", "systemctl reset-failed"])], timeout=60)


def start(engine: Engine, container: str, profile: str, server: str) -> None:
    """What an operator does once after the first deployment; later boots bring back what is saved here."""
    titan = titan_vars(profile, server)
    present = kinds(titan)
    pm2 = f"{titan['titan_pm2_prefix']}/node_modules/pm2/bin/pm2"
    environment = [f"HOME={titan['titan_home']}", f"PM2_HOME={titan['titan_pm2_home']}", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
    as_user = ["runuser", "-u", titan["titan_user"], "--", "env", "-i", *environment, "PM2_DISCRETE_MODE=true"]
    # The daemon is the unit's: a pm2 command would spawn another one where there is none.
    units = [*([titan["titan_redis"]["unit"]] if "redis" in present else []), *([titan["titan_pm2_unit"]] if "pm2" in present else [])]
    engine.exec(container, ["systemctl", "start", *units], timeout=90)
    if "pm2" not in present:
        return
    engine.exec(container, [*as_user, pm2, "start", titan["titan_ecosystem"], "--silent"], timeout=120)
    engine.exec(container, [*as_user, pm2, "save", "--silent"], timeout=30)


def health_checks(titan: dict[str, Any]) -> list[dict[str, Any]]:
    """What the inventory expects of each required component that listens, and its further probes."""
    checks = [
        {**item["health"], "name": item["name"], "url": f"http://127.0.0.1:{item['port']}{item['health']['path']}"}
        for item in here(titan)
        if item.get("port") and item.get("health") and item.get("required", True)
    ]
    return [*checks, *(titan.get("titan_probes") or [])] if checks else []


def complaint(engine: Engine, container: str, profile: str, server: str) -> str | None:
    """What keeps this server of the patient from being healthy by its own inventory, or None."""
    titan = titan_vars(profile, server)
    if kinds(titan) == {"redis"}:
        # with a password it answers that it wants one: it lives
        done = engine.exec(container, ["redis-cli", "ping"], timeout=20, check=False)
        return None if "NOAUTH" in done.stdout + done.stderr else (done.stderr or done.stdout).strip() or "redis-cli said nothing"
    checks = health_checks(titan)
    if not checks:
        return f"the inventory of profile {profile} names no health to ask for"
    done = engine.exec(container, ["/usr/bin/python3", "-c", HEALTH_PROBE], stdin=json.dumps(checks).encode(), timeout=60, check=False)
    if done.returncode != 0:
        return done.stderr or f"the health probe ended with {done.returncode}"
    try:
        bad = json.loads(done.stdout)
    except ValueError:
        return f"the health probe answered {done.stdout[:200]!r}"
    return "; ".join(bad) or None
