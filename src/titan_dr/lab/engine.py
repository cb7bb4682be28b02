# SPDX-License-Identifier: GPL-3.0-or-later
"""The container engine: podman, probed before use, behind one thin wrapper with deadlines."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

Completed = subprocess.CompletedProcess[str]

MINIMUM_VERSION = (4, 0)
MINIMUM_MEMORY_MIB = 1536
MINIMUM_DISK_MIB = 3072
# What podman asks for by default; where the hard limit is lower and cannot be raised no container starts.
PODMAN_LIMIT = 1048576
# Enough for every host of the lab; podman may itself lower what it may hand on, so the hard limit is not taken to the brim.
PASSED_LIMIT = 16384
PACKAGES = "podman runc netavark aardvark-dns iptables containernetworking-plugins uidmap"
_CAP_SYS_RESOURCE = 24
_NOISE = re.compile(r"connect to syslog", re.IGNORECASE)


class LabError(Exception):
    """Something the lab cannot do, with what to do about it."""


def clean(text: str) -> str:
    """Drop the line podman prints on machines without a syslog daemon."""
    return "\n".join(line for line in text.splitlines() if not _NOISE.search(line)).strip()


def run_process(
    argv: Sequence[str],
    *,
    stdin: bytes | None = None,
    timeout: float = 60,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    output: IO[bytes] | None = None,
) -> Completed:
    """Run one command with a deadline, in its own session, so that a Ctrl-C reaches it through us only and in order.

    `output`: a file that receives stdout and stderr instead of the result.
    """
    sink: int | IO[bytes] = subprocess.PIPE if output is None else output
    process = subprocess.Popen(
        list(argv),
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=sink,
        stderr=subprocess.PIPE if output is None else subprocess.STDOUT,
        env=None if env is None else dict(env),
        cwd=cwd,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(stdin, timeout=timeout)
    except BaseException as exc:
        _end_group(process)
        if isinstance(exc, subprocess.TimeoutExpired):
            raise LabError(f"{_shown(argv)} did not finish in {timeout:g} s") from exc
        raise
    return subprocess.CompletedProcess(list(argv), process.returncode, (stdout or b"").decode(errors="replace"), (stderr or b"").decode(errors="replace"))


def _shown(argv: Sequence[str]) -> str:
    """The name of a command without its arguments: those may carry secrets."""
    name = Path(argv[0]).name
    if name != "podman":
        return name
    words = [word for word in argv[1:3] if word not in ("--runtime",)]
    return f"podman {argv[3] if argv[1:2] == ['--runtime'] else words[0]}"


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for sig, grace in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, sig)
        except ProcessLookupError:
            break
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            continue
        break
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            stream.close()


@dataclass(frozen=True)
class Engine:
    """podman as it works on this machine."""

    podman: str
    version: str
    runtime: str | None = None
    ulimits: tuple[str, ...] = ()

    def argv(self, *args: str) -> list[str]:
        return [self.podman, *(["--runtime", self.runtime] if self.runtime else []), *args]

    def run(self, *args: str, stdin: bytes | None = None, timeout: float = 60, check: bool = True, env: Mapping[str, str] | None = None) -> Completed:
        done = run_process(self.argv(*args), stdin=stdin, timeout=timeout, env=env)
        done.stderr = clean(done.stderr)
        if check and done.returncode != 0:
            raise LabError(f"podman {args[0]} failed ({done.returncode}): {done.stderr or done.stdout.strip() or 'no message'}")
        return done

    def json(self, *args: str, timeout: float = 30) -> Any:
        text = self.run(*args, timeout=timeout).stdout
        try:
            return json.loads(text or "null")
        except ValueError as exc:
            raise LabError(f"podman {args[0]} answered something that is not JSON: {text[:200]!r}") from exc

    def exec(self, container: str, argv: Sequence[str], *, stdin: bytes | None = None, timeout: float = 60, check: bool = True) -> Completed:
        interactive = ["-i"] if stdin is not None else []
        return self.run("exec", *interactive, container, *argv, stdin=stdin, timeout=timeout, check=check)

    def image_exists(self, image: str) -> bool:
        return self.run("image", "exists", image, check=False).returncode == 0

    def container_exists(self, name: str) -> bool:
        return self.run("container", "exists", name, check=False).returncode == 0

    def containers(self, *filters: str) -> list[dict[str, Any]]:
        return self.json("ps", "-a", "--format", "json", *(f"--filter={item}" for item in filters)) or []

    def networks(self, *filters: str) -> list[dict[str, Any]]:
        return self.json("network", "ls", "--format", "json", *(f"--filter={item}" for item in filters)) or []

    def remove_container(self, name: str) -> None:
        """Remove and prove it gone: `rm -f` alone reports success for less."""
        self.run("rm", "-f", "-t", "0", "--ignore", "--volumes", name, timeout=60)
        if self.container_exists(name):
            raise LabError(f"Container {name} is still there after podman rm -f")

    def remove_network(self, name: str) -> None:
        self.run("network", "rm", "-f", name, timeout=60, check=False)
        if self.run("network", "exists", name, check=False).returncode == 0:
            raise LabError(f"Network {name} is still there after podman network rm -f")


def find() -> Engine:
    """podman as installed; says what to install when it is not, or is too old."""
    podman = shutil.which("podman")
    if podman is None:
        raise LabError(f"podman is not installed. On Debian 12: apt-get install --no-install-recommends {PACKAGES}")
    done = run_process([podman, "--version"], timeout=20)
    version = parse_version(done.stdout)
    if version < MINIMUM_VERSION:
        raise LabError(f"podman {'.'.join(map(str, version))} is too old: {'.'.join(map(str, MINIMUM_VERSION))} or newer is needed")
    return Engine(podman, ".".join(map(str, version)))


def detect() -> Engine:
    """podman on a machine that can carry a lab."""
    engine = find()
    if os.geteuid() != 0:
        raise LabError("The lab runs systemd hosts with fixed addresses and needs root: run it as root (sudo -E)")
    done = engine.run("info", "--format", "json", timeout=30, check=False)
    if done.returncode != 0:
        raise LabError(f"podman does not work here: {done.stderr[-400:]}. Needed packages: {PACKAGES}")
    store = json.loads(done.stdout).get("store", {}).get("graphRoot", "/var/lib/containers/storage")
    check_room(free_memory_mib(), free_disk_mib(Path(store)), store)
    return engine


def choose(engine: Engine, image: str) -> Engine:
    """The first combination of runtime and limits that really starts a container here."""
    errors: list[str] = []
    for runtime, ulimits in candidates(unified_cgroups(), limits_to_pass()):
        if runtime is not None and shutil.which(runtime, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin:/usr/local/bin") is None:
            errors.append(f"{runtime}: not installed")
            continue
        attempt = replace(engine, runtime=runtime, ulimits=ulimits)
        options = ("--rm", "--label=titan-lab=probe", "--network=none", "--systemd=always")
        done = attempt.run("run", *options, *ulimits, image, "/bin/true", check=False)
        if done.returncode == 0:
            return attempt
        why = done.stderr.splitlines()[-1] if done.stderr else str(done.returncode)
        errors.append(f"{runtime or 'default runtime'} {' '.join(ulimits) or 'default limits'}: {why}")
    raise LabError("No container starts on this machine. Tried:\n  " + "\n  ".join(errors) + f"\nNeeded packages: {PACKAGES}")


def candidates(unified: bool, limits: tuple[str, ...]) -> list[tuple[str | None, tuple[str, ...]]]:
    """What to try, likeliest first: crun does not run on hybrid cgroups, runc does on both."""
    runtimes: list[str | None] = [None, "runc"] if unified else ["runc", None]
    fallback = () if limits else ("--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096")
    return [(runtime, ulimits) for ulimits in (limits, fallback) for runtime in runtimes]


def unified_cgroups() -> bool:
    return Path("/sys/fs/cgroup/cgroup.controllers").exists()


def can_raise_limits(status: str) -> bool:
    """Whether /proc/self/status shows CAP_SYS_RESOURCE."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    return bool(found and int(found.group(1), 16) >> _CAP_SYS_RESOURCE & 1)


