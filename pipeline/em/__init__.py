"""The loop: what to do between passes. Knows no Dask, no files and no screens."""
