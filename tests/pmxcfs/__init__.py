# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for /etc/pve: as many FUSE mounts as the cluster has nodes, one state behind them, and a socket to play with it.

`python3 -m tests.pmxcfs --help` starts it, `tests.pmxcfs.client` starts and steers it from a test. It needs root, /dev/fuse and Debian's
python3-fusepy, nothing else. `cluster` holds what is and the rules of pmxcfs, `dotfiles` writes the files that it makes up, `mount` shows
one node's view through FUSE, `control` takes the commands.
"""