def limits_to_pass() -> tuple[str, ...]:
    """--ulimit options, only where the hard limits are low and cannot be raised."""
    if can_raise_limits(Path("/proc/self/status").read_text()):
        return ()
    return ulimit_options({"nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[1], "nproc": resource.getrlimit(resource.RLIMIT_NPROC)[1]})


def ulimit_options(hard: Mapping[str, int]) -> tuple[str, ...]:
    """All or none: where one cannot be raised, podman's own defaults for the others do not hold either."""
    if all(limit == resource.RLIM_INFINITY or limit >= PODMAN_LIMIT for limit in hard.values()):
        return ()
    wanted = {name: PASSED_LIMIT if limit == resource.RLIM_INFINITY else min(limit, PASSED_LIMIT) for name, limit in hard.items()}
    return tuple(f"--ulimit={name}={limit}:{limit}" for name, limit in wanted.items())


def check_room(memory_mib: int, disk_mib: int, store: str) -> None:
    if memory_mib < MINIMUM_MEMORY_MIB:
        raise LabError(f"Only {memory_mib} MiB of memory are available; the lab needs {MINIMUM_MEMORY_MIB} MiB")
    if disk_mib < MINIMUM_DISK_MIB:
        raise LabError(f"Only {disk_mib} MiB are free under {store}; the lab needs {MINIMUM_DISK_MIB} MiB. `podman image prune` or `make clean` may help")


def free_memory_mib() -> int:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found.group(1)) // 1024 if found else 0


def free_disk_mib(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free // (1024 * 1024)


def parse_version(text: str) -> tuple[int, ...]:
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    if not found:
        raise LabError(f"podman --version answered {text.strip()!r}")
    return tuple(int(part) for part in found.groups(default="0"))


def wait_for(what: str, deadline_s: float, probe: Callable[[], str | None], stop: threading.Event | None = None, interval: float = 0.15) -> None:
    """Poll until `probe` has nothing left to complain about; its last complaint is the reason in the error."""
    end = time.monotonic() + deadline_s
    while (reason := probe()) is not None:
        if time.monotonic() >= end:
            raise LabError(f"{what} was not ready within {deadline_s:g} s: {reason}")
        if stop is None:
            time.sleep(interval)
        elif stop.wait(interval):
            raise LabError(f"waiting for {what} was given up")
