# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of settings: its defaults, what it refuses and how it says so, and the schema that must agree with it."""

from __future__ import annotations

import json
import math
import typing
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.calendar_events import DAYS
from agent.core.journal import Level
from agent.core.json_types import Json, JsonObject
from agent.core.quiet_hours import QuietSpan
from agent.core.setting_specs import PATTERNS, File, Kind
from agent.core.settings import (
    POOL_SPECS,
    ContainerPolicy,
    GuestSettings,
    LogLevel,
    Measure,
    Mode,
    PoolRule,
    PoolSettings,
    Row,
    Settings,
    TagTrust,
    as_document,
    rows,
)
from agent.core.settings_check import Problem, check, combine

SCHEMA = Path(__file__).resolve().parents[2] / "agent/schemas/config-1.json"

# As the design has them, written out: a default that changes must change here, too.
DEFAULTS: JsonObject = {
    "mode": "full",
    "api": {
        "hosts": ["localhost"],
        "token_id": "proxlb@pve!agent",
        "token_file": "/etc/pve/priv/proxlb/token",
        "ca_file": "/etc/pve/pve-root-ca.pem",
        "verify_tls": True,
        "timeout_s": 30,
    },
    "triggers": {"settle_s": 5, "settle_max_s": 60, "reconcile_s": 300, "warmup_s": 300, "first_observe_s": 600},
    "balance": {
        "cpu": {"threshold_percent": 80, "weight": 1, "hold_s": 180, "measure": "used"},
        "memory": {"threshold_percent": 85, "weight": 1, "hold_s": 60, "measure": "used"},
        "storage": {"threshold_percent": 90},
        "pressure": {"threshold_percent": 0, "weight": 0},
        "spread_percent": 20,
        "min_gain_percent": 1,
        "node_reserve": {"memory_percent": 5, "memory_gib": 4},
        "assigned_memory_cap_percent": 0,
        "guest_cooldown_s": 3600,
        "max_moves_per_pass": 4,
        "max_moves_per_hour": 20,
    },
    "rules": {"tags": "all"},
    "guests": {"containers": "maintenance", "local_disks": False, "storage_map": {}, "ignore": []},
    "nodes": {"ignore": [], "maintenance": []},
    "migration": {
        "parallel_per_node": 1,
        "parallel_total": 2,
        "bandwidth_limit_kib_s": None,
        "parallel_on_corosync_link": False,
        "timeout_s": 7200,
    },
    "drain": {"parallel_per_node": 2, "parallel_total": 4, "stopped": False, "return_home": True, "shutdown_limit_s": 600},
    "quiet_hours": [],
    "pools": {},
    "log": {"level": "info"},
    "paths": {"pmxcfs": "/etc/pve", "run": "/run/proxlb-agent", "state": "/var/lib/proxlb-agent"},
}


def nested(path: str, value: Json) -> JsonObject:
    """The document with that one setting."""
    for key in reversed(path.split(".")):
        value = {key: value}
    assert isinstance(value, dict)
    return value


def settings_of(document: Json) -> Settings:
    found = check(document)
    assert isinstance(found, Settings), [problem.line for problem in found]
    return found


def lines_of(found: Settings | tuple[Problem, ...]) -> list[str]:
    assert not isinstance(found, Settings)
    return [problem.line for problem in found]


def row(path: str) -> Row:
    return next(row for row in rows() if row.path == path)


def test_the_defaults_are_those_of_the_design() -> None:
    assert as_document(Settings()) == DEFAULTS
    assert settings_of(DEFAULTS) == Settings()


@pytest.mark.parametrize("document", [None, {}, {"balance": None}, {"balance": {"cpu": None}, "api": {}}])
def test_an_empty_file_and_an_empty_section_are_the_defaults(document: Json) -> None:
    assert settings_of(document) == Settings()


