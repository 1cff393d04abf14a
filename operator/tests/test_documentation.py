"""What can be looked up in what the documentation says: places that links lead to, commands, options, verbs of make and
values of the chart, files, modules and errors. Whether commands do what is written is the matter of other tests."""

import builtins
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import typer
from typer.core import TyperGroup

from netloom.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_SPAN = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_PAGE = re.compile(r"\bdocs/[\w/-]+\.(?:md|yaml|py)(?:#[\w-]+)?")
_ROOTS = ("operator", "reconcilers")
_PRODUCT = ("operator/netloom/", "reconcilers/netloom_reconcilers/")
_PATH = re.compile(
    r"(?:netloom|netloom_reconcilers|operator/(?:netloom|tests)|reconcilers|e2e|bpf|crds|docs)/[a-z0-9_./-]*"
)
_MODULE = re.compile(r"(?:netloom|netloom_reconcilers|cluster|features|node)(?:\.(?!dev\b)[a-zA-Z_]\w*)+")
_END = re.compile(r"\s(?:\||&&|\|\||;|>|2>|#)\s?.*")
"""What follows a command in a line of a shell."""


class Command(NamedTuple):
    """A line that somebody types, and the page that it is of."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


@cache
def _tracked() -> tuple[Path, ...]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return tuple(ROOT / name for name in listed.split("\0") if name)


def _pages() -> list[Path]:
    return [file for file in _tracked() if file.suffix == ".md"]


def _name(file: Path) -> str:
    return str(file.relative_to(ROOT))


@cache
def _anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = (re.sub(r"\]\([^)]*\)", "]", heading) for heading in _HEADING.findall(_prose(page)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text())


def _leads_nowhere(page: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    at = (page.parent / path).resolve() if path else page
    if not at.exists():
        return True
    return bool(anchor) and (at.suffix != ".md" or anchor not in _anchors(at))


@cache
def _typed() -> tuple[Command, ...]:
    """All lines of blocks for a shell, and what stands in backquotes."""
    return tuple(command for command in _all_typed() if command.words)


def _all_typed() -> Iterator[Command]:
    for page in _pages():
        text = page.read_text()
        for language, block in _FENCE.findall(text):
            if language in ("console", "sh", "bash"):
                lines = block.replace("\\\n", " ").splitlines()
                yield from (_command(page, line[2:]) for line in lines if line[:2] in ("$ ", "# "))
        yield from (_command(page, span) for span in _SPAN.findall(_prose(page)))


def _command(page: Path, line: str) -> Command:
    line = _END.sub("", " ".join(line.replace("[", " ").replace("]", " ").split()))
    try:
        return Command(_name(page), tuple(shlex.split(line)))
    except ValueError:  # an open quotation mark: a piece of something
        return Command(_name(page), tuple(line.split()))


def _of(program: str) -> list[Command]:
    found = [each for each in _typed() if each.words[:1] == (program,)]
    inner = [
        Command(each.page, each.words[each.words.index("--") + 1 :])
        for each in _typed()
        if "--" in each.words and each.words[0] != program
    ]
    return found + [each for each in inner if each.words[:1] == (program,)]


def test_links_lead_somewhere() -> None:
    dead = [
        f"{_name(page)}: {target}"
        for page in _pages()
        for target in _LINK.findall(_prose(page))
        if not re.match(r"[a-z]+:", target) and _leads_nowhere(page, target)
    ]
    assert not dead


def test_pages_that_programs_name_are_there() -> None:
    """Sentences of errors send people to the documentation."""
    sources = [file for file in _tracked() if file.suffix in (".py", ".c", ".h", ".yaml", ".tpl", ".txt", ".toml")]
    sources += [ROOT / "Makefile"]
    dead = [
        f"{_name(file)}: {target}"
        for file in sources
        for target in _PAGE.findall(file.read_text())
        if _leads_nowhere(ROOT / "README.md", target)
    ]
    assert not dead


def test_files_and_modules_that_pages_name_are_there() -> None:
    """Who renames a module does not read all that names it. Rows that begin in italics are of what is to come."""
    names = {file.name for file in _tracked()}
    wrong = []
    for page in _pages():
        prose = "\n".join(line for line in _prose(page).splitlines() if not line.startswith("| *"))
        folders = [page.parent, *(ROOT / name for name in ("", "operator", "reconcilers", "e2e"))]
        for word in (word.strip("`,;:") for span in _SPAN.findall(prose) for word in span.split()):
            if _PATH.fullmatch(word):
                is_there = any((folder / word).exists() for folder in folders)
            elif re.fullmatch(r"\w+\.py", word):
                is_there = word in names
            else:
                is_there = not _MODULE.fullmatch(word) or _is_in_a_module(word)
            if not is_there:
                wrong.append(f"{_name(page)}: {word}")
    assert not wrong


def test_modules_and_errors_that_the_code_names_are_there() -> None:
    sources = [file for file in _tracked() if file.suffix == ".py" and _name(file).startswith(_PRODUCT)]
    assert len(sources) > 300
    known = set(dir(builtins)) | {name for file in sources for name in _names(file)}
    wrong = []
    for file in sources:
        text = file.read_text()
        raised = re.findall(r"\b[Rr]aises ((?:[A-Z]\w+(?:, (?:and )?| and | or )?)+)", text)
        errors = {error for each in raised for error in re.findall(r"[A-Z]\w+", each)} - known
        modules = {each for each in _SPAN.findall(text) if _MODULE.fullmatch(each) and not _is_in_a_module(each)}
        wrong += [f"{_name(file)}: {each}" for each in sorted(errors | modules)]
    assert not wrong


def _is_in_a_module(dotted: str) -> bool:
    """Whether it is a module, or what one defines; of the reconcilers also without the name of their package."""
    for name in (dotted, f"netloom_reconcilers.{dotted}"):
        for module, thing in ((name, ""), tuple(name.rsplit(".", 1))):
            path = module.replace(".", "/")
            for file in (ROOT / base / f"{path}{end}" for base in _ROOTS for end in (".py", "/__init__.py")):
                if file.exists() and (not thing or thing in _names(file)):
                    return True
    return False


@cache
def _names(file: Path) -> frozenset[str]:
    """Of what a module defines or imports, and of errors of modules that it imports."""
    text = file.read_text()
    imported = re.findall(r"^(?:from [\w.]+ )?import (?:\(([^)]*)\)|(.*))", text, re.MULTILINE)
    defined = re.findall(r"^ *(?:class|def|async def) (\w+)|^(\w+)(?:: [^=\n]+)? = |\.(\w+Error)\b", text, re.MULTILINE)
    return frozenset(
        re.findall(r"\w+", " ".join(word for found in (imported, defined) for each in found for word in each))
    )


def test_commands_and_options_of_netloom_are_there() -> None:
    commands = _of("netloom")
    assert len(commands) > 100
    wrong = [f"{command} ({why})" for command in commands if (why := _not_understood(command.words[1:]))]
    assert not wrong


@cache
def _command_line() -> Any:
    return typer.main.get_command(app)


def _not_understood(words: tuple[str, ...]) -> str:
    """What of them the command line does not have."""
    command: Any = _command_line()
    for word in words:
        if word.startswith("-"):
            name = word.partition("=")[0]
            if name not in {option for each in command.params for option in each.opts} | {"--help"}:
                return f"no option {name}"
        elif isinstance(command, TyperGroup):
            inner = command.commands.get(word.rstrip(","))
            if inner is None and word.isupper():  # stands for any
                return ""
            if inner is None:
                return f"no command {word}"
            command = inner
    return ""


def test_verbs_of_make_are_there() -> None:
    verbs = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = _of("make")
    assert len(commands) > 20
    assert not [str(each) for each in commands if each.words[1:] and each.words[1] not in verbs]


def test_values_that_are_set_are_there() -> None:
    schema = json.loads((ROOT / "chart/netloom/values.schema.json").read_text())
    commands = [each for each in _typed() if "--set" in each.words]
    assert len(commands) > 10
    wrong = [f"{each}: {key}" for each in commands for key in _keys(each.words) if not _has(schema, key)]
    assert not wrong


def _keys(words: tuple[str, ...]) -> Iterator[str]:
    for option, value in pairwise(words):
        if option == "--set":
            yield from re.findall(r"(?:^|,)([\w.]+)(?:=|\b)", re.sub(r"\{[^}]*\}", "", value))


def _has(schema: dict[str, Any], key: str) -> bool:
    for name in key.split("."):
        named = schema.get("properties")
        if named is None:  # of any names, as labels
            return schema["type"] == "object"
        if name not in named:
            return False
        schema = named[name]
    return True
