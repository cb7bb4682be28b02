# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Whether a configuration file may be used: what it says (syntax, schema) and what that means (bounds, environment, exchanges, placeholders, secrets).

Pure but for `Tools`, which ask the programs that read the file. No finding quotes a value of a file, but for a plain number outside the private files.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
import typing as t
from urllib.parse import urlsplit

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _config_json, _config_schema, _redis_conf
from ansible_collections.titan.disaster_recovery.plugins.module_utils._components import Component, here, parse_components
from ansible_collections.titan.disaster_recovery.plugins.module_utils._config_json import DRIFT, FATAL, MEANING, step

# A number may become so many times greater or smaller without anybody being asked.
FACTOR = 10.0
# Kinds of finding that are mended on the file as it is.
ATTRIBUTES = ("mode", "owner")
_PLACEHOLDER = re.compile(
    r"\$\{[^}]*\}|\{\{.*?\}\}|<[A-Z][A-Z_ -]{2,}>|\b(?:CHANGE|REPLACE)[_-]?(?:ME|THIS)\b|\bYOUR[_-][A-Z_-]+\b|\bPLACEHOLDER\b", re.IGNORECASE
)
# In programs and units ${...} has a meaning of its own.
_TEMPLATE = re.compile(r"\{\{\s*[A-Za-z_][\w.]*\s*(?:\|[^}]*)?\}\}|\b(?:CHANGE|REPLACE)[_-]?(?:ME|THIS)\b")
_TEST_HOST = re.compile(r"(?:^|[.-])(?:testnet|test|sandbox|demo|paper|mock)(?:[.-]|\d|$)", re.IGNORECASE)
_TEST_SWITCH = re.compile(r"testnet|sandbox|paper|dry_?run|mock|demo", re.IGNORECASE)
# Where these exchanges trade with real money.
_LIVE_DOMAINS = ("binance.com", "bybit.com", "bytick.com", "bybit.nl")
_URL = re.compile(r"^(?:https?|wss?)://", re.IGNORECASE)
_RULE_KEYS = ("file", "at", "factor", "minimum", "maximum", "equals")


