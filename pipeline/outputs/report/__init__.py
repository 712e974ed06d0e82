"""`report.html`: one file that says what was asked, what came out, and how it went.

The run directory alone is read, never the data, so a report can be made anywhere and at any time.
The page needs no network and no script; its charts are inline SVG that follow the reader's light or dark theme.
"""

from pipeline.outputs.report.page import write_report

__all__ = ["write_report"]
