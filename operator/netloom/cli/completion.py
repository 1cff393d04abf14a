"""What TAB may put next, asked by `netloom __complete WORD...`, the last of which is incomplete and may be "".

The answer is cobra's, as kubectl wants it of `kubectl_complete-netloom`: a line for each, with its help behind a tab,
and then `:4`, or `:0` where a file name may stand. The scripts of the shells ask the same.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import typer
from typer.core import TyperArgument, TyperGroup, TyperOption

from netloom.cli.app import app

NO_FILES, FILES = 4, 0
"""ShellCompDirective of github.com/spf13/cobra/completions.go."""

Candidate = tuple[str, str]


def answer(words: Sequence[str]) -> None:
    """Prints it."""
    candidates, directive = complete(list(words[:-1]), words[-1] if words else "")
    for value, text in candidates:
        print(f"{value}\t{text}" if text else value)
    print(f":{directive}")


def complete(words: list[str], incomplete: str) -> tuple[list[Candidate], int]:
    """What the word may become that follows these, and whether that may be a file."""
    command, context, rest = _command_of(words)
    option, equals, value = incomplete.partition("=")
    if equals and option.startswith("--"):
        return _values(_option(command, option), value)
    if rest and (before := _option(command, rest[-1])) is not None and not before.is_flag:
        return _values(before, incomplete)
    if incomplete.startswith("-"):
        return _begun(_options(command, context, rest), incomplete), NO_FILES
    if isinstance(command, TyperGroup):
        return _begun(_names(command, context), incomplete), NO_FILES
    if command.name == "help":
        target, at, _ = _command_of([word for word in rest if not word.startswith("-")])
        return _begun(_names(target, at), incomplete), NO_FILES
    argument = next((each for each in command.params if isinstance(each, TyperArgument)), None)
    return _values(argument, incomplete) if argument and not rest else ([], NO_FILES)


def _command_of(words: Iterable[str]) -> tuple[Any, Any, list[str]]:
    """The command that these words call, its context, and the words behind its name."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("netloom", [], resilient_parsing=True)
    rest: list[str] = []
    for word in words:
        inner = command.get_command(context, word) if isinstance(command, TyperGroup) else None
        if inner is None:
            rest.append(word)
        else:
            command, rest = inner, []
            context = command.make_context(word, [], parent=context, resilient_parsing=True)
    return command, context, rest


def _names(command: Any, context: Any) -> Iterator[Candidate]:
    """Of the commands in a group."""
    if isinstance(command, TyperGroup):
        for name in command.list_commands(context):
            yield name, _first_line(command.commands[name].help)


def _options(command: Any, context: Any, given: Sequence[str]) -> Iterator[Candidate]:
    """That are not given yet, unless they may be several times."""
    typed = {word.partition("=")[0] for word in given}
    for each in command.get_params(context):
        if not each.hidden and (each.multiple or typed.isdisjoint((*each.opts, *each.secondary_opts))):
            for name in (*each.opts, *each.secondary_opts):
                if name.startswith("--"):
                    yield name, _first_line(each.help)


def _option(command: Any, name: str) -> TyperOption | None:
    return next((each for each in command.params if isinstance(each, TyperOption) and name in each.opts), None)


def _values(parameter: Any, incomplete: str) -> tuple[list[Candidate], int]:
    choices = getattr(parameter.type, "choices", None) if parameter is not None else None
    if choices:
        return _begun(((str(choice), "") for choice in choices), incomplete), NO_FILES
    takes_file = parameter is not None and parameter.metavar in ("FILE", "DIR")
    return [], FILES if takes_file else NO_FILES


def _begun(candidates: Iterable[Candidate], incomplete: str) -> list[Candidate]:
    return [each for each in candidates if each[0].startswith(incomplete)]


def _first_line(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


_BASH = """\
# Completion of netloom for bash: source <(netloom completion bash)
_netloom() {
    local -a words=()
    local word
    for word in "${COMP_WORDS[@]:1:COMP_CWORD}"; do
        # bash cuts --output=json into three
        if [[ ${#words[@]} -gt 0 && ( $word == =* || ${words[-1]} == --*= ) ]]; then
            words[-1]+=$word
        else
            words+=("$word")
        fi
    done
    COMPREPLY=()
    while IFS=$'\\t' read -r word _; do
        case $word in
            :0) compopt -o default ;;
            :*) ;;
            *) COMPREPLY+=("$word") ;;
        esac
    done < <("$1" __complete "${words[@]}" 2>/dev/null)
}
complete -F _netloom netloom
"""

_ZSH = """\
#compdef netloom
# Completion of netloom for zsh: source <(netloom completion zsh), behind compinit
_netloom() {
    local -a answers
    local line files
    for line in "${(@f)$("${words[1]}" __complete "${(@)words[2,CURRENT]}" 2>/dev/null)}"; do
        case $line in
            :0) files=1 ;;
            :*) ;;
            *) answers+=("${${line//:/\\\\:}/$'\\t'/:}") ;;
        esac
    done
    [[ $words[CURRENT] == --*=* ]] && compset -P '*='
    (( $#answers )) && _describe -V netloom answers
    [[ -n $files ]] && _files
}
if [[ $funcstack[1] == _netloom ]]; then _netloom "$@"; else compdef _netloom netloom; fi
"""

_FISH = """\
# Completion of netloom for fish: netloom completion fish | source
function __netloom_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    test (count $current) -eq 0; and set current ""
    set -l begun (string match -r -- '^--[^=]*=' $current; or echo)
    for line in ($words[1] __complete $words[2..-1] $current 2>/dev/null)
        switch $line
            case ':0'
                __fish_complete_path (string replace -r -- '^--[^=]*=' '' $current)
            case ':*'
            case '*'
                echo $begun$line
        end
    end
end
complete -c netloom -f -a '(__netloom_complete)'
"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
