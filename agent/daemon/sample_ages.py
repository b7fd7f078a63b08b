# SPDX-License-Identifier: GPL-3.0-or-later
"""How old the loads of nodes are, without trusting the nodes' clocks."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agent.core.cluster import Snapshot
from agent.core.statistics import Statistics
from agent.daemon.inputs import Now


@dataclass(frozen=True, slots=True)
class _Sampled:
    """A node's sample by its own time, since when it has been seen, and, where it was seen to come, the last look without it."""

    at_s: int
    since_s: float
    not_before_s: float | None


class SampleAges:
    """Since when each node's sample has been seen."""

    def __init__(self) -> None:
        self._samples: dict[str, _Sampled] = {}
        self._looked_s: float | None = None

    def applied(self, snapshot: Snapshot, statistics: Statistics, now: Now) -> Snapshot:
        """The snapshot with ages that do not rest on the clocks of other nodes alone: what is new at this look is no older than the
        look before, and what has not changed since is as old as that at least."""
        before_s, self._looked_s = self._looked_s, now.boot_s
        samples: dict[str, _Sampled] = {}
        for sample in statistics.nodes:
            known = self._samples.get(sample.name)
            if known is None or known.at_s != sample.at_s:
                known = _Sampled(sample.at_s, now.boot_s, None if known is None else before_s)
            samples[sample.name] = known
        self._samples = samples
        nodes = []
        for node in snapshot.nodes:
            seen, age_s = samples.get(node.name), node.sample_age_s
            if seen is not None and age_s is not None:
                newest_s = age_s if seen.not_before_s is None else min(age_s, now.boot_s - seen.not_before_s)
                nodes.append(replace(node, sample_age_s=max(newest_s, now.boot_s - seen.since_s)))
            else:
                nodes.append(node)
        return replace(snapshot, nodes=tuple(nodes))
