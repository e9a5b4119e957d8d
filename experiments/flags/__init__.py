"""Command lines: flags made from the fields of an experiment, and how they are read."""

from fedjax_post.experiments.flags.parse import CommandLine, changes_in, define_launch, parse
from fedjax_post.experiments.flags.wording import in_flags
