# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.plugin_utils import _doctor

NOW = 1_000_000.0
DATABASE, LOST, NETWORK, CONFIG = "database_corruption", "complete_system_failure", "network_partition", "configuration_corruption"

Evidence = dict[str, Any]
Change = Callable[[dict[str, Any], Evidence], object]


def endpoint(name: str, cause: str = "ok", **more: Any) -> dict[str, Any]:
    layers = [{"layer": "tcp", "verdict": "pass" if cause == "ok" else "fail", "evidence": f"evidence of {cause}", "ms": 1}]
    return {
        "name": name,
        "owner": name.partition("/")[0],
        "kind": "venue",
        "required": True,
        "cause": cause,
        "ours": False,
        "layers": layers,
        "latency_ms": 1,
        **more,
    }


def component(name: str, verdict: str = "pass") -> dict[str, Any]:
    return {"name": name, "verdict": verdict, "evidence": f"evidence of {name}"}


def probe(name: str, verdict: str = "pass") -> dict[str, Any]:
    return {"name": name, "verdict": verdict, "evidence": f"evidence of {name}"}


def healthy() -> Evidence:
    """A Titan that trades, seen from the controller and from its replacement."""
    seen = {"tcp": "answers", "text": "192.0.2.10 port 22: an SSH server answers"}
    persistence = {"rdb_last_bgsave_status": "ok", "aof_last_write_status": "ok", "aof_last_bgrewrite_status": "ok", "aof_enabled": "1", "loading": "0"}
    host = {
        "redis_conf": {"verdict": "pass", "text": "/etc/redis/redis.conf"},
        "redis": {
            "answer": "ok",
            "text": "it answers",
            "keys": 1000,
            "role": "master",
            "persistence": persistence,
            "canary": {"state": "present", "seq": 70, "at": NOW},
            "book": {"looked": 10, "wrong": [], "count": 0, "kinds": {"position": 2, "order": 8}},
        },
        "unit": {"active": "active", "sub": "running", "result": "success", "restarts": 0, "pid": 42, "process": "S"},
        "files": {"aof": {"verdict": "pass", "state": "intact", "text": "intact"}, "dump": {"verdict": "pass", "keys": 900, "text": "RDB 10"}},
        "disks": [{"path": "/", "percent": 40, "inodes_percent": 10, "free_mib": 50000, "read_only": False}],
        "memory": {"percent": 30, "load": 0.5, "processors": 2},
        "clock": {"skew_s": 0.0},
        "lease": {"state": "none"},
        "latch": {"state": "none", "venues": []},
        "owner": {},
        "paths": {"Redis configuration": True, "PM2 home": True, "application": True},
        "probes": [probe("trading"), probe("websockets"), probe("exchanges")],
    }
    server = {
        "name": "titan",
        "has_redis": True,
        "nouns": {
            "redis_unit": "redis-server",
            "pm2_unit": "pm2-titan",
            "pm2_home": "/opt/titan/.pm2",
            "pm2": "/opt/pm2/pm2",
            "user": "titan",
            "book": {"db": 1, "position": "titan:positions:{venue}:{symbol}", "order": "titan:orders:{id}"},
        },
        "reach": {"from": "the controller", **seen},
        "witnesses": [{"from": "replacement", **seen}],
        "login": {"verdict": "pass", "text": "a login works"},
        "host": host,
        "pm2": {"verdict": "pass", "components": [component("titan-brain"), component("titan-shared")]},
        "network": {"cause": "ok", "endpoints": [endpoint("binance/rest"), endpoint("bybit/rest")]},
        "config": {"verdict": "pass", "findings": [], "unknown": [], "stale": {}},
        "errors": {},
    }
    point = {
        "id": "20260101T000000Z-ab12",
        "taken_at": NOW - 120,
        "stores": ["cloud"],
        "keys": 990,
        "bytes": 1000,
        "canary": 60,
        "classes": {"titan:positions:binance": 2, "titan:orders": 8, "titan:other": 80},
    }
    times = {name: {"p50_s": 20.0, "p95_s": 40.0, "basis": "declared budgets"} for name in (DATABASE, LOST, NETWORK, CONFIG)}
    stores = {"points": [point], "silent": {}, "error": ""}
    return {"now": NOW, "environment_id": "lab", "inventory": ["inventories/lab"], "servers": [server], "stores": stores, "times": times}


def changed(change: Change) -> Evidence:
    evidence = healthy()
    change(evidence["servers"][0], evidence)
    return evidence


def diagnosed(change: Change) -> dict[str, Any]:
    return _doctor.diagnose(changed(change))


