"""Runs a command on another kernel: Debian's, under QEMU, in a guest that has this tree, its Python and a few programs.

    status, output = VirtualMachine().run(["python", "-m", "pytest", ...], seconds=120)

Plain QEMU with a kernel and an initramfs: no disk, no agent in the guest, one file to write beforehand. virtme-ng boots
as fast, but lends the guest this machine's files over 9p, which Python cannot be run from (`guest_root` has figures).
There is no KVM on most machines that tests run on: the processor is emulated, and all is some 20 times slower.

Nothing stays: QEMU is killed when the command ends, at its deadline, and by the kernel when its parent dies. What it
boots from has no name in a file system.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import platform
import re
import select
import shlex
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from netloom_e2e import cni_plugin, prefilter_program
from netloom_e2e.build_cache import BinariesError, made
from netloom_e2e.guest_root import TREE, GuestRoot
from netloom_e2e.namespaces import die_with_parent
from netloom_e2e.progress import Progress, follow

META_PACKAGE = "linux-image-amd64"
"""Depends on the package that holds Debian's current kernel."""

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_AS_ROOT = ("-o", "APT::Sandbox::User=root")

MODULES = (
    *("bonding", "bridge", "dummy", "geneve", "sch_netem", "veth", "vxlan", "8021q", "ipvlan", "macvlan", "tun"),
    *("crc32c_generic", "nf_tables", "nft_ct", "nft_fib_inet", "nft_objref"),
)
"""With what they need (libcrc32c asks for crc32c_generic at run time). A guest loads them by itself when a device or an
expression of theirs is made."""

IS_GUEST = "NETLOOM_GUEST"
"""An environment variable that commands in a guest have: they may do to the machine what they like."""

CNI_PLUGIN = Path("/opt/netloom-cni")
"""Where a guest has this tree's CNI plugin."""

_MEMORY = "1G"
NICENESS = -10
"""Of QEMU, and of the group of processes that it is alone in."""

_XZ = b"\xfd7zXZ\0"
_READY, _DONE = "@@ guest ready", "@@ guest done"

_INIT = """#!/bin/sh
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
exec >/dev/ttyS0 2>&1 </dev/null
ln -s /proc/self/fd /dev/fd 2>/dev/null
ip link set lo up
sysctl -qw net.core.netdev_max_backlog=100000 # packets wait longer for an emulated processor
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 {is_guest}=1
cd {folder}
echo; echo "{ready}"
{command}
status=$?
echo; echo "{done} $status"
sleep 60
"""


class VirtualMachineError(Exception):
    """The guest did not do what it was told; the message has the end of what it said."""


class Kernel:
    """A Debian kernel in the cache."""

    def __init__(self, folder: Path) -> None:
        self.image = folder / "vmlinux"
        self.modules = folder / "modules"
        (self.version,) = (path.name for path in self.modules.iterdir())


def kernel() -> Kernel:
    """Debian's stable kernel, downloaded (70 MB) where it is not in the cache. Raises BinariesError."""
    return _made("", lambda folder, log: [])


def newer_kernel() -> Kernel:
    """The one of the backports to this Debian (to 12: 6.12), downloaded (100 MB) where it is not in the cache. Raises
    BinariesError."""
    return _made("backports", _backports)


def _made(kind: str, options: Callable[[Path, Path], list[str]]) -> Kernel:
    """options: makes apt's, by which it finds the kernel; from the folder that it is made in, and a log."""
    if platform.machine() != "x86_64":
        raise BinariesError(f"the virtual machine has a Debian kernel for x86_64; this machine is {platform.machine()}")
    fingerprint = hashlib.sha256(" ".join((META_PACKAGE, *MODULES, kind, "vmlinux")).encode()).hexdigest()[:12]
    return Kernel(
        made(f"debian-kernel-{fingerprint}", lambda folder, log: _download(folder, log, options(folder, log)))
    )


