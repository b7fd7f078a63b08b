# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for /etc/pve: as many FUSE mounts as the cluster has nodes, one state behind them, and a socket to play with it.

`python3 -m tests.pmxcfs --help` starts it, `tests.pmxcfs.client` starts and steers it from a test. It needs root, /dev/fuse and Debian's
python3-fusepy, nothing else. `tree` holds the files and the rules by which pmxcfs changes them, `node` what one node's pmxcfs knows,
`cluster` who sees whom; `dotfiles` writes the files that pmxcfs makes up, `mount` shows one node's view through FUSE, `control` takes the
commands. What it has to do is stated, without a word about it, in tests/conformance.
"""
