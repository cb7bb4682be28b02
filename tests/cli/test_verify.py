# SPDX-License-Identifier: GPL-3.0-or-later
"""titan-dr verify as it is called: on files of real servers, with its exit codes, and what it prints."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import rdb_writer as w
import servers
from titan_dr import cli, report, verify

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "titan_dr", "verify"]
STRING, HASH = 0, 4


@pytest.fixture(scope="session")
def made() -> bytes:
    with servers.running("7.0") as server:
        servers.fill(server.client)
        return server.dump()


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a server with AOF leaves: dump.rdb and appendonlydir."""
    folder = tmp_path_factory.mktemp("data") / "redis"
    with servers.running("7.0", appendonly="yes", aof_timestamp_enabled="yes") as server:
        servers.fill(server.client)
        server.client.execute_command("SAVE")
        shutil.copytree(server.folder, folder, ignore=shutil.ignore_patterns("s", "log", "server.conf"))
    return folder


@pytest.fixture
def dump(made: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "dump.rdb"
    path.write_bytes(made)
    return path


def run(*arguments: Any) -> int:
    return cli.main(["verify", *map(str, arguments)])


def reports(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, list[dict[str, Any]]]:
    code = run(*arguments, "--json")
    out = capsys.readouterr().out
    assert out.isascii()
    found: list[dict[str, Any]] = json.loads(out)
    return code, found


def codes(found: dict[str, Any]) -> list[str]:
    return [finding["code"] for finding in found["findings"]]


# --- verdicts and exit codes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["fast", "deep", "proof"])
def test_pass(dump: Path, level: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, (found,) = reports(capsys, dump, "--level", level, "--target", "redis:7.0.15")
    assert (code, found["verdict"], found["level"]) == (0, "pass", level)
    assert found["contents"]["keys"] > 50
    assert ("scratch" in found["engines"]) == (level == "proof")
    assert run(dump, "--level", level, "--target", "redis:7.0.15") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"PASS    {dump}: RDB 10 by Redis 7.0.15") and " keys" in out and " ago" in out
    assert ("not checked:" in out) and ("level proof" in out) == (level != "proof")


def test_fail_and_unknown(dump: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = dump.read_bytes()
    dump.write_bytes(good[:-3])
    code, (found,) = reports(capsys, dump)
    assert (code, found["verdict"]) == (verify.FAILED, "fail") and codes(found)[0] == "truncated"
    dump.write_bytes(good[:-8] + bytes(8))
    code, (found,) = reports(capsys, dump)
    assert (code, found["verdict"], codes(found)[0]) == (verify.UNKNOWN, "unknown", "checksum-disabled")
    broken = dump.with_name("broken.rdb")
    broken.write_bytes(b"<html>404</html>")
    code, both = reports(capsys, dump, broken)
    assert (code, [found["verdict"] for found in both]) == (verify.FAILED, ["unknown", "fail"]), "one that fails stands above one that is not known"
    assert run(dump, broken) == verify.FAILED
    out = capsys.readouterr().out
    assert "FAIL    " in out and "fatal: an HTML page" in out and "[not-rdb, offset 0]" in out
    assert out.endswith("2 verified: 1 fail, 1 unknown\n")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nothing.rdb"], "there is no nothing.rdb"),
        (["empty"], "empty holds no"),
        (["dump.rdb", "--target", "redis"], "--target"),
        (["dump.rdb", "--target", '{"servers": 1}'], "--target"),
        (["dump.rdb", "--recorded", "nothing.json"], "--recorded"),
        (["dump.rdb", "--recorded", "dump.rdb"], "--recorded"),
        (["dump.rdb", "copy.rdb", "--recorded", "manifest.json"], "speaks of one file"),
    ],
)
def test_wrong_use(dump: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], named: str) -> None:
    monkeypatch.chdir(dump.parent)
    os.mkdir("empty")
    shutil.copy("dump.rdb", "copy.rdb")
    Path("manifest.json").write_text(json.dumps({"redis": {"size": 1, "sha256": "ab" * 32}}))
    assert run(*arguments) == report.USAGE
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["x", "--level", "deeper"], ["x", "--jobs", "0"], ["x", "--jobs", "many"], ["x", "--max-age", "-1"]])
def test_wrong_use_by_argparse(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["verify", *arguments])
    assert ended.value.code == report.USAGE


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may run as somebody else")
def test_a_file_of_somebody_else(made: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = Path("/var/tmp") / f"tdr-{os.getpid()}"
    folder.mkdir(mode=0o755)
    try:
        path = folder / "dump.rdb"
        path.write_bytes(made)
        path.chmod(0o600)
        text = f"import os, sys; os.setuid(65534); from titan_dr import cli; sys.exit(cli.main(['verify', {str(path)!r}]))"
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, cwd=ROOT, env=environment)
        assert done.returncode == report.USAGE and "cannot be read by this user" in done.stderr
    finally:
        shutil.rmtree(folder)


