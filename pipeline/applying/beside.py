"""Pictures beside those that a command reads or has written, by their names: without noise, as masks, or before they were compressed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.data.sources.images import ImageSource, ImagesSection
from pipeline.errors import InputError
from pipeline.jobconfig import Config


def beside(own: Any, config: Config, option: str, path: str) -> list[tuple[ImageSource, int]]:
    """Return the picture beside each of a command, as source and number.

    Parameters
    ----------
    own : ImageSource or Compressed
        The pictures of the command.
    config : Config
        Says how pictures are read.
    option : {"clean", "mask", "original"}
        What names the folder.
    path : str
        The folder, whose pictures have the same names but for the suffix; if no folder inside has one, that of the file alone. A lone mask is that of all.

    Raises
    ------
    InputError
        If a picture is missing, or of another size.
    """
    assert isinstance(config.data, ImagesSection)
    found = config.data.model_copy(update={"path": path}).open()
    assert isinstance(found, ImageSource)
    names = found.pictures()[0]
    by_name = {Path(name).stem: i for i, name in enumerate(names)} | {_bare(name): i for i, name in enumerate(names)}
    alone, numbers = option == "mask" and len(names) == 1, []
    for i, name in enumerate(own.pictures()[0]):
        number = 0 if alone else by_name.get(_bare(name), by_name.get(Path(name).stem))
        if number is None:
            raise InputError(
                f"--{option} {path}: has no picture {_bare(name)}, expected one for each picture of the command. Add it."
            )
        one, other = own.header(i)[0], found.header(number)[0]
        if one[:2] != other[:2] or (option != "mask" and one.colour > other.colour):
            raise InputError(
                f"--{option} {path}: {_bare(names[number])} is {_kind(other)}, but the picture of the command is {_kind(one)}. Give the "
                "pictures that belong to them."
            )
        numbers.append((found, number))
    return numbers


def _bare(name: str) -> str:
    """The name without its suffix."""
    return str(Path(name).with_suffix(""))


def _kind(header: Any) -> str:
    return f"{header.height} x {header.width} pixels {'in colour' if header.colour else 'in grey'}"
