"""Options that several verbs have, and verbs whose parameters are groups of options."""

import dataclasses
import inspect
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import typer

from netloom.api.errors import sentences
from netloom.cli.ignored import refuse_ignored
from netloom_reconcilers.node.endpoints.options import BIN_DIR, CHAIN, CONF_DIR, DELETIONS, PLUGIN_FILE, VERSION

T = TypeVar("T")

RUN_DIR = Path("/run/netloom")

Kubeconfig = Annotated[
    str | None,
    typer.Option(
        envvar="KUBECONFIG",
        metavar="FILE",
        help="How to reach the cluster. Left out: the service account of the pod, else ~/.kube/config.",
    ),
]
Context = Annotated[str | None, typer.Option(help="Context of the kubeconfig, if not its current one.")]
NodeName = Annotated[
    str, typer.Option("--node-name", envvar="NODE_NAME", help="Name of this machine's Node.", show_default="host name")
]
Manifests = Annotated[
    Path | None,
    typer.Option(
        "-f",
        "--manifests",
        metavar="DIR",
        help="Take the objects from manifest files in this directory, not a cluster.",
    ),
]
RunDir = Annotated[Path, typer.Option(metavar="DIR", help="Where the agent keeps what `cleanup` has to restore.")]
StateDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Where the agent keeps which pod has which address: what outlives the agent, if not a boot.",
        show_default="the run directory",
    ),
]
Socket = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The socket at which pods' addresses are asked for.",
        show_default="agent.sock in the run directory",
    ),
]
GiveBackAfter = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        min=1,
        help="IPAM mode multi-pool: how long a block must have been of no use before the node gives it back.",
    ),
]
Features = Annotated[
    str,
    typer.Option(
        metavar="LIST",
        help="What it does: * for all, or names, by commas; -NAME takes one away, as in --features=-masquerade.",
    ),
]
GracePeriod = Annotated[
    float,
    typer.Option(
        metavar="SECONDS", min=1, help="Silence after which an agent counts as not heard of; more in a large cluster."
    ),
]
HttpAddress = Annotated[str, typer.Option(help="Where /healthz, /readyz and /metrics are served.")]
Output = Annotated[Literal["text", "json"], typer.Option("-o", "--output", help="text or json.")]
StatusOutput = Annotated[
    Literal["text", "wide", "json", "yaml"],
    typer.Option("-o", "--output", help="text, wide (every node, more columns), json or yaml (all that is known)."),
]
LogFormat = Annotated[
    Literal["auto", "json", "console"],
    typer.Option("--log-format", envvar="NETLOOM_LOG_FORMAT", help="auto, json or console."),
]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"],
    typer.Option("--log-level", envvar="NETLOOM_LOG_LEVEL", help="The least that is logged."),
]


def show(output: str, answer: T, as_text: Callable[[T], None]) -> None:
    """Print an answer as was asked for: `as_text`, or as one JSON value with every field present."""
    if output == "json":
        print(msgspec.json.encode(answer).decode())
    else:
        as_text(answer)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Which cluster."""

    kubeconfig: Kubeconfig = None
    context: Context = None


@dataclass(frozen=True, kw_only=True)
class CniHost:
    """Where on the host the CNI plugin is, and what it leaves there."""

    cni_socket: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where the CNI plugin asks for pods' interfaces. Left out: cni.sock in the run directory with "
            "--cni-install, else nobody is answered. The plugin has its path compiled in.",
            show_default=False,
        ),
    ] = None
    cni_deletions: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Where the CNI plugin writes deletions down while no agent answers; compiled into it."
        ),
    ] = DELETIONS
    cni_bin_dir: Annotated[Path, typer.Option(metavar="DIR", help="Where the host has its CNI plugins.")] = BIN_DIR
    cni_conf_dir: Annotated[Path, typer.Option(metavar="DIR", help="Where the host has its CNI configurations.")] = (
        CONF_DIR
    )


@dataclass(frozen=True, kw_only=True)
class CniInstall:
    """What is put on the host, if anything is."""

    cni_install: Annotated[
        bool, typer.Option("--cni-install", help="Put the CNI plugin and its configuration on the host, and keep them.")
    ] = False
    cni_plugin: Annotated[Path, typer.Option(metavar="FILE", help="The CNI plugin that is put there.")] = PLUGIN_FILE
    cni_chain: Annotated[
        str, typer.Option(metavar="LIST", help="CNI plugins that are to run behind it, by commas; '' for none.")
    ] = ",".join(CHAIN)
    cni_version: Annotated[
        Literal["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        typer.Option(help="Of the CNI specification, in the configuration. With 1.1.0 runtimes ask for GC and STATUS."),
    ] = VERSION


@dataclass(frozen=True, kw_only=True)
class Logging:
    """What is logged, and how."""

    log_format: LogFormat = "auto"
    log_level: LogLevel = "info"

    def begin(self) -> None:
        """From now on."""
        from netloom.runtime import log, metrics  # noqa: F401 - before what they import is imported by others

        log.configure(self.log_format, self.log_level)

    def run(self, role: Coroutine[Any, Any, None]) -> None:
        """To its end. A fault of our own is in the log with all that is known of it."""
        from netloom.runtime import loop

        try:
            loop.run(role)
        except Exception as error:
            if not sentences(error):
                logging.getLogger("netloom").critical("the role crashed", exc_info=True)
            raise


def awaited(work: Coroutine[Any, Any, T], level: LogLevel = "error") -> T:
    """What it comes to. level: the least that is logged meanwhile."""
    from netloom.runtime import log, loop

    log.configure("auto", level)
    return loop.run(work)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer wants it: of a parameter that is a dataclass, each field becomes an option. An option that
    others make void is refused."""
    groups: dict[str, Any] = {}
    options: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if dataclasses.is_dataclass(parameter.annotation):
            groups[parameter.name] = parameter.annotation
            options += [_option(each) for each in dataclasses.fields(parameter.annotation)]
        else:
            options.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    def run(called: typer.Context, **given: Any) -> None:
        refuse_ignored(called)
        for name, group in groups.items():
            given[name] = group(**{each.name: given.pop(each.name) for each in dataclasses.fields(group)})
        command(**given)

    called = inspect.Parameter("called", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    run.__signature__ = inspect.Signature([called, *options])  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in (called, *options)}
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


def _option(field: dataclasses.Field[Any]) -> inspect.Parameter:
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=field.type)
