# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration files: the settings that they state, and the copy of the last good ones of the cluster."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from agent.adapters import yaml_files
from agent.adapters.pmxcfs import PmxcfsFiles
from agent.core import settings_check
from agent.core.journal import Level, MessageId, Record
from agent.core.json_types import Json
from agent.core.setting_specs import File
from agent.core.settings import Mode, Settings
from agent.ports import JournalSink, NotMountedError, OutsideError, PermanentError, SettingsSource

NODE_CONFIG = "/etc/proxlb-agent/config.yaml"
CLUSTER_CONFIG = "proxlb/config.yaml"
LAST_GOOD = "cluster-config.last-good.yaml"


class WrongSettingsError(PermanentError):
    """The settings are wrong: `lines` has every problem, `str()` all of them in one line."""

    def __init__(self, lines: tuple[str, ...]) -> None:
        super().__init__("; ".join(lines), "mend the file, and check it with: proxlb-agent check-config")
        self.lines = lines


class ConfigFiles:
    """The configuration as it is now: one file given by hand, or this node's and the cluster's.

    A file is parsed again only when its text has changed, as it is read every few seconds.
    """

    def __init__(self, config: str | None = None) -> None:
        self._config = config or os.environ.get("PROXLB_AGENT_CONFIG") or None
        self._file = yaml_files.YamlFile(self._config or NODE_CONFIG, missing_ok=self._config is None)
        self._own: tuple[Json, Settings | tuple[settings_check.Problem, ...]] | None = None
        self._seen: tuple[Json, str | None] | None = None
        self._result: Settings | tuple[settings_check.Problem, ...] | None = None
        self._good: tuple[Settings, str | None] | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that are read."""
        if self._config is not None:
            return (Path(self._config),)
        return (Path(NODE_CONFIG), Path(self.node_settings().paths.pmxcfs) / CLUSTER_CONFIG)

    def node_settings(self) -> Settings:
        """What this node's file alone says. Raises PermanentError that names every problem."""
        document = self._file.read()
        if self._own is None or self._own[0] is not document:
            self._own = (document, settings_check.check(document, File.NODE if self._config is None else File.ONE))
        return self._checked(self._own[1])

    def read(self) -> Settings:
        """See `agent.ports.SettingsSource`."""
        if self._config is not None:
            return self.node_settings()
        node = self._file.read()
        files = PmxcfsFiles(self.node_settings().paths.pmxcfs)
        text = files.read(CLUSTER_CONFIG)
        if self._result is None or self._seen != (node, text):
            cluster = None if text is None else yaml_files.parse(text, str(self.paths[1]))
            self._result, self._seen = settings_check.combine(node, cluster), (node, text)
            if isinstance(self._result, Settings):
                self._good = (self._result, text)
        return self._checked(self._result)

    def cluster_text(self, settings: Settings) -> tuple[str | None] | None:
        """The text of the cluster's file that made these settings, None in it when there was no file; None when others came after."""
        return (self._good[1],) if self._good is not None and self._good[0] is settings else None

    def _checked(self, result: Settings | tuple[settings_check.Problem, ...]) -> Settings:
        if isinstance(result, Settings):
            return result
        raise WrongSettingsError(tuple(f"{self._name(problem.file)}: {problem.line}" for problem in result))

    def _name(self, file: File) -> str:
        match file:
            case File.CLUSTER:
                return str(self.paths[-1])
            case File.NODE:
                return NODE_CONFIG
            case File.ONE:
                return self._config or "the settings"


def load_settings(config: str | None = None) -> Settings:
    """The settings for a command: those of the cluster where they can be read, else this node's alone.

    Raises:  PermanentError that names every problem.
    """
    source = ConfigFiles(config)
    try:
        return source.read()
    except PermanentError:
        raise
    except OutsideError:
        return source.node_settings()


def settings_in_force(config: str | None = None) -> tuple[Settings, str]:
    """The settings that this node's agent works with, and what is wrong with the cluster's file where those are older than it.

    Raises:  PermanentError that names every problem of this node's file, or of the one given by hand; or that only root may read them.
    """
    try:
        return load_settings(config), ""
    except PermanentError as error:
        node_settings = ConfigFiles(config).node_settings()
        PmxcfsFiles(node_settings.paths.pmxcfs).read(CLUSTER_CONFIG)  # a mistake in a file that cannot be read is not what is wrong
        return last_good_settings(node_settings) or node_settings, f"{error}; {error.hint}" if error.hint else str(error)


def settings_paths(config: str | None = None) -> tuple[Path, ...]:
    """The files that hold the settings."""
    return ConfigFiles(config).paths


def first_settings(source: SettingsSource, node_settings: Settings, journal: JournalSink) -> Settings:
    """The settings to begin with: a broken file of the cluster gives way to its last good copy, else to mode observe."""
    try:
        return source.read()
    except NotMountedError:
        return node_settings  # read again when /etc/pve is there; until then nothing is done anyway
    except OutsideError as error:
        if (last_good := last_good_settings(node_settings)) is not None:
            _say(journal, Level.ERROR, MessageId.SETTINGS, f"the cluster's settings are broken, its last good ones are used: {error}")
            return last_good
        _say(journal, Level.ERROR, MessageId.SETTINGS, f"the cluster's settings are broken, so the agent only observes: {error}")
        result = settings_check.combine(yaml_files.read(NODE_CONFIG, missing_ok=True), {"mode": Mode.OBSERVE.value})
        return result if isinstance(result, Settings) else node_settings


def last_good_settings(node_settings: Settings) -> Settings | None:
    """This node's settings with the last good ones of the cluster that its agent has taken, None without a copy of them."""
    copy = Path(node_settings.paths.state) / LAST_GOOD
    with suppress(OutsideError):
        result = settings_check.combine(yaml_files.read(NODE_CONFIG, missing_ok=True), yaml_files.read(str(copy)))
        return result if isinstance(result, Settings) else None
    return None


def keep_last_good(text: str | None, state_folder: str, journal: JournalSink) -> None:
    """Keep a copy of the cluster's settings that were taken, for a start with broken ones; none of those before where there are none now.

    Whoever writes the first file and gets it wrong did not ask for the defaults: then a start only observes.
    """
    path = Path(state_folder) / LAST_GOOD
    temporary = path.with_suffix(".tmp")
    try:
        if text is None:
            path.unlink(missing_ok=True)
        elif not path.exists() or path.read_bytes() != text.encode():
            temporary.write_bytes(text.encode())
            temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        problem = f"the copy of the cluster's settings, for a start with broken ones, cannot be kept: {path}: {error.strerror}"
        _say(journal, Level.WARNING, MessageId.SETTINGS, problem)


def _say(journal: JournalSink, level: Level, message_id: MessageId, text: str) -> None:
    journal.say(Record(level, message_id, text))
