# SPDX-License-Identifier: GPL-3.0-or-later
"""A simulated cluster as a picture of plain text: bars for each node, guests, migrations under way, and the journal beneath."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from agent.core.cluster import GIB
from agent.sim.world import World

BAR = 22
_FULL, _EMPTY = "█", "·"
_BOLD, _DIM, _GREEN, _YELLOW, _RED, _OFF = "\x1b[1m", "\x1b[2m", "\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[0m"
HOME, CLEAR_BELOW = "\x1b[H", "\x1b[J"
ENTER_SCREEN, LEAVE_SCREEN = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


@dataclass(frozen=True, slots=True)
class Canvas:
    """Where the picture goes.

    Shape:   `is_plain` leaves colours away and bars in ASCII; a line is never longer than `columns`.
    """

    columns: int = 100
    rows: int = 30
    is_plain: bool = False


def picture(world: World, caption: str, sentences: Sequence[str], threshold: float, canvas: Canvas, speed: float | None = None) -> str:
    """Return the cluster at this instant as lines of text.

    Units:   `threshold` is a fraction of memory; `speed` in simulated seconds a second, None when nobody waits.
    """
    pace = f", {speed:.3g} times as fast as in life" if speed else ""
    lines = [_paint(canvas, _BOLD, f"proxlb-agent demo: a simulated cluster, simulated time {world.now_s:.0f} s{pace}"), ""]
    lines += [_paint(canvas, _YELLOW, line) for line in textwrap.wrap(caption, canvas.columns)] + [""]
    flags = {path.rpartition("/")[2] for path in world.main.files if path.startswith("proxlb/maintenance/")}
    use = world.use()
    for name in world.nodes:
        used = use.get(name)
        if used is None:
            lines.append(f"{name}  offline")
            continue
        memory = used.used_memory_bytes / used.memory_bytes
        cpu = used.used_cores / used.cores
        mark = _paint(canvas, _YELLOW, "  maintenance") if name in flags else ""
        lines.append(f"{_paint(canvas, _BOLD, name)}  memory {_bar(memory, threshold, canvas)}  cpu {_bar(cpu, 0.8, canvas)}{mark}")
        lines += [_paint(canvas, _DIM, line) for line in _guests(world, name, canvas)]
    lines.append("")
    flights = world.in_flight()
    for flight in flights:
        span = flight.until_s - flight.since_s
        done = min(1.0, (world.now_s - flight.since_s) / span) if span > 0 else 1.0
        text = f"on its way: {flight.guest.vmid} {flight.guest.name} from {flight.source} to {flight.target}"
        lines.append(_paint(canvas, _GREEN, f"{text} {_bar(done, 2.0, canvas, width=10)}"[: canvas.columns + 20]))
    lines += [""] * (2 - len(flights))
    lines.append("What the agent says:")
    room = max(3, canvas.rows - len(lines) - 1)
    said = [line for sentence in sentences[-room:] for line in textwrap.wrap(sentence, canvas.columns - 2, subsequent_indent="      ")]
    return "\n".join([*lines, *(f"  {line}" for line in said[-room:])])


def _guests(world: World, name: str, canvas: Canvas) -> list[str]:
    """The guests that run on the node, wrapped."""
    here = [guest for _, guest in sorted(world.residents(name).items()) if guest.has_process]
    words = [f"{guest.vmid} {guest.name} {guest.taken_memory_bytes / GIB:.0f} GiB" for guest in here]
    indent = " " * (len(name) + 2)
    return textwrap.wrap(", ".join(words) or "no guest runs here", canvas.columns, initial_indent=indent, subsequent_indent=indent)


def _bar(fraction: float, threshold: float, canvas: Canvas, width: int = BAR) -> str:
    filled = round(min(1.0, max(0.0, fraction)) * width)
    full, empty = ("#", ".") if canvas.is_plain else (_FULL, _EMPTY)
    colour = _RED if fraction > threshold else _GREEN
    return f"{_paint(canvas, colour, full * filled)}{empty * (width - filled)} {100 * fraction:3.0f} %"


def _paint(canvas: Canvas, colour: str, text: str) -> str:
    return text if canvas.is_plain else f"{colour}{text}{_OFF}"
