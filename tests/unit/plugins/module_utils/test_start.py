# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import pwd
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args
from pm2_world import DAEMON, GUIDE, UID, World, connect, raw

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _start
from ansible_collections.titan.disaster_recovery.plugins.module_utils._pm2 import Process
from ansible_collections.titan.disaster_recovery.plugins.module_utils._start import Pm2Cli, Starter, StartError
from ansible_collections.titan.disaster_recovery.plugins.modules import component_start

HALT = {"url": "http://127.0.0.1:3000/halt", "confirm": {"url": "http://127.0.0.1:3000/state", "expect": {"trading": [False]}}}


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[World, Starter]]:
    def build(
        components: list[dict[str, Any]] | None = None, daemon: bool = True, systemd: bool = True, server: str = "", **settings: Any
    ) -> tuple[World, Starter]:
        world = World(tmp_path, components, daemon, server)
        return world, connect(world, Starter, monkeypatch, systemd, **settings)

    return build


Make = Callable[..., tuple[World, Starter]]


def fails(starter: Starter) -> str:
    with pytest.raises(StartError) as error:
        starter.run()
    return str(error.value)


def again(make: Make, world: World, **settings: Any) -> tuple[World, Starter]:
    """Build a second starter for the same state of things."""
    other, starter = make(**settings)
    for name in ("apps", "born", "processes", "ports", "now", "fenced"):
        setattr(other, name, getattr(world, name))
    return other, starter


def test_starts_level_by_level_and_saves(make: Make) -> None:
    world, starter = make()
    outcome = starter.run()
    assert world.log == ["start /eco --only job", "start /eco --only brain", "start /eco --only phase1,phase2", "save"]
    result = outcome.result()
    assert result["changed"] and result["saved"] and result["started"] == ["brain", "job", "phase1", "phase2"] and result["fence"] == "none"
    gates = {gate["name"]: gate["verdict"] for gate in result["titan_dr"]["gates"]}
    assert gates == {f"start:{name}": "pass" for name in ("redis", "brain", "phase1", "phase2", "job")}
    assert set(result["titan_dr"]["timings"]) == {"start:brain", "start:job", "start:phase1", "start:phase2"}


def test_second_run_changes_nothing_even_without_a_latch(make: Make) -> None:
    world, starter = make()
    starter.run()
    world.now += 5
    other, starter = again(make, world)
    other.latch = False
    outcome = starter.run()
    assert not outcome.changed and other.log == [] and outcome.result()["started"] == []


def test_nothing_starts_without_the_latch(make: Make) -> None:
    world, starter = make()
    world.latch = False
    assert "refusing to start brain, phase1, phase2, job" in fails(starter) and world.log == [] and not starter.outcome.changed
    world, starter = make(require_latch=False)
    assert starter.run().changed


def test_latch_that_goes_away_stops_the_rest(make: Make) -> None:
    world, starter = make()
    starter.settings.latch_set = lambda: len(world.log) < 2
    assert "taken away" in fails(starter) and world.log == ["start /eco --only job", "start /eco --only brain"]


def test_check_mode_only_tells(make: Make) -> None:
    world, starter = make()
    world.latch = False
    outcome = starter.run(check=True)
    assert world.log == [] and outcome.changed and "would refuse" in outcome.notes[0]
    assert set(outcome.actions.values()) == {"would start"} and outcome.result()["titan_dr"]["gates"] == []


def test_unhealthy_is_deleted_and_started_never_restarted(make: Make) -> None:
    world, starter = make()
    starter.run()
    world.now += 5
    broken = world.apps["phase1"].pm_id
    world.ports.pop(3002)
    other, starter = again(make, world)
    outcome = starter.run()
    assert other.log == [f"delete {broken}", "start /eco --only phase1", "save"] and outcome.actions == {"phase1": "restarted"}


