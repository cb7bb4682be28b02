# SPDX-License-Identifier: GPL-3.0-or-later
"""python -m titan_dr"""

from __future__ import annotations

import sys

from titan_dr.cli import main

sys.exit(main())
