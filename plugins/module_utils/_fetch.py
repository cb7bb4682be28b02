# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Fetch an object of a restore point: source -> hash -> age -> zstd -> sink, streamed, each byte read once.

The object is only good when every process ended well *and* its SHA-256 is the manifest's: the caller must not use the sink before
`fetch` returned. Formats: age (https://age-encryption.org/v1), zstd (RFC 8878), told by the ending of the object's key.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import shutil
import socket
import stat
import subprocess
import tempfile
import threading
import time
import typing as t
import urllib.error
import urllib.request

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _state

BLOCK = 1 << 20
TOOLS_DIR = _state.path("bin")

# One place an object can be had from; `kind` decides which of the others count.
SOURCE_SPEC: dict[str, t.Any] = {
    "store": {"type": "str", "required": True},
    "kind": {"type": "str", "required": True, "choices": ["http", "sftp", "file"]},
    "url": {"type": "str", "no_log": True},
    "path": {"type": "path"},
    "host": {"type": "str"},
    "port": {"type": "int", "default": 22},
    "user": {"type": "str"},
    "host_key": {"type": "str", "no_log": False},
    "private_key": {"type": "str", "no_log": True},
}
OBJECT_SPEC: dict[str, t.Any] = {
    "id": {"type": "str", "required": True},
    "taken_at": {"type": "float", "required": True},
    "object": {
        "type": "dict",
        "required": True,
        "options": {
            "key": {"type": "str", "required": True, "no_log": False},
            "size": {"type": "int", "required": True},
            "sha256": {"type": "str", "required": True},
            "sealed": {"type": "bool", "required": True},
        },
    },
    "sources": {"type": "list", "elements": "dict", "required": True, "options": SOURCE_SPEC},
    "details": {"type": "dict", "default": {}},
}
CANDIDATES: dict[str, t.Any] = {"type": "list", "elements": "dict", "required": True, "options": OBJECT_SPEC}
IDENTITY: dict[str, t.Any] = {"type": "str", "required": True, "no_log": True}

T = t.TypeVar("T")


class FetchError(Exception):
    """An object that could not be had, and why."""


def free_name(path: str) -> str:
    """The path, or with a number when it is taken: evidence is never overwritten."""
    number, found = 1, path
    while os.path.lexists(found):
        number += 1
        found = f"{path}-{number}"
    return found


def tool(name: str) -> str:
    """Path of a program: the one unpacked for the recovery, else the system's."""
    own = os.path.join(TOOLS_DIR, name)
    found = own if os.access(own, os.X_OK) else shutil.which(name)
    if not found:
        raise FetchError(f"{name} is neither installed nor in {TOOLS_DIR}")
    return found


def first_good(candidates: list[dict[str, t.Any]], attempt: t.Callable[[dict[str, t.Any], dict[str, t.Any]], T]) -> tuple[dict[str, t.Any], str, T, list[str]]:
    """Try every source of the newest candidate, then of the next: (candidate, store, what attempt returned, why the others failed)."""
    rejected: list[str] = []
    for candidate in candidates:
        for source in candidate["sources"]:
            try:
                return candidate, source["store"], attempt(candidate, source), rejected
            except FetchError as exc:
                rejected.append(f"restore point {candidate['id']} from {source['store']}: {exc}")
    raise FetchError("no usable restore point; " + "; ".join(rejected or ["there is no candidate"]))


def fetch(entry: dict[str, t.Any], source: dict[str, t.Any], identity: str, sink: list[str] | t.BinaryIO, deadline: float) -> None:
    """Stream the object into a file or into the standard input of a command; FetchError unless all of it arrived, opened and matches its hash."""
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(_open(source, deadline))
        commands, fds = [], []
        if entry["sealed"]:
            reading, writing = os.pipe()
            stack.callback(os.close, reading)
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(identity.encode())
            commands.append([tool("age"), "--decrypt", "--identity", f"/dev/fd/{reading}"])
            fds.append(reading)
        if ".zst" in entry["key"]:
            commands.append([tool("zstd"), "--decompress", "--stdout", "--quiet"])
        if isinstance(sink, list):
            commands.append(sink)
        digest = pump(stream, commands, None if isinstance(sink, list) else sink, deadline, fds)
    if digest != entry["sha256"]:
        raise FetchError(f"{entry['key']} is not what the manifest recorded (SHA-256 {digest[:12]}..., {entry['sha256'][:12]}... expected)")


def pump(stream: t.BinaryIO, commands: list[list[str]], target: t.BinaryIO | None, deadline: float, pass_fds: t.Sequence[int] = ()) -> str:
    """Feed a stream through a pipeline of commands into `target`; returns the SHA-256 of what was read. FetchError names the command that failed."""
    digest = hashlib.sha256()
    processes: list[tuple[list[str], subprocess.Popen[bytes], t.IO[bytes]]] = []
    previous: t.Any = subprocess.PIPE
    for number, argv in enumerate(commands):
        last = number == len(commands) - 1
        said = tempfile.TemporaryFile()  # noqa: SIM115 (closed below, after the process has ended)
        process = subprocess.Popen(
            argv,
            stdin=previous,
            stdout=subprocess.PIPE if not last else (target if target is not None else subprocess.DEVNULL),
            stderr=said,
            pass_fds=tuple(pass_fds),
        )
        if previous is not subprocess.PIPE:
            previous.close()
        previous = process.stdout
        processes.append((argv, process, said))
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        for entry in processes:
            entry[1].kill()
        # A read that waits for a silent store ends too.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if stat.S_ISSOCK(os.fstat(stream.fileno()).st_mode):
                with socket.socket(fileno=os.dup(stream.fileno())) as connection:
                    connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(0.1, deadline - time.time()), expire)
    timer.start()
    out = processes[0][1].stdin if processes else target
    if out is None:
        raise FetchError("nowhere to put the object")
    broken = ""
    try:
        while block := stream.read(BLOCK):
            digest.update(block)
            out.write(block)
            if expired.is_set():
                break
    except BrokenPipeError:
        broken = "the pipeline ended early"
    except (OSError, http.client.HTTPException) as exc:
        broken = f"reading failed: {exc}"
    finally:
        if processes:
            with contextlib.suppress(BrokenPipeError):
                out.close()
        failures = []
        for argv, process, errors in processes:
            code = process.wait()
            errors.seek(0)
            if code:
                failures.append(f"{os.path.basename(argv[0])} ended with {code}: {errors.read(400).decode('utf-8', 'replace').strip()}")
            errors.close()
        timer.cancel()
    if expired.is_set():
        raise FetchError("the time for it was over")
    if broken.startswith("reading"):
        raise FetchError(broken)  # what the commands complain of follows from it
    if failures or broken:
        raise FetchError("; ".join(failures) or broken)
    return digest.hexdigest()


