# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _journal, _lease, _marked, _state
from ansible_collections.titan.disaster_recovery.plugins.module_utils._lease import Lease, Request
from ansible_collections.titan.disaster_recovery.plugins.modules import recovery_lease

# The marks of these tests are those of nobody else on this machine: processes are ended by them.
ME = str(os.getpid())
OWNER = {"user": "ann", "host": "bastion", "boot_id": "b", "pid": 1}


def ask(state: str, attempt: str = "bbbb", **more: Any) -> dict[str, Any]:
    wishes = {"state": state, "run_id": f"N{ME}", "attempt": attempt + ME, "scenario": "database_corruption", "incident_at": 2000.0, "owner": OWNER}
    return {**wishes, **more}


def hold(sign: float = 0.0, **more: Any) -> Lease:
    """Another's lease, with its last sign so many seconds ago."""
    now = time.time()
    lease = Lease(3, f"R{ME}", f"aaaa{ME}", "database_corruption", 1000.0, now - 60, {"user": "bob", "host": "desk"}, "held", **more)
    _lease.write(lease)
    os.utime(_lease.lease_path(), (now - sign, now - sign))
    return lease


def journal(*steps: tuple[str, str]) -> None:
    os.makedirs(_state.STATE_DIR, exist_ok=True)
    for step, event in steps:
        _journal.append(_lease.journal_path(), {"run_id": f"R{ME}", "step": step, "event": event})


def on_disk() -> Lease:
    found = _lease.read()
    assert found
    return found


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """A shell that works under this mark."""
    started: list[subprocess.Popen[bytes]] = []

    def run(mark: str, script: str = "echo; exec sleep 60", **options: Any) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(["bash", "-c", script], env={**os.environ, _marked.VARIABLE: mark}, stdout=subprocess.PIPE, **options))
        assert started[-1].stdout and started[-1].stdout.readline()
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def shared() -> Iterator[Callable[[], None]]:
    """Hold the lock as a command does that carries no mark."""
    held: list[int] = []

    def take() -> None:
        handle = _lease.lock(fcntl.LOCK_SH, 0)
        assert handle is not None
        held.append(handle)

    yield take
    for handle in held:
        with contextlib.suppress(OSError):
            os.close(handle)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery_lease, "LOCK_WITHIN", 0.2)


def test_a_blank_server(run_module: Any, lease_dirs: Path) -> None:
    result = run_module(recovery_lease, ask("held", deadline_at=2900.0))
    lease = {"run_id": f"N{ME}", "epoch": 1, "incident_at": 2000.0, "scenario": "database_corruption", "adopted": False, "since": on_disk().since}
    assert result["changed"] and result["lease"] == lease and result["steps"] == {} and result["ended"] == []
    assert result["titan_dr"] == {"notes": [], "lease": lease, "deadline_at": 2900.0}
    assert on_disk().owner == OWNER and on_disk().attempt == f"bbbb{ME}" and abs(on_disk().since - time.time()) < 10


def test_taking_it_again_is_a_sign_and_nothing_else(run_module: Any) -> None:
    run_module(recovery_lease, ask("held"))
    os.utime(_lease.lease_path(), (1, 1))
    again = run_module(recovery_lease, ask("held"))
    assert again["changed"] is False and again["lease"]["epoch"] == 1 and on_disk().sign > 1


def test_refused_says_who(run_module: Any) -> None:
    before = hold()
    for state in ("examined", "held"):
        result = run_module(recovery_lease, ask(state))
        assert result["failed"] and result["titan_dr"] == {"refused": result["msg"]}
        assert f"Run R{ME} (scenario database_corruption, epoch 3) holds {os.uname().nodename} since" in result["msg"] and "bob@desk" in result["msg"]
        assert result["holder"] == {"epoch": 3, "owner": {"user": "bob", "host": "desk"}}
    assert dataclasses.replace(on_disk(), sign=0) == before


@pytest.mark.parametrize(("state", "check"), [("examined", False), ("examined", True), ("held", True), ("released", True)])
def test_what_only_looks_changes_nothing(run_module: Any, lease_dirs: Path, state: str, check: bool) -> None:
    result = run_module(recovery_lease, ask(state), check=check)
    assert not result["failed"] and not lease_dirs.exists() and result["changed"] == (state == "held")
    assert state == "released" or (result["lease"]["epoch"], result["lease"]["run_id"]) == (0, f"N{ME}")
    hold()
    before = {path: path.read_bytes() for path in lease_dirs.rglob("*") if path.is_file()}
    run_module(recovery_lease, ask(state, dead_epoch=3), check=check)
    assert {path: path.read_bytes() for path in lease_dirs.rglob("*") if path.is_file()} == before


