# SPDX-License-Identifier: GPL-3.0-or-later
"""A controller that dies at any moment of a recovery, and the same command once more: it must end as if nothing had happened.

First one run without a crash, for its task events and for what the server is like afterwards. Then for each crash point: the disaster, a run that is
killed there with its workers and connections (what runs on the server goes on), the same playbook again, and a comparison. The second run is started
plainly, with titan_dr_resume, or on another controller, which cannot know that the first one is dead and must be told (titan_dr_take_over).

TITAN_DR_SWEEP   how many points of each scenario, `all` of them (make sweep), or `2/8`: the second of eight parts; a few without it
TITAN_DR_SEED    which points and moments; a fixed seed without it
TITAN_DR_POINTS  only points whose name matches this pattern
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from crash import TRADED, Controller, Point, chosen_of, differences, keys, lease, look, orders, orders_while_halted, points, summary, trades_again
from lab_runs import Run, sh

from titan_dr import lab
from titan_dr.lab import faults, oracle
from titan_dr.lab.state import LabState

SEED = int(os.environ.get("TITAN_DR_SEED", "4"))
COUNT = os.environ.get("TITAN_DR_SWEEP", "")
ONLY = re.compile(os.environ.get("TITAN_DR_POINTS", ""))
# The window in which no process may restart is waited for in each run and has nothing to do with crashes, nor has the clock: it is one machine's.
ARGUMENTS = ("-e", "validate_window=2", "-e", "preflight_clock_tolerance=60")
MARK = "titan:test:mark"
NOTHING_TO_RESUME = "there is nothing to resume"
SOON = 0.1  # seconds into a task
PLAIN, RESUME, ELSEWHERE = WAYS = "again", "with titan_dr_resume", "from another controller"

pytestmark = pytest.mark.lab


@dataclass
class World:
    state: LabState
    folder: Path
    content: dict[str, str]  # what the restore point holds of ours
    traded: dict[str, str]  # and of the orders of this Titan


def redis(*words: str, host: str = "titan") -> str:
    ask = "REDISCLI_AUTH=$(sed -n 's/^requirepass //p' /etc/redis/redis.conf | tr -d '\"') redis-cli -n 1 "
    return sh(host, ask + " ".join(words)).strip()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("crash")
    raised = lab.up("guide", print, None)
    try:
        with oracle.Tunnel(f"{raised.ssh['user']}@{raised.host('titan')['address']}", lab.ssh_options(raised)) as tunnel:
            import redis as client

            with client.Redis(host=tunnel.host, port=tunnel.port, db=1, password=raised.redis_password) as connection:
                oracle.seed(connection, 2000)
            writer = oracle.Writer(tunnel.host, tunnel.port, raised.redis_password, 1, folder / "acknowledged.jsonl")
            writer.start()
            writer.wait_acknowledged(100, timeout=30)
            writer.stop()
        content, traded = keys("titan"), keys("titan", TRADED)
        backup = Run(folder / "backup", "backup")
        assert backup.rc == 0, backup.output
        yield World(raised, folder, content, traded)
    finally:
        lab.down(print)


# --- the scenarios ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """`strike` leaves the server as the disaster does and tells since when nothing trades, if that is the disaster's doing."""

    playbook: str
    host: str
    strike: Callable[[World, Path], float | None]
    arguments: tuple[str, ...] = ARGUMENTS
    mark: str = ""  # what is newer than the restore point: there afterwards, or not


def sweep_up() -> None:
    """What earlier points left on purpose, so that what this one leaves can be counted."""
    sh("titan", "rm -rf /var/lib/redis.* /var/lib/titan-dr/stage/* /var/lib/titan-dr/config-damaged.json /opt/titan/config/*.before-*")


def corrupt(world: World, folder: Path) -> float:
    sweep_up()
    fault = faults.find_fault("database_corruption")
    fault.prepare()
    redis("set", MARK, "newer")
    fault.strike()
    return time.time()


