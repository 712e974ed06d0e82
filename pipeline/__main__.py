"""`python -m pipeline` is the command `em-pipeline`."""

from pipeline.cli import main

main()
