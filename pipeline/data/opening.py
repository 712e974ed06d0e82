"""Opening a source by its kind: the table of kinds, and which options each looks at."""

from __future__ import annotations

from pipeline.config import Data
from pipeline.data import arrays, counts, files, images, synthetic, text
from pipeline.data.source import Source
from pipeline.errors import InputError

# The options of `data` beside source, path, weights and bad_rows that each kind of source looks at.
_USES: dict[str, set[str]] = {
    "images": {"storage_options", "patch"},
    "zarr": {"storage_options", "variable", "missing_chunks", "vocabulary"},
    "npy": {"storage_options"},
    "csv": {"storage_options", "delimiter", "cache"},
    "idx": {"storage_options", "cache"},
    "docword": {"storage_options", "vocabulary", "cache"},
    "synthetic": {"n_rows", "mixture", "random_state", "dtype"},
    "bundled": {"patch"},
}


def open_source(data: Data) -> Source:
    """The source that `data` names, opened and checked before anything is computed.

    Raises InputError on input that cannot be used, StorageError on input that is damaged.
    """
    _refuse_ignored(data)
    openers = {
        "images": images.open_images,
        "zarr": arrays.open_zarr,
        "npy": files.open_npy,
        "csv": text.open_csv,
        "idx": files.open_idx,
        "docword": counts.open_docword,
        "synthetic": synthetic.open_synthetic,
        "bundled": images.open_bundled,
    }
    return openers[data.source](data)


def unconverted(data: Data, scratch: str) -> Data:
    """The same data where nothing may be written beside the input: what must still be converted goes to `scratch`."""
    if "cache" not in _USES[data.source] or (data.cache is None and files.is_url(str(data.path))):
        return data  # nothing to convert, or a refusal
    if data.source == "docword" and counts.is_converted(data):
        return data
    return data.model_copy(update={"cache": scratch})


def _refuse_ignored(data: Data) -> None:
    """An option that this source would not look at is a mistake, not a wish to be ignored."""
    everywhere = {"source", "path", "weights", "bad_rows"}
    # A column of weights may be in a zarr store beside rows of any kind.
    used = _USES[data.source] | everywhere | ({"storage_options", "missing_chunks"} if data.weights else set())
    for name, field in type(data).model_fields.items():
        default = field.get_default(call_default_factory=True)
        if name not in used and getattr(data, name) != default:
            users = ", ".join(kind for kind, uses in _USES.items() if name in uses)
            raise InputError(
                f"data.{name}: came as {getattr(data, name)!r}, but source {data.source} does not use it "
                f"(it belongs to {users}). Remove it."
            )
