# SPDX-License-Identifier: GPL-3.0-or-later
"""Stories of whole clusters, each in a folder named after what it shows; see `tests/scenarios/scenario.py` for what is in one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from difflib import unified_diff
from pathlib import Path

import pytest

from tests.scenarios.scenario import RESTART_AFTER_S, Checks, Pace, Run, actions_in, read_checks, run

HERE = Path(__file__).resolve().parent
NAMES = sorted(path.parent.name for path in HERE.glob("*/checks.yaml"))
AFTER_A_KILL_S = 120.0  # what the killed one may have asked for is in doubt for a minute


@pytest.mark.parametrize("name", NAMES)
def test_scenario(name: str, accept: bool) -> None:
    folder = HERE / name
    checks = read_checks(folder)
    done = run(folder, checks)
    problems = [*done.witness.all_problems(), *broken_checks(checks, done)]
    assert problems == [], "\n".join([*problems, done.journal])
    compare(folder / "journal.expect", done.journal, accept)
    if checks.pace is Pace.USUAL:
        assert run(folder, checks).everything == done.everything, "the same input does not give the same again"


@pytest.mark.parametrize("name", NAMES)
def test_each_scenario_says_by_hand_what_must_and_what_must_not_be(name: str) -> None:
    """A journal that was accepted unread proves nothing; and what must not be is more than what happens to be absent."""
    checks = read_checks(HERE / name)
    assert checks.must
    assert checks.must_not
    assert "Must not happen:" in (HERE / name / "README").read_text()


@pytest.mark.parametrize("name", [name for name in NAMES if read_checks(HERE / name).kill_everywhere])
def test_killed_leader(name: str) -> None:
    """Whatever line of an action is the last before a kill: nothing is started twice, and what had to be done is done."""
    folder = HERE / name
    checks = read_checks(folder)
    if checks.placements_if_killed is not None:
        checks = replace(checks, placements=checks.placements_if_killed)
    undisturbed = run(folder, checks)
    usual = started(undisturbed) + Counter(checks.sent_if_killed)
    lines = actions_in(undisturbed)
    assert lines > 1
    for number in range(1, lines + 1):
        done = run(folder, checks, kill_after=number, further_s=RESTART_AFTER_S + AFTER_A_KILL_S)
        problems = [*done.witness.all_problems(), *wrong_end(checks, done)]
        problems += [f"guest {vmid} was sent away {count} times" for vmid, count in (started(done) - usual).items()]
        assert problems == [], "\n".join([f"killed after line {number}", *problems, done.journal])


def compare(path: Path, journal: str, accept: bool) -> None:
    """Hold the journal to what was accepted; a missing expectation fails, so that no new scenario passes unread."""
    if accept:
        path.write_text(journal, encoding="utf-8")
        return
    assert path.exists(), f"{path} is missing: read this, then run pytest --accept\n{journal}"
    expected = path.read_text(encoding="utf-8")
    difference = "\n".join(unified_diff(expected.splitlines(), journal.splitlines(), "accepted", "now", lineterm="", n=1))
    assert not difference, f"the journal has changed; if it is meant to, run pytest --accept and read it\n{difference}"


def started(done: Run) -> Counter[int]:
    """How many migrations of each guest the agents got under way."""
    return Counter(post.order.vmid for post in done.world.post_record if post.answer.startswith("UPID") or "InDoubt" in post.answer)


def broken_checks(checks: Checks, done: Run) -> Iterator[str]:
    """What of the hand-written checks does not hold."""
    lines = done.journal.splitlines()
    for entry in checks.must:
        found = [line for line in lines if re.search(entry.line, line) and entry.from_s <= at_s(line) <= entry.to_s]
        if not found if entry.times is None else len(found) != entry.times:
            yield f"must be there: {entry}, found {len(found)} times"
    for unwanted in checks.must_not:
        yield from (f"must not be there: {line}" for line in lines if re.search(unwanted, line))
    sent = Counter(post.order.vmid for post in done.world.post_record)
    assert checks.posts is not None or checks.most_posts is not None, "say how many requests to migrate there may be"
    if checks.posts is not None and dict(sent) != dict(checks.posts):
        yield f"requests to migrate: {dict(sorted(sent.items()))}, expected {dict(checks.posts)}"
    if checks.most_posts is not None and sent.total() > checks.most_posts:
        yield f"{sent.total()} requests to migrate, expected at most {checks.most_posts}"
    asked = done.world.api_requests.total()
    if checks.most_requests is not None and asked > checks.most_requests:
        yield f"{asked} API requests, expected at most {checks.most_requests}"
    questions = done.world.api_requests["GET migrate"]
    if checks.questions is not None and questions != checks.questions:
        yield f"PVE was asked {questions} times whether a guest may migrate, expected {checks.questions}"
    if checks.leader is not None and done.world.lock_holder() != checks.leader:
        yield f"{done.world.lock_holder()} has the lock in the end, not {checks.leader}"
    answers = {answer.request: answer for answer in done.history.answers} if done.history is not None else {}
    for request, words in checks.answers.items():
        answer = answers.get(request)
        if answer is None or not answer.final or not re.search(words, answer.text):
            yield f"the answer to {request} is {answer}, expected {words}"
    yield from wrong_end(checks, done)


def wrong_end(checks: Checks, done: Run) -> Iterator[str]:
    """What is not as it should be when all is over."""
    places = done.world.placements()
    for vmid, node in checks.placements.items():
        if places.get(vmid) != node:
            yield f"guest {vmid} is on {places.get(vmid)} in the end, not on {node}"
    down = {vmid for vmid in done.witness.running_at_first - set(done.world.running()) if vmid in done.world.guests}
    if down != set(checks.stopped):
        yield f"guests {sorted(down)} do not run any more, expected {list(checks.stopped)}"


def at_s(line: str) -> float:
    """When a line of the journal was written; what is indented belongs to the line before."""
    word = line.split(maxsplit=1)[0]
    return float(word) if re.fullmatch(r"\d+\.\d", word) else -1.0
