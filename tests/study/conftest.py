"""Tiny files for experiments."""

from tiny_files import private_cache, tiny_flags, tiny_folder, tiny_rows