# --- what is found --------------------------------------------------------------------------------------------------


def test_a_data_directory(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data_dir / "temp-123.rdb").write_bytes(b"REDIS")
    code, found = reports(capsys, data_dir)
    assert sorted((item["kind"], os.path.basename(item["path"]), item["verdict"]) for item in found) == [
        ("aof", "appendonlydir", "unknown"),
        ("rdb", "dump.rdb", "pass"),
    ]
    assert code == verify.UNKNOWN
    run(data_dir)
    both = capsys.readouterr()
    assert "AOF of 2 files, intact; usable up to offset" in both.out
    assert "temp-123.rdb" in both.err and "temp-123.rdb" not in both.out


def test_an_aof_with_its_digests_passes(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "appendonlydir"
    shutil.copytree(data_dir / "appendonlydir", folder)
    sums = tmp_path / "SHA256SUMS"
    sums.write_text("".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  appendonlydir/{path.name}\n" for path in folder.iterdir()))
    options = ("--recorded", sums, "--target", '{"version": "7.0.15", "databases": 16, "maxmemory": 0, "modules": []}')
    code, (found,) = reports(capsys, folder, *options)
    assert (code, found["verdict"]) == (0, "pass")
    # the same as part of a whole backup
    shutil.copy(data_dir / "dump.rdb", tmp_path)
    with sums.open("a") as stream:
        stream.write(f"{hashlib.sha256((data_dir / 'dump.rdb').read_bytes()).hexdigest()}  dump.rdb\n")
    code, both = reports(capsys, tmp_path, *options)
    assert (code, [item["verdict"] for item in both]) == (0, ["pass", "pass"])
    (increment,) = folder.glob("*.incr.aof")
    increment.write_bytes(increment.read_bytes()[:-3])
    code, (found,) = reports(capsys, folder, *options)
    assert (code, found["verdict"]) == (1, "fail") and "digest-mismatch" in codes(found)
    assert run(increment, "--max-age", "0") in (verify.FAILED, verify.UNKNOWN)


def test_an_aof_directory_without_manifest_is_told(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "renamed"
    shutil.copytree(data_dir / "appendonlydir", folder)
    (folder / "appendonly.aof.manifest").unlink()
    code, (found,) = reports(capsys, tmp_path)
    assert (code, found["kind"], codes(found)[0]) == (1, "aof", "aof-manifest")


def test_a_file_is_verified_once(dump: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dump.parent / "link.rdb").symlink_to(dump)
    code, found = reports(capsys, dump, dump.parent, dump)
    assert (code, [item["path"] for item in found]) == (0, [str(dump)])


def test_the_order_is_that_of_the_arguments(made: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{letter}.rdb" for letter in "dbacfe"]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(made if number % 2 else made[: -100 * number - 1])
    paths = [str(tmp_path / name) for name in names]
    code, found = reports(capsys, *paths, "--jobs", "2")
    assert (code, [item["path"] for item in found]) == (1, paths)
    assert [item["verdict"] for item in found] == ["fail", "pass"] * 3


# --- what it is held against ----------------------------------------------------------------------------------------


def test_target(dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = tmp_path / "target.json"
    facts.write_text('{"version": "6.2.14"}')
    conf = tmp_path / "redis.conf"
    conf.write_text("databases 1\n")
    for target, code in (("redis:6.2.14", "version-too-new"), (str(facts), "version-too-new"), (str(conf), "database-beyond-target")):
        _, (found,) = reports(capsys, dump, "--target", target)
        assert (found["verdict"], codes(found)[0]) == ("fail", code)
    _, (found,) = reports(capsys, dump, "--target", '{"version": "7.0.15", "databases": 16, "maxmemory": 0}')
    assert (found["verdict"], codes(found)) == ("pass", [])


def test_recorded(dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digest = hashlib.sha256(dump.read_bytes()).hexdigest()
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"redis": {"version": "7.0.15", "size": dump.stat().st_size, "sha256": digest}}))
    code, (found,) = reports(capsys, dump, "--recorded", manifest, "--checksum", "digest")
    assert (code, found["digest_matched"]) == (0, True)
    code, (found,) = reports(capsys, dump, "--checksum", "digest")
    assert (code, "digest-missing" in codes(found)) == (verify.UNKNOWN, True)
    manifest.write_text(json.dumps({"redis": {"sha256": "ab" * 32}}))
    code, (found,) = reports(capsys, dump, "--recorded", manifest)
    assert (code, codes(found)[0]) == (1, "digest-mismatch")


def test_age(dump: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reports(capsys, dump, "--max-age", "3600")[0] == 0
    old = w.rdb(w.aux("ctime", str(int(time.time()) - 7200)), w.select(0), w.resize(1, 0), w.key("k", STRING, w.string("v")))
    dump.write_bytes(old)
    code, (found,) = reports(capsys, dump, "--max-age", "3600")
    assert (code, codes(found)[0]) == (1, "snapshot-too-old")
    run(dump, "--max-age", "3600")
    assert "2 h ago" in capsys.readouterr().out


# --- terminal -------------------------------------------------------------------------------------------------------

WILD = "k\x1b]0;title\x07\x1b[2J\r\n\x9b31m\u202e"


def test_nothing_from_a_file_reaches_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "d\x1b[31mump.rdb"
    twice = w.pairs([("a", "1"), ("a", "2")])
    parts = (w.aux("redis-ver", WILD), w.aux(WILD, WILD), w.select(0), w.resize(1, 0), w.key(WILD, HASH, twice))
    path.write_bytes(w.rdb(*parts))
    for options in ([], ["--json"]):
        run(path, "--level", "deep", *options)
        both = capsys.readouterr()
        text = both.out + both.err
        assert all(char.isprintable() or char == "\n" for char in text), repr(text)
        assert "duplicate-member" in text


def test_no_value_is_printed(dump: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = w.rdb(w.select(0), w.resize(1, 0), w.key("name", HASH, w.pairs([("secret-field", "secret-value"), ("secret-field", "secret-value")])), crc=bytes(7))
    dump.write_bytes(data)
    for level in ("fast", "deep", "proof"):
        for options in ([], ["--json"]):
            run(dump, "--level", level, *options)
            both = capsys.readouterr()
            assert "secret" not in both.out + both.err


def on_a_terminal(*arguments: Any, **environment: str) -> str:
    """What the command writes to a terminal."""
    leader, follower = pty.openpty()
    # whatever whoever started the tests thinks of colour
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    environment = {**plain, "TERM": "xterm", **environment}
    with subprocess.Popen([*COMMAND, *map(str, arguments)], stdout=follower, stderr=follower, cwd=ROOT, env=environment) as process:
        os.close(follower)
        text = b""
        while True:
            try:
                part = os.read(leader, 65536)
            except OSError:
                break
            text += part
        process.wait()
    os.close(leader)
    return text.decode()


def test_colour_on_a_terminal_only(dump: Path) -> None:
    assert "\x1b[1;32mPASS   \x1b[0m" in on_a_terminal(dump)
    assert "\x1b" not in on_a_terminal(dump, NO_COLOR="1")
    assert "\x1b" not in subprocess.run([*COMMAND, dump], capture_output=True, text=True, cwd=ROOT).stdout


class Terminal:
    """A stream that says it is one."""

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        """Nothing is kept back."""


def test_progress_of_large_files() -> None:
    for size, shown in ((verify.LARGE - 1, False), (verify.LARGE, True)):
        terminal = Terminal()
        item = verify.Item("rdb", "x/big\x1b.rdb", size)
        progress = verify.Progress([item, item], terminal)  # type: ignore[arg-type]
        progress(0, [item])
        assert ("verifying big\\x1b.rdb (64.0 MiB): 0 of 2 done" in terminal.text) == shown
        progress(2, [])
        assert terminal.text.endswith("\x1b[K") == shown


# --- processes ------------------------------------------------------------------------------------------------------


def test_a_verifier_that_dies_takes_nothing_else_down(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    items = [verify.Item("rdb", str(tmp_path / name), 1) for name in ("killed", "raises", "good")]

    def work(item: verify.Item, jobs: int) -> verify.Report:
        if item.path.endswith("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if item.path.endswith("raises"):
            raise ValueError("\x1b[2J")
        return {"path": item.path, "verdict": "pass", "size": "x" * 2**20}

    found = verify.verify_all(items, "fast", 2, work, lambda done, running: None)
    assert [item["verdict"] for item in found] == ["unknown", "unknown", "pass"]
    assert "SIGKILL" in found[0]["findings"][0]["text"] and "broke off" in found[1]["findings"][0]["text"]
    err = capfd.readouterr().err
    assert "ValueError" in err and "\x1b" not in err


def test_processors_are_shared(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def work(item: verify.Item, jobs: int) -> verify.Report:
        time.sleep(0.05)
        return {"path": item.path, "verdict": "pass", "jobs": jobs}

    for count, jobs, share in ((1, 4, 4), (2, 4, 2), (3, 4, 1), (5, 2, 1)):
        items = [verify.Item("rdb", str(number), number) for number in range(count)]
        found = verify.verify_all(items, "fast", jobs, work, lambda done, running: seen.append((done, len(running))))
        assert {item["jobs"] for item in found} == {share}
        assert max(running for dummy, running in seen) <= jobs
        seen.clear()


def children(pid: int) -> set[int]:
    done = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
    parents = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    found = {child for child, parent in parents if parent == pid}
    return found.union(*(children(child) for child in found))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_cancelled(dump: Path, tmp_path: Path, signum: signal.Signals) -> None:
    """Whoever stops it leaves no process and no scratch directory behind."""
    slow = tmp_path / "redis-server"
    slow.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Redis server v=7.0.15 sha=0" && exit\nexec sleep 60\n')
    slow.chmod(0o755)
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch)}
    process = subprocess.Popen([*COMMAND, dump, "--level", "proof", "--server", slow], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    while len(started := children(process.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(started) >= 2
    time.sleep(0.3)
    process.send_signal(signum)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (report.CANCELLED, "titan-dr: cancelled\n")
    left = {pid for pid in started if Path(f"/proc/{pid}").exists()}
    assert not left and not list(scratch.iterdir())


def test_nothing_heavy_is_imported(dump: Path) -> None:
    """Rich, PyYAML and Ansible take longer than a small file does."""
    text = (
        "import sys\nfrom titan_dr import cli\n"
        f"code = cli.main(['verify', {str(dump)!r}])\n"
        "heavy = {'ansible', 'ansible_runner', 'asyncio', 'boto3', 'jinja2', 'multiprocessing', 'redis', 'rich', 'yaml'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})
    assert (done.returncode, done.stderr) == (0, "")


def test_the_installed_collection(dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "ansible_collections" / "titan"
    place.mkdir(parents=True)
    monkeypatch.setenv("ANSIBLE_COLLECTIONS_PATH", str(tmp_path))
    assert run(dump, "--installed") == report.USAGE and "not installed" in capsys.readouterr().err
    (place / "disaster_recovery").symlink_to(ROOT)
    assert verify.collections_path(True) == tmp_path
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TITAN_DR_ROOT": "/nowhere"}
    done = subprocess.run([*COMMAND, dump, "--installed"], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr


def test_many_reasons_are_cut() -> None:
    finding = {"code": "duplicate-key", "severity": "fatal", "text": "twice"}
    told = verify.lines({"kind": "rdb", "path": "x", "verdict": "fail", "contents": None, "findings": [finding] * 25, "not_checked": []}, False)
    assert len(told) == 1 + verify.MOST_REASONS + 1 and told[-1].endswith("and 5 more, see --json")


def test_spans() -> None:
    spans = {0.4: "0 s", 59: "59 s", 60: "1 min", 125: "2 min 5 s", 3600: "1 h", 7260: "2 h 1 min", 90000: "1 d 1 h", 864000: "10 d"}
    assert {seconds: verify.span(seconds) for seconds in spans} == spans
