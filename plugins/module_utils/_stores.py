# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Reading the stores from the controller: which restore points there are. Needs boto3 for S3 and pyrage to open seals.

A store is a dict with `name`, `kind` and, for `sftp`: host, port, user, path, host_key, private_key; for `s3`: endpoint, region, bucket, prefix,
access_key, secret_key.
"""

from __future__ import annotations

import concurrent.futures
import functools
import os
import tempfile
import time
import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _fetch, _restore_point

Manifests = dict[str, bytes]


class StoreError(Exception):
    """A store that does not answer, and why."""


def s3_client(store: dict[str, t.Any]) -> t.Any:
    """A boto3 client that fails fast: a store that hangs must not eat the recovery's time."""
    return _client(store.get("endpoint"), store.get("region") or "us-east-1", store["access_key"], store["secret_key"])


@functools.lru_cache
def _client(endpoint: str | None, region: str, access_key: str, secret_key: str) -> t.Any:
    try:
        import boto3
        from botocore.config import Config
    except ImportError as exc:
        raise StoreError("boto3 is not installed for the controller's Python") from exc
    config = Config(connect_timeout=3, read_timeout=5, retries={"max_attempts": 1}, signature_version="s3v4", s3={"addressing_style": "path"}, proxies={})
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=region,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=config,
    )


def object_path(store: dict[str, t.Any], environment_id: str, key: str) -> str:
    """Full name of an object in a store."""
    root = str(store.get("prefix") or "") if store["kind"] == "s3" else str(store["path"])
    return "/".join(part for part in (root.rstrip("/"), environment_id, key) if part)


def _named_by(ids: t.Iterable[str], until: float | None) -> list[str]:
    """Ids in the order of their time, without those from after it: an id begins with it."""
    last = "~" if until is None else time.strftime("%Y%m%dT%H%M%SZ~", time.gmtime(until))
    return sorted(point_id for point_id in ids if point_id < last)


def read_s3(store: dict[str, t.Any], environment_id: str, at_most: int, until: float | None = None) -> Manifests:
    """Manifests of the newest restore points in a bucket, by id; none from after `until`."""
    client = s3_client(store)
    prefix = object_path(store, environment_id, "points/")
    try:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=store["bucket"], Prefix=prefix, Delimiter="/")
        ids = _named_by((entry["Prefix"][len(prefix) :].strip("/") for page in pages for entry in page.get("CommonPrefixes", [])), until)
        found: Manifests = {}
        # However many uploads broke off lately, the restore points behind them count.
        for point_id in reversed(ids):
            if len(found) == at_most:
                break
            try:
                found[point_id] = client.get_object(Bucket=store["bucket"], Key=f"{prefix}{point_id}/manifest.json")["Body"].read()
            except client.exceptions.NoSuchKey:
                continue  # never committed
        return found
    except Exception as exc:  # botocore raises from several trees; each means the same here
        raise StoreError(f"{type(exc).__name__}: {exc}") from exc


def read_sftp(store: dict[str, t.Any], environment_id: str, at_most: int, until: float | None = None) -> Manifests:
    """Manifests of the newest restore points below a directory, by id; none from after `until`."""
    prefix = object_path(store, environment_id, "points")
    deadline = time.time() + 10
    try:
        with _fetch.sftp_session(store) as argv, tempfile.TemporaryDirectory() as folder:
            listed = _fetch.sftp(argv, f'ls -1 "{prefix}"\n', deadline).splitlines()
            ids = _named_by((line.strip().rsplit("/", 1)[-1] for line in listed if line.strip()), until)
            while ids and len(os.listdir(folder)) < at_most:
                batch = "".join(f'-get "{prefix}/{point_id}/manifest.json" "{folder}/{point_id}"\n' for point_id in ids[-at_most:])
                _fetch.sftp(argv, batch, deadline)
                del ids[-at_most:]
            found = {}
            for point_id in sorted(os.listdir(folder))[-at_most:]:
                with open(os.path.join(folder, point_id), "rb") as handle:
                    found[point_id] = handle.read()
            return found
    except (_fetch.FetchError, OSError) as exc:
        raise StoreError(str(exc)) from exc


