# SPDX-License-Identifier: GPL-3.0-or-later
"""`python3 -m agent COMMAND`, the way to run a checkout."""

import sys

from agent.cli import main

sys.exit(main())
