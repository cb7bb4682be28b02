#!/usr/bin/python
# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: restore_point_create
short_description: Take a restore point of Redis, configuration, application and everything a blank server needs
version_added: "0.1.0"
author: [Titan DR maintainers (@titan-dr)]
description:
  - Saves Redis and waits for the save to end well, then walks the dump, loads it in a scratch Redis and reads every key, so that the manifest counts what is
    in the dump and not what the server held a moment later. It records digest, version, checksum state, counts, types, a fingerprint of sampled keys and
    the limits of the server.
  - Commits the configuration to a git repository below O(directory) and packs it with its history.
  - Packs the live release, the Debian packages with the PM2 tree (the offline bundle), and the two tools that open all of it. What did not change since the
    last restore point is not packed again.
  - Everything but the tools is encrypted and authenticated with age. The manifest is written last, with a seal that only the age identity opens.
options:
  environment_id:
    description: The environment.
    type: str
    required: true
  directory:
    description: Local directory of the backups.
    type: path
    required: true
  recipients:
    description: The age recipients (public keys) that may open the restore point.
    type: list
    elements: str
    required: true
  redis:
    description:
      - The server, with C(config) and C(data_dir), and C(username) for a user other than the default one.
      - With none, or with C(host), the name of another server that it is on, the restore point has no Redis data.
    type: dict
    required: true
  redis_password:
    description: Password of Redis. Without it the one that its configuration or its ACL file holds in clear.
    type: str
    default: ""
  redis_user:
    description: User that runs the scratch Redis.
    type: str
    default: redis
  canary:
    description: Where the canary lies, with C(key) and C(db).
    type: dict
    required: true
  config_paths:
    description: Files and directories of the configuration.
    type: list
    elements: path
    required: true
  config_history:
    description: The git history of the configuration as one file, written here and packed with the configuration.
    type: path
    required: true
  current:
    description: The link to the live release.
    type: path
    required: true
  services:
    description: Whether services are on this server. If not, the restore point has the release and PM2 only where they are there all the same.
    type: bool
    default: true
  pm2_prefix:
    description: The PM2 tree.
    type: path
    required: true
  timeout:
    description: Seconds for all of it.
    type: float
    default: 600
extends_documentation_fragment:
  - titan.disaster_recovery.attributes
  - titan.disaster_recovery.lease
attributes:
  check_mode:
    support: full
    details: Says that a restore point would be taken.
  diff_mode:
    support: none
  idempotent:
    support: none
    details: Each run takes another restore point.
"""

EXAMPLES = r"""
- name: Take a restore point
  titan.disaster_recovery.restore_point_create:
    environment_id: production
    directory: /backups
    recipients: [age1qyqszqgpqyqszqgpqyqszqgpqyqszqgpqyqszqgpqyqszqgpqyqs3290gq]
    redis: {config: /etc/redis/redis.conf, data_dir: /var/lib/redis}
    canary: {key: "titan:dr:canary", db: 1}
    config_paths: [/etc/redis/redis.conf, /opt/titan/config]
    config_history: /var/lib/titan-dr/config.bundle
    current: /opt/titan/current
    pm2_prefix: /opt/pm2
"""

RETURN = r"""
restore_point:
  description: Id of the restore point.
  type: str
  returned: success
objects:
  description: What belongs to it, with C(key) in a store and C(path) on this host, the manifest last.
  type: list
  elements: dict
  returned: success
manifest:
  description: The manifest.
  type: dict
  returned: success
titan_dr:
  description: Rows for the ledger.
  type: dict
  returned: always