def test_what_is_not_said_keeps_its_default_however_deep() -> None:
    found = settings_of({"balance": {"cpu": {"threshold_percent": 70}}})
    default = Settings()
    assert found == replace(default, balance=replace(default.balance, cpu=replace(default.balance.cpu, threshold_percent=70.0)))


@pytest.mark.parametrize(
    ("document", "line"),
    [
        (
            {"balance": {"cpu": {"treshold_percent": 1}}},
            "balance.cpu.treshold_percent: unknown, did you mean balance.cpu.threshold_percent?",
        ),
        ({"blance": {}}, "blance: unknown, did you mean balance?"),
        (
            {"balancing": {"balanciness": 5}},
            "balancing: unknown; it is one of ProxLB's, what stands for it here is told in /usr/share/doc/proxlb-agent/from-proxlb.md",
        ),
        ({"max_moves_per_hour": 3}, "max_moves_per_hour: unknown, did you mean balance.max_moves_per_hour?"),
        ({"parallel_total": 3}, "parallel_total: unknown, did you mean drain.parallel_total or migration.parallel_total?"),
        ({"rules": {"xyz": 3}}, "rules.xyz: unknown; known here: tags"),
        ({"balance.cpu.weight": 3}, "balance.cpu.weight: unknown; write one key a level, each followed by a colon"),
        ({"rules": {"a\nb": 3}}, "rules.a\\nb: unknown; known here: tags"),
        ({"mode": "Full"}, 'mode: must be one of off, observe, rules, full, not "Full"; did you mean full?'),
        ({"mode": None}, "mode: has no value; must be one of off, observe, rules, full, or leave the line out"),
        ({"mode": True}, "mode: must be one of off, observe, rules, full, not true"),
        ({"mode": []}, "mode: must be one of off, observe, rules, full, not a list"),
        ({"api": []}, "api: must be a mapping of settings, not a list"),
        ([], "must be a mapping of settings, not a list"),
        ("full", 'must be a mapping of settings, not "full"'),
        ({"api": {"timeout_s": 31}}, "api.timeout_s: must be a number from 1 to 30 s, not 31"),
        ({"api": {"timeout_s": "5"}}, 'api.timeout_s: must be a number from 1 to 30 s; "5" is a text, write it without quotes'),
        ({"api": {"timeout_s": True}}, "api.timeout_s: must be a number from 1 to 30 s, not true"),
        ({"api": {"timeout_s": math.nan}}, "api.timeout_s: must be a number from 1 to 30 s, not nan"),
        ({"api": {"timeout_s": 10**400}}, "api.timeout_s: must be a number from 1 to 30 s, not a huge number"),
        ({"api": {"verify_tls": 1}}, "api.verify_tls: must be true or false, not 1"),
        ({"api": {"verify_tls": "yes"}}, 'api.verify_tls: must be true or false, not "yes"'),
        ({"api": {"token_id": "root"}}, 'api.token_id: must be a token\'s id, as user@realm!name, not "root"'),
        ({"api": {"ca_file": "ca.pem"}}, 'api.ca_file: must be an absolute path, not "ca.pem"'),
        ({"api": {"ca_file": "/a\nb"}}, 'api.ca_file: must be an absolute path, not "/a\\nb"'),
        ({"api": {"hosts": []}}, "api.hosts: must name at least one host"),
        ({"api": {"hosts": "pve1"}}, 'api.hosts: must be a list of hosts, not "pve1"; for a single one write [pve1]'),
        (
            {"api": {"hosts": ["https://pve1"]}},
            (
                'api.hosts[0]: must be a host\'s name or address, with :port if need be, not "https://pve1"; '
                "write the host alone, without https:// and path"
            ),
        ),
        ({"drain": {"parallel_total": 2.0}}, "drain.parallel_total: must be a whole number from 1 to 256 migrations, not 2.0"),
        (
            {"migration": {"bandwidth_limit_kib_s": 0}},
            "migration.bandwidth_limit_kib_s: must be a whole number from 1 to 1099511627776 KiB/s, or null, not 0",
        ),
        ({"nodes": {"ignore": {"pve1": 1}}}, "nodes.ignore: must be a list of node names, not a mapping"),
        ({"nodes": {"ignore": ["pve1", "-x"]}}, 'nodes.ignore[1]: must be a node\'s name (letters, digits, -), not "-x"'),
        ({"nodes": {"ignore": ["pve1\n"]}}, 'nodes.ignore[0]: must be a node\'s name (letters, digits, -), not "pve1\\n"'),
        ({"nodes": {"maintenance": [5]}}, "nodes.maintenance[0]: must be a node's name, not 5; if that is one, write it in quotes"),
        ({"guests": {"ignore": ["299-200"]}}, 'guests.ignore[0]: the range 299-200 is upside down; write "200-299"'),
        ({"guests": {"ignore": ["101"]}}, 'guests.ignore[0]: must be a VMID; "101" is a text, write it without quotes'),
        (
            {"guests": {"ignore": [101, 99]}},
            'guests.ignore[1]: must be a VMID from 100 to 999999999 or a range of them as "200-299", not 99',
        ),
        (
            {"quiet_hours": {"from": "01:00"}},
            "quiet_hours: must be a list of days with times, not a mapping; begin each with a dash",
        ),
        (
            {"quiet_hours": ["01:00"]},
            'quiet_hours[0]: must be as {days: [sat, sun], from: "01:00", to: "05:00"}, not "01:00"',
        ),
        ({"quiet_hours": [{"from": "01:00"}]}, 'quiet_hours[0].to: is missing; must be a time of the day as "01:00"'),
        (
            {"quiet_hours": [{"form": "00:00", "from": "01:00", "to": "05:00"}]},
            "quiet_hours[0].form: unknown, did you mean quiet_hours[0].from?",
        ),
        (
            {"quiet_hours": [{"hours": 1, "from": "01:00", "to": "05:00"}]},
            "quiet_hours[0].hours: unknown; known here: days, from, to",
        ),
        (
            {"quiet_hours": [{"from": 1, "to": "05:00"}]},
            'quiet_hours[0].from: must be a time of the day as "01:00", not 1; did you mean "01:00"?',
        ),
        (
            {"quiet_hours": [{"from": "24:00", "to": "05:00"}]},
            'quiet_hours[0].from: must be a time of the day as "01:00"; the day begins at "00:00"',
        ),
        (
            {"quiet_hours": [{"from": "01:00", "to": "25:00"}]},
            'quiet_hours[0].to: must be a time of the day as "01:00", at most "24:00", not "25:00"',
        ),
        (
            {"quiet_hours": [{"from": "5:00", "to": "05:00"}]},
            'quiet_hours[0].to: is the same as from; for whole days write from: "00:00", to: "24:00"',
        ),
        (
            {"quiet_hours": [{"days": "sun", "from": "01:00", "to": "05:00"}]},
            'quiet_hours[0].days: must be a list of days, not "sun"; for a single one write [sun]',
        ),
        (
            {"quiet_hours": [{"days": ["mon", "Wednesday"], "from": "01:00", "to": "05:00"}]},
            'quiet_hours[0].days[1]: must be one of mon, tue, wed, thu, fri, sat, sun, not "Wednesday"; did you mean wed?',
        ),
        (
            {"quiet_hours": [{"days": [7], "from": "01:00", "to": "05:00"}]},
            "quiet_hours[0].days[0]: must be one of mon, tue, wed, thu, fri, sat, sun, not 7",
        ),
        ({"pools": []}, "pools: must be a mapping of pools to their rules, not a list"),
        ({"pools": {"web": []}}, "pools.web: must be a mapping of settings, not a list"),
        ({"pools": {"a b": {}}}, "pools.a b: is not the name of a pool (letters, digits, -, _, ., and / between a pool and one within it)"),
        ({"pools": {"web": {"role": None}}}, "pools.web.role: unknown, did you mean pools.web.rule?"),
        ({"pools": {"web": {"nodes": []}}}, "pools.web.nodes: unknown; known here: rule, pin, strict"),
        (
            {"pools": {"web": {"rule": "anti_affinity"}}},
            'pools.web.rule: must be one of affinity, anti-affinity, or null, not "anti_affinity"; did you mean anti-affinity?',
        ),
        ({"pools": {"web": {"pin": "pve1"}}}, 'pools.web.pin: must be a list of node names, not "pve1"; for a single one write [pve1]'),
        ({"pools": {"web": {"pin": ["a_b"]}}}, 'pools.web.pin[0]: must be a node\'s name (letters, digits, -), not "a_b"'),
        ({"pools": {"web": {"strict": 1}}}, "pools.web.strict: must be true or false, not 1"),
        ({"triggers": {"settle_s": 90}}, "triggers.settle_max_s: 60 is less than triggers.settle_s, 90"),
        (
            {"balance": {"cpu": {"weight": 0}, "memory": {"weight": 0}}},
            "balance.memory.weight: cpu, memory and pressure all have no weight; for no load balancing set mode: rules",
        ),
        (
            {"balance": {"cpu": {"threshold_percent": 300}}},
            "balance.cpu.threshold_percent: 300 percent is reached by what is assigned alone; at most 100, or set measure: assigned",
        ),
        (
            {"balance": {"memory": {"measure": "asigned"}}},
            'balance.memory.measure: must be one of used, assigned, not "asigned"; did you mean assigned?',
        ),
    ],
)
def test_a_mistake_is_named_with_its_path_and_what_would_be_right(document: Json, line: str) -> None:
    assert lines_of(check(document)) == [line]


