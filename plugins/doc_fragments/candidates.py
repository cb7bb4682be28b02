# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """Options of every module that fetches objects of restore points."""

    DOCUMENTATION = r"""
options:
  candidates:
    description:
      - The object to fetch, once for each restore point that may be used, the preferred one first.
      - Made by the filter P(titan.disaster_recovery.sources#filter).
    type: list
    elements: dict
    required: true
    suboptions:
      id:
        description: Restore point id.
        type: str
        required: true
      taken_at:
        description: When the data was taken, in seconds since the epoch.
        type: float
        required: true
      details:
        description: What the manifest says beyond the object itself.
        type: dict
        default: {}
      object:
        description: The object as the manifest describes it.
        type: dict
        required: true
        suboptions:
          key:
            description: Name in the store. Its ending tells the packing.
            type: str
            required: true
          size:
            description: Size in bytes as stored.
            type: int
            required: true
          sha256:
            description: SHA-256 of the object as stored.
            type: str
            required: true
          sealed:
            description: Whether it is encrypted with age.
            type: bool
            required: true
      sources:
        description: Where it can be had, the preferred place first.
        type: list
        elements: dict
        required: true
        suboptions:
          store:
            description: Name of the store, for messages.
            type: str
            required: true
          kind:
            description: How it is reached.
            type: str
            required: true
            choices: [http, sftp, file]
          url:
            description: Address for O(candidates[].sources[].kind=http), presigned.
            type: str
          path:
            description: Path in the store for V(sftp), on this host for V(file).
            type: path
          host:
            description: Address of an sftp store.
            type: str
          port:
            description: Port of an sftp store.
            type: int
            default: 22
          user:
            description: User of an sftp store.
            type: str
          host_key:
            description: Host key of an sftp store, as in a known_hosts file without the name.
            type: str
          private_key:
            description: Private key for an sftp store.
            type: str
  identity:
    description: The age identity (private key) that opens sealed objects. It is never written to disk.
    type: str
    required: true
"""