class ConfigError(ValueError):
    """The inventory describes its configuration wrongly."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """`where` is a JSON pointer, or a line and column, or both."""

    path: str
    kind: str
    where: str
    evidence: str
    severity: str
    pointer: str = ""

    @property
    def damage(self) -> bool:
        """Nothing may be started with the file as it is."""
        return self.severity in (FATAL, MEANING)

    @property
    def replaces(self) -> bool:
        """Another version of the file is needed: a wrong owner or mode is mended on the file itself."""
        return self.damage and self.kind not in ATTRIBUTES

    def row(self) -> dict[str, str]:
        return {key: str(getattr(self, key)) for key in ("path", "kind", "where", "evidence", "severity")}

    def text(self) -> str:
        return f"{self.path}{': ' + self.where if self.where else ''}: {self.evidence}"


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a value may be. `file` and `at` (a JSON pointer) are patterns of fnmatch, in which * passes slashes too."""

    at: str
    file: str = "*"
    factor: float | None = None
    minimum: float | None = None
    maximum: float | None = None
    equals: t.Any = None

    def fits(self, path: str, pointer: str) -> bool:
        return fnmatch.fnmatchcase(path, self.file) and fnmatch.fnmatchcase(pointer, self.at)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the inventory says of the configuration."""

    environment_id: str
    paths: tuple[str, ...]
    # of this server
    components: tuple[Component, ...]
    venues: tuple[dict[str, t.Any], ...]
    schemas: dict[str, t.Any]
    rules: tuple[Rule, ...]
    approved: frozenset[str]
    redis: dict[str, t.Any]
    user: str
    ecosystem: str
    history: str
    repository: str
    # of all servers: a file may name the port of another one's
    known: tuple[Component, ...] = ()

    @property
    def redis_config(self) -> str:
        """Empty where Redis is on another server."""
        return "" if self.redis.get("host") else str(self.redis["config"])

    @property
    def private(self) -> frozenset[str]:
        """Files that hold secrets."""
        return frozenset(str(venue["keys"]["file"]) for venue in self.venues if (venue.get("keys") or {}).get("file"))

    def component(self, path: str) -> Component | None:
        return next((component for component in self.components if component.config == path), None)

    def required(self) -> set[str]:
        """Files that must be there, whatever a revision says."""
        named = {component.config for component in self.components if component.config} | self.private
        named |= {self.redis_config, self.ecosystem, *(path for path in self.paths if path.endswith(".service"))}
        return {path for path in named if path and any(path == root or path.startswith(root.rstrip("/") + "/") for root in self.paths)}


# How a program that reads the file finds it: (pass, fail or unknown, what it said).
Tool = t.Callable[[bytes], tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Tools:
    """Programs of the server that read a file without using it."""

    redis: Tool
    script: Tool
    certificate: Tool


def parse_settings(raw: t.Mapping[str, t.Any]) -> Settings:
    """Check what the inventory says. ComponentError, ConfigError."""
    rules = []
    for number, item in enumerate(raw["rules"]):
        where = f"rule number {number + 1} of titan_config_rules"
        if not isinstance(item, dict) or not isinstance(item.get("at"), str):
            raise ConfigError(f"{where}: must be a dictionary with at, a pattern for JSON pointers such as /maxQty or */leverage")
        if unknown := sorted(set(item) - set(_RULE_KEYS)):
            raise ConfigError(f"{where}: {', '.join(unknown)} is not known; known are {', '.join(_RULE_KEYS)}")
        for key in ("factor", "minimum", "maximum"):
            if key in item and (isinstance(item[key], bool) or not isinstance(item[key], (int, float))):
                raise ConfigError(f"{where}: {key} must be a number")
        if not any(key in item for key in _RULE_KEYS[2:]):
            raise ConfigError(f"{where}: says nothing; it needs one of {', '.join(_RULE_KEYS[2:])}")
        rules.append(Rule(**item))
    for path, schema in raw["schemas"].items():
        try:
            _config_schema.check_schema(schema)
        except _config_schema.SchemaError as exc:
            raise ConfigError(f"the schema of {path}: {exc}") from exc
    components = parse_components(raw["components"], raw.get("server", ""))
    return Settings(
        environment_id=raw["environment_id"],
        paths=tuple(raw["paths"]),
        components=tuple(here(components)),
        venues=tuple(raw["venues"]),
        schemas=dict(raw["schemas"]),
        rules=tuple(rules),
        approved=frozenset(raw["approved"]),
        redis=dict(raw["redis"]),
        user=raw["user"],
        ecosystem=raw["ecosystem"],
        history=raw["history"],
        repository=raw["repository"],
        known=tuple(components),
    )


# --- one file --------------------------------------------------------------------------------------------------------------


def kind_of(path: str, settings: Settings) -> str:
    if path == settings.redis_config:
        return "redis"
    if path == settings.ecosystem:
        return "script"
    for ending, kind in ((".json", "json"), (".js", "script"), (".cjs", "script"), (".service", "unit"), (".pem", "certificate"), (".crt", "certificate")):
        if path.endswith(ending):
            return kind
    return "plain"


def check_file(path: str, data: bytes, reference: bytes | None, settings: Settings, tools: Tools) -> tuple[list[Finding], list[str]]:
    """What is wrong with a file, against the last proven version of it; and what could not be found out."""
    kind = kind_of(path, settings)
    unknown: list[str] = []
    if kind == "json":
        found = check_json(path, data, reference, settings)
    elif not data.strip():
        found = [Finding(path, "syntax", "line 1, column 1", "the file is empty", FATAL)] if kind != "plain" or reference else []
    elif kind == "redis":
        found = check_redis(path, data, reference, settings)
        unknown = _ask(path, "redis", tools.redis, data, found)
    elif kind == "script":
        found = _named(path, data, settings) + _templates(path, data)
        unknown = _ask(path, "script", tools.script, data, found)
    elif kind == "unit":
        found = check_unit(path, data, settings) + _templates(path, data)
    elif kind == "certificate":
        found = []
        unknown = _ask(path, "certificate", tools.certificate, data, found)
    else:
        found = []
    found = [finding for finding in found if f"{finding.path}:{finding.pointer or finding.where}" not in settings.approved]
    if reference is not None and data != reference and not any(finding.replaces for finding in found):
        found.append(Finding(path, "drift", ", ".join(differing(path, data, reference, settings)[:5]), "differs from the last proven revision", DRIFT))
    return found, unknown


def _ask(path: str, kind: str, tool: Tool, data: bytes, found: list[Finding]) -> list[str]:
    verdict, said = tool(data)
    if verdict == "fail":
        where, _colon, text = said.partition(": ")
        found.append(Finding(path, kind, where if text else "", text or said, FATAL))
    return [f"{path}: {said}"] if verdict == "unknown" else []


def _line_of(data: bytes, at: int) -> str:
    return f"line {data.count(b'%c' % 10, 0, at) + 1}"


def _templates(path: str, data: bytes) -> list[Finding]:
    text = data.decode("utf-8", "replace")
    return [
        Finding(path, "placeholder", _line_of(text.encode(), len(text[: match.start()].encode())), "a placeholder was never filled in", FATAL)
        for match in [_TEMPLATE.search(text)]
        if match
    ]


def _named(path: str, data: bytes, settings: Settings) -> list[Finding]:
    """The file that PM2 starts from names every application."""
    text = data.decode("utf-8", "replace")
    missing = [item.app for item in settings.components if item.kind == "pm2" and item.app not in text] if path == settings.ecosystem else []
    return [Finding(path, "script", "", f"does not name {', '.join(missing)}", FATAL)] if missing else []


def check_unit(path: str, data: bytes, settings: Settings) -> list[Finding]:
    """A unit of systemd that starts PM2: its sections, what it runs and as whom."""
    sections: dict[str, dict[str, str]] = {}
    current: dict[str, str] | None = None
    continued = False
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        stripped = line.strip()
        if "\0" in line:
            return [Finding(path, "unit", f"line {number}", "a character that no text has", FATAL)]
        if not continued and (not stripped or stripped[0] in "#;"):
            continue
        if not continued and stripped.startswith("[") and stripped.endswith("]"):
            current = sections.setdefault(stripped[1:-1], {})
        elif not continued:
            name, equals, value = stripped.partition("=")
            if current is None or not equals:
                return [Finding(path, "unit", f"line {number}", "neither a section nor a setting of one", FATAL)]
            current[name.strip()] = value.strip()
        continued = stripped.endswith("\\")
    found = [Finding(path, "unit", "", f"has no section {name}", FATAL) for name in ("Unit", "Service", "Install") if name not in sections]
    service = sections.get("Service", {})
    if not found and not service.get("ExecStart"):
        found.append(Finding(path, "unit", "Service", "starts nothing: ExecStart is missing", FATAL))
    if not found and service.get("User", settings.user) != settings.user:
        found.append(Finding(path, "unit", "Service", f"does not run as {settings.user}", MEANING))
    return found


# --- Redis -------------------------------------------------------------------------------------------------------------------


def check_redis(path: str, data: bytes, reference: bytes | None, settings: Settings) -> list[Finding]:
    """What the file says, against the inventory and the last proven version. Whether Redis takes it is asked of Redis."""
    try:
        conf = _redis_conf.parse_conf(data.decode("utf-8"))
    except (_redis_conf.RedisError, UnicodeDecodeError) as exc:
        where = str(exc).partition(":")[0] if str(exc).startswith("line ") else ""
        return [Finding(path, "redis", where, "is not what Redis reads", FATAL)]
    found = []
    port = next((component.port for component in settings.components if component.kind == "redis"), None)
    if port and port not in conf.ports:
        found.append(Finding(path, "port", "port", f"Redis would not listen on {port}, its port in titan_components", MEANING))
    wanted = str(settings.redis.get("data_dir") or conf.directory)
    if wanted.rstrip("/") != conf.directory.rstrip("/"):
        found.append(Finding(path, "redis", "dir", f"is not {wanted}, so Redis would begin with other data or none", MEANING))
    found += [
        Finding(path, "redis", reason.partition(":")[0], "the server would follow another one or is a node of a cluster", MEANING) for reason in conf.refused
    ]
    password = next((words for _number, words in _redis_lines(data) if words[0].lower() in ("requirepass", "masterauth")), None)
    if password and any(_PLACEHOLDER.search(word) for word in password[1:]):
        found.append(Finding(path, "placeholder", password[0].lower(), "a placeholder was never filled in", FATAL))
    before = _redis_or_none(reference)
    if before:
        protected = (bool(before.password or before.users or before.aclfile), bool(conf.password or conf.users or conf.aclfile))
        if protected == (True, False):
            found.append(Finding(path, "secret", "requirepass", "anybody could log in: the proven revision asks for a password", FATAL))
        if before.appendonly != conf.appendonly:
            found.append(Finding(path, "redis", "appendonly", "is not as proven: Redis would load its data from another file", MEANING))
        for name, one, other in (("maxmemory", before.maxmemory, conf.maxmemory), ("databases", before.databases, conf.databases)):
            if one and (not other or not 1 / FACTOR <= other / one <= FACTOR) and other != one:
                found.append(Finding(path, "bounds", name, f"was {one} when it was proven and is {other}", MEANING, name))
        if before.policy == "noeviction" and conf.policy != "noeviction":
            found.append(Finding(path, "redis", "maxmemory-policy", "Redis would throw keys away: the proven revision says noeviction", MEANING))
    return found


def _redis_lines(data: bytes) -> list[tuple[int, list[str]]]:
    lines = ((number, line.strip()) for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1))
    return [(number, _redis_conf.split(line)) for number, line in lines if line and not line.startswith("#")]


def _redis_or_none(data: bytes | None) -> _redis_conf.RedisConf | None:
    try:
        return _redis_conf.parse_conf(data.decode("utf-8")) if data is not None else None
    except (_redis_conf.RedisError, UnicodeDecodeError):
        return None


# --- JSON ----------------------------------------------------------------------------------------------------------------------


def leaves(value: t.Any, pointer: str = "") -> t.Iterator[tuple[str, t.Any]]:
    """Every value that holds no others, with its JSON pointer."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, step(pointer, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from leaves(inner, step(pointer, number))
    else:
        yield pointer, value


