# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent that runs on every node of a Proxmox VE cluster and moves guests when that puts something right."""

__version__ = "0.1.0"
