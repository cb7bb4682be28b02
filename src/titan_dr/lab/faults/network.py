# SPDX-License-Identifier: GPL-3.0-or-later
"""The server loses the exchanges, or its store: dropped packets, wrong names, a wrong route, foreign certificates, refusals."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from titan_dr.lab import hosts, patient, wiring
from titan_dr.lab.engine import LabError
from titan_dr.lab.faults.base import VICTIM, Fault
from titan_dr.lab.state import LabState, load_state

TABLE = "titan_lab_fault"
EMPTY = f"table ip {TABLE} {{}}\ndelete table ip {TABLE}\n"
FLAPPING = "titan-lab-flapping"
FLAPS, DOWN_S, UP_S = 3, 3, 3
HEAL_AFTER_S = 12.0

# Runs on the server and goes as far as it gets, layer by layer: an address to the exchange, a name, a connection, a certificate, an answer to
# a signed call, and data on the stream. Says for each where it ends.
PROBE = r"""
import base64, hashlib, hmac, http.client, json, os, re, socket, ssl, subprocess, sys, threading, time
order = json.load(sys.stdin)
WAIT = 1.5

class Ends(Exception):
    pass

def route(address):
    done = subprocess.run(["ip", "route", "get", address], capture_output=True, text=True)
    if done.returncode != 0:
        raise Ends("route", done.stderr.strip())

def name(host, address):
    server = re.search(r"^nameserver\s+(\S+)", open("/etc/resolv.conf").read(), re.M).group(1)
    question = b"".join(bytes([len(part)]) + part.encode() for part in host.split(".")) + b"\0\0\1\0\1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.settimeout(WAIT)
        try:
            link.connect((server, 53))
            link.send(b"\0\7\1\0\0\1\0\0\0\0\0\0" + question)
            reply = link.recv(512)
        except OSError as error:
            raise Ends("dns", "%s: %s" % (server, error))
    found = socket.inet_ntoa(reply[-4:]) if reply[7] else "code %d" % (reply[3] & 15)
    if found != address:
        raise Ends("dns", "%s says that %s is %s" % (server, host, found))

def connect(address, port):
    try:
        return socket.create_connection((address, port), timeout=WAIT)
    except OSError as error:
        raise Ends("tcp", "%s:%s: %s" % (address, port, error))

def secure(link, host):
    try:
        return ssl.create_default_context(cafile=order["ca"]).wrap_socket(link, server_hostname=host)
    except OSError as error:
        raise Ends("tls", str(getattr(error, "verify_message", "") or error))

def read(link, end):
    data = b""
    while not end(data):
        piece = link.recv(4096)
        if not piece:
            raise OSError("the connection was closed")
        data += piece
    return data

def signed(venue, item):
    now, sign = str(int(time.time() * 1000)), lambda text: hmac.new(item["secret"].encode(), text.encode(), hashlib.sha256).hexdigest()
    if venue == "binance":
        query = "recvWindow=5000&timestamp=" + now
        return "/fapi/v2/balance?%s&signature=%s" % (query, sign(query)), {"X-MBX-APIKEY": item["key"]}
    query = "accountType=UNIFIED"
    head = {"X-BAPI-API-KEY": item["key"], "X-BAPI-TIMESTAMP": now, "X-BAPI-RECV-WINDOW": "5000", "X-BAPI-SIGN": sign(now + item["key"] + "5000" + query)}
    return "/v5/account/wallet-balance?" + query, head

def call(venue, item):
    link = http.client.HTTPConnection(item["host"])
    link.sock = secure(connect(item["address"], item["port"]), item["host"])
    path, head = signed(venue, item)
    try:
        link.request("GET", path, headers=head)
        reply = link.getresponse()
        text = reply.read().decode()
        body = json.loads(text)
    except (OSError, http.client.HTTPException) as error:
        raise Ends("http", str(error) or type(error).__name__)
    except ValueError:
        raise Ends("http", "%d %s" % (reply.status, text[:60]))
    finally:
        link.close()
    if reply.status != 200 or (isinstance(body, dict) and body.get("retCode")):
        raise Ends("http", "%d %s" % (reply.status, text[:100]))

