"""Serves a model as a provider does: over HTTP in the OpenAI format, on its own terms.

    python -m experiments.serve_provider --model=builtin --port=8080 --log=provider.jsonl
    curl http://127.0.0.1:8080/v1/completions \\
        -d '{"model": "builtin", "prompt": "sort: pear fig\\n", "max_tokens": 8}'

Terms that a provider may set, and change: prices, a limit of requests, latency, whom and what it
refuses, another model from some request on, its end. Answers are greedy. Ctrl-C ends it.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

# transformers would announce that it found no PyTorch, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from absl import flags
from fedjax_post.experiments import endings, process

from fedjax_post.hub.load import DTYPES
from fedjax_post.provider.served import Served, load_served
from fedjax_post.provider.service import Provider, Settings
from fedjax_post.provider.serving import prepare


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program until it is interrupted; returns 0, or 2 for bad input."""
    options = _define()
    try:
        rest = options(list(sys.argv if argv is None else argv))[1:]
        if rest:
            raise flags.Error(f"{rest[0]!r} is no flag; write --name=value")
        if options.help:
            print(__doc__, options.get_help(), sep="\n")
            return 0
        process.prepare()
        provider = make_provider(options)
        server, listener, url = prepare(provider, host=options.host, port=options.port)
    except flags.Error as error:
        return endings.refuse(ValueError(f"{error}; --help lists the flags"))
    except endings.REFUSED as error:
        return endings.refuse(error)
    name = provider.served.name
    print(f"{name} is served at --provider_url={url} --provider_model={name}", flush=True)
    print(_example(url, name), "Ctrl-C ends it", sep="\n", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    where = f"; what it saw: {options.log}" if options.log else ""
    print(f"\n{provider.num_answered} requests were answered{where}")
    return 0


def make_provider(options: flags.FlagValues) -> Provider:
    """Returns the provider that the flags describe, its models loaded.

    Raises:
      ValueError: for terms that do not go together.
      FileNotFoundError: if a model, an adapter or the log's folder does not exist.
    """
    rate = options.requests_per_minute
    settings = Settings(
        price_prompt=options.price_prompt,
        price_completion=options.price_completion,
        rate_limit=None if rate is None else (rate, 60.0),
        latency=options.latency,
        log=options.log,
        refused_clients=tuple(options.refuse_clients),
        refused_pattern=options.refuse_pattern,
        change_after=options.change_after,
        shutdown_after=options.shutdown_after,
        api_key=_key(options.api_key_env),
        max_logprobs=options.max_logprobs,
        max_bytes=options.max_bytes,
    )
    changes = options.then_model is not None or options.then_adapter is not None
    if changes != (options.change_after is not None):
        raise ValueError(
            "--change_after=N and what follows, --then_model or --then_adapter, come together; "
            "give both or neither"
        )
    if options.log is not None and not Path(options.log).absolute().parent.is_dir():
        raise FileNotFoundError(f"--log={options.log}: its folder does not exist; make it first")
    if options.log is not None and Path(options.log).exists() and not Path(options.log).is_file():
        raise ValueError(f"--log={options.log} is no file; give the name of one")
    served = _load(options.model, options.adapter, options)
    served = served._replace(name=options.name or served.name)
    successor = None
    if changes:
        successor = _load(options.then_model or options.model, options.then_adapter, options)
        successor = successor._replace(name=f"{successor.name}-next")
    return Provider(served, settings, successor=successor)


def _key(name: str | None) -> str | None:
    """The key in a variable of the environment: a command line is for everybody to see."""
    if name is None:
        return None
    if not os.environ.get(name, "").strip():
        raise ValueError(f"api_key_env={name}: there is no key in that environment variable")
    return os.environ[name].strip()


def _load(model: str, adapter: str | None, options: flags.FlagValues) -> Served:
    return load_served(model, adapter=adapter, dtype=options.dtype)


def _example(url: str, name: str) -> str:
    body = f'{{"model": "{name}", "prompt": "sort: pear fig\\n", "max_tokens": 8}}'
    return f"try: curl {url}/completions -d '{body}'"


def _define() -> flags.FlagValues:
    values = flags.FlagValues()
    text, number, real = _definers(values)
    flags.DEFINE_bool("help", False, "print the flags", flag_values=values)
    text("model", "builtin-instruct", "a built-in model, a Hugging Face folder, or a hub name")
    text("adapter", None, "a folder with a LoRA adapter or a prompt, merged over the model")
    text("name", None, "what requests call the model (the last part of --model)")
    flags.DEFINE_enum("dtype", "float32", DTYPES, "of weights and products", flag_values=values)
    text("host", "127.0.0.1", "address to listen at; 0.0.0.0 lets other machines in")
    number("port", 0, "port to listen at; 0: a free one, which is printed", 0, 65535)
    text("api_key_env", None, "environment variable with the key to ask for; none: open to all")
    text("log", None, "file of every arrival, raw, and of what became of it; appended to")
    number("max_bytes", Settings().max_bytes, "of a request; larger ones are answered 413", 1)
    real("price_prompt", 0.0, "of a million tokens of prompts")
    real("price_completion", 0.0, "of a million tokens of answers")
    number("requests_per_minute", None, "further ones are answered 429, with Retry-After", 0)
    real("latency", 0.0, "seconds that every answer takes longer")
    clients = "values of the requests' `user`, such as client-3, that are answered 403"
    flags.DEFINE_list("refuse_clients", [], clients, flag_values=values)
    text("refuse_pattern", None, "regular expression of prompts that are answered 400")
    number("max_logprobs", 20, "log-probabilities that are given at most", 0)
    number("change_after", None, "answered requests, after which another model answers", 0)
    text("then_model", None, "that other model (--model)")
    text("then_adapter", None, "the adapter over it")
    number("shutdown_after", None, "answered requests, after which all others are answered 503", 0)
    return values


def _definers(values: flags.FlagValues) -> tuple[Callable, Callable, Callable]:
    def text(name, default, doc):
        flags.DEFINE_string(name, default, doc, flag_values=values)

    def number(name, default, doc, low, high=None):
        bounds = {"lower_bound": low, "upper_bound": high}
        flags.DEFINE_integer(name, default, doc, **bounds, flag_values=values)

    def real(name, default, doc):
        flags.DEFINE_float(name, default, doc, lower_bound=0.0, flag_values=values)

    return text, number, real


if __name__ == "__main__":
    sys.exit(main())
