"""`report.html`: one file with the question, the results, and the course of the run.

It is made from the run directory alone, never from the data, so anywhere and at any time.
The page needs no network and no script; its charts are inline SVG that follow the reader's light or dark theme.
"""

from pipeline.outputs.report.page import write_report

__all__ = ["write_report"]