def test_examined_says_what_would_be_gone_on_with(run_module: Any) -> None:
    hold()
    journal(("server_baseline", "intent"), ("server_baseline", "done"), ("redis_swap", "intent"))
    result = run_module(recovery_lease, ask("examined", take_over=f"R{ME}"), check=True)
    assert (result["lease"]["run_id"], result["lease"]["incident_at"], result["lease"]["adopted"]) == (f"R{ME}", 1000.0, True)
    assert result["steps"] == {"server_baseline": "done", "redis_swap": "intent"}
    assert result["titan_dr"]["notes"] == [f"goes on with run R{ME}, which broke off in redis_swap"]


@pytest.mark.parametrize("wish", [{"dead_epoch": 3}, {"take_over": f"R{ME}"}, {"resume": f"R{ME}", "ttl": 20}])
def test_a_run_is_gone_on_with(run_module: Any, wish: dict[str, Any]) -> None:
    hold(sign=25)
    journal(("redis_stage", "intent"), ("redis_stage", "done"))
    result = run_module(recovery_lease, ask("held", **wish))
    assert result["changed"] and (result["lease"]["run_id"], result["lease"]["epoch"], result["lease"]["incident_at"]) == (f"R{ME}", 4, 1000.0)
    assert result["lease"]["adopted"] and result["steps"] == {"redis_stage": "done"}
    assert result["titan_dr"]["notes"] == [f"goes on with run R{ME}, which broke off after redis_stage"]
    again = run_module(recovery_lease, ask("held"))
    assert again["lease"] == result["lease"], "a run that goes on with another knows so for good"


def test_who_takes_over_what_was_just_taken_over_is_refused(run_module: Any) -> None:
    hold()
    run_module(recovery_lease, ask("held", take_over=f"R{ME}"))
    assert "epoch 4" in run_module(recovery_lease, ask("held", attempt="cccc", take_over=f"R{ME}"))["titan_dr"]["refused"]
    assert on_disk().attempt == f"bbbb{ME}"


@pytest.mark.parametrize("wish", [{"dead_epoch": 2}, {"dead_epoch": 4}, {"take_over": "Q"}, {"resume": f"R{ME}"}])
def test_what_does_not_take_it(run_module: Any, wish: dict[str, Any]) -> None:
    hold(sign=25)
    assert "refused" in run_module(recovery_lease, ask("held", **wish))["titan_dr"] and on_disk().epoch == 3


def test_another_scenario_begins_anew(run_module: Any) -> None:
    hold()
    result = run_module(recovery_lease, ask("held", dead_epoch=3, scenario="complete_system_failure"))
    assert (result["lease"]["run_id"], result["lease"]["epoch"], result["lease"]["incident_at"]) == (f"N{ME}", 4, 2000.0)
    assert result["titan_dr"]["notes"] == [f"run R{ME} (scenario database_corruption) broke off before its first step"] and result["steps"] == {}


def test_a_failed_run_is_gone_on_with(run_module: Any) -> None:
    hold(result="failed")
    _lease.write(dataclasses.replace(on_disk(), state="closed"))
    result = run_module(recovery_lease, ask("held", resume=f"R{ME}"))
    assert (result["lease"]["run_id"], result["lease"]["epoch"], result["lease"]["incident_at"]) == (f"R{ME}", 4, 1000.0)


# --- giving it back ----------------------------------------------------------------------------------------------------


def test_released(run_module: Any) -> None:
    run_module(recovery_lease, ask("held"))
    result = run_module(recovery_lease, ask("released", result="cancelled"))
    assert result["changed"] and (on_disk().state, on_disk().result) == ("closed", "cancelled") and result["lease"]["epoch"] == 1
    again = run_module(recovery_lease, ask("released", result="recovered"))
    assert again["changed"] is False and on_disk().result == "cancelled", "how it ended first counts"
    other = run_module(recovery_lease, ask("released", attempt="cccc"))
    assert other["changed"] is False and other["lease"] == {}
    assert run_module(recovery_lease, ask("held"))["lease"]["epoch"] == 2


def test_only_ones_own_is_released(run_module: Any) -> None:
    hold()
    result = run_module(recovery_lease, ask("released"))
    assert "holds" in result["titan_dr"]["refused"] and on_disk().state == "held"


def test_nothing_to_release(run_module: Any) -> None:
    assert run_module(recovery_lease, ask("released"))["changed"] is False


