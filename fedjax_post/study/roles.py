"""The models of an algorithm's roles, and the parameters that are trained."""

from collections.abc import Callable
from typing import Any

from fedjax_post.core.algorithm import Algorithm
from fedjax_post.hub.load import load_config, load_model
from fedjax_post.model.emulator import emulate
from fedjax_post.model.views import LanguageModel
from fedjax_post.study.spec import Spec

PyTree = Any
_EMULATOR = ("emulator_first", "emulator_last", "emulator_keep_every")


def check(spec: Spec, algorithm: Algorithm) -> None:
    """Checks that the models of a specification are those of the algorithm's roles.

    Raises:
      ValueError: for a model of another role, or a proxy that is missing or has another
        vocabulary; with the field and the remedy.
    """
    for name, role in (("proxy", "proxy"), *((name, "emulator") for name in _EMULATOR)):
        value = getattr(spec.model, name)
        if value is not None and role not in algorithm.access:
            raise ValueError(
                f"model.{name}={value}: method={spec.method.name} has no {role}; leave it out"
            )
    if "proxy" not in algorithm.access:
        return
    if not spec.model.proxy:
        raise ValueError(
            f"method={spec.method.name} needs `model.proxy`, a small open model of the "
            "target's vocabulary"
        )
    check_vocabulary(spec, "proxy")


def check_vocabulary(spec: Spec, field: str) -> None:
    """Checks that a second model has as many tokens as the target.

    Raises:
      ValueError: with the field and both sizes.
    """
    name = getattr(spec.model, field)
    other, size = load_config(name).vocab_size, load_config(spec.model.name).vocab_size
    if other != size:
        raise ValueError(
            f"model.{field}={name} has {other} tokens and model={spec.model.name} {size}; "
            "their logits are combined token by token, so use two models of one tokenizer"
        )


def assemble(
    spec: Spec, algorithm: Algorithm, model: LanguageModel, train: Callable
) -> tuple[Any, PyTree]:
    """Returns the model, or a model for each role, and the initial parameters.

    Args:
      spec: the experiment.
      algorithm: declares the roles.
      model: the target.
      train: model -> (model, params), for the model of the role that is trained.
    """
    if "proxy" in algorithm.access:
        proxy, params = train(load_model(spec.model.proxy or "", dtype=spec.model.dtype))
        return {"target": model, "proxy": proxy}, params
    model, params = train(model)
    if "emulator" not in algorithm.access:
        return model, params
    first, last, keep_every = (
        usual if getattr(spec.model, name) is None else getattr(spec.model, name)
        for name, usual in zip(_EMULATOR, (1, 1, 2), strict=True)
    )
    emulator = emulate(model, first=first, last=last, keep_every=keep_every)
    return {"emulator": emulator, "target": model}, emulator.ends(params)
