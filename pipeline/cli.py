"""The command line: parses, calls the workflow, turns errors into messages and exit codes."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pipeline.engine.blas import choose_kernels
from pipeline.errors import InputError, PipelineError, Stopped, hidden, shown_path
from pipeline.logs import LEVELS, forget, lenient_streams, logging_to
from pipeline.signals import StopRequested, stopping
from pipeline.uses import Address, EngineFile, File, Output, ProfileName, RunPath, Set, add_uses

if TYPE_CHECKING:
    from pipeline.config import EngineSection
    from pipeline.config.syntax import Place
    from pipeline.jobconfig import Config

_BEGAN: ContextVar[float | None] = ContextVar(
    "began", default=None
)  # when the user began to wait, by time.perf_counter()

app = typer.Typer(
    name="em-pipeline",
    help="Exact fits of mixtures and other latent-variable models to data larger than memory.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="a YAML file; see `em-pipeline config`")]


_asked = {"quiet": False}  # of the command that this process runs


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"em-pipeline {version('em-pipeline')}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="show warnings and errors only, no progress")] = False,
    log_level: Annotated[str | None, typer.Option("--log-level", help=f"show the log: {', '.join(LEVELS)}")] = None,
    log_file: Annotated[
        Path | None, typer.Option("--log-file", help="append the log to a file: --log-level, or info and above")
    ] = None,
    show_version: Annotated[
        bool, typer.Option("--version", help="print the version", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Options of every command. They may stand anywhere: `main` puts them in front."""
    _asked["quiet"] = quiet
    context.with_resource(logging_to(log_level, log_file))


@app.command("config")
def config_command(
    family: Annotated[
        str | None, typer.Argument(help="a model.family; for one that is not there, the error lists all")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON Schema of configs, for editors")] = False,
) -> None:
    """Print a commented YAML with every option, its default, bounds and meaning."""
    from pipeline.jobconfig import json_schema, template

    if schema and family is not None:
        raise InputError(f"config: got {family} and --schema, which is that of all families. Leave one out.")
    sys.stdout.write(json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n" if schema else template(family))


@app.command("check")
def check_command(
    config: ConfigPath,
    overrides: Set = None,
    scheduler_address: Address = None,
    scheduler_file: File = None,
    profile: ProfileName = None,
    as_json: Annotated[bool, typer.Option("--json", help="the same as one JSON object")] = False,
) -> None:
    """Say what CONFIG would cost: memory, passes, seconds, and advice. Writes nothing."""
    tell = partial(typer.echo, err=as_json)  # at once: imports and reads take seconds
    tell(f"checking  {config}: its data are opened, then a few chunks are timed")
    loaded = _loaded(config, [*(overrides or []), *_engine(scheduler_address, scheduler_file, profile)])
    from pipeline import workflow
    from pipeline.outputs.plan import in_words

    cost = workflow.check(loaded, tell, _BEGAN.get()).facts()
    typer.echo(json.dumps(cost, indent=2) if as_json else "\n".join(in_words(cost)))


@app.command("run")
def run_command(
    config: ConfigPath,
    output: Output = None,
    overrides: Set = None,
    scheduler_address: Address = None,
    scheduler_file: File = None,
    profile: ProfileName = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an earlier run of ours")] = False,
) -> None:
    """Fit what CONFIG asks for."""
    _fit(_loaded(config, [*(overrides or []), *_engine(scheduler_address, scheduler_file, profile)]), output, overwrite)


@app.command("update")
def update_command(
    run: RunPath,
    overrides: Set = None,
    output: Output = None,
    scheduler_address: Address = None,
    scheduler_file: File = None,
    profile: ProfileName = None,
    engine: EngineFile = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an earlier run of ours")] = False,
) -> None:
    """Add rows, named by --set data.key=value, to the model of RUN, whose own are not read again: a new run, by default RUN-updated."""
    changes = _changes(run, overrides, engine, scheduler_address, scheduler_file, profile)
    from pipeline.updating import config_of_update

    _fit(config_of_update(run, changes), output, overwrite)


@app.command("resume")
def resume_command(
    run: RunPath,
    overrides: Set = None,
    scheduler_address: Address = None,
    scheduler_file: File = None,
    profile: ProfileName = None,
    engine: EngineFile = None,
    accept_other_bits: Annotated[
        bool, typer.Option("--accept-other-bits", help="go on under other BLAS kernels than the run began with")
    ] = False,
) -> None:
    """Go on exactly where RUN stopped; of a finished run, do what is missing."""
    changes = _changes(run, overrides, engine, scheduler_address, scheduler_file, profile)
    from pipeline import workflow

    _with_progress(run, lambda listener: workflow.resume(run, changes, [listener], accept_other_bits, _BEGAN.get()))


@app.command("status")
def status_command(
    run: RunPath,
    watch: Annotated[bool, typer.Option("--watch", help="keep showing, until the run has ended")] = False,
) -> None:
    """Show how far RUN is, from its files alone."""
    from pipeline.outputs.status import show

    with suppress(StopRequested):  # nothing is being written
        show(run, watch)


@app.command("predict")
def predict_command(
    run: RunPath,
    overrides: Set = None,
    output: Output = None,
    scheduler_address: Address = None,
    scheduler_file: File = None,
    profile: ProfileName = None,
    engine: EngineFile = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="zarr; parquet or csv: also a table, with what names each row in the input; geotiff: also a raster",
        ),
    ] = "zarr",
) -> None:
    """Label rows with the model of RUN: its own, or others, named by --set data.key=value, with --output."""
    changes = _changes(run, overrides, engine, scheduler_address, scheduler_file, profile)
    from pipeline import workflow

    _with_progress(
        run if output is None else output,
        lambda listener: workflow.predict(run, changes, output, [listener], _BEGAN.get(), form=form),
    )
    if output is not None:
        _say(f"report: {shown_path(Path(output) / 'report.html')}")


