"""The origin of a run (config, data, versions, BLAS kernels), and whether it is still the same."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

from pipeline.config.section import lists_of
from pipeline.data.chunks import Chunks
from pipeline.engine.memory import job_pss
from pipeline.engine.passes import Engine
from pipeline.errors import InputError
from pipeline.jobconfig import Config, to_plain, validate
from pipeline.kernels.cpu import KERNELS
from pipeline.numerics import NUMERICS

_PACKAGES = ("em-pipeline", "numpy", "scipy", "dask", "distributed", "zarr", "xarray", "scikit-learn")
_FAMILIES_OWN = ("jax", "jaxlib")  # that some families need


def versions(more: Iterable[str] = ()) -> dict[str, str]:
    """Return the versions of Python and of the packages that compute or store. more : packages that a family needs too."""
    own = {name: version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **own, **{name: _installed(name) for name in more if name not in own}}


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def record(config: Config, fingerprint: dict[str, Any], start: str | None) -> dict[str, Any]:
    """Return the content of config.yaml.

    Parameters
    ----------
    config : Config
    fingerprint : dict
        Of the rows.
    start : str or None
        SHA-256 of what fit.init_path holds.
    """
    record = {
        "code": config.code(),
        "versions": versions(config.model.packages),
        "numerics": NUMERICS,
        "kernel_set": KERNELS.identity(),
        "fingerprint": fingerprint,
        "start": start,
    }
    return with_config(record, to_plain(config))


def surroundings(config: Config, engine: Engine, chunks: Chunks) -> dict[str, Any]:
    """Return what the job is, and where and with what it runs, for the log."""
    return {
        "asked": {
            **config.model.model_dump(mode="json", include={"family", *lists_of(type(config.model))}),
            **config.fit.model_dump(mode="json", include={"method", "max_iter", "tol"}),
        },
        "words": config.model.words._asdict(),
        "versions": versions(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "blas": KERNELS.identity(),
        "workers": engine.workers,
        "dashboard": engine.dashboard,
        "memory_total": psutil.virtual_memory().total,
        "pss": job_pss(),
        "chunks": chunks.n_chunks,
        "rows": chunks.n_rows,
        "command": [_without_secrets(argument) for argument in sys.argv],
    }


def _without_secrets(argument: str) -> str:
    """The argument without storage options, which may be passwords and are never written."""
    key, separator, _ = argument.partition("=")
    return f"{key}{separator}…" if "storage_options" in key else argument


def other_versions(record: dict[str, Any]) -> list[str]:
    """Return a warning for each version that differs from the one that a run began with, beside `numerics`."""
    before = record.get("versions")
    needed = [name for name in before if name in _FAMILIES_OWN] if isinstance(before, dict) else []
    found = _differences(before, versions(needed))
    return [f"{name}: the run began with version {old}, this is {new}" for name, old, new in found]


def computed(config: Config) -> dict[str, Any]:
    """Return what decides the result, as plain values: all but where to compute, what to write, and where the rows are."""
    return _computed(to_plain(config))


def _computed(plain: dict[str, Any]) -> dict[str, Any]:
    found = {name: section for name, section in plain.items() if name not in ("engine", "output")}
    data = found.get("data")
    return {**found, "data": {k: v for k, v in data.items() if k != "path"}} if isinstance(data, dict) else found


def with_config(record: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """Return the content of config.yaml with another config. plain : its plain values."""
    rest = {name: value for name, value in record.items() if name not in ("config", "sha256")}
    return {"config": plain, "sha256": _digest(plain), **rest}


def _digest(plain: dict[str, Any]) -> str:
    """SHA-256 of what decides the result, but for max_iter, which may be raised."""
    found = _computed(plain)
    fit = found.get("fit")
    found = {**found, "fit": {**fit, "max_iter": None}} if isinstance(fit, dict) else found
    return hashlib.sha256(json.dumps(found, sort_keys=True, default=str).encode()).hexdigest()


def refuse_other_job(
    begun: dict[str, Any] | None, stored: Config, wanted: Config, record: dict[str, Any], accept_other_bits: bool
) -> None:
    """Refuse to resume if something else would be computed.

    `engine`, `output`, `data.path` and a higher `fit.max_iter` may change; nothing else.

    Parameters
    ----------
    begun : dict or None
        What the newest checkpoint says is computed; None where there is none.
    stored, wanted : Config
        Of config.yaml, which may have been edited, and for the continuation.
    record : dict
        The content of config.yaml.
    accept_other_bits : bool
        Whether other BLAS kernels are accepted.

    Raises
    ------
    InputError
        Showing the difference.
    """
    before, after = computed(stored) if begun is None else _in_this_version(begun, wanted), computed(wanted)
    if begun is None and record.get("sha256") not in (None, _digest(record["config"])):
        raise InputError(
            f"{wanted.output.path}: its config.yaml is not as the run wrote it, and no checkpoint says how it was. Undo the edit, "
            "or start again with `em-pipeline run --overwrite`."
        )
    if _limit(after) > _limit(before):
        after["fit"]["max_iter"] = before["fit"]["max_iter"]
    changes = [f"  {key}: was {old!r}, now {new!r}" for key, old, new in _differences(before, after)]
    changes += _other_code(wanted, record)
    if record.get("numerics") != NUMERICS:
        changes.append(f"  numerics: was {record.get('numerics')}, now {NUMERICS} (another version of em-pipeline)")
    if record.get("kernel_set") != KERNELS.identity() and not accept_other_bits:
        changes.append(
            f"  BLAS kernels: was {record.get('kernel_set')}, now {KERNELS.identity()}; results would differ in the last "
            "digits. Use --accept-other-bits, or run on the same kind of machine"
        )
    if changes:
        advice = "Resume without the change, or `em-pipeline run` into another --output."
        lines = ["resume: this would compute something else than the run did.", *changes, advice]
        raise InputError("\n".join(lines))


def refuse_other_code(config: Config, record: dict[str, Any], keys: Sequence[str]) -> None:
    """Raise InputError if a user's file, which one of these keys names, is not the one that the run executed."""
    if changes := [line for line in _other_code(config, record) if line.split(":")[0].strip() in keys]:
        raise InputError("\n".join(["the run executed another file than this.", *changes, "Restore the file."]))