def test_survivor_of_a_delete_is_ended(make: Make) -> None:
    world, starter = make()
    world.spawn("brain")
    world.sick.add("brain")
    world.survives.add("brain")
    pid = world.apps["brain"].pid
    original = world.spawn

    def spawn(name: str) -> None:
        assert name != "brain" or pid not in world.processes, "started beside the old process"
        world.sick.discard(name)
        original(name)

    world.spawn = spawn  # type: ignore[method-assign]
    outcome = starter.run()
    assert [line for line in world.log if "signal" in line] == [f"signal 15 to {pid}", f"signal 9 to {pid}"]
    assert outcome.ended == [f"ended the orphan process {pid} (node), which holds port 3000"]


@pytest.mark.parametrize("uid", [0, UID + 1])
def test_stranger_on_the_port_is_named_and_left_alone(make: Make, uid: int) -> None:
    world, starter = make()
    world.processes[77] = Process(77, 1, uid, "S", 77)
    world.ports[3000] = {77}
    assert "process 77 (node) holds port 3000 and is not a left-over of PM2" in fails(starter)
    assert not any("signal" in line or "brain" in line for line in world.log)


def test_port_held_by_nobody_that_can_be_seen(make: Make) -> None:
    world, starter = make()
    world.ports[3000] = set()
    assert "cannot be seen" in fails(starter)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda world: world.crashing.add("brain"), "brain did not start: crash loop: 5 restarts"),
        (lambda world: world.sick.add("brain"), "not healthy within its start timeout of 10 s"),
        (lambda world: world.absent.add("brain"), "PM2 did not take brain from /eco: [PM2][ERROR] no"),
        (lambda world: world.ports.pop(6379), "redis is not up: nothing listens on port 6379"),
    ],
)
def test_a_failed_level_stops_the_next(make: Make, fault: Callable[[World], Any], message: str) -> None:
    world, starter = make()
    fault(world)
    assert message in fails(starter)
    assert not any("phase1" in line or "save" in line for line in world.log)
    gates = {gate["name"]: gate["verdict"] for gate in starter.outcome.result()["titan_dr"]["gates"]}
    assert gates["start:phase1"] == "fail" and "fail" in (gates["start:brain"], gates.get("start:redis"))


def test_one_deadline_for_all(make: Make) -> None:
    world, starter = make(end=4.0)
    world.sick.add("brain")
    assert "deadline" in fails(starter) and world.now <= 5
    world, starter = make(end=0.0)
    assert "deadline" in fails(starter) and world.log == []


def test_without_a_health_endpoint_it_has_to_stay_up(make: Make) -> None:
    world, starter = make([raw("worker")], settle=3.0)
    starter.run()
    assert 3 <= world.now < 4


def test_optional_component(make: Make) -> None:
    components = [raw("brain"), raw("console", required=False), raw("lamp", required=False)]
    world, starter = make(components)
    world.absent.add("lamp")
    world.crashing.add("console")
    outcome = starter.run()
    assert set(world.apps) == {"brain"} and len(outcome.notes) == 2 and {finding.verdict for finding in outcome.findings.values()} == {"pass"}
    world.now += 5
    other, starter = again(make, world, components=components)
    other.latch = False
    assert not starter.run().changed and other.log == []
    world, starter = make([raw("console", required=False), raw("brain", "console")])
    world.crashing.add("console")
    assert "brain depends on it" in fails(starter)