@contextlib.contextmanager
def _open(source: dict[str, t.Any], deadline: float) -> t.Iterator[t.BinaryIO]:
    """The bytes of a source as a stream."""
    try:
        if source["kind"] == "http":
            # No proxy of the environment stands between a server and its backup store.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(source["url"], timeout=max(1.0, min(10.0, deadline - time.time()))) as response:
                yield response
        elif source["kind"] == "sftp":
            with sftp_session(source) as argv, tempfile.NamedTemporaryFile(dir=_state.STATE_DIR if os.path.isdir(_state.STATE_DIR) else None) as local:
                sftp(argv, f'get "{source["path"]}" "{local.name}"\n', deadline)
                with open(local.name, "rb") as stream:
                    yield stream
        else:
            with open(source["path"], "rb") as stream:
                yield stream
    except urllib.error.HTTPError as exc:
        raise FetchError(f"the store answered {exc.code}") from exc
    except urllib.error.URLError as exc:
        raise FetchError(f"the store cannot be reached: {exc.reason}") from exc
    except (OSError, http.client.HTTPException) as exc:
        raise FetchError(f"reading failed: {exc}") from exc


@contextlib.contextmanager
def command_output(argv: list[str]) -> t.Iterator[t.BinaryIO]:
    """What a command prints, as a stream; FetchError unless it ended well."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=errors)
        with t.cast("t.BinaryIO", process.stdout) as stream:
            yield stream
        code = process.wait()
        errors.seek(0)
        if code:
            raise FetchError(f"{os.path.basename(argv[0])} ended with {code}: {errors.read(300).decode('utf-8', 'replace').strip()}")


@contextlib.contextmanager
def sftp_session(store: dict[str, t.Any]) -> t.Iterator[list[str]]:
    """The sftp command line for a store, with its key in a private directory for as long as the session lasts."""
    with tempfile.TemporaryDirectory(dir="/run" if os.access("/run", os.W_OK) else None) as folder:
        key, hosts = os.path.join(folder, "key"), os.path.join(folder, "known_hosts")
        for path, text in ((key, store["private_key"].rstrip("\n") + "\n"), (hosts, f"backup-store {store['host_key']}\n")):
            with open(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "w", encoding="utf-8") as handle:
                handle.write(text)
        options = {
            "IdentityFile": key,
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": hosts,
            "HostKeyAlias": "backup-store",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "ConnectTimeout": "4",
            "ServerAliveInterval": "3",
            "ServerAliveCountMax": "3",
            "LogLevel": "ERROR",
        }
        argv = ["sftp", "-q", "-P", str(store["port"]), "-b", "-", "-F", "/dev/null"]
        for name, value in options.items():
            argv += ["-o", f"{name}={value}"]
        yield [*argv, f"{store['user']}@{store['host']}"]


def sftp(argv: list[str], batch: str, deadline: float) -> str:
    """Run a batch; returns what it printed; FetchError when any command of it failed."""
    try:
        done = subprocess.run(argv, input=batch, capture_output=True, text=True, timeout=max(0.5, deadline - time.time()), check=False)
    except subprocess.TimeoutExpired as exc:
        raise FetchError("the store did not answer in time") from exc
    if done.returncode:
        raise FetchError((done.stderr.strip().splitlines() or ["sftp failed"])[-1])
    return "\n".join(line for line in done.stdout.splitlines() if not line.startswith("sftp>"))
