# SPDX-License-Identifier: GPL-3.0-or-later
"""`proxlb-agent maintenance`: has a node emptied and kept empty, ends that, or lists such nodes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from agent import wiring
from agent.commands.draining import wait_until_empty, wait_until_home
from agent.commands.flag_files import asked_by, changeable_files, duration
from agent.commands.plan import known_node
from agent.commands.tables import aligned
from agent.commands.wrong_use import own_node_or_refuse, settings_in_force
from agent.core.documents import DocumentError, InboxFile, parse
from agent.core.flags import Flag, flag_text, flag_words, read_flag
from agent.core.settings import Mode, Settings
from agent.core.shutdown import parse_flag
from agent.core.statistics import parse_members
from agent.daemon.outside import FLAG_FOLDER, INBOX_FOLDER
from agent.ports import ClusterFiles, OutsideError, PermanentError

FLAG = "/etc/proxlb-agent/maintenance"


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="enter|leave|list")
    enter = _action(actions, "enter", "have the node emptied and kept empty")
    enter.add_argument("node", metavar="NODE")
    enter.add_argument("--wait", action="store_true", help="until no guest runs there that could leave")
    enter.add_argument("--for", dest="for_s", metavar="TIME", type=duration, help="as 2h, 90m or 1d12h; then it ends by itself")
    enter.add_argument("--reason", metavar="TEXT", help="what others read: why")
    leave = _action(actions, "leave", "end the maintenance of a node; what left comes home")
    leave.add_argument("node", metavar="NODE")
    leave.add_argument("--wait", action="store_true", help="until what left has come home")
    listed = _action(actions, "list", "the nodes in maintenance, and who says so")
    listed.add_argument("--json", action="store_true", help="the same as JSON")


def _action(actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, what: str) -> argparse.ArgumentParser:
    return actions.add_parser(name, help=what, description=what, allow_abbrev=False)


def execute(arguments: argparse.Namespace) -> int:
    """Enter, leave or list."""
    settings = settings_in_force(arguments)
    own_node_or_refuse(settings, "maintenance")
    if arguments.action == "list":
        return _list(settings, wiring.make_files(settings), as_json=arguments.json)
    files = changeable_files(settings)
    nodes = known_nodes(files)
    name = known_node(arguments.node, nodes)
    if arguments.action == "enter":
        until = None if arguments.for_s is None else wiring.wall_s() + arguments.for_s
        _enter(settings, files, nodes, name, Flag(arguments.reason or "", until))
        stays = f"{name} stays in maintenance and is emptied further; to end that: proxlb-agent maintenance leave {name}"
        return _waited(lambda: wait_until_empty(settings, name), stays) if arguments.wait else 0
    _leave(settings, files, name)
    return _waited(lambda: wait_until_home(settings, name), "what left still comes home") if arguments.wait else 0


def _waited(wait: Callable[[], int], goes_on: str) -> int:
    """The status of the wait; who ends it by Ctrl-C is told what goes on without it."""
    try:
        return wait()
    except KeyboardInterrupt:
        print(f"\nproxlb-agent: not waited for any longer; {goes_on}", file=sys.stderr)
        raise


def known_nodes(files: ClusterFiles) -> Mapping[str, bool]:
    """The cluster's nodes, and which of them are online."""
    members = parse_members(files.read(".members") or "")
    if members is None:
        return dict.fromkeys(files.list("nodes"), True)
    return dict(members.nodes) or {members.nodename: True}


@dataclass(frozen=True, slots=True)
class Cause:
    """Who says that a node is in maintenance: the flag below /etc/pve, the node's own, the settings or the HA manager."""

    node: str
    by: str
    text: str


def causes(settings: Settings, files: ClusterFiles) -> tuple[Cause, ...]:
    """Everything below /etc/pve and in the settings that keeps a node in maintenance; names in any case are those of the cluster."""
    found = []
    names = {name.lower(): name for name in known_nodes(files)}
    for name in files.list(FLAG_FOLDER):
        text = None if name.startswith(".") else files.read(f"{FLAG_FOLDER}/{name}")
        if text is not None:
            found.append(Cause(name, "proxlb-agent maintenance enter", flag_words(read_flag(text))))
    for name in files.list(INBOX_FOLDER):
        text = files.read(f"{INBOX_FOLDER}/{name}") if name.endswith(".json") and not name.startswith(".") else None
        try:
            inbox = None if text is None else parse(InboxFile, text)
        except DocumentError:
            continue  # torn or of another version
        if inbox is not None and inbox.flag is not None:
            found.append(Cause(inbox.node, f"{FLAG} on the node", inbox.flag))
    found += [Cause(name, "nodes.maintenance in the settings", "") for name in settings.nodes.maintenance]
    found = [replace(cause, node=names.get(cause.node.lower(), cause.node)) for cause in found]
    return tuple(sorted(found, key=lambda cause: (cause.node, cause.by)))


def _list(settings: Settings, files: ClusterFiles, *, as_json: bool) -> int:
    found = causes(settings, files)
    try:
        asked = {maintenance.node: maintenance.cause for maintenance in wiring.look(settings).maintenance}
        told = {cause.node for cause in found}
        found += tuple(Cause(node, "the HA manager", cause) for node, cause in asked.items() if node not in told)
    except OutsideError as error:
        print(f"proxlb-agent: note: requests to the HA manager are not known: {error}", file=sys.stderr)
    if as_json:
        print(json.dumps([{"node": cause.node, "said_by": cause.by, "reason": cause.text or None} for cause in found], indent=1))
    elif not found:
        print("no node is in maintenance")
    else:
        print(aligned(("NODE", "SAID BY", "REASON"), [(cause.node, cause.by, cause.text or "-") for cause in found]))
    return 0


def _enter(settings: Settings, files: ClusterFiles, nodes: Mapping[str, bool], name: str, flag: Flag) -> None:
    before = files.read(f"{FLAG_FOLDER}/{name}")
    if before is not None and flag == Flag():
        asked = read_flag(before)
        if parse_flag(before) is None:  # that of a node that shuts down is its own
            files.write(f"{FLAG_FOLDER}/{name}", flag_text(replace(asked, again=wiring.wall_s())))
        words = flag_words(asked)
        print(f"{name} is in maintenance already" + (f": {words}" if words else ""))
        return
    out = {cause.node.lower() for cause in causes(settings, files)} | {other.lower() for other in settings.nodes.ignore}
    left = [other for other, is_online in nodes.items() if is_online and other != name and other.lower() not in out]
    if before is None and not left:
        text = f"{name} is the last usable node: its guests would have nowhere to go"
        raise PermanentError(text, "end the maintenance of another node first; proxlb-agent maintenance list shows them")
    text = flag_text(replace(flag, reason=flag.reason or asked_by()))
    files.write(f"{FLAG_FOLDER}/{name}", text)
    print(f"{name} is in maintenance now: {flag_words(read_flag(text))}")
    if settings.mode in (Mode.OFF, Mode.OBSERVE):
        print(f"proxlb-agent: note: mode is {settings.mode.value}, so nobody moves its guests", file=sys.stderr)


def _leave(settings: Settings, files: ClusterFiles, name: str) -> None:
    had_flag = files.read(f"{FLAG_FOLDER}/{name}") is not None
    if had_flag:
        files.remove(f"{FLAG_FOLDER}/{name}")
    rest = [cause for cause in causes(settings, files) if cause.node.lower() == name.lower()]
    if rest:
        raise PermanentError(f"{name} is still in maintenance: {', '.join(cause.by for cause in rest)} says so", "end it there")
    print(f"{name} is no longer in maintenance" if had_flag else f"{name} is not in maintenance")
