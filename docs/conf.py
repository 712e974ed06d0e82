"""How Sphinx builds the site: MyST for the pages, autodoc and napoleon for the docstrings, and two references from the program."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import commands
import sections

project = "em-pipeline"
author = copyright = "The em-pipeline developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "em-pipeline"
html_show_sphinx = False
html_copy_source = False
highlight_language = "none"  # formulas are indented blocks
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings have shapes and meanings, which types have not
napoleon_google_docstring = False
napoleon_use_ivar = True
add_module_names = False
python_display_short_literal_types = True
maximum_signature_line_length = 90


def _fill(app: Any, page: str, source: list[str]) -> None:
    """Insert what is made from the program into the pages that ask for it."""
    for made in (sections, commands):
        if (place := f"<!-- {made.__name__} -->") in source[0]:
            source[0] = source[0].replace(place, made.in_markdown())


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _fill)
