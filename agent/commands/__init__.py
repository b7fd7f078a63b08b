# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person can ask of the agent: one module a command, each with `add_options` and `execute`."""
