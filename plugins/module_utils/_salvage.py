# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Candidates beside the restore points: what a server in trouble still holds on its disk, and what a replica holds.

No manifest speaks for them. So each is examined to its last key in a scratch Redis, always on a copy, and is *proven* only by the rules of
docs/scenarios/database_corruption.md; else it is *unproven* and wins with consent alone, or *refused* and never wins. All of them are examined at the
same time, each in a process of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import math
import mmap
import os
import pickle
import pwd
import shutil
import signal
import time
import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils import (
    _aof,
    _fetch,
    _rdb,
    _rdb_values,
    _rdb_walk,
    _redis,
    _redis_conf,
    _redis_data,
    _redis_proof,
    _replica,
    _restore_point,
    _scratch,
    _target,
)
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb_report as rep

ARCHIVE, DUMP, AOF, REPLICA = "archive", "dump", "aof", "replica"
PROVEN, UNPROVEN, REFUSED = "proven", "unproven", "refused"
_CLOCK_TOLERANCE = 60.0
_PR_SET_PDEATHSIG = 1
_GRACE = 3.0  # seconds for a worker to take its scratch server away
_LONGEST_CANARY = 4096


@dataclasses.dataclass
class Outcome:
    """What became of one candidate."""

    kind: str
    name: str
    source: str
    verdict: str = REFUSED
    reasons: list[str] = dataclasses.field(default_factory=list)  # why it is not proven
    proof: str = ""
    dump: str = ""  # an RDB of it, when it could be loaded
    taken_at: float | None = None  # everything that was acknowledged before is in it
    contents: rep.Contents | None = None  # as far as it could be read
    found: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    last_canary: int | None = None  # the newest sequence number that was seen in it, usable or not
    notes: list[str] = dataclasses.field(default_factory=list)
    timings: dict[str, float] = dataclasses.field(default_factory=dict)
    details: dict[str, t.Any] = dataclasses.field(default_factory=dict)  # of a restore point: its manifest's
    rotten: bool = False  # bytes of it are not those that were written
    position: int = 0  # of a restore point among those that were given

    @property
    def canary(self) -> dict[str, float] | None:
        return self.found.get("canary")

    @property
    def data_at(self) -> float | None:
        """When its data is of: by the canary, else by the time of the snapshot."""
        return self.canary["at"] if self.canary else self.taken_at

    @property
    def basis(self) -> str:
        return "canary" if self.canary else "time of the snapshot"

    def loss(self, incident_at: float) -> float | None:
        return None if self.data_at is None else round(max(0.0, incident_at - self.data_at), 2)

    def row(self, incident_at: float, chosen: bool) -> dict[str, t.Any]:
        """For the report."""
        keys = _restore_point.total_keys(self.found["keyspace"]) if "keyspace" in self.found else None
        return {
            "kind": self.kind,
            "name": self.name,
            "source": self.source,
            "verdict": self.verdict,
            "reason": "; ".join(self.reasons),
            "loss_s": self.loss(incident_at) if self.found else None,
            "basis": self.basis if self.found else None,
            "canary": int(self.canary["seq"]) if self.canary else None,
            "keys": keys,
            "taken_at": self.taken_at,
            "chosen": chosen,
        }


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a candidate without a manifest of its own is held against."""

    target: rep.Target
    user: str
    canary: dict[str, t.Any]
    invariants: list[dict[str, t.Any]]
    newest: dict[str, t.Any]  # details of the newest restore point's manifest, whether it can be fetched or not
    tolerance: float  # share of a class that may be missing
    before: float | None  # point in time: nothing that was written from this second on
    deadline: float


# --- side by side ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Task:
    """One candidate to be examined; `work` gets a directory of its own. `memory` and `disk`: bytes that it will take."""

    kind: str
    name: str
    source: str
    work: t.Callable[[str], Outcome]
    memory: int = 0
    disk: int = 0

    def ended(self, reason: str, verdict: str = UNPROVEN) -> Outcome:
        return Outcome(self.kind, self.name, self.source, verdict, [reason])


def read_outcome(outbox: str, kind: str) -> Outcome | None:
    """What a worker wrote; None as long as it is at work. The directory belongs to us alone: the user of Redis must not write there."""
    try:
        with open(os.path.join(outbox, kind), "rb") as handle:
            found: Outcome = pickle.load(handle)
            return found
    except FileNotFoundError:
        return None


def write_outcome(outbox: str, outcome: Outcome) -> None:
    """Make it known, as a whole."""
    path = os.path.join(outbox, outcome.kind)
    with open(path + ".new", "wb") as handle:
        pickle.dump(outcome, handle)
    os.rename(path + ".new", path)


def race(tasks: t.Sequence[Task], directory: str, outbox: str, *, deadline: float, patience: float, cores: int, memory: int, disk: int) -> list[Outcome]:
    """Outcomes in the order of the tasks. The first is the restore points': it always runs, and the others run beside it as far as there is room.

    All have `patience` seconds. After that the first that is proven ends the wait for the others, and without one they have until the deadline.
    """
    outcomes: dict[str, Outcome] = {}
    waiting = list(tasks)
    working: dict[int, Task] = {}
    began = time.time()
    # fetching takes no core
    slots = cores + 1
    try:
        while waiting or working:
            while waiting:
                task = waiting[0]
                taken = sum(other.memory for other in working.values())
                alone = task is tasks[0]
                if not alone and (task.memory > memory or task.disk > disk - tasks[0].disk):
                    write_outcome(outbox, task.ended(f"it was not examined: it takes {task.memory >> 20} MiB of memory and {task.disk >> 20} MiB of disk"))
                elif alone or (len(working) < slots and taken + task.memory <= memory):
                    disk -= 0 if alone else task.disk
                    working[_start(task, directory, outbox, deadline)] = task
                else:
                    break
                waiting.pop(0)
            _reap(working, outbox)
            known = [read_outcome(outbox, task.kind) for task in tasks]
            if time.time() > deadline or (time.time() > began + patience and any(one and one.verdict == PROVEN for one in known)):
                break
            if working:
                time.sleep(0.02)
    finally:
        _end(working)
    for task in tasks:
        found = read_outcome(outbox, task.kind)
        outcomes[task.kind] = found or task.ended("it was not examined in time")
    return list(outcomes.values())


def _start(task: Task, directory: str, outbox: str, deadline: float) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    with contextlib.suppress(BaseException):
        # its scratch server ends with it, whatever it ends by
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in (signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, _leave)
        signal.alarm(max(1, int(deadline - time.time()) + 1))
        write_outcome(outbox, examine(task, directory))
        code = 0
    os._exit(code)


def _leave(number: int, frame: t.Any) -> t.NoReturn:
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)


def examine(task: Task, directory: str) -> Outcome:
    """The task in a directory of its own; what goes wrong with one candidate is its outcome, and nobody else's."""
    folder = os.path.join(directory, task.kind)
    try:
        os.makedirs(folder, mode=0o700)
        return task.work(folder)
    except _scratch.NotProven as exc:
        return task.ended(str(exc))
    except (_fetch.FetchError, _redis_proof.Faulty, _scratch.ProofError, _aof.AofError, _replica.ReplicaError) as exc:
        return task.ended(str(exc), REFUSED)
    except (_redis.RedisError, OSError, KeyError, ValueError) as exc:
        return task.ended(f"it could not be examined: {exc}")


