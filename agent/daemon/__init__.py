# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent as a step: inputs in, outputs out, no clock and no call of its own. What it asks for, `perform` does."""
