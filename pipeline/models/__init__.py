"""Models: parameters, sufficient statistics, E-steps and M-steps. No Dask, no files, no screens."""