def _reap(working: dict[int, Task], outbox: str) -> None:
    for pid, task in list(working.items()):
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            del working[pid]
            if read_outcome(outbox, task.kind) is None:
                write_outcome(outbox, task.ended("the process that examined it died"))


def _end(working: dict[int, Task]) -> None:
    for pid in working:
        os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + _GRACE
    while working and time.monotonic() < end:
        for pid in list(working):
            if os.waitpid(pid, os.WNOHANG)[0] == pid:
                del working[pid]
        time.sleep(0.01)
    for pid in working:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# --- an RDB without a manifest --------------------------------------------------------------------------------------


def server_dump(path: str, rules: Rules, directory: str) -> Outcome:
    """The server's own dump, as its last save left it."""
    copy = os.path.join(directory, _redis_data.DUMP)
    # Redis replaces it by a rename: what was opened stays one whole file
    shutil.copyfile(path, copy)
    return examine_rdb(Outcome(DUMP, "dump of the server", path, dump=copy), rules)


def replica_dump(replica: dict[str, t.Any], rules: Rules, directory: str) -> Outcome:
    """What a replica holds now."""
    copy = os.path.join(directory, _redis_data.DUMP)
    _replica.fetch(replica, copy, rules.deadline)
    return examine_rdb(Outcome(REPLICA, "replica", f"{replica['host']}:{replica['port']}", dump=copy), rules)


