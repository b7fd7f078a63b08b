# SPDX-License-Identifier: GPL-3.0-or-later
"""PVE's user management through its command `pveum`: makes what the agent needs to ask the API."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from agent.core.json_types import Json, JsonObject
from agent.ports import NoQuorumError, NotMountedError, OutsideError, PermanentError, TemporaryError

ROLE: Final = "ProxLBAgent"  # a name that begins with PVE, in any case, is refused
USER: Final = "proxlb@pve"
TOKEN: Final = "agent"  # noqa: S105  a name, no secret
TOKEN_ID: Final = f"{USER}!{TOKEN}"
# Known to PVE 8 and 9 alike. VM.PowerMgmt starts a container that PVE has not started again after its move.
PRIVILEGES: Final = ("Datastore.Audit", "Pool.Audit", "Sys.Audit", "VM.Audit", "VM.Migrate", "VM.PowerMgmt")
FOR_A_STORAGE_MAP: Final = ("Datastore.AllocateSpace", "VM.Config.Disk")  # PVE asks for them when disks change their storage
COMMENT: Final = "proxlb-agent"
CALL_S: Final = 90.0  # pveum waits 10 s for its lock and may hold it for 60 s

_NOT_MOUNTED = re.compile(r"ipcc_send_rec|not mounted|not online|Connection refused|Transport endpoint|Unable to load access control list")
_BUSY = re.compile(r"lock request timeout|timed out")


@dataclass(frozen=True, slots=True)
class SetupStep:
    """One thing that `set_up` saw to, in a sentence for the user, and whether it had to change something."""

    text: str
    changed: bool


class Pveum:
    """The executable, run as root on a node."""

    def __init__(self, executable: str = "pveum", timeout_s: float = CALL_S) -> None:
        self._executable = executable
        self._timeout_s = timeout_s

    def rows(self, *arguments: str) -> list[JsonObject]:
        """Return the objects that a listing command answers with.

        Raises:  as `set_up`.
        """
        answer = self._answer(arguments)
        if not isinstance(answer, list):
            raise _not_understood(arguments)
        return [row for row in answer if isinstance(row, dict)]

    def object(self, *arguments: str) -> JsonObject:
        """Return the one object that a command answers with.

        Raises:  as `set_up`.
        """
        answer = self._answer(arguments)
        if not isinstance(answer, dict):
            raise _not_understood(arguments)
        return answer

    def run(self, *arguments: str) -> str:
        """Run a command; return what it printed.

        Raises:  as `set_up`.
        """
        try:
            done = subprocess.run(
                [self._executable, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self._timeout_s,
                # C: its errors are told apart by their words. It sets a PATH of its own.
                env={"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            )
        except subprocess.TimeoutExpired:
            raise TemporaryError(f"pveum {_verb(arguments)} did not end within {self._timeout_s:.0f} s", 30) from None
        except OSError as error:
            raise PermanentError(
                f"{self._executable} cannot be run: {error.strerror}", "run this on a node of a Proxmox VE cluster"
            ) from error
        if done.returncode != 0:
            raise _refusal(_verb(arguments), done.stderr.decode("utf-8", "replace"))
        return done.stdout.decode("utf-8", "replace")

    def _answer(self, arguments: tuple[str, ...]) -> Json:
        try:
            answer: Json = json.loads(self.run(*arguments, "--output-format", "json"))
        except ValueError:
            raise _not_understood(arguments) from None
        return answer


def set_up(
    pveum: Pveum,
    load: Callable[[], str | None],
    store: Callable[[str], None],
    *,
    maps_storages: bool = False,
    is_refused: Callable[[], bool] = lambda: False,
) -> tuple[SetupStep, ...]:
    """Return what was seen to, after which the token exists, may do what the agent needs, and its secret is stored.

    What is in order is left alone, and so is what somebody added: further privileges of the role, further permissions.
    Broken off anywhere, it is put right by the next run. The token's privileges are separated from the user's (both have
    the role on /), so that what somebody grants the user later is not the agent's.

    Shape:   `maps_storages` says that disks are to change their storage; `load` gives the stored secret, None when there is none;
             `store` replaces it; `is_refused` tells whether the API refuses the token with that secret.
    Raises:  NotMountedError, NoQuorumError, TemporaryError (busy; or another setup at the same time), PermanentError (no
             pveum here, not root, user disabled, anything else that it refuses); and what `load` and `store` raise.
    """
    privileges = tuple(sorted({*PRIVILEGES, *(FOR_A_STORAGE_MAP if maps_storages else ())}))
    return (_role(pveum, privileges), _user(pveum), _token(pveum, load, store, is_refused), *_permissions(pveum))


def _role(pveum: Pveum, privileges: tuple[str, ...]) -> SetupStep:
    has = next((_words(row.get("privs")) for row in pveum.rows("role", "list") if row.get("roleid") == ROLE), None)
    if has is None:
        pveum.run("role", "add", ROLE, "--privs", ",".join(privileges))
        return SetupStep(f"made the role {ROLE}", changed=True)
    missing = [privilege for privilege in privileges if privilege not in has]
    if missing:
        pveum.run("role", "modify", ROLE, "--append", "1", "--privs", ",".join(missing))
        return SetupStep(f"added to the role {ROLE}: {', '.join(missing)}", changed=True)
    return SetupStep(f"the role {ROLE} has all privileges it needs", changed=False)


def _user(pveum: Pveum) -> SetupStep:
    for row in pveum.rows("user", "list"):
        if row.get("userid") == USER:
            if not _number(row.get("enable", 1)):
                raise PermanentError(
                    f"the user {USER} is disabled",
                    f"if the agent shall work again: pveum user modify {USER} --enable 1; then run this again",
                )
            if _has_expired(row):
                raise PermanentError(
                    f"the user {USER} has expired",
                    f"if the agent shall work again: pveum user modify {USER} --expire 0; then run this again",
                )
            return SetupStep(f"the user {USER} is there", changed=False)
    pveum.run("user", "add", USER, "--comment", COMMENT)
    return SetupStep(f"made the user {USER}, without a password", changed=True)


def _token(pveum: Pveum, load: Callable[[], str | None], store: Callable[[str], None], is_refused: Callable[[], bool]) -> SetupStep:
    token = next((row for row in pveum.rows("user", "token", "list", USER) if row.get("tokenid") == TOKEN), None)
    has_secret = bool((load() or "").strip())
    if token is not None:
        if _has_expired(token):
            raise PermanentError(
                f"the token {TOKEN_ID} has expired",
                f"if the agent shall work again: pveum user token modify {USER} {TOKEN} --expire 0; then run this again",
            )
        if has_secret and not is_refused():
            return SetupStep(f"the token {TOKEN_ID} is there, and so is its secret", changed=False)
        pveum.run("user", "token", "remove", USER, TOKEN)  # `delete` came only in the course of PVE 8
    made = pveum.object("user", "token", "add", USER, TOKEN, "--privsep", "1", "--comment", COMMENT)
    secret = made.get("value")
    if not isinstance(secret, str) or not secret:
        raise PermanentError(f"pveum made the token {TOKEN_ID} and named no secret", "run this again")
    store(secret)
    if token is not None:
        why = "refused" if has_secret else "lost"
        return SetupStep(f"removed the token {TOKEN_ID}, whose secret was {why}, and made it anew", changed=True)
    return SetupStep(f"made the token {TOKEN_ID} and stored its secret", changed=True)


def _permissions(pveum: Pveum) -> tuple[SetupStep, ...]:
    # Looked at after the token: PVE drops the permissions of a token that was removed.
    given = {
        (row.get("type"), row.get("ugid"))
        for row in pveum.rows("acl", "list")
        if row.get("path") == "/" and row.get("roleid") == ROLE and _number(row.get("propagate", 1))
    }
    steps: list[SetupStep] = []
    for kind, name in (("user", USER), ("token", TOKEN_ID)):
        if (kind, name) in given:
            steps.append(SetupStep(f"{name} has the role {ROLE} on /", changed=False))
        else:
            pveum.run("acl", "modify", "/", f"--{kind}s", name, "--roles", ROLE, "--propagate", "1")
            steps.append(SetupStep(f"gave {name} the role {ROLE} on /", changed=True))
    return tuple(steps)


def _refusal(verb: str, complaint: str) -> OutsideError:
    """What pveum's words on stderr mean."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    said = f"pveum {verb}: " + (_reason(lines) or "failed and did not say why")
    if "no quorum" in complaint:
        return NoQuorumError(said)
    if _NOT_MOUNTED.search(complaint):
        return NotMountedError(said)
    if "run as root" in complaint:
        return PermanentError(said, "run this as root")
    if "already exists" in complaint:
        return TemporaryError(f"{said} (is another setup running?)", 5)
    if _BUSY.search(complaint):
        return TemporaryError(said)
    return PermanentError(said)


def _reason(lines: list[str]) -> str:
    """The line that says why, of what may begin with progress and warnings and end with the usage."""
    for number, line in enumerate(lines):
        if line.startswith("400 "):
            return " ".join(lines[number : number + 2])  # the second names the parameter
    return lines[-1] if lines else ""


def _verb(arguments: tuple[str, ...]) -> str:
    """The command's words without values, `user token add`."""
    return " ".join(arguments[: 3 if arguments[:2] == ("user", "token") else 2])


def _not_understood(arguments: tuple[str, ...]) -> PermanentError:
    # Its answer is not shown: it may hold the secret.
    return PermanentError(f"pveum {_verb(arguments)} gave an answer that is not understood", "tell the makers of proxlb-agent")


def _words(value: Json) -> set[str]:
    return set(re.split(r"[,; ]+", value)) if isinstance(value, str) else set()


def _number(value: Json) -> int:
    """PVE's numbers may be texts."""
    try:
        return int(value) if isinstance(value, int | str) else 0
    except ValueError:
        return 0


def _has_expired(row: JsonObject) -> bool:
    return 0 < _number(row.get("expire")) <= time.time()
