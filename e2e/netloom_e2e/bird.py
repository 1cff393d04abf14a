"""BIRD, the BGP daemon that people run beside native routing: it tells the others a node's pod CIDRs and learns theirs.

    peers = [Peer(n2.address, 64512)]
    with Bird(n1, router_id=n1.address, asn=64512, announce=["10.42.1.0/24"], peers=peers, folder=tmp_path) as bird:
        bird.established()

It runs in the namespace it is given, as our child, with its socket, log and configuration in `folder`; nothing of the
machine's own BIRD is touched. Routes that it learns are in the namespace's main table (`proto bird`) while it runs.
"""

import ipaddress
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from netloom_e2e.machines import Machine
from netloom_e2e.namespaces import Namespace, run, wait_for

_KERNEL = """\
log stderr all;
router id {router_id};
protocol device {{ scan time 1; }}
protocol direct {{ ipv4; ipv6; }}
protocol kernel kernel4 {{ ipv4 {{ import none; export where source = RTS_BGP; }}; }}
protocol kernel kernel6 {{ ipv6 {{ import none; export where source = RTS_BGP; }}; }}
"""
_STATIC = "protocol static announced{version} {{ ipv{version}; {routes}}}\n"
_BGP = """\
protocol bgp peer{index} {{
  local as {asn};
  neighbor {peer} as {peer_asn};
  connect delay time 0;
  connect retry time 1;
  error wait time 1, 1;{reflector}
  ipv{version} {{ import all; export where {export}; }};
}}
"""


@dataclass(frozen=True, slots=True)
class Peer:
    """A neighbour of a BGP speaker. The address' family is the family of the routes they exchange.

    client: we are its route reflector: what one client announces is passed on to the others (iBGP only).
    """

    address: str
    asn: int
    client: bool = False


def configuration(*, router_id: str, asn: int, announce: Sequence[str], peers: Sequence[Peer], relay: bool) -> str:
    """Text of a bird.conf. `relay`: announce what others announced, too."""
    parts = [_KERNEL.format(router_id=router_id)]
    for version in (4, 6):
        routes = [cidr for cidr in announce if ipaddress.ip_network(cidr).version == version]
        # Announced and nothing else: no such route goes to the kernel, where the pods' own routes are.
        text = "".join(f"route {cidr} unreachable; " for cidr in routes)
        parts.append(_STATIC.format(version=version, routes=text))
    for index, peer in enumerate(peers):
        version = ipaddress.ip_address(peer.address).version
        parts.append(
            _BGP.format(
                index=index,
                asn=asn,
                peer=peer.address,
                peer_asn=peer.asn,
                reflector="\n  rr client;" if peer.client else "",
                version=version,
                export="source ~ [ RTS_STATIC, RTS_BGP ]" if relay else "source = RTS_STATIC",
            )
        )
    return "".join(parts)


class Bird:
    """One BGP speaker.

    router_id: an IPv4 address, unique among the speakers.
    relay: pass on what was learned, as a router does.
    """

    def __init__(
        self,
        place: Namespace,
        *,
        router_id: str,
        asn: int,
        peers: Sequence[Peer],
        folder: Path,
        announce: Sequence[str] = (),
        relay: bool = False,
    ) -> None:
        self._place = place
        self._peers = len(peers)
        self._files = folder / f"bird-{place.name}"
        self._text = configuration(router_id=router_id, asn=asn, announce=announce, peers=peers, relay=relay)
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Bird":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when it answers; RuntimeError with its log if it does not."""
        conf, pid = self._files.with_suffix(".conf"), self._files.with_suffix(".pid")
        conf.write_text(self._text)
        with self._log.open("a") as log:
            command = ["bird", "-f", "-c", str(conf), "-s", str(self._socket), "-P", str(pid)]
            process = self._process = self._place.popen(command, stdout=log)
        try:
            wait_for(
                "BIRD to answer", lambda: process.poll() is not None or "BIRD 2" in self.show("status"), deadline=10
            )
        except TimeoutError as error:
            raise RuntimeError(f"{error}\n{self._log.read_text()}") from error
        if process.poll() is not None:
            raise RuntimeError(f"BIRD ended with status {process.returncode}:\n{self._log.read_text()}")

    def stop(self, number: int = signal.SIGTERM) -> None:
        """On SIGTERM it takes its routes with it; on SIGKILL they stay, as when it crashes. May be called twice."""
        process, self._process = self._process, None
        if process:
            process.send_signal(number)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def show(self, *words: str) -> str:
        """What `birdc show` says; "" if nobody answers."""
        return run("birdc", "-s", str(self._socket), "show", *words, check=False)

    def established(self) -> None:
        """Wait until all sessions are up."""
        try:
            wait_for(
                f"{self._peers} BGP sessions on {self._place.name}",
                lambda: len(re.findall(r"^peer\d+ .*\bEstablished\b", self.show("protocols"), re.M)) == self._peers,
                deadline=30,
            )
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.show('protocols')}\n{self._log.read_text()[-4000:]}") from error

    @property
    def _socket(self) -> Path:
        return self._files.with_suffix(".ctl")

    @property
    def _log(self) -> Path:
        return self._files.with_suffix(".log")


def learned(place: Namespace) -> list[str]:
    """BIRD's routes in the kernel, both families, sorted; one line each, as `ip route` writes them."""
    lines = [
        line for family in ("-4", "-6") for line in place.ip(family, "route", "show", "proto", "bird").splitlines()
    ]
    return sorted(" ".join(line.split()) for line in lines)


@contextmanager
def full_mesh(nodes: Mapping[Machine, Sequence[str]], folder: Path, *, asn: int = 64512) -> Iterator[dict[str, Bird]]:
    """iBGP between nodes of one segment, each of which announces its pod CIDRs; by node, all sessions up."""
    with ExitStack() as stack:
        birds = {}
        for node, cidrs in nodes.items():
            peers = [Peer(address, asn) for other in nodes if other != node for address in other.underlay]
            bird = Bird(node, router_id=node.address, asn=asn, announce=cidrs, peers=peers, folder=folder)
            birds[node.node] = stack.enter_context(bird)
        for bird in birds.values():
            bird.established()
        yield birds
