"""The JSON Schema of configs takes what the program takes, and refuses what it refuses for a key, a type or a bound."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pipeline.config.loading import read_yaml
from pipeline.config.syntax import parse
from pipeline.errors import InputError
from pipeline.jobconfig import json_schema, template, validate
from pipeline.models.families import FAMILIES
from tests.jobs import command

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(scope="module")
def schema() -> Any:
    """The validator of the schema."""
    found = json_schema()
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def test_every_config_of_the_repository_is_valid(schema):
    """Those of configs/, of the docs, and what `em-pipeline config` prints."""
    configs = {str(path): read_yaml(path)[0] for path in sorted((ROOT / "configs").glob("*.yaml"))}
    for page in PAGES:
        for i, text in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)):
            if "profiles.yaml" not in text.splitlines()[0]:  # no config
                configs[f"{page}, {i}"] = parse(text, str(page))[0]
    configs |= {name: parse(template(name), name)[0] for name in FAMILIES if name != "python"}
    assert len(configs) > 50
    wrong = {name: [error.message for error in schema.iter_errors(raw)] for name, raw in configs.items()}
    assert not {name: found for name, found in wrong.items() if found}


NPY = {"source": "npy", "path": "x.npy"}


@pytest.mark.parametrize(
    "raw",
    [
        {"dta": NPY},
        {"data": {"source": "zar"}},
        {"data": {"source": "npy"}},
        {"data": NPY | {"patch": {"size": [4, 4]}}},
        {"data": NPY | {"bad_rows": "maybe"}},
        {"data": {"source": "text", "path": "x", "ngram_range": [1]}},
        {"model": {"n_components": 0}},
        {"model": {"n_components": []}},
        {"model": {"n_components": [2, "many"]}},
        {"model": {"family": "kmeans", "covariance_type": "tied"}},
        {"model": {"family": "gauss"}},
        {"model": {"family": "gaussian", "prior": "none"}},
        {"fit": {"tol": "small"}},
        {"fit": {"moves": True}},
        {"fit": {"random_state": -1}},
        {"engine": {"memory": "lots"}},
        {"output": {"labels": "maybe"}},
        {"preprocess": [{"kind": "scale"}]},
    ],
)
def test_both_refuse_what_is_wrong(schema, raw):
    """A key, a type, a bound, or a choice."""
    assert not schema.is_valid(raw)
    with pytest.raises(InputError):
        validate(raw)


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"model": {"n_components": [2, 3], "covariance_type": ["full", "diag"]}},
        {"model": {"family": "gaussian", "prior": "auto"}},
        {"fit": {"moves": False, "tol": 1}},
        {"engine": {"memory": "1.5 GiB"}},
        {"engine": {"memory": 2**30, "workers": "auto"}},
        {"data": NPY | {"labels": None}},
    ],
)
def test_both_take_what_may_be_written(schema, raw):
    """What a validator reads beside the type is in the schema too."""
    assert schema.is_valid(raw)
    validate(raw)


def test_the_command_prints_it(schema):
    """As JSON, and not beside a family; a printed config names the file for editors."""
    printed = command("config", "--schema")
    assert printed.code == 0 and json.loads(printed.out) == schema.schema
    assert command("config", "kmeans", "--schema").code == 2
    assert command("config", "kmeans").out.startswith("# yaml-language-server: $schema=em-pipeline.schema.json\n")
