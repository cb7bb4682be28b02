# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules by themselves; on real files they are tried in modules/test_redis_stage_salvage.py."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _aof, _redis_proof, _salvage
from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb_report import Contents, Finding


def one(kind: str, verdict: str = "proven", seq: int | None = 5, at: float = 100.0, **more: Any) -> _salvage.Outcome:
    canary = None if seq is None else {"seq": seq, "at": at}
    found = {"keyspace": {"db0": {"keys": 3, "expires": 0}}, "canary": canary}
    return _salvage.Outcome(kind, kind, "x", verdict, found=found, **{"taken_at": at, **more})


@pytest.mark.parametrize(
    ("outcomes", "winner"),
    [
        ([one("archive", seq=5), one("dump", seq=6), one("aof", seq=7)], "aof"),
        ([one("archive", seq=5), one("dump", seq=6), one("aof", "unproven", seq=7)], "dump"),
        ([one("archive", seq=5), one("aof", "refused", seq=7)], "archive"),
        # the same canary: the append only file goes on behind it, and of two snapshots the later is the better one
        ([one("archive"), one("aof", at=50)], "aof"),
        ([one("archive", at=100), one("dump", at=101)], "dump"),
        # the save of the backup itself: that which has a digest
        ([one("dump", at=100), one("archive", at=100)], "archive"),
        # no canary at all: by time
        ([one("archive", seq=None, at=100), one("dump", seq=None, at=90), one("aof", seq=None, at=110)], "aof"),
        ([one("archive", seq=None, at=100), one("aof", seq=None, at=90)], "archive"),
        # one that lost its canary does not win by its time
        ([one("archive", seq=5, at=100), one("dump", seq=None, at=200)], "archive"),
    ],
)
def test_who_loses_least_wins(outcomes: list[_salvage.Outcome], winner: str) -> None:
    for order in (outcomes, outcomes[::-1]):
        found = _salvage.choose(order, False)
        assert found is not None and found.kind == winner


def test_what_is_not_proven_wins_with_consent_alone() -> None:
    outcomes = [one("archive", "refused"), one("aof", "unproven")]
    assert _salvage.choose(outcomes, False) is None
    found = _salvage.choose(outcomes, True)
    assert found is not None and found.kind == "aof"
    # nor what could not even be loaded
    assert _salvage.choose([_salvage.Outcome("aof", "x", "y", "unproven")], True) is None


def test_what_is_lost_is_said() -> None:
    classes = {"orders": {"keys": 10, "expires": 0, "expired": 0}, "signals": {"keys": 1, "expires": 0, "expired": 0}}
    broken = one("aof", "refused", contents=Contents(classes=classes), last_canary=9)
    chosen = one("archive", contents=Contents(classes={"orders": {"keys": 7, "expires": 0, "expired": 0}}))
    notes = _salvage.lost([chosen, broken], chosen)
    assert notes == [
        "lost: canary numbers 6 to 9 (4), which stood in data that is not restored",
        "the aof holds keys that are not restored, at least, that could be read of it: orders 3, signals 1",
    ]
    assert _salvage.lost([chosen], chosen) == []


def test_the_row_of_a_candidate() -> None:
    row = one("dump", "unproven", reasons=["a", "b"]).row(110.0, False)
    assert row["loss_s"] == 10.0 and row["basis"] == "canary" and row["reason"] == "a; b" and row["keys"] == 3 and row["canary"] == 5
    row = _salvage.Outcome("aof", "x", "y", reasons=["damaged"]).row(110.0, False)
    assert row["verdict"] == "refused" and row["loss_s"] is None and row["keys"] is None and row["canary"] is None


@pytest.mark.parametrize(("have", "shrunk"), [(100, False), (90, False), (89, True), (200, False)])
def test_a_class_may_shrink_a_little(have: int, shrunk: bool) -> None:
    details = {"classes": {"orders": {"keys": 100, "expires": 0}}}
    contents = Contents(classes={"orders": {"keys": have, "expires": 0, "expired": 0}})
    assert bool(_redis_proof.class_faults(details, contents, {}, 0.1)) is shrunk


def test_small_classes_and_those_that_expire_may_be_gone() -> None:
    details = {"classes": {"queue": {"keys": 3, "expires": 0}, "signals": {"keys": 100, "expires": 98}}}
    assert _redis_proof.class_faults(details, Contents(), {}, 0.1) == []
    # a manifest of an earlier release knows no classes
    assert _redis_proof.class_faults({"keyspace": {"db1": {"keys": 100, "expires": 10}}}, Contents(), {"db1": {"keys": 50, "expires": 0}}, 0.1) == [
        "db1 has 50 keys, the newest restore point has 90 without an expiry"
    ]


