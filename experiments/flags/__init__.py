"""Command lines: flags made from the fields of an experiment, and what they say."""

from fedjax_post.experiments.flags.parse import CommandLine, changes_in, define_launch, parse
from fedjax_post.experiments.flags.wording import in_flags
