# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Commands that can stand in an append-only file, with the version that first knew them and their arity. Plain data.

Source: COMMAND and COMMAND DOCS of redis-server 6.2.14, 7.0.15, 8.2.3 and valkey-server 9.1.2: what they flag as write or may_replicate, and SELECT, MULTI,
EXEC and SCRIPT. Left out are MIGRATE, PFDEBUG and CLUSTER, which no server writes to its AOF. tests/unit compares the table with these servers.
"""

from __future__ import annotations

import re

from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb_report import Target

# Newest version of each family that the table knows.
NEWEST = {"redis": (8, 2), "valkey": (9, 1)}

# A negative arity is a minimum. A subcommand stands behind a bar.
_REDIS = {
    (6, 2): """
        APPEND 3  BITFIELD -2  BITOP -4  BLMOVE 6  BLPOP -3  BRPOP -3  BRPOPLPUSH 4  BZPOPMAX -3  BZPOPMIN -3  COPY -3  DECR 2  DECRBY 3  DEL -2  EVAL
        -3  EVALSHA -3  EXEC 1  EXPIRE -3  EXPIREAT -3  FLUSHALL -1  FLUSHDB -1  GEOADD -5  GEORADIUS -6  GEORADIUSBYMEMBER -5  GEOSEARCHSTORE -8
        GETDEL 2  GETEX -2  GETSET 3  HDEL -3  HINCRBY 4  HINCRBYFLOAT 4  HMSET -4  HSET -4  HSETNX 4  INCR 2  INCRBY 3  INCRBYFLOAT 3  LINSERT 5
        LMOVE 5  LPOP -2  LPUSH -3  LPUSHX -3  LREM 4  LSET 4  LTRIM 4  MOVE 3  MSET -3  MSETNX -3  MULTI 1  PERSIST 2  PEXPIRE -3  PEXPIREAT -3
        PFADD -2  PFCOUNT -2  PFMERGE -2  PSETEX 4  PUBLISH 3  RENAME 3  RENAMENX 3  RESTORE -4  RESTORE-ASKING -4  RPOP -2  RPOPLPUSH 3  RPUSH -3
        RPUSHX -3  SADD -3  SCRIPT|FLUSH -2  SCRIPT|LOAD 3  SDIFFSTORE -3  SELECT 2  SET -3  SETBIT 4  SETEX 4  SETNX 3  SETRANGE 4  SINTERSTORE -3
        SMOVE 4  SORT -2  SPOP -2  SREM -3  SUNIONSTORE -3  SWAPDB 3  UNLINK -2  XACK -4  XADD -5  XAUTOCLAIM -6  XCLAIM -6  XDEL -3  XGROUP|CREATE -5
        XGROUP|CREATECONSUMER 5  XGROUP|DELCONSUMER 5  XGROUP|DESTROY 4  XGROUP|SETID -5  XREADGROUP -7  XSETID -3  XTRIM -4  ZADD -4  ZDIFFSTORE -4
        ZINCRBY 4  ZINTERSTORE -4  ZPOPMAX -2  ZPOPMIN -2  ZRANGESTORE -5  ZREM -3  ZREMRANGEBYLEX 4  ZREMRANGEBYRANK 4  ZREMRANGEBYSCORE 4
        ZUNIONSTORE -4
    """,
    (7, 0): """
        BLMPOP -5  BZMPOP -5  FUNCTION|DELETE 3  FUNCTION|FLUSH -2  FUNCTION|LOAD -3  FUNCTION|RESTORE -3  LMPOP -4  ZMPOP -4
    """,
    (7, 4): """
        HEXPIRE -6  HEXPIREAT -6  HPERSIST -5  HPEXPIRE -6  HPEXPIREAT -6
    """,
    (8, 0): """
        HGETDEL -5  HGETEX -5  HSETEX -6  VADD -1  VREM -1  VSETATTR -1
    """,
    (8, 2): """
        XACKDEL -6  XDELEX -5
    """,
}
_VALKEY = {
    (9, 0): """
        DELIFEQ 3  HEXPIRE -6  HEXPIREAT -6  HGETEX -5  HPERSIST -5  HPEXPIRE -6  HPEXPIREAT -6  HSETEX -6
    """,
    (9, 1): """
        HGETDEL -5  MSETEX -4
    """,
}
# Until 7.0 these took no options.
_ARITY_6_2 = "EXPIRE 3  EXPIREAT 3  PEXPIRE 3  PEXPIREAT 3  XSETID 3"

# Modules by the prefix of their commands, in the names that MODULE LIST gives.
_MODULES = {
    "JSON": ("rejson",),
    "FT": ("search", "searchlight"),
    "TS": ("timeseries",),
    "GRAPH": ("graph", "falkordb"),
    **dict.fromkeys(("BF", "CF", "CMS", "TOPK", "TDIGEST"), ("bf",)),
}
_MODULE_COMMAND = re.compile(r"([A-Z][A-Z0-9]+)\.[A-Z0-9._]+")
_NAME = re.compile(r"[A-Z][A-Z-]+")


def _pairs(text: str) -> dict[str, int]:
    words = text.split()
    return {name: int(arity) for name, arity in zip(words[::2], words[1::2], strict=True)}


def version_of(target: Target) -> tuple[int, int] | None:
    """Major and minor number of the target's version."""
    found = re.match(r"(\d+)\.(\d+)", target.version or "")
    return (int(found[1]), int(found[2])) if found else None


