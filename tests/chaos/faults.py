# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes wrong, and what people and guests do meanwhile: a table of kinds, each with how often it is drawn.

A kind counts as a hit only when there was something to be hit: a leader that worked, a request that was under way.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.core.cluster import GIB, GuestType
from agent.core.documents import LEADER_SCHEMA, REQUEST_SCHEMA, LeaderFile, LeaderState, RequestFile, render
from agent.ports import InDoubtError, PermanentError, RefusedError
from agent.sim.inventory import SimGuest, SimNode
from agent.sim.migrations import Failure, FailureKind
from agent.sim.tasks import LogRing
from tests.chaos.machine import Point, Slowness, Trap
from tests.fire.judge import LATEST_S

if TYPE_CHECKING:
    from tests.chaos.day import Day

LONGER_THAN_THE_LEASE = (70.0, 400.0)
TRAP_S = 1800.0
AT_A_REQUEST = (Point.WRITTEN, Point.BEFORE_CHECK, Point.CHECKED, Point.POSTED)

Fault = Callable[["Day"], None]
FAULTS: dict[str, tuple[float, Fault]] = {}
LOADS: dict[str, tuple[float, Fault]] = {}


def _kind(table: dict[str, tuple[float, Fault]], name: str, weight: float) -> Callable[[Fault], Fault]:
    def put(fault: Fault) -> Fault:
        table[name] = (weight, fault)
        return fault

    return put


def draw(rng: random.Random, table: dict[str, tuple[float, Fault]]) -> str:
    """One kind, by weight."""
    return rng.choices(list(table), [weight for weight, _ in table.values()])[0]


# processes


@_kind(FAULTS, "leader killed", 3)
def _kill_leader(day: Day) -> None:
    name = day.leader()
    if name is not None and day.machine.is_at_work(name):
        day.hit("leader killed")
        day.machine.kill(name, day.rng.choice((5.0, 5.0, 40.0, 300.0)))


@_kind(FAULTS, "follower killed", 1)
def _kill_follower(day: Day) -> None:
    name = day.follower()
    if name is not None:
        day.hit("follower killed")
        day.machine.kill(name, day.rng.choice((5.0, 60.0)))


@_kind(FAULTS, "leader frozen beyond its lease", 3)
def _freeze_leader(day: Day) -> None:
    name = day.leader()
    if name is not None and day.machine.is_at_work(name):
        day.hit("leader frozen beyond its lease")
        day.world.freeze_agent(name, day.rng.uniform(*LONGER_THAN_THE_LEASE))


@_kind(FAULTS, "agent frozen for a moment", 1)
def _freeze_any(day: Day) -> None:
    day.hit("agent frozen for a moment")
    day.world.freeze_agent(day.node().name, day.rng.uniform(1.0, 50.0))


@_kind(FAULTS, "leader stopped", 2)
def _stop_leader(day: Day) -> None:
    name = day.leader()
    if name is None or not day.machine.is_at_work(name):
        return
    day.hit("leader stopped")
    day.world.stop_agent(name)
    day.later(day.rng.uniform(8.0, 400.0), lambda: day.start_agent(name))


@_kind(FAULTS, "agent restarted", 1)
def _restart(day: Day) -> None:
    name = day.rng.choice([day.leader() or day.node().name, day.node().name])
    if day.machine.is_at_work(name):
        day.hit("agent restarted")
        day.world.start_agent(name)


@_kind(FAULTS, "agent reloaded", 0.5)
def _reload(day: Day) -> None:
    day.hit("agent reloaded")
    day.world.reload_agent(day.node().name)


def _trap(point: str, what: str, act: Callable[[Day, str], bool]) -> Fault:
    def put(day: Day) -> None:
        def spring(name: str) -> None:
            if act(day, name):
                day.hit(f"{what} {point}")

        day.machine.traps.append(Trap(point, day.world.now_s + TRAP_S, spring))
        if point in AT_A_REQUEST and day.rng.random() < 0.7:
            day.flag_a_node(day.rng.uniform(600.0, 3000.0))
        if point == Point.BEFORE_RMDIR:
            day.later(day.rng.uniform(1.0, 60.0), lambda: _stop_leader(day))
        if point in (Point.TAKEN, Point.BEFORE_LEADING):
            day.later(day.rng.uniform(1.0, 60.0), lambda: _kill_leader(day))

    return put


