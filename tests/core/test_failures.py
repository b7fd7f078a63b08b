# SPDX-License-Identifier: GPL-3.0-or-later
"""PVE's words fall into classes, and each class has an answer."""

from __future__ import annotations

import pytest

from agent.core.failures import KNOWN, MEANING, REMEDY, TREATMENT, Failure, FailureClass, remedy, understood
from tests.pve_server.error_texts import EARLY, TASK

F = FailureClass
TEXTS = [*((text, failure) for _, text, failure in EARLY), *TASK]
ABORTED = "migration aborted"


def lines(*texts: str) -> tuple[str, ...]:
    """A task's log."""
    return tuple(f"2026-11-28 15:00:0{number} {text}" for number, text in enumerate(texts))


@pytest.mark.parametrize(("text", "failure"), TEXTS, ids=lambda value: str(value)[:60])
def test_each_of_pves_texts_falls_into_its_class(text: str, failure: FailureClass) -> None:
    assert understood(text).failure is failure
    found = understood(ABORTED, lines("starting migration of VM 100 to node 'pve2' (192.0.2.2)", f"ERROR: {text}"))
    assert found == Failure(failure, text)


def test_no_row_of_the_table_is_without_a_text() -> None:
    for row in KNOWN:
        hits = [text for text, failure in TEXTS if failure is row.failure and row.pattern.search(text)]
        assert hits or row.source == "the agent's own words", row.pattern.pattern
        assert row.source


def test_each_class_is_explained_treated_and_has_a_remedy() -> None:
    for failure in FailureClass:
        assert MEANING[failure]
        assert TREATMENT[failure]
        assert REMEDY[failure]
    assert "qm unlock 100" in remedy(F.LOCKED, 100, is_vm=True)
    assert "pct unlock 200" in remedy(F.LOCKED, 200, is_vm=False)


def test_the_first_line_that_is_known_decides_as_the_rest_came_of_it() -> None:
    log = lines(
        "starting VM 100 on remote node 'pve2'",
        "[pve2] kvm: cannot set up guest memory 'pc.ram': Cannot allocate memory",
        "ERROR: online migrate failure - remote command failed with exit code 255",
        "aborting phase 2 - cleanup resources",
        "ERROR: writing to tunnel failed: broken pipe",
        "ERROR: migration finished with problems (duration 00:00:04)",
    )
    assert understood("migration problems", (*log, "TASK ERROR: migration problems")) == Failure(
        F.MEMORY, "[pve2] kvm: cannot set up guest memory 'pc.ram': Cannot allocate memory"
    )


def test_that_a_person_stopped_it_counts_wherever_it_stands() -> None:
    log = lines("ERROR: no reply to command 'resume': got timeout", "ERROR: online migrate failure - interrupted by signal")
    assert understood("migration problems", log) == Failure(F.CANCELLED, "online migrate failure - interrupted by signal")


def test_warnings_that_precede_the_failure_do_count() -> None:
    log = lines(
        "can't migrate local disk 'local-lvm:vm-100-disk-0': non-migratable snapshot exists",
        "ERROR: Problem found while scanning volumes - can't migrate VM - check log",
        "ERROR: migration aborted (duration 00:00:00): Problem found while scanning volumes - can't migrate VM - check log",
    )
    assert understood(ABORTED, log).failure is F.LOCAL_DEVICE


@pytest.mark.parametrize("status", [ABORTED, "migration problems", "unexpected status", "unable to get last line from task log - x", ""])
def test_a_status_alone_says_nothing(status: str) -> None:
    assert understood(status) == Failure(F.UNKNOWN)
    assert understood(status, lines("ERROR: migration aborted (duration 00:00:01): ")) == Failure(F.UNKNOWN)


def test_of_what_is_not_known_the_first_error_is_told() -> None:
    log = lines("migration xbzrle cachesize: 512.0 MiB", "ERROR: a wheel came off", "ERROR: migration aborted (duration 00:00:01): a wheel")
    assert understood(ABORTED, log) == Failure(F.UNKNOWN, "a wheel came off")


@pytest.mark.parametrize(
    "line",
    [
        "migration active, transferred 1.0 GiB of 8.0 GiB VM-state, 113.2 MiB/s",
        "found local disk 'local-lvm:vm-100-disk-0' (attached)",
        "drive-scsi0: transferred 1.0 GiB of 32.0 GiB (3.12%) in 9s",
        "average migration speed: 1.1 GiB/s - downtime 47 ms",
        "starting online/live migration on unix:/run/qemu-server/100.migrate",
    ],
)
def test_what_every_migration_writes_is_no_failure(line: str) -> None:
    assert understood(ABORTED, lines(line)) == Failure(F.UNKNOWN)