"""

import contextlib
import datetime
import hashlib
import json
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import (
    _debian,
    _fetch,
    _lease,
    _rdb_report,
    _rdb_walk,
    _redis,
    _redis_proof,
    _restore_point,
    _scratch,
    _state,
)

DEBS_DIR = _state.path("bundle", "debs")
BOOTSTRAP_TOOLS = ("age", "zstd")


class BackupError(Exception):
    """No restore point was taken, and why."""


def sha256(path: str) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def run(argv: list[str], deadline: float, **options: t.Any) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=max(1.0, deadline - time.time()), check=False, **options)
    if done.returncode:
        raise BackupError(f"{' '.join(argv[:3])} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


def save_redis(client: _redis.Redis, deadline: float, bgsave: str = "BGSAVE") -> float:
    """Have Redis save and prove that the save on disk is this one; returns a time before which every acknowledged write is in it."""
    if not bgsave:
        raise BackupError("the configuration of Redis disables BGSAVE")
    # A save that runs already began before this moment, and LASTSAVE counts whole seconds: one of this very second could not be told from ours.
    while client.info("persistence")["rdb_bgsave_in_progress"] != "0" or int(client.call("LASTSAVE")) >= int(time.time()):
        if time.time() > deadline:
            raise BackupError("another save of Redis did not end in time, or its clock is ahead")
        time.sleep(0.1)
    before = int(client.call("LASTSAVE"))
    taken_at = time.time()
    client.call(bgsave, "SCHEDULE")
    while time.time() < deadline:
        persistence = client.info("persistence")
        if persistence["rdb_bgsave_in_progress"] == "0" and int(persistence["rdb_last_save_time"]) > before:
            if persistence["rdb_last_bgsave_status"] != "ok":
                raise BackupError("Redis reports that its save failed")
            return taken_at
        if persistence["rdb_bgsave_in_progress"] == "0" and persistence["rdb_last_bgsave_status"] != "ok":
            raise BackupError("Redis reports that its save failed")
        time.sleep(0.05)
    raise BackupError("the save of Redis did not end in time")


class Packer:
    """Packs objects below the local directory; remembers what each is."""

    def __init__(self, params: dict[str, t.Any], point_id: str, deadline: float) -> None:
        self.params = params
        self.point = f"points/{point_id}"
        self.root = os.path.join(params["directory"], params["environment_id"])
        self.deadline = deadline
        self.objects: dict[str, dict[str, t.Any]] = {}

    def path(self, key: str) -> str:
        return os.path.join(self.root, key)

    def age(self) -> list[str]:
        argv = [_fetch.tool("age"), "--encrypt"]
        for recipient in self.params["recipients"]:
            argv += ["--recipient", recipient]
        return argv

    def known(self, kind: str, key: str) -> bool:
        """An object named by its content is packed once."""
        path = self.path(key)
        try:
            with open(path + ".json", encoding="utf-8") as handle:
                self.objects[kind] = json.load(handle)
            return os.path.getsize(path) == self.objects[kind]["size"]
        except (FileNotFoundError, ValueError, KeyError):
            return False

    def pack(self, kind: str, key: str, stream: t.BinaryIO, commands: list[list[str]], details: dict[str, t.Any]) -> str:
        """Send a stream through commands into the object; returns the SHA-256 of the stream."""
        path = self.path(key)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(path + ".new", "wb") as sink:
            digest = _fetch.pump(stream, commands, sink, self.deadline)
            os.fsync(sink.fileno())
        os.chmod(path + ".new", 0o600)
        entry = {"key": key, "size": os.path.getsize(path + ".new"), "sha256": sha256(path + ".new"), "sealed": key.endswith(".age"), "details": details}
        os.rename(path + ".new", path)
        if key.startswith("objects/"):
            with open(path + ".json", "w", encoding="utf-8") as handle:
                json.dump(entry, handle)
        self.objects[kind] = entry
        return digest

    def tar(self, kind: str, key: str, roots: list[tuple[str, list[str]]], commands: list[list[str]], details: dict[str, t.Any], *flags: str) -> None:
        argv = [_fetch.tool("tar"), "--create", "--numeric-owner" if kind == "bundle" else "--sort=name", *flags]
        for folder, names in roots:
            argv += ["--directory", folder, *names]
        # tar fails when a file changes while it is read: the release and the configuration must not change under us.
        with _fetch.command_output(argv) as stream:
            self.pack(kind, key, stream, commands, details)


def examine(dump: str, scratch: str, conf: _redis.RedisConf, params: dict[str, t.Any], deadline: float) -> tuple[_rdb_report.Contents, dict[str, t.Any]]:
    """Walk the dump, load it in a scratch Redis and read every key: a restore point that could not be restored is none."""
    contents = _rdb_walk.walk(dump, now=time.time())
    found = _scratch.load(dump, scratch, conf.databases, params["canary"], params["redis_user"], deadline, samples=contents.samples, typed=True)
    bad = [found.text for found in [*contents.findings, *_scratch.compare(contents, found)] if found.severity == _rdb_report.FATAL]
    if bad or not contents.magic:
        raise BackupError(f"the save of Redis is damaged: {'; '.join(bad) or 'it cannot be read'}")
    return contents, found


def modules(client: _redis.Redis, conf: _redis.RedisConf) -> list[str] | None:
    """Names of the loaded modules; None when it may not be asked."""
    try:
        listed = client.call(conf.command("MODULE"), "LIST") if conf.command("MODULE") else None
    except _redis.RedisError:
        return None
    return None if listed is None else sorted(str(dict(zip(entry[::2], entry[1::2], strict=True)).get("name")) for entry in listed)


def redis(packer: Packer, params: dict[str, t.Any]) -> tuple[float, dict[str, t.Any]]:
    """Save, load in scratch, pack; returns when it was taken and the manifest's redis section."""
    conf = _redis.conf_of(params["redis"], params["redis_password"])
    client = _redis.connect(conf)
    version = client.info("server")["redis_version"]
    taken_at = save_redis(client, packer.deadline, conf.command("BGSAVE"))
    loaded = modules(client, conf)
    client.close()
    dump = os.path.join(conf.directory, conf.dbfilename)
    owner = pwd.getpwnam(params["redis_user"])
    # A hard link keeps this save even if Redis saves again meanwhile.
    scratch = tempfile.mkdtemp(prefix=".titan-dr-", dir=conf.directory)
    try:
        os.chown(scratch, owner.pw_uid, owner.pw_gid)
        kept = os.path.join(scratch, "dump.rdb")
        os.link(dump, kept)
        if os.path.getmtime(kept) < int(taken_at):
            raise BackupError(f"{dump} is older than the save that was asked for")
        contents, found = examine(kept, scratch, conf, params, packer.deadline)
        if not found["keyspace"]:
            raise BackupError("Redis holds no keys: a restore point of it would stand before the last good one")
        section = _redis_proof.manifest_section(conf, version, os.path.getsize(kept), contents, found, loaded)
        with open(kept, "rb") as stream:
            section["sha256"] = packer.pack(
                "redis", f"{packer.point}/redis.rdb.zst.age", stream, [[_fetch.tool("zstd"), "-1", "--threads=2", "--stdout", "--quiet"], packer.age()], {}
            )
    finally:
        shutil.rmtree(scratch)
    return taken_at, section


