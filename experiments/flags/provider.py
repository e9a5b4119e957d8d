"""Flags of a provider: the models that it serves, its terms, and where it listens."""

from typing import Any

from absl import flags

from fedjax_post.hub.load import DTYPES
from fedjax_post.provider.offer import Offer, read_served_key
from fedjax_post.provider.service import Settings
from fedjax_post.provider.training import Recipe

_TEXTS = {
    "model": "a built-in model, smollm2, a Hugging Face folder, a .gguf file, or a hub name",
    "adapter": "a folder with a LoRA adapter or a prompt, merged over the model",
    "name": "what requests call the model (the last part of --model)",
    "then_model": "the model after --change_after (--model)",
    "then_adapter": "the adapter over that model",
    "host": "address to listen at; 0.0.0.0 lets other machines in",
    "api_key_env": "environment variable that holds the key to ask for; none: open to all",
    "log": "file to which every request is appended, raw, with its outcome",
    "refuse_pattern": "regular expression of prompts that are answered 400",
}
_PRICES = {
    "price_prompt": "of a million tokens of prompts",
    "price_completion": "of a million tokens of answers",
    "price_training": "of a million tokens of a fine-tuning job, in each epoch",
    "latency": "seconds that are added to every answer",
}
# name -> (least value, help)
_NUMBERS = {
    "requests_per_minute": (0, "further ones are answered 429, with Retry-After"),
    "max_bytes": (1, "of a request; larger ones are answered 413"),
    "max_logprobs": (0, "the most log-probabilities in an answer"),
    "change_after": (0, "answered requests, after which another model answers"),
    "shutdown_after": (0, "answered requests, after which all others are answered 503"),
}
_CLIENTS = "users of requests, and names of files without .jsonl, such as client-3: answered 403"


def define() -> flags.FlagValues:
    """Returns the flags, nothing parsed yet."""
    values = flags.FlagValues()
    usual = {**Settings()._asdict(), **Offer()._asdict(), "host": "127.0.0.1"}
    give: dict[str, Any] = {"flag_values": values}
    flags.DEFINE_bool("help", False, "print the flags", **give)
    for name, about in _TEXTS.items():
        flags.DEFINE_string(name, usual.get(name), about, **give)
    flags.DEFINE_enum("dtype", usual["dtype"], DTYPES, "of weights and products", **give)
    port = {"lower_bound": 0, "upper_bound": 65535, **give}
    flags.DEFINE_integer("port", 0, "port to listen at; 0: a free one, which is printed", **port)
    for name, about in _PRICES.items():
        flags.DEFINE_float(name, usual[name], about, lower_bound=0.0, **give)
    for name, (low, about) in _NUMBERS.items():
        flags.DEFINE_integer(name, usual.get(name), about, lower_bound=low, **give)
    flags.DEFINE_list("refuse_clients", [], _CLIENTS, **give)
    flags.DEFINE_bool("fine_tuning", True, "whether files and fine-tuning jobs are taken", **give)
    return values


def offer_of(values: flags.FlagValues) -> Offer:
    """Returns the models that parsed flags name."""
    given: dict[str, Any] = {name: values[name].value for name in Offer._fields}
    return Offer(**given)


def settings_of(values: flags.FlagValues) -> Settings:
    """Returns the terms that parsed flags set.

    Raises:
      ValueError: if the environment variable of the key holds none.
    """
    rate = values.requests_per_minute
    same = (*_PRICES, "log", "change_after", "shutdown_after", "max_logprobs", "max_bytes")
    given: dict[str, Any] = {name: values[name].value for name in same}
    return Settings(
        rate_limit=None if rate is None else (rate, 60.0),
        refused_clients=tuple(values.refuse_clients),
        refused_pattern=values.refuse_pattern,
        api_key=read_served_key(values.api_key_env),
        recipe=Recipe() if values.fine_tuning else None,
        **given,
    )
