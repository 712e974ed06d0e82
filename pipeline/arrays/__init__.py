"""Rows, lists of rows, sums and their storage: what every part shares, without a word of models or files."""
