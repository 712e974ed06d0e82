"""Texts as counts of words: those of scikit-learn's CountVectorizer, from files, lines and columns of tables."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array, vstack
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

from pipeline import MultinomialMixture
from pipeline.data import words
from pipeline.errors import InputError
from pipeline.jobconfig import validate
from pipeline.workflow import predict, run
from tests.jobs import files

TEXTS = [
    "The cat sat on the mat, the cat!",
    "",
    "Dogs and cats: naïve friends of the mat.",
    "A dog's life is the life of Café Noir",
    "the the the 42 mats",
    "DOG dog Dog",
]


def opened(path: Path, /, **options):
    """The source of some texts, converted in a folder of its own."""
    keys = {"source": "text", "path": str(path), "cache": str(path.parent / "cache")} | options
    return validate({"data": keys, "model": {"family": "multinomial"}}).data.open()


def whole(source) -> csr_array:
    """All rows of a source."""
    return vstack([source.read(i) for i in range(source.n_chunks)], format="csr")


def stored(folder: Path, kind: str, texts=TEXTS) -> tuple[Path, dict[str, str]]:
    """The texts in one of the ways in which they may be stored, and the options to read them."""
    if kind == "folder":
        (folder / "texts" / "more").mkdir(parents=True)
        for i, text in enumerate(texts):
            place = folder / "texts" / ("more" if i > 3 else "") / f"{i}.txt"
            place.write_text(text, encoding="utf-8")
        (folder / "texts" / ".hidden.txt").write_text("never")
        return folder / "texts", {}
    if kind == "lines":
        (folder / "texts.txt.gz").write_bytes(gzip.compress("\n".join(texts).encode()))
        return folder / "texts.txt.gz", {}
    frame = pd.DataFrame({"said": texts, "who": [f"p{i}" for i in range(len(texts))], "n": 1})
    path = folder / f"texts.{kind}"
    (frame.to_csv if kind == "csv" else frame.to_parquet)(path, index=False)
    return path, {"column": "said", "index": "who"}


@pytest.mark.parametrize("kind", ["folder", "lines", "csv", "parquet"])
def test_texts_are_read_from_where_they_are(tmp_path, kind, monkeypatch):
    """The counts of CountVectorizer, whatever holds the texts; documents have the names of their files or of the index."""
    monkeypatch.setattr(words, "_SPILLED", 3)  # counts at a time: several blocks in both passes
    path, options = stored(tmp_path, kind)
    source = opened(path, **options)
    peer = CountVectorizer().fit(TEXTS)
    assert source.vocabulary() == peer.get_feature_names_out().tolist()
    np.testing.assert_array_equal(whole(source).toarray(), peer.transform(TEXTS).toarray())
    names = {
        "folder": ["0.txt", "1.txt", "2.txt", "3.txt", "more/4.txt", "more/5.txt"],
        "lines": None,
        "csv": [f"p{i}" for i in range(6)],
    }
    found = source.keys(1, 6).get("document")
    expected = names[kind.replace("parquet", "csv")]
    assert (found if expected is None else found.tolist()) == (expected if expected is None else expected[1:])
    before = files(tmp_path / "cache")
    opened(path, **options)
    assert files(tmp_path / "cache") == before  # it is written once


@pytest.mark.parametrize(
    "options",
    [
        {"lowercase": False},
        {"token_pattern": r"[a-z]{3,}"},
        {"stop_words": "english"},
        {"stop_words": ["the", "of"]},
        {"ngram_range": (1, 2)},
        {"ngram_range": (2, 3)},
        {"min_df": 2},
        {"min_df": 0.3, "max_df": 0.5},
        {"max_df": 2},
        {"max_features": 3},
        {"max_features": 5, "min_df": 2, "ngram_range": (1, 2), "stop_words": "english"},
    ],
)
def test_options_are_those_of_count_vectorizer(tmp_path, options):
    """The same words in the same order, and the same counts; the commonest words here have counts of their own."""
    texts = [*TEXTS, "cat cat cat cat dog dog dog mat", "the the cat dog life of"]
    path, _ = stored(tmp_path, "lines", texts)
    source, peer = opened(path, **options), CountVectorizer(**options).fit(texts)
    assert source.vocabulary() == peer.get_feature_names_out().tolist()
    np.testing.assert_array_equal(whole(source).toarray(), peer.transform(texts).toarray())


def test_new_texts_are_counted_by_known_words(tmp_path):
    """A settled section has the words of its texts, and counts these in others; of its own texts it opens the same store."""
    path, _ = stored(tmp_path, "lines")
    keys = {"source": "text", "path": str(path), "cache": str(tmp_path / "cache"), "min_df": 2}
    settled = validate({"data": keys, "model": {"family": "multinomial"}}).data.settled()
    assert settled.settled() is settled and settled.min_df == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1
    np.testing.assert_array_equal(whole(settled.open()).toarray(), whole(opened(path, min_df=2)).toarray())
    assert len(list((tmp_path / "cache").iterdir())) == 1
    (tmp_path / "new.txt").write_text("unheard dog\ncat dog dog the\n")
    other = settled.model_copy(update={"path": str(tmp_path / "new.txt")}).open()
    peer = CountVectorizer(min_df=2).fit(TEXTS)
    np.testing.assert_array_equal(whole(other).toarray(), peer.transform(["unheard dog", "cat dog dog the"]).toarray())
    assert other.vocabulary() == peer.get_feature_names_out().tolist()


@pytest.mark.slow
def test_new_texts_are_counted_by_the_words_of_the_run(tmp_path):
    """The run notes its vocabulary; predict joins labels to the names of the new texts."""
    (tmp_path / "old").mkdir()
    path, _ = stored(tmp_path / "old", "folder", ["cat mat cat", "mat cat", "dog life dog", "life dog dog"] * 5)
    config = {
        "data": {"source": "text", "path": str(path), "min_df": 2},
        "model": {"family": "multinomial", "n_components": 2},
        "fit": {"method": "em", "max_iter": 5},
        "output": {"path": str(tmp_path / "run")},
    }
    made = run(validate(config))
    (tmp_path / "new").mkdir()
    new, _ = stored(tmp_path / "new", "folder", ["a cat on a mat", "dogs lead a life of a dog", "unheard words"])
    table = pd.read_csv(predict(made, [f"data.path={new}"], tmp_path / "there", form="csv"))
    labels = pd.read_csv(predict(made, form="csv")).set_index("document").label
    assert table.document.tolist() == ["0.txt", "1.txt", "2.txt"]
    assert table.label[0] == labels["0.txt"] != table.label[1] == labels["2.txt"]


TEXT = "one two\ntwo three\n"
REFUSED = {
    "no column": ("t.csv", "a,b\n1,x\n", {}, "column: is missing; a table needs the name of the column"),
    "another column": ("t.csv", "a,b\n1,x\n", {"column": "c"}, "data.column: got 'c', which is no column of "),
    "another index": (
        "t.csv",
        "a,b\n1,x\n",
        {"column": "b", "index": "c"},
        "data.index: got 'c', which is no column of ",
    ),
    "a column of a text": ("t.txt", TEXT, {"column": "b"}, "column, index: are for tables"),
    "a pattern": ("t.txt", TEXT, {"token_pattern": "("}, "data.token_pattern, data.stop_words: "),
    "two groups": ("t.txt", TEXT, {"token_pattern": "(a)(b)"}, "data.token_pattern, data.stop_words: "),
    "n-grams": ("t.txt", TEXT, {"ngram_range": [2, 1]}, "ngram_range: got [2, 1], expected two numbers from 1"),
    "a share": ("t.txt", TEXT, {"min_df": 1.5}, "min_df: got 1.5, expected a share up to 1.0"),
    "limits": ("t.txt", TEXT, {"min_df": 2, "max_df": 1}, "data.max_df: 1 is 1 of 2 documents, fewer than min_df, 2"),
    "no word stays": (
        "t.txt",
        TEXT,
        {"min_df": 2, "stop_words": ["two"]},
        "and none stays, expected at least one. Correct data.path, or set ",
    ),
    "no word": ("t.txt", "1 2\n", {}, "and none stays, expected at least one"),
    "an encoding": ("t.txt", TEXT, {"encoding": "utf8x"}, "encoding: got 'utf8x', expected a name such as utf-8"),
    "other bytes": (
        "t.txt",
        "caf\udce9\n",
        {},
        "line 1: is not in utf-8 (invalid continuation byte at byte 3). Set data.encoding",
    ),
    "a vocabulary and limits": (
        "t.txt",
        TEXT,
        {"vocabulary": "v.txt", "min_df": 2},
        "vocabulary: settles the features; leave out",
    ),
    "no vocabulary": ("t.txt", TEXT, {"vocabulary": "v.txt"}, "v.txt cannot be read as UTF-8 text"),
    "a line break": ("t.txt", TEXT, {"token_pattern": r"(?s)\w+\W"}, "expected none with a line break"),
    "no file": (
        "t.md",
        TEXT,
        {"path": "."},
        "has no file that ends in .txt. Give data.path a folder of .txt files, or a glob",
    ),
    "nothing there": ("t.txt", TEXT, {"path": "u.txt"}, "does not exist"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_texts_that_cannot_be_counted_are_refused(tmp_path, case, monkeypatch):
    """One sentence that says what to write."""
    name, content, options, said = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(InputError) as error:
        opened(tmp_path / name, **options)
    assert said in str(error.value)


def test_too_many_words_are_refused(tmp_path, monkeypatch):
    """They would be in memory."""
    monkeypatch.setattr(words, "MOST_WORDS", 3)
    path, _ = stored(tmp_path, "lines")
    with pytest.raises(InputError, match="have more than 3 different words, expected fewer"):
        opened(path)


def test_tf_idf_is_that_of_scikit_learn(tmp_path, monkeypatch):
    """Other texts are weighed by the documents of the run; families of counts refuse what is none."""
    monkeypatch.setattr("pipeline.data.sources.text._INDICES", 3)
    (tmp_path / "texts").write_text("\n".join(TEXTS))
    (tmp_path / "new").write_text("\n".join(TEXTS[3:]))
    keys = {"source": "text", "path": str(tmp_path / "texts"), "cache": str(tmp_path / "cache"), "tf_idf": True}
    of_run = validate({"data": keys, "model": {"family": "spherical-kmeans"}}).settled()
    peer = TfidfVectorizer().fit(TEXTS)
    np.testing.assert_allclose(whole(of_run.data.open()).toarray(), peer.transform(TEXTS).toarray(), rtol=1e-14)
    others = of_run.data.model_copy(update={"path": str(tmp_path / "new")}).open()
    np.testing.assert_allclose(whole(others).toarray(), peer.transform(TEXTS[3:]).toarray(), rtol=1e-14)
    (tmp_path / "vocabulary.txt").write_text("cat\ndog\nthe\n")  # of the user, though a store's has this name too
    config = validate(
        {"data": keys | {"vocabulary": str(tmp_path / "vocabulary.txt")}, "model": {"family": "spherical-kmeans"}}
    )
    peer = TfidfVectorizer(vocabulary=["cat", "dog", "the"]).fit(TEXTS)
    np.testing.assert_allclose(whole(config.data.open()).toarray(), peer.transform(TEXTS).toarray(), rtol=1e-14)
    with pytest.raises(InputError, match=r"data\.tf_idf: makes no counts, which family multinomial needs"):
        opened(tmp_path / "texts", tf_idf=True)


@pytest.mark.parametrize("seed", [1, *(pytest.param(s, marks=pytest.mark.slow) for s in (0, 2, 3, 4))])
def test_every_seed_finds_the_multinomials_that_documents_were_drawn_from(seed):
    """The search ends no lower than EM from the true words, with weights of 1 to 1/20. From four starts seeds 1 and 3 ended lower."""
    rng = np.random.default_rng(7)
    k, n_words, n = 20, 400, 3000
    shares = 0.3 * rng.dirichlet(np.full(n_words, 0.1), size=k) + 0.7 * rng.dirichlet(np.full(n_words, 0.1))
    weights = 20.0 ** -np.linspace(0, 1, k)
    label = rng.choice(k, n, p=weights / weights.sum())
    x = csr_array(np.stack([rng.multinomial(60, shares[i]) for i in label]).astype(np.float64))
    truth = MultinomialMixture(k, method="em", tol=1e-8, max_iter=500, feature_log_prob_init=np.log(shares)).fit(x)
    found = MultinomialMixture(k, method="auto", tol=1e-6, max_iter=500, random_state=seed).fit(x)
    assert found.score(x) >= truth.score(x) - 1e-4
