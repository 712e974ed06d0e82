"""The commands that use a fitted model for more than labels: thin, and added to those of `pipeline.cli`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import shown_path

Set = Annotated[list[str] | None, typer.Option("--set", help="section.key=value, in place of the config's; repeatable")]
Output = Annotated[str | None, typer.Option("--output", help="directory to write to")]
Address = Annotated[str | None, typer.Option("--scheduler-address", help="a running dask scheduler, tcp://host:8786")]
File = Annotated[Path | None, typer.Option("--scheduler-file", help="scheduler file of a running dask scheduler")]
ProfileName = Annotated[str | None, typer.Option("--profile", help="a profile by name, such as local")]
EngineFile = Annotated[
    Path | None, typer.Option("--engine", help="a config of yours, whose section engine says where to compute")
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="a run directory")]
Seed = Annotated[int, typer.Option("--seed", help="the same number, the same draws")]


def add_uses(
    app: typer.Typer,
    changes_of: Callable[..., list[str]],
    with_progress: Callable[..., None],
    began: Callable[[], float | None],
) -> None:
    """Add the commands.

    Parameters
    ----------
    app : typer.Typer
    changes_of : callable
        Returns overrides from a run, --set, --engine, --scheduler-address, --scheduler-file and --profile.
    with_progress : callable
        Runs something that takes a listener, and shows its progress; its first parameter is the directory.
    began : callable
        Returns when the user began to wait.
    """

    @app.command("denoise")
    def denoise_command(
        run: RunPath,
        overrides: Set = None,
        output: Output = None,
        sigma: Annotated[
            float | None,
            typer.Option(
                "--sigma", help="deviation of the noise, in grey levels of which white is 255; estimated if left out"
            ),
        ] = None,
        clean: Annotated[
            Path | None, typer.Option("--clean", help="folder of the pictures without noise, to compare with")
        ] = None,
        mask: Annotated[
            Path | None,
            typer.Option("--mask", help="folder of masks, or one for all: white pixels are missing, and filled in"),
        ] = None,
        kernel: Annotated[
            Path | None, typer.Option("--kernel", help="a .npy file of what a point has become: pictures are sharpened")
        ] = None,
        scheduler_address: Address = None,
        scheduler_file: File = None,
        profile: ProfileName = None,
        engine: EngineFile = None,
    ) -> None:
        """Remove the noise of pictures, named by --set data.path=…, fill in pixels or undo a blur, by the mixture of patches of RUN."""
        changes = changes_of(run, overrides, engine, scheduler_address, scheduler_file, profile)
        from pipeline import workflow

        with_progress(
            run if output is None else output,
            lambda listener: workflow.denoise(run, changes, output, sigma, clean, [listener], began(), mask, kernel),
        )

    @app.command("sample")
    def sample_command(
        run: RunPath,
        rows: Annotated[int, typer.Option("--rows", help="how many to draw")] = 1000,
        output: Output = None,
        seed: Seed = 0,
    ) -> None:
        """Draw rows from the model of RUN; patches and pictures also onto a sheet."""
        from pipeline.applying.sampling import sample

        typer.echo(f"written: {shown_path(sample(run, rows, output, seed))}")

    @app.command("impute")
    def impute_command(
        run: RunPath,
        overrides: Set = None,
        output: Output = None,
        features: Annotated[
            list[str] | None,
            typer.Option(
                "--feature", help="a name or number from 0, computed from the others in every row; repeatable"
            ),
        ] = None,
        draws: Annotated[bool, typer.Option("--draws", help="draw from the conditional distribution")] = False,
        seed: Seed = 0,
        scheduler_address: Address = None,
        scheduler_file: File = None,
        profile: ProfileName = None,
        engine: EngineFile = None,
    ) -> None:
        """Put conditional means, or draws, in place of missing entries of rows, named by --set data.path=…, by the mixture of RUN."""
        changes = changes_of(run, overrides, engine, scheduler_address, scheduler_file, profile)
        from pipeline import workflow

        with_progress(
            run if output is None else output,
            lambda listener: workflow.impute(run, changes, output, features or (), draws, seed, [listener], began()),
        )

    @app.command("outliers")
    def outliers_command(
        run: RunPath,
        overrides: Set = None,
        output: Output = None,
        rate: Annotated[float, typer.Option("--rate", help="of false alarms, between 0 and 1")] = 0.01,
        by_component: Annotated[
            bool, typer.Option("--by-component", help="compare a row with the run's rows of its label, not with all")
        ] = False,
        calibration: Annotated[
            Path | None,
            typer.Option(
                "--calibration", help="a prediction of RUN for other rows, to compare with in place of its own"
            ),
        ] = None,
        scheduler_address: Address = None,
        scheduler_file: File = None,
        profile: ProfileName = None,
        engine: EngineFile = None,
    ) -> None:
        """Flag rows, named by --set data.path=…, that fit worse than nearly all rows of RUN, with p-values and labels."""
        changes = changes_of(run, overrides, engine, scheduler_address, scheduler_file, profile)
        from pipeline import workflow

        with_progress(
            run if output is None else output,
            lambda listener: workflow.outliers(
                run, changes, output, rate, by_component, [listener], began(), calibration
            ),
        )

    @app.command("encode")
    def encode_command(
        run: RunPath,
        code: Annotated[
            str, typer.Option("--as", help="of rows: hard, soft, triangle, distances; of units: words, vlad, fisher")
        ],
        overrides: Set = None,
        output: Output = None,
        pool: Annotated[
            str | None, typer.Option("--pool", help="sum, mean or max of a code of rows over each unit")
        ] = None,
        grid: Annotated[
            list[int] | None,
            typer.Option("--grid", help="cut pictures into so many cells down and across; repeatable, for a pyramid"),
        ] = None,
        units: Annotated[
            str | None,
            typer.Option("--units", help="a column with the number of each row's unit; pictures are units without it"),
        ] = None,
        form: Annotated[str, typer.Option("--format", help="zarr; parquet or csv: also a table")] = "zarr",
        scheduler_address: Address = None,
        scheduler_file: File = None,
        profile: ProfileName = None,
        engine: EngineFile = None,
    ) -> None:
        """Write rows, named by --set data.path=…, or units such as pictures, as features by the components of RUN."""
        changes = changes_of(run, overrides, engine, scheduler_address, scheduler_file, profile)
        from pipeline import workflow

        with_progress(
            run if output is None else output,
            lambda listener: workflow.encode(
                run, code, changes, output, pool, grid or (1,), units, form, [listener], began()
            ),
        )

    @app.command("summarize")
    def summarize_command(
        run: RunPath,
        output: Output = None,
        per_cluster: Annotated[int, typer.Option("--per-cluster", help="rows of each label in the sample")] = 100,
        nearest: Annotated[int, typer.Option("--nearest", help="rows that stand for each component")] = 5,
        seed: Seed = 0,
        overrides: Set = None,
        form: Annotated[
            str, typer.Option("--format", help="zarr; parquet or csv: also the sample as a table")
        ] = "zarr",
        scheduler_address: Address = None,
        scheduler_file: File = None,
        profile: ProfileName = None,
        engine: EngineFile = None,
    ) -> None:
        """Write sizes, the rows nearest to each component of RUN, and as many rows of each, in one read of its rows."""
        changes = changes_of(run, overrides, engine, scheduler_address, scheduler_file, profile)
        from pipeline import workflow

        with_progress(
            run if output is None else output,
            lambda listener: workflow.summarize(
                run, output, per_cluster, nearest, seed, changes, form, [listener], began()
            ),
        )

    @app.command("compress")
    def compress_command(
        run: RunPath,
        overrides: Set = None,
        output: Output = None,
        scheduler_address: Address = None,
        scheduler_file: File = None,
        profile: ProfileName = None,
        engine: EngineFile = None,
    ) -> None:
        """Write rows or pictures, named by --set data.path=…, as numbers of the centres of RUN, in as few bits as they need."""
        changes = changes_of(run, overrides, engine, scheduler_address, scheduler_file, profile)
        from pipeline import workflow

        with_progress(
            run if output is None else output,
            lambda listener: workflow.compress(run, changes, output, [listener], began()),
        )

    @app.command("decompress")
    def decompress_command(
        codes: Annotated[Path, typer.Argument(metavar="CODES", help="a directory that `compress` wrote")],
        output: Output = None,
        overrides: Set = None,
        original: Annotated[
            Path | None,
            typer.Option("--original", help="folder of the pictures that were compressed, to compare with"),
        ] = None,
        scheduler_address: Address = None,
        scheduler_file: File = None,
        profile: ProfileName = None,
        engine: EngineFile = None,
    ) -> None:
        """Restore the rows or pictures of CODES, without the run and its data."""
        changes = changes_of(codes, overrides, engine, scheduler_address, scheduler_file, profile)
        from pipeline import workflow

        with_progress(
            codes if output is None else output,
            lambda listener: workflow.decompress(codes, changes, output, [listener], began(), original),
        )
