"""A source and a family in files outside of the package, which a config names."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import pipeline
from pipeline.errors import InputError
from pipeline.jobconfig import to_plain, validate
from tests.jobs import Interrupt, command, refused, results

SOURCE = '''
import numpy as np
from typing import Literal
from pydantic import Field
from pipeline.data.section import DataSection
from pipeline.data.source import Source, even_bounds


class Waves(Source):
    """Two clusters on waves, n rows."""

    def __init__(self, n, length=1.0):
        self.n_features, self.dtype, self.bounds, self.length = 2, np.dtype(float), even_bounds(n, 100), length

    def read(self, i):
        t = np.arange(self.bounds[i], self.bounds[i + 1]) * 0.37
        return np.stack([np.sin(t / self.length) + 5 * (t % 1 > 0.5), np.cos(3 * t)], axis=1)


class WavesSection(DataSection):
    source: Literal["waves"] = "waves"
    n: int = Field(ge=1)

    def open(self):
        return Waves(self.n)


def neither():
    pass
'''
FAMILY = '''
from typing import ClassVar, Literal
from pydantic import Field
from pipeline.config import OneOrMore
from pipeline.models.families.gaussian import GaussianSection


class Floored(GaussianSection):
    """Gaussians whose covariances have a floor, or one to choose from a list."""

    family: Literal["floored"] = "floored"
    floor: OneOrMore[float] = Field((1e-3,), description="added to variances")
    default_max_iter: ClassVar[int] = 7
    methods: ClassVar[tuple[str, ...]] = ("em",)

    def build(self, summary, assignment):
        plain = self.model_copy(update={"reg_covar": self.floor[0]})
        return GaussianSection.build(plain, summary, assignment)


class Described:
    section = Floored


class Other:
    pass
'''

NAMED = ("--set", "data.path=my_source.py:Waves", "--set", "model.path=my_family.py:Floored")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the two files, from which commands run."""
    (tmp_path / "my_source.py").write_text(SOURCE)
    (tmp_path / "my_family.py").write_text(FAMILY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plain(**changes: Any) -> dict[str, Any]:
    """A job of both files."""
    return {
        "data": {"source": "python", "path": "my_source.py:Waves", "options": {"n": 550}},
        "model": {"family": "python", "path": "my_family.py:Floored", "n_components": 2, "covariance_type": "diag"},
        "fit": {"method": "em", "init": "k-means++", "tol": 0},
        **changes,
    }


def test_both_go_through_every_command(desk: Path) -> None:
    """check, run, an interruption, resume to the same bytes, predict, report; what the family says of itself holds."""
    Path("c.yaml").write_text(yaml.safe_dump(plain()))
    assert command("check", "c.yaml").code == 0
    assert command("run", "c.yaml", "--output", "whole").code == 0
    found = pipeline.open_run("whole")
    assert found.attrs["reg_covar"] == 1e-3 and found.sizes["iteration"] == 7
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(validate(plain()), "run", listeners=[Interrupt("pass", 3)])
    files = (desk / "my_source.py", desk / "my_family.py")  # to be copied whole, however long
    assert "add --set data.path={}:Waves --set model.path={}:Floored".format(*files) in refused("resume", "run")
    assert command("resume", "run", *NAMED).code == 0
    assert results(desk / "run") == results(desk / "whole")
    assert command("predict", "run", *NAMED, "--set", "data.options.n=90", "--output", "labels").code == 0
    assert command("report", "run").code == 0


@pytest.mark.slow
def test_worker_processes_import_the_same_files(desk: Path) -> None:
    """What they are sent of such a class is found by the file's path; the bits are those of threads."""
    Path("c.yaml").write_text(yaml.safe_dump(plain()))
    assert command("run", "c.yaml", "--output", "threads").code == 0
    assert command("run", "c.yaml", "--output", "processes", "--profile", "local").code == 0
    assert results(desk / "processes") == results(desk / "threads")


@pytest.mark.parametrize(("name", "key"), [("my_source.py", "data.path"), ("my_family.py", "model.path")])
def test_another_file_under_the_same_name_is_refused(desk: Path, name: str, key: str) -> None:
    """By resume, with both hashes; by predict, where it is the family's. An object of the old one does not unpickle."""
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(validate(plain()), "run", listeners=[Interrupt("pass", 3)])
    assert pipeline.resume("run", NAMED[1::2]) == Path("run")
    rows = pickle.dumps(validate(plain()).data.open())
    (desk / "my_source.py").write_text(SOURCE + ("# changed\n" if name == "my_source.py" else ""))
    (desk / "my_family.py").write_text(FAMILY + ("# changed\n" if name == "my_family.py" else ""))
    said = refused("resume", "run", *NAMED, "--set", "fit.max_iter=9")
    assert f"{key}: had SHA-256" in said and "this would compute something else" in said
    if name == "my_family.py":
        assert f"{key}: had SHA-256" in refused("predict", "run", *NAMED)
    else:
        assert command("predict", "run", *NAMED, "--output", "labels").code == 0
        module = pickle.loads(rows).__module__
        __import__("sys").modules.pop(module)
        with pytest.raises(ImportError, match="has changed since the job began"):
            pickle.loads(rows)


def test_keys_are_validated_by_the_class_of_the_file(desk: Path) -> None:
    """Its own keys and those that it inherits; others are refused with the nearest; lists are candidates."""
    config = validate(plain(model={**plain()["model"], "floor": [0.1, 0.2], "n_components": [2, 3]}))
    assert [(*each.n_components, *each.floor) for each in config.model.candidates()] == [
        (2, 0.1),
        (2, 0.2),
        (3, 0.1),
        (3, 0.2),
    ]
    assert validate(to_plain(config)) == config and config.resolved().fit.max_iter == 7
    assert to_plain(config)["model"]["path"] == str(desk / "my_family.py:Floored") and set(config.code()) == {
        "data.path",
        "model.path",
    }
    named = validate(plain(model={"family": "python", "path": "my_family.py:Described", "floor": 1}))
    assert (named.model.n_components, named.model.floor) == ((8,), (1.0,))
    for model, said in (
        ({"flor": 1}, "model.flor: there is no such key; did you mean floor?"),
        ({"floor": "low"}, "model.floor: got 'low', expected a number"),
        ({"concentration": 2}, "it belongs to family bernoulli, categorical, columns, lda, multinomial or poisson"),
    ):
        with pytest.raises(InputError, match=said.replace("?", r"\?")):
            validate(plain(model={**plain()["model"], **model}))
    with pytest.raises(InputError, match=r"fit\.method: got auto, expected em for family python"):
        validate(plain(fit={"method": "auto"}))


def test_a_section_of_the_file_opens_its_source(desk: Path) -> None:
    """Its options are validated; common keys stay beside them."""
    np.save("w.npy", np.ones(40))
    data = {"source": "python", "path": "my_source.py:WavesSection", "options": {"n": 40}, "weights": "w.npy"}
    assert validate({"data": data}).data.open_chunks().load(0).weight.sum() == 40
    with pytest.raises(InputError, match=r"data\.options: weihgts: there is no such key; did you mean weights\?"):
        validate({"data": {**data, "options": {"n": 40, "weihgts": "w"}}}).data.open()
    with pytest.raises(InputError, match=r"Waves does not take them .*'m'"):
        validate({"data": {**data, "path": "my_source.py:Waves", "options": {"m": 40}}}).data.open()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("my_family.py", "expected a Python file and the name of a class in it: my_file.py:MyClass"),
        ("my_family.py:", "expected a Python file"),
        ("my_family:Floored", "expected a Python file"),
        ("my_famly.py:Floored", r"my_famly\.py: does not exist; did you mean my_family\.py\?"),
        ("my_family.py:Flored", "defines no Flored"),
        ("my_family.py:Other", "is no FamilySection and has none as its attribute section"),
        ("broken.py:Other", r"broken\.py: cannot be executed \(ZeroDivisionError"),
    ],
)
def test_what_is_no_family_is_refused(desk: Path, path: str, said: str) -> None:
    """A path without a class, a file that is not there or does not run, a class of another kind."""
    (desk / "broken.py").write_text("1 / 0\n")
    with pytest.raises(InputError, match=said):
        validate(plain(model={"family": "python", "path": path}))


