# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _journal, _lease
from ansible_collections.titan.disaster_recovery.plugins.module_utils._lease import Lease, Request
from ansible_collections.titan.disaster_recovery.plugins.module_utils._marked import Mark

NOW = 1767225600.0 + 12 * 3600 + 7  # 12:00:07 UTC
OWNER = {"user": "ann", "host": "bastion"}
HELD = Lease(3, "R", "aaaa", "database_corruption", 1000.0, NOW - 4, OWNER, "held", sign=NOW - 4)
ASK = Request("N", "bbbb", "database_corruption", 2000.0, server="titan-1")


def closed(result: str) -> Lease:
    return dataclasses.replace(HELD, state="closed", result=result)


# --- who may take it --------------------------------------------------------------------------------------------------

OLD = dataclasses.replace(HELD, sign=NOW - 31)
RESUME = {"resume": "R"}
OTHER = {"scenario": "network_partition"}
TABLE: list[tuple[str, Lease | None, dict[str, Any], dict[str, Any], str]] = [
    ("nobody", None, {}, {}, "free"),
    ("nobody, to be taken over", None, {"take_over": "R"}, {}, "free"),
    ("nobody, to be gone on with", None, RESUME, {}, "refused: no recovery is recorded"),
    *((f"closed {result}", closed(result), {}, {}, "free") for result in ("recovered", "failed", "cancelled", "refused")),
    ("closed, of another scenario", closed("failed"), OTHER, {}, "free"),
    ("failed, to be gone on with", closed("failed"), RESUME, {}, "adopt"),
    ("cancelled, to be gone on with", closed("cancelled"), RESUME, {}, "adopt"),
    ("recovered, to be gone on with", closed("recovered"), RESUME, {}, "refused: it ended, recovered"),
    ("refused, to be gone on with", closed("refused"), RESUME, {}, "refused: it ended, refused"),
    ("failed, to be gone on with by another scenario", closed("failed"), {**RESUME, **OTHER}, {}, "refused: it is one of database_corruption"),
    ("closed, another to be gone on with", closed("failed"), {"resume": "Q"}, {}, "refused: the last one there is run R"),
    ("held by us", HELD, {"attempt": "aaaa"}, {}, "own"),
    ("held by us, whatever is asked", HELD, {"attempt": "aaaa", "resume": "Q", **OTHER}, {}, "own"),
    ("held, nobody says who he is", dataclasses.replace(HELD, attempt=""), {"attempt": ""}, {}, "refused: holds titan-1"),
    ("closed by us", closed("recovered"), {"attempt": "aaaa"}, {}, "free"),
    ("held", HELD, {}, {}, "refused: holds titan-1"),
    ("held, no sign for long", OLD, {}, {}, "refused: holds titan-1"),
    ("held, no sign for a year", dataclasses.replace(HELD, sign=NOW - 3e7), {}, {}, "refused: holds titan-1"),
    ("held, holder dead", HELD, {}, {"holder_dead": True}, "adopt"),
    ("held, holder dead, at work", HELD, {}, {"holder_dead": True, "busy": ["x"]}, "adopt"),
    ("held, holder dead, another scenario", HELD, OTHER, {"holder_dead": True}, "take"),
    ("held, holder dead, to be gone on with", HELD, RESUME, {"holder_dead": True}, "adopt"),
    ("held, holder dead, to be gone on with by another scenario", HELD, {**RESUME, **OTHER}, {"holder_dead": True}, "refused: it is one of"),
    ("held, holder dead, another to be gone on with", HELD, {"resume": "Q"}, {"holder_dead": True}, "refused: the last one there is run R"),
    ("held, taken over", HELD, {"take_over": "R"}, {"busy": ["x"]}, "adopt"),
    ("held, taken over by another scenario", HELD, {"take_over": "R", **OTHER}, {}, "take"),
    ("held, taken over just now", dataclasses.replace(HELD, adopted=True), {"take_over": "R"}, {}, "refused: since 12:00:03 UTC"),
    ("held, taken over just now by one who is dead", dataclasses.replace(HELD, adopted=True), {"take_over": "R"}, {"holder_dead": True}, "adopt"),
    ("held, taken over a while ago", dataclasses.replace(HELD, adopted=True, since=NOW - 5), {"take_over": "R"}, {}, "adopt"),
    ("held, taken over by a clock that was set back", dataclasses.replace(HELD, adopted=True, since=NOW + 5), {"take_over": "R"}, {}, "adopt"),
    ("held, that taking of it to be taken over", dataclasses.replace(HELD, adopted=True), {"take_over": "R/3"}, {}, "adopt"),
    ("held, an earlier taking to be taken over", HELD, {"take_over": "R/2"}, {"holder_dead": True}, "refused: last taking there is R/3, held"),
    ("held by us, taken over from an earlier taking", HELD, {"attempt": "aaaa", "take_over": "R/2"}, {}, "own"),
    ("closed, an earlier taking to be taken over", closed("recovered"), {"take_over": "R/2"}, {}, "refused: R/3, recovered"),
    ("closed, that taking to be taken over", closed("failed"), {"take_over": "R/3"}, {}, "free"),
    ("nobody, a taking to be taken over", None, {"take_over": "R/3"}, {}, "refused: no recovery is recorded"),
    ("held, another to be taken over", HELD, {"take_over": "Q"}, {}, "refused: holds titan-1"),
    ("held, to be gone on with, a sign just now", HELD, RESUME, {}, "refused: holds titan-1"),
    ("held, to be gone on with, no sign", OLD, RESUME, {}, "adopt"),
    ("held, to be gone on with, no sign but at work", OLD, RESUME, {"busy": ["redis_stage (pid 7)"]}, "refused: redis_stage (pid 7) at work"),
    ("held, to be gone on with, at the ttl", dataclasses.replace(HELD, sign=NOW - 30), RESUME, {}, "refused: holds titan-1"),
    ("held, to be gone on with, longer ttl", OLD, {**RESUME, "ttl": 60}, {}, "refused: holds titan-1"),
    ("held, to be gone on with, clock set back", dataclasses.replace(HELD, sign=NOW + 500), RESUME, {}, "refused: last sign 0 s ago"),
    ("held, another to be gone on with", OLD, {"resume": "Q"}, {}, "refused: holds titan-1"),
]


