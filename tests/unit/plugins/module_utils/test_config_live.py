# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _config_live, _probe
from ansible_collections.titan.disaster_recovery.plugins.module_utils._config_history import digest
from ansible_collections.titan.disaster_recovery.plugins.module_utils._config_live import Entry, Running
from ansible_collections.titan.disaster_recovery.plugins.module_utils._pm2 import Process
from config_world import CANARY, TOOLS, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def kinds(world: World, **more: Any) -> set[tuple[str, str]]:
    settings = world.settings(**more)
    report = _config_live.check_live(_config_live.read_tree(settings.paths), {}, [], settings, TOOLS)
    return {(finding.path, finding.kind) for finding in report.findings if finding.damage}


# --- reading


def test_the_tree_leaves_out_what_recoveries_and_editors_leave_behind(world: World) -> None:
    for name in ("brain.json.before-r1", "brain.json.stage-r1", "brain.json~", ".brain.json.swp", "brain.json.bak"):
        world.write(str(world.home / name), "{")
    (world.home / "deep.before-r1").mkdir()
    world.write(str(world.home / "deep.before-r1" / "x.json"), "{")
    tree = _config_live.read_tree([world.redis, str(world.home), str(world.root / "nothing")])
    assert set(tree) == {world.redis, world.brain, world.phase, world.secrets, world.ecosystem}
    assert tree[world.secrets].mode == 0o600 and not tree[world.secrets].error


def test_what_is_no_configuration_cannot_be_used(world: World) -> None:
    with open(world.phase, "wb") as handle:
        handle.truncate(_config_live.MAX_SIZE + 1)
    assert kinds(world) == {(world.phase, "unreadable")}


# --- owners and modes


@pytest.mark.parametrize(
    ("name", "mode", "kind"),
    [("secrets", 0o644, "mode"), ("secrets", 0o640, "mode"), ("secrets", 0o700, "mode"), ("redis", 0o644, "mode"), ("brain", 0o666, "mode")],
)
def test_modes(world: World, name: str, mode: int, kind: str) -> None:
    path = getattr(world, name)
    assert kinds(world) == set()
    os.chmod(path, mode)
    assert kinds(world) == {(path, kind)}
    assert kinds(world, approved=[f"{path}:{kind}"]) == set()
    settings = world.settings()
    entry = _config_live.read_tree([path])[path]
    uid, gid, proper = _config_live.proper(path, entry, settings)
    assert _config_live.attributes(path, dataclasses.replace(entry, mode=proper, uid=uid, gid=gid), settings) == []


def test_owners(world: World) -> None:
    settings = world.settings()
    entry = Entry(b"{}", 0o600, 54321, 54321, 0.0)
    for path in (world.brain, world.secrets):
        (finding,) = _config_live.attributes(path, entry, dataclasses.replace(settings, user="nobody"))
        assert finding.kind == "owner" and finding.damage and not finding.replaces
        uid, _gid, mode = _config_live.proper(path, entry, dataclasses.replace(settings, user="nobody"))
        assert uid == _config_live._ids("nobody")[0] and mode == (0o600 if path == world.secrets else 0o640)  # type: ignore[index]
    (finding,) = _config_live.attributes(world.brain, entry, dataclasses.replace(settings, user="no-such-user"))
    assert "no user" in finding.evidence


def test_a_missing_file_gets_its_owner_and_mode(world: World) -> None:
    settings = world.settings()
    ids = _config_live._ids(world.user)
    assert ids
    assert _config_live.proper(world.secrets, None, settings) == (ids[0], ids[1], 0o600)
    assert _config_live.proper(world.brain, None, settings) == (ids[0], ids[1], 0o640)


# --- the programs


