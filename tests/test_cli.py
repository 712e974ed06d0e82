"""The commands: what they print, and the code they exit with."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline import signals
from pipeline.jobconfig import load_config, to_plain
from pipeline.models.families import FAMILIES
from pipeline.outputs.events import read_events
from pipeline.outputs.run_directory import RunDirectory
from tests.jobs import Interrupt, blobs, command, files, job, refused, results, write_config, write_rows

pytestmark = pytest.mark.full

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run, its config and its data; tests look at it and leave it as it is."""
    folder = tmp_path_factory.mktemp("finished")
    np.save(folder / "x.npy", blobs())
    write_config(folder / "config.yaml", folder / "x.npy")
    outcome = command("run", folder / "config.yaml", "--output", folder / "run")
    assert outcome.code == 0 and outcome.out == f"report: {folder / 'run' / 'report.html'}\n"
    assert "iteration   1" in outcome.err and "finished in" in outcome.err
    return folder


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """A copy of the finished run that may be changed."""
    return shutil.copytree(finished / "run", tmp_path / "run")


def test_the_template_is_printed(tmp_path):
    """`config` prints a config that loads, of every family; another name is refused."""
    families = [family for family in FAMILIES if family != "python"]
    for family in families:
        (tmp_path / "c.yaml").write_text(command("config", family).out)
        assert load_config(tmp_path / "c.yaml").model.family == family
    assert f"expected one of {', '.join(families)}" in refused("config", "possion")


def test_a_report_is_one_file_and_can_be_written_again(copy):
    """`report` prints the path of the report it wrote."""
    (copy / "report.html").unlink()
    assert command("report", copy).out == f"{copy / 'report.html'}\n"
    assert "<html" in (copy / "report.html").read_text()


def test_status_during_and_after(finished, tmp_path, monkeypatch):
    """`status` says how far a run is from its files alone, also under a path that looks like markup."""
    assert "finished" in command("status", finished / "run").out
    from pipeline import workflow

    run = tmp_path / "[bold]a run[/italic]"
    shown: list[str] = []

    def look(event) -> None:
        if event["event"] == "pass" and event["iteration"] == 2:
            shown.append(command("status", run).out)

    with pytest.raises(KeyboardInterrupt):
        workflow.run(job(finished / "x.npy"), run, listeners=[look, Interrupt("pass", 4)])
    assert "running" in shown[0] and "iteration   3" in shown[0] and "gen-000002" in shown[0]
    with (run / "events.jsonl").open("ab") as log:
        log.write(b'{"event": "pa\xff')
    after = command("status", run).out
    assert "stopped" in after and f"em-pipeline resume {run}" in after
    assert "is not a run directory" in refused("status", tmp_path)


def test_a_finished_run_is_refused_and_resumed_with_nothing_to_do(copy, finished):
    """`run` names --overwrite; `resume` exits 0 and changes no result."""
    before = results(copy)
    assert "--overwrite" in refused("run", finished / "config.yaml", "--output", copy)
    assert command("resume", copy).code == 0 and results(copy) == before
    assert command("run", finished / "config.yaml", "--output", copy, "--overwrite").code == 0
    assert results(copy) == before


def test_resume_writes_labels_and_report_that_were_removed(copy):
    """Deleted parts come back with the same bytes."""
    before = results(copy)
    shutil.rmtree(copy / "labels.zarr")
    (copy / "report.html").unlink()
    assert command("resume", copy).code == 0
    assert results(copy) == before and (copy / "report.html").exists()


