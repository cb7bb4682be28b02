# SPDX-License-Identifier: GPL-3.0-or-later
"""Damaged dumps of four real servers: nothing that the server's own checker rejects may be accepted, and nothing that a checksum or digest can tell.

Run with -s for the table. TITAN_DR_CAMPAIGN_SEED repeats a run of the large campaign; damaged files that were judged wrong are kept in .cache/campaign/.
"""

from __future__ import annotations

import collections
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

import campaign
import servers
from campaign import Base, Result

KEPT = Path(__file__).resolve().parents[2] / ".cache" / "campaign"
EVERY_CHANGE = 40  # of each kind, for each large base and mode
SOAK = 400
LOADED = 40  # accepted files that are loaded, for each large base

# What we see and the checkers do not: our reasons against a file that the checker of its server calls OK.
BEYOND_THE_CHECKER = {
    "bad-length",  # an odd encoding of a number
    "bad-opcode",  # newer than the version in the header
    "corrupt-value",  # counts and orders inside a value, scores that are no numbers
    "count-mismatch",
    "dangling-expiry",
    "database-beyond-target",
    "duplicate-key",
    "duplicate-member",
    "foreign-server",
    "module-missing",
    "not-rdb",  # digits of the version that are none
    "trailing-bytes",
    "unsupported-version",
    "version-too-new",
}


@dataclass
class Campaign:
    bases: list[Base]
    results: list[Result]

    def keep(self, results: list[Result]) -> str:
        """Keep the damaged files and tell about them."""
        lines = [f"{len(results)} files"]
        for result in results[:20]:
            mutant = result.mutant
            base = self.bases[mutant.base]
            path = KEPT / f"{base.name}-{mutant.mode}-{mutant.kind}-{mutant.seed}.rdb".replace(" ", "-").replace("/", "_")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(campaign.mutate(self.bases, mutant))
            lines.append(f"{path}: ours {result.verdict} ({result.reasons}), checker {result.checker}, required {result.required}, digest {result.digest}")
        return "\n".join(lines)


def conduct(bases: list[Base], number: int, seed: int) -> Campaign:
    started = time.monotonic()
    done = Campaign(bases, list(campaign.run(bases, campaign.mutants(bases, number, seed))))
    print(f"\n{len(done.results)} damaged files, seed {seed}, {time.monotonic() - started:.0f} s")
    print("\n".join(campaign.table(bases, done.results)))
    only_us = collections.Counter(code for result in done.results if result.checker and not result.ours for code in result.codes)
    print("rejected by us alone, by reason: " + ", ".join(f"{code} {count}" for code, count in only_us.most_common()))
    return done


@pytest.fixture(
    scope="module",
    params=[pytest.param(False, id="every-change"), pytest.param(True, id="soak", marks=pytest.mark.slow)],
)
def done(request: pytest.FixtureRequest) -> Iterator[Campaign]:
    if request.param:
        seed = int(os.environ.get("TITAN_DR_CAMPAIGN_SEED") or random.SystemRandom().randrange(1 << 32))
        yield conduct([campaign.make(name, shape, seed) for name in servers.BINARIES for shape in campaign.SHAPES], SOAK, seed)
    else:
        yield conduct(campaign.kept(), EVERY_CHANGE, 1)


def test_ten_thousand_files_of_every_mode_and_kind(done: Campaign) -> None:
    assert len(done.results) >= 10_000
    ran = {(done.bases[one.mutant.base].server, one.mutant.mode, one.mutant.kind) for one in done.results}
    assert ran == {(name, mode, kind) for name in servers.BINARIES for mode in campaign.MODES for kind in campaign.KINDS}


def test_no_file_with_a_stale_checksum_is_accepted(done: Campaign) -> None:
    wrong = [one for one in done.results if one.mutant.mode == campaign.STALE and (one.ours or one.verdict == "pass")]
    assert not wrong, done.keep(wrong)


def test_nothing_is_accepted_that_the_checker_rejects(done: Campaign) -> None:
    wrong = [one for one in done.results if one.ours and one.checker is False]
    assert not wrong, done.keep(wrong)


def test_nothing_is_accepted_without_a_checksum_where_one_is_required(done: Campaign) -> None:
    wrong = [one for one in done.results if one.mutant.mode == campaign.ZEROED and "pass" in (one.verdict, one.required)]
    assert not wrong, done.keep(wrong)


def test_nothing_is_accepted_whose_digest_is_another(done: Campaign) -> None:
    asked = [one for one in done.results if one.digest]
    assert asked
    wrong = [one for one in asked if one.digest != "fail"]
    assert not wrong, done.keep(wrong)


def test_what_we_alone_reject_has_a_reason_that_the_checker_does_not_look_for(done: Campaign) -> None:
    wrong = [one for one in done.results if one.checker and not one.ours and not BEYOND_THE_CHECKER & set(one.codes)]
    assert not wrong, done.keep(wrong)


def test_what_becomes_of_accepted_files_on_the_real_server(done: Campaign, tmp_path: Path) -> None:
    """The honest rate: without a checksum and a digest, a changed value cannot be seen by anyone. What the server refuses, a proof sees."""
    both = [one for one in done.results if one.ours and one.checker]
    chance = random.Random(1)
    file = tmp_path / "dump.rdb"
    print()
    for index, base in enumerate(done.bases):
        found = [one for one in both if one.mutant.base == index]
        if base.shape == "small":
            continue
        sample = chance.sample(found, min(LOADED, len(found)))
        assert sample
        original = loaded(base.server, base.data)
        assert original
        counts: collections.Counter[str] = collections.Counter()
        for result in sample:
            data = campaign.mutate(done.bases, result.mutant)
            outcome = loaded(base.server, data)
            counts["refused" if outcome is None else "same data" if outcome == original else "other data"] += 1
            if outcome is None:
                file.write_bytes(data)
                assert campaign.verify(file, base, "proof") == "fail", done.keep([result])
        print(f"{base.name:20}{len(sample)} accepted files loaded: {dict(counts)}")


def loaded(name: str, data: bytes) -> tuple[str, object] | None:
    """Digest and counts of what the server holds; None when it does not come up, or dies when all of it is read."""
    try:
        with servers.running(name, data, sanitize_dump_payload="yes") as server:
            return str(server.client.execute_command("DEBUG", "DIGEST")), server.keyspace()
    except (servers.NotUpError, redis.ConnectionError):
        return None
