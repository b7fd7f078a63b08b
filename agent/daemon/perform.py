# SPDX-License-Identifier: GPL-3.0-or-later
"""Does what the daemon asks for, through the ports. The same code serves the real agent and the simulated one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from agent.core.aside import config_path, digest_of_config
from agent.core.cluster import Snapshot
from agent.core.documents import DocumentError, LeaderFile, LeaderState, parse, render
from agent.core.history import is_success
from agent.core.leadership import LockAct, LockTimes
from agent.core.plan_types import Verdict
from agent.core.shutdown import parse_flag
from agent.daemon import inputs, outputs
from agent.daemon.inputs import LockAnswer, LockOutcome, PostOutcome
from agent.ports import (
    Clock,
    ClusterApi,
    ClusterFiles,
    FactsSource,
    InDoubtError,
    JournalSink,
    LeaderLock,
    LocalFiles,
    LocalInbox,
    NotHolderError,
    OutsideError,
    PermanentError,
    RefusedError,
    ServiceNotifier,
    SettingsSource,
    TemporaryError,
)

LEADER_PATH = "proxlb/leader.json"
HISTORY_PATH = "proxlb/history.json"
INBOX_FOLDER = "proxlb/inbox"
FLAG_FOLDER = "proxlb/maintenance"


@dataclass(frozen=True, slots=True)
class Ports:
    """One node's way to everything outside; `api` is made when it is first needed, as a follower needs none."""

    clock: Clock
    lock: LeaderLock
    files: ClusterFiles
    api: Callable[[], ClusterApi]
    inbox: LocalInbox
    facts: FactsSource
    local: LocalFiles
    settings: SettingsSource
    journal: JournalSink
    notifier: ServiceNotifier


