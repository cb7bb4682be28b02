# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles of a recovery in one play on three servers, with modules that only write down what they are asked: who does what, and in which order."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]

# Writes down what it is asked and answers as the module does. WANT_JSON: its arguments come in a file.
MODULE = """#!/usr/bin/python3
# WANT_JSON
import json, os, sys
args = {{name: value for name, value in json.load(open(sys.argv[1])).items() if not name.startswith("_ansible")}}
with open(os.environ["ASKED"], "a") as log:
    log.write(json.dumps(["{name}", args]) + "\\n")
gates = [{{"name": "reconcile_binance", "verdict": "pass", "at": 1000.0}}]
answers = {{
    "trading_halt": {{"generation": 4, "latched": True}},
    "trading_resume": {{"judged_at": 1001.5}},
    "reconcile": {{"at": 1000.0, "titan_dr": {{"gates": gates}}}},
    "redis_stage": {{"data_at": 900.25, "stage": "/stage", "expected": {{}}, "restore_point": {{"id": "p"}}}},
    "restore_point_create": {{"objects": []}},
    "validate_info": {{"at": 999.0, "titan_dr": {{"gates": [{{"name": "disk", "verdict": "pass"}}]}}}},
    "pm2_health": {{"at": 998.0, "verdict": "pass", "titan_dr": {{"gates": [{{"name": "pm2", "verdict": "pass"}}]}}}},
    "guard_claim": {{"claimed": True, "epoch": 1, "key": "k"}},
}}
print(json.dumps({{"changed": False, **answers.get("{name}", {{}})}}))
"""
MODULES = ("validate_info", "pm2_health",
           "trading_halt", "trading_resume", "reconcile", "redis_stage", "redis_swap", "redis_rollback", "tree_restore", "offline_bundle",
           "restore_point_create", "restore_point_push", "guard_claim", "guard_install")  # fmt: skip

COMPONENTS = [
    {"name": "redis", "kind": "redis", "server": "titan-data", "port": 6379},
    {"name": "titan-brain", "kind": "pm2", "server": "titan-core", "port": 3000, "depends_on": ["redis"]},
    {"name": "titan-phase1", "kind": "pm2", "server": "titan-phases", "port": 3002},
]
CALL = {"url": "http://127.0.0.1:3000/x", "confirm": {"url": "http://127.0.0.1:3000/x", "expect": {"trading": [False]}}}
NOTHING = {"titan_halt_call": {}, "titan_resume_call": {}, "titan_venues": [], "titan_probes": []}
ELSEWHERE = {"titan_redis": {"host": "titan-data", "port": 6379}, "titan_config_paths": ["/etc/x"]}
HERE = {"config": "/etc/redis/redis.conf", "data_dir": "/var/lib/redis", "unit": "redis-server", "user": "redis"}
SERVERS: dict[str, dict[str, Any]] = {
    "data": {"titan_redis": HERE, **NOTHING},
    "core": {**ELSEWHERE, "titan_halt_call": CALL, "titan_resume_call": CALL, "titan_venues": [{"name": "binance"}], "titan_guard": True},
    "phases": {**ELSEWHERE, **NOTHING},
}
ROLES = [("trading_halt", "main"), ("dependencies", "main"), ("redis_restore", "stage"), ("reconcile", "observe"), ("app_restore", "main"),
         ("redis_restore", "main"), ("dependencies", "later"), ("reconcile", "main"), ("validate", "main"),
         ("trading_halt", "resume"), ("backup", "main")]  # fmt: skip


@pytest.fixture
def play(tmp_path: Path) -> Any:
    """Run these roles on these servers; what each module was asked, by the server's environment, in order."""
    collection = tmp_path / "collections/ansible_collections/titan/disaster_recovery"
    for name in ("filter", "module_utils"):
        shutil.copytree(ROOT / "plugins" / name, collection / "plugins" / name)
    shutil.copytree(ROOT / "roles", collection / "roles")
    (collection / "galaxy.yml").write_text((ROOT / "galaxy.yml").read_text())
    (collection / "plugins/modules").mkdir()
    for name in MODULES:
        (collection / "plugins/modules" / f"{name}.py").write_text(MODULE.format(name=name))

    def run(servers: dict[str, dict[str, Any]], roles: list[tuple[str, str]], **more: Any) -> tuple[subprocess.CompletedProcess[str], list[Any]]:
        common = {
            "ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3", "titan_components": COMPONENTS, "titan_dr_run_id": "r1",
            "titan_age_identity": "x", "titan_age_recipients": ["age1"], "titan_dr_seconds_left": 60, "titan_dr_incident_at": 1.0,
            "titan_stores": [{"name": "s", "kind": "s3", "bucket": "b", "access_key": "a", "secret_key": "s"}], **more,
        }  # fmt: skip
        hosts = {
            name: {"titan_server": f"titan-{name}", "titan_environment_id": f"lab-{name}", "titan_latch": f"/latch/{name}", "preflight_plan": plan(name), **own}
            for name, own in servers.items()
        }
        (tmp_path / "inventory.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts, "vars": common}}))
        tasks: list[dict[str, Any]] = []
        for role, entry in roles:
            asked = {"name": f"titan.disaster_recovery.{role}", "tasks_from": entry, "rolespec_validate": entry == "main"}
            tasks.append({"name": f"{role} {entry}", "ansible.builtin.import_role": asked})
        (tmp_path / "play.yml").write_text(yaml.safe_dump([{"hosts": "all", "gather_facts": False, "any_errors_fatal": True, "tasks": tasks}]))
        log = tmp_path / "asked"
        log.write_text("")
        env = {**os.environ, "ASKED": str(log), "ANSIBLE_COLLECTIONS_PATH": str(tmp_path / "collections"), "HOME": str(tmp_path)}
        argv = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(tmp_path / "inventory.yml"), str(tmp_path / "play.yml")]
        done = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
        return done, [json.loads(line) for line in log.read_text().splitlines()]

    return run


