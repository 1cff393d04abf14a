"""All objects of an installation of the guard, with the least rights and nothing of a CNI.

The Deployment runs in the host's network, and on control planes too: what guards a cluster's pod network must not need
it. Two things are left out for the guard to write, so that applying again does not take them away: `data` of the
record, and `caBundle` (until it is there, the API server cannot verify the guard, and refuses guarded writes).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from netloom.api.cilium import AGENTS_NAME, CONFIG_NAME, DAEMON_SETS, DEPLOYMENTS, OPERATOR_NAME
from netloom.api.errors import UserError
from netloom.guard.cluster_state import RECORD_NAME
from netloom.webhook.configuration import host_of
from netloom.webhook.names import CA_SECRET, NAME, PORT, Scope
from netloom.webhook.policies import policies
from netloom.webhook.rules import client_config, webhook_configuration

Manifest = dict[str, Any]

_RBAC = "rbac.authorization.k8s.io"
_LABELS = {"app.kubernetes.io/name": NAME, "app.kubernetes.io/part-of": "netloom"}
_SELECTOR = {"app.kubernetes.io/name": NAME}

_OF_EVERY_CLUSTER = frozenset({"default", "kube-system"})
"""Namespaces that are not ours to make or to label."""

_TOLERATED = (
    "node-role.kubernetes.io/control-plane",
    "node.kubernetes.io/not-ready",
    "node.cilium.io/agent-not-ready",
    "node.kubernetes.io/network-unavailable",
)

HTTP_PORT = 9965
CERTIFICATE_FOLDER = "/etc/netloom-guard/tls"
NETLOOM_KINDS = ("netloomnetworks", "netloomnodes", "netloomippools")
OF_THE_OPERATOR = frozenset({"netloomnetworks", "netloomnodes"})
"""Kinds that an operator follows anyway, and with it the guard that is part of it; it does not run without them."""
CILIUM_KINDS = ("ciliumnodes", "ciliumpodippools")


@dataclass(frozen=True, slots=True)
class Installation:
    """What `netloom guard install` was asked for.

    image: of the Deployment; not needed with `url`, which is where the guard is reached when something else runs it (a
    systemd unit or static pod on every control plane): neither Service nor Deployment then.
    ca_bundle: base64 of the CA certificates (PEM) that vouch for the guard, where it does not keep its own.
    tls_secret: a Secret (type kubernetes.io/tls) with the guard's certificate, instead of one of its own making.
    inject_ca_from: NAMESPACE/CERTIFICATE of cert-manager, which then fills in caBundle.
    in_operator: the guard is part of an operator, whose rights come beside these.
    """

    scope: Scope = field(default_factory=Scope)
    image: str = ""
    url: str = ""
    replicas: int = 2
    ca_bundle: str = ""
    tls_secret: str = ""
    inject_ca_from: str = ""
    in_operator: bool = False

    @property
    def own_authority(self) -> bool:
        """Whether the guard makes its certificates itself."""
        return not (self.ca_bundle or self.tls_secret or self.inject_ca_from)

    def check(self) -> None:
        """Raises UserError where options do not go together."""
        if not self.image and not self.url:
            raise UserError(
                "which image the Deployment runs is not said. Give --image REPOSITORY/netloom:TAG, or --url if the "
                "guard is run by something else, such as a static pod on each control plane."
            )
        if self.replicas < 1:
            raise UserError(f"--replicas {self.replicas}: a guard that does not run refuses every guarded write.")
        if self.url and not self.url.startswith("https://"):
            raise UserError(f"--url {self.url!r}: the API server speaks to webhooks by https:// only.")
        if self.url and not host_of(self.url):
            raise UserError(
                f"--url {self.url!r}: there is no host in it that an API server could call; write https://HOST:PORT, "
                "an IPv6 address in brackets: https://[::1]:9443."
            )
        if self.tls_secret and not (self.ca_bundle or self.inject_ca_from):
            raise UserError(
                f"--tls-secret {self.tls_secret}: who vouches for that certificate is not said. Give --ca-file, or "
                "--inject-ca-from if cert-manager issues it."
            )
        if not self.url and not self.tls_secret and not self.own_authority:
            raise UserError(
                "the guard would make a certificate of its own, which the given CA does not vouch for. Give "
                "--tls-secret as well, the Secret with the certificate."
            )


def render(options: Installation) -> list[Manifest]:
    """In the order in which they are to be applied: the webhooks last, when all that they need is there."""
    options.check()
    scope = options.scope
    account = _object("ServiceAccount", NAME, scope.namespace)
    record = _object("ConfigMap", RECORD_NAME, scope.namespace)
    found = [*_namespace(options), account, *_rights(options), record]
    if not options.url:
        port = {"name": "webhook", "protocol": "TCP", "port": 443, "targetPort": PORT}
        found.append(_object("Service", NAME, scope.namespace, spec={"selector": _SELECTOR, "ports": [port]}))
        found.append(_object("Deployment", NAME, scope.namespace, "apps/v1", spec=_deployment(options)))
        if options.replicas > 1:
            spec = {"minAvailable": 1, "selector": {"matchLabels": _SELECTOR}}
            found.append(_object("PodDisruptionBudget", NAME, scope.namespace, "policy/v1", spec=spec))
    annotations = {"cert-manager.io/inject-ca-from": options.inject_ca_from} if options.inject_ca_from else {}
    client = client_config(scope, options.url, options.ca_bundle)
    return [*found, *policies(scope), webhook_configuration(scope, client, annotations)]


def _object(kind: str, name: str, namespace: str, api_version: str = "v1", **content: Any) -> Manifest:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {}), "labels": dict(_LABELS)}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **content}


def _namespace(options: Installation) -> list[Manifest]:
    if options.scope.namespace in _OF_EVERY_CLUSTER:
        return []
    namespace = _object("Namespace", options.scope.namespace, "")
    if not options.url:
        # hostNetwork is what the profile `privileged` is needed for; else the pods are as `restricted` wants them.
        namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = "privileged"
    return [namespace]


def _rights(options: Installation) -> list[Manifest]:
    """Reads what is guarded, and what runs Cilium; writes the record, its CAs, caBundle and Events. No object of a
    user."""
    scope = options.scope
    read = ["list", "watch"]
    groups: dict[str, tuple[str, ...]] = {"netloom.dev": NETLOOM_KINDS} if scope.netloom else {}
    groups |= {"cilium.io": CILIUM_KINDS} if scope.cilium else {}
    elsewhere = OF_THE_OPERATOR if options.in_operator else ()
    crds = [f"{kind}.{group}" for group, kinds in groups.items() for kind in kinds if kind not in elsewhere]
    cluster = [
        _may(read, "", ["nodes"]),
        *(_may(read, group, kinds) for group, kinds in groups.items()),
        _may(read, "apiextensions.k8s.io", ["customresourcedefinitions"], crds),
    ]
    # It is ready when API servers would accept its certificate where these webhooks say that they call.
    hooks = [*read, "patch"] if options.own_authority else read
    cluster.append(_may(hooks, "admissionregistration.k8s.io", ["validatingwebhookconfigurations"], [NAME]))
    say = _may(["create", "patch"], "", ["events"])
    own = [_may([*read, "create", "patch"], "", ["configmaps"], [RECORD_NAME]), say]
    if options.own_authority:
        # Who creates an object has no name yet that RBAC could look at.
        own.append(_may(["create"], "", ["secrets"]))
        own.append(_may(["get", *read, "update"], "", ["secrets"], [CA_SECRET]))
    found = [*_granted("ClusterRole", NAME, "", cluster, scope), *_granted("Role", NAME, scope.namespace, own, scope)]
    if scope.cilium:
        there = [
            _may(read, "", ["configmaps"], [CONFIG_NAME]),
            _may(read, "apps", [DAEMON_SETS.plural], [AGENTS_NAME]),
            _may(read, "apps", [DEPLOYMENTS.plural], [OPERATOR_NAME]),
            say,
        ]
        found += _granted("Role", f"{NAME}-cilium", scope.cilium_namespace, there, scope)
    return found


def _may(verbs: list[str], group: str, resources: Iterable[str], names: Sequence[str] = ()) -> Manifest:
    named = {"resourceNames": list(names)} if names else {}
    return {"apiGroups": [group], "resources": list(resources), **named, "verbs": verbs}


def _granted(kind: str, name: str, namespace: str, rules: list[Manifest], scope: Scope) -> list[Manifest]:
    ref = {"apiGroup": _RBAC, "kind": kind, "name": name}
    account = {"kind": "ServiceAccount", "name": NAME, "namespace": scope.namespace}
    return [
        _object(kind, name, namespace, f"{_RBAC}/v1", rules=rules),
        _object(f"{kind}Binding", name, namespace, f"{_RBAC}/v1", roleRef=ref, subjects=[account]),
    ]


def _deployment(options: Installation) -> Manifest:
    return {
        "replicas": options.replicas,
        "selector": {"matchLabels": _SELECTOR},
        # One more than there are nodes could not be placed: its port is taken on each of them.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
        "template": {"metadata": {"labels": _LABELS}, "spec": _pod(options)},
    }


def _pod(options: Installation) -> Manifest:
    volumes = {"volumes": [{"name": "tls", "secret": {"secretName": options.tls_secret}}]}
    on_control_plane = {"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}
    return {
        "serviceAccountName": NAME,
        "hostNetwork": True,
        "dnsPolicy": "Default",  # nothing is looked up, least of all in the network that is guarded
        "priorityClassName": "system-cluster-critical",
        "terminationGracePeriodSeconds": 30,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "affinity": {
            "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [
                    {"labelSelector": {"matchLabels": _SELECTOR}, "topologyKey": "kubernetes.io/hostname"}
                ]
            },
            "nodeAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": 100, "preference": {"matchExpressions": [on_control_plane]}}
                ]
            },
        },
        # A node that is not ready for lack of a network is where the guard has to start all the same.
        "tolerations": [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in _TOLERATED],
        "containers": [_container(options)],
        **(volumes if options.tls_secret else {}),
    }


def _container(options: Installation) -> Manifest:
    mounts = {"volumeMounts": [{"name": "tls", "mountPath": CERTIFICATE_FOLDER, "readOnly": True}]}
    return {
        "name": "guard",
        "image": options.image,
        "command": ["netloom", *arguments(options)],
        "env": [
            {"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        ],
        "ports": [{"name": "webhook", "containerPort": PORT, "hostPort": PORT, "protocol": "TCP"}],
        "livenessProbe": _probe("/healthz", period=10),
        "readinessProbe": _probe("/readyz", period=5),
        "resources": {"requests": {"cpu": "50m", "memory": "80Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        **(mounts if options.tls_secret else {}),
    }


def _probe(path: str, *, period: int) -> Manifest:
    # In the host's network: that of the node, which is not to be open to others.
    get = {"host": "127.0.0.1", "path": path, "port": HTTP_PORT, "scheme": "HTTP"}
    return {"httpGet": get, "periodSeconds": period, "timeoutSeconds": 2, "failureThreshold": 3}


def arguments(options: Installation) -> list[str]:
    """The command line of the guard, after `netloom`; it listens to both families of addresses."""
    scope = options.scope
    given = [
        "webhook",
        f"--for={scope.guarded}",
        f"--address=:{PORT}",
        f"--http-address=127.0.0.1:{HTTP_PORT}",
    ]
    if scope.cilium:
        given.append(f"--cilium-namespace={scope.cilium_namespace}")
    if scope.netloom:
        given += [f"--operator-user={user}" for user in scope.operator_users]
        given += [f"--agent-user={user}" for user in scope.agent_users]
    if options.tls_secret:
        given += [f"--tls-cert-file={CERTIFICATE_FOLDER}/tls.crt", f"--tls-key-file={CERTIFICATE_FOLDER}/tls.key"]
    return given
