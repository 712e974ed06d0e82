"""Every snippet of docs/ and of the README does what the page says: Python runs, YAML is a config, commands exist.

A page is read from its top. A block of Python shares its names with those before it, and a `text` block after it is what it prints. YAML
or Python that begins with the name of a file is that file, for what follows. Commands are parsed; on the pages of `RUN` they are run. A
block after the line `<!-- slow -->` takes long, and is run by the slow test of its page alone.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
import yaml

from pipeline.cli import app
from pipeline.jobconfig import validate
from tests.jobs import command

pytestmark = pytest.mark.full

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
RUN = sorted((DOCS / "tutorials").glob("*.md"))  # pages whose commands are run
LANGUAGES = {"python", "yaml", "console", "text", "", "{toctree}", "{eval-rst}"}
PROFILES = "profiles.yaml"  # a file of a user's own: clusters by name, no config
OUTSIDE = {"pip", "sbatch"}  # programs that are neither ours nor Dask's


class Block(NamedTuple):
    """A fenced block of a page. line : that of its fence, from 1.  slow : whether it is marked so."""

    language: str
    text: str
    line: int
    slow: bool


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), 1))
    before = ""
    for number, line in lines:
        if line.startswith("```"):
            inside: list[str] = []
            for _, each in lines:
                if each.startswith("```"):
                    break
                inside.append(each)
            yield Block(line[3:].strip(), "\n".join(inside) + "\n", number, before == "<!-- slow -->")
        before = line or before


def named(path: Path) -> str:
    """The name of a page, for pytest."""
    return str(path.relative_to(ROOT))


def all_blocks(language: str) -> list[object]:
    """The blocks of a language on all pages, as parameters of a test."""
    found = [(page, block) for page in PAGES for block in blocks(page) if block.language == language]
    return [pytest.param(block, id=f"{named(page)}:{block.line}") for page, block in found]


def commands(block: Block) -> list[list[str]]:
    """The commands of a console block, in words; a last word `&` sends one to the background."""
    text = block.text.replace("\\\n", " ")
    prompts = re.findall(r"^\w*\$ (.*)$", text, re.MULTILINE)
    return [shlex.split(part, comments=True) for line in prompts for part in line.split("&&")]


# --- what is said exists


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_languages_are_known(page):
    """No block is in a language that nothing here looks at."""
    assert {block.language for block in blocks(page)} <= LANGUAGES


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    """A link or picture that is no URL is a file."""
    targets = re.findall(r"\]\(([^)#\s]+)[^)\s]*\)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not missing


def test_every_fault_that_a_job_survives_names_a_test_that_exists():
    """docs/reliability.md: 32 rows, each with a file of tests or a script that is there."""
    page = (DOCS / "reliability.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(row[0].strip("| ")) for row in rows] == list(range(1, 33))
    for row in rows:
        named_there = re.findall(r"`(scripts/faults/\w+|(?:laws/)?test_\w+\.py)", row[-1])
        assert named_there, row[0]
        for name in named_there:
            assert (ROOT / name if name.startswith("scripts/") else ROOT / "tests" / name).exists(), (row[0], name)


def write(block: Block) -> None:
    """Write the file that a block is, if it begins with a name of one."""
    if name := re.match(r"# ([\w-]+\.(?:yaml|py))\n", block.text):
        Path(name[1]).write_text(block.text, encoding="utf-8")


@pytest.mark.parametrize("block", all_blocks("yaml"))
def test_yaml_is_a_config(block, tmp_path, monkeypatch):
    """Every YAML block is a config, or some of its sections; or clusters by name."""
    monkeypatch.chdir(tmp_path)
    for each in (*blocks(DOCS / "data" / "own.md"), *blocks(DOCS / "models" / "own.md")):
        write(each)  # files that a config may name
    raw = yaml.safe_load(block.text)
    validate({"engine": {"profiles": raw}} if block.text.splitlines()[0].endswith(PROFILES) else raw)


@pytest.mark.parametrize("block", all_blocks("console"))
def test_commands_exist(block):
    """Commands and their options are there: ours, Dask's and those of scripts/."""
    found = commands(block)
    assert found
    for words in found:
        check_command([word for word in words if word != "&"])