# --- what cannot be -----------------------------------------------------------------------------------------------------


def test_a_damaged_lease_is_refused(run_module: Any) -> None:
    hold()
    Path(_lease.lease_path()).write_text("{")
    for state in ("examined", "held", "released"):
        assert "is damaged" in run_module(recovery_lease, ask(state))["titan_dr"]["refused"]


@pytest.mark.parametrize("broken", ["full", "read-only", "file in the way", "run directory"])
def test_a_lease_that_cannot_be_written_is_refused(run_module: Any, lease_dirs: Path, broken: str) -> None:
    state = lease_dirs / "state"
    state.mkdir(parents=True)
    if broken in ("full", "read-only"):
        options = "size=4k" if broken == "full" else "ro"
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(state)], capture_output=True, check=False).returncode:
            pytest.skip("nothing can be mounted here")
        if broken == "full":
            (state / "filler").write_bytes(b"x" * 4096)
    elif broken == "file in the way":
        state.rmdir()
        state.touch()
    else:
        (lease_dirs / "run").touch()
    try:
        result = run_module(recovery_lease, ask("held"))
        assert "cannot be had" in result["titan_dr"]["refused"] and not (state / "lease.json").exists()
    finally:
        if os.path.ismount(state):
            subprocess.run(["umount", str(state)], check=True)
        (shutil.rmtree if state.is_dir() else os.unlink)(state)
    if broken != "run directory":
        assert run_module(recovery_lease, ask("held"))["lease"]["epoch"] == 1


# --- with real processes --------------------------------------------------------------------------------------------------


def test_a_command_that_works_stands_in_the_way(run_module: Any, shared: Any, impatient: None) -> None:
    """Without a mark: started by hand, or by a backup."""
    os.makedirs(_state.STATE_DIR)
    _journal.append(_lease.journal_path(), {"run_id": "", "step": "restore_point_create", "event": "intent", "pid": os.getpid()})
    shared()
    result = run_module(recovery_lease, ask("held", take_over=f"R{ME}"))
    assert f"restore_point_create (pid {os.getpid()}) still works" in result["titan_dr"]["refused"] and _lease.read() is None


def test_it_is_waited_for(run_module: Any) -> None:
    """The command ends while the lease is asked for."""
    ready, told = os.pipe()
    pid = os.fork()
    if not pid:
        _lease.lock(fcntl.LOCK_SH, 0)
        os.write(told, b"x")
        time.sleep(0.3)
        os._exit(0)
    os.read(ready, 1)
    began = time.monotonic()
    assert run_module(recovery_lease, ask("held"))["lease"]["epoch"] == 1 and time.monotonic() - began > 0.1
    os.waitpid(pid, 0)


def test_taking_over_ends_what_the_old_holder_runs(run_module: Any, start: Any, tmp_path: Path) -> None:
    hold()
    pids = tmp_path / "pids"
    script = f"env -i setsid sleep 61 & echo $! >{pids}; env -i sleep 62 & echo $! >>{pids}; echo; wait"
    processes = [
        start(f"R{ME}/aaaa{ME}/3", script),
        start(f"R{ME}/aaaa{ME}/3", "trap '' TERM; echo; while :; do sleep 0.1; done"),
        start(f"R{ME}/zzzz{ME}/2"),
        start(f"R{ME}/aaaa{ME}/0"),
    ]
    spared = [start(f"N{ME}/bbbb{ME}/0"), start(f"Q{ME}/cccc{ME}/0"), start(f"Q{ME}/cccc{ME}/4"), start("nonsense")]
    result = run_module(recovery_lease, ask("held", take_over=f"R{ME}"))
    assert result["lease"]["epoch"] == 4 and all(process.wait(5) for process in processes)
    assert all(_marked.look(int(pid)) is None for pid in pids.read_text().split())
    assert [process.poll() for process in spared] == [None] * 4, "ours, and those of others who look or came later"
    assert sum(f"pid {process.pid} (" in text for process in processes for text in result["ended"]) == 4
    assert any("ended on" in note for note in result["titan_dr"]["notes"])


def test_what_a_closed_run_left_is_ended_too(run_module: Any, start: Any) -> None:
    hold(result="failed")
    _lease.write(dataclasses.replace(on_disk(), state="closed"))
    left = start(f"R{ME}/aaaa{ME}/3")
    assert len(run_module(recovery_lease, ask("held"))["ended"]) == 1 and left.wait(5) == -signal.SIGTERM


