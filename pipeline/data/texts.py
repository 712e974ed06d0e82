"""Where texts are: a folder of files, a file with one a line, or a column of a table. Each is read once, in order."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.config.paths import is_url
from pipeline.data.files import open_binary, opening, reading, sha256, stored_size
from pipeline.errors import InputError, did_you_mean

TABLES = (".parquet", ".pq", ".csv", ".tsv", ".csv.gz", ".tsv.gz")
_LONGEST = 256 * 2**20  # bytes of a document
_ROWS = 4096  # of a table at a time


def text_files(path: str, options: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Return the files of a path, sorted, and whether each is one text (of a folder or glob). Raises InputError where there is none."""
    if is_url(path):
        import fsspec

        with opening(path):
            filesystem, root = fsspec.core.url_to_fs(path, **options)
            if filesystem.isfile(root):
                return [path], False
            names = filesystem.glob(root) if glob.has_magic(root) else filesystem.find(root)
            found = [str(filesystem.unstrip_protocol(name)) for name in names]
    elif os.path.isdir(path):
        found = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
    elif glob.has_magic(path) and not os.path.lexists(path):
        found = [name for name in glob.glob(path, recursive=True) if os.path.isfile(name)]
        return _some(path, sorted(found), "of that name"), True
    else:
        return [path], False
    texts = [name for name in found if name.endswith(".txt") and not os.path.basename(name).startswith(".")]
    return _some(path, sorted(texts), "that ends in .txt"), True


def _some(path: str, files: list[str], of: str) -> list[str]:
    if not files:
        raise InputError(
            f"{path}: has no file {of}. Give data.path a folder of .txt files, or a glob such as texts/**/*.md."
        )
    return files


def fingerprint(files: list[str], options: Mapping[str, Any]) -> tuple[int, str]:
    """Return the bytes of some files, and a SHA-256 of their names and contents."""
    if len(files) == 1:
        with opening(files[0]):
            return stored_size(files[0], options), sha256(files[0], options)
    digest, size = hashlib.sha256(), 0
    for file in files:
        with opening(file):
            size += stored_size(file, options)
            digest.update(f"{os.path.basename(file)}\0{sha256(file, options)}\0".encode(errors="surrogateescape"))
    return size, digest.hexdigest()


def texts_in(
    path: str,
    files: list[str],
    whole: bool,
    column: str | None,
    index: str | None,
    encoding: str,
    options: Mapping[str, Any],
) -> Iterator[tuple[str | None, str]]:
    """Yield the name and the text of each document.

    Parameters
    ----------
    path : str
    files : list of str
        As `text_files` returned them, with `whole`.
    whole : bool
        Whether a file is one document, named by its place below the path; else each line is one, without a name.
    column, index : str or None
        Columns of tables: the texts, and their names.
    encoding : str
    options : mapping

    Raises
    ------
    InputError
        For a text that is not in the encoding, and a column that is not there.
    """
    if column is not None:
        for file in files:
            yield from _of_table(file, column, index, encoding, options)
        return
    base = path.split("*")[0] if glob.has_magic(path) else path
    for file in files:
        if whole:
            with reading(file), open_binary(file, options) as stream:
                text = _decoded(stream.read(_LONGEST + 1), encoding, file)
            name = (
                os.path.relpath(file, base if os.path.isdir(base) else os.path.dirname(base))
                if not is_url(file)
                else file
            )
            yield name.encode(errors="backslashreplace").decode().replace("\n", "\\n"), text
            continue
        with reading(file), open_binary(file, options) as stream:
            number = 0
            while line := stream.readline(_LONGEST + 1):
                number += 1
                yield None, _decoded(line, encoding, f"{file}, line {number}")


def _decoded(text: bytes, encoding: str, what: str) -> str:
    if len(text) > _LONGEST:
        raise InputError(f"{what}: has more than {_LONGEST} bytes, expected one document. Cut it into several.")
    try:
        return text.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{what}: is not in {encoding} ({error.reason} at byte {error.start}). Set data.encoding to what it is, such as latin-1."
        ) from error


def _of_table(
    file: str, column: str, index: str | None, encoding: str, options: Mapping[str, Any]
) -> Iterator[tuple[str | None, str]]:
    wanted = [column] if index is None else [column, index]
    with reading(file), open_binary(file, options) as stream:
        if file.endswith((".parquet", ".pq")):
            from pipeline.data.row_groups import pyarrow_of

            table = pyarrow_of("data.source: text of parquet files").parquet.ParquetFile(stream)
            _refuse_absent(file, wanted, table.schema_arrow.names)
            for batch in table.iter_batches(_ROWS, columns=wanted):
                rows = batch.to_pydict()
                names = [None] * len(batch) if index is None else [_line(value) for value in rows[index]]
                for text in rows[column]:
                    if not (text is None or isinstance(text, str)):
                        raise InputError(
                            f"{file}: column {column!r} holds {type(text).__name__}, expected text. Name another."
                        )
                yield from zip(names, (text or "" for text in rows[column]), strict=True)
            return
        csv.field_size_limit(_LONGEST)
        lines = io.TextIOWrapper(stream, encoding, newline="")
        reader = csv.DictReader(lines, delimiter="\t" if ".tsv" in file else ",")
        _refuse_absent(file, wanted, list(reader.fieldnames or ()))
        try:
            for row in reader:
                yield None if index is None else _line(row[index]), row[column] or ""
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(
                f"{file}, line {reader.line_num}: cannot be read ({error}). Set data.encoding, or correct it."
            ) from error


def _line(value: Any) -> str:
    return str(value).replace("\n", "\\n")


def _refuse_absent(file: str, wanted: list[str], columns: list[str]) -> None:
    for option, name in zip(("column", "index"), wanted, strict=False):
        if name not in columns:
            near = did_you_mean(name, columns) or f", expected one of {', '.join(columns)}."
            raise InputError(f"data.{option}: got {name!r}, which is no column of {file}{near}")
