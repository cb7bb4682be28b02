# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""The lease of a server: one recovery at a time, and what the last one left can be gone on with.

Each taking of the lease has an epoch, one above the last. Every command that changes the server carries the epoch of its run in TITAN_DR_COMMAND and is
refused when it is not the lease's any more: a run that was given up for dead and wakes up again changes nothing.
While a command works it holds a shared lock, and taking the lease needs the exclusive one: who got it knows that no command of the old holder works.
The time of the lease's file is the last sign of its holder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import threading
import time
import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _journal, _marked, _state
from ansible_collections.titan.disaster_recovery.plugins.module_utils._marked import Mark

RUN_DIR = "/run/titan-dr"
HELD, CLOSED = "held", "closed"
# Results of a run that can be gone on with.
UNFINISHED = ("failed", "cancelled")
# Two who take over the same run at the same moment mean its old holder, not each other.
JUST_TAKEN = 5.0
# Seconds a command waits while another run takes the lease, which itself takes milliseconds.
WAIT = 5.0


class LeaseError(Exception):
    """The lease cannot be read."""


@dataclasses.dataclass(frozen=True)
class Lease:
    epoch: int
    run_id: str
    attempt: str
    scenario: str
    incident_at: float
    since: float
    owner: dict[str, t.Any]
    state: str
    result: str = ""
    adopted: bool = False
    sign: float = 0.0  # the time of the file


@dataclasses.dataclass(frozen=True)
class Request:
    run_id: str
    attempt: str
    scenario: str
    incident_at: float
    resume: str = ""
    take_over: str = ""
    ttl: float = 30.0
    server: str = "this server"


@dataclasses.dataclass(frozen=True)
class Decision:
    kind: str  # free | own | adopt | take | refused
    run_id: str = ""
    incident_at: float = 0.0
    reason: str = ""  # why it is refused, else a note


# --- what may be done, from what is known -------------------------------------------------------------------------------


def _clock(at: float, now: float) -> str:
    text = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
    return text if abs(now - at) > 12 * 3600 else text[11:]


def describe(lease: Lease, now: float, server: str, busy: t.Sequence[str] = ()) -> str:
    """Who holds the server, and what can be done about it."""
    owner = f"{lease.owner.get('user', '?')}@{lease.owner.get('host', '?')}"
    working = f", {', '.join(busy)} at work" if busy else ""
    return (
        f"Run {lease.run_id} (scenario {lease.scenario}, epoch {lease.epoch}) holds {server} since {_clock(lease.since, now)}: {owner}, "
        f"last sign {max(0.0, now - lease.sign):.0f} s ago{working}. Wait for its end; if you know that it is dead: "
        f"titan-dr recover {lease.scenario} --take-over {lease.run_id}, or ansible-playbook -e titan_dr_take_over={lease.run_id}"
    )


def _not_the_one(lease: Lease | None, request: Request) -> str:
    """Why the run that is to be gone on with cannot be."""
    wish = f"Run {request.resume} cannot be gone on with on {request.server}"
    if lease is None:
        return f"{wish}: no recovery is recorded there"
    if lease.run_id != request.resume:
        return f"{wish}: the last one there is run {lease.run_id} (scenario {lease.scenario}, {lease.result or lease.state})"
    if lease.state == CLOSED and lease.result not in UNFINISHED:
        return f"{wish}: it ended, {lease.result}"
    return f"{wish} by scenario {request.scenario}: it is one of {lease.scenario}" if lease.scenario != request.scenario else ""


def _taking(lease: Lease | None) -> str:
    """One taking of the lease: a run that is gone on with is taken again."""
    return f"{lease.run_id}/{lease.epoch}" if lease else ""


