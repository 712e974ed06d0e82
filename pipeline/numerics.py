"""The version of the arithmetic."""

NUMERICS = 28
"""Raised when the bits of results change on purpose; a run of another value cannot be resumed."""
