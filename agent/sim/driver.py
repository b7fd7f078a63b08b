# SPDX-License-Identifier: GPL-3.0-or-later
"""Moved to agent.simulation."""

from agent.simulation import Simulation

__all__ = ["Simulation"]
