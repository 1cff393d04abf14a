"""Container images, built by buildah without a daemon and kept in the cache as archives that containerd imports.

What goes into an image names its folder in the cache, so a change of it makes another one. buildah's storage is in the
cache, too: nothing is left elsewhere on the machine.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from netloom_e2e import binaries
from netloom_e2e.build_cache import BinariesError, in_use, made
from netloom_e2e.progress import follow

SOURCES = Path(__file__).parent.parent / "images"
REPOSITORY = "netloom.test"
EPOCH = "1700000000"
"""The time of all that is in an image, in seconds: two builds of the same content are the same to the byte."""

_KEPT_SECONDS = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class Image:
    """An image in an archive; `name` is what a pod asks for, or one of `aliases`."""

    name: str
    archive: Path
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Recipe:
    """What an image is made of.

    content: files and folders by the place in the build's context where they are to be; `Containerfile` is one.
    bases: images that its Containerfile begins with, by the build argument that names them.
    steady: the places of what seldom changes. Where there are any, layers are kept for the next build with the same.
    """

    name: str
    content: Mapping[str, Path]
    bases: Mapping[str, Image] = field(default_factory=dict)
    steady: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Of all that decides what comes out, but for what registries of packages hold on the day."""
        return self._digest(tuple(self.content))

    @property
    def layers(self) -> str | None:
        """The cache's folder for layers: another when something steady changes, so that it does not grow for ever."""
        return f"layers-{self.name}-{self._digest(self.steady)}" if self.steady else None

    def _digest(self, places: tuple[str, ...]) -> str:
        found = hashlib.sha256(f"{platform.machine()} {EPOCH}".encode())
        for place, path in sorted(self.files(places)):
            found.update(f"{place} {path.stat().st_mode & 0o777:o}\0".encode())
            with path.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
        for argument, image in sorted(self.bases.items()):
            found.update(f"{argument} {image.name}\0".encode())
        return found.hexdigest()[:16]

    def files(self, places: Iterable[str]) -> Iterator[tuple[str, Path]]:
        """Those at or below these places of `content`, with their own places."""
        for place in places:
            path = self.content[place]
            if path.is_dir():
                below = (each for each in path.rglob("*") if each.is_file() and "__pycache__" not in each.parts)
                yield from ((f"{place}/{each.relative_to(path)}", each) for each in below)
            else:
                yield place, path

    def lay_out(self, context: Path) -> None:
        """Copies them to their places in a folder."""
        for place, path in self.files(self.content):
            (context / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, context / place)


def built(recipe: Recipe) -> Image:
    """The image, from the cache or else built. Raises BinariesError."""
    digest = recipe.digest
    name = f"{REPOSITORY}/{recipe.name}:{digest}"

    def make(folder: Path, log: Path) -> None:
        context = folder / "context"
        recipe.lay_out(context)
        bases = {argument: f"docker-archive:{image.archive}" for argument, image in recipe.bases.items()}
        with in_use(recipe.layers, _KEPT_SECONDS) if recipe.layers else nullcontext() as layers:
            build(context, name, folder / "image.tar", log, bases, layers)
        shutil.rmtree(context)

    return Image(name, made(f"image-{recipe.name}-{digest}", make) / "image.tar")


def build(
    context: Path, name: str, archive: Path, log: Path, arguments: Mapping[str, str], layers: Path | None = None
) -> None:
    """Builds an image of a folder into an archive of Docker's format. Raises BinariesError.

    layers: buildah's storage, which is kept; left out, it is gone with the build.
    """
    storage = layers or archive.parent / "storage"
    # Its mounts end with it, in a namespace of their own. chroot: this may be a container itself.
    buildah = [
        *("unshare", "--mount", "--propagation", "private", "--", "buildah", "--storage-driver", "overlay"),
        *("--root", str(storage / "root"), "--runroot", str(storage / "run")),
    ]
    given = [f"--build-arg={key}={value}" for key, value in arguments.items()]
    kept = f"--layers={'true' if layers else 'false'}"
    steps = (
        ["bud", "--isolation=chroot", f"--timestamp={EPOCH}", kept, *given, f"--tag={name}", str(context)],
        ["push", "--quiet", name, f"docker-archive:{archive}:{name}"],
    )
    try:
        for step in steps:
            run_logged([*buildah, *step], f"Building the image {name}", context, log)
    finally:
        if not layers:
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
    return built(_program("pause", pause=_pause_program()))


def agnhost() -> Image:
    """What Kubernetes' own tests run in pods, with a shell."""
    return built(_program("agnhost", agnhost=binaries.agnhost(), busybox=_busybox()))


def coredns() -> Image:
    """DNS of a cluster."""
    return built(_program("coredns", coredns=binaries.coredns()))


def _program(name: str, **programs: Path) -> Recipe:
    return Recipe(name, {"Containerfile": SOURCES / f"{name}.Containerfile", **programs})


def _pause_program() -> Path:
    source = SOURCES / "pause.c"
    digest = hashlib.sha256(source.read_bytes() + platform.machine().encode()).hexdigest()[:16]

    def make(folder: Path, log: Path) -> None:
        command = ["musl-gcc", "-O2", "-Wall", "-static", "-s", "-o", str(folder / "pause"), str(source)]
        run_logged(command, "Compiling pause", folder, log)

    return made(f"pause-{digest}", make) / "pause"


def _busybox() -> Path:
    """Debian's static one: there is no C library beside it in the image."""
    found = shutil.which("busybox", path="/bin:/usr/bin")
    if not found or b"/ld-linux" in Path(found).read_bytes():
        raise BinariesError("the package busybox-static is not there: run `e2e/setup cluster`")
    return Path(found)


def prepare() -> tuple[Image, ...]:
    """All images that a cluster without Netloom takes."""
    return pause(), agnhost(), coredns()