def stream(item):
    with secure(connect(item["address"], item["port"]), item["host"]) as link:
        key = base64.b64encode(os.urandom(16)).decode()
        ask = "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: %s\r\nSec-WebSocket-Version: 13\r\n\r\n"
        link.settimeout(2.5)
        try:
            link.sendall((ask % (item["ws"], item["host"], key)).encode())
            said, data = read(link, lambda data: b"\r\n\r\n" in data).split(b"\r\n\r\n", 1)
            if b" 101 " not in said.split(b"\r\n")[0]:
                raise Ends("ws", said.split(b"\r\n")[0].decode())
            read(link, lambda more: len(data + more) > 2)
        except OSError as error:
            raise Ends("ws", "no data: %s" % error)

def look(venue, item):
    try:
        route(item["address"])
        if venue == "store":
            connect(item["address"], item["port"]).close()
        else:
            name(item["host"], item["address"])
            call(venue, item)
            stream(item)
        found[venue] = ["ok", ""]
    except Ends as end:
        found[venue] = list(end.args)
    except Exception as error:
        found[venue] = ["probe", repr(error)]

found = {}
threads = [threading.Thread(target=look, args=one) for one in order["ways"].items()]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(found))
"""


def ends() -> dict[str, list[str]]:
    """How far the server gets, to each exchange and to the store: [layer or ok, what was seen there]."""
    state = load_state()
    titan = patient.titan_vars(state.profile)
    ways: dict[str, Any] = {"store": {"address": state.host("backup")["address"], "port": hosts.S3_PORT}}
    for venue, known in state.venues.items():
        keys = state.exchange_keys[venue]
        ways[venue] = {"host": known["name"], "address": known["address"], "port": known["port"], "ws": wiring.VENUES[venue].stream}
        ways[venue] |= {"key": keys["api_key"], "secret": keys["api_secret"]}
    order = json.dumps({"ca": patient.exchange_ca(titan), "ways": ways})
    done = hosts.exec(VICTIM, ["/usr/bin/python3", "-c", PROBE], input=order, timeout=30, check=False)
    if done.returncode != 0:
        raise LabError(f"the server could not look for the exchanges: {done.stderr.strip()[-300:]}")
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def seen(layers: Mapping[str, str]) -> dict[str, str]:
    """The server gets exactly that far, and everywhere else it gets through."""
    found = ends()
    wrong = [f"{way}: {layer} {said}".strip() for way, (layer, said) in found.items() if layer != layers.get(way, "ok")]
    if wrong:
        raise LabError(f"the fault did not take effect as meant ({', '.join(f'{way}: {layer}' for way, layer in layers.items())}): {'; '.join(wrong)}")
    return {way: f"{layer}: {said}" for way, (layer, said) in found.items() if layer != "ok"}


def seen_once(layers: Mapping[str, str], within_s: float) -> dict[str, str]:
    """It comes and goes: it is there at some moment."""
    end = time.monotonic() + within_s
    while True:
        try:
            return seen(layers)
        except LabError:
            if time.monotonic() > end:
                raise


# --- what is done, where ------------------------------------------------------------------------------------------------


def _shell(host: str, script: str, stdin: str = "") -> None:
    done = hosts.exec(host, ["sh", "-ec", script], input=stdin, timeout=30, check=False)
    if done.returncode != 0:
        raise LabError(f"{host}: {(done.stderr or done.stdout).strip()[-300:]}")


def rules(state: LabState, *lines: str, output: bool = False) -> str:
    """One nftables table that replaces what was there before. The lab itself ({outside}) is never cut off."""
    known = {name: host["address"] for name, host in state.hosts.items()} | {venue: one["address"] for venue, one in state.venues.items()}
    ports = ", ".join(str(one["port"]) for one in state.venues.values())
    own = state.subnet.rpartition(".")[0] + ".1"
    body = "\n    ".join(line.format(outside=own, ports=f"{{ {ports} }}", **known) for line in lines)
    hook = "output" if output else "input"
    return f"{EMPTY}table ip {TABLE} {{\n  chain cut {{\n    type filter hook {hook} priority -10;\n    {body}\n  }}\n}}\n"


def cut(host: str, *lines: str, output: bool = False) -> dict[str, str]:
    """These packets are dropped without a word."""
    text = rules(load_state(), *lines, output=output)
    _shell(host, "nft -f -", text)
    return {"cut": f"{host}: " + "; ".join(" ".join(line.split()) for line in text.splitlines() if line.endswith(" drop"))}


def flap() -> dict[str, str]:
    """Down at once, and up and down again by itself; at the end it is up."""
    down = rules(load_state(), *EVERYTHING)
    loop = f"for n in {' '.join(map(str, range(FLAPS)))}; do nft -f /run/{FLAPPING}.nft; sleep {DOWN_S}; nft delete table ip {TABLE}; sleep {UP_S}; done"
    _shell("exchange", f"cat > /run/{FLAPPING}.nft; systemd-run --quiet --collect --unit={FLAPPING} /bin/sh -c '{loop}'", down)
    _shell("exchange", f"for n in $(seq 50); do nft list table ip {TABLE} >/dev/null 2>&1 && exit 0; sleep 0.05; done; exit 1")
    return {"flapping": f"{FLAPS} times {DOWN_S} s down and {UP_S} s up"}


def wrong_answers() -> dict[str, str]:
    """The exchanges' names belong to another host."""
    state = load_state()
    other = state.host("replacement")["address"]
    _dns({venue["name"]: other for venue in state.venues.values()})
    return {"dns": f"{', '.join(venue['name'] for venue in state.venues.values())} -> {other}"}


