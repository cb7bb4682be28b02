# SPDX-License-Identifier: GPL-3.0-or-later
"""Orchestration: what each layer adds to the verdict, and that each of its checks can fail. The walk and the values have tests of their own."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

import rdb_writer as w
import servers
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb, _rdb_format
from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb import RecordedError, check_recorded, judge_checker, sidecar_digest, sniff
from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb_report import Contents, Finding, Target

NOW = 1_800_000_000.0
TARGET = Target("redis", "7.0.15", databases=16, maxmemory=0)
KEY = w.key("titan:x", _rdb_format.STRING, w.string("v"))


def dump(*parts: bytes, **more: Any) -> bytes:
    """A small good file that 7.0.15 could have written ten minutes ago; `parts` stand behind its only key."""
    head = (w.aux("redis-ver", "7.0.15"), w.aux("ctime", str(int(NOW) - 600)), w.aux("used-mem", "1000000"))
    return w.rdb(*head, w.select(0), w.resize(1 + len(parts), 0), KEY, *parts, **more)


def verify(tmp_path: Path, data: bytes, **more: Any) -> dict[str, Any]:
    path = tmp_path / "dump.rdb"
    path.write_bytes(data)
    options = {"target": TARGET, "now": NOW, **more}
    report = _rdb.verify(str(path), **options)
    json.dumps(report)  # it has to travel
    return report


def codes(report: dict[str, Any]) -> list[str]:
    return [finding["code"] for finding in report["findings"]]


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No checker but what a test puts here."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


# --- what the file is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "named"),
    [
        (b"", "empty"),
        (gzip.compress(b"REDIS0010", mtime=0), "gzip"),
        (b"\x28\xb5\x2f\xfd\x04", "zstd"),
        (b"\xfd7zXZ\x00", "xz"),
        (b"BZh91AY", "bzip2"),
        (b"\x04\x22\x4d\x18", "lz4"),
        (b"PK\x03\x04", "zip"),
        (b"age-encryption.org/v1\n", "age"),
        (b"-----BEGIN AGE ENCRYPTED FILE-----\n", "age"),
        (b"-----BEGIN PGP MESSAGE-----\n", "PGP"),
        (b"Salted__12345678", "openssl"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "LFS"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"\n<html><body>404</body>", "HTML"),
        (b'<?xml version="1.0"?><Error>', "XML"),
        (b'{"error": "not found"}', "JSON"),
        (b'[{"a": 1}]', "JSON"),
        (b"*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n", "AOF"),
        (b"#TS:1700000000\r\n*2\r\n$6\r\nSELECT\r\n", "AOF"),
        (b"file appendonly.aof.1.base.rdb seq 1 type b\n", "manifest"),
        (bytes(512), "zero bytes"),
        (b"No such file\n", "plain text"),
        (b"\x7fELF\x02", "program"),
        (b"SQLite format 3\x00", "SQLite"),
        (bytes(257) + b"ustar", "tar"),
        (b"RADIS0010\xfa", "52 41 44 49 53"),
    ],
)
def test_sniff(head: bytes, named: str, tmp_path: Path) -> None:
    found = sniff(head, len(head))
    assert found and named in found
    report = verify(tmp_path, head)
    assert (report["verdict"], codes(report), report["contents"]) == ("fail", ["not-rdb"], None)


def test_an_rdb_file_is_not_something_else() -> None:
    assert sniff(b"REDIS0010", 9) is None
    assert sniff(b"VALKEY080", 9) is None


def test_what_cannot_be_read(tmp_path: Path) -> None:
    for path, text in ((tmp_path / "nothing.rdb", "No such file"), (tmp_path, "not a regular file")):
        report = _rdb.verify(str(path), now=NOW)
        assert (report["verdict"], codes(report)) == ("fail", ["unreadable"]) and text in report["findings"][0]["text"]


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert codes(_rdb.verify(str(tmp_path / "pipe"), now=NOW)) == ["unreadable"]


# --- a good file ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["fast", "deep"])
def test_pass(tmp_path: Path, level: str) -> None:
    report = verify(tmp_path, dump(), level=level)
    assert (report["verdict"], report["checksum"], report["findings"]) == ("pass", "ok", [])
    assert (report["taken_at"], report["age_s"]) == (NOW - 600, 600)
    assert "Redis 7.0" in report["loads_on"] and "Redis 6.2" not in report["loads_on"]
    contents = report["contents"]
    assert (contents["server"], contents["keys"], contents["keyspace"]) == ("Redis 7.0.15", 1, {"db0": {"keys": 1, "expires": 0}})
    assert any("level proof" in item for item in report["not_checked"])
    assert any("level deep" in item for item in report["not_checked"]) == (level == "fast")
    assert report["engines"]["crc64"] in ("anycrc", "python") and "walk" in report["seconds"]


def test_without_a_target_that_is_said(tmp_path: Path) -> None:
    report = verify(tmp_path, dump(), target=None)
    assert (report["verdict"], codes(report)) == ("pass", ["no-target"])


def test_dumps_of_real_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in servers.BINARIES:
        with servers.running(name) as server:
            servers.fill(server.client)
            data, keyspace = server.dump(), server.keyspace()
        checker = servers.checker(name)
        monkeypatch.setenv("PATH", str(checker.parent))
        family, version = servers.VERSIONS[name]
        report = verify(tmp_path, data, level="deep", target=Target(family, version, databases=16, maxmemory=0), now=time.time())
        assert (name, report["verdict"], report["findings"]) == (name, "pass", [])
        assert report["contents"]["keyspace"] == keyspace
        assert report["engines"]["checker"].startswith(checker.name)


# --- digests and what else was recorded -----------------------------------------------------------------------------


DIGEST = "ab" * 32


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{DIGEST}  dump.rdb\n", DIGEST),
        (f"{DIGEST} *dump.rdb\n", DIGEST),
        (f"{DIGEST.upper()}\n", DIGEST),
        (f"SHA256 (dump.rdb) = {DIGEST}\n", DIGEST),
        (f"{DIGEST}  /backup/old/dump.rdb\n", DIGEST),
        (f"{DIGEST}  renamed.rdb\n", DIGEST),
        (f"{'00' * 32}  other.rdb\n{DIGEST}  dump.rdb\n", DIGEST),
        (f"{'00' * 32}  other.rdb\n{DIGEST}  another.rdb\n", None),
        ("", None),
        ("abcd  dump.rdb\n", None),
        (f"{DIGEST[:-1]}  dump.rdb\n", None),
    ],
)
def test_sidecar(text: str, found: str | None) -> None:
    assert sidecar_digest(text, "dump.rdb") == found


def test_digest_recorded(tmp_path: Path) -> None:
    digest = hashlib.sha256(dump()).hexdigest()
    report = verify(tmp_path, dump(), recorded={"sha256": digest.upper()})
    assert (report["verdict"], report["digest"], report["digest_matched"]) == ("pass", digest, True)
    assert "digest" in report["seconds"]
    report = verify(tmp_path, dump(), recorded={"sha256": DIGEST})
    assert (report["verdict"], codes(report), report["digest_matched"]) == ("fail", ["digest-mismatch"], False)


def test_digest_in_a_sidecar(tmp_path: Path) -> None:
    digest = hashlib.sha256(dump()).hexdigest()
    sidecar = tmp_path / "dump.rdb.sha256"
    sidecar.write_text(f"{digest}  dump.rdb\n")
    assert verify(tmp_path, dump())["digest_matched"] is True
    assert codes(verify(tmp_path, dump(), recorded={"sha256": DIGEST})) == ["digest-mismatch"], "one of two is not enough"
    sidecar.write_text(f"{DIGEST}  dump.rdb\n")
    assert codes(verify(tmp_path, dump())) == ["digest-mismatch"]
    for unusable in (b"", b"\xff\xfe", b"garbage"):
        sidecar.write_bytes(unusable)
        report = verify(tmp_path, dump())
        assert (report["verdict"], codes(report)) == ("unknown", ["sidecar-unusable"])


def test_digest_of_a_large_file_is_taken_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rdb, "SMALL", 10)
    digest = hashlib.sha256(dump()).hexdigest()
    assert verify(tmp_path, dump(), recorded={"sha256": digest})["digest"] == digest
    assert codes(verify(tmp_path, dump(), recorded={"sha256": DIGEST})) == ["digest-mismatch"]
    monkeypatch.setattr(_rdb, "timed_digest", lambda path: 1 / 0)
    report = verify(tmp_path, dump(), recorded={"sha256": digest})
    assert (report["verdict"], codes(report)) == ("fail", ["unreadable"])


@pytest.mark.parametrize(("engine", "checksum"), [("python", "unknown"), ("anycrc", "mismatch")])
def test_the_inside_of_values_of_a_large_file_is_left_to_the_checker(
    engine: str, checksum: str, tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One reads the file and computes its checksum, or some are fed and we compute it."""
    monkeypatch.setattr(_rdb._crc64, "engine", lambda: engine)
    (programs / "redis-check-rdb").symlink_to("/usr/bin/redis-check-rdb")
    monkeypatch.setattr(_rdb, "LARGE", 10)
    walked = []
    walk = _rdb._rdb_walk.walk
    monkeypatch.setattr(_rdb._rdb_walk, "walk", lambda path, **options: walked.append(options.get("values")) or walk(path, **options))
    report = verify(tmp_path, dump(), level="deep")
    assert (report["verdict"], report["checksum"], walked) == ("pass", "ok", [None])
    damaged = bytearray(dump())
    damaged[-1] ^= 1
    report = verify(tmp_path, bytes(damaged), level="deep")
    assert (report["verdict"], report["checksum"]) == ("fail", checksum)
    assert set(codes(report)) == {"checker-rejects"} | ({"checksum-mismatch"} if engine == "anycrc" else set())
    assert codes(verify(tmp_path, dump(crc=False), level="deep")) == ["checksum-disabled"]
    walked.clear()
    assert any("values beyond what redis-check-rdb" in text for text in report["not_checked"])
    # a checker without an opinion is no checker
    monkeypatch.setattr(_rdb.Checker, "result", lambda self: (None, "it was in a hurry", None, None))
    report = verify(tmp_path, dump(), level="deep")
    assert (report["verdict"], report["checksum"], walked) == ("pass", "ok", [None, _rdb._rdb_values.check])


