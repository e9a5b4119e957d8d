"""Tables, plots and pages, made only from record files; does not import jax."""

from fedjax_post.report.runs import write