def examine_rdb(outcome: Outcome, rules: Rules, others: t.Iterable[tuple[int, bytes]] = ()) -> Outcome:
    """Read and load it to the last key; `others` are keys to be digested besides its own samples."""
    dump = outcome.dump
    with open(dump, "rb") as handle:
        foreign = _rdb.sniff(handle.read(512), os.path.getsize(dump))
    if foreign:
        raise _redis_proof.Faulty(f"it is no RDB file: {foreign}")
    now = time.time()
    # above that size the scratch server looks into the values: it has sanitized payloads
    values = _rdb_values.check if os.path.getsize(dump) <= _rdb.LARGE else None
    contents = outcome.contents = _rdb_walk.walk(dump, now=now, values=values, duplicates=True)
    outcome.rotten = contents.checksum == "mismatch"
    if contents.taken_at is not None and outcome.taken_at is None:
        # the child that saves reads its clock after the fork, in whole seconds
        outcome.taken_at = contents.taken_at - 1
    findings = [*contents.findings, *_target.judge(contents, rules.target)]
    if _fatal(outcome, findings):
        return outcome
    hand_over(os.path.dirname(dump), rules.user)
    try:
        with _scratch.running(os.path.dirname(dump), rules.user, rules.deadline, dump, "", rules.target) as client:
            found = _scratch.examine(client, rules.canary)
            found["fingerprint"] = _scratch.fingerprint(client, contents.samples)
            found["typed"] = _scratch.typed_read(client, rules.deadline)
            found["digests"] = _scratch.digests(client, {*contents.samples, *others})
    except _scratch.Refused as exc:
        outcome.reasons.append(f"a scratch Redis does not load it: {exc}")
        return outcome
    findings = _scratch.compare(contents, found) + _target.memory(found["used_memory"], rules.target)
    if _fatal(outcome, findings):
        return outcome
    broken = _redis_proof.invariant_faults(rules.invariants, contents)
    if broken:
        outcome.reasons.append(f"its data cannot be right: {'; '.join(broken)}")
        return outcome
    outcome.found = found
    if found["canary"]:
        outcome.last_canary = max(int(found["canary"]["seq"]), outcome.last_canary or 0)
    doubts = [f.text for f in [*contents.findings, *findings] if f.severity == rep.UNPROVEN and f.code not in ("memory-unknown", "module-unknown")]
    doubts += _redis_proof.class_faults(rules.newest, contents, found["keyspace"], rules.tolerance)
    doubts += _canary_faults(rules, found["canary"], now)
    doubts += _too_new(outcome, rules)
    outcome.reasons += dict.fromkeys(doubts)
    outcome.verdict = UNPROVEN if outcome.reasons else PROVEN
    counted = ", ".join(f"{name} {entry['keys']} keys" for name, entry in sorted(found["keyspace"].items()))
    canary = f"canary {found['canary']['seq']}" if found["canary"] else "no canary"
    outcome.proof = (
        f"RDB {contents.version}, checksum {contents.checksum}, structure, loaded in a scratch Redis with sanitized payloads, every key read: "
        f"{counted or 'no keys'}, {canary}"
    )
    outcome.notes += _redis_proof.losses(contents)
    return outcome


def _fatal(outcome: Outcome, findings: t.Iterable[rep.Finding]) -> bool:
    outcome.reasons += dict.fromkeys(found.text for found in findings if found.severity == rep.FATAL)
    return bool(outcome.reasons)


def hand_over(directory: str, user: str) -> None:
    """The scratch server may read it."""
    owner = pwd.getpwnam(user)
    for path, folders, files in os.walk(directory):
        for name in [path, *(os.path.join(path, item) for item in folders + files)]:
            os.lchown(name, owner.pw_uid, owner.pw_gid)


def _canary_faults(rules: Rules, canary: dict[str, float] | None, now: float) -> list[str]:
    if canary is None:
        return ["it holds no canary, and the restore points do"] if rules.newest.get("canary") else []
    return [f"its canary is {canary['at'] - now:.0f} s ahead of this server's clock"] * (canary["at"] > now + _CLOCK_TOLERANCE)


