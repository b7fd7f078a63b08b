# SPDX-License-Identifier: GPL-3.0-or-later
"""`setup` against an executable that plays pveum of PVE 8 and of PVE 9."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.adapters.pveum import PRIVILEGES, ROLE, TOKEN_ID, USER, Pveum, SetupStep, set_up
from agent.ports import NoQuorumError, NotMountedError, OutsideError, PermanentError, TemporaryError

FAKE = Path(__file__).with_name("fake_pveum")
AUDITOR = ["Datastore.Audit", "Pool.Audit", "SDN.Audit", "Sys.Audit", "VM.Audit"]


class Cluster:
    """A cluster's users, behind the fake pveum, and the file of the token's secret."""

    def __init__(self, folder: Path, release: int) -> None:
        self._path = folder / "state.json"
        self.stored: str | None = None
        self.executable = folder / "pveum"
        self.executable.write_text(f'#!/bin/sh\nexec {sys.executable} -IS "{FAKE}" "{self._path}" "$@"\n', encoding="utf-8")
        self.executable.chmod(0o755)
        self._path.write_text(
            json.dumps({
                "release": release, "uid": 0, "quorate": True, "mounted": True, "lock": None, "noise": [], "hang_s": 0, "fail_after": None,
                "writes": [], "roles": {"Administrator": ["Permissions.Modify"], "NoAccess": [], "PVEAuditor": AUDITOR},
                "users": {"root@pam": {"enable": 1, "expire": 0, "tokens": {}}},
                "acl": [{"path": "/", "type": "group", "ugid": "admins", "roleid": "Administrator", "propagate": 1}],
            })
        )  # fmt: skip

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
        return state

    def change(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change the cluster as somebody else would."""
        state = self.state
        change(state)
        self._path.write_text(json.dumps(state), encoding="utf-8")

    def set(self, **values: object) -> None:
        self.change(lambda state: state.update(values))

    def store(self, secret: str) -> None:
        self.stored = secret

    def set_up(self, timeout_s: float = 30, *, maps_storages: bool = False, refused: str | None = None) -> tuple[SetupStep, ...]:
        """refused:  a secret that the API refuses."""
        pveum = Pveum(str(self.executable), timeout_s)
        return set_up(pveum, lambda: self.stored, self.store, maps_storages=maps_storages, is_refused=lambda: self.stored == refused)

    def by_hand(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Type a pveum command."""
        return subprocess.run([str(self.executable), *arguments], capture_output=True, text=True)

    def permissions(self) -> set[tuple[str, str]]:
        """Return who has the role on / and all below."""
        return {
            (entry["type"], entry["ugid"])
            for entry in self.state["acl"]
            if entry["roleid"] == ROLE and entry["path"] == "/" and entry["propagate"] == 1
        }


@pytest.fixture(params=[8, 9], ids=["pve8", "pve9"])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Cluster:
    """A cluster that never saw the agent."""
    return Cluster(tmp_path, request.param)


@pytest.fixture(scope="module")
def after_first_run(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[dict[str, Any], str | None]]:
    """By release, what one run left: the cluster's state and the stored secret."""
    left = {}
    for release in (8, 9):
        made = Cluster(tmp_path_factory.mktemp("first-run"), release)
        made.set_up()
        left[release] = (made.state, made.stored)
    return left


@pytest.fixture
def ready(cluster: Cluster, after_first_run: dict[int, tuple[dict[str, Any], str | None]]) -> Cluster:
    """A cluster where setup ran once."""
    state, cluster.stored = after_first_run[cluster.state["release"]]
    cluster.set(**{**state, "writes": []})
    return cluster


def assert_ready(cluster: Cluster) -> None:
    """The token exists, its secret is the stored one, and it may do what the agent needs."""
    state = cluster.state
    assert set(PRIVILEGES) <= set(state["roles"][ROLE])
    assert state["users"][USER]["enable"] == 1
    assert state["users"][USER]["tokens"]["agent"]["secret"] == cluster.stored
    assert cluster.permissions() == {("user", USER), ("token", TOKEN_ID)}


def changed(steps: tuple[SetupStep, ...]) -> list[str]:
    return [step.text for step in steps if step.changed]


def test_the_first_run_makes_everything(cluster: Cluster) -> None:
    assert changed(cluster.set_up()) == [
        "made the role ProxLBAgent",
        "made the user proxlb@pve, without a password",
        "made the token proxlb@pve!agent and stored its secret",
        "gave proxlb@pve the role ProxLBAgent on /",
        "gave proxlb@pve!agent the role ProxLBAgent on /",
    ]
    assert_ready(cluster)
    assert cluster.state["roles"][ROLE] == list(PRIVILEGES)
    assert cluster.state["users"][USER]["tokens"]["agent"]["privsep"] == 1


def test_the_second_run_changes_nothing_and_says_so(ready: Cluster) -> None:
    before, secret = ready.state, ready.stored
    steps = ready.set_up()
    assert changed(steps) == []
    assert len(steps) == 5
    assert ready.state == before
    assert ready.stored == secret


def test_the_secret_is_in_no_sentence_and_no_command(cluster: Cluster) -> None:
    steps = cluster.set_up()
    assert cluster.stored is not None
    assert cluster.stored not in repr(steps) + repr(cluster.state["writes"])


@pytest.mark.parametrize("stored", [None, "", " \n"])
def test_a_token_whose_secret_was_lost_is_made_anew(ready: Cluster, stored: str | None) -> None:
    old = ready.stored
    ready.stored = stored
    assert changed(ready.set_up()) == [
        "removed the token proxlb@pve!agent, whose secret was lost, and made it anew",
        "gave proxlb@pve!agent the role ProxLBAgent on /",  # PVE dropped it with the token
    ]
    assert ready.stored != old
    assert_ready(ready)


def test_a_token_whose_stored_secret_the_api_refuses_is_made_anew_once(ready: Cluster) -> None:
    ready.stored = "another"
    assert changed(ready.set_up(refused="another")) == [
        "removed the token proxlb@pve!agent, whose secret was refused, and made it anew",
        "gave proxlb@pve!agent the role ProxLBAgent on /",
    ]
    assert_ready(ready)
    assert changed(ready.set_up(refused="another")) == []


def test_a_secret_without_its_token_is_replaced(cluster: Cluster) -> None:
    cluster.stored = "of a cluster that was"
    cluster.set_up()
    assert_ready(cluster)


def test_a_role_without_some_privileges_gets_them_and_keeps_its_others(ready: Cluster) -> None:
    ready.change(lambda state: state["roles"].update({ROLE: ["VM.Audit", "VM.Config.Disk"]}))
    assert changed(ready.set_up()) == ["added to the role ProxLBAgent: Datastore.Audit, Pool.Audit, Sys.Audit, VM.Migrate, VM.PowerMgmt"]
    assert set(ready.state["roles"][ROLE]) == {*PRIVILEGES, "VM.Config.Disk"}


def test_where_disks_change_their_storage_the_role_gets_what_that_needs(ready: Cluster) -> None:
    assert changed(ready.set_up(maps_storages=True)) == ["added to the role ProxLBAgent: Datastore.AllocateSpace, VM.Config.Disk"]
    assert changed(ready.set_up(maps_storages=True)) == []
    assert changed(ready.set_up()) == []
    assert set(ready.state["roles"][ROLE]) == {*PRIVILEGES, "Datastore.AllocateSpace", "VM.Config.Disk"}


def test_further_privileges_and_permissions_are_left_alone(ready: Cluster) -> None:
    ready.change(lambda state: state["roles"][ROLE].append("Sys.Syslog"))
    more = {"path": "/vms/100", "type": "user", "ugid": USER, "roleid": "NoAccess", "propagate": 1}
    ready.change(lambda state: state["acl"].append(more))
    before = ready.state
    assert changed(ready.set_up()) == []
    assert ready.state == before


@pytest.mark.parametrize("kind", ["user", "token"])
def test_a_lost_permission_is_given_again(ready: Cluster, kind: str) -> None:
    ready.change(lambda state: state.update(acl=[entry for entry in state["acl"] if entry["type"] != kind]))
    assert len(changed(ready.set_up())) == 1
    assert_ready(ready)


def test_a_permission_on_the_root_alone_is_extended_to_all_below(ready: Cluster) -> None:
    ready.change(lambda state: [entry.update(propagate=0) for entry in state["acl"] if entry["roleid"] == ROLE])
    assert len(changed(ready.set_up())) == 2
    assert_ready(ready)


def test_a_permission_elsewhere_is_not_taken_for_the_one_on_the_root(ready: Cluster) -> None:
    ready.change(lambda state: [entry.update(path="/vms") for entry in state["acl"] if entry["roleid"] == ROLE])
    assert len(changed(ready.set_up())) == 2
    assert_ready(ready)


def test_other_tokens_of_the_user_stay(ready: Cluster) -> None:
    assert ready.by_hand("user", "token", "add", USER, "mine").returncode == 0
    ready.stored = None
    ready.set_up()
    assert set(ready.state["users"][USER]["tokens"]) == {"agent", "mine"}


@pytest.mark.parametrize("writes", range(5))
def test_broken_off_after_any_step_the_next_run_completes_it(cluster: Cluster, writes: int) -> None:
    cluster.set(fail_after=writes)
    with pytest.raises(PermanentError, match="Input/output error"):
        cluster.set_up()
    assert len(cluster.state["writes"]) == writes
    cluster.set(fail_after=None)
    cluster.set_up()
    assert_ready(cluster)


@pytest.mark.parametrize("writes", range(3))
def test_broken_off_while_a_token_is_made_anew_the_next_run_completes_it(ready: Cluster, writes: int) -> None:
    ready.stored = None
    ready.set(fail_after=writes)
    with pytest.raises(PermanentError):
        ready.set_up()
    ready.set(fail_after=None)
    ready.set_up()
    assert_ready(ready)


def test_a_secret_that_could_not_be_stored_is_made_anew_by_the_next_run(cluster: Cluster) -> None:
    def refuse(secret: str) -> None:
        raise TemporaryError("no space")

    with pytest.raises(TemporaryError, match="no space"):
        set_up(Pveum(str(cluster.executable)), lambda: None, refuse)
    assert "made it anew" in " ".join(changed(cluster.set_up()))
    assert_ready(cluster)


def test_nothing_is_removed_while_the_stored_secret_cannot_be_read(ready: Cluster) -> None:
    before = ready.state

    def hang() -> str | None:
        raise NotMountedError("pmxcfs restarts")

    with pytest.raises(NotMountedError):
        set_up(Pveum(str(ready.executable)), hang, ready.store)
    assert ready.state == before


def test_warnings_on_stderr_change_nothing(cluster: Cluster) -> None:
    cluster.set(
        noise=["perl: warning: Setting locale failed.", "trying to acquire cfs lock 'file-user_cfg' ...", "no quorum? already exists"]
    )
    cluster.set_up()
    assert_ready(cluster)


def test_without_quorum_it_says_so_and_has_changed_nothing(cluster: Cluster) -> None:
    cluster.set(quorate=False)
    with pytest.raises(NoQuorumError, match="no quorum"):
        cluster.set_up()
    assert cluster.state["writes"] == []


def test_without_pmxcfs_it_says_so(cluster: Cluster) -> None:
    cluster.set(mounted=False)
    with pytest.raises(NotMountedError, match="Unable to load access control list"):
        cluster.set_up()


def test_a_held_lock_is_temporary(cluster: Cluster) -> None:
    cluster.set(lock="another node")
    with pytest.raises(TemporaryError, match=r"role add: .*got lock request timeout"):
        cluster.set_up()


def test_only_root_may(cluster: Cluster) -> None:
    cluster.set(uid=1000)
    with pytest.raises(PermanentError, match="please run as root") as refusal:
        cluster.set_up()
    assert refusal.value.hint == "run this as root"


@pytest.mark.parametrize(("change", "hint"), [({"enable": 0}, "--enable 1"), ({"expire": 1_000_000_000}, "--expire 0")])
def test_a_user_that_somebody_switched_off_stays_off(ready: Cluster, change: dict[str, int], hint: str) -> None:
    ready.change(lambda state: state["users"][USER].update(change))
    before = ready.state
    with pytest.raises(PermanentError) as refusal:
        ready.set_up()
    assert hint in refusal.value.hint
    assert ready.state == before


def test_a_token_that_has_expired_stays_so(ready: Cluster) -> None:
    ready.change(lambda state: state["users"][USER]["tokens"]["agent"].update(expire=1_000_000_000))
    with pytest.raises(PermanentError, match="expired"):
        ready.set_up()
    ready.change(lambda state: state["users"][USER]["tokens"]["agent"].update(expire=4_000_000_000))
    assert changed(ready.set_up()) == []


def test_two_at_once_one_is_told_to_try_again(cluster: Cluster) -> None:
    class Late(Pveum):
        """One whose listings are those of before the other ran."""

        def rows(self, *arguments: str) -> list[Any]:
            seen = super().rows(*arguments)
            if not cluster.state["writes"]:
                cluster.set_up()
            return seen

    with pytest.raises(TemporaryError, match="another setup"):
        set_up(Late(str(cluster.executable)), lambda: cluster.stored, cluster.store)
    assert changed(cluster.set_up()) == []
    assert_ready(cluster)


def test_a_pveum_that_hangs_is_ended(cluster: Cluster) -> None:
    cluster.set(hang_s=60)
    with pytest.raises(TemporaryError, match="role list did not end"):
        cluster.set_up(timeout_s=0.5)


def test_where_there_is_no_pveum_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="cannot be run") as refusal:
        Pveum(str(tmp_path / "pveum")).run("role", "list")
    assert "node of a Proxmox VE cluster" in refusal.value.hint


