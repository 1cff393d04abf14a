"""A release of the chart on a real cluster, from the first `helm install` on: tested, upgraded, refused, rolled back.

One cluster for all tests, which are in order. It begins with chart and image of the version before, whose definitions
know less than those of this tree, and ends with them. Between pods there are flows of 1,000 packets a second, in both
families, whenever something is exchanged.
"""

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from netloom_e2e import binaries, commit_before, kubelets
from netloom_e2e.api_objects import versions
from netloom_e2e.chart import CHART, SOME_IMAGE, older
from netloom_e2e.cluster import HelmError
from netloom_e2e.everyone import Everyone
from netloom_e2e.fixtures import built
from netloom_e2e.images import Image
from netloom_e2e.kubelets import KubeletCluster
from netloom_e2e.lab import environment
from netloom_e2e.mesh import NETLOOM, TUNNEL
from netloom_e2e.netloom_cluster import NAMESPACE, Release, rerouted
from netloom_e2e.netloom_image import another
from netloom_e2e.rights import Account, Audit

NETWORK = "/apis/netloom.dev/v1alpha1/netloomnetworks/default"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
RESTLESS = ("Pod/", "Node/", "ReplicaSet/", "DaemonSet/", "Deployment/", "CustomResourceDefinition/")
VALUES = {"test": {"wait": "1m"}}
FIRST_MODE = (("vxlan:8472",), TUNNEL)
MODES: tuple[tuple[tuple[str, ...], str, dict[str, Any]], ...] = (
    (("vxlan:7471",), "netloom_v7471", {"tunnelPort": 7471}),
    (("none", "vxlan:8472"), "eth0", {"routingMode": "hybrid"}),
    (("none",), "eth0", {"routingMode": "native", "autoDirectNodeRoutes": True}),
)
"""After the first: the ways that nodes announce, the device to other nodes, and the values that this comes from."""
NO_IMAGE = {"repository": "netloom.test/netloom", "tag": "nobody-made-it"}
LATE = """
apiVersion: v1
kind: Pod
metadata: {name: late}
spec:
  terminationGracePeriodSeconds: 0
  nodeName: ${node}
  containers: [{name: pause, image: "${pause}", imagePullPolicy: Never}]
"""


@pytest.fixture(scope="module")
def next_image() -> Image:
    """Of this tree; of another content than the first one's, too, where only the chart was changed."""
    with built():
        return another()


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    return Audit(tmp_path_factory.mktemp("audit"), NAMESPACE)


@pytest.fixture(scope="module")
def bed(next_image: Image, audit: Audit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeletCluster]:
    """The release is installed when its nodes are Ready, or this fails."""
    with built():
        kubelets.prepare()
        binaries.helm()
        chart = older(commit_before.chart(), tmp_path_factory.mktemp("chart"))
        first = Release(commit_before.image(), VALUES, chart)
    further = [first.image, next_image]
    made = KubeletCluster(
        kubelets.prefix(), network=first, further=further, dual_stack=True, apiserver_flags=audit.flags
    )
    with made as cluster:
        yield cluster


@pytest.fixture(scope="module")
def everyone(bed: KubeletCluster) -> Everyone:
    return Everyone(bed)


def put(
    bed: KubeletCluster, release: Release, changes: Mapping[str, Any], *options: str, image: Image | None = None
) -> None:
    """Upgrade, to this tree's chart. Raises HelmError."""
    release.put(bed.plane, "upgrade", changes, *options, image=image, chart=CHART)


def deployed(bed: KubeletCluster, release: Release) -> str:
    """The revision that is."""
    revisions = json.loads(told(bed, release, "history", "--output=json"))
    return str(max(each["revision"] for each in revisions if each["status"] == "deployed"))


