"""Named clusters: those of the config, and those of a user's file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.config.engine import ClusterProfile, EngineSection
from pipeline.config.loading import validate
from pipeline.config.section import Section
from pipeline.config.syntax import parse
from pipeline.errors import InputError, did_you_mean

FILE_VARIABLE = "EM_PIPELINE_PROFILES"
LOCAL = "local"  # the profile that is always there: worker processes on this machine
# Packages that hold clusters. A class of another one has to be described in the user's own file: its module is executed.
CLUSTER_PACKAGES = (
    "distributed",
    "dask",
    "dask_jobqueue",
    "dask_cloudprovider",
    "dask_kubernetes",
    "dask_gateway",
    "dask_yarn",
    "dask_cuda",
    "coiled",
)
_OWN_WORDS = ("local", "ssh", "slurm", "slurm-runner")


class _EngineAlone(Section):
    """A config of which only the engine is validated."""

    engine: EngineSection = Field(default_factory=EngineSection)


def engine_alone(raw: Any, overrides: Sequence[str]) -> EngineSection | None:
    """Return the engine section of a config without the rest, which may need NumPy.

    Parameters
    ----------
    raw : Any
        The config as it was written.
    overrides : sequence of str
        ``section.key=value`` strings for any section.

    Returns
    -------
    EngineSection or None
        None if it is invalid: the validation of the whole config names the error.
    """
    plain = {"engine": raw["engine"]} if isinstance(raw, dict) and "engine" in raw else {}
    try:
        own = [override for override in overrides if override.startswith(("engine.", "engine="))]
        return validate(_EngineAlone, plain, own).engine
    except InputError:
        return None


def profiles_file() -> Path:
    """Return the path of the user's profiles: EM_PIPELINE_PROFILES, else em-pipeline/profiles.yaml in the user's settings."""
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config")
    return Path(os.environ.get(FILE_VARIABLE) or settings / "em-pipeline" / "profiles.yaml").expanduser()


def profile_of(engine: EngineSection) -> ClusterProfile | None:
    """Return the profile that a job runs on; None for threads or a running scheduler.

    Raises
    ------
    InputError
        If no profile has that name, or the user's file of profiles cannot be used.
    """
    if engine.scheduler == "threads" or engine.scheduler_address or engine.scheduler_file:
        return None
    profiles = {LOCAL: ClusterProfile(), **users_own(), **engine.profiles}
    if engine.scheduler not in profiles:
        names = ", ".join(sorted(profiles))
        raise InputError(
            f"engine.scheduler: got {engine.scheduler!r}, expected threads or one of the profiles {names}"
            f"{did_you_mean(engine.scheduler, ['threads', *profiles]) or '.'} Describe it in engine.profiles or in {profiles_file()}."
        )
    found = profiles[engine.scheduler]
    if engine.scheduler in engine.profiles and found.kind.partition(".")[0] not in (*_OWN_WORDS, *CLUSTER_PACKAGES):
        raise InputError(
            f"engine.profiles.{engine.scheduler}.kind: got {found.kind}, expected a class of one of {', '.join(CLUSTER_PACKAGES)}. "
            f"Describe a profile of another package in {profiles_file()}."
        )
    return found


def users_own() -> dict[str, ClusterProfile]:
    """Return the profiles of the user's file by name. Raises InputError if it cannot be used."""
    path = profiles_file()
    if not path.exists():
        if os.environ.get(FILE_VARIABLE):
            raise InputError(f"{FILE_VARIABLE}: {path} does not exist, expected a YAML file of profiles by name.")
        return {}
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"profiles {path}: cannot be read as text ({error}). See docs/clusters.md.") from error
    raw, lines = parse(text, f"profiles {path}")
    within = {("engine", "profiles", *place): line for place, line in lines.items()}
    return validate(_EngineAlone, {"engine": {"profiles": raw or {}}}, (), f"profiles {path}", within).engine.profiles


def serves(engine: EngineSection) -> bool:
    """Whether this process of an srun is to be the scheduler or a worker; the second process is the driver."""
    profile = profile_of(engine)
    return profile is not None and profile.kind == "slurm-runner" and os.environ.get("SLURM_PROCID", "1") != "1"
