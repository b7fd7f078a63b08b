# SPDX-License-Identifier: GPL-3.0-or-later
"""A Proxmox VE cluster played over HTTPS, for the tests of everything that speaks to the API.

`client.py` is what tests import (standard library only); the rest runs in a process and a virtual
environment of its own, as `python -m tests.pve_server`, on top of fakepve.
"""
