# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""What keeps services from the exchanges that no word of theirs can be trusted to: the fence of a start (_start.Fence), but one that stands after a reboot too,
and a unit that does not start while the latch is fastened.

The fence drops whatever the services' user sends to anything but loopback, and not only what goes to the exchanges: their addresses change.
Other users, and so SSH, are not touched. nftables: https://wiki.nftables.org, ExecCondition: systemd.service(5).
"""

from __future__ import annotations

import contextlib
import os
import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _start

TABLE = _start.FENCE_TABLE
UNITS = "/etc/systemd/system"
RULES = "/var/lib/titan-dr/fence.nft"
UNIT = "titan-dr-fence.service"
DROP_IN = "titan-dr.conf"

UNIT_TEXT = """[Unit]
Description=Titan DR: services that could not be halted stay off the network
DefaultDependencies=no
After=local-fs.target
Before=network-pre.target multi-user.target
ConditionPathExists={rules}

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={nft} -f {rules}

[Install]
WantedBy=multi-user.target
"""

FenceError = _start.StartError


def _replace(path: str, text: str) -> bool:
    """Write the file unless it says so already."""
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as handle:
        if handle.read() == text:
            return False
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    with open(path + ".new", "w", encoding="utf-8") as handle:
        handle.write(text)
        os.fsync(handle.fileno())
    os.rename(path + ".new", path)
    return True


class Fence(_start.Fence):
    """The fence of a start, kept for the next boot."""

    def __init__(self, uid: int, nft: str | None, limit: float = 1.0, command: _start.Command = _start.run_command) -> None:
        def bounded(argv: t.Sequence[str], stdin: str, timeout: float) -> tuple[int, str]:
            return command(argv, stdin, min(limit, timeout))

        super().__init__(uid, bounded, nft)
        self.run = command

    def up(self) -> None:
        super().up()
        code, text = self._nft(["-n", "list", "table", "inet", TABLE])
        if code != 0:
            raise FenceError("the fence stands, but cannot be kept for the next boot: it cannot be listed")
        try:
            _replace(RULES, text)
            _replace(os.path.join(UNITS, UNIT), UNIT_TEXT.format(rules=RULES, nft=self.nft))
        except OSError as exc:
            raise FenceError(f"the fence stands, but cannot be kept for the next boot: {exc}") from exc
        # enable, not start: it stands
        code, _said = self.run(["systemctl", "enable", "--quiet", UNIT], "", 10.0)
        if code != 0:
            raise FenceError(f"the fence stands, but cannot be kept for the next boot: {UNIT} cannot be enabled (return code {code})")

    def down(self) -> None:
        # The file first: without it the unit does nothing.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(RULES)
        super().down()


def hold_down(unit: str, latch: str, nft: str | None) -> bool:
    """Keep the services' unit from starting while the latch is fastened, but behind a fence; whether that is new.

    For services that do not look at the latch: they trade as soon as they run, whoever starts them, and PM2 brings them back at each boot.
    """
    allowed = f"test ! -e {latch}" + (f" || {nft} list table inet {TABLE}" if nft else "")
    name = unit if unit.endswith(".service") else f"{unit}.service"
    return _replace(os.path.join(UNITS, f"{name}.d", DROP_IN), f"[Service]\nExecCondition=+/bin/sh -c '{allowed}'\n")
