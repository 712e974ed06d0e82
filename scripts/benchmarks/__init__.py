"""The project's performance targets as runnable groups; `scripts/benchmark.py` is the command."""