def test_all_mistakes_are_named_at_once_and_in_order() -> None:
    document: Json = {"mode": 3, "nodes": {"ignore": ["a_b", "c", "d_e"]}, "api": {"timeout_s": 0, "backend": "x"}, "quiet_ours": []}
    assert [line.split(":")[0] for line in lines_of(check(document))] == [
        "mode", "nodes.ignore[0]", "nodes.ignore[2]", "api.timeout_s", "api.backend", "quiet_ours",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "path",
    [
        "api.backend", "api.user", "api.password_file", "api.auto_setup",
    ],
)  # fmt: skip
def test_what_is_planned_but_not_built_is_unknown(path: str) -> None:
    assert lines_of(check(nested(path, None)))[0].startswith(f"{path}: unknown")


def test_a_threshold_over_all_there_is_needs_what_is_assigned() -> None:
    cpu = settings_of({"balance": {"cpu": {"measure": "assigned", "threshold_percent": 300}}}).balance.cpu
    assert (cpu.measure, cpu.threshold_percent) == (Measure.ASSIGNED, 300.0)


def test_pressure_alone_may_have_the_weight() -> None:
    document: Json = {"balance": {"cpu": {"weight": 0}, "memory": {"weight": 0}, "pressure": {"weight": 1}}}
    assert settings_of(document).balance.pressure.weight == 1.0