def _dns(names: Mapping[str, str]) -> None:
    config = wiring.dns_config(load_state().host("exchange")["address"], names)
    script = f"cat > {wiring.DNS_CONFIG}.new; cmp -s {wiring.DNS_CONFIG}.new {wiring.DNS_CONFIG} && exit 0; mv {wiring.DNS_CONFIG}.new {wiring.DNS_CONFIG}"
    _shell("exchange", f"{script}; systemctl restart {wiring.DNS_UNIT}", config)


def blackhole() -> dict[str, str]:
    addresses = [venue["address"] for venue in load_state().venues.values()]
    _shell(VICTIM, "; ".join(f"ip route replace blackhole {address}/32" for address in addresses))
    return {"route": f"blackhole {', '.join(addresses)}"}


def exchanges(body: Mapping[str, Any], venues: Sequence[str] = tuple(wiring.VENUES)) -> dict[str, str]:
    """The simulators' own faults: this whole set, instead of what was there."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for venue in venues:
        url = f"{load_state().exchange_control}/faults/{venue}"
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="PUT")
        try:
            with opener.open(request, timeout=5) as reply:
                reply.read()
        except OSError as error:
            raise LabError(f"{url}: {error}") from error
    return {"exchanges": f"{', '.join(venues)}: {json.dumps(dict(body))}"}


def heal() -> None:
    """Everything outside the server is as it was."""
    _shell("exchange", f"systemctl stop {FLAPPING} 2>/dev/null || true; nft -f -", EMPTY)
    _shell("backup", "nft -f -", EMPTY)
    _dns({venue["name"]: venue["address"] for venue in load_state().venues.values()})
    exchanges({})


def cure() -> None:
    """That, and the server asks its own resolver again and goes its own way."""
    heal()
    state = load_state()
    addresses = [venue["address"] for venue in state.venues.values()]
    _shell(VICTIM, "; ".join(f"ip route flush root {address}/32 type {kind}" for address in addresses for kind in ("unicast", "blackhole")))
    for path, text in (("/etc/resolv.conf", hosts.resolv_conf(state)), ("/etc/hosts", hosts.hosts_file(state, VICTIM))):
        _shell(VICTIM, f"cat > {path}", text)
    seen({})


# --- the faults ---------------------------------------------------------------------------------------------------------

DNS = ("ip saddr {{ {titan}, {replacement} }} udp dport 53 drop", "ip saddr {{ {titan}, {replacement} }} tcp dport 53 drop")
EVERYTHING = ("iifname lo accept", "ip saddr != {outside} drop")
BOTH = tuple(wiring.VENUES)


def _at(layer: str, ways: Sequence[str] = BOTH) -> Callable[[], dict[str, str]]:
    return partial(seen, dict.fromkeys(ways, layer))


def _fault(name: str, summary: str, strike: Callable[[], dict[str, str]], prove: Callable[[], dict[str, str]], **more: Any) -> Fault:
    # the server is well: it trades on until it is halted
    return Fault(name, summary, strike, prove=prove, cure=cure, trades_on=True, **more)


def _passing(
    name: str, summary: str, strike: Callable[[], dict[str, str]], prove: Callable[[], dict[str, str]], after_s: float = HEAL_AFTER_S, **more: Any
) -> Fault:
    return _fault(name, f"{summary}; it passes after {after_s:g} s", strike, prove, heal=heal, heal_after_s=after_s, **more)


FAULTS = (
    _fault("dns-dead", "the name server answers nothing", partial(cut, "exchange", *DNS), _at("dns")),
    _fault("dns-wrong", "the name server gives another host's address for the exchanges", wrong_answers, _at("dns")),
    _fault("route-blackhole", "the server has a route that swallows what is for the exchanges", blackhole, _at("route")),
    _fault("egress-blocked", "the exchanges drop what comes from this server", partial(cut, "exchange", "ip saddr {titan} tcp dport {ports} drop"), _at("tcp")),
    _passing("link-down", "nothing reaches the exchanges and their name server", partial(cut, "exchange", *EVERYTHING), _at("dns")),
    _passing("flapping", "the exchanges come and go", flap, partial(seen_once, dict.fromkeys(BOTH, "dns"), 8), float(FLAPS * (DOWN_S + UP_S))),
    _passing(
        "replies-lost",
        "what the server sends arrives, the answers are lost",
        partial(cut, "exchange", "tcp sport {ports} ip daddr != {outside} drop", output=True),
        _at("tcp"),
    ),
    _fault(
        "venue-down",
        "one exchange of two is gone",
        partial(cut, "exchange", "ip daddr {bybit} ip saddr != {outside} drop"),
        _at("tcp", ["bybit"]),
        halted_venues=("bybit",),
    ),
    _passing("ws-blocked", "the exchanges answer, but refuse streams", partial(exchanges, {"reject_upgrade": True}), _at("ws")),
    _passing("ws-silent", "the exchanges answer, but their streams carry nothing", partial(exchanges, {"ws_silent": True}), _at("ws")),
    _fault(
        "tls-interception",
        "somebody else answers for the exchanges, with a certificate of an unknown authority",
        partial(exchanges, {"tls": "unknown_ca"}),
        _at("tls"),
        expect="halted",
        cause="tls_untrusted",
    ),
    _fault("tls-expired", "the exchanges' certificate has expired", partial(exchanges, {"tls": "expired"}), _at("tls"), expect="halted", cause="tls_expired"),
    _passing("maintenance", "the exchanges are in maintenance", partial(exchanges, {"maintenance": True}), _at("http")),
    _passing("rate-limited", "the exchanges answer 429 to everything", partial(exchanges, {"rate_limit": 429}), _at("http")),
    _fault(
        "key-not-whitelisted",
        "the exchanges do not take the server's key from its address",
        partial(exchanges, {"key_not_whitelisted": True}),
        _at("http"),
        expect="halted",
        cause="key_refused",
    ),
    _fault(
        "store-cut",
        "the cloud store cannot be reached; the exchanges can",
        partial(cut, "backup", f"ip saddr {{titan}} tcp dport {hosts.S3_PORT} drop"),
        _at("tcp", ["store"]),
    ),
)
