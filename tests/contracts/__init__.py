# SPDX-License-Identifier: GPL-3.0-or-later
"""One suite for each port, run on the simulation and on the real adapter: what the daemon may rely on is what both do."""
