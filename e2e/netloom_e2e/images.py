"""Container images, built by buildah without a daemon and kept in the cache as archives that containerd imports.

What goes into an image names its folder in the cache, so a change of it makes another one. buildah's storage is in that
folder, too, and is gone when the archive is there: nothing is left on the machine.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from netloom_e2e import binaries
from netloom_e2e.binaries import BinariesError, made
from netloom_e2e.progress import follow

SOURCES = Path(__file__).parent.parent / "images"
REPOSITORY = "netloom.test"
EPOCH = "1700000000"
"""The time of all that is in an image, in seconds: two builds of the same content are the same to the byte."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image in an archive; `name` is what a pod asks for."""

    name: str
    archive: Path


@dataclass(frozen=True, slots=True)
class Recipe:
    """What an image is made of: a folder with a Containerfile, and files that are put beside it.

    bases: archives of root file systems that the Containerfile begins with, by the name of the build argument.
    """

    name: str
    context: Path
    files: Mapping[str, Path] = field(default_factory=dict)
    arguments: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        found = hashlib.sha256(platform.machine().encode())
        for path in sorted(path for path in self.context.rglob("*") if path.is_file()):
            _add(found, str(path.relative_to(self.context)), path)
        for name, path in sorted(self.files.items()):
            _add(found, name, path)
        for pair in sorted(self.arguments.items()):
            found.update(repr(pair).encode())
        return found.hexdigest()[:16]


def _add(found: hashlib._Hash, name: str, path: Path) -> None:
    found.update(f"{name}\0{path.stat().st_mode & 0o777:o}\0".encode())
    with path.open("rb") as file:
        found.update(hashlib.file_digest(file, "sha256").digest())


def built(recipe: Recipe) -> Image:
    """The image, from the cache or else built. Raises BinariesError."""
    digest = recipe.digest
    name = f"{REPOSITORY}/{recipe.name}:{digest}"

    def make(folder: Path, log: Path) -> None:
        context = folder / "context"
        shutil.copytree(recipe.context, context)
        for file, source in recipe.files.items():
            shutil.copy2(source, context / file)
        build(context, name, folder / "image.tar", log, recipe.arguments)
        shutil.rmtree(context)

    return Image(name, made(f"image-{recipe.name}-{digest}", make) / "image.tar")


def build(context: Path, name: str, archive: Path, log: Path, arguments: Mapping[str, str] | None = None) -> None:
    """Builds an image of a folder into an archive of Docker's format. Raises BinariesError."""
    storage = archive.parent / "storage"
    # Its mounts end with it, in a namespace of their own. Vfs and chroot: it may be in a container itself.
    buildah = [
        *("unshare", "--mount", "--propagation", "private", "--", "buildah", "--storage-driver", "overlay"),
        *("--root", str(storage / "root"), "--runroot", str(storage / "run")),
    ]
    given = [f"--build-arg={key}={value}" for key, value in (arguments or {}).items()]
    steps = (
        ["bud", "--isolation=chroot", f"--timestamp={EPOCH}", "--layers=false", *given, f"--tag={name}", str(context)],
        ["push", "--quiet", name, f"docker-archive:{archive}:{name}"],
    )
    try:
        for step in steps:
            run_logged([*buildah, *step], f"Building the image {name}", context, log)
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def run_logged(command: list[str], title: str, folder: Path, log: Path) -> None:
    """Runs a step of a build, its output into the log. Raises BinariesError with the end of it."""
    try:
        status = follow(command, title=title, log=log, cwd=folder, env=dict(os.environ))
    except FileNotFoundError as error:
        raise BinariesError(f"{error.filename} is not there: run `e2e/setup cluster`") from error
    if status != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise BinariesError(f"`{' '.join(command)}` failed (whole output: {log}):\n{tail}")


def pause() -> Image:
    """What holds a pod's namespaces."""
    return built(Recipe("pause", SOURCES / "pause", {"pause": _pause_program()}))


def agnhost() -> Image:
    """What Kubernetes' own tests run in pods, with a shell."""
    return built(Recipe("agnhost", SOURCES / "agnhost", {"agnhost": binaries.agnhost(), "busybox": _busybox()}))


def coredns() -> Image:
    return built(Recipe("coredns", SOURCES / "coredns", {"coredns": binaries.coredns()}))


def _pause_program() -> Path:
    source = SOURCES / "pause" / "pause.c"
    digest = hashlib.sha256(source.read_bytes() + platform.machine().encode()).hexdigest()[:16]

    def make(folder: Path, log: Path) -> None:
        command = ["gcc", "-O2", "-Wall", "-static", "-s", "-o", str(folder / "pause"), str(source)]
        run_logged(command, "Compiling pause", folder, log)

    return made(f"pause-{digest}", make) / "pause"


def _busybox() -> Path:
    """Debian's static one."""
    path = shutil.which("busybox", path="/bin:/usr/bin")
    if not path:
        raise BinariesError("busybox is not there: run `e2e/setup cluster`")
    return Path(path)


def prepare() -> tuple[Image, ...]:
    """All images that a cluster without Netloom takes."""
    return pause(), agnhost(), coredns()
