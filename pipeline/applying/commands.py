"""What finishes a directory that a command began, by the command: `em-pipeline resume` looks it up."""

from collections.abc import Callable
from pathlib import Path

from pipeline.applying.compressing import finish_compressing
from pipeline.applying.decompressing import finish_decompressing
from pipeline.applying.denoising import finish_denoising
from pipeline.applying.encoding import finish_encoding
from pipeline.applying.imputing import finish_imputing
from pipeline.applying.outliers import finish_outliers
from pipeline.applying.sampling import finish_sampling
from pipeline.applying.summarizing import finish_summary

FINISHED: dict[str, Callable[..., Path]] = {
    "compress": finish_compressing,
    "decompress": finish_decompressing,
    "denoise": finish_denoising,
    "encode": finish_encoding,
    "impute": finish_imputing,
    "outliers": finish_outliers,
    "sample": finish_sampling,
    "summarize": finish_summary,
}
