"""An experiment as data, and what is done with one.

    from fedjax_post import study
    job = study.prepare(study.Spec(method="fed_adam", training=study.Training(rounds=60)))
    for state, record in job.run(): ...
"""

from fedjax_post.study.carry_out import carry_out
from fedjax_post.study.job import Job, prepare
from fedjax_post.study.learning import Adapter, Data, Method, Model, Objective
from fedjax_post.study.resolve import resolve
from fedjax_post.study.running import Execution, Hosting, Privacy, Scoring, Training
from fedjax_post.study.spec import Spec