def test_a_bare_off_that_yaml_took_for_false_is_off() -> None:
    found = settings_of({"mode": False, "rules": {"tags": False}})
    assert found.mode is Mode.OFF
    assert found.rules.tags.value == "off"
    assert lines_of(check({"guests": {"containers": False}})) == ["guests.containers: must be one of never, maintenance, always, not false"]


def test_a_wrong_value_is_shown_short_and_on_one_line() -> None:
    wrongs: list[Json] = ["x" * 5000, "a\nb", "\x1b[2J", ["x"] * 5000, {"x": ["y"]}]
    for wrong in wrongs:
        (line,) = lines_of(check({"mode": wrong}))
        assert len(line) < 160
        assert line.isprintable()


def test_hosts_are_names_or_addresses_with_or_without_port() -> None:
    hosts: list[Json] = ["localhost", "pve1.example.com:8006", "192.0.2.1", "192.0.2.1:8006", "2001:db8::1", "[2001:db8::1]:8006", "::1"]
    assert list(settings_of({"api": {"hosts": hosts}}).api.hosts) == hosts
    for wrong in ("", "a b", "a/b", "user@host", "host:port", "a:1:b", "-a"):
        assert isinstance(check({"api": {"hosts": [wrong]}}), tuple), wrong


def test_ignored_guests_are_single_ones_and_ranges_with_both_ends() -> None:
    guests = settings_of({"guests": {"ignore": [101, "200-299", "400-400"]}}).guests
    ignored = [vmid for vmid in range(100, 500) if guests.is_ignored(vmid)]
    assert ignored == [101, *range(200, 300), 400]
    assert not GuestSettings().is_ignored(101)


