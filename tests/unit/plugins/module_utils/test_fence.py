# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _fence


class Kernel:
    """nft and systemctl, as far as a fence knows them."""

    def __init__(self) -> None:
        self.table = ""
        self.calls: list[str] = []
        self.limits: list[float] = []
        self.enable = 0

    def __call__(self, argv: Sequence[str], stdin: str, timeout: float) -> tuple[int, str]:
        self.calls.append(" ".join(argv))
        self.limits.append(timeout)
        if argv[0] == "systemctl":
            return self.enable, ""
        if "-f" in argv:
            self.table = stdin
            return 0, ""
        if "delete" in argv:
            self.table = ""
            return 0, ""
        return (0, self.table) if self.table else (1, "")


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(_fence, "UNITS", str(tmp_path / "units"))
    monkeypatch.setattr(_fence, "RULES", str(tmp_path / "state" / "fence.nft"))
    return Kernel()


def test_it_stands_after_a_reboot(kernel: Kernel, tmp_path: Path) -> None:
    fence = _fence.Fence(990, "/usr/sbin/nft", 1.0, kernel)
    fence.up()
    assert fence.exists() and "skuid 990" in kernel.table and 'oifname != "lo"' in kernel.table and "counter drop" in kernel.table
    rules = tmp_path / "state/fence.nft"
    assert rules.read_text() == kernel.table, "what the kernel says stands there"
    unit = (tmp_path / "units" / _fence.UNIT).read_text()
    assert f"ExecStart=/usr/sbin/nft -f {rules}" in unit and f"ConditionPathExists={rules}" in unit and "WantedBy=multi-user.target" in unit
    assert kernel.calls[-2:] == [f"systemctl enable --quiet {_fence.UNIT}", f"/usr/sbin/nft list table inet {_fence.TABLE}"]
    assert max(limit for call, limit in zip(kernel.calls, kernel.limits, strict=True) if "nft" in call.split()[0]) <= 1.0, "each within its time"
    fence.up()
    fence.down()
    assert not fence.exists() and not rules.exists()


def test_one_that_cannot_be_kept_is_none(kernel: Kernel) -> None:
    kernel.enable = 1
    with pytest.raises(_fence.FenceError, match="cannot be kept for the next boot"):
        _fence.Fence(990, "/usr/sbin/nft", 1.0, kernel).up()


def test_one_that_does_not_stand_is_none(kernel: Kernel, tmp_path: Path) -> None:
    def refuses(argv: Sequence[str], stdin: str, timeout: float) -> tuple[int, str]:
        return 1, ""

    with pytest.raises(_fence.FenceError, match="could not be put up"):
        _fence.Fence(990, "/usr/sbin/nft", 1.0, refuses).up()
    assert not (tmp_path / "state").exists()


def test_root_is_not_fenced(kernel: Kernel) -> None:
    assert "root" in str(_fence.Fence(0, "/usr/sbin/nft", 1.0, kernel).usable()) and _fence.Fence(990, None, 1.0, kernel).usable()


def test_the_unit_is_barred(kernel: Kernel, tmp_path: Path) -> None:
    assert _fence.hold_down("pm2-titan", "/var/lib/titan-dr/halt", "/usr/sbin/nft") and not _fence.hold_down(
        "pm2-titan.service", "/var/lib/titan-dr/halt", "/usr/sbin/nft"
    )
    text = (tmp_path / "units/pm2-titan.service.d" / _fence.DROP_IN).read_text()
    condition = f"test ! -e /var/lib/titan-dr/halt || /usr/sbin/nft list table inet {_fence.TABLE}"
    assert text == f"[Service]\nExecCondition=+/bin/sh -c '{condition}'\n"
    _fence.hold_down("pm2-titan", "/latch", None)
    assert "nft" not in (tmp_path / "units/pm2-titan.service.d" / _fence.DROP_IN).read_text()