def _freeze_long(day: Day, name: str) -> bool:
    day.world.freeze_agent(name, day.rng.uniform(*LONGER_THAN_THE_LEASE))
    return True


def _freeze_short(day: Day, name: str) -> bool:
    """Not long enough for a request to be too old to go out, or to be nobody's any more."""
    day.world.freeze_agent(name, day.rng.uniform(0.5, LATEST_S / 2))
    return True


def _kill(day: Day, name: str) -> bool:
    day.machine.kill(name, day.rng.choice((5.0, 5.0, 30.0, 200.0)))
    return True


def _power_off(day: Day, name: str) -> bool:
    return day.power_off(name, day.rng.uniform(60.0, 900.0))


def _cut(day: Day, name: str) -> bool:
    return day.cut(name, day.rng.uniform(20.0, 600.0))


def _hang(day: Day, name: str) -> bool:
    day.world.hang_pmxcfs(name, day.rng.uniform(10.0, 200.0))
    return True


def _take_lock_away(day: Day, name: str) -> bool:
    return day.remove_lock()


for _point, _what, _act, _weight in (
    (Point.BEFORE_CHECK, "frozen beyond its lease", _freeze_long, 2.0),
    (Point.BEFORE_CHECK, "killed", _kill, 1.0),
    (Point.BEFORE_CHECK, "lock removed by hand", _take_lock_away, 1.5),
    (Point.BEFORE_CHECK, "cut off", _cut, 1.0),
    (Point.BEFORE_CHECK, "pmxcfs hangs", _hang, 1.0),
    (Point.CHECKED, "frozen for a moment", _freeze_short, 1.0),
    (Point.CHECKED, "frozen beyond its lease", _freeze_long, 1.0),
    (Point.CHECKED, "lock removed by hand", _take_lock_away, 0.7),
    (Point.CHECKED, "killed", _kill, 1.0),
    (Point.POSTED, "frozen beyond its lease", _freeze_long, 1.0),
    (Point.POSTED, "killed", _kill, 1.5),
    (Point.POSTED, "its node dies", _power_off, 1.0),
    (Point.WRITTEN, "killed", _kill, 1.5),
    (Point.WRITTEN, "frozen beyond its lease", _freeze_long, 1.0),
    (Point.WRITTEN, "its node dies", _power_off, 0.7),
    (Point.BEFORE_RMDIR, "frozen beyond its lease", _freeze_long, 2.0),
    (Point.BEFORE_RMDIR, "killed", _kill, 0.7),
    (Point.RENEWED, "killed", _kill, 0.5),
    (Point.RENEWED, "cut off", _cut, 0.7),
    (Point.TAKEN, "killed", _kill, 0.7),
    (Point.TAKEN, "frozen beyond its lease", _freeze_long, 0.7),
    (Point.BEFORE_LEADING, "frozen beyond its lease", _freeze_long, 0.7),
    (Point.BEFORE_LEADING, "pmxcfs hangs", _hang, 0.7),
):
    _kind(FAULTS, f"{_what} {_point}", _weight)(_trap(_point, _what, _act))


# nodes and the network


@_kind(FAULTS, "leader's node dies", 1.5)
def _leaders_node_dies(day: Day) -> None:
    name = day.leader()
    if name is not None and day.can_lose(name):
        day.hit("leader's node dies")
        day.power_off(name, day.rng.choice((90.0, 400.0, 2000.0)))


@_kind(FAULTS, "node dies", 1)
def _node_dies(day: Day) -> None:
    name = day.node().name
    if day.can_lose(name):
        day.hit("node dies")
        day.power_off(name, day.rng.uniform(30.0, 2000.0))


