"""Trainable trees as plain data."""
