"""Execution of passes: Dask graphs, clusters, BLAS threads and memory."""