@_kind(FAULTS, "node flaps", 0.5)
def _node_flaps(day: Day) -> None:
    name = day.node().name
    if day.can_lose(name):
        day.hit("node flaps")
        day.power_off(name, 40.0)
        day.later(100.0, lambda: day.power_off(name, 40.0))
        day.later(220.0, lambda: day.power_off(name, 60.0))


@_kind(FAULTS, "leader cut off", 2)
def _cut_leader(day: Day) -> None:
    name = day.leader()
    if name is not None and day.is_whole():
        day.hit("leader cut off")
        day.cut(name, day.rng.choice((30.0, 100.0, 200.0, 900.0)))


@_kind(FAULTS, "nobody quorate", 1)
def _split(day: Day) -> None:
    if not day.is_whole():
        return
    day.hit("nobody quorate")
    names = sorted(day.world.nodes)
    day.rng.shuffle(names)
    half = (len(names) + 1) // 2
    day.world.split(names[:half])
    if len(names) % 2:  # one more goes alone, so that no part has more than half
        day.world.cut_node(names[0])
    day.later(day.rng.choice((20.0, 150.0, 600.0)), day.heal_network)


@_kind(FAULTS, "clock set", 2)
def _clock(day: Day) -> None:
    who = day.rng.choice((day.leader(), min(day.world.nodes), day.node().name)) or day.node().name
    day.hit("clock set")
    by_s = day.rng.choice((-1, 1)) * day.rng.choice((2.0, 40.0, 130.0, 700.0, 7200.0))
    day.set_clock(who, by_s)
    day.later(day.rng.uniform(60.0, 4000.0), lambda: day.set_clock(who, -by_s))


@_kind(FAULTS, "disk full", 0.5)
def _disk(day: Day) -> None:
    name = day.rng.choice((day.leader() or day.node().name, day.node().name))
    day.hit("disk full")
    day.world.fill_disk(name)
    day.later(day.rng.uniform(60.0, 1500.0), lambda: day.world.fill_disk(name, full=False))


@_kind(FAULTS, "statistics stop", 0.5)
def _statistics(day: Day) -> None:
    name = day.node().name
    day.hit("statistics stop")
    day.world.stop_statistics(name)
    day.later(day.rng.uniform(30.0, 900.0), lambda: day.world.stop_statistics(name, stopped=False))


# /etc/pve


@_kind(FAULTS, "pmxcfs restarts", 2)
def _restart_pmxcfs(day: Day) -> None:
    name = day.rng.choice((day.leader() or day.node().name, day.node().name))
    if day.world.nodes[name].online and day.world.nodes[name].mounted:
        day.hit("pmxcfs restarts")
        day.world.restart_pmxcfs(name, day.rng.choice((2.0, 15.0, 90.0)))


@_kind(FAULTS, "pmxcfs hangs", 2)
def _hang_pmxcfs(day: Day) -> None:
    name = day.rng.choice((day.leader() or day.node().name, day.node().name))
    day.hit("pmxcfs hangs")
    day.world.hang_pmxcfs(name, day.rng.choice((5.0, 30.0, 70.0, 250.0)))


@_kind(FAULTS, "a write fails", 1.5)
def _fail_write(day: Day) -> None:
    name = day.leader() or day.node().name
    for _ in range(day.rng.randint(1, 4)):
        day.world.fail_next_write(name, applied=day.rng.random() < 0.5)
    day.hit("a write fails")


@_kind(FAULTS, "lock removed by hand", 1.5)
def _rmdir(day: Day) -> None:
    if day.world.lock_holder() is not None:
        day.hit("lock removed by hand")
        day.remove_lock()


@_kind(FAULTS, "leader.json deleted", 1)
def _delete_leader(day: Day) -> None:
    day.hit("leader.json deleted")
    day.world.drop_file("proxlb/leader.json")