@pytest.mark.skipif(not shutil.which("redis-server"), reason="no redis-server here")
def test_redis_itself_reads_its_file_and_nothing_happens(world: World, tmp_path: Path) -> None:
    log = tmp_path / "redis.log"
    good = f"port 6379\nrequirepass {CANARY}\ndir {tmp_path}\nlogfile {log}\nsupervised systemd\ndaemonize yes\nappendonly yes\nunixsocket {tmp_path}/s\n"
    before = sorted(tmp_path.iterdir())
    assert _config_live.check_redis(good.encode(), world.user) == ("pass", "")
    verdict, said = _config_live.check_redis((good + f"maxclien 3\nmasterauth {CANARY}\n").encode(), world.user)
    assert verdict == "fail" and said.startswith("line 9: ")
    verdict, said = _config_live.check_redis((good + f"save '{CANARY}'\n").encode(), world.user)
    assert verdict == "fail" and CANARY not in said
    assert _config_live.check_redis(b"dir /no/such/place\n", world.user)[0] == "fail"
    if os.geteuid() == 0:
        shut = tmp_path / "shut"
        shut.mkdir(mode=0o700)
        verdict, said = _config_live.check_redis(f"dir {shut}\n".encode(), "nobody")
        assert verdict == "unknown" and "nobody may not use a place that it names in line 1" in said
        shut.rmdir()
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(not shutil.which("node"), reason="no node here")
def test_node_parses_and_runs_nothing(world: World, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    good = f"require('fs').writeFileSync('{mark}', 'x');\nmodule.exports = {{}};\n"
    assert _config_live.check_script(good.encode(), world.user) == ("pass", "")
    verdict, said = _config_live.check_script((good + f"}}{CANARY}").encode(), world.user)
    assert (verdict, said) == ("fail", "line 3: is not JavaScript")
    assert not mark.exists()


def test_without_the_program_nothing_is_known(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert _config_live.check_redis(b"", world.user)[0] == "unknown" == _config_live.check_script(b"", world.user)[0]


def test_a_program_that_hangs_or_says_nothing_is_unknown(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mute"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(program))
    for check in (_config_live.check_redis, _config_live.check_script):
        verdict, said = check(b"", world.user)
        assert verdict == "unknown" and "ended with 3" in said
    program.write_text("#!/bin/sh\nsleep 5\n")
    assert "did not end" in str(_config_live._run([str(program)], b"", world.user, timeout=0.1))


def test_certificates() -> None:
    import ssl

    system = ssl.get_default_verify_paths().cafile
    if system and os.path.exists(system):
        one = Path(system).read_text().partition("-----END CERTIFICATE-----")
        assert _config_live.check_certificate((one[0] + one[1] + "\n").encode()) == ("pass", "")
        assert _config_live.check_certificate(one[0][:-60].encode())[0] == "fail"
    assert _config_live.check_certificate(b"nothing")[0] == "fail"


# --- what runs


class FakeProc:
    """Listeners and their ages."""

    def __init__(self, ages: dict[int, float]) -> None:
        self.ages = ages  # port -> seconds

    def listeners(self, ports: Any) -> dict[int, set[int]]:
        return {port: {port} for port in ports if port in self.ages}

    def process(self, pid: int) -> Process | None:
        return Process(pid, 1, os.geteuid(), "S", 1)

    def age(self, process: Process) -> float:
        return self.ages[process.pid]


def body(payload: Any) -> _probe.Opener:
    return lambda request: _probe.Response(200, "application/json", json.dumps(payload).encode())


def components(world: World) -> list[dict[str, Any]]:
    given = world.raw()["components"]
    return [{**item, "health": {"path": "/health"}, "config_digest": "config_digest"} if item["kind"] == "pm2" else item for item in given]


def test_what_the_services_have_loaded(world: World) -> None:
    settings = world.settings(components=components(world))
    proc: Any = FakeProc({6379: 50.0, 3000: 100.0})
    running = _config_live.look(settings, str(world.root), 1.0, proc, body({"config_digest": "a" * 64}))
    assert running["brain"].loaded == "a" * 64 and abs(running["brain"].since - (time.time() - 100)) < 2
    assert (running["redis"].loaded, running["redis"].pid) == ("", 6379)
    assert running["phase"].pid == 0
    assert "names no SHA-256" in _config_live.look(settings, str(world.root), 1.0, proc, body({"config_digest": CANARY}))["brain"].note

    def silent(request: Any) -> Any:
        raise _probe.NoAnswer("refused")

    assert "does not say" in _config_live.look(settings, str(world.root), 1.0, proc, silent)["brain"].note


def judged(world: World, not_before: dict[str, float] | None = None, **running: Running) -> tuple[str, str]:
    settings = world.settings(components=components(world))
    tree = _config_live.read_tree(settings.paths)
    now = time.time()
    every = {
        "redis": Running("redis", 1, now),
        "brain": Running("brain", 2, now, digest(tree[world.brain].data)),
        "phase": Running("phase", 3, now, digest(tree[world.phase].data)),
    }
    return _config_live.loaded_gate({**every, **running}, tree, settings, not_before or {})


def test_every_process_must_use_the_files(world: World) -> None:
    now = time.time()
    good = digest(Path(world.brain).read_bytes())
    assert judged(world)[0] == "pass"
    verdict, evidence = judged(world, brain=Running("brain", 2, now, "b" * 64))
    assert verdict == "fail" and "other values" in evidence
    verdict, evidence = judged(world, brain=Running("brain", 2, now - 9, good), not_before={world.brain: now - 5})
    assert verdict == "fail" and "before its configuration was exchanged" in evidence
    verdict, evidence = judged(world, brain=Running("brain", 2, now - 9, good), not_before={world.secrets: now - 5})
    assert verdict == "fail", "the secrets are its configuration too"
    assert judged(world, phase=Running("phase", 3, now - 9, digest(Path(world.phase).read_bytes())), not_before={world.secrets: now - 5})[0] == "pass"
    assert judged(world, brain=Running("brain", 2, now, "", "no answer"))[0] == "unknown"
    assert judged(world, brain=Running("brain"))[0] == "fail"
    verdict, evidence = judged(world, redis=Running("redis", 1, now - 3600))
    assert verdict == "fail" and "before" in evidence


def test_nothing_looked_at_is_not_a_pass(world: World) -> None:
    assert _config_live.loaded_gate({}, {}, world.settings(), {})[0] == "unknown"


def test_who_runs_with_old_values(world: World) -> None:
    settings = world.settings()
    tree = _config_live.read_tree(settings.paths)
    running = {"brain": Running("brain", 2, time.time(), "c" * 64), "phase": Running("phase", 3, time.time() - 3600), "redis": Running("redis")}
    assert set(_config_live.stale(running, tree, settings)) == {"brain", "phase"}
    assert set(_config_live.stale({"phase": Running("phase", 3, time.time() + 1)}, tree, settings)) == set()


# --- what was kept


def test_kept_copies_beside_the_file_and_beside_its_directory(world: World) -> None:
    world.write(world.brain + ".before-r1", "one")
    old = Path(str(world.home) + ".before-r0")
    old.mkdir()
    (old / "brain.json").write_text("two")
    os.utime(old / "brain.json", (1, 1))
    assert [(name.rpartition("/")[2], data) for name, _at, data in _config_live.kept_copies(world.brain, [str(world.home)])] == [
        ("brain.json", b"two"),
        ("brain.json.before-r1", b"one"),
    ]
    assert _config_live.kept_copies(world.redis, [world.redis]) == []