def check_command(words: list[str]) -> None:
    """Fails unless the command and its options are known."""
    program, arguments = words[0], words[1:]
    if program == "em-pipeline":
        known = typer.main.get_command(app).commands[arguments[0]]
        known.make_context(arguments[0], arguments[1:])  # an error of click's unless it takes them
    elif program == "dask":
        from dask.cli import cli
        from distributed.cli import dask_scheduler, dask_worker  # what Dask finds by entry points

        known = {**cli.commands, "scheduler": dask_scheduler.main, "worker": dask_worker.main}[arguments[0]]
        options = {name for option in known.params for name in (*option.opts, *option.secondary_opts)}
        assert {word.partition("=")[0] for word in arguments if word.startswith("--")} <= options, words
    elif program.startswith("scripts/"):
        script = ROOT / program
        assert os.access(script, os.X_OK), words
        text = script.read_text(encoding="utf-8")
        assert all(word in text for word in arguments if word.startswith("--")), words
    else:
        assert program in OUTSIDE, words
        extras = re.findall(r"\[(\w+)\]", " ".join(arguments))
        assert set(extras) <= set(
            tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        )
        assert all((ROOT / word).exists() for word in arguments if word.startswith("scripts/")), words
    assert all((ROOT / word).exists() for word in arguments if word.startswith("configs/")), words


# --- what is said happens


@pytest.fixture
def background() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes of commands in the background; they are ended, last first."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in reversed(started):
        process.terminate()
        process.wait(30)


def read(page: Path, slow: bool, background: list[subprocess.Popen[bytes]]) -> None:
    """Do what a page says, from its top, in the current folder. slow : also what is marked so."""
    shutil.copytree(ROOT / "configs", "configs")
    names: dict[str, object] = {"__name__": "__main__"}
    printed: str | None = None
    for block in blocks(page):
        if block.language in ("yaml", "python"):
            write(block)
        if block.slow and not slow:
            printed = None
        elif block.language == "python":
            # As many empty lines as the page has above it: a traceback names the page's own line.
            code = compile("\n" * block.line + block.text, str(page), "exec")
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(code, names)
            printed = out.getvalue()
        elif block.language == "text" and printed is not None:
            assert printed == block.text, f"{page}:{block.line}"
            printed = None
        elif block.language == "console" and page in RUN:
            for words in commands(block):
                run(words, background)


def run(words: list[str], background: list[subprocess.Popen[bytes]]) -> None:
    """Run a command: ours in this process."""
    if words[-1] == "&":
        program = Path(sys.executable).with_name(words[0])
        background.append(subprocess.Popen([program, *words[1:-1]], stderr=subprocess.DEVNULL))
    else:
        assert words[0] == "em-pipeline", words
        outcome = command(*words[1:])
        assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_snippets_run(page, tmp_path, monkeypatch, background):
    """What a page tells its reader to do works, but for what takes long."""
    monkeypatch.chdir(tmp_path)
    read(page, False, background)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(block.slow for block in blocks(page))], ids=named)
def test_whole_pages_run(page, tmp_path, monkeypatch, background):
    """The same with what takes long."""
    monkeypatch.chdir(tmp_path)
    read(page, True, background)


# --- the site and the notebook


def test_the_reference_has_every_key(monkeypatch):
    """Each key of each section of the config, whatever the source and the family, is a row of the reference."""
    from pipeline.config.variants import sections_in
    from pipeline.jobconfig import Config

    monkeypatch.syspath_prepend(DOCS)
    from sections import in_markdown

    text, waiting = in_markdown(), [Config]
    while waiting:
        for key, field in waiting.pop().model_fields.items():
            waiting += sections_in(field)
            assert f"| `{key}` |" in text or f"## {key}\n" in text


def test_the_reference_has_every_command(monkeypatch):
    """Each command is a heading of the reference, with its arguments and options."""
    monkeypatch.syspath_prepend(DOCS)
    from commands import in_markdown

    parts = in_markdown().split("## ")
    assert [part.split("\n")[0] for part in parts[1:]] == list(typer.main.get_command(app).commands)
    assert "| `CONFIG` |" in parts[3] and "| `--overwrite` | replace an earlier run of ours |" in parts[3]


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path):
    """What scripts/docs does in its own environment; skipped where there is no Sphinx."""
    pytest.importorskip("sphinx")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "--fail-on-warning", "--quiet", DOCS, tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    """Every cell of the notebook runs, and it is stored without outputs."""
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.chdir(tmp_path)
    notebook = nbformat.read(DOCS / "patches.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in shown)
