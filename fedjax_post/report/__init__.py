"""Tables and pictures, made from record files and nothing else; imports no jax."""