def definition(bed: KubeletCluster, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = bed.plane.client.request("GET", f"{DEFINITIONS}/{kind}.netloom.dev")
    return found


def knows_forwarding(bed: KubeletCluster) -> bool:
    schema = definition(bed, "netloomnetworks")["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return "forwarding" in schema["properties"]["spec"]["properties"]


def netlooms(bed: KubeletCluster) -> list[dict[str, Any]]:
    """The pods of the release that are there to stay."""
    found = bed.plane.client.request("GET", f"{PODS}?labelSelector=app.kubernetes.io/part-of=netloom")["items"]
    return [each for each in found if "deletionTimestamp" not in each["metadata"]]


def images(bed: KubeletCluster) -> dict[str, set[str]]:
    """What its pods run, by their names' beginning."""
    running: dict[str, set[str]] = {}
    for pod in netlooms(bed):
        role = pod["metadata"]["labels"]["app.kubernetes.io/name"]
        running.setdefault(role, set()).update(each["image"] for each in pod["status"].get("containerStatuses", ()))
    return running


def all_run(image: Image) -> dict[str, set[str]]:
    return {f"netloom-{role}": {image.name} for role in ("agent", "operator")}


def state(bed: KubeletCluster) -> set[str]:
    """All that the API server has, and how often each was changed. Of pods and nodes, whose kubelets write of them, of
    what counts them, and of definitions, whose managers Helm writes down, only what is wanted of them."""
    found = {each for each in versions(bed.plane) if not each.startswith(RESTLESS)}
    for kinds in RESTLESS:
        listed = json.loads(bed.plane.kubectl("get", kinds.strip("/"), "--all-namespaces", "--output=json").stdout)
        found |= {f"{kinds}{identity(each)} {each['metadata'].get('generation', '')}" for each in listed["items"]}
    return found


def changed(before: set[str], after: set[str]) -> set[str]:
    """Which objects, by two states; Helm's record of the release is always among them."""
    return {each.split()[0] for each in before ^ after if "/sh.helm.release" not in each}


def identity(each: Mapping[str, Any]) -> str:
    meta = each["metadata"]
    return f"{meta.get('namespace', '')}/{meta['name']} {meta['uid']}"


def told(bed: KubeletCluster, release: Release, verb: str, *options: str) -> str:
    """What Helm says of the release, be it pleased or not."""
    done = release.helm(bed.plane, verb, *options, check=False)
    return done.stdout + done.stderr


def test_pods_reach_each_other_as_soon_as_it_is_installed(bed: KubeletCluster, everyone: Everyone) -> None:
    seconds = bed.seconds["network"] - bed.seconds["nodes"]
    print(f"helm install: all nodes Ready after {seconds:.1f} s")
    assert not knows_forwarding(bed), "it is the chart of before"
    sentence = (
        "netloomnetworks.netloom.dev is older than this program: it does not know spec.forwarding, so the API server"
    )
    operators = ("logs", "--selector=app.kubernetes.io/name=netloom-operator", f"--namespace={NAMESPACE}", "--tail=-1")
    bed.wait("operators to tell of it", lambda: sentence in bed.plane.kubectl(*operators).stdout)
    assert [*everyone.between_pods(), *everyone.by_service()] == []


def test_image_and_definitions_are_upgraded_and_no_packet_is_lost(
    bed: KubeletCluster, everyone: Everyone, release: Release, next_image: Image
) -> None:
    with everyone.flows() as flows:
        put(bed, release, {}, "--wait", image=next_image)
        bed.wait("all to run it", lambda: images(bed) == all_run(next_image))
        report = flows.stop()
    print(report)
    assert report.lossless, str(report)
    assert knows_forwarding(bed)
    managers = {each["manager"] for each in definition(bed, "netloomprefilters")["metadata"]["managedFields"]}
    assert "netloom-crds" in managers, "a Job brought it, as its pod may"
    left = bed.plane.kubectl("get", "jobs,clusterroles,serviceaccounts", "--all-namespaces", "--output=name").stdout
    assert "netloom-crds" not in left
    assert "netloom-image" not in left


def test_its_own_test_passes_and_shows_what_it_saw(bed: KubeletCluster, release: Release, audit: Audit) -> None:
    audit.begin()  # all that runs is of this tree from here on, as its rights are
    done = release.helm(bed.plane, "test", "--logs")
    assert "3 of 3 nodes ready" in done.stdout
    assert "no problems" in done.stdout
    for refused in ("the guard's record, written by another", "addresses for a node, by who is no operator"):
        assert f"{refused}: refused, as it has to be" in done.stdout
    roles = bed.plane.kubectl("get", "clusterroles,roles,serviceaccounts", "--all-namespaces", "--output=name").stdout
    assert "netloom-test" not in roles, "nobody keeps these rights"


def test_another_ipam_mode_and_a_second_release_are_refused_and_nothing_at_all_changes(
    bed: KubeletCluster, release: Release, next_image: Image
) -> None:
    """Neither what could have been done beside it; the next upgrade is done as if nothing had been."""
    before, history = state(bed), told(bed, release, "history")
    cluster_pool = {"mode": "cluster-pool", "operator": {"clusterPoolIPv4PodCIDRList": ["10.60.0.0/16"]}}
    with pytest.raises(HelmError) as refusal:
        put(bed, release, {"ipam": cluster_pool})  # and the image of before
    patch = ("--type=merge", f"--patch={json.dumps({'spec': {'ipam': {'mode': 'multi-pool'}}})}")
    by_the_guard = bed.plane.kubectl("patch", "netloomnetwork", "default", *patch, check=False).stderr
    for said, mode in ((refusal.value.stderr, "cluster-pool"), (by_the_guard, "multi-pool")):
        assert "the IPAM mode of a live cluster cannot change: 3 nodes hold addresses (n1, n2, n3) of mode " in said
        assert f"kubernetes, and in mode {mode} their pods would lose the network." in said
    some_image = f"--set=image.repository={SOME_IMAGE}"
    for name, namespace in (("netloom", "default"), ("second", NAMESPACE), ("second", "default")):
        done = bed.plane.helm("install", name, CHART, f"--namespace={namespace}", some_image, check=False)
        assert f"is there already, of release netloom in namespace {NAMESPACE}, and a cluster has one." in done.stderr
    assert state(bed) == before
    assert told(bed, release, "history") == history
    put(bed, release, {"enableIPv6Masquerade": False}, "--wait", image=next_image)
    assert changed(before, state(bed)) == {"NetloomNetwork//default"}
    assert bed.plane.client.request("GET", NETWORK)["spec"]["masquerade"]["ipv6"] is False


def test_the_routing_mode_is_changed_and_no_packet_is_lost(
    bed: KubeletCluster, everyone: Everyone, release: Release, next_image: Image
) -> None:
    """By one upgrade after the other."""
    with everyone.flows() as flows:
        for ways, device, values in MODES:
            put(bed, release, values, image=next_image)
            rerouted(bed, ways, device)
        report = flows.stop()
    print(report)
    assert report.lossless, str(report)
    assert [*everyone.between_pods()] == []


def test_an_image_that_does_not_exist_is_found_before_anything_changes(bed: KubeletCluster, release: Release) -> None:
    before = state(bed)
    with pytest.raises(HelmError) as refusal:
        put(bed, release, {"image": {**NO_IMAGE, "checkSeconds": 5}})
    assert f"Job/{NAMESPACE}/netloom-image-check not ready. status: Failed" in refusal.value.stderr
    status = told(bed, release, "status")
    assert "STATUS: failed" in status
    assert "netloom-image-check not ready" in status
    assert "netloom:nobody-made-it cannot be pulled or run, and nothing was changed:" in status
    assert {each for each in changed(before, state(bed)) if "/netloom-image-check" not in each} == set()


def test_where_that_is_not_looked_for_one_node_waits_for_the_way_back(
    bed: KubeletCluster, everyone: Everyone, release: Release, next_image: Image
) -> None:
    """Its pods do not notice, those that come wait, everybody is told, and all others' agents go on."""
    good = deployed(bed, release)
    with everyone.flows() as flows:
        put(bed, release, {**MODES[-1][2], "test": {"wait": "1s"}}, image=next_image)
        by_hand = ("set", "image", "daemonset/netloom-agent", f"agent={NO_IMAGE['repository']}:by-hand")
        bed.plane.kubectl(*by_hand, f"--namespace={NAMESPACE}")
        bed.wait("an agent to be replaced", lambda: without_image(bed, "netloom-agent"))
        (node,) = without_image(bed, "netloom-agent")
        said = told(bed, release, "test")
        assert "of 3 agents 2 are ready, and 1 are of the version that was asked for." in said
        assert re.search(rf"Pod {NAMESPACE}/netloom-agent-\w+ on {node}: \w*Image\w+: .*by-hand", said), said

        # So does Helm, with the operators beside it; of these, too, one is left.
        unchecked = {**MODES[-1][2], "image": {**NO_IMAGE, "checkUpgrades": False}}
        with pytest.raises(HelmError) as refusal:
            put(bed, release, unchecked, "--force-conflicts", "--wait", "--timeout=5s")
        for kind in ("DaemonSet", "Deployment"):
            assert f"resource {kind}/{NAMESPACE}/netloom-" in refusal.value.stderr
        assert "STATUS: failed" in told(bed, release, "status")
        for role in ("netloom-agent", "netloom-operator"):
            bed.wait(f"one {role} to be replaced, and no more", lambda r=role: len(without_image(bed, r)) == 1)  # type: ignore[misc]
        (node,) = without_image(bed, "netloom-agent")
        assert re.search(rf"Pod {NAMESPACE}/netloom-agent-\w+ on {node}: \w*Image\w+: .*nobody-made-it", status(bed))
        bed.apply(LATE, node=node)
        bed.wait("it to be told", lambda: "FailedCreatePodSandBox" in events(bed, "late"))
        assert "agent" in events(bed, "late")
        release.helm(bed.plane, "rollback", good, "--wait")
        late = bed.pod("late")
        report = flows.stop()
    assert report.lossless, str(report)
    assert late.ping(everyone.pods["n1"].address).lost == 0
    assert images(bed) == all_run(next_image)


def test_nobody_was_refused_anything(audit: Audit) -> None:
    """In all this, on nodes with kubelets; test_rights.py looks at what nobody uses."""
    roles = [Account(NAMESPACE, f"netloom-{role}") for role in ("agent", "operator", "test", "test-guard")]
    assert [account.name for account in roles if not audit.used(account.user)] == []
    assert {account.name: found for account in roles if (found := audit.forbidden(account.user))} == {}


def test_it_is_rolled_back_to_image_chart_and_routing_of_before_and_no_packet_is_lost(
    bed: KubeletCluster, everyone: Everyone, release: Release
) -> None:
    """Definitions stay as they are: they know all that those of before knew."""
    with everyone.flows() as flows:
        release.helm(bed.plane, "rollback", "1", "--wait")
        bed.wait("all to run it", lambda: images(bed) == all_run(release.image))
        rerouted(bed, *FIRST_MODE)
        report = flows.stop()
    print(report)
    assert report.lossless, str(report)
    assert bed.plane.client.request("GET", NETWORK)["spec"]["masquerade"]["ipv6"] is True
    assert knows_forwarding(bed)


def without_image(bed: KubeletCluster, role: str) -> list[str]:
    """The nodes where a pod waits for its image."""
    return [
        pod["spec"]["nodeName"]
        for pod in netlooms(bed)
        if pod["metadata"]["labels"]["app.kubernetes.io/name"] == role
        for container in pod["status"].get("containerStatuses", ())
        if "Image" in container["state"].get("waiting", {}).get("reason", "")
    ]


def status(bed: KubeletCluster) -> str:
    """`netloom status`, as an administrator runs it."""
    command = [NETLOOM, "status", f"--lease-namespace={NAMESPACE}"]
    env = environment() | {"KUBECONFIG": str(bed.plane.kubeconfig())}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False).stdout


def events(bed: KubeletCluster, name: str) -> str:
    return bed.plane.kubectl("get", "events", f"--field-selector=involvedObject.name={name}").stdout
