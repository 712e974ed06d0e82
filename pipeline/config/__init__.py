"""The config: strict sections, how they are read from YAML, and the commented YAML made from them."""

from pipeline.config.engine import Engine, Profile
from pipeline.config.loading import load_config, to_plain, validate
from pipeline.config.section import Section, parse_bytes
from pipeline.config.sections import (
    Config,
    Data,
    MixtureSpec,
    Model,
    Patch,
    Preprocess,
    Prior,
    Select,
)
from pipeline.config.template import template

__all__ = [
    "Config",
    "Data",
    "Engine",
    "MixtureSpec",
    "Model",
    "Patch",
    "Preprocess",
    "Prior",
    "Profile",
    "Section",
    "Select",
    "load_config",
    "parse_bytes",
    "template",
    "to_plain",
    "validate",
]
