# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _state
from ansible_collections.titan.disaster_recovery.plugins.modules import tree_restore

NAME = "points/20260101T000000Z-abcdef/config.tar.zst.age"


class Case:
    def __init__(self, folder: Path, key: Any) -> None:
        self.folder, self.key = folder, key
        self.live = folder / "live"
        (self.live / "config").mkdir(parents=True)
        (self.live / "config" / "old.json").write_text("{}")
        (self.live / "redis.conf").write_text("old")
        self.params: dict[str, Any] = {
            "candidates": [],
            "identity": key.identity,
            "paths": [str(self.live / "config"), str(self.live / "redis.conf")],
            "run_id": "r1",
            "gate": "config_restored",
            "timeout": 20,
        }
        self.content: dict[str, bytes | tuple[str, str]] = {
            self.name("config/brain.json"): b'{"a": 1}',
            self.name("config/deep/app.config.js"): b"module.exports",
            self.name("redis.conf"): b"port 1",
        }

    def release(self) -> dict[str, Any]:
        """The parameters that restore a release."""
        return {**{key: value for key, value in self.params.items() if key != "paths"}, "link": str(self.live / "current")}

    def name(self, path: str) -> str:
        return str(self.live / path).lstrip("/")

    def add(self, name: str = "p1", content: dict[str, Any] | None = None) -> None:
        """An archive of these members: bytes are files, (target,) pairs are links."""
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for path, value in (self.content if content is None else content).items():
                member = tarfile.TarInfo(path)
                member.uid, member.gid, member.mode = 65534, 65534, 0o640
                if isinstance(value, bytes):
                    member.size = len(value)
                    archive.addfile(member, io.BytesIO(value))
                else:
                    member.type, member.linkname = tarfile.SYMTYPE, value[0]
                    archive.addfile(member)
        data, entry = self.key.stored(raw.getvalue(), NAME)
        place = self.folder / f"{name}.object"
        place.write_bytes(data)
        source = {"store": "near", "kind": "file", "path": str(place)}
        self.params["candidates"].append({"id": name, "taken_at": 1.0, "object": entry, "details": {"path": str(self.live / "config")}, "sources": [source]})


