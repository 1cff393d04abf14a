"""All that a CNI may leave on a machine, as lines of text, to compare before it came and when it is gone.

What kube-proxy keeps for Services is left out, and so is what is the container runtime's: which pods it runs, and what
it was told of their networks. Anycast routes are the kernel's, where IPv6 is forwarded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from netloom_e2e.kubelet_node import KubeletNode

_TABLES = (
    ("route", "show", "table", "all"),
    ("rule", "show"),
    ("neigh", "show", "nud", "permanent"),
    ("neigh", "show", "proxy"),
)
_OF_LINKS = (
    *("mtu", "address", "group", "txqlen", "ifalias", "master", "promiscuity", "allmulti", "inet6_addr_gen_mode"),
    *("gso_max_size", "gro_max_size", "flags"),
)
_COUNTERS = re.compile(r"counter packets \d+ bytes \d+")
_EXPIRES = re.compile(r" expires \d+sec")
_OF_SERVICES = re.compile(r"KUBE-")
_OF_PODS = re.compile(r"^net\.ipv[46]\.(conf|neigh)\.(?!(all|default|eth0|lo)\.)")
_RESTLESS = re.compile(r"stable_secret|random|mtu_expires|netdev_rss_key|flow_limit_cpu_bitmap|_count = ")
_PLACES = ("/etc/cni", "/opt/cni", "/run", "/var/lib", "/dev/net", "/sys/fs/bpf")
_OTHERS = (
    "/run/containerd", "/run/netns", "/run/xtables.lock", "/var/lib/cni", "/var/lib/containerd", "/var/lib/kubelet",
)  # fmt: skip


def state(node: KubeletNode) -> list[str]:
    """Of a node: links, addresses, what is attached to links, routes, rules, nexthops, neighbours, packet filters,
    switches, mounts, files."""
    return sorted(
        [*_links(node), *_tables(node), *_filters(node), *_switches(node), *_mounts(node), *_files(node)],
    )


def _links(node: KubeletNode) -> Iterator[str]:
    for link in json.loads(node.machine.ip("-j", "-d", "link", "show")):
        name = link["ifname"]
        yield f"link {name} {'xdp' if link.get('xdp') else ''}"
        yield from (f"link {name} {key} {link[key]}" for key in _OF_LINKS if key in link)
    for line in node.machine.ip("-o", "address", "show").splitlines():
        yield f"address {' '.join(line.partition(' valid_lft ')[0].split()[1:])}"
    for what in ("qdisc", "filter"):
        for line in node.machine.run("tc", what, "show").splitlines():
            yield f"{what} {line.strip()}"


def _tables(node: KubeletNode) -> Iterator[str]:
    for family in ("-4", "-6"):
        for words in _TABLES:
            for line in node.machine.ip(family, *words).splitlines():
                if line.startswith("anycast "):
                    continue
                yield f"{words[0]} {family} {_EXPIRES.sub('', line).strip()}"
    for line in node.machine.ip("nexthop", "show").splitlines():
        yield f"nexthop {line.strip()}"


def _filters(node: KubeletNode) -> Iterator[str]:
    for program in ("iptables", "ip6tables"):
        for variant in ("nft", "legacy"):
            yield from _rules(f"{program}-{variant}", node.run(f"{program}-{variant}-save", check=False))
    table = chain = ""
    for line in node.machine.run("nft", "list", "ruleset").splitlines():
        words = line.split()
        if words[:1] == ["table"]:
            table = " ".join(words[1:3])
        elif words[:1] == ["chain"]:
            chain = words[1]
        if "netloom" in line.lower() or not (
            _OF_SERVICES.search(line) or chain.startswith("KUBE-") or table.startswith("ip")
        ):
            yield f"nft {table} {chain}: {_COUNTERS.sub('', line).strip()}"


def _rules(program: str, saved: str) -> Iterator[str]:
    """Rules and chains; of the chains that a table always has, those that do not accept."""
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(("-A", ":")) and not _OF_SERVICES.search(line):
            said = line.partition(" [")[0] if line.startswith(":") else line
            if not said.endswith(" ACCEPT") or line.startswith("-A"):
                yield f"{program} {table} {said}"


def _switches(node: KubeletNode) -> Iterator[str]:
    for line in node.machine.run("sysctl", "--all", "--ignore", "--pattern", r"^net\.", check=False).splitlines():
        if not (_RESTLESS.search(line) or _OF_PODS.search(line)):
            yield f"sysctl {line}"


def _mounts(node: KubeletNode) -> Iterator[str]:
    for line in node.run("cat", "/proc/self/mountinfo").splitlines():
        place = line.split()[4]
        if not place.startswith(_OTHERS):
            yield f"mount {place}"


def _files(node: KubeletNode) -> Iterator[str]:
    but = [word for place in _OTHERS for word in ("-path", place, "-prune", "-o")]
    for line in node.run("find", *_PLACES, "-xdev", *but, "-printf", "%p %y %m %l\\n").splitlines():
        yield f"file {line}"
