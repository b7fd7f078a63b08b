# SPDX-License-Identifier: GPL-3.0-or-later
"""On the path of a rival's process: its pauses take no time. What it decides does not depend on them; its wall time does."""

import time

time.sleep = lambda seconds: None
