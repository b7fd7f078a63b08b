# SPDX-License-Identifier: GPL-3.0-or-later
"""What the daemon gets instead of an answer that a bug has cost."""

from __future__ import annotations

from agent.daemon import inputs, outputs
from agent.daemon.inputs import LockAnswer, LockOutcome, PostOutcome
from agent.daemon.outside import Ports


def unanswered(output: outputs.Output, text: str, ports: Ports) -> inputs.Input | None:  # noqa: C901  # one case an output
    """The answer for an output that a bug kept from being done, so that the daemon does not wait for ever."""
    match output:
        case outputs.DoLock():
            called_s = ports.clock.boottime_s()
            return LockAnswer(output.act, LockOutcome.FAILED, called_s, ports.files.state(), text=text)
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
        case outputs.RemoveFlag():
            return inputs.FlagRemoved(output.words, error=text)
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
        case outputs.AskHaMaintenance():
            return inputs.HaMaintenanceAnswer(output.node, output.wanted, text)
        case outputs.AskTask():
            return inputs.TaskAnswer(output.intent, error=text)
        case outputs.SearchMigration():
            return inputs.SearchAnswer(output.intent, None, text)
        case _:
            return None