@pytest.fixture
def big(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkers are fed for files of some kB already."""
    monkeypatch.setattr(_rdb, "LARGE", 1 << 15)
    monkeypatch.setattr(_rdb._crc64, "engine", lambda: "anycrc")
    monkeypatch.setattr(_rdb._crc64, "_anycrc", lambda: None)
    monkeypatch.setattr(_rdb._rdb_walk._rdb_part, "ALONE", 1 << 15)
    monkeypatch.setattr(_rdb._rdb_walk, "_PART", 1 << 15)


def orders(*more: bytes) -> bytes:
    parts = [w.key(f"order:{number}", 16, w.string(w.listpack(["f", number]))) for number in range(20_000)]
    return dump(*parts, w.key("blob", 0, w.string(b"x" * 5000)), *more)


@pytest.mark.usefixtures("big")
def test_checkers_of_a_large_file_are_fed(tmp_path: Path, programs: Path) -> None:
    program(programs, "redis-check-rdb", f'echo "$1" >> {tmp_path}/asked; exec /usr/bin/redis-check-rdb "$1"')
    asked = tmp_path / "asked"
    report = verify(tmp_path, orders(), level="deep", jobs=2)
    assert (report["verdict"], report["checksum"], codes(report)) == ("pass", "ok", [])
    assert "checker" in report["engines"] and any("values beyond what" in text for text in report["not_checked"])
    assert [line for line in asked.read_text().split() if line.startswith("/")] == ["/dev/stdin"] * 2
    # what they reject is told by one that reads the file itself, with the offset and the key in that
    asked.unlink()
    data = orders(w.key("bad", 16, w.string(b"\x0b\0\0\0\x01\0\x01\x01\x02\x01\xff")))
    report = verify(tmp_path, data, level="deep", jobs=2)
    (finding,) = report["findings"]
    assert (report["verdict"], finding["code"], finding["key"]) == ("fail", "checker-rejects", "bad")
    assert abs(finding["offset"] - data.index(b"\x03bad")) < 100
    assert asked.read_text().split()[2] == str(tmp_path / "dump.rdb")


@pytest.mark.usefixtures("big")
@pytest.mark.parametrize("lazy", ["exit 3", "echo '] RDB looks OK!'", "exec 0<&-; while :; do sleep 1; done"])
def test_a_checker_that_does_not_eat_is_not_believed(lazy: str, tmp_path: Path, programs: Path) -> None:
    path = "PATH=/usr/bin:/bin"
    program(programs, "redis-check-rdb", f'{path}; if [ "$1" = /dev/stdin ]; then {lazy}; else exec redis-check-rdb "$1"; fi')
    data = orders(*(w.key(f"more:{number}", 16, w.string(w.listpack(["f", number]))) for number in range(150_000)))
    assert len(data) > 4 * _rdb.PIPE
    report = verify(tmp_path, data, level="deep", jobs=2, timeout=3.0 if "while" in lazy else 60.0)
    assert (report["verdict"], codes(report), "checker" in report["engines"]) == ("pass", [], True)
    data = orders(w.key("bad", 16, w.string(b"\x0b\0\0\0\x01\0\x01\x01\x02\x01\xff")))
    assert codes(verify(tmp_path, data, level="deep", jobs=2, timeout=3.0 if "while" in lazy else 60.0)) == ["checker-rejects"]


def test_no_checksum_is_no_pass(tmp_path: Path) -> None:
    data = dump(crc=False)
    report = verify(tmp_path, data)
    assert (report["verdict"], report["checksum"], codes(report)) == ("unknown", "disabled", ["checksum-disabled"])
    report = verify(tmp_path, data, recorded={"sha256": hashlib.sha256(data).hexdigest()})
    assert (report["verdict"], report["checksum"], codes(report)) == ("pass", "disabled", [])
    changed = w.reseal(data.replace(b"\x01v", b"\x01w"), crc=False)
    report = verify(tmp_path, changed, recorded={"sha256": hashlib.sha256(data).hexdigest()})
    assert report["verdict"] == "fail" and "digest-mismatch" in codes(report)


def test_policy_digest(tmp_path: Path) -> None:
    report = verify(tmp_path, dump(), checksum="digest")
    assert (report["verdict"], report["checksum"], codes(report)) == ("unknown", "ok", ["digest-missing"])
    assert verify(tmp_path, dump(), checksum="digest", recorded={"sha256": hashlib.sha256(dump()).hexdigest()})["verdict"] == "pass"
    assert codes(verify(tmp_path, dump(), checksum="digest", recorded={"sha256": DIGEST})) == ["digest-mismatch"]


def test_size_and_version(tmp_path: Path) -> None:
    assert verify(tmp_path, dump(), recorded={"size": len(dump()), "rdb_version": 10})["verdict"] == "pass"
    assert codes(verify(tmp_path, dump(), recorded={"size": 1})) == ["size-mismatch"]
    # the digits of an older version switch the checksum off: nothing else in the file tells
    older = dump().replace(b"REDIS0010", b"REDIS0004")
    report = verify(tmp_path, older, recorded={"rdb_version": 10})
    assert report["verdict"] == "fail" and "version-differs" in codes(report)


@pytest.mark.parametrize(
    ("keyspace", "expired", "fits"),
    [
        ({"db0": {"keys": 10, "expires": 4}, "db3": {"keys": 2, "expires": 0}}, 0, True),
        ({"db0": {"keys": 8, "expires": 2}, "db3": {"keys": 2, "expires": 0}}, 2, True),
        ({"db0": {"keys": 10, "expires": 4}}, 2, True),
        ({"db0": {"keys": 8, "expires": 2}, "db3": {"keys": 2, "expires": 0}}, 1, False),
        ({"db0": {"keys": 8, "expires": 2}, "db3": {"keys": 2, "expires": 0}}, 3, False),
        ({"db0": {"keys": 11, "expires": 4}, "db3": {"keys": 2, "expires": 0}}, 0, False),
        ({"db0": {"keys": 10, "expires": 4}, "db2": {"keys": 2, "expires": 0}}, 0, False),
        ({"db0": {"keys": 10, "expires": 4}}, 0, False),
        ({}, 0, False),
    ],
)
def test_counts(keyspace: dict[str, Any], expired: int, fits: bool) -> None:
    contents = Contents(keyspace={"db0": {"keys": 10, "expires": 4}, "db3": {"keys": 2, "expires": 0}})
    found = _rdb.compare({"keyspace": keyspace, "expired": expired}, contents)
    assert ([finding.code for finding in found] == []) == fits
    assert {finding.code for finding in found} <= {"contents-differ"}


def test_counts_without_the_keys_that_a_server_drops() -> None:
    contents = Contents(keyspace={"db0": {"keys": 10, "expires": 0}}, findings=[Finding("empty-container", "a list without elements", key="l")])
    assert not _rdb.compare({"keyspace": {"db0": {"keys": 9, "expires": 0}}}, contents)
    assert _rdb.compare({"keyspace": {"db0": {"keys": 8, "expires": 0}}}, contents)


def test_counts_of_a_file(tmp_path: Path) -> None:
    assert verify(tmp_path, dump(), recorded={"keyspace": {"db0": {"keys": 1, "expires": 0}}})["verdict"] == "pass"
    assert codes(verify(tmp_path, dump(), recorded={"keyspace": {"db0": {"keys": 2, "expires": 0}}})) == ["contents-differ"]


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ([], "not a JSON object"),
        ({}, "records nothing"),
        ({"version": "7.0.15"}, "records nothing"),
        ({"sha256": 1}, "sha256"),
        ({"sha256": "abc"}, "malformed"),
        ({"size": "12"}, "size"),
        ({"keyspace": {"db0": 1}}, "keyspace"),
        ({"keyspace": {"db0": {"keys": "1"}}}, "keyspace"),
    ],
)
def test_recorded_facts_that_cannot_be_used(facts: Any, named: str) -> None:
    with pytest.raises(RecordedError, match=named):
        check_recorded(facts, "manifest")


def test_recorded_files(tmp_path: Path) -> None:
    facts = {"sha256": DIGEST, "size": 1, "keyspace": {}, "expired": 0}
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"format": 1, "redis": {**facts, "version": "7.0.15", "canary": None}}))
    assert _rdb.read_recorded(str(manifest), "dump.rdb") == facts
    manifest.write_text(json.dumps(facts))
    assert _rdb.read_recorded(str(manifest), "dump.rdb") == facts
    sums = tmp_path / "SHA256SUMS"
    sums.write_text(f"{DIGEST}  dump.rdb\n{'00' * 32}  other.rdb\n")
    assert _rdb.read_recorded(str(sums), "dump.rdb") == {"sha256": DIGEST}
    for text in ("{", "nothing", "", '{"redis": []}'):
        manifest.write_text(text)
        with pytest.raises(RecordedError):
            _rdb.read_recorded(str(manifest), "dump.rdb")
    manifest.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordedError):
        _rdb.read_recorded(str(manifest), "dump.rdb")


# --- the second opinion ---------------------------------------------------------------------------------------------

REJECTED = """\
[offset 0] Checking RDB file dump.rdb
[offset 26] AUX FIELD redis-ver = '7.0.15'
--- RDB ERROR DETECTED ---
[offset 199] Internal error in RDB reading offset 0, function at rdb.c:2301 -> Hash listpack integrity check failed.
[additional info] While doing: read-object-value
[additional info] Reading key 'titan:order:170'
[additional info] Reading type 16 (hash-listpack)
[info] 4 keys read
17253:C 23 Nov 2026 02:20:27.420 # Terminating server after rdb file reading failure.
"""


def test_what_a_checker_says() -> None:
    reason = "Internal error in RDB: Hash listpack integrity check failed."
    assert judge_checker("c", 1, REJECTED) == (False, reason, 199, "titan:order:170")
    assert judge_checker("c", 0, "[offset 9] \\o/ RDB looks OK! \\o/\n")[0] is True
    assert judge_checker("c", 1, "[offset 9] \\o/ RDB looks OK! \\o/\n")[0] is None, "its status stands above its words"
    assert judge_checker("c", 0, "")[0] is None, "so do its words above its status"
    assert judge_checker("c", -6, "")[:2] == (False, "it crashed with SIGABRT")
    for foreign in ("Can't handle RDB format version 12", "Wrong signature trying to load DB from file"):
        assert judge_checker("c", 1, f"--- RDB ERROR DETECTED ---\n[offset 9] {foreign}\n")[0] is None


def test_a_checker_is_heard_when_deep(tmp_path: Path, programs: Path) -> None:
    program(programs, "redis-check-rdb", f"cat <<'TEXT'\n{REJECTED}TEXT\nexit 1".replace("cat", "/bin/cat"))
    assert verify(tmp_path, dump(), level="fast")["verdict"] == "pass"
    for jobs in (1, 2):
        report = verify(tmp_path, dump(), level="deep", jobs=jobs)
        assert (report["verdict"], codes(report)) == ("fail", ["checker-rejects"])
        assert (report["findings"][0]["offset"], report["findings"][0]["key"]) == (199, "titan:order:170")


def test_a_checker_without_an_opinion(tmp_path: Path, programs: Path) -> None:
    def missing(report: dict[str, Any]) -> str:
        assert (report["verdict"], "checker" in report["engines"]) == ("pass", False)
        (text,) = [item for item in report["not_checked"] if item.startswith("a second opinion")]
        return str(text)

    assert "installed" in missing(verify(tmp_path, dump(), level="deep"))
    program(programs, "redis-check-rdb", "/bin/sleep 60")
    assert "in time" in missing(verify(tmp_path, dump(), level="deep", timeout=0.2))
    program(programs, "redis-check-rdb", "exit 3")
    assert "status 3" in missing(verify(tmp_path, dump(), level="deep"))


def test_the_checker_that_fits(programs: Path) -> None:
    assert _rdb.find_checker("REDIS", 10) is None
    program(programs, "valkey-check-rdb", "")
    for magic, version, found in (("REDIS", 11, True), ("REDIS", 12, False), ("VALKEY", 80, True), ("", 0, False)):
        assert bool(_rdb.find_checker(magic, version)) == found
    program(programs, "redis-check-rdb", "")
    assert str(_rdb.find_checker("REDIS", 12)).endswith("redis-check-rdb")
    assert str(_rdb.find_checker("VALKEY", 80)).endswith("valkey-check-rdb")


def test_real_checkers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older checker has no opinion on a newer file; one that knows the file names what is wrong, and a name with a dash is no option to it."""
    monkeypatch.setenv("PATH", str(servers.checker("7.0").parent))
    report = verify(tmp_path, dump(version=12), level="deep", target=None)
    assert report["verdict"] == "pass" and any("another version" in item for item in report["not_checked"])
    (tmp_path / "--version").write_bytes(dump())
    monkeypatch.chdir(tmp_path)
    assert _rdb.verify("--version", level="deep", now=NOW, target=TARGET)["engines"]["checker"] == "redis-check-rdb 7.0.15"
    bad = dump(w.key("h", _rdb_format.HASH_LISTPACK, w.string(w.listpack(["a", "1", "b"]))))
    report = verify(tmp_path, bad, level="deep")
    assert report["verdict"] == "fail" and "checker-rejects" in codes(report)


def test_an_empty_key_is_data_loss_whatever_the_checker_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(servers.checker("7.0").parent))
    data = dump(w.key("gone", _rdb_format.SET, w.counted([])))
    assert servers.loads("7.0", data).keyspace == {"db0": {"keys": 1, "expires": 0}}
    report = verify(tmp_path, data, level="deep")
    assert (report["verdict"], codes(report)) == ("unknown", ["empty-container"])


