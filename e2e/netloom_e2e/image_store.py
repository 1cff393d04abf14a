"""What containerd keeps of images, made once: a node begins with a copy of it instead of importing each image itself.

To import those of a cluster (300 MB) takes 6 s of a core, on each of its nodes. A copy takes a fifth of a second: blobs
and what is unpacked of them are linked, as nobody writes to them (a container writes to a layer of its own), and only
containerd's databases are copied.

A store, too, begins with a copy of one that has all of its images but the newest: clusters differ by an image or by the
names of one, and a change of Netloom is a change of one.
"""

from __future__ import annotations

import functools
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from netloom_e2e.binaries import BinariesError
from netloom_e2e.build_cache import made
from netloom_e2e.images import Image
from netloom_e2e.namespaces import die_with_parent, run, wait_for

_NAMESPACE = "k8s.io"
"""Of containerd: where pods' images are looked for."""
_START_SECONDS = 30.0
_KEPT_SECONDS = 2 * 3600.0
"""After its last use: there is one for each state of the tree that was tried on a cluster, of half a gigabyte."""
_CONFIG = """\
version = 2
root = "{folder}/root"
state = "{state}"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{state}/socket"
"""


def image_store(images: Iterable[Image]) -> Path:
    """The folder of a containerd that has these images, from the cache or else made. Raises BinariesError."""
    wanted = sorted(images, key=lambda image: image.name)
    names = "\n".join(" ".join((image.name, *image.aliases)) for image in wanted)
    name = f"imagestore-{hashlib.sha256(names.encode()).hexdigest()[:16]}"
    return made(name, functools.partial(_make, images=wanted), _KEPT_SECONDS) / "root"


def _make(folder: Path, log: Path, images: Sequence[Image]) -> None:
    """From a store with fewer images, or fewer names."""
    named = [image for image in images if image.aliases]
    if named:
        before, imported = [replace(image, aliases=()) for image in images], []
    else:
        *before, newest = sorted(images, key=lambda image: image.archive.stat().st_mtime)
        imported = [newest]
    if before:
        lay_out(image_store(before), folder / "root")
    with _containerd(folder, log) as ctr:
        for image in imported:
            ctr("import", "--no-unpack=false", str(image.archive))
        for image in named:
            ctr("tag", image.name, *image.aliases)


def lay_out(store: Path, folder: Path) -> None:
    """Copies a store to where a containerd that does not run yet will have its own."""
    folder.mkdir(parents=True)
    one_disk = store.stat().st_dev == folder.stat().st_dev
    run("cp", "--archive", *(["--link"] if one_disk else []), f"{store}/.", str(folder))
    for database in store.glob("*/*.db"):
        copy = folder / database.relative_to(store)
        copy.unlink()
        shutil.copy2(database, copy)


def _answers(containerd: subprocess.Popen[bytes], ctr: Callable[..., object]) -> bool:
    if containerd.poll() is not None:
        raise RuntimeError(f"containerd ended with status {containerd.returncode}")
    with suppress(RuntimeError):
        ctr("version")
        return True
    return False


@contextmanager
def _containerd(folder: Path, log: Path) -> Iterator[Callable[..., str]]:
    """One that runs meanwhile; what is given calls `ctr images`. Raises BinariesError with what containerd said."""
    with tempfile.TemporaryDirectory(prefix="netloom-") as state, log.open("wb") as output:
        config = folder / "containerd.toml"
        config.write_text(_CONFIG.format(folder=folder, state=state))
        command = ["unshare", "--mount", "--propagation", "private", "--", "containerd", "--config", str(config)]
        process = subprocess.Popen(command, stdout=output, stderr=output, preexec_fn=die_with_parent)
        ctr = functools.partial(run, "ctr", f"--address={state}/socket", timeout=120)
        try:
            wait_for("containerd to answer", functools.partial(_answers, process, ctr), deadline=_START_SECONDS)
            yield functools.partial(ctr, f"--namespace={_NAMESPACE}", "images")
        except (RuntimeError, TimeoutError) as error:
            raise BinariesError(f"{error}\n{log.read_text(errors='replace')[-2000:]}") from error
        finally:
            process.terminate()
            process.wait()
