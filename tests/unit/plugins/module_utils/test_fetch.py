# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import io
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _fetch
from ansible_collections.titan.disaster_recovery.plugins.module_utils._fetch import FetchError

# More than a pipe holds, and not compressible to nothing.
PLAIN = os.urandom(3 << 20)
NAME = "points/20260101T000000Z-abcdef/redis.rdb.zst.age"


def children() -> set[str]:
    """Command lines of the living processes that the tests' process started."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as handle:
                state, parent = handle.read().rsplit(")", 1)[1].split()[:2]
            if int(parent) == os.getpid() and state != "Z":
                with open(f"/proc/{pid}/cmdline") as handle:
                    found.add(handle.read().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.fixture(autouse=True)
def nothing_is_left() -> Any:
    before = children()
    yield
    assert children() == before, "a process was left behind"


def fetch(data: bytes, entry: dict[str, Any], identity: str, folder: Path, seconds: float = 10) -> bytes:
    place = folder / "object"
    place.write_bytes(data)
    sink = io.BytesIO()
    with open(folder / "sink", "wb") as handle:
        _fetch.fetch(entry, {"store": "s", "kind": "file", "path": str(place)}, identity, handle, time.time() + seconds)
    sink.write((folder / "sink").read_bytes())
    return sink.getvalue()


@pytest.mark.parametrize("name", ["objects/a.tar.gz", "objects/a.tar.zst", "objects/a.tar.age", NAME])
def test_good(tmp_path: Path, key: Any, name: str) -> None:
    data, entry = key.stored(PLAIN, name)
    assert fetch(data, entry, key.identity if entry["sealed"] else "", tmp_path) == PLAIN


def test_hash_of_another_object(tmp_path: Path, key: Any) -> None:
    data, dummy = key.stored(b"old data", NAME)
    dummy, entry = key.stored(b"new data", NAME)
    with pytest.raises(FetchError, match="is not what the manifest recorded"):
        fetch(data, entry, key.identity, tmp_path)


def test_hash_of_an_object_that_is_not_sealed(tmp_path: Path, key: Any) -> None:
    data, entry = key.stored(b"tools", "objects/a.tar.gz")
    with pytest.raises(FetchError, match="is not what the manifest recorded"):
        fetch(data + b"\n", entry, "", tmp_path)


@pytest.mark.parametrize("at", [0, 30, 400, 5000, -1])
def test_flipped_byte_is_noticed_by_age_itself(tmp_path: Path, key: Any, at: int) -> None:
    data, entry = key.stored(PLAIN, NAME)
    bad = bytearray(data)
    bad[at] ^= 1
    with pytest.raises(FetchError, match=r"age ended with"):
        fetch(bytes(bad), entry, key.identity, tmp_path)


@pytest.mark.parametrize("size", [0, 1, 100, 100_000, 2_000_000])
def test_truncated(tmp_path: Path, key: Any, size: int) -> None:
    data, entry = key.stored(PLAIN, NAME)
    with pytest.raises(FetchError, match=r"age ended with"):
        fetch(data[:size], entry, key.identity, tmp_path)


def test_another_identity(tmp_path: Path, key: Any, other_key: Any) -> None:
    data, entry = key.stored(PLAIN, NAME)
    with pytest.raises(FetchError, match="no identity matched"):
        fetch(data, entry, other_key.identity, tmp_path)


def test_no_identity_at_all(tmp_path: Path, key: Any) -> None:
    data, entry = key.stored(PLAIN, NAME)
    with pytest.raises(FetchError, match="age ended with"):
        fetch(data, entry, "", tmp_path)


def test_broken_compression_inside_a_good_envelope(tmp_path: Path, key: Any) -> None:
    data, entry = key.stored(b"this is no zstd", "objects/a.age")
    with pytest.raises(FetchError, match="zstd ended with"):
        fetch(data, {**entry, "key": NAME}, key.identity, tmp_path)


def test_a_command_as_sink_that_fails(tmp_path: Path, key: Any) -> None:
    data, entry = key.stored(PLAIN, NAME)
    (tmp_path / "object").write_bytes(data)
    source = {"store": "s", "kind": "file", "path": str(tmp_path / "object")}
    with pytest.raises(FetchError, match=r"tar ended with 2: .*does not look like a tar"):
        _fetch.fetch(entry, source, key.identity, ["tar", "--extract", "--directory", str(tmp_path)], time.time() + 10)


def test_missing_file(key: Any) -> None:
    dummy, entry = key.stored(b"x", NAME)
    with pytest.raises(FetchError, match="reading failed"):
        _fetch.fetch(entry, {"store": "s", "kind": "file", "path": "/nonexistent"}, key.identity, io.BytesIO(), time.time() + 5)


def test_the_own_tool_comes_before_the_installed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fetch, "TOOLS_DIR", str(tmp_path))
    assert _fetch.tool("age") == "/usr/bin/age"
    (tmp_path / "age").write_text("#!/bin/sh\n")
    assert _fetch.tool("age") == "/usr/bin/age", "it cannot be executed"
    (tmp_path / "age").chmod(0o755)
    assert _fetch.tool("age") == str(tmp_path / "age")
    with pytest.raises(FetchError, match="neither installed"):
        _fetch.tool("no-such-tool")


# --- over the network -----------------------------------------------------------------------------------------------


def reset(handler: Any) -> None:
    """Half an answer, then the connection is reset."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    handler.wfile.write(b"x" * 1000)
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(handler.connection.detach())


