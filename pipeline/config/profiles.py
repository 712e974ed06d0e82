"""Clusters by name: those of the config, and those that a user keeps for all jobs."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.config.engine import Engine, Profile
from pipeline.config.loading import validate
from pipeline.config.syntax import parse
from pipeline.errors import InputError, did_you_mean

FILE_VARIABLE = "EM_PIPELINE_PROFILES"


def profiles_file() -> Path:
    """The user's own profiles: what EM_PIPELINE_PROFILES names, else em-pipeline/profiles.yaml of the user's settings."""
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return Path(os.environ.get(FILE_VARIABLE) or settings / "em-pipeline" / "profiles.yaml")


def profile_of(engine: Engine) -> Profile | None:
    """The profile that a job runs on; None where it uses threads or a scheduler that others started.

    Raises InputError for one that nobody described, and for a file that is not what it should be.
    """
    if engine.scheduler == "threads" or engine.scheduler_address or engine.scheduler_file:
        return None
    known = {"local": Profile(), **_users_own(), **engine.profiles}
    if engine.scheduler not in known:
        raise InputError(
            f"engine.scheduler: {engine.scheduler!r}, expected threads or one of the profiles {', '.join(sorted(known))}"
            f"{did_you_mean(engine.scheduler, ['threads', *known]) or '.'} Describe it in engine.profiles or in {profiles_file()}."
        )
    return known[engine.scheduler]


def _users_own() -> dict[str, Profile]:
    path = profiles_file()
    if not path.exists():
        if os.environ.get(FILE_VARIABLE):
            raise InputError(f"{FILE_VARIABLE}: {path} is not there, expected a YAML file of profiles by name.")
        return {}
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"profiles {path}: cannot be read as text ({error}). See docs/clusters.md.") from error
    raw, lines = parse(text, f"profiles {path}")
    within = {("engine", "profiles", *place): line for place, line in lines.items()}
    return validate({"engine": {"profiles": raw or {}}}, None, f"profiles {path}", within).engine.profiles


def serves(engine: Engine) -> bool:
    """Whether this process is one of an srun that is to be the scheduler or a worker: the second is the job's driver."""
    profile = profile_of(engine)
    return profile is not None and profile.kind == "slurm-runner" and os.environ.get("SLURM_PROCID", "1") != "1"