# --- the daemon -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["pm2-titan.service", None])
def test_daemon_is_started_in_a_unit_and_without_its_dump(make: Make, unit: str | None, tmp_path: Path) -> None:
    for name in ("dump.pm2", "dump.pm2.bak"):
        (tmp_path / name).write_text('[{"name": "old"}]')
    world, starter = make(daemon=False, unit=unit, user="titan")
    original = world.command

    def command(argv: Sequence[str], stdin: str, timeout: float) -> tuple[int, str]:
        assert not (tmp_path / "dump.pm2").exists() and not (tmp_path / "dump.pm2.bak").exists()
        return original(argv, stdin, timeout)

    starter.command = command
    outcome = starter.run()
    lines = [line for line in world.log if line.startswith("system")]
    if unit:
        assert lines[:3] == [f"systemctl {verb} pm2-titan.service" for verb in ("enable --quiet", "reset-failed", "restart")]
    else:
        assert lines[0].startswith("systemd-run --quiet --collect --unit=titan-dr-pm2-titan.service")
    assert ("a reboot starts nothing" in " ".join(outcome.notes)) is (unit is None)
    assert _start.dumped_names(str(tmp_path / "dump.pm2")) == {"brain", "phase1", "phase2", "job"}
    assert not list(tmp_path.glob("*.set-aside"))


def test_no_place_for_a_daemon(make: Make) -> None:
    world, starter = make(daemon=False, systemd=False)
    assert "no systemd" in fails(starter) and world.log == []


def test_latch_comes_before_the_daemon(make: Make) -> None:
    world, starter = make(daemon=False, unit="pm2-titan.service")
    world.latch = False
    assert "refusing" in fails(starter) and world.log == []


def test_no_command_is_run_after_the_daemon_is_gone_or_another(make: Make) -> None:
    world, starter = make()
    daemon = world.processes[DAEMON]
    world.daemon = False
    with pytest.raises(StartError, match="went away"):
        starter._pm2(daemon, ["save"])
    world.daemon = True
    world.processes[DAEMON] = Process(DAEMON, 1, UID, "S", DAEMON + 1)
    with pytest.raises(StartError, match="replaced"):
        starter._pm2(daemon, ["save"])
    assert world.log == []


# --- several servers --------------------------------------------------------------------------------------------------


SPLIT = [
    {**GUIDE[0], "server": "data"},
    *({**component, "server": "core"} for component in (GUIDE[1], raw("shared", "redis", "brain", port=3001, health={"path": "/health"}))),
    *(raw(name, "shared", port=port, health={"path": "/health"}, server="phases") for name, port in (("phase1", 3002), ("phase2", 3003))),
]


def split(make: Make, server: str, **more: Any) -> tuple[World, Starter]:
    world, starter = make(SPLIT, server=server, **more)
    world.ports.clear()
    return world, starter


def test_only_its_own_are_started_when_what_they_need_answers_on_its_server(make: Make) -> None:
    world, starter = split(make, "core")
    world.answers = {"data": 2.0}
    result = starter.run().result()
    assert world.log == ["start /eco --only brain", "start /eco --only shared", "save"] and result["started"] == ["brain", "shared"]
    assert world.now >= 2.0 and world.asked[0] == "data:6379"
    assert all(address == "data:6379" or address.startswith("http://127.0.0.1:") for address in world.asked)
    gates = {gate["name"]: gate for gate in result["titan_dr"]["gates"]}
    assert set(gates) == {"start:redis", "start:brain", "start:shared"} and {gate["verdict"] for gate in gates.values()} == {"pass"}
    assert gates["start:redis"]["evidence"] == "on data: data:6379: takes connections"


def test_health_is_asked_on_the_server_of_the_component(make: Make) -> None:
    world, starter = split(make, "phases")
    world.answers = {"shared": 5.0}
    outcome = starter.run()
    assert world.log == ["start /eco --only phase1,phase2", "save"] and world.now >= 5.0
    assert world.asked[0] == "http://core:3001/health" and not any("data" in address or ":3000" in address for address in world.asked)
    assert outcome.findings["shared"].evidence == "on core: asked"


