# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""What a redis.conf says, without the server: nothing that would stop Redis from serving may be found out after it was stopped."""

from __future__ import annotations

import dataclasses
import re
import typing as t

_WORD = re.compile(r"""\s*(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'|([^\s"']+))(?=\s|$)""")
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|(.))")
_CONTROL = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "a": "\a"}
_UNITS = {"": 1, "b": 1, "k": 1000, "kb": 1 << 10, "m": 10**6, "mb": 1 << 20, "g": 10**9, "gb": 1 << 30}
_LOOPBACK = ("127.0.0.1", "localhost", "0.0.0.0", "*")


class RedisError(Exception):
    """An error reply, a broken connection, a time-out or a configuration that is not understood; a reply keeps Redis's own error code in front."""


@dataclasses.dataclass(frozen=True)
class Tls:
    """The TLS directives that a client on the same machine needs."""

    port: int
    cert: str
    key: str
    key_password: str
    client_cert: str
    client_key: str
    ca_file: str
    ca_dir: str
    auth_clients: bool


@dataclasses.dataclass(frozen=True)
class RedisConf:
    """What the restore must know of a redis.conf (last directive wins, as in Redis)."""

    port: int
    unixsocket: str
    directory: str
    dbfilename: str
    appendonly: bool
    appendfilename: str
    appenddirname: str
    databases: int
    username: str
    password: str
    renamed: dict[str, str]
    bind: tuple[str, ...]
    tls: Tls | None
    aclfile: str
    users: dict[str, str]  # ACL users of this file -> password in clear, empty when there is none
    maxmemory: int
    policy: str
    sync_delay: int  # seconds before a diskless sync begins
    refused: tuple[str, ...]  # directives that hand the data to another server, with their lines

    @property
    def tls_only(self) -> bool:
        """Nothing but TLS leads to this server."""
        return self.tls is not None and not self.port and not self.unixsocket

    @property
    def address(self) -> str | tuple[str, int]:
        """Where the server listens on this machine: a socket path or (host, port)."""
        if not self.port and self.unixsocket:
            return self.unixsocket
        port = self.tls.port if self.tls_only and self.tls else self.port
        names = [name.lstrip("-") for name in self.bind]
        if any(name in _LOOPBACK for name in names):
            return ("127.0.0.1", port)
        return ("::1" if names[0] == "::*" else names[0], port)

    @property
    def ports(self) -> tuple[int, ...]:
        """Every TCP port that it listens on."""
        return tuple(port for port in (self.port, self.tls.port if self.tls else 0) if port)

    def command(self, name: str) -> str:
        """The name that a command has on this server; empty when it is disabled."""
        return self.renamed.get(name.upper(), name.upper())


def split(line: str) -> list[str]:
    """Words of a directive by Redis's own rules: a backslash means something in double quotes only."""
    words, at = [], 0
    while at < len(line):
        match = _WORD.match(line, at)
        if not match:
            raise ValueError("quotes that do not match")
        double, single, plain = match.groups()
        if double is not None:
            words.append(_ESCAPE.sub(lambda found: chr(int(found[1], 16)) if found[1] else _CONTROL.get(found[2], found[2]), double))
        else:
            words.append(plain if plain is not None else single.replace("\\'", "'"))
        at = match.end()
    return words


def _directives(text: str) -> list[tuple[int, list[str]]]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            try:
                found.append((number, split(stripped)))
            except ValueError as exc:
                raise RedisError(f"line {number}: {exc}") from exc
    return found


def _refusal(number: int, words: list[str]) -> str:
    """Why a server with this directive is not one to restore onto; empty when it is."""
    name, first = words[0].lower(), words[1].lower() if len(words) > 1 else ""
    if name in ("replicaof", "slaveof") and first not in ("", "no"):
        return f"line {number}: {' '.join(words[:3])}: it would take the data of that server and lose what was restored; take the line out first"
    if name == "cluster-enabled" and first == "yes":
        return f"line {number}: cluster-enabled yes: a node of a cluster is restored with its cluster, not alone"
    if name == "sentinel":
        return f"line {number}: sentinel: this is the configuration of a Sentinel, which holds no data"
    return ""


def acl_users(text: str) -> dict[str, str]:
    """Users of ACL lines (``user NAME rule...``) with their password in clear, where one stands there; hashes cannot be turned back."""
    found = {}
    for number, words in _directives(text):
        if words[0].lower() != "user" or len(words) < 2:
            raise RedisError(f"line {number}: not an ACL user")
        found[words[1]] = next((rule[1:] for rule in words[2:] if rule.startswith(">")), "")
    return found


