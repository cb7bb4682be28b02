# SPDX-License-Identifier: GPL-3.0-or-later
"""Files for a host, collected in memory and put into its container before its first boot."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

SKIPPED = frozenset({"__pycache__", ".pytest_cache", ".ruff_cache", ".mypy_cache"})


@dataclass
class Stage:
    """Paths are absolute on the host; directories are only named where owner or mode matter."""

    entries: dict[str, tuple[tarfile.TarInfo, bytes]] = field(default_factory=dict)

    def _put(self, path: str, kind: bytes, mode: int, owner: tuple[int, int], content: bytes = b"", target: str = "") -> None:
        if not path.startswith("/"):
            raise ValueError(f"{path} is not absolute")
        info = tarfile.TarInfo(path.lstrip("/"))
        info.type, info.mode, info.linkname, info.size = kind, mode, target, len(content)
        info.uid, info.gid = owner
        info.mtime = int(time.time())
        self.entries[path] = (info, content)

    def file(self, path: str, content: str | bytes, mode: int = 0o644, owner: tuple[int, int] = (0, 0)) -> None:
        self._put(path, tarfile.REGTYPE, mode, owner, content.encode() if isinstance(content, str) else content)

    def directory(self, path: str, mode: int = 0o755, owner: tuple[int, int] = (0, 0)) -> None:
        self._put(path, tarfile.DIRTYPE, mode, owner)

    def link(self, path: str, target: str) -> None:
        self._put(path, tarfile.SYMTYPE, 0o777, (0, 0), target=target)

    def tree(self, path: str, source: Path, owner: tuple[int, int] = (0, 0)) -> None:
        """A whole folder, with its executable bits and links."""
        self.directory(path, 0o755, owner)
        for item in walk(source):
            target = str(PurePosixPath(path) / item.relative_to(source).as_posix())
            if item.is_symlink():
                self.link(target, str(item.readlink()))
            elif item.is_dir():
                self.directory(target, 0o755, owner)
            else:
                self.file(target, item.read_bytes(), 0o755 if item.stat().st_mode & 0o100 else 0o644, owner)

    def unit(self, name: str, text: str) -> None:
        """A systemd unit, enabled."""
        self.file(f"/etc/systemd/system/{name}", text)
        self.enable(name)

    def enable(self, name: str) -> None:
        self.link(f"/etc/systemd/system/multi-user.target.wants/{name}", f"/etc/systemd/system/{name}")

    def tar(self) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for path in sorted(self.entries):
                info, content = self.entries[path]
                archive.addfile(info, io.BytesIO(content))
        return buffer.getvalue()


def walk(source: Path) -> Iterable[Path]:
    """Everything under a folder in a stable order, without caches of tools."""
    for item in sorted(source.iterdir()):
        if item.name in SKIPPED:
            continue
        yield item
        if item.is_dir() and not item.is_symlink():
            yield from walk(item)


def ids_of(passwd: str) -> Mapping[str, tuple[int, int]]:
    """User names -> (uid, gid), from the text of /etc/passwd."""
    rows = (line.split(":") for line in passwd.splitlines())
    return {row[0]: (int(row[2]), int(row[3])) for row in rows if len(row) >= 4}
