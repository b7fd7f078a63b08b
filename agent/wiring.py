# SPDX-License-Identifier: GPL-3.0-or-later
"""What commands reach of the world outside: which adapter stands behind which port, made from the settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from agent.adapters import local_files as local_folders
from agent.adapters import yaml_files
from agent.adapters.inbox import leave_request as leave_in_inbox
from agent.adapters.instance_lock import InstanceLock
from agent.adapters.pmxcfs import PmxcfsFiles
from agent.adapters.system_clock import SystemClock
from agent.adapters.systemd import is_enabled as is_unit_enabled
from agent.adapters.systemd import is_shutting_down as systemd_shuts_down
from agent.core.cluster import Snapshot
from agent.core.documents import DocumentError, HistoryFile, LoadsFile, parse
from agent.core.json_types import Json
from agent.core.settings import Settings
from agent.daemon.inputs import Now
from agent.daemon.network import Network
from agent.daemon.outputs import ReadSigns
from agent.daemon.outside import HISTORY_PATH
from agent.daemon.reading import signs_of
from agent.ports import ClusterApi, ClusterFiles, FilesystemState, LocalFiles, OutsideError, PermanentError, UnknownTokenError

if TYPE_CHECKING:
    from agent.core.learned import Learned
    from agent.daemon.senses import Senses

INSTANCE_LOCK = "agent.lock"


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


def boot_id() -> str:
    """A word for this boot of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
