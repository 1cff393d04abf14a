"""Help in the order in which people need it: under headings, what is used first and what a machine runs last."""

import re
from typing import Any

import typer
from typer.core import TyperGroup

HEADINGS: dict[str, tuple[str, ...]] = {
    "See how things are": ("status", "check", "plan", "pools", "prefilter"),
    "Look after a cluster and its machines": ("guard", "crds", "ip", "cleanup", "uninstall"),
    "About this program": ("help", "completion", "version"),
    "Roles, which pods and services run": ("agent", "operator", "webhook"),
}
"""All commands but those of groups."""

_SENTENCE = re.compile(r".+?\.(?=\s|$)", re.DOTALL)


class CommandGroup(TyperGroup):
    """The commands under their headings, each with the first sentence of its help, which is never cut."""

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order of the headings."""
        return [name for names in HEADINGS.values() for name in names if name in self.commands]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """For the help."""
        for heading, names in HEADINGS.items():
            with formatter.section(heading):
                formatter.write_dl([(name, _first_sentence(self.commands[name].help or "")) for name in names])


def _first_sentence(text: str) -> str:
    words = " ".join(text.split("\n\n")[0].split())
    found = _SENTENCE.match(words)
    return found[0] if found else words


def show_help(called: typer.Context, names: list[str]) -> None:
    """What `netloom NAMES --help` prints. Ends the command; with an error where the names are those of none."""
    root = called.find_root()
    command: object = root.command
    for number, name in enumerate(names, 1):
        command = command.get_command(root, name) if isinstance(command, TyperGroup) else None
        if command is None:
            called.fail(f"there is no command '{' '.join(names[:number])}'")
    root.command.main([*names, "--help"], prog_name=root.info_name)
