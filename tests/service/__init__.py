# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent as a process, against the stand-in for /etc/pve and the played API."""