def parse_conf(text: str) -> RedisConf:
    """Read the directives of a redis.conf; ``include`` is refused, because what it pulls in would be missed."""
    last: dict[str, list[str]] = {}
    renamed: dict[str, str] = {}
    users: dict[str, str] = {}
    refused: dict[str, str] = {}
    for number, words in _directives(text):
        name = words[0].lower()
        if name == "include":
            raise RedisError(f"line {number}: include is not supported")
        if name == "rename-command" and len(words) == 3:
            renamed[words[1].upper()] = words[2]
        if name == "user" and len(words) > 1:
            users[words[1]] = next((rule[1:] for rule in words[2:] if rule.startswith(">")), "")
        refused["replicaof" if name == "slaveof" else name] = _refusal(number, words)
        last[name] = words[1:]

    def one(name: str, default: str) -> str:
        values = last.get(name)
        return values[0] if values else default

    def integer(name: str, default: str) -> int:
        try:
            return int(one(name, default))
        except ValueError as exc:
            raise RedisError(f"{name} is not a number: {one(name, default)}") from exc

    def memory(name: str) -> int:
        match = re.fullmatch(r"(\d+)([a-z]*)", one(name, "0").lower())
        if not match or match[2] not in _UNITS:
            raise RedisError(f"{name} is not an amount of memory: {one(name, '0')}")
        return int(match[1]) * _UNITS[match[2]]

    tls = None
    if integer("tls-port", "0"):
        cert, key = one("tls-cert-file", ""), one("tls-key-file", "")
        tls = Tls(
            port=integer("tls-port", "0"),
            cert=cert,
            key=key,
            key_password=one("tls-key-file-pass", ""),
            client_cert=one("tls-client-cert-file", cert),
            client_key=one("tls-client-key-file", key),
            ca_file=one("tls-ca-cert-file", ""),
            ca_dir=one("tls-ca-cert-dir", ""),
            auth_clients=one("tls-auth-clients", "yes").lower() == "yes",
        )
    return RedisConf(
        port=integer("port", "6379"),
        unixsocket=one("unixsocket", ""),
        directory=one("dir", "/var/lib/redis"),
        dbfilename=one("dbfilename", "dump.rdb"),
        appendonly=one("appendonly", "no").lower() == "yes",
        appendfilename=one("appendfilename", "appendonly.aof"),
        appenddirname=one("appenddirname", "appendonlydir"),
        databases=integer("databases", "16"),
        username="",
        password=one("requirepass", "") or users.get("default", ""),
        renamed=renamed,
        bind=tuple(last.get("bind") or ("*", "-::*")),
        tls=tls,
        aclfile=one("aclfile", ""),
        users=users,
        maxmemory=memory("maxmemory"),
        policy=one("maxmemory-policy", "noeviction").lower(),
        sync_delay=integer("repl-diskless-sync-delay", "5"),
        refused=tuple(reason for reason in refused.values() if reason),
    )


def load_conf(path: str, username: str = "", password: str = "") -> RedisConf:
    """The configuration in `path` with the credentials to use: the given ones, else what it or its ACL file says in clear."""
    with open(path, encoding="utf-8") as handle:
        conf = parse_conf(handle.read())
    users, found = conf.users, conf.password
    if conf.aclfile:
        if users:
            raise RedisError(f"{path} has both users and an aclfile: Redis does not start with both")
        try:
            with open(conf.aclfile, encoding="utf-8") as handle:
                users = acl_users(handle.read())
        except OSError as exc:
            raise RedisError(f"the aclfile {conf.aclfile} cannot be read ({exc.strerror}): Redis would not start") from exc
        except RedisError as exc:
            raise RedisError(f"the aclfile {conf.aclfile}, {exc}: Redis would not start") from exc
        found = users.get("default", "")  # Redis ignores requirepass then
    if username:
        found = users.get(username, "")
    return dataclasses.replace(conf, username=username, password=password or found, users=users)


def conf_of(redis: t.Mapping[str, t.Any], password: str = "") -> RedisConf:
    """The Redis that the inventory describes: by its configuration, or on another server, where that cannot be read, by `host` and `port`."""
    username = str(redis.get("username") or "")
    if not redis.get("host"):
        if not redis.get("config"):
            raise RedisError("the inventory names neither the configuration of Redis nor, if it is on another server, its host")
        return load_conf(redis["config"], username, password)
    try:
        port = int(redis.get("port") or 6379)
    except (TypeError, ValueError):
        port = 0
    if not 0 < port < 65536:
        raise RedisError(f"the port of Redis on {redis['host']} is {redis['port']!r}, not a number from 1 to 65535")
    return dataclasses.replace(parse_conf(""), port=port, bind=(str(redis["host"]),), username=username, password=password)
