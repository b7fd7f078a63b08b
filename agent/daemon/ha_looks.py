# SPDX-License-Identifier: GPL-3.0-or-later
"""Moves that the HA manager carries out: what one look after the other tells of them, as they have no task that could be asked."""

from __future__ import annotations

from agent.core.ha_moves import PULLED_BACK_S, Course, Sight
from agent.core.migrations import Migration, MigrationState
from agent.daemon.inputs import Now

# While the HA manager has something of ours, the cluster is looked at once in each of its rounds.
HA_LOOK_S = 10.0
# Its manager reads requests once in 10 s, and says so in the service's state at once. Should its node have died, another one takes
# over when the manager's lock has run out (120 s), reads them in its first round, and is seen to have done so a look later.
HA_TAKES_UP_S = 150.0
HA_REFUSED_S = 30.0  # PVE's command may queue a request and fail all the same: two rounds, and a look
HA_CALM_S = 10.0  # back in its old state for two looks: it has been tried, and given up
RUNS_AGAIN_S = 90.0  # who ran before runs again within this time after its task has ended: PVE starts containers last of all


class HaLooks:
    """Since when moves look as they do. What the HA manager does not take up, or gives up, has failed."""

    def __init__(self) -> None:
        self._calm_since_s: dict[str, float] = {}
        self._there_since_s: dict[str, float] = {}
        self._watched_until_s = -1e9

    def is_watching(self, now: Now) -> bool:
        """True for as long as the HA manager may still take back a move that has arrived."""
        return now.boot_s < self._watched_until_s

    def forget(self, intent: str) -> None:
        """The attempt has ended."""
        self._calm_since_s.pop(intent, None)
        self._there_since_s.pop(intent, None)

    def ended(self, record: Migration, seen: Sight, waited_s: float, now: Now) -> tuple[MigrationState, str] | None:
        """How a move has ended by this sight of it, with what is said of it; None while it goes on.

        Units:   `waited_s` since the request was queued.
        """
        if seen.course is not Course.DOES_NOT_RUN:
            self._there_since_s.pop(record.intent, None)
        if seen.course not in (Course.WAITS, Course.RELEASED):
            self._calm_since_s.pop(record.intent, None)
        match seen.course:
            case Course.MOVES | Course.MOVES_ELSEWHERE:
                return None
            case Course.ARRIVED:
                self._watched_until_s = now.boot_s + PULLED_BACK_S
                return MigrationState.DONE, ""
            case Course.DOES_NOT_RUN:
                there_s = now.boot_s - self._there_since_s.setdefault(record.intent, now.boot_s)
                return (MigrationState.DONE, "") if there_s >= RUNS_AGAIN_S else None
            case Course.WAITS | Course.RELEASED:
                why = self._why_given_up(record, seen, waited_s, now)
                return None if why is None else (MigrationState.FAILED, why)
            case Course.GONE:
                return MigrationState.LOST, seen.text
        return MigrationState.FAILED, seen.text

    def _why_given_up(self, record: Migration, seen: Sight, waited_s: float, now: Now) -> str | None:
        """Why a guest on its old node, that nobody moves, is not waited for any more; None while it is."""
        calm_s = now.boot_s - self._calm_since_s.setdefault(record.intent, now.boot_s)
        if record.state is MigrationState.RUNNING or seen.text:
            text = seen.text or "the HA manager has tried and left it where it was"
            return text if calm_s >= HA_CALM_S else None
        if record.text:
            return record.text if waited_s >= HA_REFUSED_S else None
        return f"the HA manager did not take it up in {waited_s:.0f} s" if waited_s >= HA_TAKES_UP_S else None
