# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts the parts together: which adapter stands behind which port, made from the settings. The one place that names adapters."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from agent.adapters import local_files as local_folders
from agent.adapters import yaml_files
from agent.adapters.ha_manager import HaManagerCommand
from agent.adapters.inbox import InboxBell, InboxFolder
from agent.adapters.inbox import leave_request as leave_in_inbox
from agent.adapters.instance_lock import InstanceLock
from agent.adapters.journal import sink
from agent.adapters.memory import tidy
from agent.adapters.node_facts import ThisNode
from agent.adapters.pmxcfs import PmxcfsFiles, PmxcfsLock
from agent.adapters.system_clock import SystemClock
from agent.adapters.systemd import SystemdNotifier, watchdog_s
from agent.adapters.systemd import is_enabled as is_unit_enabled
from agent.adapters.systemd import is_shutting_down as systemd_shuts_down
from agent.core import settings_check
from agent.core.cluster import Snapshot
from agent.core.documents import DocumentError, HistoryFile, LoadsFile, parse
from agent.core.journal import Level, MessageId, Record
from agent.core.json_types import Json
from agent.core.leadership import LockTimes
from agent.core.setting_specs import File
from agent.core.settings import Mode, Settings
from agent.daemon import inputs
from agent.daemon.agent import Agent
from agent.daemon.identity import Identity
from agent.daemon.inputs import Now
from agent.daemon.network import Network
from agent.daemon.outputs import ReadSigns
from agent.daemon.outside import HISTORY_PATH, Ports
from agent.daemon.perform import Performer
from agent.daemon.reading import signs_of
from agent.ports import (
    ClusterApi,
    ClusterFiles,
    FilesystemState,
    InboxSight,
    JournalSink,
    LocalFiles,
    NotMountedError,
    OutsideError,
    PermanentError,
    SettingsSource,
    UnknownTokenError,
)
from agent.service import Service

if TYPE_CHECKING:
    from agent.core.learned import Learned
    from agent.daemon.senses import Senses

NODE_CONFIG = "/etc/proxlb-agent/config.yaml"
CLUSTER_CONFIG = "proxlb/config.yaml"
LAST_GOOD = "cluster-config.last-good.yaml"
INSTANCE_LOCK = "agent.lock"


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
        make_files(node_settings).read(CLUSTER_CONFIG)  # a mistake in a file that cannot be read is not what is wrong
        return last_good_settings(node_settings) or node_settings, f"{error}; {error.hint}" if error.hint else str(error)


def settings_paths(config: str | None = None) -> tuple[Path, ...]:
    """The files that hold the settings."""
    return ConfigFiles(config).paths


def make_files(settings: Settings) -> ClusterFiles:
    """The cluster's files below /etc/pve."""
    return PmxcfsFiles(settings.paths.pmxcfs)


def local_files(settings: Settings) -> LocalFiles:
    """This node's own files."""
    return local_folders.NodeFiles(settings.paths.run, settings.paths.state)


def status_path(settings: Settings) -> Path:
    """Where this node's agent says how it is."""
    return Path(settings.paths.run) / local_folders.STATUS


def has_ended(settings: Settings) -> bool:
    """True when this node's agent has left its lock file behind, and its process is gone; False where that cannot be seen."""
    holder = InstanceLock(str(Path(settings.paths.run) / INSTANCE_LOCK)).holder()
    return holder is not None and not Path(f"/proc/{holder}").exists()


def own_node(settings: Settings) -> str | None:
    """The name of the node this runs on, None off a node (no mounted pmxcfs)."""
    if make_files(settings).state() is FilesystemState.NOT_MOUNTED:
        return None
    return host_name()


def host_name() -> str:
    """This machine's name without its domain, which is the node's name in PVE."""
    return os.uname().nodename.split(".")[0]


def wall_s() -> float:
    """The time, in Unix seconds."""
    return SystemClock().wall_s()


def is_shutting_down() -> bool:
    """True when this machine is on its way down."""
    return systemd_shuts_down()


def is_enabled(unit: str) -> bool:
    """True when its admin has enabled the unit."""
    return is_unit_enabled(unit)