@_kind(FAULTS, "leader.json torn", 1)
def _tear_leader(day: Day) -> None:
    text = day.world.main.files.get("proxlb/leader.json")
    if text:
        day.hit("leader.json torn")
        day.world.put_file("proxlb/leader.json", text[: day.rng.randrange(len(text))])


@_kind(FAULTS, "leader.json from the future", 1)
def _future_leader(day: Day) -> None:
    node = day.rng.choice([*sorted(day.world.nodes), "pve99"])
    state = day.rng.choice((LeaderState.LEADING, LeaderState.RELEASED))
    if state is LeaderState.RELEASED and day.world.lock_holder() is not None:
        state = LeaderState.LEADING  # whoever writes `released` while somebody leads says that nobody does: nothing can hold then
    day.epochs += 1000
    leader = LeaderFile(LEADER_SCHEMA, node, "somebody", day.epochs, state, 4e9, "99.0")
    day.hit("leader.json from the future")
    day.world.put_file("proxlb/leader.json", render(leader))


@_kind(FAULTS, "cluster log lost", 1)
def _lose_log(day: Day) -> None:
    day.hit("cluster log lost")
    day.world.append_log(day.node().name, "authentication failure; rhost=192.0.2.7", day.rng.choice((20, 60, 300)))


@_kind(FAULTS, "cluster log repeated", 1)
def _repeat_log(day: Day) -> None:
    ring = day.world.main.ring
    entries = list(ring.entries)
    if len(entries) > 5:
        day.hit("cluster log repeated")
        again = [replace(entry, uid=entry.uid) for entry in entries[-day.rng.randint(5, 40) :]]
        day.world.main.ring = LogRing([*entries, *again])


@_kind(FAULTS, "cluster log reordered", 1)
def _reorder_log(day: Day) -> None:
    entries = list(day.world.main.ring.entries)
    if len(entries) > 5:
        day.hit("cluster log reordered")
        tail = entries[-30:]
        day.rng.shuffle(tail)
        day.world.main.ring = LogRing([*entries[:-30], *tail])


@_kind(FAULTS, "cluster log broken", 1)
def _break_log(day: Day) -> None:
    day.hit("cluster log broken")
    for text in ('end task UPID:"}, {"uid": 1', "starting task UPID:pve01:0:0:0:qmstart:100:root@pam:\\", "\\u00e4 " * 50, "end task "):
        day.world.append_log(day.node().name, text)


# the API and migrations


@_kind(FAULTS, "API away", 1)
def _cut_api(day: Day) -> None:
    name = day.rng.choice((day.leader() or day.node().name, day.node().name))
    day.hit("API away")
    day.world.cut_api(name)
    day.later(day.rng.choice((20.0, 120.0, 500.0)), lambda: day.world.cut_api(name, cut=False))


@_kind(FAULTS, "API errors", 1.5)
def _fail_api(day: Day) -> None:
    day.hit("API errors")
    day.world.fail_api_calls(day.leader() or day.node().name, day.rng.randint(1, 12))


@_kind(FAULTS, "API slow", 2)
def _slow_api(day: Day) -> None:
    name = day.leader() or day.node().name
    day.hit("API slow")
    before_s, after_s = day.rng.choice(((0.0, 8.0), (3.0, 3.0), (10.0, 2.0), (0.5, 29.0), (10.0, 25.0), (10.0, 29.0)))
    day.machine.slow[name] = Slowness(day.world.now_s + day.rng.uniform(60.0, 900.0), before_s, after_s)


def _lose_tasks(day: Day, name: str) -> bool:
    """Of what is under way PVE's task list tells nothing any more."""
    known = [migration for migration in day.world.migrations.under_way.values() if migration.failure is None]
    for migration in known:
        migration.failure = Failure(FailureKind.FORGOTTEN)
    return bool(known)


_kind(FAULTS, f"tasks lost {Point.POSTED}", 1)(_trap(Point.POSTED, "tasks lost", _lose_tasks))


