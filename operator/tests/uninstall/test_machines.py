"""How far machines are with being cleaned, the pod that cleans one, and what is kept for nobody."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer

from netloom.api.core import Pod, PodSpec, PodStatus
from netloom.api.meta import ObjectMeta
from netloom.api.pod_state import PodState
from netloom.cli.app import app
from netloom.roles.leftovers import forget
from netloom.uninstall.cleaner import PARKED, Cleaner, by_hand, like_agents, pod, pod_name
from netloom.uninstall.machines import MachineNode, look, wanted
from netloom.uninstall.steps import in_use


def machine(name: str, ready: str = "True", **labels: str) -> MachineNode:
    condition = {"type": "Ready", "status": ready, "lastTransitionTime": None}
    found = {"metadata": {"name": name, "labels": labels}, "status": {"conditions": [condition]}}
    return msgspec.convert(found, MachineNode)


def cleaning(node: str, phase: str, **states: Any) -> PodState:
    status = {"phase": phase, "containerStatuses": [states] if states else []}
    return msgspec.convert(
        {"metadata": {"name": pod_name(node)}, "spec": {"nodeName": node}, "status": status}, PodState
    )


def test_each_machine_is_cleaned_when_its_own_agent_has_ended() -> None:
    machines = [machine("a"), machine("b", "False"), machine("c", "Unknown"), machine("d")]
    left = {"state": {"terminated": {"exitCode": 0, "message": "a switch stays\n"}}}

    progress, ready = look(machines, {"a"}, [cleaning("d", "Succeeded", **left)])

    assert ready == ["b"], "one that is not ready, as for lack of a network, is cleaned; a silent one is not"
    assert progress.silent == ["c"]
    assert progress.clean == {"d": "a switch stays"}
    assert progress.open == {"a": "its agent has not ended", "b": "it was not begun"}


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ({"state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}, "no such image"),
        (
            {
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
                "lastState": {"terminated": {"exitCode": 1, "message": "netloom: not everything could be removed"}},
            },
            "netloom: not everything could be removed",
        ),
        ({}, "Pending"),
    ],
)
def test_why_one_is_not_clean_is_told(states: dict[str, Any], said: str) -> None:
    progress, ready = look([machine("a")], (), [cleaning("a", "Pending", **states)])
    assert (progress.open, ready) == ({"a": said}, [])


def test_machines_that_had_agents_are_wanted() -> None:
    machines = [machine("a", pool="x"), machine("b"), machine("c"), machine("w", **{"kubernetes.io/os": "windows"})]
    assert [each.metadata.name for each in wanted(machines, {"pool": "x"}, {"c"})] == ["a", "c"]
    assert [each.metadata.name for each in wanted(machines, {}, ())] == ["a", "b", "c"]


DAEMON_SET = {
    "spec": {
        "template": {
            "spec": {
                "nodeSelector": {"pool": "x", PARKED: ""},
                "imagePullSecrets": [{"name": "s"}],
                "containers": [
                    {
                        "name": "agent",
                        "image": "i:1",
                        "securityContext": {"seLinuxOptions": {"type": "t"}},
                        "resources": {"requests": {"cpu": "20m"}},
                    }
                ],
                "volumes": [
                    {"name": "cni-bin", "hostPath": {"path": "/cni/bin"}},
                    {"name": "bpffs", "hostPath": {"path": "/sys/fs/bpf"}},
                    {"name": "token", "projected": {}},
                ],
            }
        }
    }
}


def test_a_machine_is_cleaned_by_what_its_agent_was() -> None:
    cleaner = like_agents(DAEMON_SET)
    assert (cleaner.image, cleaner.bin_dir, cleaner.conf_dir) == ("i:1", "/cni/bin", "/etc/cni/net.d")
    assert cleaner.chosen == {"pool": "x"}
    spec = pod(cleaner, "n1", "ns")["spec"]
    assert [each["hostPath"] for each in spec["volumes"] if each["name"] in ("bpffs", "xtables-lock")] == [
        {"path": "/sys/fs/bpf", "type": "Directory"}
    ]
    assert (spec["nodeName"], spec["imagePullSecrets"]) == ("n1", [{"name": "s"}])
    (container,) = spec["containers"]
    assert container["securityContext"] == {"seLinuxOptions": {"type": "t"}}
    assert container["resources"] == {"requests": {"cpu": "20m"}}
    assert {each["name"] for each in spec["volumes"]} == {each["name"] for each in container["volumeMounts"]}
    assert like_agents(DAEMON_SET, "j:2").image == "j:2"


def test_its_words_are_known() -> None:
    for words in (
        pod(Cleaner("i"), "n1", "ns")["spec"]["containers"][0]["args"],
        by_hand(Cleaner("i", "/b")).split()[1:],
    ):
        command = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
        command.make_context(words[0], words[1:])


def test_names_of_pods_are_as_long_as_they_may_be() -> None:
    long = "n" * 253
    assert len(pod_name(long)) == 253
    assert pod_name(long) != pod_name(f"{long[1:]}m")


def test_who_uses_the_network_is_told() -> None:
    def made(name: str, **spec: Any) -> Pod:
        return Pod(metadata=ObjectMeta(name=name, namespace="x"), spec=PodSpec(**spec), status=PodStatus())

    of_host, pending = made("h", node_name="n", host_network=True), made("p")
    assert in_use([of_host, pending]) == "no pod has addresses of the pod network."
    said = in_use([made(name, node_name="n") for name in "abcd"])
    assert said.startswith(
        "4 pods have addresses of the pod network (x/a, x/b, x/c and 1 more), and LOSE THE NETWORK NOW"
    )


def test_what_a_cleanup_keeps_for_the_next_goes_where_there_is_none(tmp_path: Path) -> None:
    run, state = tmp_path / "run", tmp_path / "state"
    refused = state / "deletions" / "refused"
    refused.mkdir(parents=True)
    run.mkdir()
    for file in (run / "sysctl.json", run / "surroundings.json", refused / "x"):
        file.write_text("")
    somebodys = state / "notes"
    somebodys.write_text("")

    forget(run, state, state / "deletions")

    assert sorted(tmp_path.rglob("*")) == [state, somebodys]
