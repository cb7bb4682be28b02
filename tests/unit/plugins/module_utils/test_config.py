# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _config
from ansible_collections.titan.disaster_recovery.plugins.module_utils._config import ConfigError, Finding, Settings, Tools

HOME = "/opt/titan/config"
BRAIN, PHASE, SECRETS, REDIS = f"{HOME}/brain.json", f"{HOME}/phase.json", f"{HOME}/secrets.json", "/etc/redis/redis.conf"
ECOSYSTEM, UNIT, CA = f"{HOME}/ecosystem.config.js", "/etc/systemd/system/pm2-titan.service", f"{HOME}/ca.pem"
CANARY = "CANARY-7d1f9b"

GOOD: dict[str, Any] = {
    "environment": "prod",
    "port": 3000,
    "redis": {"host": "127.0.0.1", "port": 6379},
    "secretsFile": SECRETS,
    "exchanges": {"binance": {"rest": "https://fapi.binance.com", "ws": "wss://fstream.binance.com/ws", "testnet": False}},
    "maxQty": 0.01,
    "maxLeverage": 20,
    "offset": 0,
}
KEYS: dict[str, Any] = {"redisPassword": CANARY, "exchanges": {"binance": {"apiKey": CANARY, "apiSecret": CANARY}}}
REDIS_CONF = f"port 6379\nrequirepass {CANARY}\ndir /var/lib/redis\nappendonly yes\nmaxmemory 2gb\nmaxmemory-policy noeviction\n"
UNIT_TEXT = "[Unit]\nDescription=PM2\n[Service]\nUser=titan\nExecStart=/opt/pm2 \\\n  resurrect\n# a note\n[Install]\nWantedBy=multi-user.target\n"


def raw(**more: Any) -> dict[str, Any]:
    return {
        "environment_id": "prod",
        "paths": [REDIS, HOME, UNIT],
        "components": [
            {"name": "redis", "kind": "redis", "port": 6379},
            {"name": "brain", "kind": "pm2", "app": "titan-brain", "depends_on": ["redis"], "port": 3000, "config": BRAIN},
            {"name": "phase", "kind": "pm2", "app": "titan-phase", "depends_on": ["brain"], "port": 3001, "config": PHASE},
        ],
        "venues": [
            {
                "name": "binance",
                "rest": "https://fapi.binance.com",
                "ws": "wss://fstream.binance.com/ws",
                "keys": {"file": SECRETS, "api_key": "exchanges.binance.apiKey", "api_secret": "exchanges.binance.apiSecret"},
            }
        ],
        "schemas": {BRAIN: {"type": "object", "required": ["maxQty"], "properties": {"maxQty": {"type": "number"}}}},
        "rules": [{"at": "/environment", "equals": "prod"}, {"at": "*everage", "factor": 2}],
        "approved": [],
        "redis": {"config": REDIS, "data_dir": "/var/lib/redis", "unit": "redis-server", "user": "redis"},
        "redis_password": "",
        "user": "titan",
        "pm2_home": "/opt/titan/.pm2",
        "ecosystem": ECOSYSTEM,
        "history": "/var/lib/titan-dr/config.bundle",
        "repository": "/backups/config",
        **more,
    }


def settings(**more: Any) -> Settings:
    return _config.parse_settings(raw(**more))


def tools(redis: tuple[str, str] = ("pass", ""), script: tuple[str, str] = ("pass", ""), certificate: tuple[str, str] = ("pass", "")) -> Tools:
    def tool(answer: tuple[str, str]) -> _config.Tool:
        return lambda data: answer

    return Tools(tool(redis), tool(script), tool(certificate))


def changed(*path: str, to: Any, base: dict[str, Any] | None = None) -> bytes:
    """The good document with one value changed, or taken away."""
    document = json.loads(json.dumps(GOOD if base is None else base))
    place = document
    for key in path[:-1]:
        place = place[key]
    if to is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return json.dumps(document, indent=1).encode()


SAME = changed("offset", to=0)


def found(path: str, data: bytes, reference: bytes | None = None, **more: Any) -> list[Finding]:
    return _config.check_file(path, data, reference, settings(**more), tools())[0]


def damage(path: str, data: bytes, reference: bytes | None = None, **more: Any) -> list[Finding]:
    return [finding for finding in found(path, data, reference, **more) if finding.damage]


