# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent as it is installed: Debian booted in a container, /etc/pve mounted, the API on localhost:8006. `tests/e2e/run` runs this.

`roots` builds the Debian, `machine` boots a copy of it, `node` makes a node of a cluster out of that,
`trio` several nodes of one; `conftest` has the fixtures.
"""
