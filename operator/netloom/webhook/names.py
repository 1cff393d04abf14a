"""What the objects of an installation are called, and what is in it."""

from dataclasses import dataclass
from typing import Literal

NAME = "netloom-guard"
"""Of the Deployment, Service, ServiceAccount, roles and the ValidatingWebhookConfiguration."""
CA_SECRET = "netloom-guard-ca"
NAMESPACE = "netloom-system"
CILIUM_NAMESPACE = "kube-system"
NETWORK_POLICY = "netloom-guard-network"
CILIUM_POLICY = "netloom-guard-cilium"
CILIUM_NODE_CONFIG_POLICY = "netloom-guard-cilium-node-config"
AGENTS_POLICY = "netloom-agents"
DEFINITIONS_POLICY = "netloom-guard-definitions"
CILIUM_WORKLOADS_POLICY = "netloom-guard-cilium-workloads"
CILIUM_PARTS_POLICY = "netloom-guard-cilium-parts"
RECORD_POLICY = "netloom-guard-record-writes"
KEPT_POLICY = "netloom-guard-record"
"""Refuses nothing; see `netloom.webhook.policies`."""

LABEL = "netloom.dev/guard"
"""On all that stands between a user and a write: one command deletes what carries it."""

OPERATOR_USER = f"system:serviceaccount:{NAMESPACE}:netloom-operator"
AGENT_USER = f"system:serviceaccount:{NAMESPACE}:netloom-agent"

PORT = 9443
PATH = "/validate"
"""Where the guard answers."""

Guarded = Literal["cilium", "netloom", "all"]
"""Whose objects are guarded."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What is guarded, and on whose word."""

    guarded: Guarded = "all"
    namespace: str = NAMESPACE
    cilium_namespace: str = CILIUM_NAMESPACE
    operator_users: tuple[str, ...] = (OPERATOR_USER,)
    agent_users: tuple[str, ...] = (AGENT_USER,)
    guard_users: tuple[str, ...] = ()
    """Besides the service account of the Deployment, and operators, which may be guards."""

    @property
    def cilium(self) -> bool:
        return self.guarded != "netloom"

    @property
    def netloom(self) -> bool:
        return self.guarded != "cilium"

    @property
    def record_users(self) -> tuple[str, ...]:
        """Who keeps the record."""
        account, operators = (
            f"system:serviceaccount:{self.namespace}:{NAME}",
            self.operator_users if self.netloom else (),
        )
        return tuple(dict.fromkeys((account, *self.guard_users, *operators)))