@pytest.fixture
def case(tmp_path: Path, key: Any, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setattr(_state, "STATE_DIR", str(tmp_path / "state"))
    return Case(tmp_path, key)


def untouched(case: Case) -> bool:
    return sorted(path.name for path in case.live.rglob("*")) == ["config", "old.json", "redis.conf"] and not list((case.folder / "state" / "stage").iterdir())


def test_restored(case: Case, run_module: Any) -> None:
    case.add()
    result = run_module(tree_restore, case.params)
    assert result["changed"] and result["restore_point"] == "p1"
    assert (case.live / "config" / "brain.json").read_text() == '{"a": 1}' and not (case.live / "config" / "old.json").exists()
    found = (case.live / "config" / "brain.json").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (65534, 65534, 0o640)
    assert result["kept"] == [f"{path}.before-r1" for path in case.params["paths"]]
    assert (case.live / "config.before-r1" / "old.json").exists() and (case.live / "redis.conf.before-r1").read_text() == "old"
    assert result["titan_dr"]["gates"] == [
        {"name": "config_restored", "verdict": "pass", "evidence": "3 files of restore point p1 from near; 2 of 2 paths replaced"}
    ]
    assert not list((case.folder / "state" / "stage").iterdir()), "nothing is left of the stage"


def test_a_second_run_changes_nothing(case: Case, run_module: Any) -> None:
    case.add()
    run_module(tree_restore, case.params)
    before = sorted(str(path) for path in case.live.rglob("*"))
    for run_id in ("r1", "r2"):
        again = run_module(tree_restore, {**case.params, "run_id": run_id})
        assert again["changed"] is False and again["kept"] == []
    assert sorted(str(path) for path in case.live.rglob("*")) == before


@pytest.mark.parametrize("spoil", ["content", "mode", "owner", "more", "link"])
def test_any_difference_is_one(case: Case, run_module: Any, spoil: str) -> None:
    case.add()
    run_module(tree_restore, case.params)
    file = case.live / "config" / "brain.json"
    if spoil == "content":
        file.write_text('{"a": 2}')
    if spoil == "mode":
        file.chmod(0o644)
    if spoil == "owner":
        os.chown(file, 0, 0)
    if spoil == "more":
        (case.live / "config" / "more").touch()
    if spoil == "link":
        file.unlink()
        file.symlink_to("/dev/null")
    result = run_module(tree_restore, {**case.params, "run_id": "r2"})
    assert result["kept"] == [f"{case.live}/config.before-r2"] and file.read_text() == '{"a": 1}'


def test_what_was_kept_is_not_overwritten(case: Case, run_module: Any) -> None:
    """A run that goes on where it broke off finds what it restored changed: that is kept too, beside what was there before."""
    case.add()
    run_module(tree_restore, case.params)
    (case.live / "config" / "brain.json").write_text("{}")
    result = run_module(tree_restore, case.params)
    assert not result["failed"] and result["kept"] == [f"{case.live}/config.before-r1-2"]
    assert (case.live / "config.before-r1-2" / "brain.json").read_text() == "{}" and (case.live / "config" / "brain.json").read_text() == '{"a": 1}'


def test_onto_a_blank_server(case: Case, run_module: Any) -> None:
    shutil.rmtree(case.live)
    case.add()
    result = run_module(tree_restore, case.params)
    assert result["changed"] and result["kept"] == [] and (case.live / "redis.conf").read_text() == "port 1"


def test_a_slash_at_the_end_means_the_same(case: Case, run_module: Any) -> None:
    case.add()
    case.params["paths"][0] += "/"
    assert run_module(tree_restore, case.params)["kept"][0] == f"{case.live}/config.before-r1"


def test_a_missing_path(case: Case, run_module: Any) -> None:
    case.add(content={case.name("config/brain.json"): b"{}"})
    result = run_module(tree_restore, case.params)
    assert result["failed"] and f"{case.live}/redis.conf is not in the archive" in result["msg"] and untouched(case)
    assert result["titan_dr"]["gates"][0]["verdict"] == "fail"


@pytest.mark.parametrize("text", [b"", b"{", b'{"a": 1}x', b"\xff"])
def test_broken_json(case: Case, run_module: Any, text: bytes) -> None:
    case.add(content={**case.content, case.name("config/deep/phase.json"): text})
    result = run_module(tree_restore, case.params)
    assert result["failed"] and f"{case.live}/config/deep/phase.json is not JSON" in result["msg"] and untouched(case)


def test_an_older_restore_point_when_the_newest_is_broken(case: Case, run_module: Any) -> None:
    case.add("p2", {**case.content, case.name("config/brain.json"): b"{"})
    case.add("p1")
    result = run_module(tree_restore, case.params)
    assert result["restore_point"] == "p1" and "restore point p2 from near" in result["titan_dr"]["notes"][0]
    assert (case.live / "config" / "brain.json").read_text() == '{"a": 1}'


def test_nothing_of_a_failed_attempt_gets_into_the_next(case: Case, run_module: Any) -> None:
    case.add("p2", {case.name("config/only-in-p2"): b"x"})
    case.add("p1")
    run_module(tree_restore, case.params)
    assert not (case.live / "config" / "only-in-p2").exists()


@pytest.mark.parametrize(
    "member",
    [
        {"../../escaped": b"x"},
        {"a/../../../escaped": b"x"},
        {"link": ("{folder}",), "link/escaped": b"x"},
        {"link": ("..",), "link/escaped": b"x"},
    ],
)
def test_a_member_that_tries_to_escape(case: Case, run_module: Any, member: dict[str, Any]) -> None:
    filled = {path: value if isinstance(value, bytes) else (value[0].format(folder=case.folder),) for path, value in member.items()}
    case.add(content={**case.content, **filled})
    result = run_module(tree_restore, case.params)
    assert not list(case.folder.rglob("escaped")) or result["failed"]
    assert not (case.folder / "escaped").exists() and not (case.folder / "state" / "escaped").exists()
    assert result["failed"] and "tar ended with 2" in result["msg"] and untouched(case)


def test_an_absolute_member_stays_in_the_stage(case: Case, run_module: Any) -> None:
    case.add(content={**case.content, f"{case.folder}/escaped": b"x"})
    run_module(tree_restore, case.params)
    assert not (case.folder / "escaped").exists()


def test_link(case: Case, run_module: Any) -> None:
    case.add()
    (case.live / "current").symlink_to("/somewhere")
    params = case.release()
    assert run_module(tree_restore, params)["changed"]
    assert os.readlink(case.live / "current") == str(case.live / "config")
    assert run_module(tree_restore, params)["changed"] is False
    (case.live / "current").unlink()
    assert run_module(tree_restore, params)["changed"] and (case.live / "current").is_dir()


def test_an_older_release_is_taken_from_its_own_place(case: Case, run_module: Any) -> None:
    case.add("newest", content={})
    case.add("older", content={case.name("r-older/server.js"): b"1", case.name("r-older/tsconfig.json"): b"// not JSON"})
    case.params["candidates"][1]["details"] = {"path": str(case.live / "r-older")}
    result = run_module(tree_restore, case.release())
    assert result["restore_point"] == "older" and "newest" in result["titan_dr"]["notes"][0]
    assert os.readlink(case.live / "current") == str(case.live / "r-older")


def test_link_stays_when_the_restore_fails(case: Case, run_module: Any) -> None:
    case.add(content={})
    (case.live / "current").symlink_to("/somewhere")
    assert run_module(tree_restore, case.release())["failed"]
    assert os.readlink(case.live / "current") == "/somewhere"


@pytest.fixture
def other_disk() -> Iterator[Path]:
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat(tempfile.gettempdir()).st_dev:
        pytest.skip("there is no second file system")
    folder = tempfile.mkdtemp(prefix="tdr-", dir="/dev/shm")
    yield Path(folder)
    shutil.rmtree(folder)


def test_onto_another_file_system_with_owner_and_mode(other_disk: Path, tmp_path: Path, key: Any, run_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state directory and the target need not lie on one disk; the services could not read their secrets as root's files."""
    monkeypatch.setattr(_state, "STATE_DIR", str(tmp_path / "state"))
    case = Case(other_disk, key)
    case.add()
    result = run_module(tree_restore, case.params)
    found = (case.live / "config" / "brain.json").stat()
    assert result["changed"] and (found.st_uid, found.st_gid, found.st_mode & 0o777) == (65534, 65534, 0o640)
    assert (case.live / "config.before-r1" / "old.json").exists()
    assert run_module(tree_restore, {**case.params, "run_id": "r2"})["changed"] is False


def test_check_mode(case: Case, run_module: Any) -> None:
    case.add()
    result = run_module(tree_restore, case.params, check=True)
    assert result["changed"] and "from restore point p1" in result["titan_dr"]["notes"][0] and not (case.folder / "state").exists()
