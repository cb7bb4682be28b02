# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Which version replaces a damaged file, what is lost with it, and the exchange itself.

Files that may be used stay as they are, whatever a revision says. What is exchanged was proven before, is complete before it gets its name, and what was
there keeps a name of its own: at no moment is there no file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import os
import re
import shutil
import time
import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _config_live, _fetch, _lease, _state
from ansible_collections.titan.disaster_recovery.plugins.module_utils._config import (
    ATTRIBUTES,
    Finding,
    Report,
    Settings,
    Tools,
    check_file,
    differing,
)
from ansible_collections.titan.disaster_recovery.plugins.module_utils._config_history import Proof, Version, digest

PLAN = "plan.json"
# Below the state directory: every copy of a file that was exchanged here. None of them comes back by itself.
RECORD = "config-damaged.json"
_LINE = re.compile(r"line (\d+)")


class PlanError(Exception):
    """The exchange cannot be made, and why. Nothing is half done."""


@dataclasses.dataclass(frozen=True)
class Item:
    """One file: from which revision, and how it is to lie there. `old`: digest of what is replaced, empty when there is nothing."""

    path: str
    revision: str
    at: float
    new: str
    old: str
    uid: int
    gid: int
    mode: int


@dataclasses.dataclass
class Plan:
    """`mended`: files whose owner and mode are put right only."""

    files: list[Item] = dataclasses.field(default_factory=list)
    mended: list[Item] = dataclasses.field(default_factory=list)
    content: dict[str, bytes] = dataclasses.field(default_factory=dict)
    unproven: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    lost: list[str] = dataclasses.field(default_factory=list)
    unsure: list[str] = dataclasses.field(default_factory=list)
    oldest: float = 0.0

    def rpo(self, incident_at: float) -> dict[str, t.Any]:
        """How much of the configuration is lost: nothing, the time since the revision, or not known."""
        if self.lost:
            return {"actual_s": round(max(0.0, incident_at - self.oldest), 1), "basis": "; ".join(self.lost)}
        if self.unsure:
            return {"basis": "not known: " + "; ".join(self.unsure)}
        return {"actual_s": 0.0, "basis": f"{len(self.files)} damaged files replaced, no sign of a valid edit in any of them; every valid file is as it was"}


# --- choosing -------------------------------------------------------------------------------------------------------------


def choose(
    report: Report,
    tree: t.Mapping[str, _config_live.Entry],
    proof: Proof,
    settings: Settings,
    tools: Tools,
    running: t.Mapping[str, _config_live.Running],
    copies: t.Callable[[str], list[tuple[str, float, bytes]]],
    whole: bool = False,
) -> Plan:
    """For each damaged file its newest proven version: of the revisions, else of the copies that recoveries kept. `whole`: for files that drifted too."""
    plan = Plan()
    damaged = report.damaged()
    drifted = sorted({finding.path for finding in report.findings if finding.kind == "drift"} - set(damaged)) if whole else []
    for path in [*damaged, *drifted]:
        entry = tree.get(path)
        version = proof.latest.get(path) or _kept(path, copies, settings, tools, digest(entry.data) if entry else "")
        over = [f"passed over for {path}: {reason}" for reason in proof.passed_over.get(path, [])]
        if version is None:
            plan.unproven[path] = "; ".join(over) or f"no revision holds {path}"
            continue
        if entry and not entry.error and entry.data == version.data:
            plan.unproven[path] = f"{path}: the newest proven version is what lies there"
            continue
        # of passed over revisions only those count that are newer than the one that is used
        plan.notes += over[-1:] if over else []
        plan.notes.append(f"{path}: {version.revision}")
        plan.content[path] = version.data
        uid, gid, mode = _config_live.proper(path, entry, settings)
        old = digest(entry.data) if entry and not entry.error else ""
        plan.files.append(Item(path, version.revision, version.at, digest(version.data), old, uid, gid, mode))
        plan.oldest = min(plan.oldest or version.at, version.at)
        if path in drifted:
            plan.lost.append(f"{path} was valid and newer; it was replaced by consent")
        else:
            _weigh(path, entry, version, report.findings, proof, settings, running, plan)
    for path in sorted({finding.path for finding in report.findings if finding.kind in ATTRIBUTES} - set(plan.content)):
        entry = tree[path]
        plan.mended.append(Item(path, "", 0.0, digest(entry.data), digest(entry.data), *_config_live.proper(path, entry, settings)))
    return plan


