# SPDX-License-Identifier: GPL-3.0-or-later
"""The house's own rules: who may import whom, what stays pure, what every file says."""

from __future__ import annotations

import ast
import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.outside_world import OutsideWorldError, no_outside_world
from tests.tally import tally

ROOT = Path(__file__).resolve().parent.parent

# --- Who may import whom -----------------------------------------------------------------------------------------------------------

# core <- ports <- {daemon, adapters, sim} <- wiring <- cli. The first name after `agent` decides where a module belongs.
LAYER_OF = {
    "core": "core",
    "ports": "ports",
    "daemon": "daemon",
    "adapters": "adapters",
    "sim": "sim",
    "wiring": "wiring",
    "config_files": "wiring",
    "startup": "wiring",
    "service": "wiring",
    "simulation": "wiring",
    "cli": "cli",
    "commands": "cli",
    "__main__": "cli",
}
MAY_IMPORT = {
    "agent": set(),  # the package itself, which says the version and nothing more
    "core": {"agent", "core"},
    "ports": {"agent", "core", "ports"},
    "daemon": {"agent", "core", "ports", "daemon"},
    "adapters": {"agent", "core", "ports", "adapters"},  # of adapters only itself, see below
    "sim": {"agent", "core", "ports", "sim"},
    "wiring": {"agent", "core", "ports", "daemon", "adapters", "sim", "wiring"},
    "cli": {"agent", "core", "ports", "daemon", "sim", "wiring", "cli"},  # adapters are named in wiring alone
}
PURE = {
    "__future__", "bisect", "collections", "dataclasses", "datetime", "difflib", "enum", "fractions", "functools", "hashlib", "heapq",
    "ipaddress", "itertools",
    "json", "math", "operator", "re", "statistics", "string", "types", "typing",
}  # fmt: skip
IMPURE_CALLS = {"__import__", "breakpoint", "compile", "eval", "exec", "input", "open", "print"}
READS_THE_CLOCK = {"now", "today", "utcnow"}
API_CLIENTS = {"proxmoxer", "requests", "urllib3"}
THIRD_PARTY_IN = {
    "proxmoxer": {"adapters"},
    "requests": {"adapters"},
    "urllib3": {"adapters"},
    "yaml": {"adapters", "sim", "wiring"},
    "watchdog": {"adapters"},
    "systemd": {"adapters"},
    "paramiko": {"adapters"},
    "rich": {"cli"},
}
ONLY_INSIDE_FUNCTIONS = {"paramiko", "rich"}


@dataclass(frozen=True)
class Import:
    module: str
    line: int
    in_function: bool
    only_for_types: bool


