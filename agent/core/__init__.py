# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent decides, and nothing that touches the world: no clock, files, sockets or threads."""
