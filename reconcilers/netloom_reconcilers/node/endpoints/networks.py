"""To which network an attachment belongs, where that is another one than the node's: a second configuration with this
plugin, which somebody wrote by hand, as for Multus.

It matters to GC alone: a runtime names the attachments of one network that are still valid, and those of another are
none of its business. What is not listed here is of the node's own network; mostly the list is empty, and no file is
written.
"""

import contextlib
from collections.abc import Collection
from pathlib import Path

import msgspec
import structlog

from netloom.kernel.replaced_file import replace_file

log = structlog.get_logger(__name__)

NETWORK = "netloom"
"""Name of the network in the configuration that the agent installs."""
FILE = "cni-networks.json"

Key = tuple[str, str]


class Networks:
    """Kept in a file of the state directory, as `{"container/interface": "network"}`."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE
        self._others: dict[str, str] = {}
        try:
            self._others = msgspec.json.decode(self.path.read_bytes(), type=dict[str, str])
        except FileNotFoundError:
            pass
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("which attachments are of other networks is not known", file=str(self.path), error=str(error))

    def of(self, key: Key) -> str:
        """The network of an attachment."""
        return self._others.get(_text(key), NETWORK)

    def note(self, key: Key, network: str) -> None:
        """It is of that network. Raises OSError where that cannot be written down."""
        if network != NETWORK:
            self._write({**self._others, _text(key): network})

    def forget(self, key: Key) -> None:
        """It is gone; a file that cannot be written says too much, which does no harm."""
        if _text(key) in self._others:
            left = {each: network for each, network in self._others.items() if each != _text(key)}
            try:
                self._write(left)
            except OSError:
                self._others = left

    def keep(self, known: Collection[Key]) -> None:
        """Of what is not there any more nothing is to be known: no DEL came, as after a boot."""
        names = set(map(_text, known))
        left = {each: network for each, network in self._others.items() if each in names}
        if left != self._others:
            with contextlib.suppress(OSError):
                self._write(left)

    def _write(self, others: dict[str, str]) -> None:
        replace_file(self.path, msgspec.json.encode(others))
        self._others = others


def _text(key: Key) -> str:
    return "/".join(key)
