# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated cluster as a whole, and what people and machines do to its API, its agents, its flags and its log."""

from __future__ import annotations

from collections.abc import Iterable

from agent.core.cluster import Storage
from agent.ports import PermanentError, TemporaryError
from agent.sim.ha import HaManager
from agent.sim.inventory import AgentWish, SimGuest, SimNode
from agent.sim.migrations import Migrations
from agent.sim.nodes import Nodes
from agent.sim.tasks import ROOT


class World(Nodes):
    """A cluster in simulated time.

    Everything that happens by itself is on `timeline`; everything else is a call. Ports for a node: `agent.sim.ports`.

    Units:   seconds since the simulation began; bytes, cores.
    """

    def __init__(
        self,
        nodes: Iterable[SimNode],
        guests: Iterable[SimGuest] = (),
        *,
        pve_version: str = "9.0.10",
        bandwidth_bytes_s: float = float(500 << 20),
        storages: Iterable[Storage] = (),
    ) -> None:
        super().__init__(nodes, pve_version, storages)
        self.migrations = Migrations(self, bandwidth_bytes_s)
        self.ha = HaManager(self)
        for guest in sorted(guests, key=lambda guest: guest.vmid):
            self._take_in(guest)
        self.pmxcfs.membership_changed()
        for node in self.nodes.values():
            self.settle(node.name)

    # time

    def advance(self, to_s: float) -> None:
        """Let time pass until then."""
        self.timeline.advance(to_s)

    def set_utc_offset(self, offset_s: float) -> None:
        """The nodes' local time is so far ahead of UTC from now on: summer time begins or ends."""
        self.utc_offset_s = offset_s

    # the API, agents, flags, log

    def cut_api(self, name: str, cut: bool = True) -> None:
        """The node's API server does not answer any more, or does again."""
        self._node(name).api_cut = cut

    def hang_api(self, name: str, duration_s: float) -> None:
        """The node's API server times out for so long."""
        self._node(name).api_hangs_until_s = self.now_s + duration_s

    def fail_api_calls(self, name: str, times: int) -> None:
        """So many calls of the node's agent fail."""
        self._node(name).api_failures = times

    def stop_agent(self, name: str) -> None:
        """systemctl stop."""
        self._node(name).agent = AgentWish.STOP

    def kill_agent(self, name: str) -> None:
        """kill -9, and nobody starts it again."""
        self._node(name).agent = AgentWish.KILL

    def start_agent(self, name: str) -> None:
        """systemctl start; after a kill or a stop, or as a restart."""
        node = self._node(name)
        node.agent = AgentWish.RUN
        node.agent_starts += 1

    def reload_agent(self, name: str) -> None:
        """systemctl reload."""
        self._node(name).agent_reloads += 1

    def freeze_agent(self, name: str, duration_s: float) -> None:
        """The agent's process is stopped for so long, and goes on as if nothing had been."""
        self._node(name).agent_frozen_until_s = self.now_s + duration_s

    def put_file(self, path: str, text: str) -> None:
        """Somebody writes a file below /etc/pve (on the quorate part)."""
        self.pmxcfs.put(self.main, path, text)

    def drop_file(self, path: str) -> None:
        """Somebody removes a file below /etc/pve."""
        if self.main.files.pop(path, None) is not None:
            self.main.changes += 1

    def set_flag(self, node: str, text: str = "") -> None:
        """Somebody wants the node empty: the flag below /etc/pve."""
        self.put_file(f"proxlb/maintenance/{node}", text)

    def clear_flag(self, node: str) -> None:
        """The flag below /etc/pve is taken back."""
        self.drop_file(f"proxlb/maintenance/{node}")

    def set_local_flag(self, node: str, text: str = "") -> None:
        """Somebody on the node wants it empty: /etc/proxlb-agent/maintenance."""
        self._node(node).local_flag = text

    def clear_local_flag(self, node: str) -> None:
        """The flag on the node is taken back."""
        self._node(node).local_flag = None

    def request_ha_maintenance(self, node: str, wanted: bool = True) -> None:
        """An admin asks the HA manager to empty the node, or takes that back."""
        self._node(node)
        if wanted:
            self.ha_requests.add(node)
            self.ha_states[node] = "maintenance"
        else:
            self.ha_requests.discard(node)
            self.ha_states.pop(node, None)
        self.ha.wake()

    def fail_ha_command(self, node: str, text: str, times: int = 1, *, lasting: bool = False) -> None:
        """The next calls of `ha-manager` on the node fail."""
        kind = PermanentError if lasting else TemporaryError
        self._node(node).ha_command_failures += [kind(f"ha-manager: {text}") for _ in range(times)]

    def set_ha_state(self, node: str, state: str | None) -> None:
        """The HA manager's state of the node without an admin's request, as at a reboot with shutdown policy migrate."""
        self._node(node)
        if state is None:
            self.ha_states.pop(node, None)
        else:
            self.ha_states[node] = state
        self.ha.wake()

    def hang_ha_manager(self, hanging: bool = True) -> None:
        """The HA manager takes requests and does nothing, or works again."""
        self.ha.hang(hanging)

    def request(self, node: str, request_id: str, text: str) -> None:
        """A command on the node leaves a request for its agent."""
        self._node(node).inbox.requests[request_id] = text

    def break_inbox(self, node: str, broken: bool = True) -> None:
        """The inbox's folder is missing or not safe, or is well again."""
        self._node(node).inbox.is_broken = broken

    def fill_disk(self, node: str, full: bool = True) -> None:
        """The node's disk is full, or is not any more."""
        self._node(node).disk_full = full

    def append_log(self, node: str, msg: str, times: int = 1, user: str = ROOT) -> None:
        """Lines in the cluster log."""
        for _ in range(times):
            self.tasks.log(self._node(node), msg, user=user)

    def remove_lock(self) -> None:
        """Somebody removes the lock's directory by hand."""
        self.main.lock = None
