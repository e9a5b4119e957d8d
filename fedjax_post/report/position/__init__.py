"""The position report: what arXiv 2505.23593 claims, and what a ladder measured of it.

from fedjax_post.report import position
print(position.write("runs/ladder"))
"""

from fedjax_post.report.position.ladder import read_ladder
from fedjax_post.report.position.report import write
