# SPDX-License-Identifier: GPL-3.0-or-later
"""From PVE's rows to a plan, with rows that are broken: the plan has no wrong move, and its JSON no NaN."""

from __future__ import annotations

import importlib
import json
import pkgutil
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import agent.adapters.pve
from agent.commands.plan import plan_document
from agent.core.cluster import Snapshot
from agent.core.outlook import outlook
from agent.core.planner import plan
from agent.core.question import Question
from tests.core.broken import LONG, text
from tests.core.clusters import NOW, settings, wrong_in

PLAIN = settings()
CLUSTERS = 400
JUNK = (
    None, "", "abc", "NaN", "inf", "-1", "1e400", "12", True, False, -1, 0, 1, 4, 1e18, 1e19, 1e300, -0.5, float("nan"), float("inf"),
    1 << 70, [], {}, [1], {"a": 1}, "online", "running", "pve1", "plb_pin_pve2", chr(0xD800), "\u0663",
)  # fmt: skip


def reader(name: str) -> Callable[..., Any]:
    """The function of that name, in whichever module of the adapter it is."""
    for module in pkgutil.iter_modules(agent.adapters.pve.__path__, "agent.adapters.pve."):
        found = getattr(importlib.import_module(module.name), name, None)
        if callable(found):
            return found  # type: ignore[no-any-return]
    raise LookupError(name)


def sound_rows(dice: random.Random) -> list[dict[str, object]]:
    """/cluster/resources of a small cluster, most of it on the first node."""
    names = [f"pve{i + 1}" for i in range(dice.randrange(2, 5))]
    found: list[dict[str, object]] = [
        {
            "type": "node", "id": f"node/{name}", "node": name, "status": "online", "maxcpu": 32, "maxmem": 128 << 30, "uptime": 86400,
            "cpu": 0.02, "mem": 2 << 30,
        }
        for name in names
    ]  # fmt: skip
    for vmid in range(100, 100 + dice.randrange(2, 16)):
        at, gib = min(dice.randrange(len(names)), dice.randrange(len(names))), dice.choice((1, 4, 8, 12))
        kind = dice.choice(("qemu", "qemu", "lxc"))
        found.append(
            {
                "type": kind, "id": f"{kind}/{vmid}", "vmid": vmid, "name": f"guest{vmid}", "node": names[at], "status": "running",
                "maxcpu": 4, "maxmem": gib << 30, "cpu": 0.2, "mem": (gib << 30) * 3 // 4, "uptime": 86400, "template": 0,
                "tags": dice.choice(("", "", "plb_affinity_a", "plb_anti_affinity_b;web", f"plb_pin_{names[-1]}", dice.choice(LONG))),
            }
        )  # fmt: skip
        found[at]["cpu"] = float(found[at]["cpu"]) + 0.2 * 4 / 32  # type: ignore[arg-type]
        found[at]["mem"] = int(found[at]["mem"]) + (gib << 30) * 3 // 4  # type: ignore[call-overload]
    return found


def spoilt(rows: list[dict[str, object]], dice: random.Random) -> list[object]:
    """The rows with fields left out, changed and added, and with rows that are none."""
    share = dice.choice((0.0, 0.02, 0.1, 0.4))
    result: list[object] = []
    for row in rows:
        changed = {key: dice.choice(JUNK) if dice.random() < share else value for key, value in row.items() if dice.random() >= share / 4}
        if dice.random() < share:
            changed[text(dice)] = dice.choice(JUNK)
        result.append(changed)
    return result + [dice.choice(JUNK) for _ in range(dice.randrange(3) if share else 0)]


def test_broken_rows_give_a_plan_without_a_wrong_move_and_json_without_nan() -> None:
    rows_of, nodes_of, guests_of, tasks_of = (reader(name) for name in ("rows", "nodes", "guests", "tasks"))
    seen: Counter[str] = Counter()
    for seed in range(CLUSTERS):
        dice = random.Random(seed)
        rows = rows_of(spoilt(sound_rows(dice), dice), "cluster/resources")
        tasks = rows_of(
            [{"upid": dice.choice(JUNK), "endtime": dice.choice(JUNK), "status": dice.choice(JUNK)} for _ in range(3)], "cluster/tasks"
        )
        snapshot = Snapshot(NOW, nodes_of(rows), guests_of(rows), tasks_of(tasks))
        question = Question(force=seed % 2 == 0)
        result = plan(snapshot, PLAIN, question)
        assert wrong_in(snapshot, result, PLAIN, question) == [], seed
        document = json.dumps(plan_document(result, outlook(snapshot, PLAIN, question, result)), allow_nan=False)
        assert json.loads(document)["schema"] == "proxlb-agent/plan/1"
        seen["moves"] += bool(result.moves)
        seen["refused"] += bool(result.refused)
        seen["unknown loads"] += any(guest.cpu_used_cores is None for guest in snapshot.guests)
    print(seen)
    assert min(seen["moves"], seen["refused"], seen["unknown loads"]) > CLUSTERS / 10
