"""The position report: the claims of arXiv:2505.23593, and what a ladder measured on them.

Example:
  from fedjax_post.report import position
  print(position.write("runs/ladder"))
  print(position.over_tasks(["runs/ladder", "runs/other_task"], "runs/over_tasks"))
"""

from fedjax_post.report.position.ladder import read_ladder
from fedjax_post.report.position.report import write
from fedjax_post.report.position.tasks import over_tasks
