# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line, on simulated clusters with real agents and against the played API."""
