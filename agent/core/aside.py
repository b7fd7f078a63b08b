# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is left alone after a failure, with which node if not with all, and until when."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

from agent.core.cluster import Guest, GuestType, Snapshot
from agent.core.documents import HistoryFile, SetAside
from agent.core.failures import PASSING, TREATMENT, FailureClass, Treatment, remedy
from agent.core.json_types import JsonObject

FIRST_S = 600.0
MOST_S = 86400.0
WAIT_S = 60.0  # for a lock; while the guest shows one it is not touched anyway
ANEW_S = 15.0  # pvestatd's round of 10 s and its own time: then statistics show as it is who was not as it seemed
ANEW_AGAIN_S = 600.0  # after that, another such refusal is the first one again
MOST_DOUBLINGS = 10  # of FIRST_S, which is beyond MOST_S: a guest may fail every day for years
MOST_TARGETS = 2  # that fail for one guest before it stays where it is: the third one would hardly be better
MOST_TEXT = 200


def with_failure(
    history: HistoryFile,
    vmid: int,
    failure: FailureClass,
    text: str,
    now: float,
    *,
    node: str = "",
    target: str | None = None,
) -> HistoryFile:
    """The history with one more failure of a guest, which is left alone as its class wants it.

    10 minutes, twice as long each time, a day at most; a lock does not let the time grow. Where only the target is to blame, only
    that is avoided, until `MOST_TARGETS` of them have failed. A guest that was not as it seemed is tried again when statistics show
    it as it is; should it be refused again then, it waits as for a lock.

    Units:   `now` in Unix seconds.
    Shape:   `node` is where the guest is.
    """
    treatment = TREATMENT[failure]
    if treatment is not Treatment.OTHER_TARGET:
        target = None
    elif target is not None:
        others = {entry.target for entry in history.set_aside if entry.vmid == vmid and entry.target is not None and is_active(entry, now)}
        history = _with_entry(history, vmid, failure, text, now, node, target)
        if len(others | {target}) < MOST_TARGETS:
            return history
    return _with_entry(history, vmid, failure, text, now, node, None)


def _with_entry(
    history: HistoryFile, vmid: int, failure: FailureClass, text: str, now: float, node: str, target: str | None
) -> HistoryFile:
    before = next((entry for entry in history.set_aside if (entry.vmid, entry.target) == (vmid, target)), None)
    treatment = TREATMENT[failure]
    failures = (before.failures if before is not None else 0) + (treatment not in PASSING)
    until: float | None = now + min(MOST_S, FIRST_S * 2 ** min(max(0, failures - 1), MOST_DOUBLINGS))
    if treatment is Treatment.WAIT:
        until = now + WAIT_S
    elif treatment is Treatment.LOOK_AGAIN:
        is_again = before is not None and before.failure is failure and abs(now - (before.until or 0.0)) < ANEW_AGAIN_S
        until = now + (WAIT_S if is_again else ANEW_S)
    elif treatment is Treatment.TO_A_PERSON:
        until = now + MOST_S
    elif treatment is Treatment.NEVER_AGAIN:
        until = None
    entry = SetAside(vmid, until, failures, text[:MOST_TEXT], failure, target, node)
    return _with_entries(history, [*(other for other in history.set_aside if other is not before), entry])


def _with_entries(history: HistoryFile, entries: list[SetAside]) -> HistoryFile:
    return replace(history, set_aside=tuple(sorted(entries, key=lambda entry: (entry.vmid, entry.target or ""))))


def is_active(entry: SetAside, now: float) -> bool:
    """True while the guest is left alone. A time that lies too far ahead was written by a clock that was, and counts for nothing."""
    return entry.until is None or now < entry.until <= now + MOST_S


def is_kept(entry: SetAside, now: float) -> bool:
    """True while the entry is worth remembering: for a day after its end the next failure counts as one more."""
    return entry.until is None or abs(now - entry.until) <= MOST_S


def set_aside(history: HistoryFile, now: float) -> dict[int, str]:
    """Guests that are left alone after a failure, with why and for how long."""
    found = [entry for entry in history.set_aside if entry.target is None and is_active(entry, now)]
    return {entry.vmid: f"{_why(entry)}; {_next_try(entry, now)}" for entry in found}


def passing(history: HistoryFile, now: float) -> frozenset[int]:
    """The guests that are left alone only for a moment, until a lock is gone or they are seen as they are."""
    return frozenset(
        entry.vmid
        for entry in history.set_aside
        if entry.target is None and entry.until is not None and TREATMENT[entry.failure] in PASSING and is_active(entry, now)
    )


def next_try_s(history: HistoryFile, vmid: int, now: float) -> float:
    """In how many seconds a guest that was set aside is tried again; 0 for one that is not, or that waits for a person."""
    found = [entry.until for entry in history.set_aside if (entry.vmid, entry.target) == (vmid, None) and entry.until is not None]
    return max(0.0, *(until - now for until in found)) if found else 0.0