def test_each_file_holds_its_own_sections_alone() -> None:
    assert lines_of(combine({"mode": "full"}, {"paths": {}, "api": None, "log": {"level": "debug"}})) == [
        "mode: belongs in /etc/pve/proxlb/config.yaml, not in /etc/proxlb-agent/config.yaml",
        "paths: belongs in /etc/proxlb-agent/config.yaml, not in /etc/pve/proxlb/config.yaml",
        "api: belongs in /etc/proxlb-agent/config.yaml, not in /etc/pve/proxlb/config.yaml",
        "log: belongs in /etc/proxlb-agent/config.yaml, not in /etc/pve/proxlb/config.yaml",
    ]
    for setting in rows():
        wrong = File.CLUSTER if setting.file is File.NODE else File.NODE
        assert isinstance(check(nested(setting.path, setting.default), setting.file), Settings)
        assert isinstance(check(nested(setting.path, setting.default), wrong), tuple)
        assert isinstance(check(nested(setting.path, setting.default), File.ONE), Settings)


def test_two_files_make_the_same_settings_as_one_with_both() -> None:
    node: JsonObject = {"api": {"timeout_s": 9}, "log": {"level": "debug"}}
    cluster: JsonObject = {"mode": "rules", "triggers": {"settle_s": 1}}
    found = combine(node, cluster)
    assert found == check({**node, **cluster})
    assert isinstance(found, Settings)
    assert (found.api.timeout_s, found.log.level, found.mode, found.triggers.settle_s) == (9.0, LogLevel.DEBUG, Mode.RULES, 1.0)


def test_a_problem_tells_which_of_the_two_files_has_it() -> None:
    found = combine({"log": {"level": "x"}}, {"mode": "x", "triggers": {"settle_s": 90}})
    assert isinstance(found, tuple)
    assert [(problem.path, problem.file) for problem in found] == [
        ("log.level", File.NODE),
        ("mode", File.CLUSTER),
        ("triggers.settle_max_s", File.CLUSTER),
    ]


def test_every_setting_says_what_it_is_for_and_what_it_may_be() -> None:
    assert len({setting.path for setting in rows()}) == len(rows()) > 30
    for setting in rows():
        assert len(setting.spec.meaning) > 20
        assert setting.spec.meaning.isprintable()
        assert setting.spec.allowed
        if setting.spec.kind in (Kind.NUMBER, Kind.WHOLE):
            assert math.isfinite(setting.spec.low)
            assert math.isfinite(setting.spec.high)
            assert setting.spec.unit or setting.path.endswith("weight")
        if setting.path.endswith(("_s", "_percent", "_gib", "_kib_s")):
            unit = {"percent": "percent", "gib": "GiB"}.get(setting.path.rpartition("_")[2], "KiB/s" if "kib" in setting.path else "s")
            assert setting.spec.unit == unit


