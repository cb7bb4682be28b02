# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""The guard of a server: keeps its services from the exchanges once another server has taken over.

Installed on the server, with _latch.py beside it, and run by systemd. The kernel lets the services' user reach anything but loopback only while a permit
lasts (an element with a timeout in a set of nftables), and the guard renews it only while no higher epoch than this server's own stands in the store. A
server that was frozen or cut off comes back with a permit that has run out, whatever its processes do first. One that sees a higher epoch fastens its latch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import hmac
import http.client
import json
import os
import ssl
import subprocess
import sys
import time
import typing as t
from urllib.parse import quote, urlsplit

try:
    # on the server it lies beside this file
    import _latch  # type: ignore[import-not-found]
except ImportError:
    from ansible_collections.titan.disaster_recovery.plugins.module_utils import _latch

CONFIG = "/var/lib/titan-dr/guard.json"
TABLE = "titan_dr_permit"
KEEP, FENCE = POLICIES = ("keep", "fence")
# Seconds for one answer of the store. What took longer than MAX_AGE until it is acted on is stale: the server may have been frozen in between.
TIMEOUT = 2.0
MAX_AGE = 2.5


class StoreDown(Exception):
    """The store does not say which epoch it is."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """Who has the environment, by the store. 0: nobody ever claimed it."""

    epoch: int
    run_id: str = ""


# --- the store ------------------------------------------------------------------------------------------------------------


def signed(store: t.Mapping[str, t.Any], key: str, now: datetime.datetime) -> tuple[str, dict[str, str]]:
    """Path and headers of a GET, signed as https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html says (path style)."""
    host = urlsplit(store["endpoint"]).netloc
    path = quote(f"/{store['bucket']}/{key}")
    stamp, day, region = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d"), store.get("region") or "us-east-1"
    empty = hashlib.sha256(b"").hexdigest()
    headers = {"host": host, "x-amz-content-sha256": empty, "x-amz-date": stamp}
    names = ";".join(headers)
    request = "\n".join(["GET", path, "", *(f"{name}:{value}" for name, value in headers.items()), "", names, empty])
    scope = f"{day}/{region}/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(request.encode()).hexdigest()])
    secret = f"AWS4{store['secret_key']}".encode()
    for part in (day, region, "s3", "aws4_request"):
        secret = hmac.new(secret, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()
    headers["Authorization"] = f"AWS4-HMAC-SHA256 Credential={store['access_key']}/{scope}, SignedHeaders={names}, Signature={signature}"
    return path, headers


def parse(status: int, body: bytes) -> Claim:
    """What the store answered; anything but a claim or its absence is no answer."""
    if status == 404 and b"NoSuchKey" in body:
        return Claim(0)
    found: t.Any = None
    with contextlib.suppress(ValueError):
        found = json.loads(body) if status == 200 else None
    epoch = found.get("epoch") if isinstance(found, dict) else None
    if isinstance(epoch, int) and not isinstance(epoch, bool) and epoch > 0:
        return Claim(epoch, str(found.get("run_id", "")))
    raise StoreDown(f"the store answered {status} and no epoch")


def ask(store: t.Mapping[str, t.Any], key: str, timeout: float = TIMEOUT) -> Claim:
    parts = urlsplit(store["endpoint"])
    path, headers = signed(store, key, datetime.datetime.now(datetime.UTC))
    try:
        if parts.scheme == "https":
            link: http.client.HTTPConnection = http.client.HTTPSConnection(parts.netloc, timeout=timeout, context=ssl.create_default_context())
        else:
            link = http.client.HTTPConnection(parts.netloc, timeout=timeout)
        with contextlib.closing(link):
            link.request("GET", path, headers=headers)
            answer = link.getresponse()
            return parse(answer.status, answer.read(65536))
    except (OSError, http.client.HTTPException) as exc:
        raise StoreDown(f"the store cannot be asked: {type(exc).__name__}") from exc


# --- the permit -------------------------------------------------------------------------------------------------------------


def closed(uid: int) -> str:
    """The table, without a permit."""
    return (
        f"table inet {TABLE} {{\n"
        "  set permit { typeof meta skuid; flags timeout; }\n"
        "  chain output { type filter hook output priority 0; policy accept;\n"
        f'    meta skuid {uid} oifname != "lo" meta skuid != @permit counter drop; }}\n'
        "}\n"
    )


def renewed(uid: int, seconds: float) -> str:
    """In one transaction: adding what is there would not renew its timeout, and taking it away first may find nothing."""
    element = f"element inet {TABLE} permit {{ {uid}"
    add = f"add {element} timeout {int(seconds)}s }}\n"
    return f"{add}delete {element} }}\n{add}"


class Kernel:
    def __init__(self, nft: str, run: t.Callable[..., t.Any] = subprocess.run) -> None:
        self.nft, self.run = nft, run

    def _nft(self, arguments: list[str], text: str = "") -> bool:
        done = self.run([self.nft, *arguments], input=text, capture_output=True, text=True, timeout=5, check=False)
        return bool(done.returncode == 0)

    def close(self, uid: int) -> None:
        """Nobody gets out without a permit. A table that stands is kept, with the permit in it."""
        if not self._nft(["list", "table", "inet", TABLE]) and not self._nft(["-f", "-"], closed(uid)):
            raise OSError(f"nftables table inet {TABLE} cannot be made")

    def renew(self, uid: int, seconds: float) -> None:
        if not self._nft(["-f", "-"], renewed(uid, seconds)):
            raise OSError("the permit cannot be renewed")

    def withdraw(self) -> None:
        self._nft(["flush", "set", "inet", TABLE, "permit"])


# --- the guard --------------------------------------------------------------------------------------------------------------


def decide(own: int, claim: Claim | None, silent_s: float, policy: str, grace: float) -> str:
    """renew, fence (another server has it) or wait (let the permit run out). `claim` is None when the store does not tell, `silent_s` since when."""
    if claim is not None:
        return "fence" if claim.epoch > own else "renew"
    return "renew" if policy == KEEP and silent_s <= grace else "wait"


@dataclasses.dataclass
class Guard:
    kernel: t.Any
    asking: t.Callable[[t.Mapping[str, t.Any], str], Claim] = ask
    clock: t.Callable[[], float] = time.monotonic
    wall: t.Callable[[], float] = time.time
    # since when the store has said that the epoch is this server's; None: not since the guard began
    known: float | None = None
    said: str = ""

    def say(self, text: str) -> None:
        """To the journal, once."""
        if text != self.said:
            self.said = text
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()

    def turn(self, config: t.Mapping[str, t.Any]) -> str:
        began, began_at = self.clock(), self.wall()
        self.kernel.close(config["uid"])
        claim: Claim | None = None
        try:
            claim = self.asking(config["store"], config["key"])
        except StoreDown as exc:
            self.say(str(exc))
        # after a freeze the answer is from before it
        took = max(self.clock() - began, abs(self.wall() - began_at))
        if took > MAX_AGE + TIMEOUT:
            return "stale"
        now = self.clock()
        if claim is not None and claim.epoch <= config["epoch"]:
            self.known = now
        silent = now - self.known if self.known is not None else float("inf")
        verdict = decide(config["epoch"], claim, silent, config["store_down"], config["grace"])
        if verdict == "renew":
            self.kernel.renew(config["uid"], config["lifetime"])
            self.say(f"epoch {config['epoch']} is this server's" if claim else f"the store is silent for {int(silent // 30 * 30)} s: still going on")
        elif verdict == "fence" and claim is not None:
            self.known = None
            self.kernel.withdraw()
            reason = f"fenced: epoch {claim.epoch} of run {claim.run_id}"
            _latch.fasten(config["latch"], reason, claim.run_id or "the guard", self.wall())
            self.say(reason)
        return verdict


def load(path: str = CONFIG) -> dict[str, t.Any]:
    with open(path, encoding="utf-8") as handle:
        found: dict[str, t.Any] = json.load(handle)
    return found


def main(words: t.Sequence[str]) -> None:
    config = load()
    guard = Guard(Kernel(config["nft"]))
    if "close" in words:
        guard.kernel.close(config["uid"])
        return
    while True:
        try:
            # read anew: a recovery writes it when it makes this server the one
            config = load()
            guard.turn(config)
        except Exception as exc:  # one turn that fails must not end the guard; the permit runs out meanwhile
            guard.say(f"{type(exc).__name__}: {exc}")
        # the period of a service that never ends, well within the time of the permit
        time.sleep(config["every"])


if __name__ == "__main__":
    os.umask(0o077)
    main(sys.argv[1:])