def differing(path: str, data: bytes, reference: bytes, settings: Settings) -> list[str]:
    """Where two versions of a file differ, without what stands there: JSON pointers, or lines."""
    if kind_of(path, settings) == "json":
        one, other = _config_json.parse(data), _config_json.parse(reference)
        if one.complete and other.complete:
            left, right = dict(leaves(one.value)), dict(leaves(other.value))
            return [key for key in {**left, **right} if key not in left or key not in right or not _config_schema.same(left[key], right[key])] or [
                "spaces only"
            ]
    old = set(reference.splitlines())
    return [f"line {number}" for number, line in enumerate(data.splitlines(), 1) if line not in old] or ["lines left out"]


def check_json(path: str, data: bytes, reference: bytes | None, settings: Settings) -> list[Finding]:
    document = _config_json.parse(data)
    found = [Finding(path, "syntax", problem.where, problem.text, problem.severity) for problem in document.problems]
    if not document.complete:
        return found

    def say(kind: str, pointer: str, evidence: str, severity: str = MEANING) -> None:
        at, parent = document.places.get(pointer), pointer
        while at is None and parent:
            parent = parent.rpartition("/")[0]
            at = document.places.get(parent)
        place = f"{pointer or '/'} (line {at[0]}, column {at[1]})" if at else pointer
        found.append(Finding(path, kind, place, evidence, severity, pointer))

    if path in settings.schemas:
        for pointer, text in _config_schema.problems(document.value, settings.schemas[path]):
            say("schema", pointer, text, FATAL)
    before = dict(leaves(_config_json.parse(reference).value)) if reference is not None else {}
    for pointer, value in leaves(document.value):
        if isinstance(value, str):
            _judge_text(path, pointer, value, settings, say)
        elif isinstance(value, bool):
            if before.get(pointer) is (not value) and _TEST_SWITCH.search(pointer):
                say("url", pointer, "the switch between test and live is not as in the last proven revision")
        elif isinstance(value, (int, float)):
            _judge_number(path, pointer, value, before.get(pointer), settings, say)
        for rule in settings.rules:
            if rule.equals is not None and rule.fits(path, pointer) and not _config_schema.same(value, rule.equals):
                say("environment" if pointer.rpartition("/")[2].lower().startswith("environment") else "bounds", pointer, f"is not {rule.equals!r}")
    for venue in settings.venues:
        keys = venue.get("keys") or {}
        for name in ("api_key", "api_secret"):
            dotted = keys.get(name)
            if keys.get("file") == path and dotted:
                pointer = "".join(step("", part) for part in dotted.split("."))
                held: t.Any = document.value
                for part in dotted.split("."):
                    held = held.get(part) if isinstance(held, dict) else None
                if not isinstance(held, str) or not held.strip():
                    say("secret", pointer, f"the {name} of {venue['name']} is missing", FATAL)
    return found


