"""Serves a model as a provider does: over HTTP in the OpenAI format, on its own terms.

    python -m experiments.serve_provider --model=builtin --port=8080 --log=provider.jsonl
    curl http://127.0.0.1:8080/v1/completions \\
        -d '{"model": "builtin", "prompt": "sort: pear fig\\n", "max_tokens": 8}'

Terms that a provider may set and change: prices, a limit on requests, latency, which clients and
prompts it refuses, another model after some number of requests, and a shutdown. Answers are
greedy. It takes files of rows and fine-tunes the model on them (/v1/files, /v1/fine_tuning/jobs).
Ctrl-C stops the server. In a notebook: `fedjax_post.provider.offer.make_provider`.
"""

import contextlib
import signal
import sys
from collections.abc import Sequence

from absl import flags

from fedjax_post.experiments import endings, process
from fedjax_post.experiments.flags import provider as provider_flags
from fedjax_post.provider.offer import make_provider
from fedjax_post.provider.serving import prepare


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program until it is interrupted; returns 0, or 2 for bad input."""
    values = provider_flags.define()
    try:
        rest = values(list(sys.argv if argv is None else argv))[1:]
        if rest:
            raise flags.Error(f"{rest[0]!r} is not a flag; write --name=value")
        if values.help:
            print(__doc__, values.get_help(), sep="\n")
            return 0
        process.prepare()
        settings = provider_flags.settings_of(values)
        provider = make_provider(provider_flags.offer_of(values), settings)
        server, listener, url = prepare(provider, host=values.host, port=values.port)
    except flags.Error as error:
        return endings.refuse(ValueError(f"{error}; --help lists the flags"))
    except endings.REFUSED as error:
        return endings.refuse(error)
    name = provider.served.name
    body = f'{{"model": "{name}", "prompt": "sort: pear fig\\n", "max_tokens": 8}}'
    print(f"{name} is served at --provider_url={url} --provider_model={name}", flush=True)
    print(f"try: curl {url}/completions -d '{body}'", "Ctrl-C stops it", sep="\n", flush=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as before this program's imports
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    provider.close()
    log = f"; the log: {values.log}" if values.log else ""
    print(f"\n{provider.num_answered} requests were answered{log}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
