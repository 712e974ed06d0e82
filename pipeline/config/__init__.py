"""Strict sections of configs, how they are read from YAML, and the commented YAML made from them.

The config of a job is composed in `pipeline.jobconfig`, of these sections and those of data and models.
"""

from pipeline.config.engine import ClusterProfile, EngineSection
from pipeline.config.paths import AnyPath, ColumnOrPath, LocalPath
from pipeline.config.section import OneOrMore, Section, parse_bytes
from pipeline.config.sections import Fit, Output, Preprocess, Select
from pipeline.config.variants import Variant, Variants

__all__ = [
    "AnyPath",
    "ClusterProfile",
    "ColumnOrPath",
    "EngineSection",
    "Fit",
    "LocalPath",
    "OneOrMore",
    "Output",
    "Preprocess",
    "Section",
    "Select",
    "Variant",
    "Variants",
    "parse_bytes",
]