def decide(lease: Lease | None, request: Request, now: float, busy: t.Sequence[str] = (), holder_dead: bool = False, came_to: str = "") -> Decision:
    """Whether the lease may be taken, and under which run. `came_to`: how far the run of the lease came, for the note."""
    wrong = _not_the_one(lease, request) if request.resume else ""
    own = lease is not None and lease.state == HELD and lease.attempt == request.attempt != ""
    if lease is not None and own:
        return Decision("own", lease.run_id, lease.incident_at)
    if "/" in request.take_over and request.take_over != _taking(lease):
        there = f"the last taking there is {_taking(lease)}, {lease.result or lease.state}" if lease else "no recovery is recorded there"
        return Decision("refused", reason=f"Run {request.take_over.replace('/', ', epoch ')}, does not hold {request.server} any more: {there}")
    if lease is not None and lease.state == HELD:
        stale = now - lease.sign > request.ttl and not busy
        just_taken = lease.adopted and 0 <= now - lease.since < JUST_TAKEN
        named = request.take_over == _taking(lease) or (request.take_over == lease.run_id and not just_taken)
        if not (holder_dead or named or (request.resume == lease.run_id and stale)):
            return Decision("refused", reason=describe(lease, now, request.server, busy))
    if wrong:
        return Decision("refused", reason=wrong)
    if lease is not None and (request.resume or (lease.state == HELD and lease.scenario == request.scenario)):
        return Decision("adopt", lease.run_id, lease.incident_at, f"goes on with run {lease.run_id}, which broke off {came_to}".rstrip())
    if lease is not None and lease.state == HELD:
        note = f"run {lease.run_id} (scenario {lease.scenario}) broke off {came_to}".rstrip()
        return Decision("take", request.run_id, request.incident_at, note)
    return Decision("free", request.run_id, request.incident_at)


def grant(lease: Lease | None, decision: Decision, request: Request, owner: dict[str, t.Any], now: float) -> Lease:
    """The lease after it was taken."""
    return Lease(
        epoch=(lease.epoch if lease else 0) + 1,
        run_id=decision.run_id,
        attempt=request.attempt,
        scenario=request.scenario,
        incident_at=decision.incident_at,
        since=now,
        owner=owner,
        state=HELD,
        adopted=decision.kind == "adopt",
        sign=now,
    )


def admit(lease: Lease | None, mark: Mark, now: float, server: str, halts: bool = False) -> str:
    """Why a command with this mark must not work now; empty when it may. `halts`: it halts trading, which only a later run may prevent."""
    current = lease is not None and (lease.epoch, lease.run_id) == (mark.epoch, mark.run_id)
    if halts and (mark.epoch == 0 or lease is None or current):
        return ""
    if lease is not None and lease.state == HELD:
        if current:
            return ""
        who = f"this command is of run {mark.run_id}, epoch {mark.epoch}, which lost the server. " if mark.epoch else ""
        return f"Refused: {who}{describe(lease, now, server)}"
    if mark.epoch == 0:
        return ""
    there = f"the lease is closed (run {lease.run_id}, epoch {lease.epoch}, {lease.result})" if lease else "there is no lease any more"
    return f"Refused on {server}: this command is of run {mark.run_id}, epoch {mark.epoch}, and {there}. Start the recovery again"


# --- on the disk ---------------------------------------------------------------------------------------------------------


def lease_path() -> str:
    return _state.path("lease.json")


def journal_path() -> str:
    return _state.path("journal.jsonl")


def server_name() -> str:
    return os.uname().nodename


def read() -> Lease | None:
    """The lease as it is; None when there never was one."""
    try:
        with open(lease_path(), encoding="utf-8") as handle:
            found = json.load(handle)
            sign = os.fstat(handle.fileno()).st_mtime
        known = {field.name for field in dataclasses.fields(Lease)}
        return Lease(**{**{name: value for name, value in found.items() if name in known}, "sign": sign})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError) as exc:
        raise LeaseError(f"{lease_path()} is damaged. When you know that no recovery works on {server_name()}: remove it") from exc


def write_file(path: str, text: str, mode: int) -> None:
    """Replace the file as a whole, so that it is there after a crash."""
    with open(os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as handle:
        os.fchmod(handle.fileno(), mode)
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.rename(path + ".new", path)
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write(lease: Lease) -> None:
    os.makedirs(_state.STATE_DIR, mode=0o755, exist_ok=True)
    row = dataclasses.asdict(lease)
    del row["sign"]
    write_file(lease_path(), json.dumps(row) + "\n", 0o600)


def sign() -> None:
    """The holder lives."""
    with contextlib.suppress(OSError):
        os.utime(lease_path())


def lock(kind: int, wait: float) -> int | None:
    """The lock file with this lock on it; None when it was not to be had in time. Closing it (everywhere it was inherited) unlocks."""
    os.makedirs(RUN_DIR, mode=0o755, exist_ok=True)
    path = os.path.join(RUN_DIR, "lease")
    end = time.monotonic() + wait
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
            # A file that was removed meanwhile is locked for nobody.
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)
        if time.monotonic() > end:
            return None
        time.sleep(0.01)


# --- around the work of a module ------------------------------------------------------------------------------------------


