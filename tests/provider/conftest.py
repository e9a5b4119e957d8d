"""A provider of the built-in model, and clients of it by the official library."""

import openai
import pytest

from fedjax_post.provider.served import load_served
from fedjax_post.provider.service import Provider, Settings
from fedjax_post.provider.serving import serve


@pytest.fixture(scope="module")
def served():
    return load_served("builtin")


@pytest.fixture(scope="module")
def asked(served):
    """Clients of a provider with given settings, by the official library."""
    open_servers = []

    def start(successor=None, **settings):
        server = serve(Provider(served, Settings(**settings), successor=successor))
        open_servers.append(server)
        return openai.OpenAI(base_url=server.__enter__(), api_key="key", max_retries=0)

    yield start
    for server in open_servers:
        server.__exit__(None, None, None)


@pytest.fixture(scope="module")
def plain(asked):
    return asked(price_prompt=3.0, price_completion=5.0, max_logprobs=4)
