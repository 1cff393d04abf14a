"""The image of Netloom's roles: `make image` builds it, and a cluster of the test bed runs it.

`chart/image/Containerfile` is an ordinary one. Where there is no registry, Debian's base image is made
here by mmdebstrap; the wheels are downloaded beforehand, by the hashes of requirements.lock. Each of these steps is in
the cache by its content.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from netloom_e2e import debian, images
from netloom_e2e.build_cache import BinariesError, made
from netloom_e2e.images import Image, Recipe, built, run_logged

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "chart/image"
"""What the image is built from, beside the sources."""
SBOM = "usr/share/netloom/sbom.cdx.json"


def netloom(tree: Path = ROOT) -> Image:
    """The image of a tree, built where it is not in the cache. Raises BinariesError."""
    return built(recipe(tree))


def recipe(tree: Path = ROOT) -> Recipe:
    """What it is made of."""
    steady = ("Containerfile", "pyproject.toml", "requirements.lock", IMAGE)
    sources = ("operator/netloom", "reconcilers/netloom_reconcilers", "cni", "bpf")
    content = {name: tree / name for name in (*steady, *sources)}
    content["Containerfile"] = tree / IMAGE / "Containerfile"
    return Recipe("netloom", content | {f"{IMAGE}/wheels": _wheels(tree)}, {"BASE": _debian()}, steady)


def another() -> Image:
    """Of this tree as well, with another name and digest: what a release is upgraded to. Raises BinariesError."""
    files = {"Containerfile": images.SOURCES / "another.Containerfile"}
    return built(Recipe("netloom-next", files, {"BASE": netloom()}))


def _debian() -> Image:
    """What debian:bookworm-slim is: a minimal system without documentation."""
    return built(
        Recipe("debian", {"Containerfile": images.SOURCES / "debian.Containerfile", "root.tar": debian.minimal()})
    )


def _wheels(tree: Path) -> Path:
    """A folder of the wheels that Netloom needs to run, by the hashes of the lock file."""
    sources = [tree / name for name in ("requirements.lock", "pyproject.toml", f"{IMAGE}/runtime.py")]
    about = b"\0".join([*(path.read_bytes() for path in sources), platform.machine().encode()])

    def make(folder: Path, log: Path) -> None:
        listing = folder / "runtime.txt"
        run_logged(
            ["sh", "-c", '"$0" "$1" >"$2"', sys.executable, str(sources[2]), str(listing)], "Listing", folder, log
        )
        # Debian's Python is 3.11, whatever this one is.
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--require-hashes"]
        python = ["--only-binary=:all:", "--python-version=3.11", "--implementation=cp", "--no-deps"]
        platforms = [f"--platform=manylinux_2_{minor}_{platform.machine()}" for minor in (36, 34, 28, 27, 17, 12, 5)]
        platforms.append(f"--platform=manylinux2014_{platform.machine()}")
        command = [*pip, *python, *platforms, f"--dest={folder}", "-r", str(listing)]
        run_logged(command, "Downloading wheels", folder, log)
        listing.unlink()

    return made(f"wheels-{hashlib.sha256(about).hexdigest()[:16]}", make)


def sbom(image: Image) -> dict[str, Any]:
    """The list of what is in an image, which it carries with it."""
    for files in _layers(image):
        if SBOM in files.getnames():
            return dict(json.loads(_read(files, SBOM)))
    raise LookupError(f"there is no {SBOM} in {image.archive}")


def names(image: Image) -> set[str]:
    """The paths of all that is in it."""
    return {name for files in _layers(image) for name in files.getnames()}


def _layers(image: Image) -> Iterator[tarfile.TarFile]:
    """From the last to the first."""
    with tarfile.open(image.archive) as archive:
        (manifest,) = json.loads(_read(archive, "manifest.json"))
        for layer in reversed(manifest["Layers"]):
            member = archive.extractfile(layer)
            assert member
            with tarfile.open(fileobj=member) as files:
                yield files


def identity(image: Image) -> str:
    """The digest of its configuration, which names its layers' content: equal for equal images, however packed."""
    with tarfile.open(image.archive) as archive:
        (manifest,) = json.loads(_read(archive, "manifest.json"))
        return hashlib.sha256(_read(archive, manifest["Config"])).hexdigest()


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file, name
    return file.read()


def main() -> None:
    """Puts the image, and the list of what is in it, into `dist/`."""
    began = time.monotonic()
    try:
        image = netloom()
    except BinariesError as error:
        sys.exit(f"netloom-e2e: {error}")
    folder = ROOT / "dist"
    folder.mkdir(exist_ok=True)
    archive = folder / "netloom-image.tar"
    archive.unlink(missing_ok=True)
    try:
        os.link(image.archive, archive)
    except OSError:  # the cache is on another file system
        shutil.copyfile(image.archive, archive)
    listing = folder / "netloom-image.cdx.json"
    contents = sbom(image)
    listing.write_text(json.dumps(contents, indent=1, sort_keys=True) + "\n")
    print(f"{image.name} after {time.monotonic() - began:.1f} s")
    print(f"  {archive.relative_to(ROOT)}  {archive.stat().st_size / 1e6:.0f} MB, sha256:{identity(image)}")
    print(f"  {listing.relative_to(ROOT)}  {len(contents['components'])} packages")
    print(
        "load it by one of: ctr -n k8s.io images import FILE; podman load -i FILE; skopeo copy docker-archive:FILE ..."
    )


if __name__ == "__main__":
    main()