def test_what_is_right_has_no_finding() -> None:
    assert found(BRAIN, SAME, SAME) == [] == found(BRAIN, SAME)
    assert found(SECRETS, json.dumps(KEYS).encode()) == []
    assert found(REDIS, REDIS_CONF.encode(), REDIS_CONF.encode()) == []
    assert found(UNIT, UNIT_TEXT.encode()) == []
    assert found(ECOSYSTEM, b"module.exports = {apps: ['titan-brain', 'titan-phase'].map((name) => `${name}`)}") == []


SPLIT = [
    {"name": "redis", "kind": "redis", "port": 6379, "server": "data"},
    {"name": "brain", "kind": "pm2", "app": "titan-brain", "depends_on": ["redis"], "port": 3000, "config": BRAIN, "server": "core"},
    {"name": "phase", "kind": "pm2", "app": "titan-phase", "depends_on": ["brain"], "port": 3001, "config": PHASE, "server": "phases"},
]


def test_a_server_of_several_has_only_what_is_on_it() -> None:
    at = {"components": SPLIT, "server": "phases", "redis": {"host": "data"}, "paths": [HOME, UNIT]}
    assert [component.name for component in settings(**at).components] == ["phase"] and settings(**at).redis_config == ""
    assert settings(**at).required() == {PHASE, SECRETS, ECOSYSTEM, UNIT}, "what other servers need need not be here"
    assert _config.kind_of(REDIS, settings(**at)) == "plain"
    assert found(ECOSYSTEM, b"module.exports = {apps: ['titan-phase']}", **at) == []
    [missing] = found(ECOSYSTEM, b"module.exports = {apps: ['titan-brain']}", **at)
    assert "does not name titan-phase" in missing.evidence
    assert _config.affected([ECOSYSTEM], {}, settings(**at)) == ["phase"] == _config.affected([PHASE], {}, settings(**at))


def test_the_port_of_a_component_of_another_server_is_known() -> None:
    at = {"components": SPLIT, "server": "core", "redis": {"host": "data"}}
    assert found(BRAIN, SAME, **at) == []
    [wrong] = found(BRAIN, changed("redis", "port", to=6380), **at)
    assert (wrong.kind, wrong.pointer) == ("port", "/redis/port")


def test_the_server_of_redis_needs_no_services() -> None:
    at = {"components": SPLIT, "server": "data", "paths": [REDIS], "venues": []}
    assert settings(**at).required() == {REDIS} and found(REDIS, REDIS_CONF.encode(), REDIS_CONF.encode(), **at) == []
    assert _config.affected([REDIS], {}, settings(**at)) == ["redis"]
    assert [finding.kind for finding in found(REDIS, REDIS_CONF.replace("6379", "6380").encode(), **at)] == ["port"]


@pytest.mark.parametrize(
    ("path", "to", "kind", "word"),
    [
        (("environment",), "staging", "environment", "is not 'prod'"),
        (("maxQty",), 10.0, "bounds", "factor of 10"),
        (("maxQty",), 0.0001, "bounds", "factor of 10"),
        (("maxQty",), -0.01, "bounds", "factor of 10"),
        (("maxQty",), "0.01", "schema", "not of type number"),
        (("maxQty",), ..., "schema", "is missing"),
        (("maxLeverage",), 125, "bounds", "factor of 2"),
        (("offset",), 1000, "bounds", "factor of 10"),
        (("port",), 3001, "port", "is not 3000"),
        (("redis", "port"), 6380, "port", "is not 6379"),
        (("redis", "host"), "${REDIS_HOST}", "placeholder", "never filled in"),
        (("redis", "host"), "{{ redis_host }}", "placeholder", "never filled in"),
        (("redis", "host"), "changeme", "placeholder", "never filled in"),
        (("redis", "host"), "<YOUR HOST>", "placeholder", "never filled in"),
        (("redis", "host"), "your_redis_host", "placeholder", "never filled in"),
        (("exchanges", "binance", "rest"), "https://testnet.binancefuture.com", "url", "test exchange"),
        (("exchanges", "binance", "rest"), "https://api.evil.example", "url", "not an address of binance"),
        (("exchanges", "binance", "rest"), "http://fapi.binance.com", "url", "not an address of binance"),
        (("exchanges", "binance", "testnet"), True, "url", "between test and live"),
    ],
)
def test_what_a_value_must_not_be(path: tuple[str, ...], to: Any, kind: str, word: str) -> None:
    (finding,) = damage(BRAIN, changed(*path, to=to), SAME)
    assert finding.kind == kind and word in finding.evidence
    assert finding.pointer == "/" + "/".join(path)
    if to is not ...:
        assert "(line " in finding.where


