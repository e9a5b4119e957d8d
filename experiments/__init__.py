"""Programs: each parses flags and calls the library once."""
