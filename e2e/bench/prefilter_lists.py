"""`make bench-prefilter-lists`: block lists of a million CIDRs to what the kernel's tries take, without the kernel.

The lists are ConfigMaps as an agent gets them from the API server (JSON of less than 1 MB each), half of the lines with
a comment. In a process of its own that does what an agent does:

*parse*: JSON to sorted records, one ConfigMap after another. *merge*: of all of them, with 5,000 peers to be kept, to
`Rules`. Both are CPU seconds of one core. *peak_mib*, *after_mib*: the process's memory meanwhile and afterwards, and
*base_mib* before there was a list; an agent's own comes on top of what is above that.

*change_one_ms*: a line of one ConfigMap is another: JSON to `Rules` again, CPU, median of 9.

*nft*: `nft --check` with a set of intervals of the same CIDRs: what somebody waits for who would load the list so,
before the kernel is even asked. Its CPU seconds and memory, for as many as --nft says, as it takes long for a million.

Ends with one line `RESULT {json}`.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from netloom_e2e.block_lists import cidrs, config_maps

PEERS = 5000


def memory_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def measured(folder: Path) -> dict[str, float]:
    """In this process, from the files in the folder."""
    import ctypes

    import msgspec

    from netloom.cidr import parse_address
    from netloom.prefilter.list_reader import ListReader
    from netloom.prefilter.node_rules import Filter, NodeRules
    from netloom.prefilter.withheld import lifelines_of
    from netloom_reconcilers.node.prefilter.config_maps import ListConfigMap, read

    files = sorted(folder.glob("*.json"))
    base = memory_mib()
    began = time.process_time()
    lists = {}
    readers: dict[str, dict[str, ListReader]] = {}
    for file in files:
        config_map = msgspec.json.decode(file.read_bytes(), type=ListConfigMap)
        lists[False, file.name] = read(config_map, readers.setdefault(file.name, {})).entries["list"]
    parsed = time.process_time()
    peers = [(parse_address(f"10.{number >> 8}.{number & 255}.1"), f"node-{number}") for number in range(PEERS)]
    around = lifelines_of(peers=peers)
    rules = NodeRules()
    rules.update([Filter("a", lists)], around)
    merged = time.process_time()
    entries = len(rules.rules.v4) + len(rules.rules.v6)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ctypes.CDLL(None).malloc_trim(0)
    after = memory_mib()
    changes = []
    name = files[3 % len(files)].name
    text = (folder / name).read_bytes()
    for number in range(9):
        changed = text.replace(b"# a block list", f"203.0.113.{number}".encode())
        start = time.process_time()
        config_map = msgspec.json.decode(changed, type=ListConfigMap)
        lists = lists | {(False, name): read(config_map, readers[name]).entries["list"]}
        rules.update([Filter("a", lists)], around)
        changes.append(1000 * (time.process_time() - start))
    return {
        "entries": entries,
        "config_maps": len(files),
        "parse_s": round(parsed - began, 2),
        "merge_s": round(merged - parsed, 2),
        "base_mib": round(base, 1),
        "peak_mib": round(peak, 1),
        "after_mib": round(after, 1),
        "change_one_ms": round(statistics.median(changes), 1),
    }


def nft(texts: list[str]) -> dict[str, float]:
    """What `nft --check` takes for IPv4 ones of these."""
    elements = ",\n".join(text for text in texts if ":" not in text)
    head = "table inet bench {\n set deny {\n type ipv4_addr; flags interval; auto-merge; elements = {\n"
    ruleset = head + elements + "\n}\n}\n}\n"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        ["unshare", "--net", "nft", "--check", "--file", "-"], input=ruleset, text=True, check=True, timeout=500
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"entries": len(texts), "check_s": round(seconds, 2), "peak_mib": round(after.ru_maxrss / 1024, 1)}


def main() -> None:
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--nft", type=int, default=200_000, metavar="ENTRIES")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measured(options.measure)))
        return
    texts = cidrs(options.entries)
    with tempfile.TemporaryDirectory() as folder:
        for number, text in enumerate(config_maps(texts)):
            (Path(folder) / f"{number:03}.json").write_bytes(text)
        command = [sys.executable, __file__, "--measure", folder]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=500).stdout
    result = {"lists": json.loads(said), "nft": nft(texts[: options.nft])}
    print(f"RESULT {json.dumps(result)}")


if __name__ == "__main__":
    main()