def avoided(history: HistoryFile, now: float) -> dict[int, dict[str, str]]:
    """Guests that go to certain nodes not for a while, with why and for how long."""
    found: dict[int, dict[str, str]] = {}
    for entry in history.set_aside:
        if entry.target is not None and is_active(entry, now):
            found.setdefault(entry.vmid, {})[entry.target] = f"{_why(entry)}; {_next_try(entry, now)}"
    return found


def _why(entry: SetAside) -> str:
    return entry.text if entry.failure is FailureClass.UNKNOWN else f"{entry.failure.value}: {entry.text}"


def _next_try(entry: SetAside, now: float) -> str:
    if entry.until is None:
        return "not tried again until somebody acts"
    left_s = entry.until - now
    if left_s >= 2 * 3600:
        return f"next try in {left_s / 3600:.0f} hours"
    return f"next try in {left_s / 60:.0f} minutes" if left_s >= 90 else f"next try in {left_s:.0f} s"


_FOLDERS = {GuestType.QEMU: "qemu-server", GuestType.LXC: "lxc"}


def config_path(guest: Guest) -> str:
    """Where a guest's configuration is below /etc/pve."""
    return f"nodes/{guest.node}/{_FOLDERS[guest.type]}/{guest.vmid}.conf"


def digest_of_config(text: str) -> str:
    """What tells one configuration from another; a lock comes and goes with each task, and is not part of it."""
    lines = (line for line in text.splitlines() if not line.startswith("lock:"))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def rows(history: HistoryFile, types: Mapping[int, GuestType], now: float) -> list[JsonObject]:
    """What `status` shows of them; `types` of guests as last seen."""
    return [
        {
            "vmid": entry.vmid,
            "target": entry.target,
            "failure": entry.failure.value,
            "text": entry.text,
            "remedy": remedy(entry.failure, entry.vmid, types.get(entry.vmid, GuestType.QEMU) is GuestType.QEMU),
            "until": entry.until,
            "failures": entry.failures,
        }
        for entry in history.set_aside
        if is_active(entry, now)
    ]


def without_success(history: HistoryFile, vmid: int) -> HistoryFile:
    """The history after a guest has arrived somewhere."""
    kept = tuple(entry for entry in history.set_aside if entry.vmid != vmid)
    return history if kept == history.set_aside else replace(history, set_aside=kept)


def asked_again(history: HistoryFile, vmids: frozenset[int] | None = None, *, wholly: bool = False) -> HistoryFile:
    """The history after somebody has asked anew for these guests (None: all) to move: what a person cancelled is tried again.

    `wholly`: so is all else that failed, as whoever asks a second time has put it right; but for a lock, which everybody sees.
    """
    kept = tuple(
        entry
        for entry in history.set_aside
        if (vmids is not None and entry.vmid not in vmids)
        or (entry.failure is not FailureClass.CANCELLED and not (wholly and entry.until is not None))
    )
    return history if kept == history.set_aside else replace(history, set_aside=kept)


LOCK_TEXT = "a migration has left its lock on the guest"


def with_left_lock(history: HistoryFile, guest: Guest) -> HistoryFile:
    """The history with a guest on which a migration left its lock: it stays as it is until somebody takes the lock off."""
    others = [entry for entry in history.set_aside if (entry.vmid, entry.target) != (guest.vmid, None)]
    return _with_entries(history, [*others, SetAside(guest.vmid, None, 1, LOCK_TEXT, FailureClass.LOCKED, None, guest.node)])


def has_left_lock(history: HistoryFile, vmid: int) -> bool:
    """True when that is known of the guest."""
    return any(entry.vmid == vmid and entry.failure is FailureClass.LOCKED and entry.until is None for entry in history.set_aside)


def reconsidered(history: HistoryFile, snapshot: Snapshot, digests: Mapping[int, str]) -> tuple[HistoryFile, dict[int, str]]:
    """The history without those for whom somebody has done something, and what that was, by VMID.

    A guest that is gone, is elsewhere, or whose configuration is not what it was at its failure is tried like any other.

    Shape:   `digests` are of the configurations as far as they could be read.
    """
    kept: list[SetAside] = []
    released: dict[int, str] = {}
    for entry in history.set_aside:
        guest, digest = snapshot.guest(entry.vmid), digests.get(entry.vmid, "")
        if guest is None:
            if entry.vmid in snapshot.unseen:
                kept.append(entry)
        elif entry.failure is FailureClass.LOCKED and entry.until is None:
            if guest.lock is None:
                released[entry.vmid] = "its lock is gone"
            else:
                kept.append(entry)
        elif entry.node and guest.node != entry.node:
            released[entry.vmid] = f"it is on {guest.node} now"
        elif entry.config and digest and digest != entry.config:
            released[entry.vmid] = "its configuration was changed"
        elif digest and not entry.config:
            kept.append(replace(entry, config=digest))
        else:
            kept.append(entry)
    result = history if tuple(kept) == history.set_aside else replace(history, set_aside=tuple(kept))
    return result, released