@pytest.mark.parametrize(("path", "to"), [(("maxQty",), 0.05), (("maxLeverage",), 25), (("offset",), 3), (("redis", "host"), "10.0.0.1")])
def test_a_valid_edit_is_drift_and_no_damage(path: tuple[str, ...], to: Any) -> None:
    (finding,) = found(BRAIN, changed(*path, to=to), SAME)
    assert (finding.kind, finding.severity, finding.where) == ("drift", "drift", "/" + "/".join(path))


def test_bounds_of_the_inventory_stand_without_a_history_and_in_place_of_the_factor() -> None:
    rules = [{"at": "/maxQty", "file": "*/brain.json", "minimum": 0.001, "maximum": 50}]
    assert damage(BRAIN, changed("maxQty", to=40), SAME, rules=rules) == []
    assert "above 50" in damage(BRAIN, changed("maxQty", to=60), rules=rules)[0].evidence
    assert "below 0.001" in damage(BRAIN, changed("maxQty", to=0), rules=rules)[0].evidence
    assert damage(PHASE, b'{"maxQty": 60}', rules=rules) == []
    assert damage(BRAIN, changed("maxQty", to=60), SAME, rules=[{"at": "/maxQty", "factor": 0}]) == []


def test_a_person_may_approve() -> None:
    assert damage(BRAIN, changed("maxQty", to=10), SAME, approved=[f"{BRAIN}:/maxQty"]) == []
    assert damage(BRAIN, changed("maxQty", to=10), SAME, approved=[f"{PHASE}:/maxQty"])


def test_live_addresses_in_an_environment_for_tests() -> None:
    venue = {"name": "binance", "rest": "https://testnet.binancefuture.com", "ws": "wss://stream-testnet.example/ws"}
    assert "real money" in _config.judge_url("/elsewhere", "https://fapi.binance.com/x", [venue])
    assert _config.judge_url("/elsewhere", "https://api-testnet.bybit.com", [venue]) == ""
    assert _config.judge_url("/a", "https://contest.example.com", [venue]) == "", "a word in a word"


@pytest.mark.parametrize("value", ["", " ", None, 5])
def test_missing_secrets(value: Any) -> None:
    (finding, *_rest) = damage(SECRETS, changed("exchanges", "binance", "apiSecret", to=value, base=KEYS))
    assert (finding.kind, finding.severity) == ("secret", "fatal")


def test_an_empty_secret_that_no_exchange_names() -> None:
    (finding,) = damage(SECRETS, changed("redisPassword", to="", base=KEYS))
    assert finding.pointer == "/redisPassword"


def test_numbers_of_private_files_are_not_told() -> None:
    before = changed("pin", to=1234, base=KEYS)
    (finding,) = damage(SECRETS, changed("pin", to=987654, base=KEYS), before)
    assert "987654" not in finding.evidence and "1234" not in finding.evidence


@pytest.mark.parametrize(
    ("edit", "kind"),
    [
        (("port 6379", "port 6380"), "port"),
        (("dir /var/lib/redis", "dir /tmp"), "redis"),
        (("appendonly yes", "appendonly no"), "redis"),
        ((f"requirepass {CANARY}\n", ""), "secret"),
        ((f"requirepass {CANARY}", "requirepass ${REDIS_PASSWORD}"), "placeholder"),
        (("maxmemory 2gb", "maxmemory 20mb"), "bounds"),
        (("noeviction", "allkeys-lru"), "redis"),
        (("port 6379", "port 6379\nreplicaof 10.0.0.9 6379"), "redis"),
        (("port 6379", 'port "6379'), "redis"),
        (("port 6379", "port many"), "redis"),
    ],
)
def test_redis_conf(edit: tuple[str, str], kind: str) -> None:
    (finding,) = damage(REDIS, REDIS_CONF.replace(*edit).encode(), REDIS_CONF.encode())
    assert finding.kind == kind and CANARY not in finding.text()


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (UNIT_TEXT.replace("[Install]\nWantedBy=multi-user.target\n", ""), "no section Install"),
        (UNIT_TEXT.replace("ExecStart=", "ExecStar"), "neither a section"),
        (UNIT_TEXT.replace("ExecStart=", "ExecStar="), "ExecStart is missing"),
        (UNIT_TEXT.replace("User=titan", "User=root"), "does not run as titan"),
        (UNIT_TEXT + "\0", "no text has"),
        ("User=titan\n" + UNIT_TEXT, "neither a section"),
        (UNIT_TEXT.replace("PM2", "{{ name }}"), "never filled in"),
        ("", "is empty"),
    ],
)
def test_units(data: str, word: str) -> None:
    assert any(word in finding.evidence for finding in damage(UNIT, data.encode()))


