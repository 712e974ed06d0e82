"""The families of models: one file each, with the config section."""

from pipeline.config import Variants
from pipeline.models.family import FamilySection
from pipeline.models.words import Words

FAMILIES = Variants(FamilySection, "family", __name__, "em_pipeline.families")  # type: ignore[type-abstract]  # each name stands for a class derived from it


def words_of(family: str) -> Words:
    """Return the words of a family; of an unknown one, its name."""
    return (
        FAMILIES[family].words
        if family in FAMILIES
        else Words(f"{family} model", f"A {family} model with {{k}} components")
    )
