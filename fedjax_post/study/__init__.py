"""An experiment as data, and what is done with one; see `spec` and `job`."""