def commit_config(packer: Packer, params: dict[str, t.Any], point_id: str) -> str:
    """Commit the configuration as it lies on the server; returns the commit. History goes on from the bundle of an earlier server."""
    tree = os.path.join(params["directory"], "config")
    git = ["git", "-c", "safe.directory=*", "-c", "user.name=titan-dr", "-c", "user.email=titan-dr@localhost", "-c", "init.defaultBranch=main"]
    if not os.path.isdir(os.path.join(tree, ".git")):
        os.makedirs(tree, mode=0o700, exist_ok=True)
        if os.path.exists(params["config_history"]):
            run([*git, "clone", "--quiet", "--branch", "main", params["config_history"], tree], packer.deadline)
        else:
            run([*git, "init", "--quiet", tree], packer.deadline)
    os.chmod(tree, 0o700)
    for name in os.listdir(tree):
        if name != ".git":
            shutil.rmtree(os.path.join(tree, name))
    for path in params["config_paths"]:
        target = tree + path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.isdir(path):
            shutil.copytree(path, target, symlinks=True)
        else:
            shutil.copy2(path, target)
    run([*git, "-C", tree, "add", "--all", "--force"], packer.deadline)
    if run([*git, "-C", tree, "status", "--porcelain"], packer.deadline) or not os.path.exists(os.path.join(tree, ".git", "refs", "heads", "main")):
        run([*git, "-C", tree, "commit", "--quiet", "--allow-empty", "--message", f"Restore point {point_id}"], packer.deadline)
    run([*git, "-C", tree, "bundle", "create", "--quiet", params["config_history"], "main"], packer.deadline)
    os.chmod(params["config_history"], 0o600)
    return run([*git, "-C", tree, "rev-parse", "main"], packer.deadline).strip()


