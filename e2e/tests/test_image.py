"""Images: built without a daemon, equal for equal content, and what is in Netloom's is listed."""

import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

from netloom_e2e import netloom_image, prefilter_program
from netloom_e2e.images import Recipe, built
from netloom_e2e.netloom_image import ROOT


def needed(name: str, found: set[str]) -> None:
    """What an installed package asks for, whatever asks for more by an extra."""
    found.add(name)
    for line in requires(name) or ():
        other = re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", line)[0]).lower()
        if (
            not re.search(
                r"extra ==|(sys_platform|platform_system|os_name) == .(win|Win|nt)|python_version < |"
                r"python_full_version < |implementation_name == .pypy",
                line,
            )
            and other not in found
        ):
            needed(other, found)


def test_the_image_gets_of_the_lock_file_what_netloom_needs_to_run() -> None:
    """In a checkout that never built one."""
    command = [sys.executable, str(ROOT / "chart" / "image" / "runtime.py")]
    text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    names = set(re.findall(r"^([a-z0-9-]+)==", text, re.MULTILINE))
    wanted: set[str] = set()
    needed("netloom", wanted)
    assert wanted - {"netloom"} <= names
    assert not names & {"mypy", "pytest", "ruff", "hypothesis"}
    assert text.count("--hash=sha256:") > len(names)


def test_the_list_can_be_made_in_the_tree() -> None:
    command = [sys.executable, str(ROOT / "chart" / "image" / "runtime.py")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.startswith("aio")


def test_equal_content_makes_equal_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "Containerfile").write_text("FROM scratch\nCOPY data /data\n")
        (folder / "data").write_text("the same\n")
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        image = built(Recipe("small", {name: folder / name for name in ("Containerfile", "data")}))
        found.append((image.name, netloom_image.identity(image)))
    assert found[0] == found[1]
    (folder / "data").write_text("something else\n")
    other = built(Recipe("small", {name: folder / name for name in ("Containerfile", "data")}))
    assert other.name != image.name, "another tag, so no node takes one for the other"


def test_the_image_lists_what_is_in_it() -> None:
    contents = netloom_image.sbom(netloom_image.netloom())
    assert contents["metadata"]["component"]["name"] == "netloom"
    found = {component["purl"].split("@")[0]: component["version"] for component in contents["components"]}
    locked = dict(re.findall(r"^([a-z0-9-]+)==([^ ]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    for name in ("aiohttp", "cryptography", "msgspec"):
        assert found[f"pkg:pypi/{name}"] == locked[name]
    assert {"pkg:deb/debian/libc6", "pkg:deb/debian/python3", "pkg:deb/debian/iptables"} <= found.keys()
    for name in ("pkg:pypi/mypy", "pkg:pypi/pip", "pkg:deb/debian/apt", "pkg:deb/debian/dash"):
        assert name not in found, "what nobody needs to run is not there"


def test_the_image_has_the_prefilter_compiled() -> None:
    place = "usr/lib/python3/dist-packages/netloom/kernel/prefilter/source"
    name = f"{place}/{prefilter_program.compiled().name}"
    assert name in netloom_image.names(netloom_image.netloom())
