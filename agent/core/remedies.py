# SPDX-License-Identifier: GPL-3.0-or-later
"""What an admin can do about a guest that stays on a node which is to be empty: a line for each reason that a drain can meet."""

from __future__ import annotations

from agent.core.cluster import Guest, GuestType
from agent.core.plan_types import Refusal
from agent.core.reasons import RefusalReason

_HA_STATUS = "`ha-manager status` tells how it stands"
R = RefusalReason
REMEDY: dict[RefusalReason, str] = {
    R.IGNORED: "take its plb_ignore tag off, or its number out of guests.ignore; or move it by hand",
    R.HA_BALANCED: "have the HA manager empty the node: ha-manager crm-command node-maintenance enable {node}",
    R.HA_BUSY: f"{_HA_STATUS}; one in error is freed by: ha-manager set {{sid}} --state disabled, and started afterwards",
    R.HA_EMPTIES: f"nothing but to wait for the HA manager; {_HA_STATUS}",
    R.NODE_OFFLINE: "bring the node up, or let the HA manager recover its guests",
    R.NODE_SHUTS_DOWN: "nothing: it goes down with its node",
    R.NODE_STARTING: "nothing but to wait for the node's start to be over",
    R.NOT_RUNNING: "see what it does: {tool} status {vmid} --verbose; stop it, or start it again",
    R.STATE: "resume it, or stop it: {tool} status {vmid} --verbose tells what it waits for",
    R.LOCKED: "wait for what holds the lock; one that a crash left behind goes with, on {node}: {tool} unlock {vmid}",
    R.BUSY: "wait for its task to end, or stop that",
    R.CONTAINER: "let containers restart elsewhere (guests.containers: maintenance), or on {node}: pct migrate {vmid} NODE --restart",
    R.CONFLICT: "end what contradicts itself in its rules: proxlb-agent plan names them",
    R.SET_ASIDE: "mend what its last migration failed by: proxlb-agent status names it, and when it is tried again",
    R.LOCAL_DISK: "move its disks to a shared storage, or let VMs take them along (guests.local_disks)",
    R.LOCAL_IMAGE: "eject what is in its CD drive, or put the image on a shared storage",
    R.LOCAL_DEVICE: "stop it; or take the device from it, or give it a mapped one that other nodes have, too",
    R.ARGS: "stop it; or take args out of its configuration: qm set {vmid} --delete args",
    R.CPU_AFFINITY: "stop it; or take its binding to cores off: qm set {vmid} --delete affinity",
    R.PRECONDITION: "put right what PVE names, or stop it",
    R.UNANSWERED: "nothing but to wait, as PVE is asked again; should that go on, see on {node}: systemctl status pveproxy pvedaemon",
    R.AFFINITY: "put right what keeps the guest that it stays together with, or take that rule off",
    R.NO_TARGET: "make room on another node, or loosen what keeps it from each: proxlb-agent explain {vmid}",
    R.NO_ORDER: "make room on another node for a moment, by stopping or moving a guest there",
}


def remedy_of(refusal: Refusal, guest: Guest) -> str:
    """What can be done so that the guest may leave after all."""
    tool = "qm" if guest.type is GuestType.QEMU else "pct"
    return REMEDY[refusal.reason].format(vmid=guest.vmid, node=guest.node, sid=guest.label, tool=tool)
