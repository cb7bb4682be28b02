# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import datetime
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _guard, _latch

OWN, OTHER = _guard.Claim(3, "r3"), _guard.Claim(4, "r4")


class Kernel:
    def __init__(self) -> None:
        self.did: list[str] = []

    def close(self, uid: int) -> None:
        self.did.append("close")

    def renew(self, uid: int, seconds: float) -> None:
        self.did.append("renew")

    def withdraw(self) -> None:
        self.did.append("withdraw")


class World:
    """A guard, its store and its clocks."""

    def __init__(self, folder: Path) -> None:
        self.now, self.answer, self.takes, self.jump = 100.0, OWN, 0.1, 0.0  # type: ignore[assignment]
        self.kernel = Kernel()
        self.guard = _guard.Guard(self.kernel, self.ask, lambda: self.now, lambda: self.now + self.jump)
        self.latch = folder / "halt"
        self.config = {"epoch": 3, "uid": 990, "latch": str(self.latch), "store": {}, "key": "k", "store_down": "keep", "grace": 30.0, "lifetime": 10.0}
        self.answer: _guard.Claim | None

    def ask(self, store: Any, key: str) -> _guard.Claim:
        self.now += self.takes
        if self.answer is None:
            raise _guard.StoreDown("the store cannot be asked")
        return self.answer

    def turn(self, **config: Any) -> str:
        self.kernel.did.clear()
        self.now += 3
        return self.guard.turn({**self.config, **config})


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_its_own_epoch_is_renewed(world: World) -> None:
    assert world.turn() == "renew" and world.kernel.did == ["close", "renew"]
    world.answer = _guard.Claim(0)
    assert world.turn() == "renew", "nobody ever claimed it"
    assert not world.latch.exists()


def test_a_higher_epoch_fences(world: World) -> None:
    world.turn()
    world.answer = OTHER
    assert world.turn() == "fence" and world.kernel.did == ["close", "withdraw"]
    found = _latch.read(str(world.latch))
    assert found and found["reason"] == "fenced: epoch 4 of run r4" and found["generation"] == 1
    assert world.turn() == "fence" and _latch.read(str(world.latch)) == found, "once"
    # and the silence of the store brings nothing back
    world.answer = None
    assert world.turn() == "wait"
    world.answer = OTHER
    assert world.turn(epoch=4) == "renew", "a recovery onto this server made it the one again"


def test_a_latch_that_lets_something_through_is_fastened(world: World) -> None:
    _latch.fasten(str(world.latch), "x", "r", 1.0)
    _latch.loosen(str(world.latch), 1, "reduce_only")
    world.answer = OTHER
    world.turn()
    found = _latch.read(str(world.latch))
    assert found and "mode" not in found and found["generation"] == 2


def test_a_silent_store(world: World) -> None:
    world.turn()
    world.answer = None
    assert world.turn() == "renew" and world.turn(store_down="fence") == "wait" and world.kernel.did == ["close"]
    world.now += 25
    assert world.turn() == "wait", "longer than the grace"
    world.answer = OWN
    assert world.turn() == "renew"


def test_a_guard_that_begins_while_the_store_is_silent_gives_no_permit(world: World) -> None:
    """Such as after a boot: nobody knows what happened meanwhile."""
    world.answer = None
    assert world.turn() == "wait" and world.kernel.did == ["close"]


@pytest.mark.parametrize("what", ["takes", "jump"])
def test_an_answer_from_before_a_freeze_is_not_acted_on(world: World, what: str) -> None:
    if what == "takes":
        world.takes = 60.0
    else:
        real = world.ask

        def ask(store: Any, key: str) -> _guard.Claim:
            world.jump += 3600
            return real(store, key)

        world.guard.asking = ask
    assert world.turn() == "stale" and world.kernel.did == ["close"]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        *((200, body) for body in (b"", b"<html>", b"[]", b'{"epoch": "4"}', b'{"epoch": true}', b'{"epoch": 0}', b'{"epoch": -1}')),
        (403, b"<Code>AccessDenied</Code>"),
        (500, b""),
        (404, b"<html>not here</html>"),
        (404, b"NoSuchBucket"),
    ],
)
def test_what_is_no_claim_is_no_answer(status: int, body: bytes) -> None:
    with pytest.raises(_guard.StoreDown):
        _guard.parse(status, body)


def test_claims() -> None:
    assert _guard.parse(200, b'{"epoch": 4, "run_id": "r4"}') == OTHER
    assert _guard.parse(404, b"<Error><Code>NoSuchKey</Code></Error>") == _guard.Claim(0)


def test_the_signature_is_that_of_everybody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    store = {"endpoint": "http://store.lab:8333", "bucket": "backups", "region": "eu-1", "access_key": "AK", "secret_key": "SK"}
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    path, headers = _guard.signed(store, "titan lab/epoch.json", moment)
    assert path == "/backups/titan%20lab/epoch.json"
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: moment)
    request = AWSRequest("GET", f"{store['endpoint']}{path}", headers={"host": "store.lab:8333", "x-amz-content-sha256": headers["x-amz-content-sha256"]})
    botocore.auth.S3SigV4Auth(Credentials("AK", "SK"), "s3", "eu-1").add_auth(request)
    assert request.headers["Authorization"] == headers["Authorization"]


def test_rules() -> None:
    assert "meta skuid 990" in _guard.closed(990) and 'oifname != "lo"' in _guard.closed(990) and "flags timeout" in _guard.closed(990)
    first, second, third = _guard.renewed(990, 10).splitlines()
    assert first == third == "add element inet titan_dr_permit permit { 990 timeout 10s }" and second.startswith("delete element")


def test_a_kernel_that_refuses() -> None:
    calls: list[list[str]] = []

    def run(argv: list[str], **more: Any) -> Any:
        calls.append(argv)
        return subprocess.CompletedProcess(argv, 1, "", "no")

    kernel = _guard.Kernel("/usr/sbin/nft", run)
    for work in (lambda: kernel.close(990), lambda: kernel.renew(990, 10)):
        with pytest.raises(OSError, match="cannot be"):
            work()


def test_it_runs_on_a_server_that_has_nothing_of_us(tmp_path: Path) -> None:
    """Two files and the standard library."""
    for name, module in (("guard.py", _guard), ("_latch.py", _latch)):
        (tmp_path / name).write_text(inspect.getsource(module))
    program = (
        "import sys; sys.argv = ['guard.py', 'close']; import guard; guard.CONFIG = 'config'; c = guard.load('config'); guard.Kernel(c['nft']).close(c['uid'])"
    )
    (tmp_path / "config").write_text(json.dumps({"nft": "/bin/true", "uid": 990}))
    done = subprocess.run([sys.executable, "-S", "-B", "-c", program], cwd=tmp_path, capture_output=True, text=True, env={}, check=False)
    assert done.returncode == 0, done.stderr