class Command:
    """A step that works under the lease."""

    def __init__(self, step: str, mark: Mark, precondition: t.Any = None, works: bool = True) -> None:
        self.step, self.mark, self.precondition, self.works = step, mark, precondition, works

    def begin(self) -> None:
        os.makedirs(_state.STATE_DIR, mode=0o755, exist_ok=True)
        self._append(_journal.INTENT, {} if self.precondition is None else {"precondition": self.precondition})
        self._sign()

    def end(self, event: str, detail: str = "") -> None:
        """The first end counts. That it cannot be written does not undo the work: without it the step counts as broken off."""
        if self.works:
            self.works = False
            with contextlib.suppress(OSError):
                self._append(event, {"detail": detail} if detail else {})
            self._sign()

    def leave(self) -> None:
        """A process that was forked goes on with the work, keeps the lock and writes the end."""
        self.works = False

    @contextlib.contextmanager
    def carried_on(self) -> t.Iterator[None]:
        """In that process, around its work."""
        with contextlib.suppress(OSError):
            self.begin()
        try:
            yield
        except BaseException as exc:
            self.end(_journal.FAILED, type(exc).__name__)
            raise
        self.end(_journal.DONE)

    def close(self, result: str) -> None:
        """The run has ended with this command; what of it still comes is refused."""
        lease = read()
        if self.mark.epoch and lease is not None and lease.state == HELD:
            write(dataclasses.replace(lease, state=CLOSED, result=result))

    def _sign(self) -> None:
        if self.mark.epoch:
            sign()

    def _append(self, event: str, more: dict[str, t.Any]) -> None:
        row = {"at": time.time(), **dataclasses.asdict(self.mark), "step": self.step, "event": event, "pid": os.getpid(), **more}
        _journal.append(journal_path(), row)


@contextlib.contextmanager
def _orderly_end() -> t.Iterator[None]:
    """A signal that would end the process on the spot lets it clean up and say that it failed. `timeout` sends it twice: the first one counts."""
    stopping: list[int] = []

    def stop(number: int, frame: t.Any) -> None:
        if not stopping:
            stopping.append(number)
            raise SystemExit(128 + number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _work(command: Command) -> t.Iterator[Command]:
    try:
        yield command
    except SystemExit as exc:
        if exc.code in (None, 0):
            command.end(_journal.DONE)
        else:
            command.end(_journal.FAILED, f"exit {exc.code}")
        raise
    except BaseException as exc:
        command.end(_journal.FAILED, type(exc).__name__)
        raise
    command.end(_journal.DONE)


def _admitted(halts: bool) -> tuple[Mark, int | None, str]:
    """The mark of this command, the shared lock, and why it must not work."""
    mark, handle, text = Mark(), None, os.environ.get(_marked.VARIABLE, "")
    try:
        mark = _marked.parse(text) if text else mark
        handle = lock(fcntl.LOCK_SH, 1.0 if halts else WAIT)
        if handle is None and not halts:
            return mark, None, f"Refused: another run is taking {server_name()}. Look who it is, then run again"
        return mark, handle, admit(read(), mark, time.time(), server_name(), halts)
    except ValueError:
        why = f"{_marked.VARIABLE}={text} is not run/attempt/epoch"
    except (OSError, LeaseError) as exc:
        why = str(exc)
    # A halt is worth more than knowing whose it is.
    return mark, handle, "" if halts else f"Refused: {why}. Nothing was done"


@contextlib.contextmanager
def _guarded(module: t.Any, step: str, precondition: t.Any, halts: bool) -> t.Iterator[Command]:
    if module.check_mode:
        yield Command(step, Mark(), works=False)
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(_orderly_end())
        mark, handle, why = _admitted(halts)
        if handle is not None:
            stack.callback(os.close, handle)
        work = Command(step, mark, precondition)
        try:
            if not why:
                work.begin()
        except OSError as exc:
            why = "" if halts else f"Refused: {journal_path()} cannot be written: {exc.strerror or exc}. Nothing was done"
        if why:
            module.fail_json(msg=why, titan_dr={"refused": why})
        with _work(work):
            yield work


class command:
    """Around the work of a module: only under the lease of its run, or when nobody holds one; written down before and after.

    `halts`: the module halts trading. Only a later run stands in its way, no full disk does.
    """

    def __init__(self, module: t.Any, step: str, precondition: t.Any = None, halts: bool = False) -> None:
        self._inside = _guarded(module, step, precondition, halts)

    def __enter__(self) -> Command:
        return self._inside.__enter__()

    def __exit__(self, *exc: t.Any) -> None:
        self._inside.__exit__(*exc)
