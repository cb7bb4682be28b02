#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# ansible-test sanity on a staged copy of the collection: it refuses to run outside ansible_collections/NAMESPACE/NAME,
# and the checkout's link is not for it. Arguments are handed on, for example: tests/sanity.sh --test validate-modules
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
[ ! -d "$root/.venv/bin" ] || PATH=$root/.venv/bin:$PATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$root/tests/stage_collection.sh" "$work" >/dev/null
copy=$work/ansible_collections/titan/disaster_recovery
mkdir -p "$copy/tests"
cp "$root/tests/config.yml" "$copy/tests/"

# ansible-test makes a virtual environment for each test under ~/.ansible/test and starts it with a pip that it downloads
# from the Ansible project's file host. Where that host is out of reach, Python's own ensurepip serves as well. A home of
# its own keeps the user's real ~/.ansible/test clean; it is short (interpreter lines have a limit) and kept between runs.
real_home=$HOME
export HOME=${XDG_CACHE_HOME:-$real_home/.cache}/titan-dr/sanity
mkdir -p "$HOME/.ansible/test/cache"
if [ -d "$real_home/.config/pip" ]; then
    mkdir -p "$HOME/.config"
    ln -sfn "$real_home/.config/pip" "$HOME/.config/pip"
fi
# the file's name carries the pip version that this ansible-core asks for
pip_version=$(python -c '
from types import SimpleNamespace
from ansible_test._internal.python_requirements import get_venv_packages
import sys
print(get_venv_packages(SimpleNamespace(version="%d.%d" % sys.version_info[:2]))["pip"])')
cat > "$HOME/.ansible/test/cache/get_pip_${pip_version//./_}.py" <<'PYTHON'
import ensurepip
ensurepip.bootstrap()
PYTHON

python_version=$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
cd "$copy"
ansible-test sanity --python "$python_version" --color no "$@"