def test_what_only_deep_sees(tmp_path: Path) -> None:
    for part, code in ((KEY, "duplicate-key"), (w.key("h", _rdb_format.HASH, w.pairs([("a", "1"), ("a", "2")])), "duplicate-member")):
        assert verify(tmp_path, dump(part))["verdict"] == "pass"
        report = verify(tmp_path, dump(part), level="deep")
        assert (report["verdict"], code in codes(report)) == ("fail", True)


# --- target and hour ------------------------------------------------------------------------------------------------


def test_target(tmp_path: Path) -> None:
    report = verify(tmp_path, dump(version=12))
    assert (report["verdict"], codes(report)) == ("fail", ["version-too-new"])
    assert report["checksum"] == "ok", "the file is not to blame"


def test_keys_that_have_expired(tmp_path: Path) -> None:
    for at, lost in ((NOW - 1, True), (NOW + 1, False)):
        data = w.rdb(w.select(0), w.resize(2, 1), KEY, w.key("gone", _rdb_format.STRING, w.string("v"), at_ms=int(at * 1000)))
        report = verify(tmp_path, data)
        assert (report["verdict"], codes(report), report["contents"]["expired"]) == ("pass", ["expired-keys"] * lost, lost)


def test_a_file_of_a_server_with_replicas(tmp_path: Path) -> None:
    replication = w.aux("repl-stream-db", "0") + w.aux("repl-id", "ab" * 20) + w.aux("repl-offset", "14")
    report = verify(tmp_path, w.rdb(replication, w.select(0), w.resize(1, 0), KEY))
    assert (report["verdict"], codes(report)) == ("pass", ["replication-configured"])


