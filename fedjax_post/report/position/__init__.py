"""The position report: the claims of arXiv:2505.23593, and what a ladder measured on them.

Example:
  from fedjax_post.report import position
  print(position.write("runs/ladder"))
"""

from fedjax_post.report.position.ladder import read_ladder
from fedjax_post.report.position.report import write