def _fail_migration(kind: FailureKind) -> Fault:
    def put(day: Day) -> None:
        day.world.fail_next_migration(kind, times=day.rng.choice((1, 1, 2)))
        if day.rng.random() < 0.5:
            day.flag_a_node(day.rng.uniform(600.0, 3000.0))

    return put


for _failure in FailureKind:
    _kind(FAULTS, f"migration {_failure.value}", 1.6 if "lost" in _failure.value else 0.8)(_fail_migration(_failure))


@_kind(FAULTS, "HA manager hangs", 0.5)
def _hang_ha(day: Day) -> None:
    day.hit("HA manager hangs")
    day.world.hang_ha_manager()
    day.later(day.rng.uniform(60.0, 600.0), lambda: day.world.hang_ha_manager(hanging=False))


@_kind(FAULTS, "settings broken", 0.7)
def _break_settings(day: Day) -> None:
    day.hit("settings broken")
    day.machine.settings.error = PermanentError("config.yaml: balance.cpuu: no such setting; cpu is meant?")
    day.later(day.rng.uniform(30.0, 1200.0), lambda: setattr(day.machine.settings, "error", None))


# what people and guests do


@_kind(LOADS, "guest started or stopped", 6)
def _toggle_guest(day: Day) -> None:
    guest = day.guest()
    if guest is not None:
        day.hit("guest started or stopped")
        day.toggle(guest, inside=day.rng.random() < 0.3)


@_kind(LOADS, "burst of hook events", 1)
def _burst(day: Day) -> None:
    name, rng = day.node().name, day.rng
    day.hit("burst of hook events")
    for number in range(rng.choice((30, 300, 1000))):
        junk = rng.choice(("x", "101.post-start.", "0101.post-stop", "9" * 80 + ".post-start", "101.mid-start"))
        day.leave_event(name, junk if number % 10 == 0 else f"{rng.randrange(5000, 6500)}.{rng.choice(('post-start', 'post-stop'))}")


@_kind(LOADS, "boot storm", 0.7)
def _boot_storm(day: Day) -> None:
    stopped = [guest for guest in day.world.guests.values() if guest.status == "stopped" and not guest.template]
    for guest in stopped:
        day.touch(guest.vmid)
        day.start(guest)
    if len(stopped) > 2:
        day.hit("boot storm")


@_kind(LOADS, "load changes", 5)
def _load(day: Day) -> None:
    guest = day.guest()
    if guest is None:
        return
    day.hit("load changes")
    day.set_load(guest, day.rng.uniform(0.05, 1.0), day.rng.uniform(0.2, 0.95))


@_kind(LOADS, "node becomes hot", 2)
def _heat(day: Day) -> None:
    """The guests of a node want more than is good for it."""
    node = day.node()
    guests = [guest for guest in day.world.residents(node.name).values() if guest.status == "running"]
    if guests:
        day.hit("node becomes hot")
    for guest in sorted(guests, key=lambda guest: guest.vmid):
        day.set_load(guest, day.rng.uniform(0.7, 1.0), day.rng.uniform(0.7, 0.95))


@_kind(LOADS, "flag set", 4)
def _flag(day: Day) -> None:
    day.flag_a_node(day.rng.choice((3.0, 60.0, 900.0, 3600.0)))


@_kind(LOADS, "flag for a node that is not there", 0.5)
def _foreign_flag(day: Day) -> None:
    day.hit("flag for a node that is not there")
    day.world.set_flag("pve77", "who?")
    day.later(day.rng.uniform(10.0, 600.0), lambda: day.world.clear_flag("pve77"))


@_kind(LOADS, "flag on the node itself", 1)
def _local_flag(day: Day) -> None:
    node = day.node()
    if day.flags_left() > 0:
        day.hit("flag on the node itself")
        day.flagged[node.name] = day.world.now_s
        day.world.set_local_flag(node.name, "by hand")
        day.later(day.rng.uniform(100.0, 2000.0), lambda: day.clear_flags(node.name))