def _too_new(outcome: Outcome, rules: Rules) -> list[str]:
    """With a point in time nothing counts that was taken after it: such data never wins, with or without consent."""
    if rules.before is None:
        return []
    late = max(outcome.taken_at or 0.0, outcome.canary["at"] if outcome.canary else 0.0)
    if outcome.kind != AOF and outcome.taken_at is not None:
        late = max(late, outcome.taken_at + 1)  # the second of the snapshot
    if late < rules.before:
        return []
    outcome.found = {}
    return ["it was taken after the point in time that is wanted"]


# --- the append only file -------------------------------------------------------------------------------------------


def server_log(conf: _redis.RedisConf, data_dir: str, rules: Rules, directory: str, witnesses: t.Callable[[], list[Outcome]]) -> Outcome:
    """The server's append only file up to its first fault, or up to the point in time. `witnesses` waits for the candidates whose bytes are proven."""
    path = os.path.join(data_dir, conf.appenddirname)
    if not os.path.isdir(path):
        path = os.path.join(data_dir, conf.appendfilename)
    outcome = Outcome(AOF, "append only file of the server", path, dump=os.path.join(directory, _redis_data.DUMP))
    source = _linked(path, os.path.join(directory, "source"))
    bases: dict[str, rep.Contents] = {}

    def base(name: str) -> rep.Contents:
        values = _rdb_values.check if os.path.getsize(name) <= _rdb.LARGE else None
        bases[name] = _rdb_walk.walk(name, now=time.time(), values=values, duplicates=True)
        return bases[name]

    report = _aof.verify(source, target=rules.target, now=time.time(), base=base)
    outcome.contents = next(iter(bases.values()), None)
    chain = Chain.of([member.path for member in report.loaded if member.size > 0], rules.canary["key"])
    outcome.last_canary = chain.last
    fatal, doubts = judge_log(report)
    if fatal:
        outcome.reasons += fatal
        return outcome
    log = os.path.basename(report.manifest or report.path).removesuffix(".manifest")
    cut = _aof.cut(report, os.path.join(directory, "appendonlydir"), None if rules.before is None else rules.before - 1)
    if not report.manifest:
        # an append only file of one piece lies beside the dump
        os.rename(cut["path"], os.path.join(directory, log))
        os.rmdir(os.path.join(directory, "appendonlydir"))
        cut["path"] = os.path.join(directory, log)
    # links: with another owner they would have it in the live directory, too
    shutil.rmtree(os.path.join(directory, "source"))
    hand_over(directory, rules.user)
    try:
        with _scratch.running(directory, rules.user, rules.deadline, outcome.dump, "", rules.target, log) as client:
            client.call("SAVE")
    except _scratch.Refused as exc:
        outcome.reasons.append(f"a scratch Redis does not load it: {exc}")
        return outcome
    files = _files(cut["path"])
    chain = Chain.of(files, rules.canary["key"])
    begun = [contents.taken_at - 1 for contents in bases.values() if contents.taken_at is not None]
    known = [float(cut["timestamp"])] if cut["timestamp"] is not None else []
    outcome.taken_at = max(known + begun, default=0.0)  # a number, or the time of our own SAVE would count
    known_witnesses = witnesses()
    examine_rdb(outcome, rules, [key for witness in known_witnesses for key in witness.found.get("digests", ())])
    if outcome.verdict == REFUSED:
        return outcome
    if outcome.canary:
        outcome.taken_at = max(outcome.taken_at, outcome.canary["at"])
    if not outcome.taken_at:
        outcome.taken_at = None
        doubts.append("nothing in it tells of when it is")
    doubts += chain.faults()
    doubts += [f"the {witness.name} beside it is damaged, so that its own values may be" for witness in known_witnesses if witness.rotten]
    doubts += contradictions(outcome, [witness for witness in known_witnesses if witness.verdict == PROVEN], files, max(begun, default=None), rules)
    outcome.reasons += dict.fromkeys(doubts)
    outcome.verdict = UNPROVEN if outcome.reasons else PROVEN
    usable = report.usable
    lost = f"{usable.bytes_lost} damaged bytes behind its last command are left out" if usable and usable.bytes_lost else "whole to its end"
    if rules.before is not None:
        lost = f"up to {time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime(rules.before))}"
    outcome.proof = f"{lost}; base with checksum, every command, agrees with {len(known_witnesses)} other(s); then as {outcome.proof}"
    if usable and usable.bytes_lost and rules.before is None:
        outcome.notes.append(f"append only file: {usable.bytes_lost} bytes behind the last whole command are no command and were left out")
    return outcome


