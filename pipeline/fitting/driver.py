"""The driver of a fit: profile, starts, iterations, choice.

    config, chunks → plan → profile (one pass) → starts → [E-step per chunk → tree sum → M-step]* → choice among candidates

The command, the Python classes and `check` use the same steps, with different sinks and chunks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.data.chunks import Chunks
from pipeline.data.earlier import Earlier
from pipeline.data.profile import DataSummary, Profile, summary_of, with_box
from pipeline.data.sample import Sample
from pipeline.data.user_start import UserStart
from pipeline.em.accumulate import method_of
from pipeline.em.choice import Choice, best_run, choose
from pipeline.em.heldout import HeldOutRows, SumJobs, Units, without
from pipeline.em.loop import Event, em
from pipeline.em.pruning import most_pruning_reads, pruned
from pipeline.em.run import Run
from pipeline.em.search import EFFORT, Level, Search, begins_from_centers, most_reads, searched
from pipeline.em.stopping import Limits
from pipeline.engine.memory import cores
from pipeline.engine.memory_rows import MemoryRows
from pipeline.engine.passes import Engine
from pipeline.engine.stored_sums import PROGRESS_SECONDS
from pipeline.fitting.plan import JobPlan, moves_of, refuse_negative, warnings_of
from pipeline.fitting.sink import Sink
from pipeline.jobconfig import Config
from pipeline.models.base import Attachment, EStep, LatentModel
from pipeline.models.books import Quantizer
from pipeline.models.clusters import BestRows, ClusterModel, WorstRows
from pipeline.models.mixture import Mixture
from pipeline.models.overlap import OverlapOfRows
from pipeline.models.separation import BY_SEPARATION, SeparationOfRows
from pipeline.models.starts import Starting, in_step, starting

OUTLIERS = 10  # rows that fit worst, for the report
SEED_STEP = 1_000_003  # from the seed of one restart's search to that of the next


@dataclass(frozen=True)
class Driver:
    """A fit and its parts."""

    config: Config
    chunks: Chunks
    engine: Engine
    plan: JobPlan
    sink: Sink

    def sums(self, refit: bool = False) -> SumJobs:
        """Return the function that sums jobs in one pass: over the rows that are not held out, or for a refit over all."""
        share, seed = self.config.select.heldout, self.config.fit.random_state
        return without(None if refit else Units.of(self.chunks.source, share, seed), self._sum)

    def _sum(self, jobs: Sequence[Any], ids: Sequence[int] | None = None) -> list[Any]:
        unfinished = self.sink.unfinished(self.chunks, jobs, ids)
        return self.engine.sum_over(self.chunks, jobs, ids, unfinished, self.sink.progress)

    def profiled(self, earlier: Earlier | None = None) -> tuple[Driver, DataSummary, Sample | None]:
        """Make the profiling pass; return the driver with fitted preprocessing, the statistics, and rows for the search.

        earlier : what is taken over from an earlier run.

        Raises
        ------
        InputError
            For rows that cannot be fitted, such as NaN or negative counts.
        """
        config, chunks = self.config, self.chunks
        if (unprotected := chunks.source.unprotected()) is not None:
            advice = "Write it with ZstdCodec(checksum=True)."
            message = f"{unprotected}: stored without checksums, so that damage may go unnoticed. {advice}"
            self.sink.log("warning", message=message)
        for text in chunks.source.notes():
            self.sink.log("warning", message=text)
        began = time.perf_counter()
        profile: Profile
        profile, *sampled = self.sums()([self.plan.profile_job(), *self.plan.sampling()])
        seconds = time.perf_counter() - began
        self.sink.log("profile", rows=profile.n_rows, seconds=seconds, bytes_read=chunks.pass_bytes())
        profile.check(config.data.bad_rows)
        refuse_negative(config, profile)
        if self.sink.listens:
            for text in warnings_of(config, profile):
                self.sink.log("warning", message=text)
        summary = summary_of(profile, config.preprocess, earlier, chunks.source)
        driver = self.after_profile(summary)
        if config.model.needs_box:
            summary = with_box(summary, driver.sums())
        return driver, summary, sampled[0] if sampled else None

    def after_profile(self, summary: DataSummary) -> Driver:
        """Return the driver with the preprocessing of a profile."""
        return replace(self, chunks=self.chunks.after_profile(summary.affine, summary.n_bad, summary.checksums))

    def starts(self, summary: DataSummary, user: UserStart, sample: Sample | None) -> list[Run]:
        """Return a run for each candidate and restart, with its initial parameters.

        sample : rows for the search; None to sample them now (after a job ended during its search).
        """
        fit = self.config.fit
        began = time.perf_counter()
        models = self.config.models(summary)
        if self.plan.searches and sample is None:
            (sample,) = replace(self, chunks=self.chunks.raw()).sums()(self.plan.sampling())
        if sample is not None and self._is_enough(sample):
            restarts: list[list[Any]] = [[None] * fit.n_init for _ in models]
        else:
            sample = None
            restarts = in_step(self.startings(models, summary, user), self.sums())
        runs = [
            Run(r, models[i], params, candidate=i) for i, each in enumerate(restarts) for r, params in enumerate(each)
        ]
        if sample is not None:
            runs = self._searched(summary, runs, sample)
        self.sink.log("init", method=fit.init, seconds=time.perf_counter() - began)
        return runs

    def startings(self, models: Sequence[LatentModel], summary: DataSummary, user: UserStart) -> list[Starting]:
        """Return how each candidate starts, for `in_step`."""
        fit = self.config.fit
        return [
            starting(
                model,
                fit.init,
                fit.n_init,
                fit.random_state,
                self._own(summary, i),
                self.engine.kernels,
                user.labels,
                user.arrays,
                len(summary.known) > 0,
            )
            for i, model in enumerate(models)
        ]

    def _own(self, summary: DataSummary, candidate: int) -> DataSummary:
        """The statistics that a job with this candidate alone would have."""
        return summary.with_sample(self.plan.sample_rows[candidate])

    def _is_enough(self, sample: Sample) -> bool:
        """Whether every candidate has a row for each component; with long rows, or few of positive weight, it may not."""
        largest = [candidate.model.largest for candidate in self.config.candidates()]
        return all(sample.below(self.plan.search_share(i)) >= k for i, k in enumerate(largest))

    def _searched(self, summary: DataSummary, runs: list[Run], sample: Sample) -> list[Run]:
        """The runs with searched parameters, each on the rows that it would use alone."""
        fit, found = self.config.fit, []
        with ThreadPoolExecutor(min(self.engine.workers, cores())) as threads:
            x, weight, label = sample.rows(summary.affine)
            rows = MemoryRows(x, weight, threads, self.engine.kernels, label, summary.known)
            for run in runs:
                own = rows.head(sample.below(self.plan.search_share(run.candidate)))
                found.append(self._found(summary, run, own, fit.random_state + SEED_STEP * run.restart))
        return found

    def _found(self, summary: DataSummary, run: Run, rows: MemoryRows, seed: int) -> Run:
        """One run with searched parameters."""
        model, levels = run.model, []
        assert isinstance(model, ClusterModel | Quantizer)

        def progress(level: Level) -> None:
            levels.append(level)
            of = {"candidate": run.candidate, "restart": run.restart, "of": self.chunks.n_rows}
            self.sink.log("level", **of, **level._asdict())

        fit, effort = self.config.fit, EFFORT[self.config.fit.effort]
        init, sparse = fit.init, self.plan.sparse
        if run.restart and begins_from_centers(model, init, sparse):
            init = "random"  # K-means would find the same best centres again, and the run end in the same optimum
        moves, budget = moves_of(self.config, model, rows.n_rows)
        own, of, pruning = self._own(summary, run.candidate), self.chunks.n_rows, self.config.select.pruning
        parts = searched(model, init, sparse, rows.n_rows, effort)
        most = sum(most_reads(each, some, of, moves, part) for each, some, part in parts)
        if pruning:
            assert isinstance(model, Mixture)
            most += most_pruning_reads(model, rows.n_rows, budget)
        rows = replace(rows, after=self._telling(rows.read[0], most))
        search = Search(init, moves, seed, own, rows, of, progress, effort)
        run = replace(run, params=search(model), levels=tuple(levels))
        return self._pruned(run, rows, summary.total, budget) if pruning else run

    def _telling(self, before: int, most: float) -> Callable[[int], None]:
        """Return what reports, from time to time, the rows that a search has read, of at most so many, about."""
        told = time.monotonic()

        def tell(read: int) -> None:
            nonlocal told
            if time.monotonic() - told > PROGRESS_SECONDS:
                told = time.monotonic()
                self.sink.log("searching", rows=read - before, of=max(most, read - before))

        return tell

    def _pruned(self, run: Run, rows: MemoryRows, of: float, budget: float) -> Run:
        """The run with as many components as pruning leaves."""
        began = time.perf_counter()
        assert isinstance(run.model, Mixture)
        found = pruned(run.model, run.params, rows, of, budget)
        self.sink.log(
            "pruning",
            candidate=run.candidate,
            n_components=found.model.n_components,
            lengths=found.lengths,
            rows=rows.n_rows,
            seconds=time.perf_counter() - began,
        )
        return replace(run, model=found.model, params=found.params, lengths=tuple(found.lengths))

    def begin(self, summary: DataSummary, user: UserStart, sample: Sample | None) -> list[Run]:
        """Return the runs at their starts, saved. The profile is saved before, because a search takes as long as some passes."""
        self.sink.save(summary, [])
        runs = self.starts(summary, user, sample)
        self.sink.save(summary, runs)
        return runs

    def advance(self, summary: DataSummary, runs: list[Run], resting: Sequence[Run] = ()) -> list[Run]:
        """Run the loop to its end.

        Parameters
        ----------
        summary : DataSummary
        runs : list of Run
            Emptied: starts are not in memory beside what follows from them.
        resting : sequence of Run
            Runs that are saved together with these.
        """
        labels, read, began = {run.candidate: run.model.label for run in runs}, [0], time.perf_counter()
        now, passes = list(runs), 0
        runs.clear()
        try:
            for current, events in self.iterations(summary, now, read):
                before, now, passes = now, current, passes + 1
                self._log_pass(summary, now, time.perf_counter() - began, read[0])
                read[0] = 0
                for event in events:
                    self.sink.log(**event.facts(), name=labels[event.candidate], refit=now[0].refit)
                self.sink.passed(summary, before, now, resting)
                del before, current
                began = time.perf_counter()
        except BaseException:  # a stop, a lost cluster, a chunk that cannot be read: the passes before it are saved
            if passes:
                self.sink.interrupted(summary, now, resting)
            raise
        return now

    def iterations(
        self, summary: DataSummary, runs: Sequence[Run], read: list[int] | None = None
    ) -> Iterator[tuple[list[Run], list[Event]]]:
        """Yield what `em` yields, for the config's method. read : its first number grows by the rows read."""
        fit, refit, counter = self.config.fit, runs[0].refit, [0] if read is None else read
        method, sums = method_of(fit.method, self.chunks.source.bounds, fit.random_state), self.sums(refit)

        def evaluate(jobs: Sequence[EStep], block: int | None = None) -> list[Any]:
            counter[0] += summary.n_rows if block is None else method.block_rows[block]
            found = sums(jobs, None if block is None else method.blocks[block])
            if summary.statistics is None:
                return found
            return [summary.statistics.with_rows(each, job.params) for each, job in zip(found, jobs, strict=True)]

        final: list[Attachment] = []
        if self.sink.listens:
            final.extend(for_report(self.config, runs[0].model))
        if self.config.select.heldout and not refit:
            final.append(HeldOutRows())
        if self.config.select.criterion in BY_SEPARATION and len(self.config.model.candidates()) > 1:
            final.append(SeparationOfRows())
        limits = Limits(fit.max_iter or 0, fit.tol or 0.0, lambda: self.sink.stops)
        return em(runs, evaluate, limits, summary.n_rows, method, tuple(final))

    def finish(self, summary: DataSummary, runs: list[Run]) -> tuple[Choice, list[Run], DataSummary]:
        """Run all candidates to their ends, and fit the chosen one to all rows if some were held out, unless that is not wanted.

        Parameters
        ----------
        summary : DataSummary
        runs : list of Run
            Emptied, as by `advance`.

        Returns
        -------
        choice, chosen, summary : Choice, list of Run, DataSummary
            The choice, all restarts of the chosen candidate, and the statistics of the rows that these were fitted to.
        """
        fits, refits = [run for run in runs if not run.refit], [run for run in runs if run.refit]
        runs.clear()
        fits = self.advance(summary, fits, refits)
        choice = choose(fits, self.config.select.criterion, summary.total)
        for entry in choice.shown:
            self.sink.log("candidate", **entry)
        chosen = choice.restarts[choice.chosen]
        if self.config.select.heldout and self.config.select.refit:
            chosen = self.advance(summary, refits or [choice.refit()], fits)
            summary = replace(summary, total=summary.total + choice.table[choice.chosen]["heldout_weight"])
        return choice, chosen, summary

    def _log_pass(self, summary: DataSummary, runs: Sequence[Run], seconds: float, rows: int) -> None:
        if not self.sink.listens:
            return
        best = best_run(runs)
        self.sink.log(
            "pass",
            iteration=max(0, max(len(run.history) for run in runs) - 1),
            final=all(run.final is not None for run in runs),
            seconds=seconds,
            rows=rows,
            bytes_read=self.chunks.pass_bytes() * rows // summary.n_rows,
            workers=self.engine.workers,
            restarts=len(runs),
            running=sum(run.stop_reason is None for run in runs),
            refit=best.refit,
            stop_reason=best.stop_reason,
            max_iter=self.config.fit.max_iter,
            implementations=best.model.implementations(best.params, self.chunks.source.dtype, self.engine.kernels),
            **best.model.figures(best.params),
            **_figures(best, best.history[-1].weight if best.history else summary.total),
        )


def for_report(config: Config, model: LatentModel) -> list[Attachment]:
    """Return what the last E-step of a run collects for the report."""
    found: list[Attachment] = [BestRows() if model.represents else WorstRows(OUTLIERS)]
    return [*found, OverlapOfRows()] if config.output.overlap else found


def _figures(run: Run, total: float) -> dict[str, float | None]:
    """Figures of a pass's best run for its event, None if unknown. total : sum of the rows' weights."""
    if not run.model.has_bound:
        name, value = run.model.words.series, run.model.words.sign * run.objective
    elif np.isnan(run.log_likelihood):  # between blocks that had different parameters, or of an approximate E-step
        name, value = "free_energy", run.bound
    else:
        name, value = run.model.words.series, run.log_likelihood
    known = {name: value, f"{name}_per_row": value / total}
    if run.history:
        known |= {
            name: getattr(run.history[-1], name)
            for name in ("fisher_norm", "rate", "remaining_gain", "computed", "left_out")
        }
    return {name: value if np.isfinite(value) else None for name, value in known.items()}
