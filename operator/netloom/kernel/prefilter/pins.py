"""The folder on a bpffs in which the prefilter's program and maps live while no agent does.

Names on a bpffs may hold no dots.
"""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from netloom.kernel.errors import KernelUnsupported
from netloom.kernel.prefilter import bpf


class Pins:
    """The folder: names in it, and what they stand for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self) -> None:
        """Make the folder. Raises KernelUnsupported where it cannot be on a bpffs, OSError."""
        bpffs = self.folder.parent.parent
        if not bpf.is_bpffs(str(bpffs)):
            raise KernelUnsupported(
                f"{bpffs} is no bpffs, on which the prefilter lives while no agent does: have it mounted "
                f"(`mount -t bpf bpf {bpffs}`, which systemd does at boot), for an agent in a pod as a hostPath"
            )
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def names(self, prefix: str = "") -> list[str]:
        """Those that begin so, sorted; none where there is no folder."""
        try:
            return sorted(path.name for path in self.folder.iterdir() if path.name.startswith(prefix))
        except FileNotFoundError:
            return []

    def open(self, name: str) -> int | None:
        """A descriptor of what is pinned there, None if nothing is. Raises OSError."""
        try:
            return bpf.open_pin(str(self.folder / name))
        except FileNotFoundError:
            return None

    def pin(self, name: str, descriptor: int) -> None:
        """Pin it there, in the place of what may be. Raises OSError."""
        self.remove(name)
        bpf.pin(descriptor, str(self.folder / name))

    def has(self, name: str) -> bool:
        """Whether something is pinned there."""
        return (self.folder / name).exists()

    def remove(self, *names: str) -> None:
        """Unpin. Raises OSError."""
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    def clear(self) -> None:
        """Unpin all, and remove the folder and the one it is in, if nobody else has anything there. Raises OSError."""
        self.remove(*self.names())
        for folder in (self.folder, self.folder.parent):
            try:
                folder.rmdir()
            except FileNotFoundError:
                pass
            except OSError as error:
                if folder == self.folder or error.errno != errno.ENOTEMPTY:
                    raise


@contextmanager
def closed_on_error(descriptor: int) -> Iterator[int]:
    """Close it if what is done with it fails: nobody else will."""
    try:
        yield descriptor
    except BaseException:
        os.close(descriptor)
        raise


def close(descriptors: Iterable[int]) -> None:
    """Close them all."""
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)