Say = t.Callable[..., None]


def _judge_text(path: str, pointer: str, value: str, settings: Settings, say: Say) -> None:
    if _PLACEHOLDER.search(value):
        say("placeholder", pointer, "a placeholder was never filled in", FATAL)
    elif path in settings.private and not value.strip():
        say("secret", pointer, "the secret is empty", FATAL)
    elif _URL.match(value) and (why := judge_url(pointer, value, settings.venues)):
        say("url", pointer, why)


def _judge_number(path: str, pointer: str, value: float, before: t.Any, settings: Settings, say: Say) -> None:
    rules = [rule for rule in settings.rules if rule.fits(path, pointer)]
    shown = f" ({value:g})" if path not in settings.private else ""
    for rule in rules:
        if rule.minimum is not None and value < rule.minimum:
            say("bounds", pointer, f"is below {rule.minimum:g}{shown}")
        if rule.maximum is not None and value > rule.maximum:
            say("bounds", pointer, f"is above {rule.maximum:g}{shown}")
    wanted = _port(path, pointer, settings)
    if wanted is not None:
        if value != wanted:
            say("port", pointer, f"is not {wanted}, the port in titan_components")
        return
    factors = [rule.factor for rule in rules if rule.factor is not None]
    bounded = any(rule.minimum is not None or rule.maximum is not None for rule in rules)
    factor = min(factors) if factors else 0.0 if bounded else FACTOR
    if not factor or isinstance(before, bool) or not isinstance(before, (int, float)) or value == before:
        return
    beyond = abs(value) > factor if before == 0 else not 1 / factor <= value / before <= factor
    if beyond:
        was = f": {before:g} when it was proven, {value:g} now" if shown else ""
        say("bounds", pointer, f"changed by more than a factor of {factor:g} since the last proven revision{was}")


