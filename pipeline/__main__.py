"""`python -m pipeline` is the command `em-pipeline`."""

from pipeline.cli import command

command()
