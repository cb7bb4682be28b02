# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Earlier versions of the configuration, and which of them may be used.

A version is proven when it passes every check itself, held against the proven version before it. The chain begins with the oldest revision, so a bad
revision in the middle is passed over and does not become what later ones are measured by.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import tempfile
import time
import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils._config import Settings, Tools, check_file

# So many revisions of the history are looked at.
LIMIT = 20
_GIT = ("git", "-c", "safe.directory=*", "-c", "core.quotePath=false")


class HistoryError(Exception):
    """The earlier versions cannot be read, and why."""


@dataclasses.dataclass(frozen=True)
class Revision:
    """All files at one time."""

    label: str
    at: float
    files: t.Mapping[str, bytes]


@dataclasses.dataclass(frozen=True)
class Version:
    """One file of a revision, proven."""

    data: bytes
    revision: str
    at: float


@dataclasses.dataclass
class Proof:
    """What the revisions hold that may be used. `seen`: digests of every version of a file, good or not."""

    latest: dict[str, Version] = dataclasses.field(default_factory=dict)
    passed_over: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    seen: dict[str, set[str]] = dataclasses.field(default_factory=dict)
    newest: Revision | None = None

    def reference(self) -> dict[str, bytes]:
        return {path: version.data for path, version in self.latest.items()}

    def expected(self) -> set[str]:
        """Files of the newest revision."""
        return set(self.newest.files) if self.newest else set()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def prove(revisions: t.Iterable[Revision], settings: Settings, tools: Tools) -> Proof:
    """Check every version of every file, the oldest first."""
    proof = Proof()
    judged: dict[tuple[str, str, str], list[str]] = {}
    for revision in sorted(revisions, key=lambda item: item.at):
        proof.newest = revision
        for path, data in revision.files.items():
            proof.seen.setdefault(path, set()).add(digest(data))
            before = proof.latest.get(path)
            if before and before.data == data:
                proof.latest[path] = Version(data, revision.label, revision.at)
                continue
            mark = (path, digest(data), digest(before.data) if before else "")
            if mark not in judged:
                findings, unknown = check_file(path, data, before.data if before else None, settings, tools)
                # an owner or a mode is no matter of a revision
                judged[mark] = [f"{finding.where}: {finding.evidence}".lstrip(": ") for finding in findings if finding.damage] + unknown
            if judged[mark]:
                proof.passed_over.setdefault(path, []).append(f"{revision.label}: {judged[mark][0]}")
            else:
                proof.latest[path] = Version(data, revision.label, revision.at)
    return proof


# --- git ----------------------------------------------------------------------------------------------------------------------


def _git(words: t.Sequence[str], deadline: float, stdin: bytes | None = None) -> bytes:
    environment = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "HOME": "/nonexistent",
    }
    try:
        done = subprocess.run([*_GIT, *words], input=stdin, capture_output=True, timeout=max(1.0, deadline - time.time()), check=False, env=environment)
    except FileNotFoundError as exc:
        raise HistoryError("git is not installed") from exc
    except subprocess.TimeoutExpired as exc:
        raise HistoryError("git did not end in time") from exc
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise HistoryError(f"git {next(word for word in words if not word.startswith(('-', '/')))}: {lines[-1] if lines else done.returncode}")
    return done.stdout


def _blobs(repository: str, names: t.Sequence[str], deadline: float) -> dict[str, bytes]:
    """The content of objects, by their names."""
    out = _git(["-C", repository, "cat-file", "--batch"], deadline, "".join(f"{name}\n" for name in names).encode())
    found, at = {}, 0
    for name in names:
        end = out.index(b"\n", at)
        said = out[at:end].split()
        if len(said) != 3:
            raise HistoryError(f"object {name[:12]} is missing")
        size = int(said[2])
        found[name] = out[end + 1 : end + 1 + size]
        at = end + 2 + size
    return found


def read_repository(repository: str, branch: str, wanted: t.Callable[[str], bool], deadline: float) -> list[Revision]:
    """The newest revisions of a git repository whose root is the root of the file system."""
    log = _git(["-C", repository, "log", "--first-parent", f"--max-count={LIMIT}", "--format=%H%x00%ct%x00%s", branch], deadline).decode("utf-8", "replace")
    trees: list[tuple[str, float, dict[str, str]]] = []
    for line in log.splitlines():
        commit, at, subject = line.split("\0")
        files = {}
        for entry in _git(["-C", repository, "ls-tree", "-r", "-z", commit], deadline).split(b"\0"):
            if entry:
                head, path = entry.decode("utf-8", "surrogateescape").split("\t", 1)
                mode, kind, blob = head.split()
                if kind == "blob" and mode != "120000" and wanted("/" + path):
                    files["/" + path] = blob
        point = subject.removeprefix("Restore point ")
        trees.append((f"revision {commit[:12]} ({point})" if point != subject else f"revision {commit[:12]}", float(at), files))
    blobs = _blobs(repository, sorted({blob for _label, _at, files in trees for blob in files.values()}), deadline)
    return [Revision(label, at, {path: blobs[blob] for path, blob in files.items()}) for label, at, files in trees]


def read_bundle(bundle: str, wanted: t.Callable[[str], bool], deadline: float) -> list[Revision]:
    """The same of a bundle. git checks every object of it."""
    if not os.path.isfile(bundle):
        raise HistoryError(f"there is no {bundle}")
    # secrets are among the files
    with tempfile.TemporaryDirectory(dir="/run" if os.access("/run", os.W_OK) else None, prefix="titan-dr-") as folder:
        _git(["init", "--quiet", "--bare", folder], deadline)
        _git(["-C", folder, "-c", "fetch.fsckObjects=true", "fetch", "--quiet", bundle, "main:main"], deadline)
        return read_repository(folder, "main", wanted, deadline)


def read_history(bundle: str, repository: str, wanted: t.Callable[[str], bool], deadline: float) -> tuple[list[Revision], list[str]]:
    """The revisions that this server keeps, and what could not be read: the bundle, else the repository it was made from."""
    notes: list[str] = []
    for read in (lambda: read_bundle(bundle, wanted, deadline), lambda: read_repository(repository, "main", wanted, deadline)):
        try:
            found = read()
            if found:
                return found, notes
            notes.append("the history holds no revision")
        except (HistoryError, OSError, ValueError) as exc:
            notes.append(f"the history of the configuration cannot be read: {exc}")
    return [], notes
