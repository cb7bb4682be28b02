# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import io
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _debian, _state
from ansible_collections.titan.disaster_recovery.plugins.modules import offline_bundle


class Host:
    """A dpkg of its own: what it is told to install is installed then."""

    def __init__(self, folder: Path, key: Any) -> None:
        self.folder, self.key = folder, key
        self.status = {"libc6": {"Package": "libc6", "Status": "install ok installed"}}
        self.log: list[list[str]] = []
        self.policies: list[bool] = []
        self.policy = folder / "policy-rc.d"
        self.broken = ""
        self.params: dict[str, Any] = {
            "packages": ["redis-server", "nodejs"],
            "first": ["redis-server"],
            "pm2_prefix": str(folder / "opt" / "pm2"),
            "candidates": [],
            "identity": key.identity,
            "timeout": 20,
        }

    def run(self, argv: list[str], deadline: float) -> str:
        self.log.append(argv)
        self.policies.append(self.policy.exists() and "exit 101" in self.policy.read_text())
        if self.broken:
            raise offline_bundle.BundleError(self.broken)
        for path in argv:
            if path.endswith(".deb"):
                name = Path(path).name.split("_")[0]
                self.status[name] = {"Package": name, "Status": "install ok installed"}
        return ""

    def add(self, name: str, debs: dict[str, str], *more: str) -> None:
        """A bundle with these packages (name: dependencies) and PM2."""
        tree = self.folder / f"tree-{name}"
        (tree / "pm2").mkdir(parents=True)
        (tree / "pm2" / "of").write_text(name)
        (tree / "debs").mkdir()
        for package, depends in debs.items():
            control = tree / package / "DEBIAN" / "control"
            control.parent.mkdir(parents=True)
            needs = f"Depends: {depends}\n" if depends else ""
            control.write_text(f"Package: {package}\nVersion: 1\nArchitecture: all\nMaintainer: x <x@localhost>\n{needs}Description: x\n")
            argv = ["dpkg-deb", "--root-owner-group", "--build", str(tree / package), str(tree / "debs" / f"{package}_1_all.deb")]
            subprocess.run(argv, check=True, capture_output=True)
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w") as archive:
            for item in more or ("debs", "pm2"):
                archive.add(tree / item, item)
        data, entry = self.key.stored(raw.getvalue(), "objects/bundle.tar.age")
        (self.folder / f"{name}.object").write_bytes(data)
        source = {"store": "near", "kind": "file", "path": str(self.folder / f"{name}.object")}
        self.params["candidates"].append({"id": name, "taken_at": 1.0, "object": entry, "details": {}, "sources": [source]})


DEBS = {"redis-server": "redis-tools, libc6", "redis-tools": "", "nodejs": "libc6"}


