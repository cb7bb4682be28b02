# SPDX-License-Identifier: GPL-3.0-or-later
"""Names and ways in the lab: the exchanges' addresses, two DNS servers that know them, and a second route to them."""

from __future__ import annotations

import secrets
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from titan_dr.lab.stage import Stage


@dataclass(frozen=True)
class Venue:
    """`last`: the last part of its address; `stream`: path of its WebSocket."""

    name: str
    last: int
    port: int
    stream: str


# Both on the host exchange; the second address is added at its boot.
VENUES = {"binance": Venue("api.binance.lab", 13, 9001, "/ws"), "bybit": Venue("api.bybit.lab", 14, 9002, "/v5/public/linear")}

_UNIT = """\
[Unit]
Description={what}
{before}
[Service]
{service}

[Install]
WantedBy=multi-user.target
"""
DNS_UNIT, DNS_CONFIG = "titan-lab-dns.service", "/etc/titan-lab/dns.conf"
DNS_PORT = 53
ROUTER = "titan_lab_router"


def _oneshot(command: str) -> str:
    return f"Type=oneshot\nRemainAfterExit=yes\nExecStart={command}"


def second_address(stage: Stage, address: str) -> None:
    unit = _UNIT.format(
        what="The second address of the exchanges",
        before=f"Before={DNS_UNIT} titan-exchange.service\n",
        service=_oneshot(f"/usr/sbin/ip address replace {address}/32 dev eth0"),
    )
    stage.unit("titan-lab-address.service", unit)


def dns_config(own: str, names: Mapping[str, str]) -> str:
    """It knows these names; every other one does not exist."""
    records = [f"host-record={name},{address}" for name, address in names.items()]
    return "\n".join(["user=root", "pid-file=", "no-resolv", "no-hosts", "bind-interfaces", f"listen-address={own}", "address=/#/", *records]) + "\n"


def dns_server(stage: Stage, own: str, names: Mapping[str, str]) -> None:
    stage.file(DNS_CONFIG, dns_config(own, names))
    service = f"Type=exec\nExecStart=/usr/sbin/dnsmasq --keep-in-foreground --conf-file={DNS_CONFIG}\nRestart=on-failure\nRestartSec=1"
    stage.unit(DNS_UNIT, _UNIT.format(what="DNS of the lab", before="", service=service))


def router(stage: Stage, own: str, to: Sequence[str]) -> None:
    """It forwards to these addresses under its own name, and nowhere else. It does not tell anybody of the direct way."""
    beyond = ", ".join(to)
    rules = f"""\
table ip {ROUTER} {{
  chain forward {{
    type filter hook forward priority 0; policy drop;
    ip daddr {{ {beyond} }} accept
    ct state established,related accept
  }}
  chain source {{
    type nat hook postrouting priority 100;
    ip saddr != {own} ip daddr {{ {beyond} }} masquerade
  }}
  chain silent {{
    type filter hook output priority 0;
    icmp type redirect drop
  }}
}}
"""
    stage.file("/etc/titan-lab/router.nft", rules)
    service = _oneshot("/usr/sbin/nft -f /etc/titan-lab/router.nft")
    stage.unit("titan-lab-router.service", _UNIT.format(what="The other way to the exchanges", before="", service=service))


def lookup(server: str, name: str, timeout: float = 2.0) -> str | None:
    """The address that this server gives for a name; None: it says that there is none. OSError when it says nothing usable."""
    number = secrets.randbelow(0x10000)
    question = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0" + struct.pack(">HH", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.settimeout(timeout)
        link.connect((server, DNS_PORT))
        link.send(struct.pack(">HHHHHH", number, 0x100, 1, 0, 0, 0) + question)
        reply = link.recv(512)
    head = struct.unpack(">HHHHHH", reply[:12]) if len(reply) >= 12 else (0,) * 6
    code, answers = head[1] & 15, head[3]
    if head[0] != number or code not in (0, 3):
        raise OSError(f"{server} answered {name} with code {code}")
    # the last four bytes of a single A record are its address
    return socket.inet_ntoa(reply[-4:]) if code == 0 and answers == 1 else None
