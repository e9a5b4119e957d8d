"""Tables and plots, made only from record files; does not import jax."""
