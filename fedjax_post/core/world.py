"""What a program gives to an algorithm's factory, declared by the annotations of its arguments.

    def my_algorithm(loss_fn: LossFn, client_tx: ClientTx, *, keep: float = 0.3) -> Algorithm:

An argument is given what its annotation stands for, whatever it is called; each other one is a
hyper-parameter of the algorithm's own, and a flag of the command line. In a notebook or a script
the annotations mean nothing: they are the types of what you pass yourself.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple, get_args

import jax
import optax

from fedjax_post.core.algorithm import ClientData, Metrics, PyTree


class Given(NamedTuple):
    """The mark of an annotation: what an argument is given."""

    name: str  # of the annotation
    meaning: str


# (params, model, batch, key) -> (loss, metrics): the mean loss of one batch
LossFn = Annotated[
    Callable[[PyTree, PyTree, PyTree, jax.Array], tuple[jax.Array, Metrics]],
    Given("LossFn", "the loss, `(params, model, batch, key) -> (loss, metrics)`"),
]
ClientTx = Annotated[
    optax.GradientTransformation, Given("ClientTx", "the optimizer of local training")
]
LearningRate = Annotated[
    float | Callable,
    Given("LearningRate", "the local step size, or a function from the round to it"),
]
ServerTx = Annotated[
    optax.GradientTransformation, Given("ServerTx", "the server's optimizer, its step size in it")
]
ServerLr = Annotated[float, Given("ServerLr", "the server's step size")]
WeighFn = Annotated[
    Callable[[ClientData], jax.Array],
    Given("WeighFn", "`(ClientData) -> ()`, how much a client counts"),
]
Participation = Annotated[float, Given("Participation", "cohort size over population size")]
Candidates = Annotated[
    jax.Array, Given("Candidates", "int32 [N], tokens that a search may put into a prompt")
]
Embeddings = Annotated[
    jax.Array, Given("Embeddings", "float [V, D], of an open model of the same vocabulary")
]
Separator = Annotated[jax.Array, Given("Separator", "int32 (), the token of a line break")]
Specials = Annotated[jax.Array, Given("Specials", "int32 [D], the tokenizer's special tokens")]
VocabSize = Annotated[int, Given("VocabSize", "how many tokens the tokenizer has")]

ANNOTATIONS: tuple[Any, ...] = (
    *(LossFn, ClientTx, LearningRate, ServerTx, ServerLr, WeighFn, Participation),
    *(Candidates, Embeddings, Separator, Specials, VocabSize),
)


def needs(factory: Callable) -> dict[str, Given]:
    """Returns what each argument of a factory is given, for those that are annotated so."""
    marks = {name: given_by(p.annotation) for name, p in parameters_of(factory).items()}
    return {name: mark for name, mark in marks.items() if mark is not None}


def parameters_of(factory: Callable) -> Mapping[str, inspect.Parameter]:
    """Returns a factory's parameters, annotations that are text read where that can be done."""
    try:
        return inspect.signature(factory, eval_str=True).parameters
    except (NameError, SyntaxError):  # text that names what is imported for type checkers alone
        return inspect.signature(factory).parameters


def given_by(annotation: Any) -> Given | None:
    """Returns the mark of an annotation, alone or in a union such as `ServerTx | None`."""
    for mark in getattr(annotation, "__metadata__", ()):
        if isinstance(mark, Given):
            return mark
    return next((mark for part in get_args(annotation) if (mark := given_by(part))), None)
