"""Where passes run: Dask graphs, clusters, BLAS threads and memory."""