def test_the_ecosystem_names_every_application() -> None:
    (finding,) = damage(ECOSYSTEM, b"module.exports = {apps: ['titan-brain']}")
    assert "titan-phase" in finding.evidence


def test_what_programs_say() -> None:
    def ask(path: str, data: bytes, given: Tools) -> tuple[list[Finding], list[str]]:
        return _config.check_file(path, data, None, settings(), given)

    findings, unknown = ask(REDIS, REDIS_CONF.encode(), tools(redis=("fail", "line 3: Redis refuses it")))
    assert [(finding.where, finding.evidence) for finding in findings] == [("line 3", "Redis refuses it")] and unknown == []
    findings, unknown = ask(REDIS, REDIS_CONF.encode(), tools(redis=("unknown", "not installed")))
    assert findings == [] and unknown == [f"{REDIS}: not installed"]
    assert ask(CA, b"-----", tools(certificate=("fail", "holds no certificate")))[0][0].kind == "certificate"


def test_all_files_together() -> None:
    files = {BRAIN: SAME, PHASE: b"{", SECRETS: json.dumps(KEYS).encode(), REDIS: REDIS_CONF.encode()}
    report = _config.check_all(files, {}, [CA], settings(), tools())
    assert {(finding.path, finding.kind) for finding in report.findings} == {(PHASE, "syntax"), (CA, "missing"), (ECOSYSTEM, "missing"), (UNIT, "missing")}
    assert report.verdict == "fail" and report.damaged() == sorted([PHASE, CA, ECOSYSTEM, UNIT])
    files |= {PHASE: b"{}", ECOSYSTEM: b"titan-brain titan-phase", UNIT: UNIT_TEXT.encode()}
    assert _config.check_all(files, {}, [], settings(), tools()).verdict == "pass"
    assert _config.check_all(files, {}, [], settings(), tools(script=("unknown", "no node"))).verdict == "unknown"
    assert CANARY not in json.dumps(report.row())


def test_no_secret_is_ever_quoted() -> None:
    """Every finding about a file full of secrets, in every way it can be damaged."""
    whole = json.dumps(KEYS)
    for cut in range(1, len(whole)):
        assert CANARY not in str(found(SECRETS, whole[:cut].encode(), whole.encode()))
    for text in (whole.replace(":", ""), whole.replace('"', ""), whole + CANARY, whole.replace("{", "{" + f'"redisPassword": "{CANARY}",', 1), f'["{CANARY}"]'):
        findings = found(SECRETS, text.encode(), whole.encode())
        assert findings and CANARY not in str(findings)


@pytest.mark.parametrize(
    ("path", "names"),
    [
        (BRAIN, ["brain"]),
        (SECRETS, ["brain"]),
        (REDIS, ["redis"]),
        (ECOSYSTEM, ["brain", "phase"]),
        (UNIT, ["brain", "phase"]),
        (f"{HOME}/nobody-names-it.json", ["brain", "phase"]),
    ],
)
def test_who_is_affected(path: str, names: list[str]) -> None:
    assert _config.affected([path], {BRAIN: SAME, PHASE: b"{}"}, settings()) == names


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"rules": [{"factor": 2}]}, "at, a pattern"),
        ({"rules": ["x"]}, "must be a dictionary"),
        ({"rules": [{"at": "/x", "max": 2}]}, "max is not known"),
        ({"rules": [{"at": "/x", "maximum": "2"}]}, "must be a number"),
        ({"rules": [{"at": "/x"}]}, "says nothing"),
        ({"schemas": {BRAIN: {"oneOf": []}}}, "oneOf is not understood"),
    ],
)
def test_a_wrong_inventory_is_refused(change: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        settings(**change)


def test_windows_lines_and_rounded_numbers() -> None:
    assert [finding.severity for finding in found(PHASE, b'{\r\n"a": 1}')] == ["drift"]
    assert damage(PHASE, b'{"a": 9007199254740993}')[0].severity == "meaning"
