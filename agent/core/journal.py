# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent says: one record type, and the identifiers by which journalctl finds a kind of message."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum


class Level(IntEnum):
    """syslog's priorities, as far as the agent uses them."""

    ERROR = 3
    WARNING = 4
    NOTICE = 5
    INFO = 6
    DEBUG = 7


class MessageId(StrEnum):
    """journald's MESSAGE_ID of each kind of message: fixed for ever, made once with `systemd-id128 new`."""

    STARTED = "786bcc15d76e49598a74b9b7658a6a6b"
    STOPPED = "027a1b3859224906a724e153be412f02"
    WAITING = "67f37cc2e22640fb908e496cc6bba9e1"
    LEADERSHIP = "9fce29c4b57b4c7e8daa27460f6bb5b6"
    SETTINGS = "a1782898caad4faaa342cfd165fd3359"
    EVENT = "3d61733629e54cb4bf64ee0d55c34365"
    DECISION = "11aa31cbbee74a64b1b724c96ceb034d"
    MOVE = "2b5408276b364e35baf02ad3230e0ee2"
    OUTCOME = "c23bd1c54b784631b009c96083e2bf58"
    REFUSAL = "2128bc8b31cf4a3faf5cecb608beeb06"
    CONFLICT = "1be711e1cf0b4288b16c218d739a464b"
    OUTSIDE = "389fe981a2bc4410b561363e3acacaf1"
    MAINTENANCE = "d262f7d78e9f4c95bfee58865f79a09c"
    ALARM = "b774dcc0943249b4b6f87460ed94c5fb"
    PAUSE = "077c0e4a5b32415d99f4b52b28d7e8c3"
    STORAGE = "7a39cefe20034798a54056e0f0612265"
    BUG = "0e1b5ef2fa444abfbac629971256a656"


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the journal with its fields.

    Shape:   `event`, `reason`, `vmid`, `source`, `target`, `epoch` become the PROXLB_ fields of that name; None leaves
             the field out.
    """

    level: Level
    message_id: MessageId
    text: str
    event: str | None = None
    reason: str | None = None
    vmid: int | None = None
    source: str | None = None
    target: str | None = None
    epoch: int | None = None

    def fields(self) -> dict[str, str]:
        """The journal fields beside MESSAGE and PRIORITY, in a fixed order."""
        named = {
            "PROXLB_EVENT": self.event,
            "PROXLB_REASON": self.reason,
            "PROXLB_VMID": None if self.vmid is None else str(self.vmid),
            "PROXLB_SOURCE": self.source,
            "PROXLB_TARGET": self.target,
            "PROXLB_EPOCH": None if self.epoch is None else str(self.epoch),
        }
        return {"MESSAGE_ID": self.message_id.value} | {key: value for key, value in named.items() if value is not None}
