"""Fills in every default of a specification, and checks its fields against each other."""

from fedjax_post.study import (
    build,
    canary_clients,
    hostile,
    hosting,
    methods,
    objectives,
    pace,
    patience,
    precision,
    private_checks,
    prompts,
    recordings,
    secure,
    watching,
    wires,
)
from fedjax_post.study.spec import Spec


def resolve(spec: Spec) -> Spec:
    """Returns the experiment with defaults that depend on other fields filled in.

    Reads no data, and of the model at most the headers of its files, so mistakes are found at
    once. Checks that need the data or the model are left to `study.prepare`. Resolving twice
    changes nothing.

    Raises:
      ValueError: for fields that do not go together, naming them and the remedy.

    >>> from fedjax_post.study.learning import Method
    >>> spec = resolve(Spec(method=Method("fed_avg")))
    >>> spec.method.client_optimizer, spec.method.client_lr, spec.training.local_steps
    ('sgd', 0.5, 5)
    """
    for check in (
        build.check,
        pace.check,
        wires.check,
        prompts.check,
        private_checks.check,
        canary_clients.check,
        secure.check,
        recordings.check,
        hostile.check,
        hosting.check,
        patience.check,
        watching.check,
    ):
        check(spec)
    for fill in (objectives.fill_defaults, hosting.fill_defaults, methods.fill_defaults):
        spec = fill(spec)
    objectives.check(spec)
    return precision.fill_default(spec)