def test_age(tmp_path: Path) -> None:
    assert verify(tmp_path, dump(), max_age_s=601)["verdict"] == "pass"
    assert codes(verify(tmp_path, dump(), max_age_s=599)) == ["snapshot-too-old"]
    assert codes(verify(tmp_path, dump(), now=NOW - 1200)) == ["taken-in-future"]
    undated = w.rdb(w.select(0), w.resize(1, 0), KEY)
    assert verify(tmp_path, undated)["verdict"] == "pass"
    report = verify(tmp_path, undated, max_age_s=10)
    assert (report["verdict"], codes(report)) == ("unknown", ["age-unknown"])


# --- the report -----------------------------------------------------------------------------------------------------


def test_reasons_are_sorted_by_severity(tmp_path: Path) -> None:
    report = verify(tmp_path, dump(crc=False, tail=b"x"), now=NOW - 1200, recorded={"size": 1})
    severities = [finding["severity"] for finding in report["findings"]]
    assert severities == sorted(severities, key=["fatal", "unproven", "data loss", "warning"].index) and len(set(severities)) > 1


def test_evidence_is_one_safe_line(tmp_path: Path) -> None:
    assert _rdb.evidence(verify(tmp_path, dump())) == "RDB 10 by Redis 7.0.15, 1 keys, checksum ok"
    wild = w.key("k\x1b[31m\n\x9b\u202e", _rdb_format.HASH, w.pairs([("a", "1"), ("a", "2")]))
    report = verify(tmp_path, dump(wild), level="deep")
    text = _rdb.evidence(report)
    assert "duplicate-member" in text and text.isprintable()


def test_printable() -> None:
    assert _rdb.printable("plain: \u00e9 \u4e2d") == "plain: \u00e9 \u4e2d"
    assert _rdb.printable("\x1b[2J\r\n\x9b\u202e\udcff\x00") == "\\x1b[2J\\r\\n\\x9b\\u202e\\udcff\\x00"


def test_a_verification_that_broke_off_is_not_a_pass() -> None:
    report = _rdb.broken_off("x.rdb", "rdb", "deep", "killed")
    assert (report["verdict"], codes(report), report["level"]) == ("unknown", ["verifier-failed"], "deep")