@app.command("report")
def report_command(run: RunPath) -> None:
    """Write RUN/report.html again."""
    from pipeline.outputs.report import write_report

    typer.echo(write_report(run))


add_uses(app, lambda *given: _changes(*given), lambda *given: _with_progress(*given), _BEGAN.get)


def _engine(address: str | None, file: Path | None, profile: str | None) -> list[str]:
    """Engine options as overrides; one that is used replaces all three of the config."""
    asked = {"scheduler_address": address, "scheduler_file": file, "scheduler": profile}
    if not any(asked.values()):
        return []
    chosen = {name: str(value) if value else None for name, value in asked.items()}
    chosen["scheduler"] = chosen["scheduler"] or "threads"
    return [f"engine.{name}={'null' if value is None else value}" for name, value in chosen.items()]


def _loaded(path: Path, changes: list[str]) -> Config:
    """The config of a file, with the changes."""
    from pipeline.config.stored import read_job

    raw, lines = read_job(path, changes)
    return _validated(raw, changes, f"config {path}", lines)


def _changes(
    run: Path,
    overrides: list[str] | None,
    engine: Path | None,
    address: str | None,
    file: Path | None,
    profile: str | None,
) -> list[str]:
    """The changes to a run's config that options of a command ask for; with them, its usable part is a valid config."""
    from pipeline.config.stored import engine_of, trusted
    from pipeline.outputs.run_directory import RunDirectory

    changes = [*engine_of(engine), *(overrides or []), *_engine(address, file, profile)]
    directory = RunDirectory(run)
    name = str(directory.config)
    _validated(trusted(directory.read_config()["config"], changes, name), changes, name, {})
    return changes


def _validated(raw: Any, changes: list[str], name: str, lines: dict[Place, int]) -> Config:
    """A config, validated after its engine section has settled what must be settled before NumPy loads.

    A process that is to be a scheduler or a worker never returns from here.
    """
    from pipeline.config.profiles import engine_alone, serves
    from pipeline.engine.memory import no_search_for_garbage

    engine = engine_alone(raw, changes)
    if engine is not None:
        _before_numpy(engine)
    with no_search_for_garbage():
        from pipeline.jobconfig import validate  # data and models need NumPy

    config = validate(raw, changes, name, lines)
    if serves(config.engine):
        from pipeline.engine.cluster import serve

        serve(config.engine)
    return config


def _before_numpy(engine: EngineSection) -> None:
    """Set this process up before NumPy loads. Workers that others started have their kernels already: ours must match."""
    from pipeline.config.profiles import profile_of
    from pipeline.engine.memory import keep_freed_memory

    keep_freed_memory()

    profile = profile_of(engine)
    attached = engine.scheduler_address or engine.scheduler_file
    if not attached and (profile is None or profile.kind in ("local", "slurm", "slurm-runner")):
        choose_kernels()  # these hand their environment on, or choose likewise


