"""Compiled tile kernels: arithmetic only, no knowledge of models."""
