"""Adapters: trainable parameters as plain trees, and functions of them."""