def test_a_component_of_another_server_that_does_not_come_ends_the_start_and_is_named(make: Make) -> None:
    world, starter = split(make, "phases", end=1000.0)
    world.answers = {"shared": 900.0}
    # redis 3 s, brain 10 s, shared 10 s, and what the other server needs besides
    assert "shared on core is not up within 53 s: asked; what depends on it was not started" in fails(starter)
    assert world.log == [] and 53 <= world.now < 54
    gates = {gate["name"]: gate["verdict"] for gate in starter.outcome.result()["titan_dr"]["gates"]}
    assert gates["start:shared"] == "fail"


@pytest.mark.parametrize(("sick", "end"), [(True, 1000.0), (False, 20.0)])
def test_one_that_calls_itself_ill_is_not_up_and_the_deadline_holds(make: Make, sick: bool, end: float) -> None:
    world, starter = split(make, "phases", end=end)
    world.sick.update({"shared"} if sick else ())
    world.answers = {} if sick else {"shared": 900.0}
    assert "shared on core is not up" in fails(starter) and world.log == [] and world.now <= min(end, 54.0) + 0.5


def test_nothing_is_waited_for_when_all_are_well(make: Make) -> None:
    world, starter = split(make, "phases")
    starter.run()
    world.now += 5
    other, starter = make(SPLIT, server="phases")
    for name in ("apps", "born", "processes", "ports", "now"):
        setattr(other, name, getattr(world, name))
    other.answers = {"shared": 900.0}
    assert not starter.run().changed and not any("core" in address for address in other.asked)


def test_two_servers_that_need_each_other_level_by_level_do_not_wait_for_each_other(make: Make) -> None:
    """What a level has here is started before the level after it waits for what the same level has elsewhere."""
    crossed = [
        raw("a", server="one", port=1),
        raw("b", server="two", port=2),
        raw("c", "a", "b", server="one", port=3),
        raw("d", "a", "b", server="two", port=4),
    ]
    for server, order, other in (("one", ["a", "c"], "two"), ("two", ["b", "d"], "one")):
        world, starter = make(crossed, server=server)
        seen: list[int] = []

        def connect_(address: str, port: int, timeout: float, log: list[str] = world.log, seen: list[int] = seen) -> str:
            seen.append(len(log))
            return ""

        starter.connector = connect_
        starter.run()
        assert world.log == [f"start /eco --only {name}" for name in order] + ["save"] and seen == [1], other


def test_one_without_a_sign_of_life_cannot_be_waited_for(make: Make) -> None:
    for component in (raw("a", server="one"), raw("a", server="one", port=1, pm2_status=["online", "stopped"])):
        world, starter = make([component, raw("b", "a", server="two")], server="two")
        assert "a on one listens on nothing that could be waited for from here" in fails(starter) and world.log == []
    world, starter = make([raw("a", server="one"), raw("b", server="two")], server="two")
    assert starter.run().changed, "nothing here needs it"


def test_what_another_server_needs_is_not_left_out(make: Make) -> None:
    world, starter = make([raw("a", server="one", required=False, port=1), raw("b", "a", server="two")], server="one")
    world.crashing.add("a")
    assert "a did not start" in fails(starter) and "b depends on it" in fails(starter)


def test_connect() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert _start.connect("127.0.0.1", port, 1) == ""
    assert _start.connect("127.0.0.1", port, 1) == "Connection refused"
    assert _start.connect("no-such-server.invalid", 1, 1) != ""


# --- services that ignore the latch ---------------------------------------------------------------------------------


def test_fence_is_up_from_before_the_start_until_the_halt_is_confirmed(make: Make) -> None:
    world, starter = make(latch_honoured=False, halt_call=HALT, daemon=False, unit="pm2-titan.service")
    outcome = starter.run()
    assert world.log[0] == "fence up" and world.log.index("fence down") == world.log.index("halt") + 1
    assert world.log.index("start /eco --only brain") < world.log.index("halt") < world.log.index("start /eco --only phase1,phase2")
    assert outcome.fence == "removed" and not world.fenced
    assert {"name": "start:halt", "verdict": "pass", "evidence": "trading is False"} in outcome.result()["titan_dr"]["gates"]