READERS: dict[str, t.Callable[..., Manifests]] = {"s3": read_s3, "sftp": read_sftp}


def read_all(stores: list[dict[str, t.Any]], environment_id: str, at_most: int, until: float | None = None) -> tuple[dict[str, Manifests], dict[str, str]]:
    """Ask every store at once: manifests by store name, none from after `until`, and why the others did not answer."""
    good: dict[str, Manifests] = {}
    bad: dict[str, str] = {}
    with concurrent.futures.ThreadPoolExecutor(max_workers=max(1, len(stores))) as pool:
        asked = {store["name"]: pool.submit(READERS[store["kind"]], store, environment_id, at_most, until) for store in stores}
        for name, future in asked.items():
            try:
                good[name] = future.result()
            except StoreError as exc:
                bad[name] = str(exc)
    return good, bad


def open_seal(manifest: dict[str, t.Any], identity: str) -> None:
    """The seal opens with this identity and encloses the digest of this manifest; StoreError says which of the two failed."""
    try:
        import pyrage
    except ImportError as exc:
        raise StoreError("pyrage is not installed for the controller's Python") from exc
    try:
        key = pyrage.x25519.Identity.from_str(identity.strip())
    except Exception as exc:
        raise StoreError("the age identity is not one (it starts with AGE-SECRET-KEY-1)") from exc
    try:
        enclosed = pyrage.decrypt(manifest["seal"].encode(), [key])
    except Exception as exc:
        raise StoreError(f"the age identity does not open it: {exc}") from exc
    if enclosed != _restore_point.canonical_digest(manifest).encode():
        raise StoreError("its seal does not fit its content: the manifest was altered")


Plan = dict[str, list[dict[str, t.Any]]]


def plan(
    manifests: dict[str, Manifests], environment_id: str, identity: str, needs: t.Container[str] = _restore_point.OPTIONAL
) -> tuple[Plan, list[str], list[str]]:
    """Candidates by kind of object, newest restore point first; notes on what was rejected; reasons that were the key's fault.

    Stores keep the order in which they were given. A restore point that lacks what this server `needs` is rejected.
    """
    usable: dict[str, dict[str, t.Any]] = {}
    stores: dict[str, list[str]] = {}
    notes, locked = [], []
    for store, found in manifests.items():
        for point_id, raw in found.items():
            label = f"restore point {point_id} in {store}"
            try:
                manifest = _restore_point.parse(raw, needs)
            except _restore_point.ManifestError as exc:
                notes.append(f"{label} rejected: {exc}")
                continue
            if manifest["id"] != point_id or manifest["environment_id"] != environment_id:
                notes.append(f"{label} rejected: it calls itself {manifest['id']} of environment {manifest['environment_id']}, {environment_id} expected")
                continue
            try:
                open_seal(manifest, identity)
            except StoreError as exc:
                locked.append(f"{label}: {exc}")
                continue
            if point_id in usable and _restore_point.canonical_digest(usable[point_id]) != _restore_point.canonical_digest(manifest):
                notes.append(f"{label} rejected: it differs from the one in {stores[point_id][0]}")
                continue
            usable[point_id] = manifest
            stores.setdefault(point_id, []).append(store)
    order = sorted(usable.values(), key=lambda manifest: manifest["taken_at"], reverse=True)
    candidates: dict[str, list[dict[str, t.Any]]] = {kind: [] for kind in _restore_point.KINDS}
    for manifest in order:
        for kind in _restore_point.KINDS:
            if kind not in manifest["objects"]:
                continue
            entry = manifest["objects"][kind]
            candidates[kind].append(
                {
                    "id": manifest["id"],
                    "taken_at": manifest["taken_at"],
                    "object": {name: entry[name] for name in ("key", "size", "sha256", "sealed")},
                    "details": {**entry.get("details", {}), **(manifest["redis"] if kind == "redis" else {})},
                    "stores": stores[manifest["id"]],
                    "environment_id": environment_id,
                }
            )
    return candidates, notes + [f"{text} (not used)" for text in locked], locked
