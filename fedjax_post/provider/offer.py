"""A provider from its description: checked, and its models loaded."""

import os
from pathlib import Path
from typing import NamedTuple

from fedjax_post.provider.served import load_served
from fedjax_post.provider.service import Provider, Settings


class Offer(NamedTuple):
    """The models that a provider serves."""

    model: str = "builtin-instruct"  # as for `load_model`
    adapter: str | None = None  # a folder with a LoRA adapter or a prompt, merged over the model
    name: str | None = None  # that requests use; None: the last part of `model`
    dtype: str = "float32"  # of weights and products
    then_model: str | None = None  # the model after `Settings.change_after`; None: the same one
    then_adapter: str | None = None  # the adapter over that model


def make_provider(offer: Offer, settings: Settings) -> Provider:
    """Returns a provider, its models loaded.

    Raises:
      ValueError: for a change of model that is not complete, or a log that is not a file.
      FileNotFoundError: if a model, an adapter or the folder of the log does not exist.

    Example:
      >>> provider = make_provider(Offer("builtin", name="small"), Settings(price_prompt=0.5))
      >>> provider.served.name, provider.settings.price_prompt, provider.num_answered
      ('small', 0.5, 0)
    """
    changes = offer.then_model is not None or offer.then_adapter is not None
    if changes != (settings.change_after is not None):
        raise ValueError(
            "change_after=N and what follows, `then_model` or `then_adapter`, come together; "
            "give both or neither"
        )
    _check_log(settings.log)
    served = load_served(offer.model, adapter=offer.adapter, dtype=offer.dtype)
    served = served._replace(name=offer.name or served.name)
    successor = None
    if changes:
        model = offer.then_model or offer.model
        successor = load_served(model, adapter=offer.then_adapter, dtype=offer.dtype)
        successor = successor._replace(name=f"{successor.name}-next")
    return Provider(served, settings, successor=successor)


def read_served_key(api_key_env: str | None) -> str | None:
    """Returns the key in an environment variable; everybody can read a command line.

    Args:
      api_key_env: name of the variable; None: no key.

    Raises:
      ValueError: if the variable holds no key.
    """
    if api_key_env is None:
        return None
    key = os.environ.get(api_key_env, "").strip()
    if not key:
        raise ValueError(f"api_key_env={api_key_env}: there is no key in that environment variable")
    return key


def _check_log(log: str | Path | None) -> None:
    if log is None:
        return
    if not Path(log).absolute().parent.is_dir():
        raise FileNotFoundError(f"log={log}: its folder does not exist; make it first")
    if Path(log).exists() and not Path(log).is_file():
        raise ValueError(f"log={log} is not a file; give the path of a file")
