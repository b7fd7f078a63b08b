# SPDX-License-Identifier: GPL-3.0-or-later
"""What was kept out of garbage collections once is collected all the same when it has become garbage."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from agent.adapters.memory import tidy


class Ring:
    """Something that only the collector can free."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def nothing_stays_frozen() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_garbage_is_collected_also_where_it_was_kept_out_before() -> None:
    living, garbage = Ring(), Ring()
    seen, gone = weakref.ref(living), weakref.ref(garbage)
    del garbage
    tidy()
    assert gone() is None and seen() is living
    del living
    gc.collect()
    assert seen() is not None, "what lived is out of collections until it is tidied again"
    tidy()
    assert seen() is None


def test_what_lives_is_left_out_of_collections() -> None:
    tidy()
    assert gc.get_freeze_count() > 1000
