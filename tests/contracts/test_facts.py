# SPDX-License-Identifier: GPL-3.0-or-later
"""What every `FactsSource` promises."""

from __future__ import annotations

import pytest

from tests.contracts.stages import FactsStage


def test_a_node_is_known_by_what_guests_need(node: FactsStage) -> None:
    facts = node.source().read().facts
    assert facts.cpu_model
    assert facts.cpu_flags == " ".join(sorted(facts.cpu_flags.split()))
    assert facts.bridges == ("vmbr0",)
    assert facts.hookscripts == ("proxlb-hook",)
    assert facts.pve_version.startswith("9.")


def test_nothing_new_is_the_same_again(node: FactsStage) -> None:
    source = node.source()
    assert source.read() == source.read()


def test_what_changes_is_seen_by_a_running_process(node: FactsStage) -> None:
    source = node.source()
    before = source.read().facts
    node.upgrade_qemu("11.0.0-1")
    node.add_bridge("vnet1")
    after = source.read().facts
    assert (before.qemu_version, after.qemu_version) == ("10.1.2-3", "11.0.0-1")
    assert after.bridges == ("vmbr0", "vnet1")


@pytest.mark.parametrize("cache_bytes", [None, 0, 3 << 30])
def test_the_zfs_cache_is_unknown_or_a_number(node: FactsStage, cache_bytes: int | None) -> None:
    node.set_cache(cache_bytes)
    sight = node.source().read()
    assert sight.zfs_cache_bytes == cache_bytes
    assert sight.memory_bytes > 0
