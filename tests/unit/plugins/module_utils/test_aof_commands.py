# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from typing import Any

import pytest

import servers
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _aof_commands
from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb_report import Target


@pytest.mark.parametrize("name", servers.BINARIES)
def test_commands_are_those_of_the_servers(name: str) -> None:
    with servers.running(name) as server:
        raw: Any = server.client.execute_command("COMMAND")
        listed = raw.values() if isinstance(raw, dict) else raw

    def text(item: Any) -> str:
        return (item.decode() if isinstance(item, bytes) else str(item)).upper()

    found: dict[str, int] = {}
    for entry in listed:
        values = entry if not isinstance(entry, dict) else [entry["name"], entry["arity"], entry["flags"], *[None] * 6, entry.get("subcommands", [])]
        subcommands = values[9] if len(values) > 9 else []
        for row in subcommands or [values]:
            row = row if not isinstance(row, dict) else [row["name"], row["arity"], row["flags"]]
            if {text(flag).replace("-", "_") for flag in row[2]} & {"WRITE", "MAY_REPLICATE"}:
                found[text(row[0])] = int(row[1])
    left_out = {"MIGRATE", "PFDEBUG", *(item for item in found if item.startswith("CLUSTER"))}
    known = {canonical: arity for canonical, arity in _aof_commands.Commands(Target(*servers.VERSIONS[name])).table.values()}
    # 6.2 knows no subcommands
    late = {"SCRIPT", "XGROUP"} if name == "6.2" else set()
    assert {item: arity for item, arity in found.items() if item not in left_out | late} == {item: known.get(item) for item in found.keys() - left_out - late}
    extra = {"SELECT", "MULTI", "EXEC", "SCRIPT|LOAD", "SCRIPT|FLUSH", "PUBLISH", "PFCOUNT", "EVAL", "EVALSHA"}
    assert {item.split("|")[0] for item in known.keys() - found.keys() - extra} <= late


def test_version() -> None:
    assert _aof_commands.version_of(Target(version="7.0.15")) == (7, 0)
    assert _aof_commands.version_of(Target(version="8.10.1")) == (8, 10)
    assert _aof_commands.version_of(Target(version=None)) is None


def test_arity() -> None:
    commands = _aof_commands.Commands(Target(version="7.0.15", modules=()))
    for name, (dummy, arity) in commands.table.items():
        first, dummy, second = name.partition("|")
        words = first.lower().encode(), second.encode() or b"k"
        assert commands.problem(*words, abs(arity)) is None
        assert (commands.problem(*words, abs(arity) + 1) is None) == (arity < 0)
        if abs(arity) > 1:
            assert commands.problem(*words, abs(arity) - 1) == ("aof-command", f"{name} with {abs(arity) - 1} words")


def test_where_a_command_is_known_is_told() -> None:
    commands = _aof_commands.Commands(Target(version="7.0.15", modules=()))
    assert commands.problem(b"HEXPIRE", b"k", 6) == ("aof-command", "HEXPIRE is not known to the target's version")
    assert commands.problem(b"\xffSET", b"k", 3) == ("aof-command", "\\XFFSET is no command that a server writes to an AOF")
