# SPDX-License-Identifier: GPL-3.0-or-later
"""A cluster that exists only in simulated time, behind the same ports as the real one.

Nothing here reads a clock, sleeps or draws unseeded random numbers: equal input gives equal bytes.
"""