def test_predict_writes_labels_and_says_where(copy, tmp_path):
    """`predict` prints the path of the labels; other data need --output."""
    before = results(copy)
    assert command("predict", copy).out == f"written: {copy / 'labels.zarr'}\n" and results(copy) == before
    np.save(tmp_path / "y.npy", blobs(50, seed=3))
    other = ["--set", f"data.path={tmp_path / 'y.npy'}"]
    assert "--output" in refused("predict", copy, *other)
    assert command("predict", copy, *other, "--output", tmp_path / "out").code == 0
    assert (tmp_path / "out" / "labels.zarr").is_dir()


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["run", "nowhere.yaml"], "does not exist"),
        (["run", "config.yaml", "--set", "fit.max_itr=3"], "did you mean max_iter?"),
        (["run", "config.yaml", "--set", "fit.max_iter"], "expected section.key=value"),
        (["run", "config.yaml", "--set", "data.path=nowhere.npy"], "nowhere.npy"),
        (["run", "config.yaml", "--set", "model.n_components=601"], "there are 600 rows"),
        (["run", "config.yaml", "--set", "engine.memory=1MiB"], "Raise engine.memory"),
        (["run", "config.yaml", "--profile", "slurm"], "expected threads or one of the profiles local"),
        (["run", "config.yaml", "--profile", "local", "--scheduler-file", "f"], "give one of"),
        (["run", "config.yaml", "--output", "theirs"], "not a run directory"),
        (["resume", "theirs"], "is not a run directory"),
        (["resume", "nowhere"], "is not a run directory"),
        (["predict", "theirs"], "is not a run directory"),
        (["status", "theirs"], "is not a run directory"),
        (["report", "theirs"], ""),
    ],
)
def test_what_is_refused_exits_with_2_and_changes_nothing(tmp_path, monkeypatch, words, shown):
    """A bad config or input, or a refusal, is a message without a traceback, and leaves the folder as it was."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", blobs())
    write_config(Path("config.yaml"), Path("x.npy"))
    Path("theirs").mkdir()
    Path("theirs/thesis.txt").write_text("years of work")
    before = files(tmp_path)
    assert shown in refused(*words)
    assert files(tmp_path) == before


SOURCES = {
    "text in a number": ("x.csv", b"a,b\n1,2\n3,x\n5,6\n", {"source": "csv"}, "x"),
    "ragged rows": ("x.csv", b"1,2\n3\n5,6\n", {"source": "csv"}, ""),
    "no npy": ("x.npy", b"hello", {"source": "npy"}, "x.npy"),
    "not a zarr": ("x.zarr", b"hello", {"source": "zarr"}, "x.zarr"),
    "no pictures": ("x.png", b"hello", {"source": "images"}, ""),
    "no counts": ("x.txt", b"3\nx\n", {"source": "docword"}, ""),
}


@pytest.mark.parametrize("case", SOURCES)
def test_input_that_is_not_what_it_should_be(tmp_path, monkeypatch, case):
    """Damaged and foreign files end with exit code 2 or 3 and their name."""
    name, content, data, shown = SOURCES[case]
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content)
    model = {"family": "multinomial"} if data["source"] == "docword" else {}
    plain = {"data": {**data, "path": name}, "model": {"n_components": 2, **model}}
    Path("c.yaml").write_text(yaml.safe_dump(plain))
    outcome = command("run", "c.yaml", "--output", "out")
    assert outcome.code in (2, 3) and shown in outcome.err and not Path("out").exists()


def test_a_missing_chunk_is_an_error_of_storage(tmp_path):
    """A store without one of its chunks ends with exit code 3 and the name of the chunk."""
    store = write_rows(tmp_path / "x.zarr", blobs())
    (store / "c" / "4" / "0").unlink()
    write_config(tmp_path / "c.yaml", store)
    assert "c/4/0" in refused("run", tmp_path / "c.yaml", "--output", tmp_path / "run", code=3)
    assert not (tmp_path / "run").exists()


def test_when_every_checkpoint_is_damaged_the_command_says_so(copy):
    """Exit code 3, never a silent start from the beginning."""
    shutil.rmtree(copy / "model.zarr")
    for path in (copy / "checkpoints").glob("gen-*"):
        (path / "manifest.json").write_text("{}")
    assert "damaged checkpoints, expected one that is not" in refused("resume", copy, code=3)


def test_a_full_disk_is_an_error_of_storage(tmp_path, finished, monkeypatch):
    """What the system says about the disk is shown, with exit code 3."""
    from pipeline.outputs import checkpoint

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "sync_tree", full)
    shown = refused("run", finished / "config.yaml", "--output", tmp_path / "run", code=3)
    assert "No space left on device" in shown and "Free some space" in shown


@pytest.mark.parametrize("where", ["before", "after"])
def test_debug_shows_the_traceback(capfd, monkeypatch, tmp_path, where):
    """--debug works wherever it is put; without it there is none."""
    import pipeline.cli

    words = ["run", str(tmp_path / "nowhere.yaml")]
    words = ["--debug", *words] if where == "before" else [*words, "--debug"]
    monkeypatch.setattr(sys, "argv", ["em-pipeline", *words])
    with pytest.raises(SystemExit):
        pipeline.cli.main()
    assert "Traceback" in capfd.readouterr().err


def test_a_bug_of_ours_is_called_one(monkeypatch, capfd):
    """Anything unforeseen exits with 1 and asks for a report, without a traceback."""
    import pipeline.cli
    from pipeline.outputs import status

    monkeypatch.setattr(status, "show", lambda *_: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["em-pipeline", "status", "run"])
    with pytest.raises(SystemExit) as ended:
        pipeline.cli.main()
    err = capfd.readouterr().err
    assert ended.value.code == 1 and "bug: ZeroDivisionError" in err and "Traceback" not in err


def slow_config(path: Path) -> Path:
    """A job of many passes over rows that take a while."""
    mixture = {"weights": [0.6, 0.4], "means": [[0] * 8, [1] * 8], "covariances": [1.0, 1.0]}
    plain = {
        "data": {"source": "synthetic", "n_rows": 400_000, "mixture": mixture},
        "model": {"n_components": 4, "covariance_type": "diag"},
        "fit": {"init": "random", "max_iter": 30, "tol": 0},
    }
    path.write_text(yaml.safe_dump(plain))
    return path


LOCAL = ["--profile", "local"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "options"),
    [
        (signal.SIGINT, []),
        (signal.SIGINT, LOCAL),
        (signal.SIGTERM, []),
        (signal.SIGTERM, LOCAL),
        (signal.SIGUSR1, LOCAL),
    ],
)
def test_a_signal_stops_with_a_checkpoint_and_resume_ends_with_the_same_bytes(tmp_path, number, options):
    """Sent to every process, as a terminal or a batch system does (SIGUSR1: to the command), it ends the command with 75 and the line to type next."""
    config, run = slow_config(tmp_path / "c.yaml"), tmp_path / "run"
    program = [sys.executable, "-m", "pipeline", "run", config, "--output", run, *options]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(program, stderr=subprocess.PIPE, env=env, start_new_session=True) as started:
        deadline = time.monotonic() + 120
        while not (run / "checkpoints" / "gen-000001").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)
        began = time.monotonic()
        if (
            number == signal.SIGUSR1
        ):  # the resource tracker of multiprocessing does not survive it, and says so at length
            started.send_signal(number)
        else:
            os.killpg(started.pid, number)  # a session of its own: nobody else's processes are in it
        error = started.stderr.read().decode()
    assert started.returncode == 75 and f"em-pipeline resume {run}" in error and "Traceback" not in error, error
    assert time.monotonic() - began < 25
    assert not (run / ".lock").exists()
    assert command("resume", run).code == 0
    assert command("run", config, "--output", tmp_path / "whole").code == 0
    assert results(run) == results(tmp_path / "whole")


@pytest.fixture
def asked(monkeypatch):
    """Has a command in this process get a signal at the n-th event of a name; afterwards nothing waits for its end."""
    from pipeline.outputs import screen

    before = {number: signal.getsignal(number) for number in signals.SIGNALS}

    def ask(number: int, event: str, nth: int = 1) -> None:
        listener = Interrupt(event, nth, lambda: os.kill(os.getpid(), number))
        monkeypatch.setattr(screen, "following", lambda *_, **__: contextlib.nullcontext(listener))

    yield ask
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "event", "nth"),
    [
        (signal.SIGTERM, "pass", 3),
        (signal.SIGUSR1, "start", 1),
        (signal.SIGINT, "labelled", 1),
        (signal.SIGTERM, "level", 1),
    ],
)
def test_a_stop_keeps_every_pass_that_was_made(tmp_path, finished, asked, number, event, nth):
    """Exit code 75 with the signal's name and what to type; the newest state is saved, and none is lost or done twice."""
    run, method = tmp_path / "run", ["--set", "fit.method=auto"] if event == "level" else []
    begin = ["run", finished / "config.yaml", "--output", run, *method]
    asked(number, event, nth)
    shown = refused(*begin, code=75)
    again = "run the same command again" if event == "start" else f"em-pipeline resume {run}"
    assert f"stopped by {signal.Signals(number).name}; " in shown and again in shown
    assert not (run / ".lock").exists()
    asked(number, "never")
    assert command(*(begin if event == "start" else ["resume", run])).code == 0
    passes = [e["iteration"] for e in read_events(run / "events.jsonl") if e["event"] == "pass" and not e["final"]]
    assert passes == list(range(len(passes))) and len(passes) >= 2


