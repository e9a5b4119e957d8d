"""The inputs that a program supplies to an algorithm's factory, declared by annotations.

    def my_algorithm(loss_fn: LossFn, client_tx: ClientTx, *, keep: float = 0.3) -> Algorithm:

An argument with one of these annotations receives the corresponding input, whatever its name is.
Every other argument is a hyper-parameter of the algorithm and becomes a flag of the command line.
In a notebook or a script, where you pass the arguments yourself, the annotations are only types.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple, get_args

import jax
import optax

from fedjax_post.core.algorithm import ClientData, Metrics, PyTree


class Given(NamedTuple):
    """The mark on an annotation that states which input an argument receives."""

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
ServerLr = Annotated[
    float | Callable,
    Given("ServerLr", "the server's step size, or a function from the count of its steps to it"),
]
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
NumClients = Annotated[int, Given("NumClients", "how many clients the federation has")]
VocabSize = Annotated[int, Given("VocabSize", "how many tokens the tokenizer has")]

ANNOTATIONS: tuple[Any, ...] = (
    *(LossFn, ClientTx, LearningRate, ServerTx, ServerLr, WeighFn, Participation),
    *(Candidates, Embeddings, Separator, Specials, VocabSize, NumClients),
)


def needs(factory: Callable) -> dict[str, Given]:
    """Returns the inputs that a factory asks for, by argument name.

    Arguments without one of `ANNOTATIONS` are left out.

    >>> from fedjax_post.core.world import ClientTx, LossFn, needs
    >>> def my_algorithm(loss_fn: LossFn, client_tx: ClientTx, *, keep: float = 0.3): ...
    >>> for argument, given in needs(my_algorithm).items():
    ...     print(argument, "<-", given.meaning)
    loss_fn <- the loss, `(params, model, batch, key) -> (loss, metrics)`
    client_tx <- the optimizer of local training
    """
    marks = {name: given_by(p.annotation) for name, p in parameters_of(factory).items()}
    return {name: mark for name, mark in marks.items() if mark is not None}


def parameters_of(factory: Callable) -> Mapping[str, inspect.Parameter]:
    """Returns a factory's parameters, with annotations that are strings evaluated if possible."""
    try:
        return inspect.signature(factory, eval_str=True).parameters
    except (
        NameError,
        SyntaxError,
    ):  # uses a name that only type checkers import
        return inspect.signature(factory).parameters


def given_by(annotation: Any) -> Given | None:
    """Returns the mark of an annotation, also in a union such as `ServerTx | None`."""
    for mark in getattr(annotation, "__metadata__", ()):
        if isinstance(mark, Given):
            return mark
    return next((mark for part in get_args(annotation) if (mark := given_by(part))), None)