def restored(world: World, folder: Path) -> None:
    """A Titan whose Redis was restored, and wrongly so: its own data was good."""
    sweep_up()
    fault = faults.find_fault("database_corruption", "hung")
    fault.prepare()
    redis("set", MARK, "newer")
    fault.strike()
    before = Controller(folder / "restore", "database_corruption", *ARGUMENTS, "-e", "redis_restore_salvage=archive_only").end()
    assert before.rc in (0, 4) and before.report["result"] == "recovered", before.output
    assert redis("get", MARK) == ""


def broken(world: World, folder: Path) -> float:
    sweep_up()
    faults.find_fault("configuration_corruption", "invalid-json").strike()
    return time.time()


def cut_off(world: World, folder: Path) -> None:
    sweep_up()
    fault = faults.find_fault("network_partition", "dns-dead")
    fault.cure()
    fault.strike()


def halted(world: World, folder: Path) -> float:
    sweep_up()
    halt = Controller(folder / "halt", "halt").end()
    assert halt.rc == 0, halt.output
    return time.time()


def lost(world: World, folder: Path) -> float:
    if lab.status().hosts["titan"] == "running":
        lab.destroy_host("titan")
    lab.destroy_host("replacement")
    # until here one of them traded
    gone = time.time()
    lab.start_host("replacement")
    return gone


SCENARIOS = {
    "database_corruption": Scenario("database_corruption", "titan", corrupt),
    "rollback": Scenario("rollback", "titan", restored, (*ARGUMENTS, "-e", "rollback_confirm=true"), mark="newer"),
    "configuration_corruption": Scenario("configuration_corruption", "titan", broken),
    "network_partition": Scenario("network_partition", "titan", cut_off),
    "resume": Scenario("resume", "titan", halted),
    "complete_system_failure": Scenario("complete_system_failure", "replacement", lost),
}
# In the order of this dictionary on one lab: the last one destroys the Titan. So many points in every run of the drills: what fits into two minutes.
SAMPLED = {"database_corruption": 1}
NAMES = [name for name in SCENARIOS if COUNT or name in SAMPLED]


def heal(scenario: Scenario, folder: Path) -> None:
    """After a point that failed: the next one begins on a Titan that trades, with the data of the restore point. What nobody can bring back but a
    backup (the history of the configuration) is carried over, so that it is the same one for the comparison."""
    if scenario.host != "titan" or trades_again(time.time(), 5):
        return
    kept = lab.exec("titan", ["base64", "/var/lib/titan-dr/config.bundle"]).stdout
    lab.destroy_host("titan")
    lab.start_host("titan")
    lab.exec("titan", ["sh", "-ec", "umask 077; base64 -d > /var/lib/titan-dr/config.bundle"], input=kept)
    data = Controller(folder, "database_corruption", *ARGUMENTS, "-e", "redis_restore_salvage=archive_only", "-e", "database_corruption_confirm=true").end()
    assert data.rc in (0, 4) and data.report["result"] == "recovered", data.output


def after(world: World, scenario: Scenario) -> dict[str, Any]:
    found = look(scenario.host)
    content, traded = keys(scenario.host), keys(scenario.host, TRADED)
    found["mark"] = scenario.mark if content.pop(MARK, "") else ""
    found["data"] = summary(content)
    found["orders of before"] = sum(traded.get(key) == value for key, value in world.traded.items())
    return found


# --- one point ----------------------------------------------------------------------------------------------------------


def came_too_late(run: Controller, scenario: Scenario, first: Controller) -> bool:
    """What the killed run left on the server came to its end by itself, before or while this run began. A Titan that trades is neither resumed, nor
    restored once more by anybody who did not say so, nor can what ended be gone on with."""
    held, result, said = lease(scenario.host), run.report.get("result"), run.report.get("message", "")
    refused = "newer_data" in str(run.report.get("gates")) or NOTHING_TO_RESUME in said or "it ended, recovered" in said
    return (held.get("run_id"), held.get("result")) == (first.run_id, "recovered") and (result == "recovered" or (result == "refused" and refused))


