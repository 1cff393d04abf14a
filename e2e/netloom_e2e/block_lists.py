"""Block lists as they are published, for benches."""

import json
import random


def cidrs(count: int, seed: int = 17) -> list[str]:
    """Public lists have mostly single addresses and /24s; some of all is IPv6."""
    draw = random.Random(seed)
    found: set[str] = set()
    while len(found) < count:
        if draw.random() < 0.05:
            found.add(f"2a{draw.randrange(256):02x}:{draw.randrange(65536):x}:{draw.randrange(1, 65536):x}::/48")
            continue
        length = draw.choice((32, 32, 32, 24, 24, 22, 28))
        base = draw.randrange(11 << 24, 224 << 24) >> (32 - length) << (32 - length)
        address = ".".join(str(base >> shift & 255) for shift in (24, 16, 8, 0))
        found.add(address if length == 32 else f"{address}/{length}")
    return list(found)


def config_maps(texts: list[str]) -> list[bytes]:
    """ConfigMaps of them as JSON of less than 1 MB each, half of the lines with a comment."""
    found: list[bytes] = []
    lines: list[str] = []
    size = 0
    for number, text in enumerate(texts):
        line = f"{text} ; SBL{number}" if number % 2 else text
        if size + len(line) + 2 > 900_000:
            found.append(_config_map(len(found), lines))
            lines, size = [], 0
        lines.append(line)
        size += len(line) + 2
    return [*found, _config_map(len(found), lines)]


def _config_map(number: int, lines: list[str]) -> bytes:
    text = "# a block list\n" + "\n".join(lines) + "\n"
    return json.dumps({"metadata": {"name": f"list-{number}", "namespace": "x"}, "data": {"list": text}}).encode()
