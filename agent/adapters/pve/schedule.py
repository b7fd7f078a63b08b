# SPDX-License-Identifier: GPL-3.0-or-later
"""When PVE begins something by itself: its backup jobs below /etc/pve, and the local time that their schedules are in."""

from __future__ import annotations

import time
from collections.abc import Callable

from agent.core.backups import CRON_FILE, JOBS_FILE, read_cron, read_jobs
from agent.core.cluster import BackupJob


def backup_jobs(read_file: Callable[[str], str | None] | None) -> tuple[BackupJob, ...]:
    """The backup jobs that are switched on, by id; none off a node, where `read_file` is None. Raises what that raises."""
    if read_file is None:
        return ()
    jobs = read_jobs(read_file(JOBS_FILE) or "") + read_cron(read_file(CRON_FILE) or "")
    return tuple(sorted(jobs, key=lambda job: job.id))


def utc_offset_s(wall_s: float) -> float:
    """What this machine's local time is ahead of UTC; the nodes of a cluster are taken to be in its time zone."""
    return float(time.localtime(wall_s).tm_gmtoff)
