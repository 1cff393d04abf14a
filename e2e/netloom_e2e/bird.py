"""BIRD in a node's namespace: what a cluster whose network learns pod CIDRs by BGP runs beside Netloom.

    routers = [Bird(machine, ("10.42.1.0/24", "fd00:42:0:1::/64"), neighbours, folder) for ...]   # iBGP, full mesh
    for router in routers:
        router.start()
    routers[0].learned(...)                 # waits until the kernel has the others' routes

Each daemon has files of its own in the folder, and ends with the caller. It enters what it learned into the kernel's
main table, as `proto bird`, and takes it out when it stops.
"""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from netloom_e2e.machines import Machine
from netloom_e2e.namespaces import wait_for

AS_NUMBER = 64512
# Seconds, of tests: a session is tried again at once, and found dead soon.
_TIMERS = "connect delay time 1; connect retry time 1; error wait time 1, 2; hold time 9; keepalive time 3;"


def configuration(machine: Machine, cidrs: Sequence[str], neighbours: Sequence[Machine]) -> str:
    """bird.conf: announce the node's own pod CIDRs, and enter what the neighbours announce."""
    blocks = [
        f"router id {machine.address};",
        "log stderr { warning, error, fatal, bug };",
        "protocol device { scan time 2; }",
    ]
    for version, mine in ((4, [c for c in cidrs if ":" not in c]), (6, [c for c in cidrs if ":" in c])):
        channel = f"ipv{version}"
        # A route that leads nowhere is more special than nothing and less than a pod's own.
        statics = " ".join(f"route {cidr} blackhole;" for cidr in mine)
        blocks += [
            f"protocol kernel kernel{version} {{ {channel} {{ import none; export where source = RTS_BGP; }}; }}",
            f"protocol static pods{version} {{ {channel}; {statics} }}",
        ]
        for neighbour in neighbours:
            here, there = (m.address if version == 4 else m.address6 for m in (machine, neighbour))
            blocks.append(
                f"protocol bgp {neighbour.node}_{version} {{\n"
                f"    local {here} as {AS_NUMBER};\n"
                f"    neighbor {there} as {AS_NUMBER};\n"
                "    direct;\n"
                f"    {_TIMERS}\n"
                f'    {channel} {{ import all; export where proto = "pods{version}"; next hop self; }};\n'
                "}"
            )
    return "\n".join(blocks) + "\n"


class Bird:
    """A daemon. `neighbours`: the nodes that it speaks to."""

    def __init__(self, machine: Machine, cidrs: Sequence[str], neighbours: Sequence[Machine], folder: Path) -> None:
        self._machine = machine
        self._socket = folder / f"{machine.node}.ctl"
        self._log = folder / f"{machine.node}-bird.log"
        self._config = folder / f"{machine.node}.conf"
        self._config.write_text(configuration(machine, cidrs, neighbours))
        self._command = ["bird", "-f", "-c", str(self._config), "-s", str(self._socket)]
        self._command += ["-P", str(folder / f"{machine.node}.pid")]
        self._daemon: subprocess.Popen[str] | None = None

    def start(self) -> None:
        with self._log.open("a") as log:
            self._daemon = self._machine.popen(self._command, stdout=log)

    def stop(self) -> None:
        """As `systemctl stop bird` does: it says good-bye to its neighbours and takes its routes along."""
        if self._daemon is not None:
            self._daemon.terminate()
            self._daemon.wait(10)
            self._daemon = None

    def kill(self) -> None:
        """At once."""
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon.wait()
            self._daemon = None

    def await_routes(self, *cidrs: str) -> None:
        """Wait until the kernel has its routes to these CIDRs and to no others."""
        try:
            wait_for(
                f"{self._machine.node} to learn {cidrs}",
                lambda: {line.split()[0] for line in bird_routes(self._machine).splitlines()} == set(cidrs),
                deadline=30,
            )
        except TimeoutError as error:
            said = self._machine.run("birdc", "-s", str(self._socket), "show", "protocols", "all", check=False)
            raise AssertionError(f"{error}\n{bird_routes(self._machine)}{self._log.read_text()}{said}") from error


def bird_routes(machine: Machine) -> str:
    """BIRD's routes on a node, of both families, as `ip` shows them."""
    return machine.ip("-4", "route", "show", "proto", "bird") + machine.ip("-6", "route", "show", "proto", "bird")
