"""Gradient-free search methods, which use only the values of a function."""
