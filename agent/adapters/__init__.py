# SPDX-License-Identifier: GPL-3.0-or-later
"""The real world behind the ports, one thing each. No code here: adapters share none."""
