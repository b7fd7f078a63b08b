# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a guest moves and why it does not: the words of journal, JSON and man page."""

from __future__ import annotations

from enum import StrEnum


class MoveReason(StrEnum):
    """Why a guest moves. The order is the rank: what stands first is served first."""

    MAINTENANCE = "maintenance"
    PIN = "pin"
    AFFINITY = "affinity"
    ANTI_AFFINITY = "anti-affinity"
    POOL_RULE = "pool-rule"
    ROOM = "room"  # for a guest that must move and fits nowhere else
    OVERLOAD = "overload"
    SPREAD = "spread"
    RETURN_HOME = "return-home"
    MANUAL = "manual"


LOAD_REASONS = frozenset({MoveReason.OVERLOAD, MoveReason.SPREAD, MoveReason.MANUAL})
RULE_REASONS = frozenset({MoveReason.PIN, MoveReason.AFFINITY, MoveReason.ANTI_AFFINITY, MoveReason.POOL_RULE, MoveReason.ROOM})


class RefusalReason(StrEnum):
    """Why a guest stays, or why a node is no target for it. `MEANING` has a line for each."""

    # the guest itself
    IGNORED = "ignored"
    HA_BALANCED = "ha-balanced"
    HA_BUSY = "ha-busy"
    HA_EMPTIES = "ha-empties"
    TEMPLATE = "template"
    NOT_RUNNING = "not-running"
    STATE = "state"
    LOCKED = "locked"
    BUSY = "busy"
    CONTAINER = "container"
    COOLDOWN = "cooldown"
    OTHER_BALANCER = "other-balancer"
    SET_ASIDE = "set-aside"
    BACKUP_DUE = "backup-due"
    LOAD_UNKNOWN = "load-unknown"
    LOCAL_DISK = "local-disk"
    LOCAL_IMAGE = "local-image"
    LOCAL_DEVICE = "local-device"
    ARGS = "args"
    CPU_AFFINITY = "cpu-affinity"
    PRECONDITION = "precondition"
    UNANSWERED = "unanswered"
    NODE_SHUTS_DOWN = "node-shuts-down"
    # a node as a target
    SAME_NODE = "same-node"
    NODE_OFFLINE = "node-offline"
    NODE_MAINTENANCE = "node-maintenance"
    NODE_IGNORED = "node-ignored"
    NODE_STARTING = "node-starting"
    NODE_SILENT = "node-silent"
    NODE_STALE = "node-stale"
    NODE_BACKUP = "node-backup"
    NODE_REFUSED = "node-refused"
    NODE_FAILED = "node-failed"
    NODE_UNKNOWN = "node-unknown"
    NODE_OLDER = "node-older"
    CPU_UNLIKE = "cpu-unlike"
    STORAGE_MISSING = "storage-missing"
    NO_DISK_ROOM = "no-disk-room"
    BRIDGE_MISSING = "bridge-missing"
    DEVICE_MISSING = "device-missing"
    HOOKSCRIPT_MISSING = "hookscript-missing"
    NOT_REPLICATED = "not-replicated"
    NO_MEMORY = "no-memory"
    NO_CPU = "no-cpu"
    OVER_THRESHOLD = "over-threshold"
    OVER_ASSIGNED = "over-assigned"
    PINNED = "pinned"
    AFFINITY = "affinity"
    ANTI_AFFINITY = "anti-affinity"
    # the plan as a whole
    NO_GAIN = "no-gain"
    NO_TARGET = "no-target"
    NO_ORDER = "no-order"
    CONFLICT = "conflict"


