# SPDX-License-Identifier: GPL-3.0-or-later
"""PVE's own checks of guests about to move: how long each is believed, and when one that got no answer is asked for again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agent.core.needs import GuestNeeds
from agent.core.plan_types import Refusal, Verdict
from agent.core.reasons import RefusalReason
from agent.daemon.inputs import Now

VERDICT_S = 60.0  # PVE's answer about a guest is believed for so long
REFUSAL_S = 300.0  # a guest that PVE refused is asked about again after so long
AGAIN_S = 30.0  # after a question without an answer, and twice as long each time
MOST_AGAIN_S = 480.0
PATIENCE = 4  # questions in a row, 450 s in all, after each of which the trigger is raised again; then the regular look asks


@dataclass(frozen=True, slots=True)
class Silence:
    """A guest about whom PVE gave no answer, so many times in a row; it is not asked about before `until_s` (CLOCK_BOOTTIME)."""

    times: int
    until_s: float
    text: str


class Verdicts:
    """What PVE has said about guests. That no answer came is no failure of the guest: nothing was tried with it."""

    def __init__(self) -> None:
        self._known: dict[int, Verdict] = {}
        self._silent: dict[int, Silence] = {}

    def take(self, verdict: Verdict) -> None:
        """PVE has answered."""
        self._known[verdict.vmid] = verdict
        self._silent.pop(verdict.vmid, None)

    def no_answer(self, vmid: int, text: str, now: Now) -> Silence:
        """PVE did not answer about the guest, and why; returns how long it is left alone now."""
        before = self._silent.get(vmid)
        times = 1 if before is None else before.times + 1
        silence = self._silent[vmid] = Silence(times, now.boot_s + min(MOST_AGAIN_S, AGAIN_S * 2.0 ** min(times - 1, PATIENCE)), text)
        self._known.pop(vmid, None)
        return silence

    def forget(self, vmid: int) -> None:
        """What was said of the guest does not hold any more."""
        self._known.pop(vmid, None)

    def ask_anew(self, vmids: Iterable[int]) -> None:
        """Somebody may have put right what PVE refused, or why it was silent."""
        for vmid in vmids:
            self._known.pop(vmid, None)
            self._silent.pop(vmid, None)

    def is_fresh(self, vmid: int, now: Now) -> bool:
        """True while the guest may move by what was said of it."""
        known = self._known.get(vmid)
        return known is not None and now.wall_s - known.asked_at < VERDICT_S

    def needs(self, vmid: int) -> GuestNeeds | None:
        """What the guest's configuration asks of a node, as last read."""
        known = self._known.get(vmid)
        return None if known is None else known.needs

    def for_planning(self, now: Now) -> dict[int, Verdict]:
        """What the planner is told: a guest that is not to be asked about yet is refused until then."""
        known = {vmid: verdict for vmid, verdict in self._known.items() if now.wall_s - verdict.asked_at < REFUSAL_S}
        for vmid, silence in self._silent.items():
            if now.boot_s < silence.until_s:
                detail = f"{silence.text}; asked again in {silence.until_s - now.boot_s:.0f} s"
                known[vmid] = Verdict(vmid, now.wall_s, Refusal(vmid, RefusalReason.UNANSWERED, detail))
        return known
