#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# usage: tests/stage_collection.sh DIRECTORY
# Builds the collection and installs it into DIRECTORY/ansible_collections/titan/disaster_recovery, so that what is
# checked there is what users get: no link, no lab, no tests. Needs no network. Prints the tarball's path.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
destination=${1:?usage: tests/stage_collection.sh DIRECTORY}
mkdir -p "$destination"
destination=$(cd "$destination" && pwd)

# A configuration file of its own: neither this checkout's nor the user's may decide here.
config=$destination/ansible.cfg
printf '[defaults]\ncollections_path = %s\n' "$destination" > "$config"
export ANSIBLE_CONFIG=$config
unset ANSIBLE_COLLECTIONS_PATH

# ansible-galaxy walks the whole tree before it looks at build_ignore for each file: fine, and the link is not followed.
ansible-galaxy collection build --force --output-path "$destination/dist" "$root" >&2
tarball=$(ls "$destination"/dist/titan-disaster_recovery-*.tar.gz)
ansible-galaxy collection install --force --offline --collections-path "$destination" "$tarball" >&2
printf '%s\n' "$tarball"