def test_the_table_and_the_types_of_the_fields_agree() -> None:
    expected: dict[Kind, object] = {
        Kind.SWITCH: bool,
        Kind.WHOLE: int,
        Kind.NUMBER: float,
        Kind.PATH: str,
        Kind.TOKEN_ID: str,
        Kind.HOSTS: tuple[str, ...],
        Kind.NODES: tuple[str, ...],
        Kind.GUESTS: tuple[int | str, ...],
        Kind.POOLS: tuple[PoolSettings, ...],
        Kind.STORAGES: tuple[tuple[str, str], ...],
        Kind.SPANS: tuple[QuietSpan, ...],
    }
    for setting in rows():
        *sections, name = setting.path.split(".")
        section: object = Settings()
        for part in sections:
            section = getattr(section, part)
        hint: object = typing.get_type_hints(type(section))[name]
        if setting.spec.kind is Kind.CHOICE:
            assert isinstance(hint, type)
            assert tuple(choice.value for choice in hint) == setting.spec.choices
        else:
            kind = expected[setting.spec.kind]
            assert hint == (kind | None if setting.spec.optional else kind)


def test_the_log_levels_are_those_of_the_journal() -> None:
    assert [level.name for level in LogLevel] == [level.name for level in Level]


def test_both_ends_of_every_bound_are_allowed_and_nothing_beyond() -> None:
    for setting in rows():
        spec = setting.spec
        if spec.kind not in (Kind.NUMBER, Kind.WHOLE):
            continue
        for value in (spec.low, spec.high):
            found = check(nested(setting.path, int(value)))
            together = ("triggers.settle_max_s", "balance.cpu.threshold_percent", "balance.memory.threshold_percent")
            assert isinstance(found, Settings) or found[0].path in together, setting.path
        for value in (spec.low - 1, spec.high + 1):
            assert isinstance(check(nested(setting.path, int(value))), tuple), setting.path


# The JSON schema


def schema_of(setting: Row) -> JsonObject:
    """What the schema says of one setting."""
    spec = setting.spec
    vmid: JsonObject = {"type": "integer", "minimum": 100, "maximum": 999999999}
    found: JsonObject
    match spec.kind:
        case Kind.SWITCH:
            found = {"type": "boolean"}
        case Kind.WHOLE | Kind.NUMBER:
            word = "integer" if spec.kind is Kind.WHOLE else "number"
            found = {"type": [word, "null"] if spec.optional else word, "minimum": int(spec.low), "maximum": int(spec.high)}
        case Kind.CHOICE:
            found = {"enum": [*spec.choices, *([None] if spec.optional else [])]}
        case Kind.PATH | Kind.TOKEN_ID:
            found = {"type": "string", "pattern": f"^(?:{PATTERNS[spec.kind]})$"}
        case Kind.GUESTS:
            found = {"type": "array", "items": {"anyOf": [vmid, {"type": "string", "pattern": f"^(?:{PATTERNS[spec.kind]})$"}]}}
        case Kind.STORAGES:
            name: JsonObject = {"pattern": f"^(?:{PATTERNS[spec.kind]})$"}
            found = {"type": ["object", "null"], "propertyNames": name, "additionalProperties": {"type": "string", **name}}
        case Kind.SPANS:
            time: JsonObject = {"type": "string", "pattern": f"^(?:{PATTERNS[spec.kind]})$"}
            end: JsonObject = {"type": "string", "pattern": f"^(?:{PATTERNS[spec.kind]}|24:00)$"}
            days: JsonObject = {"description": "on which it begins; none: every day", "type": ["array", "null"], "items": {"enum": [*DAYS]}}
            span: JsonObject = {
                "type": "object",
                "required": ["from", "to"],
                "additionalProperties": False,
                "properties": {"days": days, "from": time, "to": end},
            }
            found = {"type": ["array", "null"], "items": span}
        case Kind.POOLS:
            fresh = as_document(Settings(pools=(PoolSettings("x"),)))["pools"]
            assert isinstance(fresh, dict)
            defaults = fresh["x"]
            assert isinstance(defaults, dict)
            pool: dict[str, Json] = {
                name: schema_of(Row(f"pools.x.{name}", below, defaults[name], File.CLUSTER)) for name, below in POOL_SPECS.items()
            }
            found = {
                "type": ["object", "null"],
                "propertyNames": {"pattern": f"^(?:{PATTERNS[spec.kind]})$"},
                "additionalProperties": {"type": ["object", "null"], "additionalProperties": False, "properties": pool},
            }
        case _:
            found = {"type": "array", "items": {"type": "string", "pattern": f"^(?:{PATTERNS[spec.kind]})$"}}
    if spec.kind is Kind.HOSTS:
        found["minItems"] = 1
    unit = f" [{spec.unit}]" if spec.unit else ""
    return {"description": spec.meaning + unit, **found, "default": setting.default}