def _kept(path: str, copies: t.Callable[[str], list[tuple[str, float, bytes]]], settings: Settings, tools: Tools, damaged: str) -> Version | None:
    """The newest copy that an earlier recovery moved aside and that passes the checks."""
    for name, at, data in reversed(copies(path)):
        findings, unknown = check_file(path, data, None, settings, tools)
        if digest(data) != damaged and not unknown and not any(finding.damage for finding in findings):
            return Version(data, f"the copy {name}", at)
    return None


def _damaged_before() -> list[str] | None:
    try:
        with open(_state.path(RECORD), encoding="utf-8") as handle:
            found = json.load(handle)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, list) else None


def undamaged_copies(roots: t.Sequence[str]) -> t.Callable[[str], list[tuple[str, float, bytes]]]:
    """Kept copies that were not moved aside as damaged. Where that is not known there is none."""
    known = _damaged_before()

    def copies(path: str) -> list[tuple[str, float, bytes]]:
        return [copy for copy in _config_live.kept_copies(path, roots) if known is not None and copy[0] not in known]

    return copies


def _weigh(
    path: str,
    entry: _config_live.Entry | None,
    version: Version,
    findings: t.Sequence[Finding],
    proof: Proof,
    settings: Settings,
    running: t.Mapping[str, _config_live.Running],
    plan: Plan,
) -> None:
    """Whether an edit that was never committed goes with the damaged file: what runs tells, and what is left of the file."""
    owner = settings.component(path)
    loaded = running[owner.name].loaded if owner and owner.name in running else ""
    if loaded == digest(version.data):
        return
    if loaded and (entry is None or loaded != digest(entry.data)) and loaded not in proof.seen.get(path, set()):
        plan.lost.append(f"{owner.name if owner else path} ran with a version of {path} that no revision holds: that edit is lost")
        return
    if entry is None or entry.error or not entry.data.strip(b"\0 \t\r\n"):
        plan.unsure.append(f"nothing of {path} is left to compare with {version.revision}")
        return
    own = [finding for finding in findings if finding.path == path and finding.damage]
    if own and all(finding.pointer for finding in own):
        # it can be read: what differs is a value, and it is known which
        judged = {finding.pointer for finding in own}
        places = [place for place in differing(path, entry.data, version.data, settings) if place not in judged]
    else:
        places = unexplained(entry.data, version.data, own)
    if places:
        plan.unsure.append(f"{path} differs from {version.revision} at {', '.join(places[:5])} too")


def unexplained(old: bytes, new: bytes, findings: t.Sequence[Finding]) -> list[str]:
    """Lines of the damaged file that differ from what replaces it and have nothing to do with the damage. A file that was cut off has none."""
    if new.startswith(old):
        return []
    before, after = new.splitlines(), old.splitlines()
    explained = {int(number) for finding in findings if finding.damage for number in _LINE.findall(finding.where)}
    words = {finding.where for finding in findings if finding.damage and not _LINE.search(finding.where)}
    explained |= {number for number, line in enumerate(after, 1) if line.split() and line.split()[0].decode("utf-8", "replace") in words}
    found = []
    for tag, one, two, begin, end in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        pairs = tag == "replace" and two - one == end - begin
        for first, last in [(number, number + 1) for number in range(begin, end)] if pairs else [(begin, end)]:
            # what is missing before the line that a parser stumbles over is part of the damage
            if tag != "equal" and not explained.intersection(range(first + 1, last + 2)):
                found.append(f"line {first + 1}")
    return found


# --- the stage ------------------------------------------------------------------------------------------------------------