SECOND = """
import os, signal, sys, threading, time
from pipeline.signals import STOP_SECONDS, StopRequested, stopping
from pipeline import signals

signals.STOP_SECONDS = float(sys.argv[1])
threading.Thread(target=lambda: time.sleep(30)).start()  # a task that does not end
try:
    with stopping():
        os.kill(os.getpid(), signal.SIGTERM)
except StopRequested:
    os.kill(os.getpid(), signal.SIGTERM)  # the echo of a launcher
    print("stopped", flush=True)
    if sys.argv[2] == "again":
        time.sleep(signals.ECHO_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
    sys.exit(75)
"""


@pytest.mark.parametrize(("seconds", "words", "code"), [(25, "again", -signal.SIGTERM), (0.5, "once", 75)])
def test_a_second_signal_and_a_slow_stop_end_at_once(seconds, words, code):
    """A thread that does not end cannot hold up a stop; a second request is obeyed on the spot."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", SECOND, str(seconds), words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == code and done.stdout == "stopped\n", done
    assert time.monotonic() - began < 20


# --- what must be settled before NumPy loads


def python(code, *arguments, **environment):
    """What a fresh interpreter prints."""
    own = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=own | environment
    )
    return done.stdout.split()


CHOOSE = "import os, sys; from pathlib import Path; from pipeline.engine.blas import choose_kernels as c; \
c(Path(sys.argv[1])); print(os.environ.get('OPENBLAS_CORETYPE'))"


def test_wide_kernels_are_chosen_where_the_cpu_has_them_and_blas_does_not_know(tmp_path):
    """Only with all AVX-512 flags, a library that fell back to Haswell, NumPy not loaded and no choice of the user's."""
    wide, narrow = tmp_path / "wide", tmp_path / "narrow"
    wide.write_text("processor: 0\nflags : fpu avx2 avx512f avx512cd avx512bw avx512dq avx512vl\n")
    narrow.write_text("processor: 0\nflags : fpu avx2 avx512f\n")
    # Of a process without the variable: in this one a user's choice may stand.
    fell_back = "Haswell" in python("from pipeline.kernels.cpu import KERNELS; print(*KERNELS.identity())")
    assert python(CHOOSE, wide) == ["SkylakeX" if fell_back else "None"]
    assert python(CHOOSE, narrow) == ["None"]
    assert python(CHOOSE, tmp_path / "none") == ["None"]
    assert python(CHOOSE, wide, OPENBLAS_CORETYPE="Zen") == ["Zen"]
    assert python("import numpy;" + CHOOSE, wide) == ["None"]


