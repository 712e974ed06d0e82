"""The families of models: one file each, which holds the section of the config."""

from pipeline.config import Variants
from pipeline.models.family import FamilySection

FAMILIES = Variants(FamilySection, "family", __name__, "em_pipeline.families")  # type: ignore[type-abstract]  # each name stands for a class derived from it