def _port(path: str, pointer: str, settings: Settings) -> int | None:
    """The port that must stand here: of the component whose file it is, or of the one that the member above is named after."""
    above, _slash, last = pointer.rpartition("/")
    if last != "port":
        return None
    own = settings.component(path)
    if above == "":
        return own.port if own else None
    name = above.rpartition("/")[2]
    return next((component.port for component in settings.known if name in (component.name, component.kind) and name != "pm2"), None)


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    scheme = parts.scheme.lower()
    return scheme, (parts.hostname or "").lower(), port or {"https": 443, "wss": 443, "http": 80, "ws": 80}.get(scheme)


def _class(host: str) -> str:
    """test, live or, of what is neither, empty."""
    if _TEST_HOST.search(host):
        return "test"
    return "live" if any(host == domain or host.endswith("." + domain) for domain in _LIVE_DOMAINS) else ""


def judge_url(pointer: str, url: str, venues: t.Sequence[t.Mapping[str, t.Any]]) -> str:
    """Why the address is not one that the keys of this environment may be used with; empty when it is."""
    origin = _origin(url)
    addresses = {str(venue["name"]): {_origin(str(venue[key])) for key in ("rest", "ws") if venue.get(key)} for venue in venues}
    classes = {_class(host) for known in addresses.values() for _scheme, host, _port in known}
    here = _class(origin[1])
    if here == "test" and "test" not in classes:
        return "an address of a test exchange, where the environment trades for real"
    if here == "live" and classes == {"test"}:
        return "an address where real money is traded, in an environment for tests"
    for name, known in addresses.items():
        if name in pointer.split("/") and known and origin not in known:
            return f"is not an address of {name} in titan_venues"
    return ""