# --- the append only file -------------------------------------------------------------------------------------------


def report(*findings: Finding, usable: Any = None, checksum: str = "ok", files: tuple[str, ...] = ("base", "incr"), state: str = _aof.INTACT) -> _aof.AofReport:
    members = [_aof.Member(name, _aof.BASE if name == "base" else _aof.INCREMENT, 1, f"/x/{name}", 10) for name in files]
    members[0].contents = Contents(checksum=checksum)
    found = _aof.AofReport("/x", state, [Finding("aof-values-unprotected", "x"), *findings], members)
    found.usable = usable or _aof.Usable("incr", 10, 3, None, 0, 0)
    return found


def test_a_log_that_is_damaged_behind_its_end_alone() -> None:
    usable = _aof.Usable("incr", 10, 3, None, 20, 0)
    assert _salvage.judge_log(report()) == ([], [])
    assert _salvage.judge_log(report(Finding("aof-corrupt", "garbage", 10, file="incr"), usable=usable, state=_aof.CORRUPT)) == ([], [])
    assert _salvage.judge_log(report(Finding("aof-tail", "cut", 12, file="incr"), usable=usable, state=_aof.TAIL)) == ([], [])


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (report(Finding("aof-corrupt", "x", 10, file="incr"), usable=_aof.Usable("incr", 10, 3, None, 20, 1)), "damaged in its middle"),
        (report(files=("base", "one", "incr"), usable=_aof.Usable("one", 10, 3, None, 20, 0)), "damaged in its middle"),
        (report(checksum="disabled"), "no checksum"),
        (report(Finding("aof-annotation", "strange")), "strange"),
        (report(Finding("aof-command-unjudged", "of a module")), "of a module"),
    ],
)
def test_a_log_that_is_not_proven(found: _aof.AofReport, word: str) -> None:
    fatal, doubts = _salvage.judge_log(found)
    assert fatal == [] and any(word in doubt for doubt in doubts)


@pytest.mark.parametrize("code", ["aof-orphan", "aof-missing", "aof-manifest", "checksum-mismatch", "database-beyond-target"])
def test_a_log_that_cannot_be_used(code: str) -> None:
    fatal, dummy = _salvage.judge_log(report(Finding(code, "bad", 3, file="base")))
    assert fatal == ["base: bad"]
    unusable = report(state=_aof.UNUSABLE)
    assert _salvage.judge_log(unusable)[0]


def canary(number: int) -> bytes:
    value = b'{"seq": %d, "at": 1.0}' % number
    return b"*3\r\n$3\r\nSET\r\n$15\r\ntitan:dr:canary\r\n$%d\r\n%b\r\n" % (len(value), value)


@pytest.mark.parametrize(
    ("numbers", "said"), [([], ""), ([4], ""), ([4, 5, 6], ""), ([4, 4, 5], ""), ([4, 6], "jumps from 4 to 6"), ([4, 5, 3], "goes back from 5 to 3")]
)
def test_the_chain_of_the_canary(tmp_path: Path, numbers: list[int], said: str) -> None:
    half = len(numbers) // 2
    for name, part in (("a", numbers[:half]), ("b", numbers[half:])):
        (tmp_path / name).write_bytes(b"*1\r\n$4\r\nPING\r\n".join([b"", *map(canary, part)]))
    chain = _salvage.Chain.of([str(tmp_path / "a"), str(tmp_path / "b")], "titan:dr:canary")
    assert chain.writes == numbers and chain.last == max(numbers, default=None)
    assert said in "".join(chain.faults()) and bool(chain.faults()) == bool(said)


def rules(**more: Any) -> _salvage.Rules:
    return _salvage.Rules(
        **{"target": None, "user": "", "canary": {}, "invariants": [], "newest": {}, "tolerance": 0.1, "before": None, "deadline": 0.0, **more}
    )


def test_a_difference_must_be_explained(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"*3\r\n$3\r\nSET\r\n$8\r\norders:2\r\n$1\r\nx\r\n")
    samples = {(0, b"orders:%d" % number): "same" for number in range(4)}
    mine = one("aof")
    witness = one("archive", at=100.0)
    witness.found["digests"] = samples

    def speak(base_at: float | None = 50.0, invariants: Any = (), **changed: str) -> list[str]:
        mine.found["digests"] = {**samples, **{(0, name.replace("_", ":").encode()): value for name, value in changed.items()}}
        return _salvage.contradictions(mine, [witness], [str(log)], base_at, rules(invariants=list(invariants)))

    assert speak() == [] and speak(orders_2="other") == []
    assert "orders:1 differs from the archive and no command names it (1 such keys of 4)" in speak(orders_1="other")[0]
    # the base is newer than the witness, and has a checksum of its own
    assert speak(base_at=101.0, orders_1="other") == []
    never = [{"class": "orders", "immutable": True}]
    assert "its class never changes" in speak(invariants=never, orders_2="other")[0]
    assert "none of 4 sampled keys" in speak(orders_0="a", orders_1="a", orders_2="a", orders_3="a")[0]
    assert _salvage.contradictions(mine, [], [str(log)], None, rules()) == ["nothing that is proven can be held against its values"]


