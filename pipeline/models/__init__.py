"""Models: parameters, sufficient statistics, E-steps and M-steps; independent of Dask, files and terminals."""
