"""Rows, lists of rows, sums, and how they are stored; independent of models and files."""