def make_api(settings: Settings) -> ClusterApi:
    """The cluster's API. Imports proxmoxer only here: a follower never does.

    Raises:  PermanentError when there is no token yet, with what to run.
    """
    from agent.adapters.pve.without_chardet import without_chardet

    with without_chardet():
        from agent.adapters.pve.api import PveApi
        from agent.adapters.pve.trust import ApiAccess

    api, files = settings.api, make_files(settings)
    is_on_node = files.state() is not FilesystemState.NOT_MOUNTED
    return PveApi(
        ApiAccess(
            hosts=tuple(api.hosts),
            token_id=api.token_id,
            token_secret=lambda: _token_secret(api.token_file),
            own_node=host_name() if is_on_node else None,
            pmxcfs=settings.paths.pmxcfs,
            ca_file=api.ca_file or None,
            verify_tls=api.verify_tls,
            timeout_s=api.timeout_s,
        ),
        read_file=files.read if is_on_node else None,
    )


def _token_secret(path: str) -> str | None:
    given = os.environ.get("PROXLB_AGENT_TOKEN", "").strip()
    if given:
        return given
    try:
        return Path(path).read_text(encoding="ascii").strip() or None
    except FileNotFoundError:
        return None
    except PermissionError:
        raise PermanentError(f"{path}: only root may read the token", "run this as root, or set PROXLB_AGENT_TOKEN") from None
    except UnicodeDecodeError:
        raise UnknownTokenError(f"{path}: this is no token's secret", "run: proxlb-agent setup") from None
    except OSError as error:
        raise PermanentError(f"{path}: the token cannot be read: {error.strerror}", "it should be a file that root can read") from None


def look(settings: Settings) -> Snapshot:
    """The cluster now: what the API shows, and on a node what its files add (flags, reports, unseen guests)."""
    api = make_api(settings)
    try:
        snapshot = api.look()
    finally:
        api.close()
    files = make_files(settings)
    if files.state() is FilesystemState.NOT_MOUNTED:
        return snapshot
    senses = read_senses(settings, files)
    return senses.enriched(snapshot) if senses is not None else snapshot


def read_senses(settings: Settings, files: ClusterFiles) -> Senses | None:
    """What this node's files tell at one look, None when they cannot be read."""
    from agent.daemon.senses import Senses  # commands look as a leader does; an agent that follows does not

    clock = SystemClock()
    seen = signs_of(files, ReadSigns(statistics=True))
    if seen.error:
        return None
    senses = Senses(host_name())
    senses.on_signs(seen, Now(clock.boottime_s(), clock.wall_s()), settings, lambda _: True)
    return senses


def in_slots(settings: Settings) -> Settings:
    """The settings, with one slot for migrations where this node's files say that these share corosync's network."""
    network = Network()
    network.on_signs(signs_of(make_files(settings), ReadSigns(statistics=True)), settings)
    return network.bound(settings)


def read_history(settings: Settings) -> HistoryFile | None:
    """What leaders did and remember, None when there is nothing yet or it cannot be read."""
    try:
        text = make_files(settings).read(HISTORY_PATH)
        return None if text is None else parse(HistoryFile, text)
    except (OutsideError, DocumentError):
        return None


def read_learned(settings: Settings) -> Learned:
    """What guests took before they stopped, as this node's agent learned while it led; nothing where that cannot be read."""
    try:
        text = local_files(settings).read_loads()
        return {} if text is None else {load.vmid: load for load in parse(LoadsFile, text).loads}
    except (OutsideError, DocumentError):
        return {}


def leave_request(settings: Settings, request_id: str, text: str) -> None:
    """Hand a command's request to this node's agent. Raises TemporaryError when none runs."""
    leave_in_inbox(request_id, text, f"{settings.paths.run}/inbox")


def read_yaml(path: str, *, missing_ok: bool = False) -> Json:
    """What a YAML file holds. Raises PermanentError with line and column, TemporaryError."""
    return yaml_files.read(path, missing_ok=missing_ok)


SECRET_PATH = "priv/proxlb/token"  # noqa: S105  # where it is, not what it is


def set_up_access(settings: Settings) -> tuple[tuple[str, bool], ...]:
    """Make role, user, token and permissions in PVE as far as they are missing; what was seen to, and whether it changed.

    Raises:  as `agent.adapters.pveum.set_up`, and what reading and writing below /etc/pve raises.
    """
    from agent.adapters.pveum import TOKEN_ID, Pveum, set_up

    files = make_files(settings)
    maps_storages = settings.guests.local_disks and bool(settings.guests.storage_map)
    steps = set_up(
        Pveum(),
        lambda: (files.read(SECRET_PATH) or "").strip() or None,
        lambda secret: files.write(SECRET_PATH, secret + "\n"),
        maps_storages=maps_storages,
        is_refused=lambda: settings.api.token_id == TOKEN_ID and refuses_the_token(settings),
    )
    return tuple((step.text, step.changed) for step in steps)


