"""What a fitted model is used for: each command that takes a run, and rows, is one module."""
