# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils._redis_conf import RedisError, acl_users, conf_of, load_conf, parse_conf


def test_defaults_are_those_of_redis() -> None:
    conf = parse_conf("")
    assert (conf.port, conf.unixsocket, conf.dbfilename, conf.appendonly, conf.databases, conf.password) == (6379, "", "dump.rdb", False, 16, "")
    assert (conf.appendfilename, conf.appenddirname, conf.tls_only) == ("appendonly.aof", "appendonlydir", False)
    assert conf.address == ("127.0.0.1", 6379)


def test_directives() -> None:
    conf = parse_conf(
        '# requirepass commented\n\n PORT 0\nunixsocket /run/r.sock\nrequirepass first\nrequirepass "a \\"b\\" # c"\n'
        'dir /srv/redis\ndbfilename live.rdb\nappendonly YES\nappendfilename "a.aof"\nappenddirname aofs\ndatabases 4\nsave ""\n'
    )
    assert conf.password == 'a "b" # c', "the last one counts, quotes are taken off"
    assert (conf.address, conf.directory, conf.dbfilename, conf.appendonly) == ("/run/r.sock", "/srv/redis", "live.rdb", True)
    assert (conf.appendfilename, conf.appenddirname, conf.databases) == ("a.aof", "aofs", 4)


@pytest.mark.parametrize(
    ("written", "password"),
    [(r"a\b", r"a\b"), (r"'a\b'", r"a\b"), (r'"a\\b"', r"a\b"), (r'"\x41\x42"', "AB"), (r"'it\'s'", "it's"), ('""', ""), ("a#b", "a#b"), ("a'b", "a'b")],
)
def test_a_password_is_read_as_redis_reads_it(written: str, password: str) -> None:
    if written == "a'b":
        with pytest.raises(RedisError, match="line 1"):
            parse_conf(f"requirepass {written}")
    else:
        assert parse_conf(f"requirepass {written}").password == password


@pytest.mark.parametrize("written", [r"a\b", r"'a\b'", r'"a\\b\x41"', r"'it\'s'"])
def test_redis_agrees_on_the_password(redis_server: Any, written: str) -> None:
    server = redis_server(requirepass=written)
    assert server.client.call("PING") == "PONG", "the fixture connects with the password as parse_conf read it"


def test_renamed_and_disabled_commands() -> None:
    conf = parse_conf('rename-command CONFIG ""\nrename-command bgsave hidden-save\n')
    assert (conf.command("config"), conf.command("BGSAVE"), conf.command("info")) == ("", "hidden-save", "INFO")


def test_tls_only() -> None:
    assert parse_conf("port 0\ntls-port 6380\n").tls_only
    assert not parse_conf("port 6379\ntls-port 6380\n").tls_only


@pytest.mark.parametrize(("text", "line"), [("port 1\ninclude /etc/redis/local.conf", 2), ('requirepass "open', 1), ("port many", 0), ("databases x", 0)])
def test_a_file_that_is_not_understood_is_refused(text: str, line: int) -> None:
    with pytest.raises(RedisError, match=f"line {line}:" if line else "not a number"):
        parse_conf(text)


def test_tls() -> None:
    conf = parse_conf("port 0\ntls-port 6380\ntls-cert-file /c\ntls-key-file /k\ntls-ca-cert-file /a\ntls-auth-clients optional\n")
    assert conf.tls and (conf.tls.cert, conf.tls.key, conf.tls.client_cert, conf.tls.ca_file, conf.tls.auth_clients) == ("/c", "/k", "/c", "/a", False)
    assert conf.address == ("127.0.0.1", 6380) and conf.ports == (6380,)
    assert parse_conf("tls-port 0\nport 0\nunixsocket /s").tls is None
    assert not parse_conf("port 0\ntls-port 1\nunixsocket /s").tls_only, "a socket leads to it as well"


@pytest.mark.parametrize(
    ("bind", "host"),
    [
        ("", "127.0.0.1"),
        ("bind 127.0.0.1 -::1", "127.0.0.1"),
        ("bind 0.0.0.0", "127.0.0.1"),
        ("bind * -::*", "127.0.0.1"),
        ("bind 10.0.0.5", "10.0.0.5"),
        ("bind 10.0.0.5 127.0.0.1", "127.0.0.1"),
        ("bind ::*", "::1"),
    ],
)
def test_where_it_listens_on_this_machine(bind: str, host: str) -> None:
    assert parse_conf(bind).address == (host, 6379)


