"""What is left of a release that was uninstalled: nothing, whatever was in the way. On a real API server; machines are
cleaned in name only here, and really by kubelets in test_kubelet_uninstall.py.
"""

import itertools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import typer
import yaml

from netloom.api.errors import UserError
from netloom.cli.app import app
from netloom.runtime.client import Api
from netloom.runtime.errors import Unavailable
from netloom.uninstall.deleting import empty
from netloom.uninstall.installation import NETWORK_KINDS, Thing, agents, kept, refusing
from netloom.uninstall.patience import PatientApi
from netloom.uninstall.steps import OWN_NAMESPACE, UninstallOptions, uninstall
from netloom.webhook.names import CA_SECRET, NAME, NAMESPACE, OPERATOR_USER
from netloom_e2e import crds
from netloom_e2e.api_objects import COMES_AND_GOES, objects
from netloom_e2e.chart import CHART, SOME_IMAGE, Manifest, rendered
from netloom_e2e.chart_machines import CONTROLLERS, NETLOOM, Machines
from netloom_e2e.chart_sources import EXAMPLES
from netloom_e2e.client import ApiFailure
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.components import ControllerManager
from netloom_e2e.lab import environment, wait_for
from netloom_e2e.rights import Account, Audit, Right, granted

GROUP = "/apis/netloom.dev/v1alpha1"
TAINT = "node.netloom.dev/not-ready"
AS_OPERATOR = (f"--as={OPERATOR_USER}", "--as-group=system:masters")
NOBODY = 'guard.url="https://127.0.0.1:9"'
"""Where no guard answers: all that webhooks are asked about is refused."""
JOB = Account(NAMESPACE, "netloom-uninstall")
EARLY = Right("", "configmaps", "delete", NAMESPACE, NAME)
"""It may be before the API server knows that the policy is gone which guards the record, and tries again."""
KUBELETS = {"n1": True, "n2": True, "n3": False}
SEEN = tuple(each for each in COMES_AND_GOES if each != "leases")
NODE_LEASES = ("Lease/kube-system/", "Lease/kube-node-lease/")

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    return Audit(tmp_path_factory.mktemp("audit"))


@pytest.fixture(scope="module")
def plane(control_plane_binaries: Path, helm_binary: Path, audit: Audit) -> Iterator[ControlPlane]:
    controllers = ControllerManager(controllers=CONTROLLERS)
    with ControlPlane(controller_manager=controllers, apiserver_flags=audit.flags) as made:
        crds.install(made)
        yield made


