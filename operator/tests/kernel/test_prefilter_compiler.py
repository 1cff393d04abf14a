"""The way from the source to a program that the kernel takes, and what is said where it does not lead there."""

import json
import stat
from pathlib import Path

import pytest

from netloom.kernel.prefilter import bpf, compiler
from netloom.kernel.prefilter.compiler import Compiled, CompileError, file_name, instructions, source_folder
from tests.kernel.prefilters import Filtered, rules, wanted

RULES = rules({"198.51.100.0/24": "a"})
NOBODY = Path("/nonexistent/python3")


def source(place: Path, text: str | None = None) -> Path:
    """A folder as `bpf/` with this program."""
    for name in ("prefilter.c", "compile.py"):
        (place / name).write_text((source_folder() / name).read_text())
    if text is not None:
        (place / "prefilter.c").write_text(text)
    return place


def script(path: Path, text: str) -> Path:
    """A program in the place of Python."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_what_was_compiled_once_needs_no_compiler(compiled: Path, tmp_path: Path) -> None:
    first = instructions(compiled)
    assert instructions(compiled, python=NOBODY) == first
    shipped = source(tmp_path)
    name = file_name(shipped / "prefilter.c")
    (shipped / name).write_bytes((compiled / name).read_bytes())
    assert instructions(tmp_path / "no cache", folder=shipped, python=NOBODY) == first
    assert not (tmp_path / "no cache").exists()
    (shipped / "prefilter.c").write_text("// another program")
    with pytest.raises(CompileError, match="/nonexistent/python3 cannot be run: No such file or directory"):
        instructions(compiled, folder=shipped, python=NOBODY)


def test_a_file_that_was_cut_off_is_compiled_anew(compiled: Path, tmp_path: Path) -> None:
    whole = instructions(compiled)
    name = file_name(source_folder() / "prefilter.c")
    (tmp_path / name).write_bytes((compiled / name).read_bytes()[:1000])
    written = json.dumps({"compiler": whole.compiler, "multi_buffer": "aa", "single_buffer": "bb"})
    python = script(tmp_path / "python", f"echo '{written}'")
    assert instructions(tmp_path, python=python) == Compiled(whole.compiler, "aa", "bb")
    assert json.loads((tmp_path / name).read_bytes())["multi_buffer"] == "aa"


def test_what_the_compiler_says_is_said(tmp_path: Path) -> None:
    broken = source(tmp_path, "int netloom_drop(void *context) { return nothing; }\n")
    with pytest.raises(CompileError) as caught:
        instructions(tmp_path / "cache", folder=broken)
    assert str(caught.value) == (
        "the prefilter does not compile: /virtual/main.c:1:42: error: use of undeclared identifier 'nothing'"
    )


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("echo \"No module named 'bcc'\" >&2; exit 3", "install Debian's python3-bpfcc"),
        ("kill -9 $$", "the compiler ended with status -9 and said nothing"),
        ("echo nonsense; echo oops >&2", "the prefilter does not compile: oops"),
    ],
)
async def test_without_a_program_the_report_says_why_and_nothing_is_attached(
    filtered: Filtered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str, said: str
) -> None:
    monkeypatch.setattr(compiler, "PYTHON", script(tmp_path / "python", does))
    filtered.cache = tmp_path / "cache"
    keeper = await filtered.agent()
    report = await keeper.apply(wanted(RULES, "eth0"))
    assert said in report.error
    assert report.devices[0].error == report.error
    assert [failure.error for failure in report.failures] == [report.error]
    assert filtered.programs() == {}


async def test_where_another_version_cannot_be_had_the_one_that_runs_gets_the_entries(
    filtered: Filtered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await (await filtered.agent()).apply(wanted(RULES, "eth0"))

    def impossible(cache: Path) -> Compiled:
        raise CompileError("there is no compiler")

    monkeypatch.setattr(compiler, "instructions", impossible)
    keeper = await filtered.agent()
    report = await keeper.apply(wanted(rules({"203.0.113.0/24": "a", "198.51.100.0/24": "a"}), "eth0"))
    assert (report.error, report.entries["v4"], report.in_sync) == ("there is no compiler", 2, False)
    assert filtered.programs() == {"eth0": "native netloom_"}
    assert (report.devices[0].mode, report.devices[0].program) == ("native", before.program)
    await keeper.cleanup()
    assert (filtered.programs(), filtered.pins()) == ({}, ["maps.debug", "progs.debug"])


async def test_what_the_verifier_says_is_said(filtered: Filtered, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = "bf1600000000000061600000000000000500feff000000009500000000000000"
    monkeypatch.setattr(compiler, "instructions", lambda cache: Compiled("", endless, endless))
    keeper = await filtered.agent()
    report = await keeper.apply(wanted(RULES, "eth0"))
    assert report.error.startswith("the kernel's verifier refused the prefilter (Invalid argument): ")
    assert report.verifier.splitlines()[-2:] != []
    assert "insn" in report.verifier
    assert filtered.programs() == {}


async def test_a_kernel_that_knows_one_buffer_alone_gets_the_other_variant(
    filtered: Filtered, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = bpf.load_program

    def older(name: str, instructions: bytes, *, flags: int = 0) -> int:
        if flags:
            raise bpf.Rejected(22, "")
        return now(name, instructions)

    monkeypatch.setattr(bpf, "load_program", older)
    report = await (await filtered.agent()).apply(wanted(RULES, "eth0"))
    assert report.in_sync
    again = await (await filtered.agent()).apply(wanted(RULES, "eth0"))
    assert dict(again.written) == {}


async def test_without_a_bpffs_it_says_so(filtered: Filtered, tmp_path: Path) -> None:
    keeper = await filtered.agent(bpffs=tmp_path)
    report = await keeper.apply(wanted(RULES, "eth0"))
    assert report.error == (
        f"{tmp_path} is no bpffs, on which the prefilter lives while no agent does: have it mounted "
        f"(`mount -t bpf bpf {tmp_path}`, which systemd does at boot), for an agent in a pod as a hostPath"
    )
    assert not report.in_sync
