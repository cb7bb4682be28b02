# SPDX-License-Identifier: GPL-3.0-or-later
"""titan-dr verify: the collection's own verification, for any Redis file on the controller, many at once."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from titan_dr import playbooks
from titan_dr.errors import UsageError

if TYPE_CHECKING:
    from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb_report import Target

OK, FAILED, UNKNOWN = 0, 1, 4
LARGE = 64 * 2**20  # bytes from which a terminal is told that work goes on
STOP_SECONDS = 3.0
MOST_REASONS = 20
_COLOURS = {"pass": "32", "fail": "31", "unknown": "33"}

Report = dict[str, Any]


@dataclass(frozen=True)
class Item:
    kind: str  # rdb or aof
    path: str
    size: int


# --- what there is to verify -----------------------------------------------------------------------------------------


def find(paths: Sequence[str], skipped: Callable[[str], None]) -> list[Item]:
    """The files below these paths; UsageError names a path that is missing, unreadable or holds none."""
    found: dict[str, Item] = {}
    for path in paths:
        if not os.path.exists(path):
            raise UsageError(f"verify: there is no {path}")
        if not os.access(path, os.R_OK | (os.X_OK if os.path.isdir(path) else 0)):
            raise UsageError(f"verify: {path} cannot be read by this user")
        items = list(_search(path, skipped)) if os.path.isdir(path) else [_item(path)]
        if not items:
            raise UsageError(f"verify: {path} holds no *.rdb, no *.aof and no appendonlydir")
        found.update((os.path.realpath(item.path), item) for item in items if os.path.realpath(item.path) not in found)
    return list(found.values())


def _item(path: str) -> Item:
    if os.path.isdir(path):
        return Item("aof", path, sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file()))
    return Item("aof" if path.endswith((".aof", ".aof.manifest")) else "rdb", path, os.path.getsize(path))


def _search(folder: str, skipped: Callable[[str], None]) -> Iterable[Item]:
    for place, folders, names in os.walk(folder, onerror=_unreadable):
        folders.sort()
        # without its manifest it is one all the same: that is a fault to be told
        if os.path.basename(os.path.abspath(place)) == "appendonlydir" or any(name.endswith((".aof.manifest", ".incr.aof", ".base.rdb")) for name in names):
            folders.clear()
            yield _item(place)
            continue
        for name in sorted(names):
            if name.startswith("temp-") and name.endswith((".rdb", ".aof")):
                skipped(os.path.join(place, name))
            elif name.endswith((".rdb", ".aof")):
                yield _item(os.path.join(place, name))


def _unreadable(error: OSError) -> None:
    raise UsageError(f"verify: {error.filename} cannot be read: {error.strerror}")


# --- what it is held against -----------------------------------------------------------------------------------------


def collections_path(installed: bool) -> Path:
    """The folder that holds ansible_collections with this collection in it."""
    playbook_folder = playbooks.folder(installed)
    return playbook_folder.parents[3] if installed else playbook_folder / "collections"


def target_of(text: str | None) -> Target | None:
    """The target that --target names."""
    if text is None:
        return None
    from ansible_collections.titan.disaster_recovery.plugins.module_utils import _redis_conf, _target

    try:
        if os.path.isfile(text):
            content = Path(text).read_text(encoding="utf-8")
            if content.lstrip().startswith("{"):
                return _target.parse(content)
            # a redis.conf does not tell the version of its server
            return _target.of_server(content, "")
        return _target.parse(text)
    except (OSError, UnicodeDecodeError, ValueError, _redis_conf.RedisError) as error:
        raise UsageError(f"--target: {error}") from error


def recorded_of(path: Path | None, items: Sequence[Item]) -> dict[str, dict[str, Any]]:
    """By path of the item: what was recorded of it; of an AOF, digests by file name."""
    if path is None:
        return {}
    from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb

    facts: dict[str, dict[str, Any]] = {}
    try:
        for item in items:
            if item.kind == "rdb":
                facts[item.path] = _rdb.read_recorded(str(path), os.path.basename(item.path))
            else:
                digests = _rdb.digests_in(path.read_text(encoding="utf-8"))
                # the list may be of a whole backup
                facts[item.path] = {name: digest for name, digest in digests.items() if name.endswith((".aof", ".base.rdb", ".manifest"))}
                if not facts[item.path]:
                    raise UsageError(f"--recorded: {path} holds no SHA-256 of the files in {item.path}")
    except (OSError, UnicodeDecodeError, _rdb.RecordedError) as error:
        raise UsageError(f"--recorded: {error}") from error
    if len(items) > 1 and any("keyspace" in found or "size" in found for found in facts.values()):
        raise UsageError(f"--recorded: {path} speaks of one file, these are {len(items)}")
    return facts


# --- the work --------------------------------------------------------------------------------------------------------


def verify_one(item: Item, options: argparse.Namespace, target: Target | None, recorded: dict[str, Any] | None, jobs: int, now: float) -> Report:
    if item.kind == "aof":
        return _verify_aof(item, options, target, recorded, jobs, now)
    from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb

    return _rdb.verify(
        item.path,
        level=options.level,
        target=target,
        now=now,
        recorded=recorded,
        max_age_s=options.max_age,
        checksum=options.checksum,
        server=options.server,
        jobs=jobs,
    )


def _verify_aof(item: Item, options: argparse.Namespace, target: Target | None, recorded: dict[str, str] | None, jobs: int, now: float) -> Report:
    from ansible_collections.titan.disaster_recovery.plugins.module_utils import _aof, _rdb, _rdb_report, _rdb_values, _rdb_walk

    deep = options.level != "fast"
    started = time.monotonic()
    found = _aof.verify(
        item.path,
        target=target,
        now=now,
        base=lambda path: _rdb_walk.walk(path, now=now, values=_rdb_values.check if deep else None, duplicates=deep, jobs=jobs),
        recorded=recorded,
    )
    last = found.usable.timestamp if found.usable else None
    if options.max_age is not None:
        if last is None:
            found.findings.append(_rdb_report.Finding("age-unknown", "no timestamps in it (aof-timestamp-enabled is off)"))
        elif now - last > options.max_age:
            text = f"its last timestamp is {now - last:.0f} s old, {options.max_age} s are allowed"
            found.findings.append(_rdb_report.Finding("snapshot-too-old", text))
    found.findings = _rdb.by_severity(found.findings)
    left = [] if deep else ["the inside of the base's values and duplicate keys in it (level deep)"]
    if options.level == "proof":
        left.append("loading by a server: level proof is of RDB files")
    if recorded is None:
        left.append("that its values are those that were written: no SHA-256 of its files was given")
    return {**found.as_dict(), "level": options.level, "taken_at": last, "seconds": {"aof": round(time.monotonic() - started, 3)}, "not_checked": left}


class _Worker:
    """A forked process that verifies one item: a file that breaks the verifier takes nothing else down."""

    def __init__(self, item: Item, work: Callable[[Item], Report]) -> None:
        self.item = item
        self.stream, writer = os.pipe()
        self._data: list[bytes] = []
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            self._work(writer, work)
        with contextlib.suppress(OSError):
            os.setpgid(self.pid, self.pid)
        os.close(writer)

    def _work(self, writer: int, work: Callable[[Item], Report]) -> None:
        """In the child; does not return."""
        code = 1
        try:
            # a group of its own, so that its own children can be ended with it
            os.setpgid(0, 0)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            data = memoryview(json.dumps(work(self.item)).encode())
            while data:
                data = data[os.write(writer, data) :]
            code = 0
        except Exception:
            with contextlib.suppress(Exception):
                print(safe(traceback.format_exc(), "\n"), file=sys.stderr, flush=True)
        finally:
            os._exit(code)

    def read(self) -> bool:
        """Whether there is more to come."""
        data = os.read(self.stream, 2**20)
        self._data.append(data)
        return bool(data)

    def report(self, level: str) -> Report:
        os.close(self.stream)
        dummy, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            found: Report = json.loads(b"".join(self._data))
            return found
        from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb

        how = f"ended with {signal.Signals(-code).name}" if code < 0 else "broke off; its own words are on stderr"
        return _rdb.broken_off(self.item.path, self.item.kind, level, f"its process {how}")

    def stop(self) -> None:
        """Its children and its scratch directory go with it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGINT)
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                break
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def verify_all(
    items: Sequence[Item], level: str, jobs: int, work: Callable[[Item, int], Report], progress: Callable[[int, Sequence[Item]], None]
) -> list[Report]:
    """Reports in the order of the items. Large files first; the processors are shared among those that run."""
    at_once = min(jobs, len(items))
    waiting = sorted(items, key=lambda item: item.size)
    reports: dict[str, Report] = {}
    running: list[_Worker] = []
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(_Worker(waiting.pop(), lambda item: work(item, jobs // at_once)))
            ready = select.select([worker.stream for worker in running], [], [], 0.2)[0]
            for worker in [worker for worker in running if worker.stream in ready]:
                if not worker.read():
                    reports[worker.item.path] = worker.report(level)
                    running.remove(worker)
            progress(len(reports), [worker.item for worker in running])
    finally:
        for worker in running:
            worker.stop()
    return [reports[item.path] for item in items]


class Progress:
    """One line on a terminal while large files are read."""

    def __init__(self, items: Sequence[Item], stream: TextIO) -> None:
        self._stream = stream
        self._count = len(items)
        self._since = time.monotonic()
        self._shown = ""
        self._wanted = stream.isatty() and max(item.size for item in items) >= LARGE

    def __call__(self, done: int, running: Sequence[Item]) -> None:
        if not self._wanted:
            return
        names = ", ".join(f"{safe(os.path.basename(item.path))} ({size(item.size)})" for item in running)
        counted = f"{done} of {self._count} done, " if self._count > 1 else ""
        line = f"verifying {names}: {counted}{time.monotonic() - self._since:.0f} s" if running else ""
        if line != self._shown:
            self._stream.write(f"\r\x1b[K{line[:200]}")
            self._stream.flush()
            self._shown = line


def run(options: argparse.Namespace) -> int:
    place = str(collections_path(options.installed))
    if place not in sys.path:
        sys.path.insert(0, place)
    # once, before any process is forked
    from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb  # noqa: F401

    items = find(options.paths, lambda path: print(f"titan-dr: skipped {safe(path)}: Redis writes it while it saves and never loads it", file=sys.stderr))
    target = target_of(options.target)
    recorded = recorded_of(options.recorded, items)
    now = time.time()
    reports = verify_all(
        items,
        options.level,
        options.jobs or len(os.sched_getaffinity(0)),
        lambda item, jobs: verify_one(item, options, target, recorded.get(item.path), jobs, now),
        Progress(items, sys.stderr),
    )
    if options.json:
        # ASCII: nothing in it can speak to the terminal
        print(json.dumps(reports, indent=2))
    else:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        print("\n".join(line for report in reports for line in lines(report, colour)))
        if len(reports) > 1:
            print(f"{len(reports)} verified: " + ", ".join(f"{count} {name}" for name in _COLOURS if (count := sum(r["verdict"] == name for r in reports))))
    verdicts = {report["verdict"] for report in reports}
    return FAILED if "fail" in verdicts else UNKNOWN if "unknown" in verdicts else OK


# --- for people ------------------------------------------------------------------------------------------------------


def safe(text: str, keep: str = "") -> str:
    """Text from a file or a file name on a terminal: no control, format or surrogate character is left."""
    from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb

    return "".join(char if char in keep else _rdb.printable(char) for char in text) if keep else _rdb.printable(text)


def size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def span(seconds: float) -> str:
    for limit, unit, below in ((86400, "d", 3600), (3600, "h", 60), (60, "min", 1)):
        if seconds >= limit:
            rest = int(seconds) % limit // below
            return f"{int(seconds) // limit} {unit}" + (f" {rest} {'s' if below == 1 else 'min' if below == 60 else 'h'}" if rest else "")
    return f"{seconds:.0f} s"


def lines(report: Report, colour: bool) -> list[str]:
    """What a person reads of one report: verdict, what it is, reasons, what was not checked."""
    verdict = report["verdict"]
    head = f"{verdict.upper():<7}"
    if colour:
        head = f"\x1b[1;{_COLOURS[verdict]}m{head}\x1b[0m"
    told = [f"{head} {safe(report['path'])}: {safe('; '.join(_headline(report)))}"]
    findings = report["findings"]
    for finding in findings[:MOST_REASONS]:
        told.append(f"        {finding['severity']}: {safe(_reason(finding))}")
    if len(findings) > MOST_REASONS:
        told.append(f"        and {len(findings) - MOST_REASONS} more, see --json")
    if report["not_checked"]:
        told.append(f"        not checked: {safe('; '.join(report['not_checked']))}")
    return told


def _reason(finding: dict[str, Any]) -> str:
    where = [str(finding["code"])]
    for name, label in (("key", "key"), ("database", "database"), ("file", "file"), ("offset", "offset")):
        if finding.get(name) is not None:
            where.append(f"{label} {finding[name]}")
    return f"{finding['text']} [{', '.join(where)}]"


def _headline(report: Report) -> list[str]:
    if any(finding["code"] == "verifier-failed" for finding in report["findings"]):
        return ["not verified"]
    if report["kind"] == "aof":
        return _aof_headline(report)
    contents = report["contents"]
    if contents is None or not contents["format"]:
        return ["no RDB file that can be read"]
    by = f" by {contents['server']}" if contents["server"] else ""
    told = [f"{'Valkey ' if contents['format'] == 'VALKEY' else ''}RDB {contents['version']}{by}, {size(contents['size'])}, checksum {report['checksum']}"]
    if report["taken_at"] is not None:
        told.append(f"taken {_when(report['taken_at'])}, {span(max(0.0, report['age_s']))} ago")
    databases = ", ".join(f"{name} {counts['keys']}" for name, counts in contents["keyspace"].items())
    told.append(f"{contents['keys']} keys" + (f" ({databases})" if len(contents["keyspace"]) > 1 else ""))
    return told


def _aof_headline(report: Report) -> list[str]:
    told = [f"AOF of {len(report['files'])} files, {report['state']}"]
    usable = report.get("usable")
    if usable:
        when = f", {_when(usable['timestamp'])}" if usable["timestamp"] is not None else ""
        told.append(f"usable up to offset {usable['offset']} of {usable['file']} (command {usable['command']}{when})")
        if usable["bytes_lost"]:
            told.append(f"{usable['bytes_lost']} bytes lost behind it, at least {usable['commands_lost']} commands")
    return told


def _when(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
