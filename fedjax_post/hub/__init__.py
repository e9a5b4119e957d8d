"""Reads and writes Hugging Face files."""
