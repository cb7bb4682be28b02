# SPDX-License-Identifier: GPL-3.0-or-later
"""What a fault is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from titan_dr.lab.engine import LabError

# The server of a Titan on one; what is meant for it alone cannot be done to one on several.
VICTIM = "titan"
ONE_SERVER = ("guide", "variant")
ANY = (*ONE_SERVER, "split")


class UnknownFault(LabError):
    """There is no such fault in this scenario."""


@dataclass(frozen=True)
class Fault:
    """`strike` makes it happen and returns the evidence; `prove` looks once more, past the code that did it.

    `trades_on`: Titan may go on trading until it is halted, so orders are judged from the halt on.
    `expect`: how the recovery has to end. "halted" is for what no recovery can or may mend: it ends halted, says `cause`, and places no order.
    `heal`: what mends itself in the world outside, `heal_after_s` seconds after the strike. Trading may not resume before.
    `halted_venues`: the exchanges on which it stays halted though it resumes on the others.
    `extra_vars`: what the recovery must be told besides, as an operator would; a value may be a template.
    `profiles`: the Titans to which it can be done.
    `cure`: the lab as if it had never been, with what a recovery changed on the server for its sake: tests cause many in one lab.
    """

    name: str
    summary: str
    strike: Callable[[], dict[str, str]]
    prepare: Callable[[], object] = dict
    prove: Callable[[], dict[str, str]] = dict
    trades_on: bool = False
    expect: Literal["recovered", "halted"] = "recovered"
    cause: str = ""
    heal: Callable[[], object] | None = None
    heal_after_s: float = 0.0
    halted_venues: tuple[str, ...] = ()
    extra_vars: Mapping[str, Any] = field(default_factory=dict)
    cure: Callable[[], object] = dict
    profiles: tuple[str, ...] = ONE_SERVER