def test_a_command_without_a_lease_is_ended_by_the_name_of_its_run(run_module: Any, start: Any) -> None:
    backup = start(f"B{ME}/dddd{ME}/0")
    assert run_module(recovery_lease, ask("held"))["ended"] == []
    run_module(recovery_lease, ask("released"))
    run_module(recovery_lease, ask("held", take_over=f"B{ME}"))
    assert backup.wait(5) == -signal.SIGTERM


def test_what_cannot_be_ended_is_named(run_module: Any, start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hold()
    process = start(f"R{ME}/aaaa{ME}/3")
    real = _marked.end
    monkeypatch.setattr(_marked, "end", lambda wanted: real(wanted, 0.1, 0.1))
    with monkeypatch.context() as patch:
        patch.setattr(_marked.os, "kill", lambda pid, number: None)
        result = run_module(recovery_lease, ask("held", take_over=f"R{ME}"))
    assert f"pid {process.pid} (sleep, run R{ME}) cannot be ended" in result["titan_dr"]["refused"] and on_disk().epoch == 3


@pytest.mark.parametrize("mark", ["step", "process"])
def test_a_holder_at_work_is_no_stale_one(run_module: Any, start: Any, mark: str) -> None:
    """A long step gives no sign, and one that only reads never does."""
    hold(sign=100)
    process = start(f"R{ME}/aaaa{ME}/3")
    if mark == "step":
        _journal.append(_lease.journal_path(), {"run_id": f"R{ME}", "step": "redis_stage", "event": "intent", "pid": process.pid})
    result = run_module(recovery_lease, ask("held", resume=f"R{ME}"))
    expected = f"redis_stage (pid {process.pid}) at work" if mark == "step" else f"pid {process.pid} (sleep, run R{ME}) at work"
    assert expected in result["titan_dr"]["refused"] and process.poll() is None
    process.kill()
    process.wait()
    assert run_module(recovery_lease, ask("held", resume=f"R{ME}"))["lease"]["epoch"] == 4


def test_a_command_in_the_background_is_ended_and_freed(run_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As redis_stage works on: forked, in a session of its own, with the lock that it inherited."""
    hold()
    monkeypatch.setenv(_marked.VARIABLE, f"R{ME}/aaaa{ME}/3")
    script = (
        "import os, sys, time\n"
        "from ansible_collections.titan.disaster_recovery.plugins.module_utils import _lease, _state\n"
        f"_state.STATE_DIR, _lease.RUN_DIR = {_state.STATE_DIR!r}, {_lease.RUN_DIR!r}\n"
        "class Module: check_mode = False\n"
        "with _lease.command(Module(), 'redis_stage') as command:\n"
        "    if os.fork():\n"
        "        command.leave()\n"
        "    else:\n"
        "        os.setsid()\n"
        "        with command.carried_on():\n"
        "            print(os.getpid(), flush=True)\n"
        "            os.closerange(0, 3)\n"
        "            time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    monkeypatch.delenv(_marked.VARIABLE)
    pid = int(done.stdout)
    assert _marked.look(pid) and _lease.lock(fcntl.LOCK_EX, 0) is None
    result = run_module(recovery_lease, ask("held", take_over=f"R{ME}"))
    assert result["lease"]["epoch"] == 4 and f"pid {pid} (" in result["ended"][0] and _marked.look(pid) is None
    assert result["steps"] == {"redis_stage": "failed"}, "it had time to say so"


def race(function: Callable[[str], Any], names: tuple[str, ...]) -> dict[str, str]:
    """Each in a process of its own, all at once; what each came to."""
    gate, opened = os.pipe()
    ends: dict[str, tuple[int, int]] = {}
    for name in names:
        result, told = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                os.read(gate, 1)
                try:
                    text = str(function(name))
                except recovery_lease.Refused:
                    text = "refused"
                os.write(told, text.encode())
            finally:
                os._exit(0)
        os.close(told)
        ends[name] = (pid, result)
    os.write(opened, b"x" * len(names))
    found = {}
    for name, (pid, result) in ends.items():
        found[name] = os.read(result, 1000).decode()
        os.waitpid(pid, 0)
        os.close(result)
    os.close(gate)
    os.close(opened)
    return found


def test_two_race_two_hundred_times_and_one_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    # It is not about processes, and to look at all of them takes longest.
    monkeypatch.setattr(_marked, "everything", dict)
    for number in range(200):
        kind = ("free", "dead", "taken over", "resumed")[number % 4]
        epoch = number * 2 + 3
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_lease.lease_path())
        if kind != "free":
            hold(sign=100)
            _lease.write(dataclasses.replace(on_disk(), epoch=epoch))
            os.utime(_lease.lease_path(), (1, 1))

        def take(name: str, kind: str = kind, epoch: int = epoch) -> int:
            wish = {"taken over": {"take_over": f"R{ME}"}, "resumed": {"resume": f"R{ME}"}}.get(kind, {})
            request = Request(f"{name}{ME}", name + ME, "database_corruption", 1.0, **wish)
            return recovery_lease.take(request, {}, epoch if kind == "dead" else 0)[0].epoch

        found = race(take, ("ann", "bob"))
        winners = [name for name, text in found.items() if text != "refused"]
        expected = 1 if kind == "free" else epoch + 1
        assert len(winners) == 1 and found[winners[0]] == str(expected), (kind, found)
        assert on_disk().attempt == winners[0] + ME and on_disk().epoch == expected


def test_commands_and_takers_race_and_no_command_works_under_an_old_epoch(lease_dirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each writes its epoch before and after its work; between the two nobody with a later one has begun."""
    monkeypatch.setattr(_lease, "JUST_TAKEN", 0)
    hold()
    log = lease_dirs / "log"

    class Module:
        check_mode = False

        def fail_json(self, **result: Any) -> None:
            raise SystemExit(1)

    def play(name: str) -> str:
        epoch, run = 0, ""
        for _turn in range(8):
            os.environ[_marked.VARIABLE] = f"{run}/{name}/{epoch}"
            if epoch:
                with contextlib.suppress(SystemExit), _lease.command(Module(), "step"):
                    for word in ("begin", "end"):
                        with open(log, "a") as handle:
                            handle.write(json.dumps([word, epoch]) + "\n")
                        time.sleep(0.003)
            with contextlib.suppress(recovery_lease.Refused):
                named = _lease.read()
                request = Request(name, name, "x", 1.0, take_over=named.run_id if named else "")
                taken, _ended, _note = recovery_lease.take(request, {}, 0)
                epoch, run = taken.epoch, taken.run_id
        return "done"

    assert set(race(play, ("ann", "bob", "eve")).values()) == {"done"}
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(rows) > 10
    working: set[int] = set()
    for word, epoch in rows:
        (working.add if word == "begin" else working.discard)(epoch)
        assert working <= {epoch}
    begun = [epoch for word, epoch in rows if word == "begin"]
    assert begun == sorted(begun)


@pytest.mark.parametrize("moment", ["write", "rename"])
def test_a_taker_that_is_killed_leaves_a_whole_lease(run_module: Any, moment: str) -> None:
    hold()
    before = on_disk()
    pid = os.fork()
    if not pid:
        real = os.rename

        def die(*arguments: Any) -> None:
            if moment == "rename":
                real(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)

        recovery_lease._lease.os.rename = die
        recovery_lease.take(Request("N", f"cccc{ME}", "database_corruption", 1.0), {}, 3)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert on_disk().epoch == (4 if moment == "rename" else 3) and (moment == "rename" or on_disk() == before)
    result = run_module(recovery_lease, ask("held", dead_epoch=on_disk().epoch))
    assert result["lease"]["epoch"] == on_disk().epoch == (5 if moment == "rename" else 4)


# --- every module -------------------------------------------------------------------------------------------------------------

FOLDER = Path(recovery_lease.__file__).parent
GUARDED = {
    "component_start", "component_stop", "config_swap", "guard_install", "network_mend", "offline_bundle", "reconcile", "redis_rollback", "redis_stage",
    "redis_swap", "restore_point_create", "server_baseline", "trading_halt", "trading_resume", "tree_restore",
}  # fmt: skip
# They read, or write to a store and not to the server.
UNGUARDED = {
    "config_verify", "diagnosis_info", "guard_claim", "network_info", "pm2_health", "preflight_info", "redis_aof_verify", "redis_rdb_verify",
    "restore_point_info", "restore_point_push", "validate_info",
}  # fmt: skip


def test_every_module_that_changes_a_server_asks_for_the_lease() -> None:
    modules = {path.stem: path.read_text() for path in FOLDER.glob("*.py") if path.stem != "__init__"}
    assert {name for name, text in modules.items() if "with _lease.command(" in text} == GUARDED
    assert set(modules) == GUARDED | UNGUARDED | {"recovery_lease"}
    assert {name for name, text in modules.items() if "titan.disaster_recovery.lease" in text} == GUARDED
    assert {name for name, text in modules.items() if "halts=True" in text} == {"trading_halt"}