def _backports(folder: Path, log: Path) -> list[str]:
    """apt sees those alone, from where this machine has Debian, and keeps them in the folder: what the machine installs
    from stays as it is."""
    release = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(CODENAME)", "Created-By: Packages"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    places = [line.split()[0] for line in told.splitlines() if release and release in line.split()[1:]]
    if not places:
        raise BinariesError("no source of Debian's packages is known here: a Debian machine is needed")
    apt = folder / "apt"
    for name in ("lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True)
    (apt / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {places[0]} {release}-backports main\n")
    found = {
        "Dir::Etc::sourcelist": apt / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": apt / "lists",
        "Dir::Cache": apt / "cache",
    }
    options = [word for name, value in found.items() for word in ("-o", f"{name}={value}")]
    _do(["apt-get", *_AS_ROOT, *options, "update"], "Fetching Debian's list of backports", folder, log)
    return options


def _download(folder: Path, log: Path, options: list[str]) -> None:
    package = _kernel_package(log, options)
    _do(["apt-get", *_AS_ROOT, *options, "download", package], f"Downloading {package} from Debian", folder, log)
    (archive,) = folder.glob("*.deb")
    _do(["dpkg", "-x", str(archive), "unpacked"], "Unpacking it", folder, log)
    unpacked = folder / "unpacked"
    (image,) = (unpacked / "boot").glob("vmlinuz-*")
    version = image.name.removeprefix("vmlinuz-")
    _do(["/sbin/depmod", "-b", str(unpacked), version], "Reading its modules", folder, log)
    source, target = unpacked / "lib" / "modules" / version, unpacked / "few" / "lib" / "modules" / version
    for path in _needed(source):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / path, target / path)
    for listing in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        shutil.copy2(source / listing, target)
    _do(["/sbin/depmod", "-b", str(unpacked / "few"), version], "Keeping those that are needed", folder, log)
    (folder / "vmlinux").write_bytes(_unpacked(image.read_bytes()))
    (unpacked / "few" / "lib" / "modules").rename(folder / "modules")
    shutil.rmtree(unpacked)
    shutil.rmtree(folder / "apt", ignore_errors=True)
    archive.unlink()


def _kernel_package(log: Path, options: list[str]) -> str:
    command = ["apt-cache", *options, "depends", "--important", META_PACKAGE]
    for attempt in range(2):
        told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
        if found := re.search(r"Depends: (linux-image-\S+)", told):
            return found[1]
        if not attempt:
            _do(["apt-get", *options, "update"], "Fetching Debian's lists of packages", Path("/"), log)
    raise BinariesError(
        f"Debian's {META_PACKAGE} is not known here: a Debian machine with its main repository is needed"
    )


def _unpacked(image: bytes) -> bytes:
    """The kernel in a bzImage (Documentation/arch/x86/boot.rst). To unpack what xz has packed takes a guest without KVM
    9 s of a processor, half of its boot; QEMU starts an ELF file as it is (PVH). One that is packed otherwise stays so:
    zstd's, of newer kernels, is unpacked in no time."""
    sectors, (offset, length) = image[0x1F1], struct.unpack_from("<II", image, 0x248)
    payload = image[(sectors + 1) * 512 + offset :][:length]
    return lzma.LZMADecompressor().decompress(payload) if payload.startswith(_XZ) else image


def _needed(folder: Path) -> list[str]:
    """Paths of MODULES and all that they need."""
    needs = dict(line.split(":", 1) for line in (folder / "modules.dep").read_text().splitlines())
    wanted = [path for path in needs if Path(path).name.split(".")[0] in MODULES]
    return sorted({*wanted, *(need for path in wanted for need in needs[path].split())})


def _do(command: list[str], title: str, folder: Path, log: Path) -> None:
    try:
        status = follow(command, title=title, log=log, cwd=folder, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    except FileNotFoundError as error:
        raise BinariesError(f"{error.filename} is not there: a Debian machine is needed for Debian's kernel") from error
    if status != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise BinariesError(f"`{shlex.join(command)}` failed:\n{tail}")


class VirtualMachine:
    """Boots for each command: a guest is used once."""

    def __init__(self, booted: Kernel | None = None, *, cpus: int = 1) -> None:
        """booted: another kernel than the stable one. Raises BinariesError where that cannot be had, or the plugin or
        the prefilter be built."""
        self.kernel = booted or kernel()
        self.cni_plugin = cni_plugin.built()
        self.prefilter = prefilter_program.compiled()
        self._cpus = cpus

    def run(
        self, command: Sequence[str], *, seconds: float, title: str = "", describe: Callable[[str], str] = str
    ) -> tuple[int, str]:
        """Boot, run the command in the tree's folder there, end the guest; exit status and output, both streams.

        seconds: for the boot and the command. describe: what to show of the last line of output meanwhile.
        Raises VirtualMachineError when the seconds are over, or the guest died.
        """
        root = GuestRoot(self.kernel.modules)
        words = {
            "folder": shlex.quote(str(TREE)),
            "is_guest": IS_GUEST,
            "ready": _READY,
            "done": _DONE,
            "command": shlex.join(command),
        }
        root.add(Path("/init"), _INIT.format(**words).encode())
        root.add(CNI_PLUGIN, self.cni_plugin.read_bytes())
        root.add(TREE / "bpf" / self.prefilter.name, self.prefilter.read_bytes())
        progress = Progress(title or f"Running a command on Linux {self.kernel.version} under QEMU")
        with os.fdopen(os.memfd_create("initramfs"), "wb") as initramfs:
            root.write(initramfs)
            initramfs.flush()
            qemu = subprocess.Popen(
                self._command(f"/proc/self/fd/{initramfs.fileno()}"),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[initramfs.fileno()],
                start_new_session=True,
                preexec_fn=_first_of_all,
            )
        outcome = "failed"
        try:
            answer = _listen(qemu, time.monotonic() + seconds, lambda line: progress.show(describe(line)))
            outcome = "done"
        finally:
            qemu.kill()
            qemu.wait()
            assert qemu.stdout
            qemu.stdout.close()
            progress.end(outcome)
        return answer

    def _command(self, initramfs: str) -> list[str]:
        words = "console=ttyS0 quiet loglevel=1 panic=-1 mitigations=off nokaslr nowatchdog rcupdate.rcu_expedited=1"
        return [
            *("qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"),
            *("-m", _MEMORY, "-smp", str(self._cpus), "-nodefaults", "-no-user-config", "-display", "none"),
            *("-no-reboot", "-net", "none", "-serial", "stdio", "-monitor", "none"),
            *("-kernel", str(self.kernel.image), "-initrd", initramfs, "-append", words),
        ]


def _first_of_all() -> None:
    """For `preexec_fn`. What runs beside it is done sooner than a guest without KVM, whose nodes are all on one
    processor.

    Where the kernel groups processes by sessions (CONFIG_SCHED_AUTOGROUP), how nice one is counts within its session,
    and QEMU is alone in its own: among many busy ones the guest had a fifth of a processor, and took 20 minutes.
    """
    die_with_parent()
    with suppress(OSError):  # without CAP_SYS_NICE, or without such groups
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
        Path("/proc/self/autogroup").write_text(str(NICENESS))


def _listen(qemu: subprocess.Popen[bytes], deadline: float, show: Callable[[str], None]) -> tuple[int, str]:
    assert qemu.stdout
    heard = bytearray()
    done = re.compile(rb"^" + re.escape(_DONE.encode()) + rb" (\d+)\r*\n", re.MULTILINE)
    while True:
        if time.monotonic() > deadline:
            raise VirtualMachineError(f"the guest was not done in time. It said last:\n{_text(heard)[-3000:]}")
        if select.select([qemu.stdout], [], [], 1.0)[0]:
            chunk = qemu.stdout.read1(1 << 16)  # type: ignore[attr-defined]
            if not chunk:
                raise VirtualMachineError(f"the guest ended before its command. It said last:\n{_text(heard)[-3000:]}")
            heard += chunk
            if found := done.search(heard, max(0, len(heard) - len(chunk) - 100)):
                output = _text(heard[: found.start()])
                return int(found[1]), output.partition(f"{_READY}\n")[2].removesuffix("\n")
        show((_text(heard[-1000:]).strip().splitlines() or ["booting"])[-1])


def _text(heard: bytes | bytearray) -> str:
    return heard.decode(errors="replace").replace("\r", "")


def main() -> None:
    """`python -m netloom_e2e.virtual_machine COMMAND...`"""
    status, output = VirtualMachine().run(sys.argv[1:], seconds=300)
    print(output)
    sys.exit(status)


if __name__ == "__main__":
    main()
