"""The report of a run inside a notebook."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

from pipeline.outputs.report.page import write_report
from pipeline.outputs.run_directory import RunDirectory


@dataclass(frozen=True)
class Inline:
    """A report that a notebook shows. path : of report.html.  height : pixels."""

    path: Path
    height: int

    def _repr_html_(self) -> str:
        page = html.escape(self.path.read_text(encoding="utf-8"), quote=True)
        # Without scripts and without a name of its own: it cannot reach the notebook around it.
        return f'<iframe sandbox srcdoc="{page}" width="100%" height="{self.height}" style="border: 0"></iframe>'


def show(run: str | Path, height: int = 700) -> Inline:
    """Return the report of a run for a notebook, which shows it below the cell; it is written first where it is missing.

    Parameters
    ----------
    run : str or Path
        A run directory, or that of another command.
    height : int
        Of what is shown, pixels.

    Raises
    ------
    InputError
        For a directory without a model.
    """
    path = RunDirectory(run).report
    return Inline(path if path.exists() else write_report(path.parent), height)