def _fit(config: Config, output: str | None, overwrite: bool) -> None:
    """Run a job, and show its progress."""
    from pipeline import workflow

    where = config.output.path if output is None else output
    _with_progress(
        where, lambda listener: workflow.run(config, output, overwrite, [listener], _BEGAN.get()), before=False
    )


def _with_progress(where: str | Path, action: Callable[[Any], Path], before: bool = True) -> None:
    """Run something and show its progress. where : the run directory.  before : whether its log is included."""
    from rich.console import Console

    from pipeline.outputs.events import read_events
    from pipeline.outputs.run_directory import RunDirectory
    from pipeline.outputs.screen import following

    directory = RunDirectory(where)
    past = list(read_events(directory.events)) if before else []
    try:
        with following(Console(stderr=True, highlight=False), str(directory), past, quiet=_asked["quiet"]) as listener:
            result = action(listener)
    except (KeyboardInterrupt, StopRequested) as stop:
        stored = directory.has_checkpoint
        raise _stopped(
            stop, f"the last checkpoint is intact: em-pipeline resume {directory}" if stored else None
        ) from None
    report = result / "report.html"
    _say(f"report: {shown_path(report)}" if report.exists() else f"written: {shown_path(result)}")


def _say(text: str) -> None:
    try:
        print(text, flush=True)
    except OSError:  # the job is done, whether anybody reads this or not
        forget(sys.stdout)


def _stopped(stop: BaseException, advice: str | None = None) -> Stopped:
    return Stopped(f"stopped by {str(stop) or 'Ctrl-C'}; {advice or 'run the same command again'}")


def command() -> None:
    """Run the command as the whole of this process, since whose start the user waits: imports count."""
    main(time.perf_counter() - _age())


def _age() -> float:
    """Seconds since this process began."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):  # only Linux has them; psutil is right to a second or so
        import psutil

        return time.time() - psutil.Process().create_time()


def main(began: float | None = None) -> None:
    """Run the command; exits with the codes of pipeline.errors. began : when the user began to wait, by time.perf_counter(); None for now."""
    _BEGAN.set(time.perf_counter() if began is None else began)
    with lenient_streams():
        _run(sys.argv[1:], "--debug" in sys.argv)


def _run(arguments: list[str], debug: bool) -> None:
    try:
        with stopping():
            try:
                app(args=_options_first(arguments))
            finally:
                sys.stdout.flush()
    except StopRequested as stop:
        _fail(str(_stopped(stop)), Stopped.exit_code, debug)
    except Stopped as stop:
        _fail(str(stop), stop.exit_code, debug)
    except PipelineError as error:
        _fail(f"error: {error}", error.exit_code, debug)
    except OSError as error:
        _fail(f"error: {error}. Make the file readable, or the place writable, and try again.", 3, debug)
    except MemoryError as error:
        advice = "Lower engine.memory or engine.workers, store the data in smaller chunks, or give the job more memory."
        _fail(f"error: out of memory ({error}). {advice}", InputError.exit_code, debug)
    except Exception as error:  # the last resort: a bug of ours
        hint = "Use --debug to see where, and please report it."
        _fail(f"bug: {type(error).__name__}: {error}\n{hint}", 1, debug)


_VALUES = {"--log-level": f"one of {', '.join(LEVELS)}", "--log-file": "a file"}


def _options_first(arguments: list[str]) -> list[str]:
    """The arguments with the options of every command in front of it, wherever they stood."""
    first, rest, words = [], [], iter(arguments)
    for word in words:
        name, equals, _ = word.partition("=")
        if name in ("--debug", "--quiet", "--version"):
            first.append(word)
        elif name in _VALUES:
            value = [] if equals else list(islice(words, 1))
            if not (equals or value):
                raise InputError(f"{name}: got no value, expected {_VALUES[name]}. Add one.")
            first += [word, *value]
        else:
            rest.append(word)
    return first + rest


def _fail(message: str, code: int, debug: bool) -> NoReturn:
    if debug:
        typer.echo(hidden(traceback.format_exc()), err=True)
    typer.echo(hidden(message), err=True)
    sys.exit(code)
