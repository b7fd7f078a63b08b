# SPDX-License-Identifier: GPL-3.0-or-later
"""The HA manager's maintenance of nodes, through its command `ha-manager`: PVE's API shows it and has no way to ask for it.

Source:  pve-ha-manager, src/PVE/CLI/ha_manager.pm: the command checks that the node exists and queues one line for the HA manager.
"""

from __future__ import annotations

import re
import subprocess
from typing import Final

from agent.ports import NoQuorumError, NotMountedError, OutsideError, PermanentError, TemporaryError

CALL_S: Final = 25.0  # it waits 10 s for the lock of the queue
MOST_WORDS: Final = 300  # characters of its complaint, which goes into the journal
_OF_PERL: Final = ("perl: warning", "BEGIN failed--", "Compilation failed in require")  # what comes with the reason and is none
_BUSY = re.compile(r"lock request timeout|timed out|Device or resource busy")
_NO_QUORUM = re.compile(r"no quorum|Permission denied")
_NOT_MOUNTED = re.compile(r"ipcc_send_rec|not mounted|Connection refused|Transport endpoint")
_TOO_OLD = re.compile(r"unknown command|no such command|too many arguments")


class HaManagerCommand:
    """The executable, run as root on a node."""

    def __init__(self, executable: str = "ha-manager", timeout_s: float = CALL_S) -> None:
        self._executable = executable
        self._timeout_s = timeout_s

    def set_maintenance(self, node: str, wanted: bool) -> None:
        """See `agent.ports.HaNodes`."""
        act = "enable" if wanted else "disable"
        try:
            done = subprocess.run(
                [self._executable, "crm-command", "node-maintenance", act, node],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self._timeout_s,
                env={"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},  # C: its errors are told apart by their words
            )
        except subprocess.TimeoutExpired:
            raise TemporaryError(f"ha-manager did not end within {self._timeout_s:.0f} s", 30) from None
        except OSError as error:
            raise PermanentError(
                f"{self._executable} cannot be run: {error.strerror}", "is pve-ha-manager installed on this node?"
            ) from error
        if done.returncode != 0:
            raise _refusal(done.stderr.decode("utf-8", "replace"))


def _refusal(complaint: str) -> OutsideError:
    lines = [line.strip() for line in complaint.splitlines() if line.strip() and not line.startswith(_OF_PERL)]
    words = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "failed without a word")
    said = f"ha-manager: {words[:MOST_WORDS]}"
    if _TOO_OLD.search(complaint):
        return PermanentError(f"{said} (it is too old to know maintenance)", "Proxmox VE 8 or later has it")
    if "no such cluster node" in complaint:
        return PermanentError(said)
    if _NOT_MOUNTED.search(complaint):
        return NotMountedError(said)
    if _NO_QUORUM.search(complaint):
        return NoQuorumError(said)
    return TemporaryError(said, 5 if _BUSY.search(complaint) else 10)
