"""How Sphinx builds the site: MyST for the pages, autodoc for the Python face, and two references from the program.

Docstrings are prose with lines `name : meaning`, no markup of Sphinx's; `_as_markup` makes it of them.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import commands
import sections

project = "em-pipeline"
author = copyright = "The em-pipeline developers"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = "em-pipeline"
html_show_sphinx = False
html_copy_source = False
highlight_language = "none"  # formulas are indented blocks
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say shapes and what may come, which types do not
add_module_names = False
python_display_short_literal_types = True
maximum_signature_line_length = 90

_NAMES = re.compile(r"(?:^|  )((?:\w+,\s+)*\w+) : ", re.MULTILINE)
_FITTED = re.compile(r"\b[a-z_]+_\b")


def _as_markup(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """A docstring in reStructuredText: names and their meanings become a list, and no character of the prose is markup."""
    text = _NAMES.sub(lambda found: f"\n- `{' '.join(found[1].split())}` : ", "\n".join(lines))
    parts = re.split(r"(`[^`]*`)", _FITTED.sub(r"`\g<0>`", text))
    parts[::2] = [re.sub(r"([*_|\\])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [f"`{part}`" for part in parts[1::2]]
    lines.clear()
    item = False
    for line in "".join(parts).splitlines():
        begins, goes_on = line.startswith("- "), item and line.startswith(" ")
        if item and line and not begins and not goes_on:
            lines.append("")  # the list has ended
        item = begins or goes_on or (item and not line)
        lines.append(f"  {line.strip()}" if goes_on else line)


def _fill(app: Any, page: str, source: list[str]) -> None:
    """What is made from the program, in the pages that ask for it."""
    for made in (sections, commands):
        if (place := f"<!-- {made.__name__} -->") in source[0]:
            source[0] = source[0].replace(place, made.in_markdown())


def setup(app: Any) -> None:
    """What Sphinx calls."""
    app.connect("autodoc-process-docstring", _as_markup)
    app.connect("source-read", _fill)
