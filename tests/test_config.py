"""The config: strict, read safely, and described once."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.config import parse_bytes
from pipeline.errors import InputError
from pipeline.jobconfig import load_config, template, to_plain, validate

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ("gaussian", "kmeans", "multinomial")


def message(raw: object, *overrides: str) -> str:
    """What a config is refused with."""
    with pytest.raises(InputError) as refusal:
        validate(raw, list(overrides))
    assert refusal.value.exit_code == 2
    return str(refusal.value)


@pytest.mark.parametrize(
    ("raw", "near"),
    [
        ({"modle": {}}, "modle: there is no such key; did you mean model?"),
        ({"fit": {"max_itr": 3}}, "fit.max_itr: there is no such key; did you mean max_iter?"),
        ({"data": {"patch": {"sise": [8, 8]}}}, "data.patch.sise: there is no such key; did you mean size?"),
        ({"preprocess": [{"kind": "pca", "n_component": 3}]}, "did you mean n_components?"),
        ({"engine": {"profiles": {"mine": {"worker": 3}}}}, "did you mean workers?"),
        ({"model": {"prior": {"shrinkge": 1}}}, "model.prior.shrinkge: there is no such key; did you mean shrinkage?"),
        ({"data": {"source": "synthetic", "n_rows": 1, "mixture": {"weight": [1.0]}}}, "did you mean weights?"),
        (
            {"data": {"source": "npy", "path": "x", "delimiter": ","}},
            "data.delimiter: there is no such key; it belongs to source csv.",
        ),
        (
            {"data": {"patch": {"stride": 2}, "source": "npy"}},
            "data.patch: there is no such key; it belongs to source bundled, images or volume.",
        ),
        (
            {"model": {"family": "kmeans", "reg_covar": 1}},
            "model.reg_covar: there is no such key; it belongs to family columns, gaussian or student-t.",
        ),
        ({"model": {"family": "kmeans", "n_component": 1}}, "did you mean n_components?"),
        ({"covariance_type": "full"}, "covariance_type: there is no such key; it belongs to model."),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(raw, near):
    """A typo is an error that says where it is and what was probably meant."""
    assert near in message(raw)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ([1, 2], "got a list"),
        ("model", "got 'model'"),
        ({"model": [1]}, "model"),
        ({"model": {"n_components": 0}}, "model.n_components: got 0, expected at least 1"),
        ({"model": {"n_components": "many"}}, "got 'many', expected a whole number, such as 8"),
        ({"model": {"n_components": []}}, "model.n_components: got an empty list"),
        ({"model": {"n_components": [3, 0]}}, "model.n_components.1: got 0, expected at least 1"),
        ({"model": {"n_components": [3, 5, 3]}}, "names one value twice"),
        ({"model": {"covariance_type": ["full", "ful"]}}, "model.covariance_type.1"),
        ({"model": {"family": "multinomial", "covariance_type": ["full", "diag"]}}, "it belongs to family gaussian"),
        (
            {"model": {"family": "kmeans", "n_components": [3, 5]}},
            "kmeans does not know; choose by silhouette or davies_bouldin or calinski_harabasz",
        ),
        (
            {"model": {"family": "kmeans"}, "select": {"heldout": 0.1}},
            "family kmeans has no likelihood of held-out rows; leave it out",
        ),
        ({"select": {"criterion": "heldout"}}, "criterion heldout needs heldout above 0"),
        ({"select": {"heldout": 1}}, "select.heldout: got 1, expected less than 1"),
        ({"model": {"n_components": [3, 5]}, "fit": {"init": "labels", "init_path": "a"}}, "one number of components"),
        ({"model": {"covariance_type": ["full", "tied"]}, "fit": {"init": "explicit", "init_path": "a"}}, "one model"),
        ({"model": {"reg_covar": float("nan")}}, "model.reg_covar"),
        ({"model": {"family": "kmeans", "fixed": ["weights"]}}, "it belongs to family bernoulli, "),
        (
            {"model": {"family": "kmeans"}, "fit": {"assignment": "soft"}},
            "fit.assignment: got soft, expected hard for family kmeans",
        ),
        ({"fit": {"init": "labels"}}, "fit.init_path: is missing"),
        ({"fit": {"init_path": "start.npz"}}, "do not go together"),
        ({"data": {"source": "zarr"}}, "data.path: is missing; source zarr needs it: a zarr store"),
        ({"data": {"source": "synthetic"}}, "data.n_rows: is missing; source synthetic needs it: how many rows"),
        ({"data": {"source": "synthetic"}}, "data.mixture: is missing; source synthetic needs it"),
        ({"data": {"source": "docword", "path": "x"}, "preprocess": [{"kind": "center"}]}, "never made dense"),
        ({"engine": {"memory": "lots"}}, "is not a size"),
        ({"engine": {"memory": "1.2.3GiB"}}, "engine.memory"),
        ({"engine": {"workers": 0}}, "engine.workers: got 0, expected at least 1 or auto"),
        ({"engine": {"workers": -2}}, "engine.workers"),
        ({"engine": {"scheduler_address": "tcp://a:1", "scheduler_file": "b"}}, "give one of"),
        ({"engine": {"scheduler": "local", "scheduler_file": "b"}}, "give one of"),
        ({"model": {"prior": "flat"}}, "write null for none, auto, or a mapping"),
        ({"model": {"prior": {"weights": 0.5}}}, "model.prior.weights: got 0.5, expected at least 1"),
        ({"model": {"prior": {"dof": 0}}}, "model.prior.dof: got 0, expected more than 0"),
        ({"model": {"prior": {"shrinkage": -1}}}, "model.prior.shrinkage"),
        ({"model": {"prior": {"scale": 0, "dof": 3}}}, "no prior of covariances, but dof is 3"),
        ({"model": {"family": "kmeans", "prior": "auto"}}, "it belongs to family gaussian, multinomial or student-t"),
        ({"model": {"family": "multinomial", "prior": "auto"}}, "{weights: …} above 1"),
        (
            {"model": {"family": "multinomial", "prior": {"weights": 2, "dof": 3}}},
            "model.prior.dof: there is no such key",
        ),
        (
            {"model": {"family": "multinomial", "prior": {"weights": 1}}},
            "model.prior.weights: got 1, expected more than 1",
        ),
        (
            {"model": {"family": "kmeans"}, "output": {"standard_errors": True}},
            "output.standard_errors: family kmeans has none",
        ),
        ({"fit": {"assignment": "hard"}, "output": {"standard_errors": True}}, "soft assignment"),
        ({"fit": {"assignment": "hard"}, "output": {"overlap": True}}, "output.overlap: is for mixtures with soft"),
        ({"model": {"family": "kmeans"}, "output": {"overlap": True}}, "got family kmeans"),
        ({"model": {"n_components": [5, 1001]}, "output": {"overlap": True}}, "got 1001, expected at most 1000"),
        ({"model": {"fixed": ["means", "weights"]}, "output": {"standard_errors": True}}, "both fixed"),
        (
            {"model": {"family": "kmeans"}, "fit": {"method": "incremental"}},
            "got incremental, expected auto or em for family kmeans",
        ),
        ({"fit": {"method": "stepwise"}}, "fit.method: got 'stepwise', which was removed"),
        ({"fit": {"method": "stepwise"}}, "Use incremental to begin with blocks of rows, or auto."),
        (
            {"model": {"family": "multinomial"}, "preprocess": [{"kind": "center"}]},
            "never made dense; leave it empty for family",
        ),
        ({"model": {"family": "kmeans"}, "select": {"pruning": True}}, "select.pruning: is not for family kmeans"),
        (
            {"model": {"family": "multinomial"}, "select": {"pruning": True}},
            "select.pruning: is not for family multinomial",
        ),
        ({"select": {"pruning": True, "annihilation": True}}, "is the old name of select.pruning, which is there too"),
        ({1: {2: 3}}, "1"),
        ({"model": {"n_components": np.float64(2.5)}}, "got np.float64(2.5), expected a whole number, such as 8."),
        ({"model": {"prior": {"dof": [1, (2,), np.arange(2)]}}}, "expected a number."),
        ({"data": {"patch": {"size": [8]}}}, "data.patch.size"),
    ],
)
def test_what_does_not_make_sense_is_refused(raw, words):
    """Every bad value ends in a message that names the key."""
    assert words in message(raw)


def test_overrides_replace_values_and_are_read_as_yaml():
    """--set takes YAML, reaches nested keys and leaves their neighbours alone."""
    raw = {"fit": {"max_iter": 5, "tol": 0.5}, "data": {"source": "images", "path": "a"}}
    config = validate(raw, ["fit.max_iter=7", "data.path=b=c", "preprocess=[{kind: center}]", "data.patch.size=[4, 6]"])
    assert (config.fit.max_iter, config.fit.tol, config.data.path) == (7, 0.5, str(Path.cwd() / "b=c"))
    assert config.preprocess[0].kind == "center" and config.data.patch.size == (4, 6)
    assert raw["fit"] == {"max_iter": 5, "tol": 0.5}


def test_lists_are_candidates_and_single_values_stay_single():
    """Every combination is a candidate, in order; each of their configs asks for one; a value is written as it came."""
    config = validate({"model": {"n_components": [5, 2]}}, ["model.covariance_type=[tied, full]"])
    both = [(each.n_components, each.covariance_type) for each in config.model.candidates()]
    assert both == [((5,), ("tied",)), ((5,), ("full",)), ((2,), ("tied",)), ((2,), ("full",))]
    assert [each.model.candidates() for each in config.candidates()] == [[one] for one in config.model.candidates()]
    assert to_plain(config)["model"]["n_components"] == [5, 2] and validate(to_plain(config)) == config
    one = validate({"model": {"n_components": [5]}}, ["model.covariance_type=tied"])
    assert to_plain(one)["model"]["n_components"] == 5 and to_plain(one)["model"]["covariance_type"] == "tied"


@pytest.mark.parametrize("override", ["fit.max_iter", "=3", "fit..tol=3", "fit.tol=[1", "fit.tl=1", "fit.tol.x=1"])
def test_a_bad_override_is_refused(override):
    """An override that is no key=value, no YAML or names no key is an error."""
    message({}, override)


@pytest.mark.parametrize(
    "text",
    [
        "data: !!python/object/apply:os.system ['touch executed']",
        "!!python/name:os.system",
        "a: [1",
        "\t- x",
        "x: \x00",
        "- a\n- b",
        "just words",
        "&a [*a]",
        "model: &m {n_components: *m}",
        "model: {1: 2}",
        "model: {n_components: 2023-01-01}",
        "? {a: b}\n: c",
    ],
)
def test_weird_files_are_refused_and_nothing_is_executed(tmp_path, monkeypatch, text):
    """A file that is no plain config ends in an InputError; tags that would run code do not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError):
        load_config("config.yaml")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("path", ["nowhere.yaml", ".", "binary.yaml"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, monkeypatch, path):
    """A missing file, a folder and bytes that are no text are errors that name the path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00model")
    with pytest.raises(InputError, match=r"does not exist|is a folder|is not text"):
        load_config(path)


def test_an_empty_file_is_the_defaults(tmp_path):
    """Nothing said is nothing changed."""
    (tmp_path / "config.yaml").write_text("# nothing\n")
    assert load_config(tmp_path / "config.yaml") == validate({})


@pytest.mark.parametrize("family", FAMILIES)
def test_the_template_is_a_valid_config_that_says_the_defaults(family):
    """What `em-pipeline config` prints can be run as it is, and each of its values is the default."""
    text = template(family)
    config = validate(yaml.safe_load(text))
    assert config.model.family == family
    changed = {"data", "output"} | ({"model"} if family != "gaussian" else set())
    for name, value in to_plain(validate({"data": {"source": "bundled", "path": "digits"}})).items():
        assert name in changed or to_plain(config)[name] == value
    uncommented = [line for line in text.splitlines() if "#" not in line]
    assert uncommented == []


def test_a_prior_is_off_auto_or_what_is_given():
    """auto leaves everything open; a key given beside it, or alone, leaves the others open; the template names them all."""
    assert validate({}).model.prior is None
    auto = validate({"model": {"prior": "auto"}})
    assert auto.model.prior == validate({"model": {"prior": {}}}).model.prior
    given = validate({"model": {"prior": "auto"}}, ["model.prior.weights=2"]).model.prior
    others = dict.fromkeys(("shrinkage", "dof", "scale", "from_run", "relevance"))
    assert given.model_dump() == {"weights": 2.0, **others}
    assert validate(to_plain(auto)) == auto
    text = template("gaussian")
    assert all(f"#   {name}:" in text for name in given.model_dump())


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_is_valid(path):
    """What is in configs/ parses."""
    assert load_config(path).resolved().fit.max_iter


@pytest.mark.parametrize(
    ("text", "size"),
    [("1GiB", 2**30), ("500 MB", 5 * 10**8), ("1.5kib", 1536), ("7", 7), (7, 7), ("auto", "auto"), ("2 TiB", 2**41)],
)
def test_sizes(text, size):
    """Sizes are read with decimal and binary units."""
    assert parse_bytes(text) == size


def test_defaults_that_depend_on_the_family_are_written_out():
    """A resolved config says what null meant: scikit-learn's numbers for each family."""
    fit = validate({}).resolved().fit
    assert (fit.assignment, fit.max_iter, fit.tol) == ("soft", 100, 1e-3)
    fit = validate({"model": {"family": "kmeans"}}).resolved().fit
    assert (fit.assignment, fit.max_iter, fit.tol) == ("hard", 300, 1e-4)
    assert validate({"fit": {"tol": 0}}).resolved().fit.tol == 0


def test_storage_options_are_never_in_what_is_written():
    """Credentials stay in memory."""
    config = validate({"data": {"source": "zarr", "path": "s3://b/x", "storage_options": {"secret": "hunter2"}}})
    assert "hunter2" not in str(to_plain(config)) and config.data.storage_options == {"secret": "hunter2"}


# What the template of 0.1.0 wrote, and what it stored in run directories: every key of every source and family.
EARLIER = """
data: {source: zarr, path: x.zarr, storage_options: {}, variable: null, patch: {size: [8, 8], stride: 1, remove_mean: true,
  contrast: null}, n_rows: null, mixture: null, random_state: 0, dtype: float64, delimiter: null, weights: null,
  vocabulary: null, bad_rows: error, missing_chunks: error, cache: null}
preprocess: []
model: {family: FAMILY, n_components: 8, covariance_type: full, reg_covar: 1.0e-06, prior: null, concentration: 1.1, fixed: []}
fit: {method: auto, assignment: null, init: k-means||, init_path: null, n_init: 1, max_iter: null, tol: null, moves: auto,
  random_state: 0}
select: {criterion: bic, heldout: 0.0, annihilation: false}
output: {path: runs/run, labels: true, top_k: 0, standard_errors: false, keep_checkpoints: 3, keep_iterations: []}
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_configs_of_earlier_versions_go_on_working(family):
    """Keys of other sources and families that say nothing are left out; one that says something is refused."""
    raw = yaml.safe_load(EARLIER.replace("FAMILY", family))
    config = validate(raw)
    assert config == validate({"data": {"source": "zarr", "path": "x.zarr"}, "model": {"family": family}})
    for section, key, value in (("data", "delimiter", ","), ("data", "n_rows", 5), ("data", "patch", {"stride": 2})):
        assert "it belongs to source" in message({**raw, section: {**raw[section], key: value}})
    other = ("concentration", 2) if family == "gaussian" else ("covariance_type", "tied")
    assert "it belongs to family" in message({**raw, "model": {**raw["model"], other[0]: other[1]}})


def test_a_key_that_was_renamed_goes_on_working(tmp_path):
    """In a file and by --set; a mistake in it is found where it was written."""
    assert validate({"select": {"annihilation": True}}).select.pruning
    assert validate({}, ["select.annihilation=true"]) == validate({"select": {"pruning": True}})
    (tmp_path / "c.yaml").write_text("data: {}\nselect:\n  annihilation: 3.5\n")
    with pytest.raises(InputError, match=r"line 3: select\.pruning: got 3\.5, expected true or false"):
        load_config(tmp_path / "c.yaml")


def test_an_option_without_an_effect_is_refused(tmp_path):
    """What would open files or stores needs files or stores to open: rows, weights or labels."""
    assert "data.missing_chunks: source npy reads no stores" in message(
        {"data": {"source": "npy", "path": "x", "missing_chunks": "fill"}}
    )
    assert "data.storage_options: source bundled reads no files" in message({"data": {"storage_options": {"a": 1}}})
    assert validate({"data": {"labels": "y.zarr", "missing_chunks": "fill", "storage_options": {"a": 1}}})
    assert "data.patch: digits are rows as they are" in message({"data": {"path": "digits", "patch": {"stride": 2}}})


@pytest.mark.full
def test_the_engine_section_is_read_before_numpy_is_imported():
    """It is validated by itself: BLAS is chosen by environment variables, which NumPy reads when it loads."""
    program = """
import sys
from pipeline.cli import _before_numpy
from pipeline.config.profiles import engine_alone
raw = {"engine": {"workers": 3}, "model": {"family": "gaussian"}, "data": {"source": "npy"}}
engine = engine_alone(raw, ["engine.memory=1GiB", "model.n_components=3"])
assert (engine.workers, engine.memory) == (3, 2**30)
assert engine_alone({"engine": {"wrokers": 3}}, []) is None and engine_alone("engine", []).workers == "auto"
_before_numpy(engine)
assert "numpy" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.full
def test_sources_and_families_are_imported_when_they_are_asked_for():
    """A config of one source does not import the modules of the others."""
    program = """
import sys
from pipeline.jobconfig import validate
validate({"data": {"source": "npy", "path": "x"}, "model": {"family": "kmeans"}})
loaded = {name.rpartition(".")[2] for name in sys.modules if name.startswith(("pipeline.data.sources.", "pipeline.models.families."))}
assert loaded == {"npy", "kmeans"}, loaded
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
