"""The laws run as a job does: with one BLAS thread (more would change bits, and crowd two cores)."""

from collections.abc import Iterator

import pytest

from pipeline.engine.blas import single_thread


@pytest.fixture(autouse=True, scope="session")
def one_blas_thread() -> Iterator[None]:
    """One thread for BLAS and OpenMP, for all laws."""
    import sklearn.cluster  # noqa: F401  its OpenMP must be loaded to be limited

    with single_thread():
        yield
