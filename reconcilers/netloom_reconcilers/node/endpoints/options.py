"""Where an agent is asked for pods' interfaces, and what it puts on the host for that."""

from pathlib import Path
from typing import Final, NamedTuple

SOCKET = "cni.sock"
"""Its name in the run directory."""
DELETIONS = Path("/var/lib/netloom/deletions")
BIN_DIR = Path("/opt/cni/bin")
CONF_DIR = Path("/etc/cni/net.d")
PLUGIN_FILE = Path("/usr/libexec/netloom/netloom-cni")
CHAIN = ("portmap",)
VERSION: Final = "1.0.0"
"""Of the configuration that is installed: one that all runtimes and plugins in use speak."""
MOUNTED = Path("/host")
"""Below it the chart, and `netloom uninstall`, mount the host's own folders into a container."""


class Places(NamedTuple):
    """plugin: the binary to install. bin_dir, conf_dir: of the host, as this process sees them. chain: plugins that run
    behind ours. version: of the CNI specification, as the configuration says it."""

    plugin: Path = PLUGIN_FILE
    bin_dir: Path = BIN_DIR
    conf_dir: Path = CONF_DIR
    chain: tuple[str, ...] = CHAIN
    version: str = VERSION


def on_host(path: Path) -> Path:
    """How it is called on the host: whoever reads of a file looks for it there."""
    return Path("/") / path.relative_to(MOUNTED) if path.is_relative_to(MOUNTED) else path


class CniOptions(NamedTuple):
    """socket: at which the plugin asks. deletions: what it writes down while nobody answers. install: None for nothing
    to be put on the host."""

    socket: Path
    deletions: Path = DELETIONS
    install: Places | None = None