@pytest.fixture
def machines(plane: ControlPlane) -> Iterator[Machines]:
    """Two that live, and one whose kubelet is silent."""
    if not exists(plane, f"/api/v1/namespaces/{NAMESPACE}"):
        plane.kubectl("create", "namespace", NAMESPACE)
        wait_for("its account", lambda: exists(plane, f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default"))
    with Machines(plane, KUBELETS, TAINT) as made:
        yield made


def all_objects(plane: ControlPlane) -> set[str]:
    return {each for each in objects(plane, SEEN) if not each.startswith(NODE_LEASES)}


def exists(plane: ControlPlane, path: str) -> bool:
    try:
        plane.client.request("GET", path)
    except ApiFailure:
        return False
    return True


def helm(plane: ControlPlane, verb: str, *arguments: str | Path) -> tuple[int, str]:
    done = plane.helm(verb, "netloom", *arguments, f"--namespace={NAMESPACE}", check=False, timeout=300)
    return done.returncode, f"{done.stdout}{done.stderr}"


def install(plane: ControlPlane, *values: str) -> None:
    status, said = helm(
        plane,
        "install",
        CHART,
        f"--set=image.repository={SOME_IMAGE}",
        *(f"--set-json={each}" for each in (NOBODY, *values)),
    )
    assert status == 0, said


def live(plane: ControlPlane) -> None:
    """As if an operator, agents and a guard had been there, and users."""
    client = plane.client
    network = json.dumps({"metadata": {"finalizers": ["netloom.dev/in-use"]}})
    patch = ("patch", "netloomnetwork", "default", "--type=merge")
    plane.kubectl(*patch, f"--patch={network}", *AS_OPERATOR)
    status = json.dumps({"status": {"ipam": {"mode": "kubernetes", "inUse": "2 nodes hold addresses (n1, n2)"}}})
    plane.kubectl(*patch, f"--patch={status}", "--subresource=status", *AS_OPERATOR)
    for name in KUBELETS:
        node = {"apiVersion": "netloom.dev/v1alpha1", "kind": "NetloomNode", "metadata": {"name": name}}
        node["spec"] = {"ipam": {"mode": "kubernetes", "podCIDRs": []}}
        plane.kubectl("create", "--filename=-", *AS_OPERATOR, input=json.dumps(node))
        lease = {"metadata": {"name": f"netloom-agent-{name}"}, "spec": {"holderIdentity": name}}
        client.request("POST", f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases", lease)
    ledger = {"apiVersion": "netloom.dev/v1alpha1", "kind": "NetloomLedger", "metadata": {"name": "ledger"}}
    client.request("POST", f"{GROUP}/netloomledgers", ledger | {"spec": {}})
    prefilter = {"apiVersion": "netloom.dev/v1alpha1", "kind": "NetloomPrefilter", "metadata": {"name": "users"}}
    client.request("POST", f"{GROUP}/netloomprefilters", prefilter | {"spec": {}})
    # Or a guard would be asked.
    annotations = {"meta.helm.sh/release-namespace": NAMESPACE}
    of_release = {"name": "users", "labels": {"app.kubernetes.io/managed-by": "Helm"}, "annotations": annotations}
    pool = {"apiVersion": "netloom.dev/v1alpha1", "kind": "NetloomIPPool", "metadata": of_release}
    client.request(
        "POST", f"{GROUP}/netloomippools", pool | {"spec": {"ipv4": {"cidrs": ["10.9.0.0/16"], "maskSize": 27}}}
    )
    data = {"data": {"netloomMode": "kubernetes", "netloomInUse": "2 nodes hold addresses (n1, n2)"}}
    written = ("patch", "configmap", NAME, f"--namespace={NAMESPACE}", "--type=merge", f"--patch={json.dumps(data)}")
    plane.kubectl(*written, *AS_OPERATOR)
    client.request("POST", f"/api/v1/namespaces/{NAMESPACE}/secrets", {"metadata": {"name": CA_SECRET}})
    in_force = ("delete", "netloomnetwork", "default", "--dry-run=server", "--as=admin", "--as-group=system:masters")
    wait_for("the policy refuses", lambda: "cannot be deleted" in plane.kubectl(*in_force, check=False).stderr)


def taints(plane: ControlPlane) -> dict[str, list[str]]:
    nodes = plane.client.request("GET", "/api/v1/nodes")["items"]
    return {
        each["metadata"]["name"]: [t["key"] for t in each["spec"].get("taints", ()) if t["key"] == TAINT]
        for each in nodes
    }


def test_the_job_may_delete_what_stands_between_users_and_writes() -> None:
    hooks = [each for each in rendered() if each["metadata"]["name"] == "netloom-uninstall"]
    (role,) = [each for each in hooks if each["kind"] == "ClusterRole"]
    allowed = {
        (plural, name) for rule in role["rules"][:2] for plural in rule["resources"] for name in rule["resourceNames"]
    }
    assert allowed == {(each.plural, each.name) for each in (*refusing(), *kept())}
    assert all(each["metadata"]["annotations"]["helm.sh/hook"] == "pre-delete" for each in hooks)
    assert not [
        each for each in rendered({"cleanup.enabled": False}) if each["metadata"]["name"] == "netloom-uninstall"
    ]


def test_without_helm_a_manifest_does_it() -> None:
    manifests = [*yaml.safe_load_all((EXAMPLES / "uninstall.yaml").read_text())]
    (job,) = [each for each in manifests if each["kind"] == "Job"]
    assert f"--pods-in={OWN_NAMESPACE}" in args(job)
    hooks = [each for values in ({}, {"agent.enabled": False}) for each in rendered(values) if each["kind"] == "Job"]
    for each in (job, *hooks):
        role, *words = args(each)
        typer.main.get_command(app).commands[role].make_context(role, words)  # type: ignore[attr-defined]


def args(job: Manifest) -> list[str]:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return list(container["args"])


def test_nothing_is_left_although_no_guard_answers_and_a_machine_was_in_the_way(
    plane: ControlPlane, machines: Machines, audit: Audit
) -> None:
    before = all_objects(plane)
    install(plane, "cleanup.timeoutSeconds=10")
    live(plane)
    installed = all_objects(plane)
    machines.dirty["n2"] = "no such image"

    status, said = helm(plane, "uninstall")
    assert status, (said, machines.said, machines.errors)
    told = machines.said[-1]
    assert "n1: clean. nothing is left of n1" in told
    assert "machines that are not clean after 10 s: n2: no such image" in told
    assert "Run it again when that is out of the way" in told
    # Nobody stands in the way of writes without answering, and what tells how things were is still there.
    assert not exists(plane, refusing()[0].path)
    assert exists(plane, f"{GROUP}/netloomnetworks/default")
    assert not [each for each in all_objects(plane) if "netloom-cleanup" in each]

    # Whoever thinks better of it goes back; to Helm, no revision is deployed that it could upgrade.
    status, said = helm(plane, "upgrade", CHART, "--reuse-values")
    assert status
    assert "has no deployed releases" in said
    status, said = helm(plane, "rollback", "1")
    assert status == 0, said
    made_by_roles = ("Pod/", f"Secret/{NAMESPACE}/{CA_SECRET}")
    assert {each for each in installed - all_objects(plane) if not each.startswith(made_by_roles)} == set()
    assert helm(plane, "upgrade", CHART, "--reuse-values")[0] == 0

    machines.dirty.clear()
    status, said = helm(plane, "uninstall")
    assert status == 0, (said, machines.said[-1:])
    assert all_objects(plane) - before == set()
    assert before - all_objects(plane) == set()
    assert "as their kubelets are silent: n3" in machines.said[-1]
    assert taints(plane) == {name: [] for name in KUBELETS}
    _used_its_rights(audit, {})


def _used_its_rights(audit: Audit, values: dict[str, Any]) -> None:
    """All of them, and none was missing."""
    faults = audit.faults(JOB, granted(rendered(values), JOB))
    assert {*faults.pop("was refused", ())} <= {EARLY}
    assert faults == {}


class Killed(BaseException):
    """As by SIGKILL, as far as the API server sees it."""


class Stumbling(Api):
    """Of each request the first is lost on its way, or its answer is."""

    asked: ClassVar[set[tuple[str, str]]] = set()

    async def request(self, method: str, path: str, **options: Any) -> bytes:
        known = (method, path) in self.asked
        self.asked.add((method, path))
        answer = await super().request(method, path, **options) if known or len(self.asked) % 2 else b""
        if not known:
            raise Unavailable(0, "NoAnswer", f"{method} {path}: no answer")
        return answer


class Mortal(PatientApi, Stumbling):
    """Dies when it has written `life` times."""

    life = 0
    pause = 0.01

    async def request(self, method: str, path: str, **options: Any) -> bytes:
        answer: bytes | None = None
        try:
            answer = await super().request(method, path, **options)
        finally:
            if method != "GET":
                type(self).life -= 1
                if type(self).life < 0:
                    raise Killed
        assert answer is not None
        return answer


async def test_killed_after_any_write_the_next_run_goes_on(plane: ControlPlane, machines: Machines) -> None:
    """By a kubeconfig, without Helm: then rights and accounts go as well. An API server that does not answer at once is
    asked again."""
    before = all_objects(plane)
    install(plane)
    live(plane)
    said: list[str] = []
    kills = 0
    for Mortal.life in itertools.count(1, 4):
        async with await Mortal.connect(str(plane.kubeconfig())) as api:
            api.say = said.append
            try:
                await uninstall(api, UninstallOptions(), said.append)
                break
            except Killed:
                kills += 1
                if not exists(plane, agents(NAMESPACE).path):
                    break  # that was the last write
    assert kills > 10
    assert sum("the API server is asked again for 45 s: " in each for each in said) > 1
    assert {*machines.cleaned} == {"n1", "n2"}
    # The release's record is all that Helm has still to take away.
    assert {each for each in all_objects(plane) - before if "sh.helm.release" not in each} == set()
    status, text = helm(plane, "uninstall", "--no-hooks")
    assert status == 0, text
    assert all_objects(plane) == before


async def test_a_finalizer_of_somebody_else_is_named(plane: ControlPlane, machines: Machines) -> None:
    prefilter = {"apiVersion": "netloom.dev/v1alpha1", "kind": "NetloomPrefilter"}
    prefilter |= {"metadata": {"name": "held", "finalizers": ["example.com/held"]}, "spec": {}}
    plane.client.request("POST", f"{GROUP}/netloomprefilters", prefilter)
    async with await Api.connect(str(plane.kubeconfig())) as api:
        with pytest.raises(UserError, match=r"held: held by the finalizers example.com/held, which whoever put them"):
            await empty(api, NETWORK_KINDS[-1], seconds=1)
    plane.client.request("PATCH", f"{GROUP}/netloomprefilters/held", {"metadata": {"finalizers": None}})
    assert not exists(plane, f"{GROUP}/netloomprefilters/held")


def test_the_guard_alone_takes_nothing_else_with_it(plane: ControlPlane, machines: Machines, audit: Audit) -> None:
    before = all_objects(plane)
    install(plane, "agent.enabled=false")
    plane.client.request("POST", f"/api/v1/namespaces/{NAMESPACE}/secrets", {"metadata": {"name": CA_SECRET}})
    network = {"apiVersion": "netloom.dev/v1alpha1", "kind": "NetloomNetwork", "metadata": {"name": "default"}}
    network["spec"] = {"ipam": {"mode": "kubernetes"}}
    plane.client.request("POST", f"{GROUP}/netloomnetworks", network)
    audit.begin()
    try:
        status, said = helm(plane, "uninstall")
        assert status == 0, (said, machines.said[-1:])
        assert all_objects(plane) == before | {"NetloomNetwork//default"}
        assert machines.cleaned == []
        assert taints(plane) == {name: [TAINT] for name in KUBELETS}
        _used_its_rights(audit, {"agent.enabled": False})
    finally:
        plane.client.request("DELETE", f"{GROUP}/netloomnetworks/default")


def test_the_namespace_is_being_deleted(plane: ControlPlane, machines: Machines) -> None:
    """That hangs, as the record is guarded; Helm can do nothing there; one command by kubeconfig leaves nothing."""
    of_namespace = f"/{NAMESPACE}/"
    before = {each for each in all_objects(plane) if of_namespace not in each} - {f"Namespace//{NAMESPACE}"}
    install(plane)
    live(plane)
    plane.kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    namespace = f"/api/v1/namespaces/{NAMESPACE}"

    def hangs() -> bool:
        conditions = plane.client.request("GET", namespace)["status"].get("conditions", ())
        return any(NAME in each["message"] for each in conditions if each["type"] == "NamespaceDeletionContentFailure")

    wait_for("the guard's record holds it", hangs, deadline=60)
    assert helm(plane, "uninstall")[0], "Helm has no record any more, or can make no Job there"

    command = ("uninstall", "--yes", f"--kubeconfig={plane.kubeconfig()}")
    refused = run(*command)
    assert "which image cleans the machines is not known" in refused[1]
    status, said = run(*command, "--image=netloom:1")
    assert status == 0, said
    assert {*machines.cleaned} == {"n1", "n2"}
    # Its controller waits ever longer between two looks, up to a minute.
    wait_for("the namespace is gone", lambda: not exists(plane, namespace), deadline=180)
    assert not exists(plane, Thing("/api/v1", "namespaces", OWN_NAMESPACE).path)
    assert all_objects(plane) == before
    assert run(*command, "--no-nodes")[0] == 0, "and once more, where nothing is to be done"
    plane.kubectl("delete", "--filename", crds.FOLDER, timeout=60)


def run(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [NETLOOM, *arguments], capture_output=True, text=True, env=environment(), timeout=240, check=False
    )
    return done.returncode, f"{done.stdout}{done.stderr}"
