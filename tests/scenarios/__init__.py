# SPDX-License-Identifier: GPL-3.0-or-later
"""Stories of whole clusters, one in each folder: the real agents, the simulated cluster, and what must and must not happen."""