def folder_of(run_id: str) -> str:
    return _state.path("stage", f"{run_id}-config")


def save(plan: Plan, run_id: str, more: t.Mapping[str, t.Any]) -> None:
    """Write the new files and the plan where only root looks."""
    folder = folder_of(run_id)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder, mode=0o700)
    for number, item in enumerate(plan.files):
        with open(os.open(os.path.join(folder, str(number)), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
            handle.write(plan.content[item.path])
            handle.flush()
            os.fsync(handle.fileno())
    row = {"files": [dataclasses.asdict(item) for item in plan.files], "mended": [dataclasses.asdict(item) for item in plan.mended], **more}
    _lease.write_file(os.path.join(folder, PLAN), json.dumps(row), 0o600)


def load(run_id: str) -> dict[str, t.Any]:
    path = os.path.join(folder_of(run_id), PLAN)
    try:
        with open(path, encoding="utf-8") as handle:
            found: dict[str, t.Any] = json.load(handle)
    except (OSError, ValueError) as exc:
        raise PlanError(f"nothing is staged: {path} cannot be read") from exc
    return found


# --- the exchange ---------------------------------------------------------------------------------------------------------


def _digest_of(path: str) -> str:
    try:
        with open(path, "rb") as handle:
            return digest(handle.read())
    except OSError:
        return ""


def put(path: str, data: bytes, uid: int, gid: int, mode: int, run_id: str) -> str:
    """Let `path` hold this, by one rename; returns where the old one is kept, empty when there was none."""
    path = os.path.realpath(path)
    fresh = f"{path}.stage-{run_id}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(fresh)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
        handle.write(data)
        os.fchown(handle.fileno(), uid, gid)
        os.fchmod(handle.fileno(), mode)
        handle.flush()
        os.fsync(handle.fileno())
    kept = ""
    if os.path.lexists(path):
        kept = _fetch.free_name(f"{path}.before-{run_id}")
        os.link(path, kept, follow_symlinks=False)
        # it may hold what the old one should have hidden
        os.chmod(kept, os.stat(kept).st_mode & 0o600)
    os.rename(fresh, path)
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return kept


def swap(plan: t.Mapping[str, t.Any], run_id: str) -> tuple[list[dict[str, t.Any]], list[str]]:
    """Exchange what was staged: (path, kept, at) of each, and the files whose owner or mode was put right. A file that changed since stops all of it."""
    folder = folder_of(run_id)
    todo: list[tuple[Item, bytes]] = []
    for number, raw in enumerate(plan["files"]):
        item = Item(**raw)
        now = _digest_of(item.path)
        if now == item.new:
            continue
        if now != item.old:
            raise PlanError(f"{item.path} was changed by somebody since it was looked at; nothing was exchanged")
        with open(os.path.join(folder, str(number)), "rb") as handle:
            data = handle.read()
        if digest(data) != item.new:
            raise PlanError(f"what was staged for {item.path} is not what was proven")
        todo.append((item, data))
    done = []
    for item, data in todo:
        # before it has that name: a run that is killed leaves no damaged copy that could be taken for a good one
        aside = os.path.realpath(item.path)
        kept = _fetch.free_name(f"{aside}.before-{run_id}") if os.path.lexists(aside) else ""
        if kept:
            _lease.write_file(_state.path(RECORD), json.dumps([*(_damaged_before() or []), kept]), 0o600)
        kept = put(item.path, data, item.uid, item.gid, item.mode, run_id)
        done.append({"path": item.path, "kept": kept, "at": time.time()})
    mended = []
    for raw in plan["mended"]:
        item = Item(**raw)
        seen = os.stat(item.path)
        if (seen.st_uid, seen.st_gid, seen.st_mode & 0o7777) != (item.uid, item.gid, item.mode):
            os.chown(item.path, item.uid, item.gid)
            os.chmod(item.path, item.mode)
            mended.append(item.path)
    # there are secrets among them; the plan stays, for who asks again
    for number in range(len(plan["files"])):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, str(number)))
    return done, mended
