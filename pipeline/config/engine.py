"""The section `engine`, and descriptions of clusters."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from pipeline.config.paths import LocalPath
from pipeline.config.schema import AlsoWritten
from pipeline.config.section import SIZE, Section, parse_bytes


class Adapt(Section):
    """Limits of a cluster whose number of workers follows the load."""

    minimum: int = Field(0, ge=0, description="least workers, when there is nothing to do")
    maximum: int = Field(ge=1, le=100_000, description="most workers")


class Security(Section):
    """TLS: one certificate for every process of the job."""

    ca_file: LocalPath = Field(description="path of the authority's certificate, PEM")
    cert: LocalPath = Field(description="path of this job's certificate, PEM")
    key: LocalPath = Field(description="path of its key, PEM")


class ClusterProfile(Section):
    """A named cluster."""

    kind: str = Field(
        "local",
        description="local: worker processes on this machine; ssh; slurm: a batch job for each worker; slurm-runner: the "
        "tasks of one srun; or the dotted name of a class of distributed's kind, such as dask_jobqueue.PBSCluster",
    )
    workers: int | None = Field(
        None, ge=1, le=100_000, description="how many; null: local: one a core, others: as in options or adapt"
    )
    threads_per_worker: int = Field(1, ge=1, le=4096, description="local: threads in each process")
    adapt: Adapt | None = Field(
        None, description="start and stop workers with the load, between a minimum and a maximum"
    )
    wait: float = Field(60, gt=0, description="seconds to wait for workers, at the start and when all are lost")
    options: dict[str, Any] = Field(default_factory=dict, description="passed on to the cluster's class")

    @model_validator(mode="after")
    def _options_fit(self) -> ClusterProfile:
        kind = self.kind
        if kind not in ("local", "ssh", "slurm", "slurm-runner") and "." not in kind:
            raise ValueError(
                f"kind: got {kind!r}, expected local, ssh, slurm, slurm-runner or a dotted name of a class"
            )
        if kind == "local" and (self.options or self.adapt):
            raise ValueError("local: takes workers and threads_per_worker; leave options and adapt out")
        if kind != "local" and "threads_per_worker" in self.model_fields_set:
            raise ValueError(f"threads_per_worker: is for kind local; say it in the options of {kind}")
        if kind in ("ssh", "slurm-runner") and (self.workers or self.adapt):
            how = "hosts in its options" if kind == "ssh" else "srun"
            raise ValueError(f"workers: {kind} has as many as {how} says; leave workers and adapt out")
        if self.workers and self.adapt:
            raise ValueError("workers, adapt: a fixed number or a range; leave one out")
        return self


class EngineSection(Section):
    """Where to compute; nothing here changes a bit of the result."""

    scheduler: str = Field("threads", description="threads (in this process), or the name of a profile (local)")
    scheduler_address: str | None = Field(None, description="address of a running dask scheduler")
    scheduler_file: LocalPath | None = Field(None, description="scheduler file of a running dask scheduler")
    profiles: dict[str, ClusterProfile] = Field(
        default_factory=dict, description="clusters by name, beside those of the user's own file (docs/clusters.md)"
    )
    security: Security | None = Field(None, description="TLS among driver, scheduler and workers; null: none")
    workers: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = Field(
        "auto", description="threads or processes; auto: one a core"
    )
    memory: Annotated[
        int | Literal["auto"], BeforeValidator(parse_bytes), AlsoWritten({"type": "string", "pattern": SIZE})
    ] = Field("auto", description="bytes that the job may use on this machine, such as 4GiB; auto: 60% of what is free")

    keep_decoded: bool = Field(
        False, description="cache decoded chunks between passes, as far as memory allows; threads only"
    )

    @model_validator(mode="after")
    def _caches_on_threads_only(self) -> EngineSection:
        if self.keep_decoded and (self.scheduler_address or self.scheduler_file or self.scheduler != "threads"):
            raise ValueError("keep_decoded: only threads share a cache; use scheduler: threads, or leave it false")
        return self

    @model_validator(mode="after")
    def _one_place(self) -> EngineSection:
        places = [self.scheduler_address, self.scheduler_file, None if self.scheduler == "threads" else self.scheduler]
        if sum(value is not None for value in places) > 1:
            names = ", ".join(repr(value) for value in places if value is not None)
            raise ValueError(f"{names}: give one of scheduler_address, scheduler_file and a scheduler by profile")
        return self
