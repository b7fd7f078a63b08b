# SPDX-License-Identifier: GPL-3.0-or-later
"""A scenario's files are read strictly: what is misspelt is named, never skipped."""

from __future__ import annotations

import pytest

from agent.core.cluster import GIB, GuestType
from agent.core.json_types import Json, JsonObject
from agent.sim.cluster_file import ScenarioError, read_cluster
from agent.sim.scenario_events import VERBS, read_events
from agent.sim.world import World

NODES: JsonObject = {"pve1": {"cores": 16, "memory_gib": 64}, "pve2": {"cores": 16, "memory_gib": 64, "uptime_s": 30}}
CLUSTER: JsonObject = {
    "nodes": NODES,
    "guests": [
        {
            "vmid": 101,
            "name": "web1",
            "node": "pve1",
            "cores": 4,
            "memory_gib": 8,
            "used_cores": 1.5,
            "used_memory_gib": 6,
            "tags": ["a"],
        },
        {"vmid": 102, "node": "pve2", "type": "lxc", "status": "stopped", "hook": True},
    ],
    "files": {"proxlb/history.json": "{}"},
    "flags": {"pve2": "new disks"},
}
ARGUMENTS: dict[str, Json] = {
    "vmid": 101, "node": "pve1", "nodes": ["pve1"], "target": "pve2", "for_s": 5, "by_s": -3, "status": "paused", "tags": ["x"],
    "how": "half-way", "calls": 2, "id": "a1", "text": "t", "name": "101.post-start", "kind": "vzdump", "path": "proxlb/x",
}  # fmt: skip


def test_a_cluster_is_what_the_file_says() -> None:
    world = read_cluster(CLUSTER)
    guest = world.guests[101]
    assert (guest.name, guest.cores, guest.memory_bytes, guest.used_cores, guest.used_memory_bytes) == ("web1", 4.0, 8 * GIB, 1.5, 6 * GIB)
    assert guest.tags == ("a",)
    assert (world.guests[102].type, world.guests[102].status, world.guests[102].used_cores) == (GuestType.LXC, "stopped", 0.5)
    assert world.nodes["pve2"].boottime_s(0.0) == 30.0
    assert world.main.files == {"proxlb/history.json": "{}", "proxlb/maintenance/pve2": "new disks"}


def test_a_cluster_may_be_made_up() -> None:
    world = read_cluster({"generate": {"seed": 1, "nodes": 4, "guests": 40, "shape": "zipf", "hook": True}})
    assert (len(world.nodes), len(world.guests)) == (4, 40)
    assert all(guest.hook for guest in world.guests.values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nodez": {}}, "nodez"),
        ({"nodes": {"pve1": {"cores": 16, "memory": 64}}}, "memory"),
        ({"guests": [{"vmid": 101, "node": "pve9"}]}, "there is no node pve9"),
        ({"guests": [{"vmid": 101, "node": "pve1"}, {"vmid": 101, "node": "pve1"}]}, "twice"),
        ({"guests": [{"vmid": "101", "node": "pve1"}]}, "vmid"),
        ({"guests": [{"vmid": 101, "node": "pve1", "type": "vm"}]}, "type"),
        ({"generate": {"seed": 1, "nodes": 4, "guests": 40}}, "instead of nodes"),
    ],
)
def test_what_is_wrong_in_a_cluster_is_named(change: JsonObject, words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        read_cluster(CLUSTER | change)


def test_events_come_in_order_and_again_and_again() -> None:
    events = read_events(
        [
            {"at_s": 30, "do": "stop-guest", "vmid": 101},
            {"at_s": 10, "do": "append-log", "node": "pve1", "text": "x", "times": 3, "every_s": 20},
        ]
    )
    assert [(event.at_s, event.words) for event in events] == [
        (10.0, "append-log node=pve1 text=x"),
        (30.0, "stop-guest vmid=101"),
        (30.0, "append-log node=pve1 text=x"),
        (50.0, "append-log node=pve1 text=x"),
    ]
    world = read_cluster(CLUSTER)
    for event in events:
        event.act(world)
    assert world.running() == {}
    assert read_events(None) == ()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"at_s": 1, "do": "start-gest", "vmid": 1}, r"events\[0\]: do: .*start-guest is meant"),
        ({"at_s": 1, "do": "start-guest"}, "vmid"),
        ({"at_s": 1, "do": "start-guest", "vmid": 1, "node": "pve1"}, "node"),
        ({"do": "heal"}, "at_s"),
        ({"at_s": 1, "do": "heal", "times": 2}, "every_s"),
        ({"at_s": 1, "do": "fail-next-migration", "how": "badly"}, "how"),
        ("heal", "must be an object"),
    ],
)
def test_what_is_wrong_in_an_event_is_named(entry: Json, words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        read_events([entry])


def what_it_takes(verb: str) -> JsonObject:
    """Arguments for the verb, found by leaving out what it does not know and adding what it misses."""
    given: JsonObject = dict(ARGUMENTS)
    for _ in range(len(ARGUMENTS)):
        try:
            VERBS[verb](given)
        except ValueError as error:
            given = {key: value for key, value in given.items() if key not in str(error).split(":")[0].split(".")}
        else:
            break
    return given


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_can_be_done(verb: str) -> None:
    arguments = what_it_takes(verb)
    if verb == "add-guest":
        arguments = {"vmid": 555, "node": "pve1"}
    if verb == "make-ha-node-affinity":
        arguments = {"name": "prefers", "vmids": [101], "nodes": {"pve1": 2}}
    if verb == "set-storage":
        arguments = {"name": "ceph", "nodes": ["pve1", "pve2"], "used_gib": 1, "total_gib": 2}
    if verb == "set-utc-offset":
        arguments = {"utc_offset_h": 1}
    world: World = read_cluster(CLUSTER)
    if verb == "end-migration":
        world.migrate_by_person(101, "pve2")
    (event,) = read_events([{"at_s": 0, "do": verb, **arguments}])
    event.act(world)
    world.advance(100.0)
