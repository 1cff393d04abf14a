"""The verbs of the guard: `netloom webhook` runs it, `netloom guard install` brings it into a cluster."""

import base64
import socket
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netloom.api.errors import UserError, WrongUsage
from netloom.cli.options import Cluster, HttpAddress, Logging, awaited, grouped
from netloom.webhook import names

if TYPE_CHECKING:
    from netloom.roles.webhook import GuardOptions

_HOST = socket.gethostname().lower()

For = Annotated[names.Guarded, typer.Option("--for", help="Whose objects are guarded: cilium, netloom or all.")]
Namespace = Annotated[str, typer.Option("-n", "--namespace", envvar="POD_NAMESPACE", help="Namespace of the guard.")]


@dataclass(frozen=True, kw_only=True)
class Guarding:
    """What is guarded, and on whose word."""

    cilium_namespace: Annotated[
        str,
        typer.Option(help="Namespace of the ConfigMap cilium-config and of the CiliumNodeConfigs that Cilium reads."),
    ] = names.CILIUM_NAMESPACE
    operator_user: Annotated[
        list[str], typer.Option(help="Who gives addresses to nodes. May be given several times.")
    ] = field(default_factory=lambda: [names.OPERATOR_USER])
    agent_user: Annotated[
        list[str], typer.Option(help="Who runs on a node and writes its NetloomNode. May be given several times.")
    ] = field(default_factory=lambda: [names.AGENT_USER])

    def scope(self, guarded: names.Guarded, namespace: str) -> names.Scope:
        """With what the verbs ask for each in its own way."""
        users = tuple(self.operator_user), tuple(self.agent_user)
        return names.Scope(guarded, namespace, self.cilium_namespace, *users)


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What a guard is told wherever it runs."""

    dns_name: Annotated[
        list[str],
        typer.Option(
            metavar="HOST",
            help="Name or address that the guard's certificate is for, besides those by which the webhook "
            "configuration has API servers call it. May be given several times.",
            show_default="those of the Service",
        ),
    ] = field(default_factory=list)
    tls_cert_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificate to serve with, instead of one of its own making.")
    ] = None
    tls_key_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Key of --tls-cert-file.")] = None
    tls_ca_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CA of --tls-cert-file, to be kept in the webhooks' caBundle.")
    ] = None

    def options(self, scope: names.Scope, **more: str) -> "GuardOptions":
        """`more`: as of GuardOptions."""
        from netloom.roles.webhook import GuardOptions

        return GuardOptions(
            scope=scope,
            hosts=tuple(self.dns_name),
            tls_cert_file=self.tls_cert_file,
            tls_key_file=self.tls_key_file,
            tls_ca_file=self.tls_ca_file,
            **more,
        )


guard = typer.Typer(help="The guard, which stops a live change of the IPAM mode.", no_args_is_help=True)


@grouped
def webhook(
    *,
    guarded: For = "all",
    cluster: Cluster,
    address: Annotated[
        str, typer.Option(metavar="[HOST]:PORT", help="Where API servers are answered.")
    ] = f":{names.PORT}",
    http_address: HttpAddress = "127.0.0.1:9965",
    namespace: Namespace = names.NAMESPACE,
    secret: Annotated[str, typer.Option(help="Secret with the CAs.")] = names.CA_SECRET,
    configuration: Annotated[
        str, typer.Option(help="ValidatingWebhookConfiguration whose caBundle is kept.")
    ] = names.NAME,
    guarding: Guarding,
    serving: Serving,
    identity: Annotated[str, typer.Option(envvar="POD_NAME", help="Name of this replica in Events.")] = _HOST,
    logging: Logging,
) -> None:
    """Run the guard alone: answer API servers that ask about writes, and say no where pods would lose the network."""
    logging.begin()
    from netloom.roles.webhook import run_webhook

    scope = guarding.scope(guarded, namespace)
    options = serving.options(scope, address=address, secret=secret, configuration=configuration)
    logging.run(run_webhook(options, **vars(cluster), identity=identity, http_address=http_address))


@guard.command()
@grouped
def install(
    *,
    guarded: For,
    image: Annotated[str, typer.Option(help="Image of Netloom for the Deployment, REPOSITORY:TAG.")] = "",
    url: Annotated[
        str,
        typer.Option(
            metavar="https://HOST:PORT",
            help="Where the API server reaches a guard that something else runs; no Deployment and no Service then.",
        ),
    ] = "",
    replicas: Annotated[int, typer.Option(help="Pods of the Deployment.")] = 2,
    namespace: Annotated[str, typer.Option("-n", "--namespace", help="Namespace of the guard.")] = names.NAMESPACE,
    guarding: Guarding,
    ca_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="CA that vouches for the guard, where it does not keep one of its own."),
    ] = None,
    tls_secret: Annotated[str, typer.Option(help="Secret (kubernetes.io/tls) with a certificate to serve with.")] = "",
    inject_ca_from: Annotated[
        str, typer.Option(metavar="NAMESPACE/NAME", help="Certificate of cert-manager, which fills in the caBundle.")
    ] = "",
    guard_user: Annotated[
        list[str],
        typer.Option(
            metavar="USER",
            help="User name of a guard that runs with credentials of its own (the CN of its client certificate): only "
            "guards write the record. May be given several times.",
        ),
    ] = [],  # noqa: B006  # typer copies it
    apply: Annotated[bool, typer.Option("--apply", help="Apply it to the cluster instead of printing it.")] = False,
    cluster: Cluster,
) -> None:
    """Print, or apply, what a cluster needs to be guarded. With --for cilium there is nothing of Netloom's network."""
    from netloom.cli.printing import as_yaml
    from netloom.webhook.manifests import Installation, render

    manifests = render(
        Installation(
            scope=replace(guarding.scope(guarded, namespace), guard_users=tuple(guard_user)),
            image=image,
            url=url,
            replicas=replicas,
            ca_bundle=_bundle(ca_file) if ca_file else "",
            tls_secret=tls_secret,
            inject_ca_from=inject_ca_from,
        )
    )
    if not apply:
        print(as_yaml(manifests), end="")
        return
    from netloom.cli.applying import apply_all

    awaited(apply_all(manifests, cluster.kubeconfig, cluster.context), "warning")


@guard.command()
@grouped
def check(
    *,
    guarded: For = "all",
    namespace: Namespace = names.NAMESPACE,
    guarding: Guarding,
    wait: Annotated[str, typer.Option(metavar="DURATION", help="Ask again for so long, until all is refused.")] = "0",
    cluster: Cluster,
) -> None:
    """Ask the API server for writes that the guard has to refuse, and store none of them; exit status 1 if one is not.

    It takes the rights to these writes: RBAC refuses them else, and that shows nothing of the guard.
    """
    from netloom.cli import guard_check
    from netloom.cli.status import duration

    try:
        seconds = duration(wait)
    except ValueError as error:
        raise WrongUsage(str(error)) from error
    scope = guarding.scope(guarded, namespace)
    found = awaited(guard_check.check(scope, cluster.kubeconfig, cluster.context, seconds))
    print("\n".join(map(str, found)))
    if not all(each.refused for each in found):
        raise typer.Exit(1)


def _bundle(file: Path) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"--ca-file {file} cannot be read: {error.strerror}") from error
    if b"-----BEGIN CERTIFICATE-----" not in content:
        raise UserError(f"--ca-file {file} has no certificate in PEM")
    return base64.b64encode(content).decode()