@pytest.mark.parametrize("answer", ["", "no json", '{"a": 1}', '"secret-1234"', "[1, 2"])
def test_an_answer_that_is_not_understood_is_refused_and_not_shown(tmp_path: Path, answer: str) -> None:
    executable = tmp_path / "pveum"
    executable.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n", encoding="utf-8")
    executable.chmod(0o755)
    with pytest.raises(PermanentError, match="pveum role list gave an answer that is not understood") as refusal:
        Pveum(str(executable)).rows("role", "list")
    assert refusal.value.__cause__ is None
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("complaint", "error", "said"),
    [
        ("cluster not ready - no quorum?", NoQuorumError, "pveum x y: cluster not ready - no quorum?"),
        ("create role failed: cfs-lock 'file-user_cfg' error: pve cluster filesystem not online.", NotMountedError, "not online"),
        ("pve configuration filesystem (pmxcfs) not mounted", NotMountedError, "not mounted"),
        ("'file-user_cfg'-locked command timed out - aborting", TemporaryError, "timed out"),
        (
            "400 Parameter verification failed.\nprivs: invalid format - invalid privilege 'VM.Fly'\n\n\npveum role add <roleid> [OPTIONS]",
            PermanentError,
            "pveum x y: 400 Parameter verification failed. privs: invalid format - invalid privilege 'VM.Fly'",
        ),
        ("", PermanentError, "pveum x y: failed and did not say why"),
        ("\udcff\n", PermanentError, "pveum x y: "),
    ],
)
def test_what_it_complains_of_is_told_in_one_line(tmp_path: Path, complaint: str, error: type[OutsideError], said: str) -> None:
    executable = tmp_path / "pveum"
    (tmp_path / "complaint").write_text(complaint, encoding="utf-8", errors="surrogateescape")
    executable.write_text(f"#!/bin/sh\ncat '{tmp_path}/complaint' >&2\nexit 255\n", encoding="utf-8")
    executable.chmod(0o755)
    with pytest.raises(error) as refusal:
        Pveum(str(executable)).run("x", "y")
    assert type(refusal.value) is error
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("release", "privilege", "known"), [(8, "VM.Monitor", True), (9, "VM.Monitor", False), (8, "VM.GuestAgent.Audit", False)]
)
def test_the_fake_knows_which_privileges_a_release_has(tmp_path: Path, release: int, privilege: str, known: bool) -> None:
    done = Cluster(tmp_path, release).by_hand("role", "add", "Mine", "--privs", privilege)
    assert (done.returncode == 0) is known
    assert known or f"invalid privilege '{privilege}'" in done.stderr


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("role add ProxLBAgent", "role 'ProxLBAgent' already exists"),
        ("role add PVEMine", "namespace"),
        ("user add proxlb@pve", "user 'proxlb@pve' already exists"),
        ("user token add proxlb@pve agent", "Token already exists."),
        ("user token remove proxlb@pve nobody", "no such token"),
        ("user token add nobody@pve agent", "no such user"),
        ("user token modify proxlb@pve agent --regenerate 1", "unknown command"),
        ("acl modify / --users nobody@pve --roles ProxLBAgent", "does not exist"),
        ("acl modify / --users proxlb@pve --roles Nothing", "does not exist"),
        ("acl modify / --users proxlb@pve --roles ProxLBAgent --output-format json", "Unknown option: output-format"),
        ("role list --frobnicate 1", "Unknown option: frobnicate"),
    ],
)
def test_the_fake_refuses_what_pveum_refuses(ready: Cluster, command: str, complaint: str) -> None:
    before = ready.state
    done = ready.by_hand(*command.split())
    assert done.returncode == 255
    assert complaint in done.stderr
    assert ready.state == before