def bundle(packer: Packer, params: dict[str, t.Any]) -> None:
    """Packages, PM2 and the tools that open everything."""
    names = sorted(name for name in os.listdir(DEBS_DIR) if name.endswith(".deb")) if os.path.isdir(DEBS_DIR) else []
    if not names:
        raise BackupError(f"{DEBS_DIR} holds no packages: run the role dependencies on this server first")
    pm2 = "none"
    if params["services"] or os.path.exists(params["pm2_prefix"]):
        with open(os.path.join(params["pm2_prefix"], "node_modules/pm2/package.json"), encoding="utf-8") as handle:
            pm2 = json.load(handle)["version"]
    sizes = [f"{name} {os.path.getsize(os.path.join(DEBS_DIR, name))}" for name in names]
    mark = hashlib.sha256("\n".join([f"pm2 {pm2}", *sizes]).encode()).hexdigest()[:12]
    key = f"objects/bundle-{mark}.tar.age"
    if not packer.known("bundle", key):
        parent, base = os.path.split(params["pm2_prefix"])
        roots = [(os.path.dirname(DEBS_DIR), ["debs"]), *([] if pm2 == "none" else [(parent, [base])])]
        flags = ("--anchored", "--exclude=debs/partial", "--exclude=debs/lock", f"--transform=s,^{base},pm2,S")
        packer.tar("bundle", key, roots, [packer.age()], {"packages": len(names), "pm2": pm2}, *flags)
    tools = [shutil.which(name, path="/usr/bin:/usr/local/bin") for name in BOOTSTRAP_TOOLS]
    missing = [name for name, path in zip(BOOTSTRAP_TOOLS, tools, strict=True) if not path]
    if missing:
        raise BackupError(f"not installed: {', '.join(missing)}")
    mark = hashlib.sha256("".join(sha256(str(path)) for path in tools).encode()).hexdigest()[:12]
    key = f"objects/bootstrap-{mark}.tar.gz"
    if not packer.known("bootstrap", key):
        roots = [(os.path.dirname(str(path)), [os.path.basename(str(path))]) for path in tools]
        packer.tar("bootstrap", key, roots, [["gzip", "-6"]], {"tools": list(BOOTSTRAP_TOOLS)}, "--dereference")


def application(packer: Packer, params: dict[str, t.Any]) -> None:
    if not params["services"] and not os.path.lexists(params["current"]):
        return
    release = os.path.realpath(params["current"])
    if not os.path.isdir(release):
        raise BackupError(f"{params['current']} names no release")
    # A release that was edited in place under its old name is another one.
    files = sorted(os.path.join(folder, name) for folder, dummy, names in os.walk(release) for name in names)
    marks = [f"{path} {found.st_size} {found.st_mtime_ns} {found.st_mode}" for path in files for found in [os.lstat(path)]]
    mark = hashlib.sha256("\n".join(marks).encode()).hexdigest()[:12]
    key = f"objects/app-{os.path.basename(release)}-{mark}.tar.zst.age"
    if not packer.known("app", key):
        commands = [[_fetch.tool("zstd"), "-3", "--stdout", "--quiet"], packer.age()]
        packer.tar("app", key, [("/", [release.lstrip("/")])], commands, {"release": os.path.basename(release), "path": release})


def seal(packer: Packer, manifest: dict[str, t.Any]) -> str:
    return run([*packer.age(), "--armor"], packer.deadline, input=_restore_point.canonical_digest(manifest))