def test_halted_as_soon_as_it_listens_even_when_it_is_not_healthy(make: Make) -> None:
    world, starter = make(latch_honoured=False, halt_call=HALT)
    world.sick.add("brain")
    assert "brain did not start" in fails(starter)
    assert starter.outcome.fence == "removed" and world.log.count("halt") == 1


def test_fence_stays_when_the_halt_is_not_confirmed(make: Make) -> None:
    world, starter = make(latch_honoured=False, halt_call=HALT, end=10.0)
    world.halts = lambda: False
    assert "the fence stays" in fails(starter)
    assert world.fenced and starter.outcome.result()["fence"] == "up" and not any("phase1" in line for line in world.log)
    gates = {gate["name"]: gate["verdict"] for gate in starter.outcome.result()["titan_dr"]["gates"]}
    assert gates["start:halt"] == "fail"
    # The next run finds everything healthy up to brain and the fence up: it halts first.
    other, starter = again(make, world, latch_honoured=False, halt_call=HALT, end=100.0)
    starter.run()
    assert other.log.index("halt") < other.log.index("start /eco --only phase1,phase2") and not other.fenced


@pytest.mark.parametrize(
    ("halt_call", "message"),
    [(None, "halt_call is needed"), ({**HALT, "url": "http://127.0.0.1:9/halt"}, "port 9"), ({**HALT, "url": "http://brain:3000/halt"}, "port 3000")],
)
def test_nothing_starts_when_nobody_could_halt_it(make: Make, halt_call: Any, message: str) -> None:
    world, starter = make(latch_honoured=False, halt_call=halt_call)
    assert message in fails(starter) and world.log == []


def test_fence_that_cannot_be_used_or_does_not_hold(make: Make) -> None:
    world, starter = make(latch_honoured=False, halt_call=HALT)
    starter.fence.uid = 0
    assert "cut off the host" in fails(starter) and world.log == []
    world, starter = make(latch_honoured=False, halt_call=HALT)
    starter.fence.nft = None
    assert "nft is not installed" in fails(starter) and world.log == []
    world, starter = make(latch_honoured=False, halt_call=HALT)
    starter.fence.command = lambda argv, stdin, timeout: (0, "table inet titan_dr_fence {}")
    assert "could not be put up" in fails(starter) and world.log == []


# --- seams and glue -------------------------------------------------------------------------------------------------


def test_latch_file(tmp_path: Path) -> None:
    latch = tmp_path / "halt"
    assert not _start.latch_is_set(str(latch)) and not _start.latch_is_set("") and not _start.latch_is_set(str(tmp_path))
    latch.write_text("{}")
    latch.chmod(0o644)
    assert _start.latch_is_set(str(latch))
    latch.chmod(0o666)
    assert not _start.latch_is_set(str(latch)), "anybody could have written it"
    (tmp_path / "link").symlink_to(latch)
    assert not _start.latch_is_set(str(tmp_path / "link"))


def test_command_line_runs_with_a_clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_PASSWORD", "hush")
    executable = tmp_path / "node_modules/pm2/bin/pm2"
    executable.parent.mkdir(parents=True)
    executable.write_text('#!/bin/sh\nprintf "\\033[31m[PM2][ERROR] \\033[39m%s\\n" "$*"; echo hush; umask > "$OUT"; env >> "$OUT"; exit 3\n')
    executable.chmod(0o755)
    cli = Pm2Cli(str(tmp_path), "/h", pwd.getpwuid(os.geteuid()), {"OUT": str(tmp_path / "out"), "NODE_ENV": "production", "PM2_HOME": "/elsewhere"})
    running = cli.spawn(["start", "x"], {"PM2_CONCURRENT_ACTIONS": "2"})
    assert running._process.wait(10) == 3 and running.poll() == 3  # type: ignore[attr-defined]
    assert running.errors() == "[PM2][ERROR] start x"
    seen = (tmp_path / "out").read_text()
    assert "hush" not in seen and "NODE_ENV=production" in seen and "PM2_HOME=/h\n" in seen and seen.startswith("0077")
    assert "NODE_ENV" not in cli.base
    running.stop()
    executable.write_text("#!/bin/sh\nexec sleep 60\n")
    slow = cli.spawn(["start"])
    slow.stop()
    assert slow.poll() == -signal.SIGKILL
    with pytest.raises(StartError, match="could not be run"):
        Pm2Cli("/nonexistent", "/h", pwd.getpwuid(os.geteuid()), {}).spawn(["save"])


