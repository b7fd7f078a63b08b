# SPDX-License-Identifier: GPL-3.0-or-later
"""PVE's API: the calls, the ways to its servers, and the one place that knows PVE's field names."""