def create(params: dict[str, t.Any], timings: dict[str, float]) -> tuple[dict[str, t.Any], list[dict[str, t.Any]]]:
    now = datetime.datetime.now(tz=datetime.UTC)
    point_id = f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    packer = Packer(params, point_id, time.time() + params["timeout"])
    try:
        taken_at, section = time.time(), None
        if params["redis"] and not params["redis"].get("host"):
            started = time.monotonic()
            taken_at, section = redis(packer, params)
            timings["redis"] = round(time.monotonic() - started, 2)
        started = time.monotonic()
        commit = commit_config(packer, params, point_id)
        roots = [("/", [path.lstrip("/") for path in [*params["config_paths"], params["config_history"]]])]
        commands = [[_fetch.tool("zstd"), "-3", "--stdout", "--quiet"], packer.age()]
        server = {**_debian.system(), "host": os.uname().nodename}
        # of the details of this object too: it is in every restore point, and what is recovered onto is compared with it
        packer.tar("config", f"{packer.point}/config.tar.zst.age", roots, commands, {"commit": commit, "server": server})
        application(packer, params)
        bundle(packer, params)
        timings["files"] = round(time.monotonic() - started, 2)
        versions = {name: fields["Version"] for name, fields in _installed().items() if name in ("redis-server", "nodejs", "age", "zstd")}
        manifest: dict[str, t.Any] = {
            "format": _restore_point.FORMAT,
            "id": point_id,
            "environment_id": params["environment_id"],
            "taken_at": taken_at,
            "server": server,
            "versions": versions,
            "objects": packer.objects,
            **({"redis": {**section, "server": server}} if section else {}),
        }
        manifest["seal"] = seal(packer, manifest)
        # a recovery will read it by the same rules
        needs = {kind for kind, here in (("app", params["services"]), ("redis", section)) if here}
        _restore_point.parse(json.dumps(manifest), needs)
        key = f"{packer.point}/manifest.json"
        with open(packer.path(key), "w", encoding="utf-8") as handle:
            json.dump(manifest, handle, indent=1, sort_keys=True)
            handle.flush()
            os.fsync(handle.fileno())
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(packer.path(packer.point))
        raise
    objects = [{"key": entry["key"], "path": packer.path(entry["key"])} for entry in [*packer.objects.values(), {"key": key}]]
    return manifest, objects


def _installed() -> _debian.Stanzas:
    with open("/var/lib/dpkg/status", encoding="utf-8") as handle:
        return _debian.parse_stanzas(handle.read())


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "environment_id": {"type": "str", "required": True},
            "directory": {"type": "path", "required": True},
            "recipients": {"type": "list", "elements": "str", "required": True},
            "redis": {"type": "dict", "required": True},
            "redis_password": {"type": "str", "default": "", "no_log": True},
            "redis_user": {"type": "str", "default": "redis"},
            "canary": {"type": "dict", "required": True},
            "config_paths": {"type": "list", "elements": "path", "required": True},
            "config_history": {"type": "path", "required": True},
            "current": {"type": "path", "required": True},
            "services": {"type": "bool", "default": True},
            "pm2_prefix": {"type": "path", "required": True},
            "timeout": {"type": "float", "default": 600},
        },
        supports_check_mode=True,
    )
    params = module.params
    if not params["recipients"]:
        module.fail_json(msg="recipients is empty: nobody could open the restore point")
    if module.check_mode:
        module.exit_json(changed=True, restore_point="", objects=[], manifest={}, titan_dr={"notes": ["would take a restore point"]})
    with _lease.command(module, "restore_point_create"):
        timings: dict[str, float] = {}
        try:
            manifest, objects = create(params, timings)
        except (BackupError, _restore_point.ManifestError, _fetch.FetchError, _redis.RedisError, _scratch.ProofError) as exc:
            module.fail_json(msg=f"No restore point was taken: {exc}", titan_dr={"timings": timings})
        except (OSError, KeyError, subprocess.TimeoutExpired) as exc:
            module.fail_json(msg=f"No restore point was taken: {exc}", titan_dr={"timings": timings})
        module.exit_json(changed=True, restore_point=manifest["id"], objects=objects, manifest=manifest, titan_dr={"timings": timings})


if __name__ == "__main__":
    main()
