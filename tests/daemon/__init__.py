# SPDX-License-Identifier: GPL-3.0-or-later
"""The daemon against what must not happen: late answers, old looks, what was seen before and does not hold any more."""