def chunked(handler: Any) -> None:
    """A chunked answer that ends within a chunk."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"1000\r\nabc")


def gibberish(handler: Any) -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH\r\n\r\n")


def over_http(web: Any, answer: Any, entry: dict[str, Any], identity: str, folder: Path, seconds: float = 10) -> bytes:
    service = web(lambda method, path, body: answer)
    with open(folder / "sink", "wb") as sink:
        _fetch.fetch(entry, {"store": "s", "kind": "http", "url": f"{service.url}/object"}, identity, sink, time.time() + seconds)
    return (folder / "sink").read_bytes()


def test_http(web: Any, tmp_path: Path, key: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    data, entry = key.stored(PLAIN, NAME)
    assert over_http(web, (200, {}, data), entry, key.identity, tmp_path) == PLAIN


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((404, {}, b"no"), "answered 404"),
        ((403, {}, b""), "answered 403"),
        ((200, {}, b"<html>signed in</html>"), "age ended with"),
        ((200, {}, b""), "age ended with"),
        (reset, "reset by peer"),
        (chunked, "reading failed: IncompleteRead"),
        (gibberish, "reading failed"),
        (lambda handler: None, "cannot be reached|reading failed"),
    ],
)
def test_http_faults(web: Any, tmp_path: Path, key: Any, answer: Any, why: str) -> None:
    dummy, entry = key.stored(PLAIN, NAME)
    with pytest.raises(FetchError, match=why):
        over_http(web, answer, entry, key.identity, tmp_path)


def test_http_body_that_ends_early(web: Any, tmp_path: Path, key: Any) -> None:
    data, entry = key.stored(PLAIN, NAME)
    with pytest.raises(FetchError):
        over_http(web, (200, {"Content-Length": str(len(data))}, data[:1_000_000]), entry, key.identity, tmp_path)


def test_nobody_listens(tmp_path: Path, key: Any) -> None:
    dummy, entry = key.stored(PLAIN, NAME)
    with pytest.raises(FetchError, match=r"cannot be reached: .*refused"):
        _fetch.fetch(entry, {"store": "s", "kind": "http", "url": "http://127.0.0.1:1/"}, key.identity, io.BytesIO(), time.time() + 5)


def silent(data: bytes) -> Any:
    """Sends the beginning and then nothing."""

    def answer(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[:100_000])
        handler.wfile.flush()
        handler.connection.settimeout(20)
        handler.connection.recv(1)

    return answer


def dripping(data: bytes) -> Any:
    """Sends a byte now and then: no single read ever takes long."""

    def answer(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        for position in range(400):
            handler.wfile.write(data[position : position + 1])
            handler.wfile.flush()
            time.sleep(0.02)

    return answer


@pytest.mark.parametrize("slow", [silent, dripping])
def test_the_deadline_ends_a_slow_store(web: Any, tmp_path: Path, key: Any, slow: Any) -> None:
    data, entry = key.stored(PLAIN, NAME)
    started = time.monotonic()
    with pytest.raises(FetchError, match=r"the time for it was over|timed out"):
        over_http(web, slow(data), entry, key.identity, tmp_path, seconds=1)
    assert time.monotonic() - started < 5


def test_the_deadline_ends_a_sink_that_takes_nothing(tmp_path: Path, key: Any) -> None:
    data, entry = key.stored(PLAIN, NAME)
    (tmp_path / "object").write_bytes(data)
    started = time.monotonic()
    with pytest.raises(FetchError, match="the time for it was over"):
        source = {"store": "s", "kind": "file", "path": str(tmp_path / "object")}
        _fetch.fetch(entry, source, key.identity, [sys.executable, "-c", "import time; time.sleep(60)"], time.time() + 0.5)
    assert time.monotonic() - started < 5


def test_the_identity_is_on_no_command_line_and_on_no_disk(web: Any, tmp_path: Path, key: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fetch.tempfile, "tempdir", str(tmp_path))
    data, entry = key.stored(PLAIN, NAME)
    secret = key.identity.strip().rsplit("-", 1)[-1]
    seen: list[str] = []
    environments: list[bytes] = []

    def look(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[:200_000])
        handler.wfile.flush()
        end = time.monotonic() + 5
        while not any("age --decrypt" in line for line in seen) and time.monotonic() < end:
            seen.extend(children())
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                environments.append(Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes())
            except OSError:
                continue
        for path in tmp_path.rglob("*"):
            assert secret.encode() not in path.read_bytes()
        handler.wfile.write(data[200_000:])

    assert over_http(web, look, entry, key.identity, tmp_path) == PLAIN
    assert any("age --decrypt --identity /dev/fd/" in line for line in seen), seen
    assert secret.encode() not in b"".join(environments)
    assert not [path for path in tmp_path.rglob("*") if secret.encode() in path.read_bytes()]


# --- the choice -----------------------------------------------------------------------------------------------------


def candidate(name: str, *stores: str) -> dict[str, Any]:
    return {"id": name, "sources": [{"store": store} for store in stores]}


def choose(good: set[tuple[str, str]], *candidates: dict[str, Any]) -> tuple[str, str, list[str]]:
    def attempt(one: dict[str, Any], source: dict[str, Any]) -> str:
        if (one["id"], source["store"]) not in good:
            raise FetchError(f"bad {one['id']} {source['store']}")
        return "value"

    chosen, store, value, rejected = _fetch.first_good(list(candidates), attempt)
    assert value == "value"
    return chosen["id"], store, rejected


NEW, OLD = candidate("new", "a", "b"), candidate("old", "a", "b")


def test_the_first_source_of_the_newest_is_taken() -> None:
    assert choose({("new", "a"), ("new", "b"), ("old", "a")}, NEW, OLD) == ("new", "a", [])


def test_another_source_before_an_older_restore_point() -> None:
    assert choose({("new", "b"), ("old", "a")}, NEW, OLD) == ("new", "b", ["restore point new from a: bad new a"])


def test_an_older_restore_point_with_the_reasons() -> None:
    chosen, store, rejected = choose({("old", "b")}, NEW, OLD)
    assert (chosen, store) == ("old", "b")
    assert rejected == [f"restore point {name} from {place}: bad {name} {place}" for name, place in (("new", "a"), ("new", "b"), ("old", "a"))]


def test_nothing_is_usable() -> None:
    with pytest.raises(FetchError, match=r"no usable restore point; restore point new from a: bad new a; .*old from b"):
        choose(set(), NEW, OLD)
    with pytest.raises(FetchError, match="there is no candidate"):
        choose(set())
    with pytest.raises(FetchError, match="there is no candidate"):
        choose(set(), candidate("new"))


# --- sftp -----------------------------------------------------------------------------------------------------------

STORE = {"host": "h", "port": 2222, "user": "u", "host_key": "ssh-ed25519 AAAA", "private_key": "PRIVATE-KEY-TEXT"}


def test_sftp_session_keeps_the_key_private_and_for_the_session_only() -> None:
    with _fetch.sftp_session(STORE) as argv:
        assert "PRIVATE-KEY-TEXT" not in " ".join(argv)
        assert argv[-1] == "u@h" and "StrictHostKeyChecking=yes" in argv and argv[argv.index("-P") + 1] == "2222"
        place = Path(next(word for word in argv if word.startswith("IdentityFile=")).split("=")[1])
        assert place.read_text() == "PRIVATE-KEY-TEXT\n" and place.stat().st_mode & 0o77 == 0 and place.parent.stat().st_mode & 0o77 == 0
        assert (place.parent / "known_hosts").read_text() == "backup-store ssh-ed25519 AAAA\n"
    assert not place.parent.exists()


def test_sftp_batch() -> None:
    assert _fetch.sftp(["cat"], "sftp> ls\na\nb\n", time.time() + 5) == "a\nb"
    with pytest.raises(FetchError, match=r"^last line$"):
        _fetch.sftp(["sh", "-c", "echo first line >&2; echo last line >&2; exit 1"], "", time.time() + 5)
    with pytest.raises(FetchError, match="did not answer in time"):
        _fetch.sftp(["sleep", "20"], "", time.time() + 0.1)


def test_pump_names_every_command_that_failed() -> None:
    with pytest.raises(FetchError, match=r"sh ended with 3: one; sh ended with 4: two"):
        _fetch.pump(io.BytesIO(b"x"), [["sh", "-c", "cat; echo one >&2; exit 3"], ["sh", "-c", "cat; echo two >&2; exit 4"]], None, time.time() + 5)


def test_pump_timer_ends_with_it() -> None:
    with open(os.devnull, "wb") as sink:
        _fetch.pump(io.BytesIO(b"x"), [], sink, time.time() + 60)
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer) and not thread.finished.is_set()]
    assert subprocess.run(["true"], check=False).returncode == 0


def test_a_name_that_is_free(tmp_path: Path) -> None:
    assert _fetch.free_name(str(tmp_path / "x")) == str(tmp_path / "x")
    (tmp_path / "x").mkdir()
    (tmp_path / "x-2").symlink_to("nowhere")
    assert _fetch.free_name(str(tmp_path / "x")) == str(tmp_path / "x-3")
