"""Programs: they parse flags, build and call; what they call is the library."""
