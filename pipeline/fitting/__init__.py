"""The one driver of a fit: for the command, the Python classes and `check`."""
