"""Options that several verbs have."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Output(StrEnum):
    """How an answer is printed."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The least that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """`auto`: readable on a terminal, JSON elsewhere."""

    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


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
    typer.Option(metavar="DIR", help="Take the objects from manifest files in this directory instead of a cluster."),
]
RunDir = Annotated[Path, typer.Option(metavar="DIR", help="Where the agent keeps what `cleanup` has to restore.")]
Features = Annotated[
    str,
    typer.Option(
        metavar="LIST",
        help="What it does: * for all, or names, by commas; -NAME takes one away, as in --features=-masquerade.",
    ),
]
Format = Annotated[Output, typer.Option("-o", "--output", help="text or json.")]
Log = Annotated[LogFormat, typer.Option("--log-format", envvar="NETLOOM_LOG_FORMAT", help="auto, json or console.")]
Level = Annotated[LogLevel, typer.Option("--log-level", envvar="NETLOOM_LOG_LEVEL", help="The least that is logged.")]
