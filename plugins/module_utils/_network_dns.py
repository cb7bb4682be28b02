# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Ask name servers ourselves, one by one: the system's resolver says only that it has no answer, not why."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import queue
import secrets
import socket
import struct
import threading
import time
import typing as t

PORT = 53
A, AAAA = 1, 28
_IN, _RECURSE = 1, 0x0100


class DnsError(ValueError):
    """An answer that is none."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one name server said. verdict: ok | nxdomain | refused | silent"""

    server: str
    verdict: str
    addresses: tuple[str, ...] = ()
    evidence: str = ""


def is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def nameservers(resolv_conf: str) -> list[str]:
    """Those of a resolv.conf; without any the resolver takes the one of this host."""
    words = (line.split() for line in resolv_conf.splitlines())
    return [parts[1] for parts in words if len(parts) > 1 and parts[0] == "nameserver"][:3] or ["127.0.0.1"]


def resolv_conf(old: str, servers: t.Sequence[str]) -> str:
    """The same resolv.conf with other name servers."""
    kept = [line for line in old.splitlines() if line.split()[:1] != ["nameserver"]]
    return "\n".join([*kept, *(f"nameserver {server}" for server in servers)]) + "\n"


def question(name: str, number: int, kind: int = A) -> bytes:
    labels = [part.encode("idna") for part in name.rstrip(".").split(".")]
    wire = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    return struct.pack(">HHHHHH", number, _RECURSE, 1, 0, 0, 0) + wire + struct.pack(">HH", kind, _IN)


def _skip_name(wire: bytes, at: int) -> int:
    while True:
        length = wire[at]
        if length >= 0xC0:
            return at + 2
        at += 1 + length
        if length == 0:
            return at


def answer(wire: bytes, asked: bytes) -> tuple[str, tuple[str, ...]]:
    """Verdict and addresses of an answer to this question; DnsError when it is none."""
    try:
        flags, questions, answers = struct.unpack(">HHH", wire[2:8])
        if wire[:2] != asked[:2] or not flags & 0x8000 or questions != 1 or wire[12 : len(asked)].lower() != asked[12:].lower():
            raise DnsError("an answer to something else")
        code = flags & 0xF
        if code:
            return ("nxdomain" if code == 3 else "refused"), ()
        at, found = len(asked), []
        for dummy in range(answers):
            at = _skip_name(wire, at)
            kind, klass, dummy, length = struct.unpack(">HHIH", wire[at : at + 10])
            data, at = wire[at + 10 : at + 10 + length], at + 10 + length
            if len(data) != length:
                raise DnsError("cut off")
            if klass == _IN and (kind, length) in ((A, 4), (AAAA, 16)):
                found.append(str(ipaddress.ip_address(data)))
    except (IndexError, struct.error) as exc:
        raise DnsError("not readable") from exc
    # the name is there, this kind of address is not
    return ("ok" if found else "nxdomain"), tuple(sorted(found))


def ask(server: str, name: str, timeout: float, port: int = PORT) -> Answer:
    """One name server, one name; asked twice, because one packet may get lost."""
    asked = question(name, secrets.randbelow(0x10000))
    end = time.monotonic() + timeout
    said = f"nothing within {timeout:.1f} s"
    try:
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as link:
            # only this server's answers arrive, and its refusal as an error
            link.connect((server, port))
            for attempt in (1, 2):
                link.send(asked)
                half = end - timeout / 2 if attempt == 1 else end
                while (left := half - time.monotonic()) > 0:
                    link.settimeout(left)
                    with contextlib.suppress(TimeoutError, DnsError):
                        verdict, found = answer(link.recv(4096), asked)
                        return Answer(server, verdict, found, ", ".join(found) or verdict)
    except (OSError, UnicodeError) as exc:
        said = (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
    return Answer(server, "silent", (), said)


def system(name: str, timeout: float) -> tuple[list[str], str]:
    """The addresses that this host's programs get, and why there are none. The lookup itself cannot be stopped: its thread is left behind."""
    results: queue.Queue[list[str] | OSError] = queue.Queue()

    def work() -> None:
        try:
            found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
            results.put(list(dict.fromkeys(str(entry[4][0]) for entry in found)))
        except (OSError, UnicodeError) as exc:
            results.put(exc if isinstance(exc, OSError) else OSError(str(exc)))

    threading.Thread(target=work, daemon=True).start()
    try:
        result = results.get(timeout=max(0.0, timeout))
    except queue.Empty:
        return [], f"no answer within {timeout:.1f} s"
    return ([], result.strerror or str(result)) if isinstance(result, OSError) else (result, "")
