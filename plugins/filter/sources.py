# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: sources
short_description: Tell a server where it can fetch an object, with credentials that end by themselves
version_added: "0.1.0"
author: Titan DR maintainers (@titan-dr)
description:
  - Adds C(sources) to each candidate of a plan made by M(titan.disaster_recovery.restore_point_info).
  - For an S3 store it signs an address that is good for one object and one hour, so that the keys of the store stay on the controller.
options:
  _input:
    description: The plan, candidates by kind of object.
    type: dict
    required: true
  stores:
    description: The stores, as given to M(titan.disaster_recovery.restore_point_info).
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
plan: "{{ found.plan | titan.disaster_recovery.sources(titan_stores) }}"
"""

RETURN = r"""
_value:
  description: The candidates in the shape that the restoring modules take.
  type: list
  elements: dict
"""

import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _stores

SECONDS = 3600


def _signed(store: dict[str, t.Any], method: str, path: str) -> str:
    url: str = _stores.s3_client(store).generate_presigned_url(method, Params={"Bucket": store["bucket"], "Key": path}, ExpiresIn=SECONDS)
    return url


def source(store: dict[str, t.Any], environment_id: str, key: str, upload: bool = False) -> dict[str, t.Any]:
    """One place for an object, to fetch it from or to put it to."""
    path = _stores.object_path(store, environment_id, key)
    if store["kind"] == "s3":
        place = {"store": store["name"], "kind": "http", "url": _signed(store, "put_object" if upload else "get_object", path)}
        return {**place, "head_url": _signed(store, "head_object", path)} if upload else place
    wanted = ("host", "user", "host_key", "private_key")
    return {"store": store["name"], "kind": "sftp", "path": path, "port": store.get("port", 22), **{name: store[name] for name in wanted}}


def sources(plan: dict[str, list[dict[str, t.Any]]], stores: list[dict[str, t.Any]]) -> dict[str, list[dict[str, t.Any]]]:
    """The plan with the sources of each candidate, in the order of `stores`."""
    return {kind: [_with_sources(candidate, stores) for candidate in candidates] for kind, candidates in plan.items()}


def _with_sources(candidate: dict[str, t.Any], stores: list[dict[str, t.Any]]) -> dict[str, t.Any]:
    places = [source(store, candidate["environment_id"], candidate["object"]["key"]) for store in stores if store["name"] in candidate["stores"]]
    return {**{name: candidate[name] for name in ("id", "taken_at", "object", "details")}, "sources": places}


def upload_targets(objects: list[dict[str, t.Any]], stores: list[dict[str, t.Any]], environment_id: str) -> list[dict[str, t.Any]]:
    """For each object (`key`, `path`) where to put it."""
    return [{**entry, "targets": [source(store, environment_id, entry["key"], upload=True) for store in stores]} for entry in objects]


class FilterModule:
    """Filters of the collection."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Name to function."""
        return {"sources": sources, "upload_targets": upload_targets}
