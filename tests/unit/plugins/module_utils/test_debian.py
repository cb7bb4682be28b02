# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _debian

STATUS = """\
Package: base-files
Essential: yes
Status: install ok installed
Pre-Depends: awk
Conffiles:
 /etc/issue 1234
 /etc/motd 5678
Description: base
 of everything

Package: mawk
Status: install ok installed
Provides: awk
Depends: libc6 (>= 2.14)

Package: libc6
Status: install ok installed
Depends: libgcc-s1

Package: libgcc-s1
Status: install ok installed

Package: apt
Status: hold ok installed
Depends: libc6, debconf (>= 0.5) | debconf-2.0

Package: cdebconf
Status: install ok installed
Provides: debconf-2.0 (= 1), other

Package: openssh-server
Status: install ok installed
Depends: libc6:any

Package: old
Status: deinstall ok config-files

Package: half
Status: install ok half-configured
"""
DEBS = """\
Package: redis-server
Pre-Depends: init-tools
Depends: redis-tools (= 7), libc6 | musl

Package: redis-tools
Depends: libjemalloc2, lsb

Package: lsb-base
Provides: lsb

Package: init-tools

Package: libjemalloc2
Depends: libc6
"""


@pytest.fixture
def status() -> _debian.Stanzas:
    return _debian.parse_stanzas(STATUS)


@pytest.fixture
def debs() -> _debian.Stanzas:
    return _debian.parse_stanzas(DEBS)


def test_parse(status: _debian.Stanzas) -> None:
    assert list(status) == ["base-files", "mawk", "libc6", "libgcc-s1", "apt", "cdebconf", "openssh-server", "old", "half"]
    assert status["base-files"]["Conffiles"] == "\n /etc/issue 1234\n /etc/motd 5678"
    assert status["mawk"]["Depends"] == "libc6 (>= 2.14)"
    assert _debian.parse_stanzas("") == {}


def test_render_is_the_inverse(status: _debian.Stanzas) -> None:
    assert _debian.parse_stanzas(_debian.render(status)) == status


def test_dpkg_reads_what_is_rendered(status: _debian.Stanzas, tmp_path: Path) -> None:
    full = {name: {**fields, "Version": "1", "Architecture": "all", "Maintainer": "x", "Description": "x"} for name, fields in status.items()}
    (tmp_path / "status").write_text(_debian.render(full))
    (tmp_path / "updates").mkdir()
    (tmp_path / "info").mkdir()
    shown = subprocess.run(
        ["dpkg-query", f"--admindir={tmp_path}", "--show", "--showformat=${Package} ${Status}\\n"], capture_output=True, text=True, check=True
    )
    assert shown.stdout.splitlines() == sorted(f"{name} {fields['Status']}" for name, fields in status.items())


def test_installed(status: _debian.Stanzas) -> None:
    assert _debian.is_installed(status, "libc6") and _debian.is_installed(status, "apt"), "a package on hold is installed"
    assert not any(_debian.is_installed(status, name) for name in ("old", "half", "redis-server"))


def test_depends() -> None:
    fields = {"Depends": "aa (>= 1), bb:any | cc [amd64],\n dd", "Pre-Depends": "ee"}
    assert _debian.depends(fields) == [["ee"], ["aa"], ["bb", "cc"], ["dd"]]
    assert _debian.depends({}) == []


def test_closure_follows_dependencies_alternatives_and_what_is_provided(debs: _debian.Stanzas) -> None:
    assert _debian.closure(debs, ["redis-server"]) == ["redis-server", "init-tools", "redis-tools", "libjemalloc2", "lsb-base"]
    assert _debian.closure(debs, ["lsb"]) == ["lsb-base"], "a virtual package leads to what provides it"
    assert _debian.closure(debs, ["unknown"]) == []


def test_closure_ends_in_a_circle() -> None:
    circle = _debian.parse_stanzas("Package: aa\nDepends: bb\n\nPackage: bb\nDepends: aa\n")
    assert _debian.closure(circle, ["aa"]) == ["aa", "bb"]


def test_blank(status: _debian.Stanzas) -> None:
    assert sorted(_debian.blank(status, [])) == ["apt", "base-files", "cdebconf", "libc6", "libgcc-s1", "mawk"]
    assert "openssh-server" in _debian.blank(status, ["openssh-server"])


def test_missing(status: _debian.Stanzas, debs: _debian.Stanzas) -> None:
    assert _debian.missing(["redis-server"], debs, status) == ["redis-server", "init-tools", "redis-tools", "libjemalloc2", "lsb-base"]
    assert _debian.missing(["libc6", "apt"], debs, status) == []
    there = {**status, **{name: {"Status": "install ok installed"} for name in ("redis-tools", "libjemalloc2")}}
    assert _debian.missing(["redis-server"], debs, there) == ["redis-server", "init-tools", "lsb-base"]


@pytest.mark.parametrize("name", ["nodejs", "old", "half"])
def test_missing_names_what_is_nowhere(status: _debian.Stanzas, debs: _debian.Stanzas, name: str) -> None:
    with pytest.raises(_debian.DebianError, match=f"not in the bundle: {name}$"):
        _debian.missing(["redis-server", name], debs, status)


def test_parse_debs(tmp_path: Path) -> None:
    for name in ("one", "two"):
        control = tmp_path / name / "DEBIAN" / "control"
        control.parent.mkdir(parents=True)
        control.write_text(f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: x <x@localhost>\nDepends: zero\nDescription: x\n")
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "--build", str(tmp_path / name), str(tmp_path / f"{name}_1_all.deb")], check=True, capture_output=True
        )
    found = _debian.parse_debs(str(tmp_path))
    assert {name: (fields["Depends"], fields["Path"]) for name, fields in found.items()} == {
        name: ("zero", str(tmp_path / f"{name}_1_all.deb")) for name in ("one", "two")
    }
    (tmp_path / "bad.deb").write_bytes(b"!<arch>\nnothing")
    with pytest.raises(_debian.DebianError, match=r"bad\.deb is not a package"):
        _debian.parse_debs(str(tmp_path))