@pytest.mark.parametrize(
    ("written", "size"), [("0", 0), ("100", 100), ("1k", 1000), ("1kb", 1024), ("2MB", 2 << 20), ("2m", 2_000_000), ("1gb", 1 << 30), ("5b", 5)]
)
def test_memory(written: str, size: int) -> None:
    assert parse_conf(f"maxmemory {written}").maxmemory == size


@pytest.mark.parametrize("written", ["lots", "1tb", "-1", "1.5gb"])
def test_memory_that_is_none(written: str) -> None:
    with pytest.raises(RedisError, match="not an amount of memory"):
        parse_conf(f"maxmemory {written}")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("port 1\nreplicaof 10.0.0.1 6379", 2),
        ("slaveof 10.0.0.1 6379", 1),
        ("cluster-enabled yes", 1),
        ("\n\nsentinel monitor mymaster 127.0.0.1 6379 2", 3),
    ],
)
def test_what_hands_the_data_to_another_server_is_named_with_its_line(text: str, line: int) -> None:
    refused = parse_conf(text).refused
    assert len(refused) == 1 and refused[0].startswith(f"line {line}: ")


@pytest.mark.parametrize("text", ["", "replicaof no one", "replicaof 10.0.0.1 1\nslaveof no one", "cluster-enabled no", "# replicaof a 1"])
def test_what_does_not(text: str) -> None:
    assert parse_conf(text).refused == ()


# --- credentials ----------------------------------------------------------------------------------------------------


def test_users() -> None:
    assert acl_users("user default on >pw ~* +@all\n\nuser app on #0123 ~*\nuser free on nopass\n") == {"default": "pw", "app": "", "free": ""}
    with pytest.raises(RedisError, match="line 1"):
        acl_users("person x")


@pytest.mark.parametrize(
    ("conf", "acl", "given", "used"),
    [
        ("requirepass a", None, ("", ""), ("", "a")),
        ("requirepass a", None, ("", "b"), ("", "b")),
        ("user default on >c", None, ("", ""), ("", "c")),
        ("user app on >d\nrequirepass a", None, ("app", ""), ("app", "d")),
        ("requirepass a", "user default on >e", ("", ""), ("", "e")),
        ("requirepass a", "user default off\nuser app on >f", ("app", ""), ("app", "f")),
        ("requirepass a", "user app on #00", ("app", "g"), ("app", "g")),
        ("requirepass a", "user app on #00", ("app", ""), ("app", "")),
    ],
)
def test_credentials(box: Path, conf: str, acl: str | None, given: tuple[str, str], used: tuple[str, str]) -> None:
    if acl is not None:
        (box / "users.acl").write_text(acl)
        conf += f"\naclfile {box}/users.acl"
    (box / "redis.conf").write_text(conf)
    found = load_conf(str(box / "redis.conf"), *given)
    assert (found.username, found.password) == used


def test_users_in_two_places(box: Path) -> None:
    (box / "redis.conf").write_text(f"user a on\naclfile {box}/users.acl")
    with pytest.raises(RedisError, match="does not start with both"):
        load_conf(str(box / "redis.conf"))


# --- on another server ----------------------------------------------------------------------------------------------


def test_redis_on_another_server() -> None:
    conf = conf_of({"host": "titan-data"}, "secret")
    assert (conf.address, conf.username, conf.password, conf.tls_only) == (("titan-data", 6379), "", "secret", False)
    conf = conf_of({"host": "10.0.0.7", "port": "6380", "username": "dr", "config": "/nonexistent"}, "x")
    assert (conf.address, conf.username) == (("10.0.0.7", 6380), "dr"), "no configuration is read"
    for port in ("no number", 65536, -1, [1]):
        with pytest.raises(RedisError, match="not a number from 1 to 65535"):
            conf_of({"host": "titan-data", "port": port})


def test_redis_here_is_what_its_configuration_says(box: Path) -> None:
    (box / "redis.conf").write_text("port 7000\nrequirepass a")
    for more in ({}, {"host": ""}):
        conf = conf_of({"config": str(box / "redis.conf"), **more})
        assert (conf.address, conf.password) == (("127.0.0.1", 7000), "a")
    with pytest.raises(RedisError, match="neither"):
        conf_of({})
