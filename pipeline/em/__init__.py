"""The EM loop and what it needs between passes; independent of Dask, files and terminals."""
