"""An experiment as data, and the operations on it: run, score, export, compare.

Example:
  from fedjax_post import study
  job = study.prepare(study.Spec(method="fed_adam", training=study.Training(rounds=60)))
  for state, record in job.run(): ...
"""

from fedjax_post.study.algorithm_heads import About, about, cite
from fedjax_post.study.attack import Attacked, attack
from fedjax_post.study.carry_out import carry_out

# These functions replace the modules of the same name, which nothing outside this room imports.
from fedjax_post.study.compare import Comparison, compare, sweep
from fedjax_post.study.drills import drills
from fedjax_post.study.evaluate import Evaluation, evaluate
from fedjax_post.study.factories import declared_access
from fedjax_post.study.job import Job, prepare
from fedjax_post.study.ladder import ladder
from fedjax_post.study.ladder_facts import Rung
from fedjax_post.study.ladder_parts import Extras, Faults, Task
from fedjax_post.study.learning import Adapter, Data, Method, Model, Objective, Poison
from fedjax_post.study.members import Membership, membership
from fedjax_post.study.push import push
from fedjax_post.study.resolve import resolve
from fedjax_post.study.running import Execution, Hosting, Privacy, Scoring, Training
from fedjax_post.study.runs import Run, read
from fedjax_post.study.seen import see, truth
from fedjax_post.study.served import Served, serve, stream
from fedjax_post.study.spec import Spec
from fedjax_post.study.tasks import TaskScores, evaluate_tasks
