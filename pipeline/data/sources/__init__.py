"""The sources: one file each, with the section of the config and the source that it opens."""

from pipeline.config import Variants
from pipeline.data.section import DataSection

SOURCES = Variants(DataSection, "source", __name__, "em_pipeline.sources")  # type: ignore[type-abstract]  # each name stands for a class derived from it
