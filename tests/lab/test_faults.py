# SPDX-License-Identifier: GPL-3.0-or-later
"""What a drill can break: each fault is real, shows its effect, and says so when it has none."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from titan_dr import drill, playbooks
from titan_dr.lab import LabError, faults
from titan_dr.lab.engine import Completed
from titan_dr.lab.faults import redis, server


def test_every_scenario_can_be_drilled() -> None:
    scenarios = playbooks.scenarios(installed=False)
    # a rollback is no disaster
    assert set(faults.FAULTS) == set(scenarios) - {"rollback"}
    assert {objectives["recovers"] for objectives in scenarios.values()} <= set(drill.RECOVERED)
    for name in faults.FAULTS:
        names = [fault.name for fault in faults.FAULTS[name]]
        assert len(set(names)) == len(names) > 0
        assert faults.find_fault(name) is faults.FAULTS[name][0]


def test_what_a_plain_drill_causes() -> None:
    assert faults.find_fault("complete_system_failure").name == "destroyed"
    assert faults.find_fault("database_corruption").name == "bitflip"
    assert faults.find_fault("database_corruption", "hung").name == "hung"


def test_a_fault_that_is_not_known() -> None:
    with pytest.raises(faults.UnknownFault, match="bitflip, truncated-base, manifest-missing, hung"):
        faults.find_fault("database_corruption", "flood")
    with pytest.raises(faults.UnknownFault, match="complete_system_failure, database_corruption"):
        faults.find_fault("flood")


@pytest.mark.parametrize(("code", "message"), [(0, "is not gone"), (125, "exit code 125")])
def test_a_host_that_may_still_be_there(monkeypatch: pytest.MonkeyPatch, code: int, message: str) -> None:
    state: Any = type("State", (), {"host": staticmethod(lambda name: {"name": "titan-lab-x-titan"})})
    monkeypatch.setattr(server, "load_state", lambda: state)
    engine: Any = type("Engine", (), {"run": staticmethod(lambda *_, **__: Completed([], code))})
    monkeypatch.setattr(server, "find", lambda: engine)
    with pytest.raises(LabError, match=message):
        server.must_be_gone()


# The order that the script gets, with a systemd that tells of a process of the test's own. What it does to a real unit the drills show.

SYSTEMCTL = """\
#!{python}
import json, sys
print(json.load(open({state!r}))[sys.argv[4]])
"""


class Unit:
    """A Redis of the test, as the script sees it through systemctl."""

    def __init__(self, folder: Path, server: Any) -> None:
        self.folder, self.server = folder, server
        self.state = folder / "unit.json"
        self.data = Path(server.folder)
        (folder / "bin").mkdir()
        program = folder / "bin" / "systemctl"
        program.write_text(SYSTEMCTL.format(python=sys.executable, state=str(self.state)))
        program.chmod(0o755)
        self.says(NRestarts=0, MainPID=server.process.pid, ActiveState="active", SubState="running")

    def says(self, **state: Any) -> None:
        known = json.loads(self.state.read_text()) if self.state.exists() else {}
        self.state.write_text(json.dumps({**known, **state}))

    def strike(self, action: str) -> subprocess.CompletedProcess[str]:
        order = {"action": action, "password": "secret", "data_dir": str(self.data), "unit": "redis-server"}
        script = redis.REDIS_FAULT.replace("6379", str(self.server.port)).replace("seconds=20", "seconds=2")
        environment = {"PATH": f"{self.folder / 'bin'}:/usr/bin:/bin"}
        argv = [sys.executable, "-c", script]
        return subprocess.run(argv, input=json.dumps(order), env=environment, capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture
def unit(tmp_path: Path) -> Iterator[Unit]:
    program = shutil.which("redis-server", path="/usr/bin:/usr/sbin:/usr/local/bin")
    if program is None:
        pytest.skip("needs redis-server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    folder = tmp_path / "redis"
    folder.mkdir()
    argv = [program, "--port", str(port), "--dir", str(folder), "--appendonly", "yes", "--requirepass", "secret", "--save", "900 1"]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    server: Any = type("Server", (), {"process": process, "port": port, "folder": folder})
    deadline = time.monotonic() + 10
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as link:
                for command in ["AUTH secret", *(f"SET key:{n} {n:050}" for n in range(199))]:
                    link.sendall(f"{command}\r\n".encode())
                    assert link.recv(64) == b"+OK\r\n"
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    try:
        yield Unit(tmp_path, server)
    finally:
        process.kill()
        process.wait()


def test_a_redis_that_hangs(unit: Unit) -> None:
    done = unit.strike("hung")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["keys_before"] == "199" and "does not answer" in found["effect"]
    assert Path(f"/proc/{unit.server.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_damage_to_the_files(unit: Unit) -> None:
    done = unit.strike("prepare")
    assert done.returncode == 0, done.stderr
    before = {path.name: path.read_bytes() for path in unit.data.rglob("*") if path.is_file()}
    base = next(name for name in before if name.endswith(".base.rdb"))
    assert len(before[base]) > 1000 and len(before["dump.rdb"]) > 1000, "the data is in the base, not in the increment"
    unit.says(NRestarts=1, ActiveState="activating")  # it is killed, and nobody starts it here: it does not answer
    kill = unit.strike("bitflip")
    # systemd has not started it again since the kill
    assert kill.returncode != 0 and "has not started Redis again" in kill.stderr
    after = {path.name: path.read_bytes() for path in unit.data.rglob("*") if path.is_file()}
    for name in (base, "dump.rdb"):
        assert len(before[name]) == len(after[name])
        assert sum(bin(a ^ b).count("1") for a, b in zip(before[name], after[name], strict=True)) == 8
    unit.server.process.wait(5)


def test_a_base_that_is_cut(unit: Unit) -> None:
    assert unit.strike("prepare").returncode == 0
    (base,) = unit.data.rglob("*.base.rdb")
    size = base.stat().st_size
    unit.says(ActiveState="failed", SubState="failed")
    done = unit.strike("truncated-base")
    assert done.returncode == 0, done.stderr
    assert base.stat().st_size == size // 2 and "does not start: unit failed/failed" in json.loads(done.stdout)["effect"]


def test_a_fault_without_effect_is_an_error(unit: Unit) -> None:
    with subprocess.Popen(["sleep", "30"]) as another:
        unit.says(MainPID=another.pid)
        done = unit.strike("hung")
        another.kill()
    assert done.returncode != 0 and "Redis still answers" in done.stderr
    assert "no such action" in unit.strike("flood").stderr