class Performer:
    """Turns one output into calls of ports, and their answers or errors into one input.

    Raises nothing that a port may raise: every OutsideError becomes an answer. Holds no state but the ports.
    """

    def __init__(self, ports: Ports, times: LockTimes) -> None:
        self._ports = ports
        self._times = times

    def perform(self, output: outputs.Output) -> inputs.Input | None:
        """Do it; returns the answer for the daemon, None when there is none to give."""
        match output:
            case outputs.DoLock():
                return self._lock(output)
            case outputs.ReadSigns():
                return self.signs_of(self._ports.files, output)
            case outputs.ReadHistory():
                text, error = self._read(HISTORY_PATH)
                return inputs.HistorySeen(text, error)
            case outputs.ReadOwnInbox():
                text, error = self._read(f"{INBOX_FOLDER}/{output.node}.json")
                return inputs.OwnInboxSeen(text, error)
            case outputs.WithdrawShutdownFlag():
                return self._withdraw(output)
            case outputs.WriteShared():
                return inputs.WriteAnswer(output.what, output.serial, self._try(lambda: self._write(output)))
            case outputs.MakeFlagFolder():
                self._try(lambda: self._ports.files.make_folder(FLAG_FOLDER))
                return None
            case outputs.ReadSettings():
                return self._settings(output)
            case outputs.ClaimInbox() | outputs.WriteStatus() | outputs.KeepDecision() | outputs.ReadLoads() | outputs.KeepLoads():
                return self._on_this_node(output)
            case outputs.ReadFacts():
                return self._facts()
            case outputs.Say():
                self._ports.journal.say(output.record)
                return None
            case outputs.SetStatusLine():
                self._ports.notifier.status(output.text)
                return None
            case outputs.TellReady():
                self._ports.notifier.ready()
                return None
            case outputs.Exit():
                self._ports.notifier.stopping()
                return None
            case _:
                return self._through_api(output)

    def failed(self, output: outputs.Output, text: str) -> inputs.Input | None:  # noqa: C901  # one case an output
        """The answer for an output that a bug kept from being done, so that the daemon does not wait for ever."""
        match output:
            case outputs.DoLock():
                called_s = self._ports.clock.boottime_s()
                return LockAnswer(output.act, LockOutcome.FAILED, called_s, self._ports.files.state(), text=text)
            case outputs.ReadSigns():
                return inputs.SignsSeen(error=text)
            case outputs.ReadHistory():
                return inputs.HistorySeen(None, text)
            case outputs.ReadLoads():
                return inputs.LoadsSeen(None, text)
            case outputs.ReadOwnInbox():
                return inputs.OwnInboxSeen(None, text)
            case outputs.WithdrawShutdownFlag():
                return inputs.ShutdownFlagWithdrawn(done=False, error=text)
            case outputs.WriteShared():
                return inputs.WriteAnswer(output.what, output.serial, text)
            case outputs.ReadSettings():
                return inputs.SettingsSeen(None, text, asked=output.asked)
            case outputs.ClaimInbox():
                return inputs.InboxSeen(None, text)
            case outputs.ReadFacts():
                return inputs.FactsSeen(None, text)
            case outputs.Observe():
                return inputs.Observed(output.epoch, None, text)
            case outputs.AskVerdict():
                return inputs.VerdictSeen(output.vmid, None, text)
            case outputs.StartMigration():
                return inputs.MigrationAnswer(output.intent, PostOutcome.IN_DOUBT, text=text)
            case outputs.AskTask():
                return inputs.TaskAnswer(output.intent, error=text)
            case outputs.SearchMigration():
                return inputs.SearchAnswer(output.intent, None, text)
            case _:
                return None

    def _on_this_node(
        self, output: outputs.ClaimInbox | outputs.WriteStatus | outputs.KeepDecision | outputs.ReadLoads | outputs.KeepLoads
    ) -> inputs.Input | None:
        local = self._ports.local
        match output:
            case outputs.ClaimInbox():
                try:
                    return inputs.InboxSeen(self._ports.inbox.claim())
                except OutsideError as error:
                    return inputs.InboxSeen(None, str(error))
            case outputs.ReadLoads():
                try:
                    return inputs.LoadsSeen(local.read_loads())
                except OutsideError as error:
                    return inputs.LoadsSeen(None, str(error))
            case outputs.WriteStatus():
                self._try(lambda: local.write_status(output.text))
            case outputs.KeepDecision():
                self._try(lambda: local.append_decision(output.line))
            case outputs.KeepLoads():
                self._try(lambda: local.write_loads(output.text))
        return None

    def _facts(self) -> inputs.FactsSeen:
        try:
            return inputs.FactsSeen(self._ports.facts.read())
        except OutsideError as error:
            return inputs.FactsSeen(None, str(error) or type(error).__name__)

    def _try(self, act: Callable[[], None]) -> str:
        try:
            act()
        except OutsideError as error:
            return str(error) or type(error).__name__
        return ""

    def _write(self, asked: outputs.WriteShared) -> None:
        """A write that waited while the filesystem hung must not land on top of the next leader's."""
        if asked.leader is not None and (why_not := self._why_not_leader(asked.leader)) is not None:
            raise TemporaryError(why_not)
        self._ports.files.write(asked.path, asked.text)

    def _withdraw(self, asked: outputs.WithdrawShutdownFlag) -> inputs.ShutdownFlagWithdrawn:
        """What somebody else has put in the flag's place since is theirs to take back."""
        path = f"{FLAG_FOLDER}/{asked.node}"
        text, error = self._read(path)
        flag = None if text is None else parse_flag(text)
        if error or flag is None or flag.boot_id == asked.boot_id:
            return inputs.ShutdownFlagWithdrawn(done=False, error=error)
        error = self._try(lambda: self._ports.files.remove(path))
        return inputs.ShutdownFlagWithdrawn(done=not error, error=error)

    def _read(self, path: str) -> tuple[str | None, str]:
        try:
            return self._ports.files.read(path), ""
        except OutsideError as error:
            return None, str(error) or type(error).__name__

    # the lock

    def _lock(self, asked: outputs.DoLock) -> LockAnswer:
        ports, act = self._ports, asked.act
        called_s = ports.clock.boottime_s()
        outcome, text, mtime, leader_text = LockOutcome.DONE, "", None, None
        try:
            match act:
                case LockAct.LOOK:
                    mtime = ports.lock.sight().mtime_s
                    leader_text = ports.files.read(LEADER_PATH)
                case LockAct.TAKE:
                    outcome = LockOutcome.DONE if ports.lock.take() else LockOutcome.REFUSED
                case LockAct.RENEW:
                    ports.lock.renew()
                case LockAct.ASK_EXPIRY:
                    ports.lock.ask_expiry()
                case LockAct.WRITE_LEADING | LockAct.WRITE_RELEASED:
                    if asked.leader is not None:
                        self._check_own(asked.leader)
                        leader_text = render(asked.leader)
                        ports.files.write(LEADER_PATH, leader_text)
                case LockAct.RELEASE:
                    # Nobody is asked who removes it: a process that was stopped for minutes would remove the next leader's.
                    if ports.clock.boottime_s() >= asked.until_s:
                        raise NotHolderError("the lease ran out before the lock could be removed")
                    ports.lock.release()
        except NotHolderError as error:
            outcome, text = LockOutcome.NOT_HOLDER, str(error)
        except OutsideError as error:
            outcome, text = LockOutcome.FAILED, str(error) or type(error).__name__
        state = ports.files.state()
        return LockAnswer(act, outcome, called_s, state, mtime, leader_text, text)

    def _check_own(self, leader: LeaderFile) -> None:
        """Raise NotHolderError when the lock, or the lead that is to be released, is another's: a process that was stopped for minutes
        must not write over the next leader's file."""
        if leader.state is LeaderState.LEADING:
            self._ports.lock.renew()
        elif (why_not := self._why_not_leader(replace(leader, state=LeaderState.LEADING), same_since=False)) is not None:
            raise NotHolderError(why_not)

    # files

    @staticmethod
    def signs_of(files: ClusterFiles, asked: outputs.ReadSigns) -> inputs.SignsSeen:
        """Read what may hold news below /etc/pve; an error leaves all of it unknown."""
        try:
            inboxes = []
            for name in files.list(INBOX_FOLDER):
                if name.endswith(".json") and not name.startswith("."):
                    text = files.read(f"{INBOX_FOLDER}/{name}")
                    if text is not None:
                        inboxes.append((name.removesuffix(".json"), text))
            flags = []
            for name in files.list(FLAG_FOLDER):
                text = None if name.startswith(".") else files.read(f"{FLAG_FOLDER}/{name}")
                if text is not None:
                    flags.append((name, text.strip()))
            return inputs.SignsSeen(
                log=files.read(".clusterlog"),
                rrd=files.read(".rrd") if asked.statistics else None,
                vmlist=files.read(".vmlist") if asked.statistics else None,
                members=files.read(".members") if asked.statistics else None,
                ha_status=files.read("ha/manager_status"),
                inboxes=tuple(inboxes),
                flags=tuple(flags),
            )
        except OutsideError as error:
            return inputs.SignsSeen(error=str(error) or type(error).__name__)

    def _settings(self, asked: outputs.ReadSettings) -> inputs.SettingsSeen:
        try:
            return inputs.SettingsSeen(self._ports.settings.read(), asked=asked.asked)
        except PermanentError as error:
            return inputs.SettingsSeen(None, str(error), is_broken=True, asked=asked.asked)
        except OutsideError as error:
            return inputs.SettingsSeen(None, str(error) or type(error).__name__, asked=asked.asked)

    # the API

    def _through_api(self, output: outputs.Output) -> inputs.Input | None:
        match output:
            case outputs.Observe():
                try:
                    snapshot = self._ports.api().look()
                    return inputs.Observed(output.epoch, snapshot, digests=self._digests(snapshot, output.digests_of))
                except OutsideError as error:
                    return inputs.Observed(output.epoch, None, str(error) or type(error).__name__, getattr(error, "hint", ""))
            case outputs.AskVerdict():
                try:
                    return inputs.VerdictSeen(output.vmid, self._verdict(output))
                except OutsideError as error:
                    return inputs.VerdictSeen(output.vmid, None, str(error) or type(error).__name__)
            case outputs.StartMigration():
                return self._start(output)
            case outputs.StartGuest():
                return self._start_guest(output)
            case outputs.AskTask():
                try:
                    status = self._ports.api().task(output.upid).exit_status
                    return inputs.TaskAnswer(output.intent, status, log=self._log_of(output.upid, status))
                except RefusedError as error:
                    return inputs.TaskAnswer(output.intent, is_known=False, error=str(error))
                except OutsideError as error:
                    return inputs.TaskAnswer(output.intent, error=str(error) or type(error).__name__)
            case outputs.SearchMigration():
                try:
                    return inputs.SearchAnswer(
                        output.intent, self._ports.api().find_migration(output.vmid, output.source, output.since_wall_s)
                    )
                except OutsideError as error:
                    return inputs.SearchAnswer(output.intent, None, str(error) or type(error).__name__)
            case _:
                raise TypeError(f"nobody performs {output!r}")

    def _log_of(self, upid: str, exit_status: str | None) -> tuple[str, ...]:
        """What a failed task wrote; a log that cannot be read leaves its status to tell."""
        if exit_status is None or is_success(exit_status):
            return ()
        try:
            return self._ports.api().task_log(upid)
        except OutsideError:
            return ()

    def _digests(self, snapshot: Snapshot, vmids: tuple[int, ...]) -> tuple[tuple[int, str], ...]:
        """The digests of these guests' configurations, without those that cannot be read."""
        found = []
        for vmid in vmids:
            guest = snapshot.guest(vmid)
            text = None if guest is None else self._read(config_path(guest))[0]
            if text is not None:
                found.append((vmid, digest_of_config(text)))
        return tuple(found)

    def _verdict(self, asked: outputs.AskVerdict) -> Verdict:
        return self._ports.api().verdict(asked.vmid, asked.type, asked.node, self._ports.clock.wall_s())

    def _start(self, asked: outputs.StartMigration) -> inputs.MigrationAnswer:
        """Like `_start_guest`, a place that changes something outside: it asks once more, right before, whether this node leads."""
        called_s = self._ports.clock.boottime_s()
        why_not = self._why_not_leading(asked.leader, asked.lease_until_s, called_s)
        if why_not is not None:
            return inputs.MigrationAnswer(asked.intent, PostOutcome.NOT_SENT, text=why_not)
        try:
            upid = self._ports.api().migrate(asked.order, self._send_until_s(called_s))
            return inputs.MigrationAnswer(asked.intent, PostOutcome.STARTED, upid=upid)
        except RefusedError as error:
            return inputs.MigrationAnswer(asked.intent, PostOutcome.REFUSED, text=str(error))
        except InDoubtError as error:
            return inputs.MigrationAnswer(asked.intent, PostOutcome.IN_DOUBT, text=str(error))
        except OutsideError as error:
            return inputs.MigrationAnswer(asked.intent, PostOutcome.NOT_SENT, text=str(error) or type(error).__name__)

    def _start_guest(self, asked: outputs.StartGuest) -> inputs.StartAnswer:
        called_s = self._ports.clock.boottime_s()
        if (why_not := self._why_not_leading(asked.leader, asked.lease_until_s, called_s)) is not None:
            return inputs.StartAnswer(asked.vmid, why_not)
        try:
            self._ports.api().start(asked.vmid, asked.type, asked.node, self._send_until_s(called_s))
        except OutsideError as error:
            return inputs.StartAnswer(asked.vmid, str(error) or type(error).__name__)
        return inputs.StartAnswer(asked.vmid)

    def _why_not_leading(self, leader: LeaderFile, lease_until_s: float, called_s: float) -> str | None:
        ports = self._ports
        if called_s >= lease_until_s:
            return "the lease ran out before the request could be sent"
        try:
            ports.lock.renew()
        except OutsideError as error:
            return f"the lock could not be renewed: {error}"
        if (why_not := self._why_not_leader(leader)) is not None:
            return why_not
        if ports.clock.boottime_s() >= self._send_until_s(called_s):
            return "the renewal of the lock took too long"
        return None

    def _send_until_s(self, renewed_s: float) -> float:
        """From when on no request goes out: its answer is due before the lease of that renewal ends."""
        times = self._times
        return renewed_s + times.lease_s - times.post_timeout_s - times.post_margin_s

    def _why_not_leader(self, leader: LeaderFile, *, same_since: bool = True) -> str | None:
        """Why leader.json does not name this lead, None when it does."""
        text, error = self._read(LEADER_PATH)
        if error:
            return f"leader.json cannot be read: {error}"
        try:
            found = None if text is None else parse(LeaderFile, text)
        except DocumentError as problem:
            return f"leader.json cannot be read: {problem}"
        if found is not None and not same_since:
            found = replace(found, since=leader.since)
        return None if found == leader else "leader.json no longer names this agent"