def had_resumed(first: Controller, blind: Controller) -> bool:
    """What the killed run left had resumed trading before the next run took the lease. Where no data could be lost that is a recovery of its own."""
    died = [event["at"] for event in first.events() if event["kind"] == "crash"]
    halted = blind.halted_at()
    recovered = blind.report.get("result") == "recovered" and not blind.report["lease"]["adopted"]
    return recovered and bool(died) and halted is not None and any(died[-1] < at < halted for at in orders())


def again(scenario: Scenario, folder: Path, first: Controller, how: str, problems: list[str]) -> list[Controller]:
    """The runs that follow the one that was killed."""
    held = lease(scenario.host)
    ours = held.get("run_id") == first.run_id and held.get("state") == "held"
    runs = []
    more: tuple[str, ...] = ()
    name = ""
    if how == RESUME and ours:
        more = ("-e", f"titan_dr_resume={first.run_id}")
    elif how == ELSEWHERE:
        name = "second-controller"
        if ours:
            blind = Controller(folder / "blind", scenario.playbook, *scenario.arguments, elsewhere=name).end()
            runs.append(blind)
            if had_resumed(first, blind):
                return runs
            said = blind.report.get("message", "")
            if not came_too_late(blind, scenario, first) and (blind.report.get("result") != "refused" or first.run_id not in said or "take_over" not in said):
                problems.append(f"another controller was not refused: {blind.report.get('result')}: {said}")
            more = ("-e", f"titan_dr_take_over={first.run_id}")
    runs.append(Controller(folder / "again", scenario.playbook, *scenario.arguments, *more, elsewhere=name).end())
    return runs


def crash(world: World, scenario: Scenario, folder: Path, point: Point, how: str, pause: float, expected: dict[str, Any]) -> list[str]:
    """Problems of this point."""
    folder.mkdir()
    since = scenario.strike(world, folder)
    first = Controller(folder / "first", scenario.playbook, *scenario.arguments, crash=point).end()
    if not first.died and point.delay > SOON:
        # faster than the run that the point was chosen from
        return crash(world, scenario, folder / "sooner", replace(point, delay=point.delay / 2), how, pause, expected)
    if not first.died:
        return [f"the run was not killed there, it ended with {first.rc}: {first.report.get('result')}"]
    time.sleep(pause)
    said = [event for event in first.events() if event["kind"] != "crash"][-1]
    problems: list[str] = []
    runs = [first, *again(scenario, folder, first, how, problems)]
    last = runs[-1]
    refused = last.report.get("result") == "refused" and came_too_late(last, scenario, first)
    # 4: recovered, but the restore point grows old in a long sweep
    if not refused and (last.rc not in (0, 4) or (last.report.get("result"), last.report.get("trading")) != ("recovered", "resumed")):
        problems.append(f"it ended with {last.rc}, {last.report.get('result')}, trading {last.report.get('trading')}: {last.report.get('message')}")
    try:
        problems += differences(expected, after(world, scenario))[:12]
        problems += orders_while_halted(runs, since)
    except (lab.LabError, AssertionError) as error:
        problems.append(str(error).strip().splitlines()[-1])
    if not trades_again(time.time()):
        problems.append("no order after the end")
    return [f"killed at the {said['kind']} of {said['task']}, or after it", *problems] if problems else []