def module_name(path: str) -> str:
    """Return the name by which the file is imported: agent/core/__init__.py is agent.core."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports_of(path: str, tree: ast.Module, ours: set[str]) -> Iterator[Import]:
    """Return what a file imports, anywhere in it: for `from a import b` a.b where that is one of our modules, else a."""
    package = module_name(path).split(".")
    if not path.endswith("/__init__.py"):
        package = package[:-1]

    def walk(node: ast.AST, in_function: bool, only_for_types: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(name.name, node.lineno, in_function, only_for_types)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            for name in node.names:
                module = f"{origin}.{name.name}"
                yield Import(module if module in ours else origin, node.lineno, in_function, only_for_types)
        elif isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            for child in node.body:
                yield from walk(child, in_function, True)
            for child in node.orelse:
                yield from walk(child, in_function, only_for_types)
        else:
            inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from walk(child, inside, only_for_types)

    yield from walk(tree, False, False)


def layer_of(module: str) -> str | None:
    """Return the layer of one of our modules, or None for one nobody gave a layer."""
    names = module.split(".")
    return "agent" if len(names) == 1 else LAYER_OF.get(names[1])


def wrong_in(sources: dict[str, str]) -> list[str]:
    """Return every breach of the dependency rule in the sources (path from the root -> text), each with its place and what is wrong."""
    found: list[str] = []
    ours = {module_name(path) for path in sources}
    api_modules: set[str] = set()
    for path, source in sorted(sources.items()):
        module = module_name(path)
        layer = layer_of(module)
        if layer is None:
            found.append(f"{path}: in no layer; give it one in LAYER_OF")
            continue
        tree = ast.parse(source, path)
        found += wrong_for_an_empty_file(path, tree)
        if layer == "core":
            found += impure_in(path, tree)
        for wanted in imports_of(path, tree, ours):
            top = wanted.module.split(".")[0]
            if top == "agent":
                problem = why_not_ours(layer, module, wanted.module)
            elif top in sys.stdlib_module_names:
                problem = f"the core may not import {top}" if layer == "core" and top not in PURE else None
            else:
                problem = why_not_third_party(layer, top, wanted)
                if top in API_CLIENTS:
                    api_modules.add(path)
            if problem is not None and (line := f"{path}:{wanted.line}: {problem}") not in found:
                found.append(line)
    if len(api_modules) > 1:
        found.append(f"one module speaks to the API, not all these: {', '.join(sorted(api_modules))}")
    return found


def wrong_for_an_empty_file(path: str, tree: ast.Module) -> list[str]:
    is_empty = not [node for node in tree.body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))]
    return [f"{path}: adapters share no code, so this file stays empty"] if path == "agent/adapters/__init__.py" and not is_empty else []


def why_not_ours(layer: str, module: str, wanted: str) -> str | None:
    target = layer_of(wanted)
    if target is None:
        return f"{wanted} is in no layer"
    if target not in MAY_IMPORT[layer]:
        return f"{layer} may not import {wanted}"
    if layer == target == "adapters":
        own, other = (name.split(".")[2:3] for name in (module, wanted))
        if own and other and own != other:
            return f"an adapter may not import another one: {wanted}"
    return None


def why_not_third_party(layer: str, top: str, wanted: Import) -> str | None:
    if layer not in THIRD_PARTY_IN.get(top, set()):
        return f"{layer} may not import {top}"
    if top in ONLY_INSIDE_FUNCTIONS and not (wanted.in_function or wanted.only_for_types):
        return f"{top} is imported where it is used, inside a function"
    return None


def impure_in(path: str, tree: ast.Module) -> Iterator[str]:
    dates = {
        name.asname or name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.module == "datetime")
        for name in node.names
        if isinstance(node, ast.ImportFrom) or name.name == "datetime"
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
            yield f"{path}:{node.lineno}: the core may not call {node.func.id}()"
        if isinstance(node, ast.Attribute) and node.attr in READS_THE_CLOCK and ast.unparse(node.value).split(".")[0] in dates:
            yield f"{path}:{node.lineno}: the core may not read the clock: {ast.unparse(node)}"


def sources_of_the_agent() -> dict[str, str]:
    return {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "agent").rglob("*.py")}


def test_dependencies_point_one_way() -> None:
    assert wrong_in(sources_of_the_agent()) == []


def test_the_checker_sees_the_whole_package() -> None:
    assert {"agent/__init__.py", "agent/__main__.py", "agent/ports.py", "agent/core/__init__.py"} <= set(sources_of_the_agent())


GOOD = {
    "agent/__init__.py": '__version__ = "1"',
    "agent/__main__.py": "import sys\nfrom agent.cli import main",
    "agent/core/__init__.py": "",
    "agent/core/plan.py": "import json\nfrom collections.abc import Mapping\nfrom datetime import datetime, UTC\n"
    "from . import load\nfrom .load import N\n"
    "def f(now: datetime, snapshot): return snapshot.now, now.isoformat(), datetime.fromtimestamp(0, UTC)",
    "agent/core/load.py": "N = 1",
    "agent/ports.py": "from agent.core import plan\nimport pathlib",
    "agent/daemon/__init__.py": "",
    "agent/daemon/step.py": "from agent import __version__\nfrom agent.ports import Clock\nfrom agent.daemon import leader",
    "agent/daemon/leader.py": "",
    "agent/adapters/__init__.py": '"""Empty."""',
    "agent/adapters/pve/api.py": "import requests, proxmoxer\nfrom urllib3 import Retry\nfrom agent.core.load import N",
    "agent/adapters/inbox.py": "from watchdog.observers import Observer\nimport agent.ports",
    "agent/adapters/ssh/__init__.py": "from agent.adapters.ssh import session",
    "agent/adapters/ssh/session.py": "def connect():\n    import paramiko\n    from agent.adapters.ssh import session",
    "agent/sim/cluster.py": "import random, yaml\nfrom agent.ports import Clock",
    "agent/wiring.py": "import yaml\nfrom agent.adapters import inbox\n"
    "from agent.sim.cluster import X\nfrom agent.daemon.step import step\nimport agent.adapters.pve.api",
    "agent/cli.py": "from agent import wiring\nfrom agent.commands import status\nfrom typing import TYPE_CHECKING\n"
    "if TYPE_CHECKING:\n    from rich.console import Console\ndef show():\n    from rich.console import Console",
    "agent/commands/__init__.py": "",
    "agent/commands/status.py": "from agent.wiring import node",
}  # fmt: skip


def test_a_house_in_order_is_left_alone() -> None:
    assert wrong_in(GOOD) == []


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("agent/core/bad.py", "import time", "the core may not import time"),
        ("agent/core/bad.py", "import os.path as p", "the core may not import os"),
        ("agent/core/bad.py", "def f():\n    from random import random", "the core may not import random"),
        ("agent/core/bad.py", "import yaml", "core may not import yaml"),
        ("agent/core/bad.py", "from agent.ports import Clock", "core may not import agent.ports"),
        ("agent/core/bad.py", "from agent import ports", "core may not import agent.ports"),
        ("agent/core/bad.py", "from .. import ports", "core may not import agent.ports"),
        ("agent/core/bad.py", "from ..ports import Clock", "core may not import agent.ports"),
        ("agent/core/bad.py", "import datetime as dt\ndt.datetime.now()", "the core may not read the clock: dt.datetime.now"),
        ("agent/core/bad.py", "from datetime import date\ndate.today()", "the core may not read the clock: date.today"),
        ("agent/core/bad.py", "open('/etc/passwd')", "the core may not call open()"),
        ("agent/core/bad.py", "__import__('os')", "the core may not call __import__()"),
        ("agent/ports.py", "from agent.daemon import step", "ports may not import agent.daemon.step"),
        ("agent/daemon/bad.py", "from agent.adapters import inbox", "daemon may not import agent.adapters.inbox"),
        ("agent/daemon/bad.py", "import agent.sim.cluster", "daemon may not import agent.sim.cluster"),
        ("agent/daemon/bad.py", "import requests", "daemon may not import requests"),
        ("agent/daemon/bad.py", "from agent import wiring", "daemon may not import agent.wiring"),
        ("agent/sim/bad.py", "from agent.adapters.inbox import X", "sim may not import agent.adapters.inbox"),
        ("agent/sim/bad.py", "from agent.daemon.step import step", "sim may not import agent.daemon.step"),
        ("agent/adapters/bad.py", "from agent.adapters import inbox", "an adapter may not import another one: agent.adapters.inbox"),
        ("agent/adapters/bad.py", "from . import inbox", "an adapter may not import another one: agent.adapters.inbox"),
        ("agent/adapters/bad.py", "from .ssh.session import X", "an adapter may not import another one: agent.adapters.ssh.session"),
        ("agent/adapters/bad.py", "from agent.wiring import node", "adapters may not import agent.wiring"),
        ("agent/adapters/bad.py", "import paramiko", "paramiko is imported where it is used, inside a function"),
        ("agent/adapters/bad.py", "import rich", "adapters may not import rich"),
        ("agent/adapters/bad.py", "import jsonschema", "adapters may not import jsonschema"),
        ("agent/adapters/__init__.py", "X = 1", "adapters share no code, so this file stays empty"),
        ("agent/wiring.py", "from agent.cli import main", "wiring may not import agent.cli"),
        ("agent/wiring.py", "from agent import commands", "wiring may not import agent.commands"),
        ("agent/cli.py", "from agent.adapters import inbox", "cli may not import agent.adapters.inbox"),
        ("agent/cli.py", "try:\n    import rich\nexcept ImportError:\n    pass", "rich is imported where it is used, inside a function"),
        ("agent/__init__.py", "from agent.core import plan", "agent may not import agent.core.plan"),
        ("agent/helper.py", "", "in no layer; give it one in LAYER_OF"),
    ],
)  # fmt: skip
def test_a_breach_is_seen(path: str, source: str, complaint: str) -> None:
    found = wrong_in({**GOOD, path: source})
    assert [line.split(": ", 1)[1] for line in found if line.startswith(path)] == [complaint]


def test_a_second_door_to_the_api_is_seen() -> None:
    found = wrong_in({**GOOD, "agent/adapters/bad.py": "def f():\n    import proxmoxer"})
    assert found == ["one module speaks to the API, not all these: agent/adapters/bad.py, agent/adapters/pve/api.py"]


def test_a_breach_is_told_with_its_line() -> None:
    assert "agent/core/bad.py:3: the core may not import os" in wrong_in({**GOOD, "agent/core/bad.py": "\n\nimport os"})


def test_neither_wiring_nor_the_daemon_brings_in_what_only_a_leader_or_a_terminal_needs() -> None:
    """A follower lives in 24 MiB; the API client alone takes 12."""
    look = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import agent.daemon, agent.wiring, agent.startup\n"
        "print(*sorted({'proxmoxer', 'requests', 'urllib3', 'paramiko', 'rich', 'jsonschema'} & set(sys.modules)))"
    )
    done = subprocess.run(["/usr/bin/python3", "-I", "-B", "-c", look, str(ROOT)], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


# --- What every file says ----------------------------------------------------------------------------------------------------------

SPDX = "# SPDX-License-Identifier: GPL-3.0-or-later"
NOT_SOURCES = {".git", ".cache", ".hypothesis", "__pycache__", ".debhelper"}
SCRIPT = re.compile(rb"#! *\S*/(env +)?(sh|bash|dash|python3?)\s")
LEFT_OVER = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")


def files_below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or path.name in NOT_SOURCES or path == ROOT / "debian/proxlb-agent":
            continue
        if path.is_dir():
            yield from files_below(path)
        elif path.is_file():
            yield path


def is_source(path: Path) -> bool:
    return path.suffix == ".py" or SCRIPT.match(path.read_bytes()[:100]) is not None


def says_its_licence(text: str) -> bool:
    return SPDX in text.splitlines()[:3]


def left_over_in(text: str) -> list[int]:
    return [number for number, line in enumerate(text.splitlines(), 1) if LEFT_OVER.search(line)]


def test_every_source_says_its_licence() -> None:
    sources = [path for path in files_below(ROOT) if is_source(path)]
    assert ROOT / "tests/run" in sources
    assert [str(path.relative_to(ROOT)) for path in sources if not says_its_licence(path.read_text())] == []


def test_a_missing_licence_is_seen() -> None:
    assert says_its_licence(f"#!/bin/sh\n{SPDX}\n")
    assert not says_its_licence("#!/bin/sh\nset -eu\n")
    assert not says_its_licence("")


def test_nothing_is_left_over_in_what_is_shipped() -> None:
    folders = [ROOT / name for name in ("agent", "hookscripts", "packaging", "debian")]
    texts = [(path, path.read_bytes()) for folder in folders for path in files_below(folder)]
    assert [f"{path.relative_to(ROOT)}:{line}" for path, raw in texts if b"\0" not in raw for line in left_over_in(raw.decode())] == []


def test_a_left_over_word_is_seen() -> None:
    assert left_over_in("fine\nmktemp x.XXXXXX\n# TO" + "DO: the rest\n") == [3]


def test_both_line_lengths_are_one() -> None:
    settings = [line for name in ("pyproject.toml", "setup.cfg") for line in (ROOT / name).read_text().splitlines()]
    lengths = [line.removeprefix("max-") for line in settings if line.startswith(("line-length", "max-line-length"))]
    assert lengths == ["line-length = 140"] * 3


# --- The tools of the tests themselves ---------------------------------------------------------------------------------------------


def test_the_fence_lets_pure_code_through() -> None:
    with no_outside_world():
        time.sleep(0)
        assert sorted([2, 1]) == [1, 2]
        assert ROOT.exists()
        (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.socket()",
        "import socket; socket.getaddrinfo('localhost', 80)",
        "open('/etc/pve/nothing')",
        "open(b'/etc/pve/nothing')",
        "open('/etc/../etc/pve/priv/../proxlb/nothing')",
        "import os; os.open('/etc/pve/nothing', os.O_RDONLY)",
        "import os; os.mkdir('/etc/pve/nothing/at/all')",
        "import os; os.rename('/nonexistent', '/etc/pve/nothing/at/all')",
        "import os; os.utime('/etc/pve/nothing/at/all', (0, 0))",
        "import pathlib; pathlib.Path('/etc/pve/nothing').read_text()",
        "import time; time.sleep(0.001)",
        "from time import sleep; sleep(0.001)",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true')",
        "import os; os.fork() or os._exit(1)",
    ],
)
def test_the_fence_holds(code: str) -> None:
    swallowed, refused = (pytest.raises(OutsideWorldError, match=text) for text in ("this was tried", "this is outside"))
    with swallowed, no_outside_world(), refused:
        exec(code)


def test_the_fence_tells_what_was_swallowed() -> None:
    told = pytest.raises(OutsideWorldError, match=r"this was tried: time.sleep\(1\)")
    with told, no_outside_world(), contextlib.suppress(BaseException):
        time.sleep(1)


def test_the_fence_is_down_again_afterwards() -> None:
    with pytest.raises(OutsideWorldError), no_outside_world():
        time.sleep(1)
    time.sleep(0.001)


@pytest.mark.parametrize(
    ("cases", "counts", "complaints"),
    [
        ("<testcase/><testcase/>", (2, 0), []),
        ("<testcase><failure/></testcase><testcase/>", (1, 1), []),
        ("<testcase><error/></testcase>", (0, 1), []),
        (
            '<testcase classname="a" name="b"><skipped type="pytest.skip" message="no root"/></testcase><testcase/>',
            (1, 0),
            ["skipped: a.b: no root"],
        ),
    ],
)
def test_the_sum_of_tests_is_honest(tmp_path: Path, cases: str, counts: tuple[int, int], complaints: list[str]) -> None:
    totals = {f"{what}s" if what != "skipped" else what: cases.count(f"<{what}") for what in ("failure", "error", "skipped")}
    attributes = " ".join(f'{name}="{number}"' for name, number in totals.items())
    suite = f'<testsuite name="x" {attributes} tests="{cases.count("<testcase")}">{cases}</testsuite>'
    file = tmp_path / "tests.xml"
    file.write_text(f"<testsuites>{suite}</testsuites>")
    result = tally([file, file])
    assert (result.passed, result.failed) == (2 * counts[0], 2 * counts[1])
    assert list(result.complaints) == complaints * 2
    assert result.is_green() == (not complaints and counts[1] == 0)


def test_a_run_without_a_result_is_not_green(tmp_path: Path) -> None:
    (tmp_path / "broken.xml").write_text("<testsuites>")
    assert len(tally([tmp_path / "missing.xml", tmp_path / "broken.xml"]).complaints) == 2
    assert not tally([]).is_green()