def _table(server: str, version: tuple[int, int]) -> dict[str, int]:
    # Valkey is a fork of Redis 7.2
    groups = list(_REDIS.items()) if server == "redis" else [*((since, text) for since, text in _REDIS.items() if since < (7, 4)), *_VALKEY.items()]
    table: dict[str, int] = {}
    for since, text in groups:
        if since <= max(version, (6, 2)):
            table |= _pairs(text)
    return table | _pairs(_ARITY_6_2) if version < (7, 0) else table


class Commands:
    """The commands of one target; of all servers when it is not known."""

    def __init__(self, target: Target | None) -> None:
        self.target = target
        version = version_of(target) if target else None
        every = _table("redis", NEWEST["redis"]) | _table("valkey", NEWEST["valkey"])
        table = _table(target.server, version) if target and version else every
        renamed = {name.upper(): to.upper() for name, to in ((target and target.renamed) or {}).items()}
        #: name on the target -> (name in the table, arity)
        self.table: dict[str, tuple[str, int]] = {}
        for name, arity in table.items():
            word, divider, sub = name.partition("|")
            word = renamed.get(word, word)
            if word:
                self.table[word + divider + sub] = (name, arity)
        self.containers = {name.split("|")[0] for name in self.table if "|" in name}
        self.elsewhere = every.keys() - table.keys()
        self.too_new = bool(target and version and version > NEWEST[target.server])

    def find(self, first: bytes, second: bytes) -> tuple[str, int] | None:
        """Name in the table and arity of a command with these two first words."""
        name = _text(first)
        return self.table.get(f"{name}|{_text(second)}" if name in self.containers else name)

    def problem(self, first: bytes, second: bytes, count: int) -> tuple[str, str] | None:
        """Code and text when the target cannot run a command of `count` words that begins so."""
        name = _text(first)
        found = self.find(first, second)
        if found:
            if count == found[1] or 0 < -found[1] <= count:
                return None
            return "aof-command", f"{found[0]} with {count} words"
        module = _MODULE_COMMAND.fullmatch(name)
        if module and (not self.target or self.target.modules is None):
            return "module-unknown", f"{name}: a module's command, and nothing says which modules the target has"
        if module and self.target and self.target.modules is not None:
            present = {item.lower() for item in self.target.modules}
            needed = set(_MODULES.get(module[1], ()))
            if not present or (needed and not needed & present):
                return "module-missing", f"{name} needs a module that the target does not have"
            return None if needed else ("aof-command-unjudged", f"{name}: a command of a module that is not in the table")
        full = f"{name}|{_text(second)}" if name in self.containers else name
        if full in self.elsewhere:
            return "aof-command", f"{full} is not known to the target's version"
        if self.too_new and _NAME.fullmatch(name):
            return "aof-command-unjudged", f"{full} is not in the table, and the target is newer than the table"
        return "aof-command", f"{full or 'an empty name'} is no command that a server writes to an AOF"


def _text(word: bytes) -> str:
    """A word as text that is safe to print."""
    text = word.decode("ascii", "backslashreplace")
    return (text if text.isprintable() else text.encode("unicode_escape").decode()).upper()