# --- all files ------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Report:
    """What was found in all files."""

    findings: list[Finding] = dataclasses.field(default_factory=list)
    unknown: list[str] = dataclasses.field(default_factory=list)

    @property
    def verdict(self) -> str:
        if any(finding.damage for finding in self.findings):
            return "fail"
        return "unknown" if self.unknown else "pass"

    def damaged(self) -> list[str]:
        """Files that need another version, in a stable order."""
        return sorted({finding.path for finding in self.findings if finding.replaces})

    def row(self) -> dict[str, t.Any]:
        return {"verdict": self.verdict, "findings": [finding.row() for finding in self.findings], "unknown": self.unknown}

    def evidence(self, files: int) -> str:
        bad = [finding.text() for finding in self.findings if finding.damage]
        return "; ".join([*bad[:5], *([f"and {len(bad) - 5} more"] if len(bad) > 5 else []), *self.unknown]) or f"{files} files, nothing wrong"


def check_all(files: t.Mapping[str, bytes], reference: t.Mapping[str, bytes], expected: t.Iterable[str], settings: Settings, tools: Tools) -> Report:
    """Check every file against its last proven version. `expected`: files that must be there."""
    report = Report()
    for path in sorted(set(expected) | settings.required()):
        if path not in files:
            report.findings.append(Finding(path, "missing", "", "the file is missing", FATAL))
    for path, data in sorted(files.items()):
        found, unknown = check_file(path, data, reference.get(path), settings, tools)
        report.findings += found
        report.unknown += unknown
    return report


def affected(changed: t.Iterable[str], files: t.Mapping[str, bytes], settings: Settings) -> list[str]:
    """Components that read one of these files. A file that nobody names may be anybody's."""
    names: set[str] = set()
    pm2 = {component.name for component in settings.components if component.kind == "pm2"}
    for path in changed:
        kind = kind_of(path, settings)
        if kind == "redis":
            names |= {component.name for component in settings.components if component.kind == "redis"}
            continue
        if path == settings.ecosystem or kind == "unit":
            names |= pm2
            continue
        users = {
            component.name for component in settings.components if component.config and path in (component.config, *_mentioned(files.get(component.config)))
        }
        names |= users or pm2
    return [component.name for component in settings.components if component.name in names]


def _mentioned(data: bytes | None) -> set[str]:
    """Paths that a JSON file names."""
    document = _config_json.parse(data or b"")
    return {value for _pointer, value in leaves(document.value) if isinstance(value, str) and value.startswith("/")} if document.complete else set()