def test_a_path_is_needed(desk: Path) -> None:
    """Of both."""
    with pytest.raises(InputError, match=r"model\.path: is missing; family python needs it: a Python file"):
        validate({"model": {"family": "python"}})
    with pytest.raises(InputError, match=r"data\.path: got .*neither, expected a subclass of Source or DataSection"):
        validate(plain(data={"source": "python", "path": "my_source.py:neither"})).data.open()


def test_an_entry_point_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another distribution registers is validated and opened like our own; another kind of object is refused."""
    from importlib.metadata import EntryPoint
    from typing import Literal

    from pipeline.config import variants
    from pipeline.data.section import DataSection
    from pipeline.data.sources import SOURCES

    module = type(pytest)("waves_of_others")
    module.Section = type(  # type: ignore[attr-defined]
        "WavesOfOthers",
        (DataSection,),
        {"__annotations__": {"source": Literal["waves"]}, "source": "waves", "open": lambda self: "rows"},
    )
    monkeypatch.setitem(__import__("sys").modules, "waves_of_others", module)
    entries = [
        EntryPoint("waves", "waves_of_others:Section", "em_pipeline.sources"),
        EntryPoint("wrong", "os:getcwd", "em_pipeline.sources"),
        EntryPoint("csv", "os:getcwd", "em_pipeline.sources"),
    ]
    monkeypatch.setattr(variants, "entry_points", lambda group: [each for each in entries if each.group == group])
    monkeypatch.delitem(vars(SOURCES), "_installed", raising=False)
    try:
        assert validate({"data": {"source": "waves"}}).data.open() == "rows"
        with pytest.raises(
            InputError, match="source wrong: got os:getcwd from an entry point, expected a subclass of DataSection"
        ):
            validate({"data": {"source": "wrong"}})
        assert len(SOURCES) == len(SOURCES.own) + 2 and SOURCES["csv"].__name__ == "CsvSection"
        with pytest.raises(KeyError):
            SOURCES["none"]
    finally:
        vars(SOURCES).pop("_installed", None)