# A halt has no lease that could be taken up, and its end is not a Titan that trades: what it must leave is a Titan that does not, and that can be resumed.
@pytest.mark.slow  # make sweep: every point; make soak: one
@pytest.mark.parametrize("name", [pytest.param("halt", id=f"halt-seed{SEED}")])
def test_a_halt_that_dies_anywhere_is_given_again(world: World, tmp_path: Path, name: str) -> None:
    dice = random.Random(f"{SEED} {name}")

    def halts(folder: str, crash: Point | None = None) -> Controller:
        return Controller(tmp_path / folder, "halt", crash=crash).end()

    def resumes(folder: str) -> list[str]:
        since = time.time()
        run = Controller(tmp_path / folder, "resume", *ARGUMENTS).end()
        return [] if run.rc == 0 and trades_again(since) else [f"it was not resumed: {run.report.get('message')}"]

    whole = halts("whole")
    assert whole.rc == 0 and resumes("resumed") == []
    found = [point for point in points(whole.events(), dice) if ONLY.search(point.name)]
    chosen = chosen_of(found, COUNT or "1", dice)
    print(f"\n{name}: {len(chosen)} of {len(found)} points, TITAN_DR_SEED={SEED}")
    bad = []
    for number, point in enumerate(chosen):
        pause = dice.choice([0.0, 0.0, 3.0])
        problems = [] if halts(f"first{number}", point).died else ["the run was not killed there"]
        time.sleep(pause)
        again = halts(f"again{number}")
        halted_at = time.time()
        time.sleep(3)
        problems += [] if again.rc == 0 else [f"the second halt ended with {again.rc}: {again.output[-300:]}"]
        problems += [f"{late} orders after the halt"] if (late := sum(at > halted_at for at in orders())) else []
        problems += resumes(f"resumed{number}")
        print(f"  {'FAILED' if problems else 'ok'}  {point.name}, {pause:g} s later" + "".join(f"\n      {line}" for line in problems), flush=True)
        bad += [f"{point.name}: {line}" for line in problems]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("name", [pytest.param(name, id=f"{name}-seed{SEED}") for name in NAMES])
def test_a_controller_that_dies_anywhere(world: World, tmp_path: Path, name: str) -> None:
    scenario = SCENARIOS[name]
    dice = random.Random(f"{SEED} {name}")
    folder = tmp_path / "whole"
    folder.mkdir()
    since = scenario.strike(world, folder)
    whole = Controller(folder / "run", scenario.playbook, *scenario.arguments).end()
    assert whole.rc in (0, 4) and whole.report["result"] == "recovered", whole.output
    expected = after(world, scenario)
    content = {**world.content}
    assert expected["data"] == summary(content) and expected["mark"] == scenario.mark, "the restore point is not what was restored"
    assert expected["orders of before"] == len(world.traded)
    assert orders_while_halted([whole], since) == [] and trades_again(time.time())
    assert expected["marked processes"] == [] and expected["latch"] is False

    found = [point for point in points(whole.events(), dice) if ONLY.search(point.name)]
    chosen = chosen_of(found, COUNT or str(SAMPLED[name]), dice)
    print(f"\n{name}: {len(chosen)} of {len(found)} points, TITAN_DR_SEED={SEED}")
    bad = []
    for number, point in enumerate(chosen):
        # begun elsewhere in the circle by each scenario, so that a few points have all three
        how = WAYS[(number + list(SCENARIOS).index(name)) % len(WAYS)]
        pause = dice.choice([0.0, 0.0, 3.0])
        begun = time.monotonic()
        try:
            problems = crash(world, scenario, tmp_path / f"point{number}", point, how, pause, expected)
        except Exception as error:
            problems = [f"{type(error).__name__}: {error}"]
        said = f"{point.name}, {how}, {pause:g} s later"
        print(f"  {time.monotonic() - begun:5.1f} s  {'FAILED' if problems else 'ok'}  {said}" + "".join(f"\n      {line}" for line in problems), flush=True)
        if problems:
            bad.append("\n  ".join([f"{said} ({tmp_path}/point{number})", *problems]))
            heal(scenario, tmp_path / f"healed{number}")
    assert not bad, f"{len(bad)} of {len(chosen)} points of {name} (TITAN_DR_SEED={SEED}):\n" + "\n".join(bad)