def schema() -> JsonObject:
    """The schema that the table makes."""
    top: JsonObject = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:proxlb-agent:config:1",
        "title": "Settings of proxlb-agent, both files in one",
        "type": "object",
        "additionalProperties": False,
        "properties": {},
    }
    for setting in rows():
        *sections, name = setting.path.split(".")
        place = top
        for part in sections:
            below = place["properties"]
            assert isinstance(below, dict)
            section = below.setdefault(part, {"type": ["object", "null"], "additionalProperties": False, "properties": {}})
            assert isinstance(section, dict)
            place = section
        below = place["properties"]
        assert isinstance(below, dict)
        below[name] = schema_of(setting)
    return top


def test_the_schema_is_what_the_table_makes(accept: bool) -> None:
    made = json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"
    if accept:
        SCHEMA.write_text(made, encoding="utf-8")
    assert SCHEMA.read_text(encoding="utf-8") == made, "run pytest --accept and read what changed"


VALUES: st.SearchStrategy[Json] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 10**10),
    st.floats(-10, 1000).filter(lambda number: not number.is_integer()),  # 2.0 is an integer to the schema alone
    st.sampled_from(["off", "full", "all", "never", "info", "/a", "a@b!cd", "pve1", "200-299", "5", "x y", "", "[::1]:80", "1.2.3.4:1"]),
)


@given(st.dictionaries(st.sampled_from([setting.path for setting in rows()]), VALUES | st.lists(VALUES, max_size=3), max_size=5))
def test_schema_and_check_agree_on_any_document(chosen: dict[str, Json]) -> None:
    document: JsonObject = {}
    for path, value in chosen.items():
        *sections, name = path.split(".")
        place = document
        for part in sections:
            section = place.setdefault(part, {})
            assert isinstance(section, dict)
            place = section
        place[name] = value
    found = check(document)
    own = found if isinstance(found, tuple) else ()
    together = (
        "is less than triggers.settle_s",
        "all have no weight",
        "by what is assigned alone",
    )  # only the check sees several settings at once
    refused = {problem.path.partition("[")[0] for problem in own if not any(text in problem.text for text in together)}
    errors = jsonschema.Draft202012Validator(schema()).iter_errors(document)
    by_schema = {".".join(str(part) for part in error.absolute_path if isinstance(part, str)) for error in errors}
    bare_off = {path for path, value in chosen.items() if value is False and "off" in row(path).spec.choices}
    assert refused == by_schema - bare_off


