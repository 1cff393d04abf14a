"""Options that would have no effect beside others. Whoever types one believes that it has: it is an error.

What comes from the environment is left out: that is for all commands of a shell or a pod, and none of them uses all.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import typer

from netloom.api.errors import WrongUsage

Given = Mapping[str, Any]


class WithoutEffect(NamedTuple):
    """Of these parameters none has an effect `when` the values of all are so: with `beside`, or without it."""

    when: Callable[[Given], bool]
    beside: str
    parameters: tuple[str, ...]
    without: bool = False


def rules() -> dict[str, tuple[WithoutEffect, ...]]:
    """By command."""
    from netloom.cli import app, guard

    of_a_guard = [each.name for group in (app.Webhook, guard.Guarding, guard.Serving) for each in fields(group)]
    manifests = WithoutEffect(
        lambda given: given["manifests"] is not None,
        "--manifests, which takes the objects from files and not from a cluster",
        ("kubeconfig", "context", "lease_namespace", "grace_period"),
    )
    of_guarded = [_only_cilium("guarded", "--for"), _only_netloom("guarded", "--for")]
    serving = (
        WithoutEffect(lambda given: given["tls_cert_file"] is not None, "--tls-cert-file", ("secret",)),
        WithoutEffect(lambda given: given["tls_cert_file"] is None, "--tls-cert-file", ("tls_ca_file",), without=True),
    )
    return {
        "agent": (
            manifests,
            WithoutEffect(
                lambda given: not given["cni_install"],
                "--cni-install",
                ("cni_plugin", "cni_chain", "cni_version", "cni_bin_dir", "cni_conf_dir"),
                without=True,
            ),
            WithoutEffect(
                lambda given: not given["cni_install"] and given["cni_socket"] is None,
                "--cni-socket (or --cni-install), as nobody is answered",
                ("cni_deletions",),
                without=True,
            ),
        ),
        "plan": (manifests,),
        "operator": (
            WithoutEffect(
                lambda given: not given["webhook_address"],
                "--webhook-address, which makes the operator a guard as well",
                tuple(name for name in of_a_guard if name != "webhook_address"),
                without=True,
            ),
            _only_cilium("webhook_for", "--webhook-for"),
            _only_netloom("webhook_for", "--webhook-for"),
            serving[1],
        ),
        "webhook": (*of_guarded, *serving),
        "install": (
            *of_guarded,
            WithoutEffect(
                lambda given: bool(given["url"]), "--url: something else runs the guard", ("image", "replicas")
            ),
            WithoutEffect(lambda given: not given["apply"], "--apply", ("kubeconfig", "context"), without=True),
        ),
    }


def _only_cilium(parameter: str, option: str) -> WithoutEffect:
    beside = f"{option} cilium, which guards nothing of Netloom's network"
    return WithoutEffect(lambda given: given[parameter] == "cilium", beside, ("operator_user", "agent_user"))


def _only_netloom(parameter: str, option: str) -> WithoutEffect:
    beside = f"{option} netloom, which guards nothing of Cilium's"
    return WithoutEffect(lambda given: given[parameter] == "netloom", beside, ("cilium_namespace",))


def refuse_ignored(called: typer.Context) -> None:
    """Raises WrongUsage, which names the option and what it does not go with."""
    names = {each.name: max(each.opts, key=len) for each in called.command.params if each.name}
    for rule in rules().get(called.command.name or "", ()):
        for parameter in rule.parameters:
            source = called.get_parameter_source(parameter)
            if source is not None and source.name == "COMMANDLINE" and rule.when(called.params):
                way = "Give that as well, or leave this" if rule.without else "Leave one of the two"
                how = "without" if rule.without else "with"
                raise WrongUsage(f"{names[parameter]} has no effect {how} {rule.beside}. {way} out.")