def _linked(path: str, folder: str) -> str:
    """The files of an append only file as they are now, by hard links: a server that rewrites it meanwhile does not take them away."""
    os.makedirs(folder, mode=0o700)
    if not os.path.isdir(path):
        os.link(path, os.path.join(folder, os.path.basename(path)))
        return os.path.join(folder, os.path.basename(path))
    for name in os.listdir(path):
        if os.path.isfile(os.path.join(path, name)):
            with contextlib.suppress(FileNotFoundError):
                os.link(os.path.join(path, name), os.path.join(folder, name))
    return folder


def _files(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    return sorted(os.path.join(path, name) for name in os.listdir(path) if not name.endswith((".manifest", ".rdb")))


def judge_log(report: _aof.AofReport) -> tuple[list[str], list[str]]:
    """(why it cannot be used, why it is not proven) by its structure alone."""
    usable, loaded = report.usable, report.loaded
    behind = {
        finding for finding in report.findings if usable and finding.file == usable.file and finding.offset is not None and finding.offset >= usable.offset
    }
    fatal = [f"{finding.file or 'it'}: {finding.text}" for finding in report.findings if finding.severity == rep.FATAL and finding not in behind]
    if usable is None or report.state == _aof.UNUSABLE or fatal:
        return fatal or [report.evidence()], []
    doubts = []
    if usable.file != loaded[-1].name or usable.commands_lost:
        doubts.append(f"it is damaged in its middle ({usable.file} at byte {usable.offset}): at least {usable.commands_lost} commands lie behind that")
    base = loaded[0].contents
    if loaded[0].kind != _aof.BASE or base is None or base.checksum != "ok":
        doubts.append("its base has no checksum")
    settled = ("aof-values-unprotected", "memory-unknown", "module-unknown")
    doubts += [finding.text for finding in report.findings if finding.severity == rep.UNPROVEN and finding.code not in settled and finding not in behind]
    return [], doubts


@dataclasses.dataclass
class Chain:
    """The canary's writes in an append only file: commands that were cut out of its middle leave a hole in them, and framing alone does not tell."""

    writes: list[int]

    @classmethod
    def of(cls, files: t.Iterable[str], key: str) -> Chain:
        """The sequence numbers in the order in which they were written."""
        writes = []
        words = b"\r\n$%d\r\n%b\r\n$" % (len(key.encode()), key.encode())
        for path in files:
            with _mapped(path) as data:
                at = data.find(words)
                while at >= 0:
                    value = data[at + len(words) : at + len(words) + _LONGEST_CANARY].split(b"\r\n", 2)
                    with contextlib.suppress(ValueError, KeyError, TypeError, IndexError):
                        writes.append(int(json.loads(value[1])["seq"]))
                    at = data.find(words, at + len(words))
        return cls(writes)

    @property
    def last(self) -> int | None:
        return max(self.writes, default=None)

    def faults(self) -> list[str]:
        pairs = list(zip(self.writes, self.writes[1:], strict=False))
        back = next((pair for pair in pairs if pair[1] < pair[0]), None)
        holes = [pair for pair in pairs if pair[1] > pair[0] + 1]
        faults = [f"its canary goes back from {back[0]} to {back[1]}"] if back else []
        return faults + [f"its canary jumps from {low} to {high}: commands may be missing between" for low, high in holes[:1]]


@contextlib.contextmanager
def _mapped(path: str) -> t.Iterator[t.Any]:
    """The bytes of a file; an empty one cannot be mapped."""
    if not os.path.getsize(path):
        yield b""
        return
    with open(path, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def contradictions(outcome: Outcome, witnesses: list[Outcome], files: list[str], base_at: float | None, rules: Rules) -> list[str]:
    """What speaks against the values of an append only file, which has no checksum, in the light of data that is proven.

    A sampled key holds what the witness holds, or a command of the file names it. Where the base, which has a checksum, is newer than the witness a
    difference may be older than the file. Keys of a class that the inventory calls immutable never differ.
    """
    if not witnesses:
        return ["nothing that is proven can be held against its values"]
    mine = outcome.found["digests"]
    immutable = {rule["class"] for rule in rules.invariants if rule.get("immutable")}
    faults = []
    for witness in witnesses:
        theirs = witness.found.get("digests", {})
        other = [sample for sample, digest in theirs.items() if mine.get(sample) != digest]
        if theirs and len(other) == len(theirs):
            faults.append(f"none of {len(theirs)} sampled keys is as in the {witness.name}")
            continue
        fixed = [key for database, key in other if _class_of(key) in immutable]
        if fixed:
            faults.append(f"{_shown(fixed[0])} differs from the {witness.name}, and its class never changes")
        if base_at is not None and witness.taken_at is not None and base_at > witness.taken_at:
            continue
        silent = _unnamed([key for database, key in other], files)
        if silent:
            faults.append(f"{_shown(silent[0])} differs from the {witness.name} and no command names it ({len(silent)} such keys of {len(theirs)})")
    return faults


def _class_of(key: bytes) -> str:
    return (key.rpartition(b":")[0] or key).decode("utf-8", "backslashreplace")


def _shown(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")


def _unnamed(keys: list[bytes], files: list[str]) -> list[bytes]:
    for path in files:
        if keys:
            with _mapped(path) as data:
                keys = [key for key in keys if data.find(b"\r\n$%d\r\n%b\r\n" % (len(key), key)) < 0]
    return keys


# --- which one wins -------------------------------------------------------------------------------------------------


def choose(outcomes: t.Sequence[Outcome], unproven_ok: bool) -> Outcome | None:
    """The one that loses least. None when none may be restored."""
    able = [one for one in outcomes if one.found and (one.verdict == PROVEN or (unproven_ok and one.verdict == UNPROVEN))]
    counted = any(one.canary for one in able)

    def rank(one: Outcome) -> tuple[float, ...]:
        # Between two canaries an append only file goes on and a snapshot does not; of two snapshots the later; of the same one that with a digest.
        first = (one.canary["seq"] if one.canary else -1) if counted else (one.taken_at or 0.0)
        return (first, one.kind == AOF, one.taken_at or 0.0, one.kind == ARCHIVE)

    return max(able, key=rank, default=None)


def lost(outcomes: t.Sequence[Outcome], chosen: Outcome) -> list[str]:
    """What is known to be lost, as notes."""
    notes = []
    newest = max((one.last_canary for one in outcomes if one.last_canary is not None), default=None)
    if chosen.canary and newest is not None and newest > chosen.canary["seq"]:
        first = int(chosen.canary["seq"]) + 1
        notes.append(f"lost: canary numbers {first} to {newest} ({newest - first + 1}), which stood in data that is not restored")
    have = chosen.contents.classes if chosen.contents else {}
    for one in outcomes:
        if one is chosen or one.kind == ARCHIVE or not one.contents:
            continue
        more = {name: counts["keys"] - have.get(name, {"keys": 0})["keys"] for name, counts in one.contents.classes.items()}
        more = {name: count for name, count in more.items() if count > 0}
        if more:
            listed = ", ".join(f"{name} {count}" for name, count in sorted(more.items(), key=lambda item: -item[1])[:10])
            what = "that could be read of it" if one.verdict == REFUSED else "of it"
            notes.append(f"the {one.name} holds keys that are not restored, at least, {what}: {listed}")
    return notes


def waits(outbox: str, kinds: t.Sequence[str], deadline: float) -> t.Callable[[], list[Outcome]]:
    """For a candidate that is held against others: waits until they have ended, and returns them."""

    def witnesses() -> list[Outcome]:
        while time.time() < deadline:
            found = [read_outcome(outbox, kind) for kind in kinds]
            if None not in found:
                break
            time.sleep(0.05)
        return [one for one in (read_outcome(outbox, kind) for kind in kinds) if one is not None]

    return witnesses


def whole_second(moment: float) -> float:
    """Nothing from this second on: timestamps in an append only file are whole seconds, and stand before what was written in them."""
    return float(math.floor(moment))


def sizes(conf: _redis_conf.RedisConf, data_dir: str) -> tuple[int, int]:
    """Bytes of the append only file and of the dump; 0 where there is none."""
    path = os.path.join(data_dir, conf.appenddirname)
    if not os.path.isdir(path):
        path = os.path.join(data_dir, conf.appendfilename)
    dump = os.path.join(data_dir, conf.dbfilename)
    log = _redis_data.size_of(path) if os.path.isdir(path) else os.path.getsize(path) if os.path.isfile(path) else 0
    return log, os.path.getsize(dump) if os.path.isfile(dump) else 0