def test_run_command() -> None:
    assert _start.run_command(["cat"], "x", 5) == (0, "x")
    assert _start.run_command(["sleep", "5"], "", 0.1)[0] == 124
    assert _start.run_command(["/nonexistent"], "", 1)[0] == 127


def test_dumped_names(tmp_path: Path) -> None:
    dump = tmp_path / "dump.pm2"
    assert _start.dumped_names(str(dump)) is None
    for text, names in (("[]", set()), ('[{"name": "a"}]', {"a"}), ("[{", None), ("[1]", None), ("{}", set())):
        dump.write_text(text)
        assert _start.dumped_names(str(dump)) == names, text


def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, **arguments: Any) -> dict[str, Any]:
    (tmp_path / "node_modules/pm2/bin").mkdir(parents=True, exist_ok=True)
    (tmp_path / "node_modules/pm2/bin/pm2").touch()
    (tmp_path / "eco.js").touch()
    common = {
        "pm2_home": str(tmp_path / "home"), "pm2_prefix": str(tmp_path), "user": "root", "ecosystem": str(tmp_path / "eco.js"), "components": GUIDE,
        "latch": str(tmp_path / "halt"), "timeout": 5,
    }
    with patch_module_args({key: value for key, value in {**common, **arguments}.items() if value is not None}), pytest.raises(SystemExit):
        component_start.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "is not set; refusing to start brain, phase1, phase2, job"),
        ({"timeout": None, "deadline": 1000}, "deadline is over"),
        ({"timeout": None}, "one of the following is required"),
        ({"deadline": 5}, "mutually exclusive"),
        ({"timeout": -1}, "timeout: must be"),
        ({"components": [raw("a", "b"), raw("b", "a")]}, "cycle: a -> b -> a"),
        ({"components": [raw("a", "x")]}, "depends_on: x is not a component"),
        ({"components": []}, "empty"),
        ({"components": GUIDE[:1]}, "none of this server is of kind pm2"),
        ({"components": SPLIT, "server": "data"}, "none of this server is of kind pm2"),
        ({"components": SPLIT, "server": "core"}, "is not set; refusing to start brain, shared"),
        ({"latch": None}, "latch: is needed"),
        ({"user": "no-such-user"}, "there is no user"),
        ({"ecosystem": "/nonexistent"}, "ecosystem: there is no /nonexistent"),
        ({"halt_call": {"url": "http://127.0.0.1:3000/"}}, "halt_call: confirm: is needed"),
        ({"latch_honoured": False}, "halt_call is needed"),
    ],
)
def test_main_refuses(arguments: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    result = run(capsys, tmp_path, **arguments)
    assert result["failed"] and message in result["msg"], result["msg"]


def test_main_fails_with_what_it_knows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    result = run(capsys, tmp_path)
    assert {gate["verdict"] for gate in result["titan_dr"]["gates"]} == {"fail"} and result["changed"] is False and result["fence"] == "none"


def test_documentation_names_the_options() -> None:
    options = yaml.safe_load(component_start.DOCUMENTATION)["options"]
    for name, spec in component_start.argument_spec().items():
        assert {key: options[name].get(key) for key in spec} == dict(spec), name
    assert set(options) == set(component_start.argument_spec())
