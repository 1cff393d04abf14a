"""The pod that takes away what agents made on one machine: `netloom cleanup`, with the rights of an agent.

It sees the folders that hold what agents left, not these themselves, so that it can remove them as well. How it ended,
and what it left and why, is in its termination message: nothing of its node has to be asked.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from netloom.uninstall.installation import AGENT, NAME_LABEL
from netloom_reconcilers.node.endpoints.options import BIN_DIR, CONF_DIR, DELETIONS, MOUNTED

NAME = "netloom-cleanup"
BIN, CONF = str(BIN_DIR), str(CONF_DIR)
TERMINATION = "/dev/termination-log"
_LONGEST_NAME = 253
_SECURITY = {
    "runAsUser": 0,
    "runAsGroup": 0,
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
_SOME = {
    "xtables-lock": {"path": "/run/xtables.lock", "type": "FileOrCreate"},
    "bpffs": {"path": "/sys/fs/bpf", "type": "Directory"},
}
"""Volumes, mounted where they are on the machine, of those agents alone that speak to the old iptables, or have a
prefilter: what is pinned in a bpffs would else go on dropping."""


@dataclass(frozen=True, slots=True)
class Cleaner:
    """What its pods are made of. bin_dir, conf_dir: of the machines. volumes: names, of `_SOME`. chosen: labels of
    machines that have agents. resources: what agents ask for, so that a namespace's quota lets these in as well."""

    image: str
    bin_dir: str = BIN
    conf_dir: str = CONF
    pull_policy: str = ""
    pull_secrets: tuple[Mapping[str, str], ...] = ()
    security: Mapping[str, Any] = field(default_factory=lambda: _SECURITY)
    resources: Mapping[str, Any] = field(default_factory=dict)
    volumes: tuple[str, ...] = ()
    chosen: Mapping[str, str] = field(default_factory=dict)


def like_agents(daemon_set: Mapping[str, Any], image: str = "") -> Cleaner:
    """As the agents of a DaemonSet are. image: instead of theirs."""
    pod = daemon_set["spec"]["template"]["spec"]
    agent = next((each for each in pod["containers"] if each["name"] == "agent"), pod["containers"][0])
    paths = {each["name"]: each.get("hostPath", {}).get("path", "") for each in pod.get("volumes", ())}
    chosen = {key: value for key, value in pod.get("nodeSelector", {}).items() if key != PARKED}
    return Cleaner(
        image=image or agent["image"],
        bin_dir=paths.get("cni-bin") or BIN,
        conf_dir=paths.get("cni-conf") or CONF,
        pull_policy=agent.get("imagePullPolicy", ""),
        pull_secrets=tuple(pod.get("imagePullSecrets", ())),
        security=agent.get("securityContext", _SECURITY),
        resources=agent.get("resources", {}),
        volumes=tuple(each for each in _SOME if each in paths),
        chosen=chosen,
    )


PARKED = "netloom.dev/uninstalled"
"""Label that no machine has. A DaemonSet that asks for it has no pods, and is there to tell how they were."""


def pod_name(node: str) -> str:
    """Of the pod on a machine."""
    name = f"{NAME}-{node}"
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME - 17]}-{hashlib.sha256(node.encode()).hexdigest()[:16]}"


def pod(cleaner: Cleaner, node: str, namespace: str) -> dict[str, Any]:
    """The manifest. It is placed by name, as nothing is to be waited for, least of all a network."""
    labels = {NAME_LABEL: NAME, "app.kubernetes.io/part-of": "netloom"}
    folders = {"sysctl": "/proc/sys/net", "run": "/run", "lib": "/var/lib"}
    folders |= {"cni-bin": cleaner.bin_dir, "cni-conf": cleaner.conf_dir}
    volumes = [{"name": name, "hostPath": {"path": path}} for name, path in folders.items()]
    mounts = [{"name": name, "mountPath": f"{MOUNTED}{path}"} for name, path in folders.items()]
    for name in cleaner.volumes:
        volumes.append({"name": name, "hostPath": _SOME[name]})
        mounts.append({"name": name, "mountPath": _SOME[name]["path"]})
    container = {
        "name": "cleanup",
        "image": cleaner.image,
        **({"imagePullPolicy": cleaner.pull_policy} if cleaner.pull_policy else {}),
        "args": [
            "cleanup",
            "--yes",
            "--forget",
            f"--report={TERMINATION}",
            f"--run-dir={MOUNTED}/run/netloom",
            f"--state-dir={MOUNTED}/var/lib/netloom",
            f"--cni-deletions={MOUNTED}{DELETIONS}",
            f"--cni-bin-dir={MOUNTED}{cleaner.bin_dir}",
            f"--cni-conf-dir={MOUNTED}{cleaner.conf_dir}",
        ],
        "env": [{"name": "NETLOOM_PROC_SYS", "value": f"{MOUNTED}/proc/sys"}],
        "securityContext": dict(cleaner.security),
        "resources": dict(cleaner.resources),
        "terminationMessagePath": TERMINATION,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod_name(node), "namespace": namespace, "labels": labels},
        "spec": {
            "nodeName": node,
            "restartPolicy": "OnFailure",
            "hostNetwork": True,
            "automountServiceAccountToken": False,
            "priorityClassName": "system-node-critical",
            "terminationGracePeriodSeconds": 5,
            "tolerations": [{"operator": "Exists"}],
            **({"imagePullSecrets": [*cleaner.pull_secrets]} if cleaner.pull_secrets else {}),
            "containers": [container],
            "volumes": volumes,
        },
    }


def by_hand(cleaner: Cleaner) -> str:
    """What to type on a machine that no pod came to, as root, where the command line is there."""
    folders = [(cleaner.bin_dir, BIN, "bin"), (cleaner.conf_dir, CONF, "conf")]
    options = "".join(f" --cni-{kind}-dir={path}" for path, usual, kind in folders if path != usual)
    return f"netloom cleanup --yes --forget --state-dir=/var/lib/netloom{options}"


SELECTORS = {name: f"{NAME_LABEL}={name}" for name in (AGENT, NAME)}
