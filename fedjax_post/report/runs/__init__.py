"""A page about runs: curves, costs, who holds what, scores by client, privacy, and origin."""

from fedjax_post.report.runs.page import write