MEANING: dict[RefusalReason, str] = {
    RefusalReason.IGNORED: "a plb_ignore tag or guests.ignore keeps the guest where it is",
    RefusalReason.HA_BALANCED: "the cluster balances its HA guests itself, this one among them; it counts as load only",
    RefusalReason.HA_BUSY: "the HA manager is at work on the guest, will move it by itself, or takes no requests for it",
    RefusalReason.HA_EMPTIES: "the HA manager empties the node, and takes the guest along by itself",
    RefusalReason.TEMPLATE: "templates do not move",
    RefusalReason.NOT_RUNNING: "the guest does not run",
    RefusalReason.STATE: "the guest is paused, suspended, in prelaunch or in an I/O error",
    RefusalReason.LOCKED: "PVE holds a lock on the guest",
    RefusalReason.BUSY: "a task of the guest, or a bulk action that may take it in, is running",
    RefusalReason.CONTAINER: "containers restart when they move, and the setting guests.containers forbids it here",
    RefusalReason.COOLDOWN: "the guest moved less than balance.guest_cooldown_s ago",
    RefusalReason.OTHER_BALANCER: "another balancer moves the guest, and has moved it within the last hour",
    RefusalReason.SET_ASIDE: "the guest failed to migrate and is left alone for a while",
    RefusalReason.BACKUP_DUE: "a scheduled backup of the guest is about to begin",
    RefusalReason.LOAD_UNKNOWN: "PVE reports no usable load for the guest",
    RefusalReason.LOCAL_DISK: "the guest has disks on local storage, and guests.local_disks does not let it take them along",
    RefusalReason.LOCAL_IMAGE: "the guest has an image on local storage, or its node's own drive, in a CD drive",
    RefusalReason.LOCAL_DEVICE: "the guest uses devices of its node",
    RefusalReason.ARGS: "the guest has arguments for QEMU of its own, which may name things of its node",
    RefusalReason.CPU_AFFINITY: "the guest is bound to cores of its node",
    RefusalReason.PRECONDITION: "PVE's own check of the migration says no",
    RefusalReason.UNANSWERED: "Proxmox VE did not answer when asked whether the guest may migrate, and is asked again",
    RefusalReason.NODE_SHUTS_DOWN: "the guest's node shuts down, and the guest with it",
    RefusalReason.SAME_NODE: "the guest is there already",
    RefusalReason.NODE_OFFLINE: "the node is offline",
    RefusalReason.NODE_MAINTENANCE: "the node is in maintenance",
    RefusalReason.NODE_IGNORED: "nodes.ignore keeps the node out",
    RefusalReason.NODE_STARTING: "the node has been up for less than two minutes, or still starts its guests",
    RefusalReason.NODE_SILENT: "the node's agent has not reported itself",
    RefusalReason.NODE_STALE: "the node's load is unknown or older than a minute",
    RefusalReason.NODE_BACKUP: "a backup runs on the node, or is about to begin there",
    RefusalReason.NODE_REFUSED: "PVE does not allow the guest on the node",
    RefusalReason.NODE_FAILED: "the guest failed to migrate to the node, and does not go there for a while",
    RefusalReason.NODE_UNKNOWN: "whether the node has what the guest needs cannot be seen",
    RefusalReason.NODE_OLDER: "the node's QEMU or Proxmox VE is older than what the guest runs on",
    RefusalReason.CPU_UNLIKE: "the guest uses its node's own CPU type (cpu: host, max or custom), and the node's CPU is another",
    RefusalReason.STORAGE_MISSING: "the node has not all storages of the guest",
    RefusalReason.NO_DISK_ROOM: "the disks that the guest takes along do not fit on the node's storage",
    RefusalReason.BRIDGE_MISSING: "the node has not all bridges of the guest",
    RefusalReason.DEVICE_MISSING: "the node has not all mapped devices of the guest",
    RefusalReason.HOOKSCRIPT_MISSING: "the node has not the guest's hookscript, without which it cannot start there",
    RefusalReason.NOT_REPLICATED: "the guest is replicated, and not to the node",
    RefusalReason.NO_MEMORY: "the guest and all that is on its way do not fit into the node's memory",
    RefusalReason.NO_CPU: "the guest and all that is on its way need more cores than the node has",
    RefusalReason.OVER_THRESHOLD: "the move would put the node over a threshold",
    RefusalReason.OVER_ASSIGNED: "the node's guests would have more memory configured than balance.assigned_memory_cap_percent allows",
    RefusalReason.PINNED: "a tag, a pool or an HA rule keeps the guest on other nodes",
    RefusalReason.AFFINITY: "guests that a tag, a pool or an HA rule keeps together would be split",
    RefusalReason.ANTI_AFFINITY: "a guest that a tag, a pool or an HA rule keeps apart from this one is on the node",
    RefusalReason.NO_GAIN: "no move of the guest lowers the imbalance by more than it costs",
    RefusalReason.NO_TARGET: "no node can take the guest",
    RefusalReason.NO_ORDER: "no order of the moves keeps every node below its limits",
    RefusalReason.CONFLICT: "the guest's rules contradict each other",
}