def redis(server: dict[str, Any], **more: Any) -> None:
    server["host"]["redis"].update(more)


def services_down(server: dict[str, Any], *names: str) -> None:
    for part in server["pm2"]["components"]:
        if not names or part["name"] in names:
            part["verdict"] = "fail"


def answers(server: dict[str, Any], how: str, text: str, **unit: Any) -> None:
    server["host"]["redis"] = {"answer": how, "text": text}
    server["host"]["unit"].update(unit)
    services_down(server)


def does_not_start(server: dict[str, Any]) -> None:
    answers(server, "down", "cannot connect to Redis: refused", active="activating", sub="auto-restart", result="exit-code", restarts=5, pid=0, process="")


def bad_aof(server: dict[str, Any], text: str = "corrupt middle") -> None:
    server["host"]["files"]["aof"] = {"verdict": "fail", "state": "corrupt middle", "text": text}


def gone(server: dict[str, Any], how: str = "no_answer", witness: str = "no_route") -> None:
    server.update(host=None, pm2=None, network=None, config=None, login={"verdict": "fail", "text": "no login: timed out"})
    server["reach"].update(tcp=how, text=how)
    server["witnesses"][0].update(tcp=witness, text=witness)


def corrupt(server: dict[str, Any], dummy: Evidence) -> None:
    does_not_start(server)
    bad_aof(server)


def started_empty(server: dict[str, Any], dummy: Evidence) -> None:
    redis(server, keys=4, canary={"state": "missing"})


def poisoned(server: dict[str, Any], dummy: Evidence) -> None:
    redis(server, canary={"state": "broken", "text": "not a canary"}, book={"looked": 10, "wrong": ["titan:orders:1: qty"], "count": 1})


def hung(server: dict[str, Any], dummy: Evidence) -> None:
    answers(server, "hung", "no answer from Redis: timed out", process="T")


def config_broken(server: dict[str, Any], dummy: Evidence) -> None:
    finding = {"path": "/opt/titan/config/brain.config.json", "kind": "syntax", "where": "line 3", "evidence": "a comma is missing", "severity": "fatal"}
    server["config"] = {"verdict": "fail", "findings": [finding], "stale": {}}


def causes(cause: str, *venues: str, **more: Any) -> Change:
    def change(server: dict[str, Any], dummy: Evidence) -> None:
        wanted = venues or ("binance", "bybit")
        server["network"]["endpoints"] = [endpoint(f"{name}/rest", cause if name in wanted else "ok", **more) for name in ("binance", "bybit")]
        server["network"]["cause"] = cause
        server["host"]["probes"] = [probe("trading"), probe("exchanges", "fail")]

    return change


def latched(server: dict[str, Any], dummy: Evidence) -> None:
    server["host"]["latch"] = {"state": "halted", "generation": 3, "reason": "operator", "run_id": "r1", "age_s": 60, "venues": []}
    server["host"]["probes"][0]["verdict"] = "fail"


def test_a_healthy_system_gets_no_proposal() -> None:
    found = _doctor.diagnose(healthy())
    assert (found["verdict"], found["proposals"], found["look_at"]) == ("none", [], [])
    assert {row["verdict"] for row in found["rows"]} == {"pass"}
    assert found["text"].startswith("Do nothing.") and "restore points" in found["text"]