def refuses_the_token(settings: Settings) -> bool:
    """True when the API answers and does not know the token with the secret that is stored; False, too, where it cannot be asked."""
    if os.environ.get("PROXLB_AGENT_TOKEN") or settings.api.token_file != str(Path(settings.paths.pmxcfs) / SECRET_PATH):
        return False
    api = make_api(settings)
    try:
        api.look()
    except UnknownTokenError:
        return True
    except OutsideError:
        return False
    finally:
        api.close()
    return False


class _WatchedInbox:
    """The inbox folder, with its doorbell mended at each look: a folder made anew is another one."""

    def __init__(self, folder: InboxFolder, bell: InboxBell) -> None:
        self._folder, self._bell = folder, bell

    def claim(self) -> InboxSight:
        """See `agent.ports.LocalInbox`."""
        self._bell.mend()
        return self._folder.claim()


class _OneApi:
    """The API made when it is first asked for, and made anew when what it rests on has changed."""

    def __init__(self, source: Callable[[], Settings]) -> None:
        self._source = source
        self._made: tuple[object, ClusterApi] | None = None

    def __call__(self) -> ClusterApi:
        settings = self._source()
        key = (settings.api, settings.paths.pmxcfs)
        if self._made is None or self._made[0] != key:
            self._made = (key, make_api(settings))
        return self._made[1]


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


def run_agent(config: str | None = None) -> int:
    """Run this node's agent until it is told to stop; returns the exit status.

    Raises:  PermanentError for settings of this node that name nothing usable.
    """
    source = ConfigFiles(config)
    node_settings = source.node_settings()
    clock = SystemClock()
    journal = sink(os.environ, sys.stderr, Level[node_settings.log.level.name])
    folder = Path(node_settings.paths.run)
    with suppress(OSError):  # tmpfiles.d makes them; this is for a folder that somebody removed, and for trying the agent out
        folder.mkdir(mode=0o755, exist_ok=True)
        (folder / "inbox").mkdir(mode=0o700, exist_ok=True)
    instance = InstanceLock(str(folder / INSTANCE_LOCK))
    if not instance.take():
        holder = instance.holder()
        raise PermanentError(f"another agent runs on this node{f' (PID {holder})' if holder else ''}", "see: systemctl status proxlb-agent")
    settings = first_settings(source, node_settings, journal)
    times = LockTimes()  # its 30 s for a request are the most that api.timeout_s may be
    now = Now(clock.boottime_s(), clock.wall_s())
    agent = Agent(Identity(host_name(), os.urandom(6).hex(), boot_id()), settings, times, now)
    notifier = SystemdNotifier()
    inbox = f"{node_settings.paths.run}/inbox"

    def taken(settings: Settings) -> None:
        journal.level = Level[settings.log.level.name]
        if (taken_from := source.cluster_text(settings)) is not None:
            kept = (*taken_from, node_settings.paths.state, journal)
            threading.Thread(target=keep_last_good, args=kept, name="last-good", daemon=True).start()  # a disk may hang

    service = Service(agent, clock, notifier, watchdog_s(os.environ), on_settings=taken, tidy=tidy)
    bell = InboxBell(lambda: service.put(inputs.BellRang()), inbox)
    ports = Ports(
        clock=clock,
        lock=PmxcfsLock(clock, node_settings.paths.pmxcfs),
        files=PmxcfsFiles(node_settings.paths.pmxcfs),
        api=_OneApi(lambda: agent.settings),
        inbox=_WatchedInbox(InboxFolder(inbox), bell),
        facts=ThisNode(),
        ha_nodes=HaManagerCommand(),
        local=local_folders.NodeFiles(node_settings.paths.run, node_settings.paths.state),
        settings=source,
        journal=journal,
        notifier=notifier,
    )
    try:
        return service.run(Performer(ports, times))
    finally:
        bell.stop()


def boot_id() -> str:
    """A word for this boot of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _say(journal: JournalSink, level: Level, message_id: MessageId, text: str) -> None:
    journal.say(Record(level, message_id, text))
