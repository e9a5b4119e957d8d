"""A specification with every default filled in, its fields checked against each other."""

from fedjax_post.study import build, hosting, methods, objectives, pace, private, prompts, wires
from fedjax_post.study.spec import Spec


def resolve(spec: Spec) -> Spec:
    """Returns what an experiment stands for: no field is left to depend on another one.

    Reads no file and loads no model, so that a mistake is refused at once; what only the data or
    the model can tell is checked by `study.prepare`. Resolving twice changes nothing.

    Raises:
      ValueError: for fields that do not go together, naming them and the remedy.
    """
    for check in (
        build.check,
        pace.check,
        wires.check,
        prompts.check,
        private.check,
        hosting.check,
    ):
        check(spec)
    for fill in (objectives.filled, hosting.filled, methods.filled):
        spec = fill(spec)
    objectives.check(spec)
    return spec