def valid_values(setting: Row) -> st.SearchStrategy[Json]:
    spec = setting.spec
    lists = {
        Kind.HOSTS: st.lists(st.sampled_from(["localhost", "::1", "pve1:8006"]), min_size=1, max_size=3),
        Kind.NODES: st.lists(st.from_regex(r"\A[a-z][a-z0-9]{0,5}\Z"), max_size=3),
        Kind.GUESTS: st.lists(st.integers(100, 999_999_999) | st.sampled_from(["100-200", "999-999999999"]), max_size=3),
    }
    match spec.kind:
        case Kind.POOLS:
            pool = st.fixed_dictionaries(
                {}, optional={name: valid_values(Row(name, below, None, File.CLUSTER)) for name, below in POOL_SPECS.items()}
            )
            return st.dictionaries(st.sampled_from(["web", "db.1", "a/b"]), pool | st.none(), max_size=2)
        case Kind.STORAGES:
            return st.dictionaries(st.sampled_from(["local", "local-zfs"]), st.sampled_from(["local-lvm", "a.b_c"]), max_size=2)
        case Kind.SPANS:
            days = st.lists(st.sampled_from(DAYS), max_size=3)
            span = st.fixed_dictionaries(
                {"from": st.sampled_from(["00:00", "1:30"]), "to": st.sampled_from(["05:00", "24:00"]), "days": days}
            )
            return st.lists(span, max_size=2)
        case Kind.SWITCH:
            return st.booleans()
        case Kind.WHOLE:
            return st.integers(int(spec.low), int(spec.high)) | (st.none() if spec.optional else st.nothing())
        case Kind.NUMBER:
            return st.floats(spec.low, spec.high) | st.integers(int(spec.low), int(spec.high))
        case Kind.CHOICE:
            return st.sampled_from(spec.choices)
        case Kind.PATH:
            return st.from_regex(r"\A/[a-zé ]{0,9}\Z")
        case Kind.TOKEN_ID:
            return st.just("someone@example@ldap!token-1")
        case _:
            return lists[spec.kind]


@given(
    st.sampled_from([row for row in rows() if row.path != "triggers.settle_s"]).flatmap(
        lambda row: valid_values(row).map(lambda v: (row, v))
    )
)
def test_any_valid_setting_survives_being_printed_and_read_again(case: tuple[Row, Json]) -> None:
    setting, value = case
    document = nested(setting.path, value)
    if setting.path == "triggers.settle_max_s":
        document["triggers"] = {"settle_s": 0, "settle_max_s": value}
    if setting.path in ("balance.cpu.threshold_percent", "balance.memory.threshold_percent"):
        document["balance"] = {setting.path.split(".")[1]: {"measure": "assigned", "threshold_percent": value}}
    found = settings_of(document)
    assert settings_of(as_document(found)) == found
    assert settings_of(json.loads(json.dumps(as_document(found)))) == found


def test_pools_are_read_by_name_each_over_the_defaults_of_a_pool() -> None:
    document: Json = {"pools": {"db": {"rule": "anti-affinity", "pin": ["pve1"]}, "a/b": None, "web": {"strict": False}}}
    found = settings_of(document).pools
    assert found == (PoolSettings("db", PoolRule.ANTI_AFFINITY, ("pve1",)), PoolSettings("a/b"), PoolSettings("web", strict=False))
    assert type(found[0].rule) is PoolRule
    assert settings_of({"pools": None}).pools == ()
    assert settings_of({"rules": {"tags": "registered"}}).rules.tags is TagTrust.REGISTERED


def test_a_storage_map_is_read_name_by_name() -> None:
    assert settings_of({"guests": {"storage_map": {"local-lvm": "local-zfs", "a1": "b1"}}}).guests.storage_map == (
        ("local-lvm", "local-zfs"),
        ("a1", "b1"),
    )
    assert settings_of({"guests": {"storage_map": None}}).guests.storage_map == ()
    assert lines_of(check({"guests": {"storage_map": {"local-lvm": 1, "-x": "b1", "ok": "b1"}}})) == [
        "guests.storage_map.local-lvm: must map a storage's name to a storage's name, not to 1",
        "guests.storage_map.-x: must map a storage's name to a storage's name, not to \"b1\"",
    ]


def test_an_enum_arrives_as_an_enum() -> None:
    assert settings_of({"guests": {"containers": "always"}}).guests.containers is ContainerPolicy.ALWAYS