# --- side by side ---------------------------------------------------------------------------------------------------


def task(kind: str, work: Any, **more: Any) -> _salvage.Task:
    return _salvage.Task(kind, kind, "x", work, **more)


def race(tasks: list[_salvage.Task], box: Path, **more: Any) -> dict[str, _salvage.Outcome]:
    (box / "out").mkdir()
    settings = {"deadline": time.time() + 20, "patience": 10.0, "cores": 2, "memory": 1 << 30, "disk": 1 << 30, **more}
    return {outcome.kind: outcome for outcome in _salvage.race(tasks, str(box), str(box / "out"), **settings)}


def good(kind: str, seconds: float = 0.0) -> Any:
    def work(folder: str) -> _salvage.Outcome:
        time.sleep(seconds)
        return one(kind, proof=f"{time.monotonic()}")

    return work


def test_all_at_once(box: Path) -> None:
    began = time.monotonic()
    found = race([task(kind, good(kind, 1.5)) for kind in ("archive", "dump", "aof")], box)
    assert {outcome.verdict for outcome in found.values()} == {"proven"} and time.monotonic() - began < 4


def test_no_more_than_there_is_room_for(box: Path) -> None:
    found = race([task(kind, good(kind, 0.3), memory=600) for kind in ("archive", "dump", "aof")], box, memory=1000)
    ends = [float(found[kind].proof) for kind in ("archive", "dump", "aof")]
    assert ends[0] + 0.25 < ends[1] and ends[1] + 0.25 < ends[2]


def test_what_does_not_fit_at_all_is_not_examined(box: Path) -> None:
    tasks = [task("archive", good("archive"), memory=2000, disk=500), task("dump", good("dump"), memory=1001), task("aof", good("aof"), disk=600)]
    found = race(tasks, box, memory=1000, disk=1000)
    assert {kind: outcome.verdict for kind, outcome in found.items()} == {"archive": "proven", "dump": "unproven", "aof": "unproven"}
    assert "it was not examined" in found["aof"].reasons[0]


def test_what_goes_wrong_with_one_is_its_own_outcome(box: Path) -> None:
    def faulty(folder: str) -> _salvage.Outcome:
        raise _redis_proof.Faulty("it is rotten")

    def dies(folder: str) -> _salvage.Outcome:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    found = race([task("archive", good("archive")), task("dump", faulty), task("aof", dies)], box)
    assert (found["dump"].verdict, found["dump"].reasons) == ("refused", ["it is rotten"])
    assert (found["aof"].verdict, found["aof"].reasons) == ("unproven", ["the process that examined it died"])


def test_nobody_waits_for_ever(box: Path) -> None:
    began = time.monotonic()
    found = race([task("archive", good("archive")), task("aof", good("aof", 60))], box, patience=0.3)
    assert found["aof"].reasons == ["it was not examined in time"] and time.monotonic() - began < 20


def test_a_slow_store_does_not_hold_up_what_is_proven(box: Path) -> None:
    began = time.monotonic()
    found = race([task("archive", good("archive", 60)), task("dump", good("dump"))], box, patience=0.5)
    assert found["dump"].verdict == "proven" and found["archive"].reasons == ["it was not examined in time"] and 0.4 < time.monotonic() - began < 20


def test_the_deadline_ends_all(box: Path) -> None:
    began = time.monotonic()
    found = race([task("archive", good("archive", 60)), task("dump", good("dump"))], box, deadline=time.time() + 1, patience=9)
    assert found["dump"].verdict == "proven" and found["archive"].verdict == "unproven" and time.monotonic() - began < 8


def test_witnesses_are_waited_for(box: Path) -> None:
    wait = _salvage.waits(str(box), ["archive", "dump"], time.time() + 0.3)
    _salvage.write_outcome(str(box), one("archive"))
    assert [outcome.kind for outcome in wait()] == ["archive"]
    _salvage.write_outcome(str(box), one("dump"))
    assert [outcome.kind for outcome in _salvage.waits(str(box), ["archive", "dump"], time.time() + 5)()] == ["archive", "dump"]
