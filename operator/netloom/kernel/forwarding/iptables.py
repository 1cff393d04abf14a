"""iptables of the legacy variant, by its own programs: nothing else speaks with the kernel's ip_tables.

Asking it for a table makes the table, and loads modules, so what there is is asked of /proc first. It tells of no
change: whoever wants to know has to look. Reading the filter table takes 2 ms of CPU time (two processes' worth where
IPv6 has one, too).
"""

import re
import shlex
import shutil
import subprocess
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import msgspec

from netloom.cidr import Cidr
from netloom.kernel.forwarding.packets import (
    STATE_ESTABLISHED,
    STATE_INVALID,
    STATE_NEW,
    STATE_RELATED,
    UNKNOWN,
    Chain,
    FilterRule,
    Policy,
    RuleCondition,
    Verdict,
    name_range,
    range_of,
)

_NAMES = {"ip": "ip_tables_names", "ip6": "ip6_tables_names"}
PROGRAMS = {"ip": "iptables-legacy", "ip6": "ip6tables-legacy"}
TABLE = "filter"
LOCK_SECONDS = 5
"""For the lock that all programs of the legacy variant take (/run/xtables.lock); it is tried again later."""
_ALSO_IN = "/usr/sbin:/sbin:/usr/bin:/bin"

_STATES = {"INVALID": STATE_INVALID, "ESTABLISHED": STATE_ESTABLISHED, "RELATED": STATE_RELATED, "NEW": STATE_NEW}
_VERDICTS: dict[str, Verdict] = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "drop", "RETURN": "return"}
_POLICIES: dict[str, Policy] = {"ACCEPT": "accept", "DROP": "drop"}
_PASSING = {"LOG", "NFLOG", "MARK", "CONNMARK", "TCPMSS", "DSCP", "TOS", "TTL", "HL", "CT", "NOTRACK", "AUDIT"}
"""Targets after which the packet goes on. Of others nobody here knows."""
_COUNTERS = re.compile(r" \[\d+:\d+\]$", re.MULTILINE)


class IptablesError(OSError):
    """A program of iptables failed, or is not there; in its own words."""


def has_table(family: str) -> bool:
    """Whether the kernel has a filter table of the legacy variant, in this network namespace. Raises OSError."""
    try:
        names = Path("/proc/thread-self/net", _NAMES[family]).read_text(encoding="ascii")
    except FileNotFoundError:
        return False  # the kernel has none of it
    return TABLE in names.split()


def save(family: str) -> str:
    """The filter table as iptables-save prints it, without counters. There is one. Raises IptablesError, OSError."""
    return _COUNTERS.sub("", _run(family, "save", "-t", TABLE))


def restore(family: str, lines: Sequence[str]) -> None:
    """Do all of this, or nothing. Raises IptablesError, OSError."""
    _run(family, "restore", "--noflush", "-w", str(LOCK_SECONDS), said="\n".join([f"*{TABLE}", *lines, "COMMIT", ""]))


def _run(family: str, verb: str, *options: str, said: str = "") -> str:
    name = f"{PROGRAMS[family]}-{verb}"
    found = shutil.which(name) or shutil.which(name, path=_ALSO_IN)
    if found is None:
        raise IptablesError(f"there is no program {name} beside the agent (Debian: package iptables)")
    try:
        done = subprocess.run(
            [found, *options], input=said, capture_output=True, text=True, timeout=2 * LOCK_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise IptablesError(f"{name} has not ended after {2 * LOCK_SECONDS} s") from error
    if done.returncode:
        raise IptablesError(f"{name}: {' '.join(done.stderr.split()) or f'it ended with {done.returncode}'}")
    return done.stdout


def parse(family: str, saved: str) -> dict[str, Chain]:
    """The chains of what iptables-save printed."""
    policies: dict[str, Policy] = {}
    rules: dict[str, list[FilterRule]] = {}
    for line in saved.splitlines():
        if line.startswith(":"):
            name, policy = line[1:].split()[:2]
            policies[name] = _POLICIES.get(policy, "")
            rules[name] = []
        elif line.startswith("-A "):
            words = shlex.split(line)
            rules.setdefault(words[1], []).append(_rule(family, words[2:], policies))
    return {name: Chain(tuple(listed), policies.get(name, "")) for name, listed in rules.items()}


def _rule(family: str, words: Sequence[str], chains: Collection[str]) -> FilterRule:
    rule = FilterRule()
    conditions: list[RuleCondition] = []
    for inverted, option, values in _options(words):
        if option in ("-j", "-g"):
            rule = _target(values[0], "jump" if option == "-j" else "goto", chains)
            break  # what follows is about how it rejects, or logs
        conditions += _conditions(family, option, values, inverted=inverted)
    return msgspec.structs.replace(rule, conditions=tuple(conditions))


def _options(words: Sequence[str]) -> Iterator[tuple[bool, str, list[str]]]:
    """Whether there is a `!` before it, the option, and what follows."""
    inverted, place = False, 0
    while place < len(words):
        if words[place] == "!":
            inverted, place = True, place + 1
            continue
        end = place + 1
        while end < len(words) and words[end] != "!" and not re.match(r"--?[a-z]", words[end]):
            end += 1
        yield inverted, words[place], list(words[place + 1 : end])
        inverted, place = False, end


def _conditions(family: str, option: str, values: Sequence[str], *, inverted: bool) -> list[RuleCondition]:
    if (option == "-m" and values[0] in ("comment", "conntrack", "state")) or option == "--comment":
        return []
    fields = {"-s": f"{family} saddr", "-d": f"{family} daddr", "-i": "iif", "-o": "oif"}
    if option in ("-s", "-d") and (cidr := _cidr(values[0])):
        return [RuleCondition(fields[option], (range_of(cidr),), inverted)]
    if option in ("-i", "-o"):
        name = values[0]
        return [RuleCondition(fields[option], (name_range(f"{name[:-1]}*" if name.endswith("+") else name),), inverted)]
    states = values[0].split(",") if option in ("--ctstate", "--state") else []
    if states and _STATES.keys() >= set(states):
        return [RuleCondition("state", tuple((_STATES[each],) * 2 for each in states), inverted)]
    return [RuleCondition(UNKNOWN)]


def _cidr(text: str) -> Cidr | None:
    """None for a mask that is no prefix."""
    return Cidr.masked(text) if re.fullmatch(r"[0-9a-fA-F.:]+/\d+", text) else None


def _target(name: str, leads: Verdict, chains: Collection[str]) -> FilterRule:
    if name in _VERDICTS:
        return FilterRule(verdict=_VERDICTS[name])
    if name in chains:
        return FilterRule(verdict=leads, target=name)
    return FilterRule(verdict="" if name in _PASSING else "unknown")