FAULTS: dict[str, tuple[Change, list[str]]] = {
    "destroyed": (lambda server, _: gone(server), [LOST]),
    "wiped": (
        lambda server, _: (server["host"].update(paths=dict.fromkeys(server["host"]["paths"], False)), does_not_start(server)),
        [LOST],
    ),
    "bitflip": (corrupt, [DATABASE]),
    "manifest-missing": (started_empty, [DATABASE]),
    "started empty, without a canary": (
        lambda server, evidence: (
            evidence["stores"]["points"][0].update(keys=3, canary=None),
            redis(server, keys=4, canary={"state": "missing"}, uptime_s=20),
            server["host"]["unit"].update(restarts=1),
        ),
        [DATABASE],
    ),
    "hung": (hung, [DATABASE]),
    "hung in the kernel's eyes too": (lambda server, _: answers(server, "hung", "timed out", process="S"), [DATABASE]),
    "poisoned": (poisoned, [DATABASE]),
    "two at once": (lambda server, all_: (corrupt(server, all_), config_broken(server, all_), causes("dns")(server, all_)), [CONFIG, DATABASE, NETWORK]),
    "config": (config_broken, [CONFIG]),
    "config that stops the services": (lambda server, all_: (config_broken(server, all_), services_down(server)), [CONFIG]),
    "redis.conf": (lambda server, _: (server["host"].update(redis_conf={"verdict": "fail", "text": "line 3: include"}), does_not_start(server)), [CONFIG]),
    **{cause: (causes(cause), [NETWORK]) for cause in ("interface", "route", "dns", "tcp_refused", "tcp_silent", "tls_untrusted", "tls_expired", "ws_silent")},
    "one exchange": (causes("tcp_silent", "bybit"), [NETWORK]),
    "maintenance": (causes("maintenance"), ["call"]),
    "rate limit": (causes("rate_limited"), ["call"]),
    "key": (causes("key_refused"), ["call"]),
    "rate limit, streams refused too": (
        lambda server, _: server["network"].update(
            cause="rate_limited", endpoints=[endpoint("binance/rest", "rate_limited"), endpoint("binance/ws", "ws_refused")]
        ),
        ["call"],
    ),
    "one in maintenance, one cut off": (
        lambda server, _: server["network"].update(cause="dns", endpoints=[endpoint("binance/rest", "maintenance"), endpoint("bybit/rest", "dns")]),
        [NETWORK, "call"],
    ),
    "one service": (lambda server, _: services_down(server, "titan-shared"), ["restart_services"]),
    "all services": (lambda server, _: services_down(server), ["restart_services"]),
    "old values": (lambda server, _: server["config"].update(stale={"titan-brain": "titan-brain has another"}), ["restart_services"]),
    "flushed": (
        lambda server, _: redis(server, keys=4, book={"looked": 0, "wrong": [], "complete": True, "kinds": {"position": 0, "order": 0}}),
        [DATABASE],
    ),
    "files of another owner": (
        lambda server, _: (does_not_start(server), server["host"]["files"].update(owner={"verdict": "fail", "text": "dump.rdb does not belong to redis"})),
        ["restart_redis"],
    ),
    "files of another owner, for which Redis refuses its configuration": (
        lambda server, all_: (
            config_broken(server, all_),
            server["config"]["findings"][0].update(path="/etc/redis/redis.conf", evidence="Redis refuses it: Permission denied"),
            does_not_start(server),
            server["host"]["files"].update(owner={"verdict": "fail", "text": "dump.rdb does not belong to redis"}),
        ),
        ["restart_redis"],
    ),
    "Redis was stopped": (
        lambda server, _: answers(server, "down", "refused", active="inactive", sub="dead", result="success", pid=0, process=""),
        ["restart_redis"],
    ),
    "disk": (lambda server, _: server["host"]["disks"][0].update(percent=100, free_mib=0), ["mend_machine"]),
    "clock": (lambda server, _: server["host"]["clock"].update(skew_s=90.0), ["mend_machine"]),
    "a recovery is at work": (
        lambda server, all_: (
            corrupt(server, all_),
            server["host"].update(lease={"state": "held", "run_id": "r1", "scenario": DATABASE, "owner": "me@here", "epoch": 4, "sign_age_s": 2.0}),
        ),
        ["wait"],
    ),
    "a recovery broke off": (
        lambda server, all_: (
            latched(server, all_),
            services_down(server),
            server["host"].update(lease={"state": "held", "run_id": "r1", "scenario": DATABASE, "owner": "me@here", "epoch": 4, "sign_age_s": 900.0}),
        ),
        ["go_on"],
    ),
    "a recovery failed": (
        lambda server, all_: (
            latched(server, all_),
            server["host"].update(lease={"state": "closed", "run_id": "r1", "scenario": DATABASE, "result": "failed", "epoch": 4, "sign_age_s": 900.0}),
        ),
        ["go_on"],
    ),
    "halted by hand": (latched, ["resume"]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_has_its_name(name: str) -> None:
    change, expected = FAULTS[name]
    found = diagnosed(change)
    assert [made["scenario"] for made in found["proposals"]] == expected, found
    assert found["verdict"] == "propose" and all(made["evidence"] and made["command"] and made["why"] for made in found["proposals"])
    assert "\n".join(_doctor.lines(found)).count("->") >= len(expected)


UNKNOWN: dict[str, tuple[Change, str]] = {
    "one way alone is cut": (lambda server, _: gone(server, "no_answer", "answers"), "reachable"),
    "frozen, or far too busy": (lambda server, _: gone(server, "silent", "silent"), "reachable"),
    "far too busy to answer": (
        lambda server, _: (answers(server, "hung", "timed out"), server["host"]["memory"].update(load=30.0)),
        "redis",
    ),
    "nobody else could look": (lambda server, _: gone(server, "no_answer", "unknown"), "reachable"),
    "no login, but sshd is refused by somebody": (lambda server, _: gone(server, "refused", "refused"), "reachable"),
    "it does not start and its files look whole": (lambda server, _: does_not_start(server), "redis"),
    "one witness of an empty Redis": (lambda server, _: redis(server, keys=4), "redis"),
    "fewer keys, and the canary went on, after a restart": (
        lambda server, _: (redis(server, keys=4, uptime_s=20), server["host"]["unit"].update(restarts=1)),
        "redis",
    ),
    "every order is gone": (
        lambda server, _: redis(server, book={"looked": 2, "wrong": [], "complete": True, "kinds": {"position": 2, "order": 0}}),
        "redis",
    ),
    "loading": (lambda server, _: answers(server, "loading", "loaded 40 %"), "redis"),
    "credentials": (lambda server, _: answers(server, "auth", "NOAUTH"), "redis"),
    "MISCONF": (lambda server, _: answers(server, "error", "MISCONF Redis is configured to save"), "redis"),
    "a save failed": (lambda server, _: server["host"]["redis"]["persistence"].update(rdb_last_bgsave_status="err"), "redis"),
    "a replica": (lambda server, _: redis(server, role="slave"), "redis"),
    "a store is cut off": (
        lambda server, _: server["network"]["endpoints"].append(endpoint("cloud", "tcp_silent", kind="store", required=False)),
        "network",
    ),
    "no restore point": (lambda _, evidence: evidence["stores"].update(points=[], error="none"), "restore points"),
    "another environment": (lambda server, all_: (corrupt(server, all_), server["host"].update(owner={"environment_id": "production"})), "inventory"),
    "halted in the application": (lambda server, _: server["host"]["probes"][0].update(verdict="fail"), "trading"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_proves_nothing_is_unknown_with_what_to_look_at(name: str) -> None:
    change, probe_name = UNKNOWN[name]
    found = diagnosed(change)
    assert (found["verdict"], found["proposals"]) == ("unknown", []), found
    assert probe_name in {row["probe"] for row in found["look_at"]}
    assert all(row["look"] for row in found["look_at"])


def test_evidence_that_is_missing_is_unknown_and_never_well() -> None:
    for part in ("host", "pm2", "network", "config", "login"):
        found = diagnosed(lambda server, _, part=part: server.update({part: None}))
        assert found["verdict"] == "unknown" and found["proposals"] == [], part
    for part in healthy()["servers"][0]["host"]:
        found = diagnosed(lambda server, _, part=part: server["host"].pop(part))
        assert found["proposals"] == [], part
        assert found["verdict"] == "unknown" or part in ("owner", "unit", "files", "redis_conf", "paths", "lease", "probes"), part
    assert _doctor.diagnose({})["verdict"] == "unknown"
    assert _doctor.diagnose({"servers": [{}]})["verdict"] == "unknown"


def test_a_destructive_proposal_says_what_it_costs() -> None:
    made = diagnosed(corrupt)["proposals"][0]
    assert made["destructive"] and made["confidence"] == "high" and len(made["evidence"]) >= 2
    assert made["restore_point"]["id"] == "20260101T000000Z-ab12" and made["expected_loss_s"] == 120.0
    assert made["expected_time"]["p50_s"] == 20.0
    assert made["command"] == "titan-dr recover database_corruption -i inventories/lab"
    assert "loses at most the last 2 min 00 s" in _doctor.costs(made)
    bare = diagnosed(lambda server, evidence: (corrupt(server, evidence), evidence.update(stores=None, times={})))["proposals"][0]
    assert bare["restore_point"] is None and "NO RESTORE POINT" in _doctor.costs(bare)


def test_a_redis_that_answers_is_given_up_only_with_consent() -> None:
    assert "database_corruption_confirm=true" in diagnosed(poisoned)["proposals"][0]["command"]
    assert "database_corruption_confirm" not in diagnosed(corrupt)["proposals"][0]["command"]


def test_a_restart_is_named_where_it_may_be_enough() -> None:
    assert "restart of redis-server" in diagnosed(hung)["proposals"][0]["first"]
    assert diagnosed(lambda server, all_: (hung(server, all_), bad_aof(server)))["proposals"][0]["first"] == ""


def test_several_causes_stand_in_the_order_in_which_they_help() -> None:
    found = diagnosed(FAULTS["two at once"][0])
    assert found["text"] == "Proposed, in this order: configuration_corruption, database_corruption, network_partition."
    assert "before the database" in found["proposals"][0]["why"]


def test_a_damaged_file_beside_a_redis_that_is_well_is_no_reason_to_restore() -> None:
    found = diagnosed(lambda server, _: bad_aof(server))
    assert found["proposals"] == [] and [row["probe"] for row in found["look_at"]] == ["redis files"]


def test_no_services_are_restarted_while_the_cause_is_not_known() -> None:
    found = diagnosed(lambda server, _: (services_down(server), server.update(network=None)))
    assert found["proposals"] == [] and found["verdict"] == "unknown"


def test_a_split_titan_has_a_table_for_each_server() -> None:
    evidence = healthy()
    other = copy.deepcopy(evidence["servers"][0])
    other.update(name="phases", has_redis=False)
    other["host"].pop("redis")
    evidence["servers"].append(other)
    assert _doctor.diagnose(evidence)["verdict"] == "none"
    data = copy.deepcopy(evidence)
    data["servers"][0].update(pm2=None)
    assert _doctor.diagnose(data)["verdict"] == "unknown"
    data["servers"][0].update(has_pm2=False)
    assert _doctor.diagnose(data)["verdict"] == "none", "a server without services is not asked for any"
    data["servers"][0].update(network=None)
    assert _doctor.diagnose(data)["verdict"] == "unknown"
    data["servers"][0].update(has_venues=False)
    assert _doctor.diagnose(data)["verdict"] == "none", "a server without exchanges is not asked for the way to them"
    # each server is of an environment of its own
    data["servers"][1]["host"]["owner"] = {"environment_id": "phases"}
    assert [row["host"] for row in _doctor.diagnose(data)["rows"] if row["probe"] == "inventory"] == ["phases"]
    data["servers"][1].update(environment_id="phases")
    assert _doctor.diagnose(data)["verdict"] == "none"
    corrupt(evidence["servers"][0], evidence)
    assert [(made["scenario"], made["host"]) for made in _doctor.diagnose(evidence)["proposals"]] == [(DATABASE, "titan")]


# --- whatever the evidence ------------------------------------------------------------------------------------------


def mutated(chance: random.Random) -> Evidence:
    """A mix of faults, then parts that are missing, swapped or nonsense."""
    evidence = healthy()
    server = evidence["servers"][0]
    changes = [change for change, _names in [*FAULTS.values(), *UNKNOWN.values()]]
    for change in chance.sample(changes, chance.choice((0, 1, 1, 2, 3))):
        try:
            change(server, evidence)
        except (TypeError, AttributeError, LookupError):
            continue  # an earlier one took away what it changes
    for _ in range(chance.choice((0, 0, 1, 2, 4))):
        path: Any = evidence
        for _depth in range(chance.randrange(1, 5)):
            keys = list(path) if isinstance(path, dict) else list(range(len(path))) if isinstance(path, list) else []
            if not keys:
                break
            key = chance.choice(keys)
            if chance.random() < 0.3:
                path[key] = chance.choice((None, "", 0, -1, [], {}, "unknown", True, "nonsense", 1e12))
                break
            path = path[key]
    return evidence


def proven_well(server: Any) -> bool:
    """By the evidence alone, written without the doctor's help."""
    host = server.get("host") if isinstance(server, dict) else None
    said = host.get("redis") if isinstance(host, dict) else None
    login = server.get("login") if isinstance(server, dict) else None
    if not isinstance(said, dict) or not isinstance(login, dict) or login.get("verdict") != "pass":
        return False
    persistence = said.get("persistence")
    if not isinstance(persistence, dict) or said.get("answer") != "ok" or said.get("role") != "master" or persistence.get("loading") != "0":
        return False
    whole = said.get("keys") == 1000 and said.get("canary") == {"state": "present", "seq": 70, "at": NOW} and not (said.get("book") or {}).get("wrong")
    return whole and all(persistence.get(name) == "ok" for name in ("rdb_last_bgsave_status", "aof_last_write_status", "aof_last_bgrewrite_status"))


def test_ten_thousand_mixes_never_give_up_a_redis_that_is_proven_well() -> None:
    chance = random.Random(20260101)
    well = destructive = 0
    for number in range(10_000):
        evidence = mutated(chance)
        found = _doctor.diagnose(evidence)
        assert found["verdict"] in ("none", "propose", "unknown")
        _doctor.lines(found)
        grave = [made for made in found["proposals"] if made["destructive"]]
        destructive += bool(grave)
        for made in grave:
            assert len(made["evidence"]) >= 2, (number, made)
        servers = evidence.get("servers")
        server = servers[0] if isinstance(servers, list) and servers else None
        if server is not None and proven_well(server):
            well += 1
            assert grave == [], (number, grave)
        if found["verdict"] == "none":
            assert found["look_at"] == [] and all(row["verdict"] == "pass" for row in found["rows"])
    # the mixes reach both sides
    assert well > 2000 and destructive > 1000