@_kind(LOADS, "maintenance asked of the HA manager", 0.7)
def _ha_maintenance(day: Day) -> None:
    node = day.node()
    if day.flags_left() > 0:
        day.hit("maintenance asked of the HA manager")
        day.flagged[node.name] = day.world.now_s
        day.world.request_ha_maintenance(node.name)
        day.later(day.rng.uniform(100.0, 2000.0), lambda: day.clear_flags(node.name))


@_kind(LOADS, "person migrates a guest", 3)
def _person(day: Day) -> None:
    guest = day.guest()
    if guest is None or not day.world.nodes[guest.node].online:
        return
    with contextlib.suppress(RefusedError, InDoubtError):
        day.world.migrate_by_person(guest.vmid, day.node().name)
        day.touch(guest.vmid)
        day.hit("person migrates a guest")


@_kind(LOADS, "backup", 2)
def _backup(day: Day) -> None:
    guest = day.guest()
    if guest is not None and guest.lock is None and guest.vmid not in day.world.migrations.under_way:
        day.hit("backup")
        day.world.back_up(guest.vmid, day.rng.uniform(20.0, 900.0))


@_kind(LOADS, "settings edited", 1)
def _edit_settings(day: Day) -> None:
    day.hit("settings edited")
    day.edit_settings()


@_kind(LOADS, "balancing asked for", 1.5)
def _request(day: Day) -> None:
    name = day.node().name
    if day.machine.is_at_work(name) and day.world.nodes[name].online:
        day.requests += 1
        force = day.rng.random() < 0.3
        if force:
            day.forced_s = day.world.now_s
        text = render(RequestFile(REQUEST_SCHEMA, "balance", force, "root@pam"))
        day.world.request(name, f"r{day.requests}", text)
        day.hit("balancing asked for")


@_kind(LOADS, "tags edited", 1.5)
def _tags(day: Day) -> None:
    guest, rng = day.guest(), day.rng
    if guest is None:
        return
    day.hit("tags edited")
    tag = rng.choice(("plb_affinity_x", "plb_anti_affinity_y", f"plb_pin_{day.node().name}", "plb_ignore", "web;db", ""))
    day.touch(guest.vmid)
    day.tagged[guest.vmid] = day.world.now_s
    day.world.set_tags(guest.vmid, (tag,) if tag else ())


@_kind(LOADS, "guest made or destroyed", 1)
def _make(day: Day) -> None:
    rng, world = day.rng, day.world
    if rng.random() < 0.6 or len(world.guests) < 6:
        vmid = max(world.guests) + 1
        size = rng.choice(((1, 2), (2, 4), (4, 8)))
        guest = SimGuest(
            vmid,
            day.node().name,
            type=rng.choice((GuestType.QEMU, GuestType.QEMU, GuestType.LXC)),
            cores=float(size[0]),
            memory_bytes=size[1] * GIB,
            used_cores=rng.uniform(0.1, 0.9) * size[0],
            used_memory_bytes=int(rng.uniform(0.3, 0.9) * size[1] * GIB),
            status="stopped",
            hook=True,
            since_s=world.now_s,
        )
        day.touch(vmid)
        world.add_guest(guest)
        if world.nodes[guest.node].online and world.nodes[guest.node].partition.quorate:
            day.start(guest)
    else:
        gone = rng.choice([vmid for vmid in sorted(world.guests) if vmid not in world.migrations.under_way])
        day.touch(gone)
        world.stop_guest(gone)
        world.remove_guest(gone)
    day.hit("guest made or destroyed")


@_kind(LOADS, "guest put under HA or taken away", 0.7)
def _ha_guest(day: Day) -> None:
    guest = day.guest()
    if guest is not None and guest.vmid not in day.world.migrations.under_way and guest.status == "running":
        day.touch(guest.vmid)
        day.world.set_ha(guest.vmid, None if guest.ha is not None else "started")
        day.hit("guest put under HA or taken away")


def online(nodes: dict[str, SimNode]) -> list[SimNode]:
    """The nodes that are up, by name."""
    return [node for _, node in sorted(nodes.items()) if node.online]