ASK = "from pipeline.engine import blas; a = blas._chosen(); blas._ASK_FILE = 'raise SystemExit(1)'; print(*a, *blas._chosen())"


def test_the_library_alone_answers_as_numpy_does():
    """Whatever kernels it uses; where it cannot be asked alone, NumPy is."""
    for environment in ({}, {"OPENBLAS_CORETYPE": "Haswell"}, {"OPENBLAS_CORETYPE": "Nehalem"}):
        first, second = python(ASK, **environment)
        assert first == second == environment.get("OPENBLAS_CORETYPE", first)


def test_garbage_is_found_after_the_imports_of_a_command(tmp_path):
    """Searches go on, and leave out what was imported; a process with NumPy of its own stays as it is."""
    config = tmp_path / "config.yaml"
    config.write_text("data: {source: npy, path: none.npy}\nmodel: {n_components: 2}\n")
    check = "\nimport gc\ntry: c.main()\nexcept SystemExit: print(gc.isenabled(), gc.get_freeze_count() > 0)"
    for numpy, frozen in (("", "True"), ("import numpy; ", "False")):
        assert python(f"{numpy}import pipeline.cli as c{check}", "run", config)[-2:] == ["True", frozen]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "resume", "predict"])
def test_commands_choose_before_numpy_loads_unless_others_started_the_workers(tmp_path, command):
    """The choice is made while it still has an effect; with a foreign scheduler it is left to its workers."""
    config = tmp_path / "config.yaml"
    config.write_text("data: {source: npy, path: none.npy}\nmodel: {n_components: 2}\n")
    path = config
    if command != "run":
        path = tmp_path / "run"
        path.mkdir()
        RunDirectory(path).create({"config": to_plain(load_config(config).resolved())})
    code = "import sys, pipeline.cli as c; c.choose_kernels = lambda: print('chosen', 'numpy' in sys.modules); c.main()"
    assert python(code, command, path)[:2] == ["chosen", "False"]
    assert python(code, command, path, "--scheduler-file", tmp_path / "absent") == []
