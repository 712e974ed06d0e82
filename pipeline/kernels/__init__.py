"""The arithmetic of passes over rows: a protocol (base.py), and its implementation for CPUs (cpu.py). Knows no models."""
