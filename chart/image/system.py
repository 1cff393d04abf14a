"""Copies Debian packages with all that they need into a folder, which is then the root of an image.

`system.py FOLDER PACKAGE...`, in a Debian. What packages need only while they are installed or removed stays behind:
dpkg, debconf, Perl, a shell. `var/lib/dpkg/status` there tells what is in it, for programs that look for known faults.
"""

import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

_DPKG = Path("/var/lib/dpkg")
_NOT_TO_RUN = frozenset({"debconf", "debconf-2.0", "dpkg", "init-system-helpers", "perl-base", "mawk", "base-passwd"})
_LEFT_OUT = re.compile(
    r"^/usr/share/(doc|man|info|locale|lintian|bug|menu|applications|pixmaps|python3|doc-base|bash-completion|perl5)(/|$)"
    r"|^/usr/lib/[^/]+/(gconv|perl5?)(/|$)|/(pydoc_data|lib2to3|idlelib|ensurepip|turtledemo|__pycache__)(/|$)"
    r"|^/usr/lib/python3[.0-9]*/test(/|$)|^/etc/(init.d|logcheck|update-motd.d|skel)(/|$)"
)
_MERGED = ("bin", "sbin", "lib", "lib64")
_USERS = "root:x:0:0:root:/:/sbin/nologin\nnetloom:x:65532:65532:netloom:/:/sbin/nologin\n"
_GROUPS = "root:x:0:\nnetloom:x:65532:\n"


class Packages:
    """What is installed here, by dpkg's own files."""

    def __init__(self, status: str) -> None:
        self.paragraphs: dict[str, str] = {}
        self._provided: dict[str, str] = {}
        for paragraph in status.strip().split("\n\n"):
            fields = dict(re.findall(r"^(\S+): (.*)$", paragraph, re.MULTILINE))
            if not fields["Status"].endswith(" installed"):
                continue
            name = fields["Package"]
            self.paragraphs[name] = paragraph
            for provided in _names(fields.get("Provides", "")):
                self._provided.setdefault(provided, name)

    def needed(self, roots: Iterable[str]) -> list[str]:
        """The roots and what they depend on. Of alternatives, those that are installed."""
        found: set[str] = set()
        left = [self._installed(root) for root in roots]
        while left:
            name = left.pop()
            if name and name not in found and name not in _NOT_TO_RUN:
                found.add(name)
                for field in re.findall(r"^(?:Pre-)?Depends: (.*)$", self.paragraphs[name], re.MULTILINE):
                    left += [self._installed(each) for each in _names(field)]
        return sorted(found)

    def _installed(self, name: str) -> str:
        return name if name in self.paragraphs else self._provided.get(name, "")


def _names(field: str) -> list[str]:
    return [re.sub(r"[ (:].*", "", each.strip()) for each in re.split(r"[,|]", field) if each.strip()]


def files(package: str) -> list[Path]:
    """What dpkg unpacked for it, and the links that its installation set among alternatives."""
    (listing, *_) = [*_DPKG.glob(f"info/{package}.list"), *_DPKG.glob(f"info/{package}:*.list")]
    return [Path(line) for line in listing.read_text().splitlines() if not _LEFT_OUT.search(line)]


def copy(path: Path, root: Path) -> None:
    """A file or link to its place, which is below /usr where /bin and the like are links into it."""
    if path.parts[1:2] and path.parts[1] in _MERGED:
        path = Path("/usr") / path.relative_to("/")
    target = root / path.relative_to("/")
    if path.is_symlink() or path.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.is_symlink() and not target.exists():
            shutil.copy2(path, target, follow_symlinks=False)


def main(root: Path, roots: list[str]) -> None:
    packages = Packages((_DPKG / "status").read_text())
    names = packages.needed(roots)
    for name in _MERGED:
        if Path("/", name).is_symlink():
            (root / "usr" / name).mkdir(parents=True, exist_ok=True)
            (root / name).symlink_to(f"usr/{name}")
    for name in names:
        for path in files(name):
            copy(path, root)
    for link in Path("/etc/alternatives").iterdir():
        if (root / link.resolve().relative_to("/")).exists():
            copy(link, root)
            for place in ("/usr/bin", "/usr/sbin"):
                copy(Path(place, link.name), root)
    for folder, mode in (("dev", 0o755), ("proc", 0o755), ("sys", 0o755), ("run", 0o755), ("tmp", 0o1777)):
        (root / folder).mkdir(exist_ok=True)
        (root / folder).chmod(mode)
    (root / "var").mkdir(exist_ok=True)
    (root / "var/run").symlink_to("../run")  # as runtimes name the network namespaces of pods
    (root / "etc/passwd").write_text(_USERS)
    (root / "etc/group").write_text(_GROUPS)
    status = root / _DPKG.relative_to("/") / "status"
    status.parent.mkdir(parents=True, exist_ok=True)
    status.write_text("\n\n".join(packages.paragraphs[name] for name in names) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