def plan(name: str) -> dict[str, list[Any]]:
    """Core and phases have a release, data has Redis."""
    return {"bundle": [{"id": name}], "app": [] if name == "data" else [{"id": name}], "redis": [{"id": name}] if name == "data" else []}


def of(asked: list[Any], module: str) -> list[dict[str, Any]]:
    return [args for name, args in asked if name == module]


def test_who_does_what(play: Any) -> None:
    done, asked = play(SERVERS, ROLES)
    assert done.returncode == 0, done.stdout + done.stderr

    halts = {args["latch"]: args for args in of(asked, "trading_halt")}
    assert set(halts) == {"/latch/data", "/latch/core", "/latch/phases"} and halts["/latch/core"]["call"] and not halts["/latch/data"]["call"]

    packages = {args["candidates"][0]["id"]: (args["packages"], args["first"], args["services"]) for args in of(asked, "offline_bundle") if "first" in args}
    assert packages == {
        "data": (["redis-server"], ["redis-server"], False),
        "core": (["nodejs"], [], True),
        "phases": (["nodejs"], [], True),
    }
    assert [args["mode"] for args in of(asked, "redis_stage")] == ["start", "wait"] and len(of(asked, "redis_swap")) == 1
    assert {args["candidates"][0]["id"] for args in of(asked, "tree_restore")} == {"core", "phases"}

    observe, settle = of(asked, "reconcile")
    assert [observe["mode"], settle["mode"], observe["latch"], settle["latch"]] == ["observe", "settle", "/latch/core", "/latch/core"]
    assert float(settle["since"]) == 900.25 and settle["redis"] == ELSEWHERE["titan_redis"], "the moment of the data is known on another server"

    # first where trading is, then elsewhere, with the same gates and their moment
    first, *others = of(asked, "trading_resume")
    assert first["latch"] == "/latch/core" and first["call"] == CALL and first["server"] == "titan-core"
    assert sorted(args["latch"] for args in others) == ["/latch/data", "/latch/phases"] and all(not args["call"] for args in others)
    assert {float(args["judged_at"]) for args in others} == {1001.5} and {args["generation"] for args in [first, *others]} == {4}
    for args in [first, *others]:
        assert sorted(args["hosts"]) == ["core", "data", "phases"]
        assert sorted((gate["host"], gate["name"], gate["at"], gate.get("of", "")) for gate in args["gates"]) == [
            ("core", "disk", 999.0, ""), ("core", "pm2", 998.0, ""), ("core", "reconcile_binance", 1000.0, "reconcile"),
            ("data", "disk", 999.0, ""), ("phases", "disk", 999.0, ""), ("phases", "pm2", 998.0, ""),
        ]  # fmt: skip
    assert len(of(asked, "guard_claim")) == 1

    points = {args["environment_id"]: args for args in of(asked, "restore_point_create")}
    assert set(points) == {"lab-data", "lab-core", "lab-phases"} and not points["lab-data"]["services"] and points["lab-core"]["services"]
    assert points["lab-data"]["redis_user"] == "redis" and "redis_user" not in points["lab-core"] and points["lab-core"]["redis"]["host"] == "titan-data"


def test_one_server_does_it_all(play: Any) -> None:
    alone = {"core": {**SERVERS["core"], "titan_redis": HERE, "titan_server": "", "preflight_plan": {**plan("core"), "redis": [{"id": "core"}]}}}
    components = [{name: value for name, value in component.items() if name != "server"} for component in COMPONENTS]
    done, asked = play(alone, ROLES, titan_components=components)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [name for name, args in asked if name not in ("guard_claim", "guard_install", "restore_point_push")] == [
        "trading_halt", "offline_bundle", "redis_stage", "reconcile", "tree_restore", "redis_stage", "redis_swap", "offline_bundle", "reconcile",
        "validate_info", "pm2_health", "trading_resume", "restore_point_create",
    ]  # fmt: skip
    [bundle] = [args for args in of(asked, "offline_bundle") if "first" in args]
    assert (bundle["packages"], bundle["first"], bundle["services"]) == (["redis-server", "nodejs"], ["redis-server"], True)
    [resumed] = of(asked, "trading_resume")
    assert resumed["call"] == CALL and [gate["name"] for gate in resumed["gates"]] == ["pm2", "disk", "reconcile_binance"] and resumed["hosts"] == ["core"]


def test_services_without_a_release_are_a_failure(play: Any) -> None:
    """It is asked for all the same, and then nothing is found."""
    bare = {**SERVERS, "phases": {**SERVERS["phases"], "preflight_plan": {**plan("phases"), "app": []}}}
    done, asked = play(bare, [("app_restore", "main")])
    assert done.returncode == 0 and sorted(len(args["candidates"]) for args in of(asked, "tree_restore")) == [0, 1]


def test_a_trading_server_without_exchanges_is_reconciled_and_fails_as_ever(play: Any) -> None:
    done, asked = play({"core": {**SERVERS["core"], "titan_venues": []}}, [("reconcile", "observe"), ("reconcile", "main")])
    assert done.returncode == 0 and len(of(asked, "reconcile")) == 2, "the module says that no exchange was asked"


def test_nowhere_a_resume_call(play: Any) -> None:
    """The module refuses what no server that trades has resumed before: it is told of none."""
    done, asked = play({"phases": SERVERS["phases"]}, [("trading_halt", "resume")], titan_components=[COMPONENTS[0], COMPONENTS[2], COMPONENTS[1]])
    assert done.returncode == 0 and [float(args["judged_at"]) for args in of(asked, "trading_resume")] == [0.0]