@pytest.mark.parametrize(("lease", "wishes", "known", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_decide(lease: Lease | None, wishes: dict[str, Any], known: dict[str, Any], expected: str) -> None:
    request = dataclasses.replace(ASK, **wishes)
    found = _lease.decide(lease, request, NOW, **known, came_to="in redis_swap")
    kind, _colon, reason = expected.partition(": ")
    assert found.kind == kind and reason in found.reason, found
    run, at = {"free": ("N", 2000.0), "take": ("N", 2000.0), "own": ("R", 1000.0), "adopt": ("R", 1000.0), "refused": ("", 0.0)}[kind]
    assert (found.run_id, found.incident_at) == (run, at), "who goes on with a run goes on under its id and on its clock"
    assert ("broke off in redis_swap" in found.reason) == (kind in ("adopt", "take"))


def test_the_refusal_says_who_and_since_when_and_what_to_do() -> None:
    assert _lease.decide(HELD, ASK, NOW).reason == (
        "Run R (scenario database_corruption, epoch 3) holds titan-1 since 12:00:03 UTC: ann@bastion, last sign 4 s ago. "
        "Wait for its end; if you know that it is dead: titan-dr recover database_corruption --take-over R, or ansible-playbook -e titan_dr_take_over=R"
    )
    later = _lease.decide(HELD, ASK, NOW + 86400).reason
    assert "since 2026-01-01 12:00:03 UTC" in later and "?@?" in _lease.describe(dataclasses.replace(HELD, owner={}), NOW, "x")


@dataclasses.dataclass
class Operator:
    """A recovery and what it believes; it may be dead, or sleep and wake up."""

    name: str
    attempt: str = ""
    scenario: str = ""
    run: str = ""
    incident_at: float = 0.0
    goes_on_with: str = ""
    epoch: int = 0
    alive: bool = False
    asleep: bool = False
    working: bool = False


@pytest.mark.parametrize("seed", range(8))
def test_thousands_of_schedules(seed: int) -> None:
    """Two or three operators who crash, sleep, wake up, clash and take over, on a clock that jumps."""
    dice = random.Random(seed)
    seen = {"free": 0, "own": 0, "adopt": 0, "take": 0, "refused": 0, "fenced": 0}
    for schedule in range(500):
        operators = [Operator(name) for name in ("ann", "bob", "eve")[: dice.choice((2, 3))]]
        now, lease, holder = 1e6, None, None
        holders: dict[int, str] = {}
        incidents: dict[str, float] = {}
        for step in range(80):
            now += dice.choice((0.1, 1.0, 20.0, 40.0, -5.0))
            who = dice.choice(operators)
            what = dice.choice(("start", "start", "take", "take", "take", "command", "command", "end", "crash", "sleep", "wake", "close"))
            if what == "start" and not who.alive:
                who.__dict__.update(Operator(who.name, f"{seed}-{schedule}-{step}", dice.choice("xy"), f"{who.name}{step}", now, alive=True).__dict__)
            if not who.alive or (who.asleep and what != "wake"):
                continue
            if what == "sleep":
                who.asleep = True
            elif what == "wake":
                who.asleep = False
            elif what == "crash":
                # What it began on the server may work on.
                who.alive = False
            elif what == "take":
                dead = holder is not None and not holder.alive and dice.random() < 0.7
                busy = ["x"] if holder and holder.working else []
                known = lease.run_id if lease else "Q"
                request = Request(
                    who.run,
                    who.attempt,
                    who.scenario,
                    who.incident_at,
                    dice.choice(("", "", "", known)),
                    dice.choice(("", "", "", "", "", known, "Q")),
                    server="s",
                )
                found = _lease.decide(lease, request, now, busy, dead)
                seen[found.kind] += 1
                if found.kind == "own":
                    assert lease and holder is who and lease.attempt == who.attempt
                elif found.kind != "refused":
                    if lease and lease.state == "held":
                        stale = request.resume == lease.run_id and now - lease.sign > 30 and not busy
                        named = request.take_over == lease.run_id and not (lease.adopted and 0 <= now - lease.since < 5)
                        assert dead or named or stale, "a live holder loses it to nobody who does not name its run"
                        assert (found.kind == "adopt") == (lease.scenario == who.scenario)
                    fresh = _lease.grant(lease, found, request, {}, now)
                    assert fresh.epoch == (lease.epoch if lease else 0) + 1 and fresh.epoch not in holders
                    if found.kind == "adopt":
                        assert lease and (fresh.run_id, fresh.incident_at) == (lease.run_id, incidents[lease.run_id]) and fresh.adopted
                    else:
                        assert fresh.run_id == who.run and not fresh.adopted
                    if holder:
                        holder.working = False  # ended, or there would be no lock
                    incidents.setdefault(fresh.run_id, fresh.incident_at)
                    lease, holder, who.epoch, who.goes_on_with = fresh, who, fresh.epoch, fresh.run_id
                    holders[fresh.epoch] = who.attempt
            elif what == "command" and who.epoch:
                refused = _lease.admit(lease, Mark(who.goes_on_with, who.attempt, who.epoch), now, "s")
                assert lease
                current = lease.epoch == who.epoch and lease.state == "held"
                assert (refused == "") == current, "an old epoch is always refused, the holder never"
                assert not current or holders[lease.epoch] == who.attempt, "nobody else works under its epoch"
                halts = _lease.admit(lease, Mark(who.goes_on_with, who.attempt, who.epoch), now, "s", halts=True)
                assert (halts == "") == (lease.epoch == who.epoch)
                assert bool(_lease.admit(lease, Mark("z", "z", 0), now, "s")) == (lease.state == "held")
                assert _lease.admit(lease, Mark("z", "z", 0), now, "s", halts=True) == ""
                seen["fenced"] += bool(refused)
                if current:
                    lease, who.working = dataclasses.replace(lease, sign=now), True
            elif what == "end":
                who.working = False
            elif what == "close" and lease and lease.state == "held" and lease.attempt == who.attempt:
                lease = dataclasses.replace(lease, state="closed", result=dice.choice(("recovered", "failed", "cancelled", "refused")))
                who.working = False
    assert min(seen.values()) > 50, seen


# --- who may work -----------------------------------------------------------------------------------------------------

ADMITTED: list[tuple[str, Lease | None, str, bool, bool]] = [
    ("the holder", HELD, "R/aaaa/3", True, True),
    ("an older epoch", HELD, "R/aaaa/2", False, False),
    ("a later epoch", HELD, "R/aaaa/4", False, False),
    ("another run of this epoch", HELD, "Q/aaaa/3", False, False),
    ("no epoch", HELD, "N/bbbb/0", False, True),
    ("after it was closed", closed("failed"), "R/aaaa/3", False, True),
    ("older, after it was closed", closed("failed"), "R/aaaa/2", False, False),
    ("no epoch, closed", closed("failed"), "N/bbbb/0", True, True),
    ("no epoch, none", None, "N/bbbb/0", True, True),
    ("an epoch, none", None, "R/aaaa/3", False, True),
]


@pytest.mark.parametrize(("lease", "mark", "works", "halts"), [row[1:] for row in ADMITTED], ids=[row[0] for row in ADMITTED])
def test_admit(lease: Lease | None, mark: str, works: bool, halts: bool) -> None:
    run_id, attempt, epoch = mark.split("/")
    asked = Mark(run_id, attempt, int(epoch))
    why = _lease.admit(lease, asked, NOW, "titan-1")
    assert (why == "") == works and (_lease.admit(lease, asked, NOW, "titan-1", halts=True) == "") == halts
    assert works or ("titan-1" in why and why.startswith("Refused") and (epoch == "0" or f"run {run_id}, epoch {epoch}" in why))


# --- on the disk ------------------------------------------------------------------------------------------------------


def test_what_was_written_is_read(lease_dirs: Path) -> None:
    assert _lease.read() is None
    _lease.write(HELD)
    os.utime(_lease.lease_path(), (NOW, NOW - 9))
    assert _lease.read() == dataclasses.replace(HELD, sign=NOW - 9)
    path = lease_dirs / "state" / "lease.json"
    assert path.stat().st_mode & 0o777 == 0o600 and [item.name for item in path.parent.iterdir()] == ["lease.json"]
    assert set(json.loads(path.read_text())) == {
        "epoch", "run_id", "attempt", "scenario", "incident_at", "since", "owner", "state", "result", "adopted"
    }  # fmt: skip


def test_a_sign_is_the_time_of_the_file() -> None:
    _lease.sign()
    _lease.write(HELD)
    os.utime(_lease.lease_path(), (1, 1))
    _lease.sign()
    found = _lease.read()
    assert found and abs(found.sign - time.time()) < 5


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"epoch": 3}'])
def test_a_damaged_lease_is_not_none(lease_dirs: Path, text: str) -> None:
    _lease.write(HELD)
    (lease_dirs / "state" / "lease.json").write_text(text)
    with pytest.raises(_lease.LeaseError, match="damaged"):
        _lease.read()


def test_fields_of_a_later_version_do_no_harm(lease_dirs: Path) -> None:
    _lease.write(HELD)
    path = lease_dirs / "state" / "lease.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "later": 1}))
    assert _lease.read() is not None


def test_locks() -> None:
    one, two = _lease.lock(fcntl.LOCK_SH, 0), _lease.lock(fcntl.LOCK_SH, 0)
    assert one is not None and two is not None and _lease.lock(fcntl.LOCK_EX, 0.05) is None
    os.close(one)
    assert _lease.lock(fcntl.LOCK_EX, 0.05) is None
    os.close(two)
    alone = _lease.lock(fcntl.LOCK_EX, 0)
    assert alone is not None and _lease.lock(fcntl.LOCK_SH, 0.05) is None
    os.close(alone)


def test_a_lock_file_that_was_removed_locks_nobody_out_and_nobody_in(lease_dirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock
    removed = []

    def remove_first(handle: int, kind: int) -> None:
        if not removed:
            removed.append(handle)
            (lease_dirs / "run" / "lease").unlink()
        real(handle, kind)

    monkeypatch.setattr(_lease.fcntl, "flock", remove_first)
    handle = _lease.lock(fcntl.LOCK_EX, 1)
    assert handle is not None and os.path.samestat(os.fstat(handle), (lease_dirs / "run" / "lease").stat())
    os.close(handle)


# --- around the work of a module --------------------------------------------------------------------------------------


class Module:
    """As much of a module as the guard asks for."""

    def __init__(self, check_mode: bool = False) -> None:
        self.check_mode = check_mode
        self.result: dict[str, Any] = {}

    def fail_json(self, **result: Any) -> None:
        self.result = result
        raise SystemExit(1)

    def exit_json(self) -> None:
        raise SystemExit(0)


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda text: monkeypatch.setenv("TITAN_DR_COMMAND", text)


@pytest.fixture
def held(marked: Any) -> None:
    _lease.write(HELD)
    os.utime(_lease.lease_path(), (1, 1))
    marked("R/aaaa/3")


def events() -> list[tuple[str, str]]:
    return [(row["step"], row["event"]) for row in _journal.read(_lease.journal_path())]


def last_sign() -> float:
    return os.stat(_lease.lease_path()).st_mtime


def test_a_command_is_written_down_before_and_after(held: None) -> None:
    with _lease.command(Module(), "step", {"size": 7}):
        assert events() == [("step", "intent")] and last_sign() > 1
        os.utime(_lease.lease_path(), (1, 1))
        assert _lease.lock(fcntl.LOCK_EX, 0) is None
    rows = _journal.read(_lease.journal_path())
    assert last_sign() > 1 and [row["event"] for row in rows] == ["intent", "done"]
    assert {name: rows[0][name] for name in ("run_id", "attempt", "epoch", "precondition", "pid")} == {
        "run_id": "R", "attempt": "aaaa", "epoch": 3, "precondition": {"size": 7}, "pid": os.getpid()
    }  # fmt: skip
    assert abs(rows[0]["at"] - time.time()) < 5 and "precondition" not in rows[1]
    free = _lease.lock(fcntl.LOCK_EX, 0)
    assert free is not None
    os.close(free)


@pytest.mark.parametrize(
    ("way", "event", "detail"),
    [
        (SystemExit(0), "done", None),
        (SystemExit(), "done", None),
        (SystemExit(1), "failed", "exit 1"),
        (OSError("a secret"), "failed", "OSError"),
        (KeyboardInterrupt(), "failed", "KeyboardInterrupt"),
    ],
)
def test_every_way_out_is_written_down(held: None, way: BaseException, event: str, detail: str | None) -> None:
    with pytest.raises(type(way)), _lease.command(Module(), "step"):
        raise way
    row = _journal.read(_lease.journal_path())[-1]
    assert (row["event"], row.get("detail")) == (event, detail)


@pytest.mark.parametrize("mark", ["R/aaaa/2", "N/bbbb/0", "", "nonsense", "R/aaaa/x"])
def test_what_is_not_the_holders_is_refused_before_it_begins(held: None, marked: Any, mark: str) -> None:
    marked(mark)
    module = Module()
    with pytest.raises(SystemExit), _lease.command(module, "step"):
        pytest.fail("it began")
    assert module.result["msg"].startswith("Refused") and module.result["titan_dr"] == {"refused": module.result["msg"]}
    assert events() == [] and last_sign() == 1, "a stranger's command is no sign of the holder"


def test_by_itself_when_nobody_holds_the_lease(lease_dirs: Path) -> None:
    with _lease.command(Module(), "step"):
        pass
    assert events() == [("step", "intent"), ("step", "done")] and not (lease_dirs / "state" / "lease.json").exists()
    assert {path.name: path.stat().st_mode & 0o777 for path in lease_dirs.rglob("*")} == {
        "state": 0o755, "run": 0o755, "lease": 0o600, "journal.jsonl": 0o600
    }  # fmt: skip


def test_check_mode_asks_nothing_and_writes_nothing(held: None, marked: Any, lease_dirs: Path) -> None:
    marked("R/aaaa/1")
    with pytest.raises(OSError), _lease.command(Module(check_mode=True), "step"):
        raise OSError
    assert [path.name for path in lease_dirs.rglob("*")] == ["state", "lease.json"] and last_sign() == 1


@pytest.fixture
def read_only(lease_dirs: Path) -> Iterator[Path]:
    """A state directory on a file system that takes no writes."""
    folder = lease_dirs / "state"
    folder.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_journal_that_cannot_be_written_is_refused_before_the_work(read_only: Path) -> None:
    module = Module()
    with pytest.raises(SystemExit), _lease.command(module, "step"):
        pytest.fail("it began")
    assert "journal.jsonl cannot be written: Read-only file system" in module.result["titan_dr"]["refused"]
    with _lease.command(Module(), "halt", halts=True):
        pass


def test_a_full_disk_is_refused_before_the_work_and_does_not_undo_it_afterwards(held: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: str, row: dict[str, Any]) -> None:
        raise OSError(28, "No space left on device")

    with _lease.command(Module(), "step"):
        monkeypatch.setattr(_journal, "append", full)
    assert events() == [("step", "intent")], "without its end it counts as broken off"
    module = Module()
    with pytest.raises(SystemExit), _lease.command(module, "step"):
        pytest.fail("it began")
    assert "No space left" in module.result["msg"]


@pytest.mark.parametrize("what", ["run directory", "lease", "journal", "mark", "lock"])
def test_a_halt_is_stopped_by_nothing_but_a_later_run(held: None, lease_dirs: Path, marked: Any, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    if what == "run directory":
        (lease_dirs / "run").write_text("a file")
    elif what == "lease":
        (lease_dirs / "state" / "lease.json").write_text("{")
    elif what == "journal":
        (lease_dirs / "state" / "journal.jsonl").mkdir()
    elif what == "mark":
        marked("nonsense")
    taken = _lease.lock(fcntl.LOCK_EX, 0) if what == "lock" else None
    monkeypatch.setattr(_lease, "WAIT", 0.1)
    try:
        module = Module()
        with pytest.raises(SystemExit), _lease.command(module, "step"):
            pytest.fail("anything else is stopped by it")
        assert module.result["msg"].startswith("Refused")
        halted = []
        with _lease.command(Module(), "halt", halts=True):
            halted.append(1)
        assert halted
    finally:
        if taken is not None:
            os.close(taken)


def test_an_old_run_does_not_halt_what_a_newer_one_resumed(held: None, marked: Any) -> None:
    marked("R/aaaa/2")
    module = Module()
    with pytest.raises(SystemExit), _lease.command(module, "halt", halts=True):
        pytest.fail("it began")
    assert "which lost the server" in module.result["titan_dr"]["refused"]


def test_close(held: None) -> None:
    with _lease.command(Module(), "resume") as command:
        command.close("recovered")
    found = _lease.read()
    assert found and (found.state, found.result, found.epoch) == ("closed", "recovered", 3) and events()[-1] == ("resume", "done")
    module = Module()
    with pytest.raises(SystemExit), _lease.command(module, "step"):
        pytest.fail("it began")
    assert "the lease is closed" in module.result["msg"]


def test_a_command_by_itself_has_nothing_to_close() -> None:
    _lease.write(closed("failed"))
    with _lease.command(Module(), "resume") as command:
        command.close("recovered")
    assert _lease.read().result == "failed"  # type: ignore[union-attr]


def test_a_command_is_cheap(held: None) -> None:
    took = []
    for _number in range(50):
        began = time.monotonic()
        with _lease.command(Module(), "step"):
            pass
        took.append(time.monotonic() - began)
    assert min(took) < 0.005


# --- with real processes ----------------------------------------------------------------------------------------------


def child(function: Callable[[], Any]) -> int:
    """Run it in a process of its own."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with contextlib.suppress(SystemExit):
            function()
        code = 0
    finally:
        os._exit(code)


def wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def locked() -> bool:
    handle = _lease.lock(fcntl.LOCK_EX, 0)
    if handle is not None:
        os.close(handle)
    return handle is None


def work_for_long() -> None:
    with _lease.command(Module(), "step"):
        time.sleep(60)


def test_sigkill_frees_the_lock_and_leaves_the_intent(held: None) -> None:
    pid = child(work_for_long)
    wait_for(events)
    assert locked()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert not locked() and events() == [("step", "intent")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_other_signals_let_it_clean_up_and_say_that_it_failed(held: None, tmp_path: Path, number: int) -> None:
    def work() -> None:
        with _lease.command(Module(), "step"):
            try:
                (tmp_path / "working").touch()
                time.sleep(60)
            finally:
                os.kill(os.getpid(), number) if number != signal.SIGINT else None  # as `timeout` does
                (tmp_path / "cleaned").touch()

    pid = child(work)
    wait_for((tmp_path / "working").exists)
    os.kill(pid, number)
    os.waitpid(pid, 0)
    row = _journal.read(_lease.journal_path())[-1]
    detail = "KeyboardInterrupt" if number == signal.SIGINT else f"exit {128 + number}"
    assert (row["event"], row["detail"]) == ("failed", detail) and (tmp_path / "cleaned").exists() and not locked()


def test_signals_are_as_they_were_afterwards(held: None) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with _lease.command(Module(), "step"):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("end", ["done", "failed", "raised", "killed"])
def test_a_process_in_the_background_keeps_the_lock_and_writes_the_end(held: None, tmp_path: Path, end: str) -> None:
    go = tmp_path / "go"
    background: list[int] = []

    def later(command: _lease.Command) -> None:
        os.setsid()
        with command.carried_on():
            wait_for(go.exists)
            if end == "raised":
                raise OSError
            if end == "failed":
                command.end("failed")

    with pytest.raises(SystemExit), _lease.command(Module(), "step") as command:
        background.append(child(lambda: later(command)))
        command.leave()
        Module().exit_json()
    wait_for(lambda: len(events()) == 2)
    assert locked() and events() == [("step", "intent")] * 2, "it works on, and nobody says that it is done"
    if end == "killed":
        os.kill(background[0], signal.SIGKILL)
    os.utime(_lease.lease_path(), (1, 1))
    go.touch()
    os.waitpid(background[0], 0)
    assert not locked()
    assert events()[2:] == ([] if end == "killed" else [("step", "done" if end == "done" else "failed")])
    assert (last_sign() > 1) == (end != "killed")


def test_programs_that_it_runs_do_not_keep_the_lock(held: None) -> None:
    program = None
    with _lease.command(Module(), "step"):
        program = subprocess.Popen(["sleep", "60"])
    try:
        assert not locked()
    finally:
        program.kill()
        program.wait()