@pytest.fixture
def host(tmp_path: Path, key: Any, monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host(tmp_path, key)
    (tmp_path / "state").mkdir()
    bundle = tmp_path / "state" / "bundle"
    monkeypatch.setattr(_state, "STATE_DIR", str(tmp_path / "state"))
    for name, value in {"BUNDLE_DIR": bundle, "DEBS_DIR": bundle / "debs", "REDIS_MARKER": bundle / "redis-installed", "POLICY": host.policy}.items():
        monkeypatch.setattr(offline_bundle, name, str(value))
    monkeypatch.setattr(offline_bundle, "run", host.run)
    monkeypatch.setattr(offline_bundle, "status", lambda: dict(host.status))
    return host


def test_installed(host: Host, run_module: Any) -> None:
    host.add("p1", DEBS)
    result = run_module(offline_bundle, host.params)
    assert result["changed"] and sorted(result["installed"]) == ["nodejs", "redis-server", "redis-tools"]
    first, second = host.log
    names = [sorted(Path(path).name for path in argv if path.endswith(".deb")) for argv in (first, second)]
    assert names == [["redis-server_1_all.deb", "redis-tools_1_all.deb"], ["nodejs_1_all.deb"]], "Redis first, so that the proof can go on"
    assert host.policies == [True, True] and not host.policy.exists(), "no service starts by itself, and the policy goes again"
    assert (host.folder / "opt" / "pm2" / "of").read_text() == "p1" and Path(offline_bundle.REDIS_MARKER).exists()
    host.log.clear()
    again = run_module(offline_bundle, host.params)
    assert again["changed"] is False and host.log == []


def test_a_policy_that_was_there_comes_back(host: Host, run_module: Any) -> None:
    host.policy.write_text("mine")
    host.add("p1", DEBS)
    run_module(offline_bundle, host.params)
    assert host.policy.read_text() == "mine" and host.policies == [True, True]


def test_a_policy_that_a_killed_run_left_does_not_stay(host: Host, run_module: Any) -> None:
    host.policy.write_text(offline_bundle.NO_STARTS)
    host.add("p1", DEBS)
    run_module(offline_bundle, host.params)
    assert host.policies == [True, True] and not host.policy.exists()


def test_what_is_not_in_the_bundle_is_named(host: Host, run_module: Any) -> None:
    host.add("p1", {"redis-server": "", "redis-tools": ""})
    result = run_module(offline_bundle, host.params)
    assert result["failed"] and "not in the bundle: nodejs" in result["msg"] and result["titan_dr"]["gates"][0]["verdict"] == "fail"


def test_a_bundle_that_cannot_be_had_is_passed_over(host: Host, run_module: Any) -> None:
    host.add("p3", DEBS)
    (host.folder / "p3.object").write_bytes(b"x")
    host.add("p2", DEBS, "pm2")
    host.add("p1", DEBS)
    result = run_module(offline_bundle, host.params)
    assert [note.split(" from ")[0] for note in result["titan_dr"]["notes"]] == ["passed over: restore point p3", "passed over: restore point p2"]
    assert (host.folder / "opt" / "pm2" / "of").read_text() == "p1"


def test_nothing_usable(host: Host, run_module: Any) -> None:
    host.add("p1", DEBS)
    (host.folder / "p1.object").write_bytes(b"x")
    result = run_module(offline_bundle, host.params)
    assert result["failed"] and host.log == [] and not Path(offline_bundle.REDIS_MARKER).exists() and not (host.folder / "opt").exists()


def test_dpkg_that_fails(host: Host, run_module: Any) -> None:
    host.add("p1", DEBS)
    host.broken = "dpkg ended with 1"
    result = run_module(offline_bundle, host.params)
    assert result["failed"] and "dpkg ended with 1" in result["msg"] and not host.policy.exists() and not Path(offline_bundle.REDIS_MARKER).exists()


def test_from_the_registry_as_a_blank_server_would(host: Host, run_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    host.status["apt"] = {"Package": "apt", "Status": "install ok installed", "Depends": "libc6"}
    host.status["nodejs"] = {"Package": "nodejs", "Status": "install ok installed"}
    seen: list[str] = []

    def run(argv: list[str], deadline: float) -> str:
        for word in argv:
            if word.startswith("Dir::State::status="):
                seen.extend(_debian.parse_stanzas(Path(word.split("=")[1]).read_text()))
                host.add("packed", DEBS)
                (host.folder / "tree-packed" / "debs").rename(host.folder / "debs")
                for path in (host.folder / "debs").iterdir():
                    path.rename(Path(offline_bundle.DEBS_DIR) / path.name)
        return host.run(argv, deadline)

    monkeypatch.setattr(offline_bundle, "run", run)
    result = run_module(offline_bundle, {**host.params, "source": "registry", "candidates": []})
    assert not result["failed"] and seen == ["apt", "libc6"], "what is here but not on a blank server is packed too"
    assert host.log[0][:2] == ["apt-get", "update"] and "--download-only" in host.log[1] and result["installed"] == ["redis-server", "redis-tools"]


def test_a_server_without_services_needs_no_pm2(host: Host, run_module: Any) -> None:
    host.add("one", DEBS, "debs")
    assert "no pm2" in run_module(offline_bundle, host.params)["msg"]
    result = run_module(offline_bundle, {**host.params, "services": False})
    assert not result["failed"] and "redis-server" in result["installed"] and not (host.folder / "opt" / "pm2").exists()
    again = run_module(offline_bundle, {**host.params, "services": False})
    assert again["changed"] is False


def test_pm2_that_is_in_the_bundle_is_put_there_all_the_same(host: Host, run_module: Any) -> None:
    host.add("one", DEBS)
    assert not run_module(offline_bundle, {**host.params, "services": False})["failed"] and (host.folder / "opt" / "pm2" / "of").read_text() == "one"


def test_check_mode(host: Host, run_module: Any) -> None:
    result = run_module(offline_bundle, host.params, check=True)
    assert (
        result["installed"] == ["redis-server", "nodejs"] and "would install redis-server, nodejs and PM2" in result["titan_dr"]["notes"][0] and host.log == []
    )


def test_run(tmp_path: Path) -> None:
    assert offline_bundle.run(["echo", "x"], time.time() + 5) == "x\n"
    with pytest.raises(offline_bundle.BundleError, match="sh ended with 3: two"):
        offline_bundle.run(["sh", "-c", "echo two >&2; exit 3"], time.time() + 5)
