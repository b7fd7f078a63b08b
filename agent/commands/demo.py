# SPDX-License-Identifier: GPL-3.0-or-later
"""`proxlb-agent demo`: the simulation of a packaged scenario, watched live."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import agent.sim
from agent import wiring
from agent.commands.picture import CLEAR_BELOW, ENTER_SCREEN, HOME, LEAVE_SCREEN, Canvas, picture
from agent.commands.scenario import Scenario, journal_text, read_scenario
from agent.commands.simulate import placement_text
from agent.commands.wrong_use import WrongUseError
from agent.core.codec import from_json

SHOW_S = 45.0  # real time of the whole show, if --speed says nothing else
FRAMES_PER_S = 10.0


@dataclass(frozen=True, slots=True)
class Caption:
    """What the picture says from that simulated second on."""

    at_s: float
    say: str


@dataclass(frozen=True, slots=True)
class Story:
    """How the show is told."""

    ends_at_s: float
    captions: tuple[Caption, ...]

    def caption(self, now_s: float) -> str:
        """What is to be said at that second."""
        said = [caption.say for caption in self.captions if caption.at_s <= now_s]
        return said[-1] if said else ""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("--speed", metavar="N", type=float, help="simulated seconds a second; by default the show takes 45 s")
    parser.add_argument("--no-wait", action="store_true", help="do not wait: as fast as it goes")
    parser.add_argument("--without-overload", action="store_true", help="the same cluster with small loads: nobody has to move")


def execute(arguments: argparse.Namespace) -> int:
    """Show it: as a moving picture on a terminal, as lines elsewhere."""
    if arguments.speed is not None and not (math.isfinite(arguments.speed) and arguments.speed > 0):
        raise WrongUseError("--speed must be a number above 0")
    folder = Path(agent.sim.__file__).parent / "demo"
    folder = folder / "quiet" if arguments.without_overload else folder
    scenario = read_scenario(folder)
    story = from_json(Story, wiring.read_yaml(str(folder / "story.yaml")))
    speed = None if arguments.no_wait else (arguments.speed or story.ends_at_s / SHOW_S)
    if sys.stdout.isatty() and speed is not None and os.environ.get("TERM", "dumb") != "dumb":
        _watch(scenario, story, speed)
    else:
        _tell(scenario, story, speed)
    moved = sorted({post.order.vmid for post in scenario.world.post_record})
    print(f"\nThe end, after {story.ends_at_s:g} simulated seconds:\n{placement_text(scenario.world)}")
    print(f"Guests that moved: {', '.join(str(vmid) for vmid in moved) or 'none'}. Nothing of this touched a real cluster.")
    return 0


def _tell(scenario: Scenario, story: Story, speed: float | None) -> None:
    """Captions and journal as lines, paced if wanted."""
    print("A simulated cluster: nothing here touches a real one.", flush=True)
    seen, captions = 0, list(story.captions)
    begun_s = time.monotonic()

    def show() -> None:
        nonlocal seen
        now_s = scenario.world.now_s
        if speed is not None and (wait_s := begun_s + now_s / speed - time.monotonic()) > 0:
            time.sleep(wait_s)
        while captions and captions[0].at_s <= now_s:
            print(f"\n* {captions.pop(0).say}")
        for line in scenario.new_lines(seen):
            print(journal_text(line))
        seen = len(scenario.world.journal)
        sys.stdout.flush()

    scenario.simulation.run(story.ends_at_s, show)


def _watch(scenario: Scenario, story: Story, speed: float) -> None:
    """The moving picture."""
    threshold = scenario.settings.balance.memory.threshold_percent / 100
    is_plain = not (sys.stdout.encoding or "").lower().startswith("utf")
    begun_s = time.monotonic()
    with _screen():
        now_s = 0.0
        while now_s < story.ends_at_s:
            now_s = min(story.ends_at_s, (time.monotonic() - begun_s) * speed)
            scenario.simulation.run(now_s)
            size = shutil.get_terminal_size((100, 30))
            canvas = Canvas(columns=max(60, min(size.columns - 1, 118)), rows=size.lines, is_plain=is_plain)
            sentences = [journal_text(line).strip() for line in scenario.new_lines(0)]
            frame = picture(scenario.world, story.caption(now_s), sentences, threshold, canvas, speed)
            sys.stdout.write(HOME + "".join(f"{line}\x1b[K\n" for line in frame.split("\n")[: size.lines - 1]) + CLEAR_BELOW)
            sys.stdout.flush()
            time.sleep(1 / FRAMES_PER_S)


@contextmanager
def _screen() -> Iterator[None]:
    """The terminal's other screen, given back whatever happens."""
    sys.stdout.write(ENTER_SCREEN)
    try:
        yield
    finally:
        sys.stdout.write(LEAVE_SCREEN)
        sys.stdout.flush()