def _other_code(config: Config, record: dict[str, Any]) -> list[str]:
    """A line for each user's file that has changed since the run began."""
    found = _differences(record.get("code", {}), config.code())
    return [f"  {key}: had SHA-256 {old}, now {new}" for key, old, new in found]


def refuse_other_data(record: dict[str, Any], fingerprint: dict[str, Any]) -> None:
    """Raise InputError, showing the difference, if the input has changed since the run read it."""
    stored = record.get("fingerprint")
    if stored != fingerprint:
        lines = [f"  {key}: was {old!r}, now {new!r}" for key, old, new in _differences(stored, fingerprint)]
        advice = "Restore them, point data.path at where they are now, or `em-pipeline run` into another --output."
        raise InputError("\n".join(["the data are not those that the run read.", *lines, advice]))


def refuse_other_start(record: dict[str, Any], start: str | None) -> None:
    """Raise InputError if the content of fit.init_path has changed since the run began, and is still needed."""
    if record.get("start") != start:
        raise InputError(
            f"fit.init_path: got SHA-256 {start}, expected {record.get('start')}, which the run began with and has not "
            "used yet. Restore the file, or start again with `em-pipeline run --overwrite`."
        )


def _limit(plain: dict[str, Any]) -> int:
    """fit.max_iter of what is computed; 0 where it has none."""
    found = plain["fit"].get("max_iter") if isinstance(plain.get("fit"), dict) else None
    return found if isinstance(found, int) else 0


def _in_this_version(begun: dict[str, Any], wanted: Config) -> dict[str, Any]:
    """What a checkpoint says, with the options that this version has beside. A file is executed only if it is the wanted one."""
    after = to_plain(wanted)
    kinds = [{key: each.get("model", {}).get(key) for key in ("family", "path")} for each in (begun, after)]
    if kinds[0] != kinds[1]:
        return begun
    path = {key: value for key, value in after["data"].items() if key == "path"}
    try:
        return computed(validate({**begun, "data": {**begun["data"], **path}}))
    except (InputError, KeyError, TypeError):
        return begun


def _differences(before: Any, after: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        names = [*before, *(name for name in after if name not in before)]
        inner = [_differences(before.get(n), after.get(n), f"{key}.{n}" if key else str(n)) for n in names]
        return [difference for found in inner for difference in found]
    return [] if before == after else [(key, before, after)]
