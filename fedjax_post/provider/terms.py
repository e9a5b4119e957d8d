"""The terms of queries to a provider: time limits, retries, prices and budgets.

A budget is computed from the client's own counts and the given prices. A provider's bill can only
increase it: the larger of the two counts is used, and an invalid bill is ignored.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from fedjax_post.core.access import Access, spoken
from fedjax_post.provider.codec import encode_after, encode_prompt
from fedjax_post.provider.replies import Bill, Reply
from fedjax_post.provider.requests import Query

_CHAT = 16  # upper estimate of the tokens that a chat template adds to a message


class Terms(NamedTuple):
    """The terms of queries to a provider.

    >>> Terms(max_queries=100, max_retries=0).style
    'completions'
    """

    style: str = "completions"  # or "chat": one prompt per request, as a user's message
    max_queries: int | None = None  # in the whole run, including repeated calls and resumptions
    max_cost: float | None = None  # in the currency of the prices; needs prices
    price_prompt: float | None = None  # for a million tokens; None: unknown
    price_completion: float | None = None  # for a million tokens; None: unknown
    price_training: float | None = None  # for a million tokens, in each epoch; None: unknown
    max_retries: int = 2  # of calls that cannot have been paid
    timeout: float = 60.0  # seconds of a whole call, from the connection to the last byte
    top_logprobs: int = 20  # requested; vLLM allows 20, OpenAI 5 (completions) and 20 (chats)
    on_failure: str = "stop"  # or "drop": continue without the client
    ask_again: bool = False  # repeat calls that a killed process had in progress, see `Journal`
    name_clients: bool = True  # send `user=client-<id>`, as if each client had an account
    tuning_seed: int = 0  # of fine-tuning jobs
    max_wait: float = 86400.0  # seconds that a fine-tuning job may take


def check_terms(terms: Terms, *, access: Access) -> None:
    """Checks terms.

    Raises:
      ValueError: naming the field, its value and the remedy.
    """
    if access & ~(Access.EMBEDDINGS | Access.FINETUNE):
        raise ValueError(
            f"a hosted model grants at most EMBEDDINGS and FINETUNE, not {spoken(access)}"
        )
    if Access.EMBED in access and terms.style == "chat":
        raise ValueError(
            f"{spoken(access)} needs soft prompts, which chats cannot carry; give style=completions"
        )
    for name, allowed in {"style": ("completions", "chat"), "on_failure": ("stop", "drop")}.items():
        if getattr(terms, name) not in allowed:
            raise ValueError(f"{name} must be one of {allowed}, got {getattr(terms, name)!r}")
    least = {"max_queries": 1, "max_cost": 0, "price_prompt": 0, "price_completion": 0,
             "max_retries": 0, "timeout": 1e-3, "top_logprobs": 1, "price_training": 0,
             "tuning_seed": 0, "max_wait": 0}  # fmt: skip
    for name, low in least.items():
        value = getattr(terms, name)
        if value is not None and not low <= value < float("inf"):
            raise ValueError(f"{name} must be a number of at least {low}, got {value}")
    if (terms.price_prompt is None) != (terms.price_completion is None):
        raise ValueError("price_prompt and price_completion come together; give both or neither")
    if terms.max_cost is not None and not (terms.price_prompt or terms.price_completion):
        raise ValueError(
            f"max_cost={terms.max_cost:g} needs prices, by which costs are computed in advance; "
            "give `price`, for a million tokens"
        )


def num_prompt_tokens(query: Query, tokenizer: Any, *, style: str) -> int:
    """Returns the number of tokens of a query's prompts, by the client's tokenizer.

    Args:
      query: the content of the call.
      tokenizer: of the client.
      style: completions, or chat, which adds an estimate for its template.
    """
    around = _CHAT if style == "chat" else 0
    return sum(around + len(encode_prompt(tokenizer, text)) for text in query.texts)


def num_answer_tokens(text: str, tokenizer: Any) -> int:
    """Returns the number of tokens of an answer, with or without a space before it, if fewer."""
    alone = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return min(len(alone), len(encode_after(tokenizer, text)))


def worst_cost(query: Query, tokenizer: Any, *, terms: Terms) -> float | None:
    """Returns the maximum cost of a call by the client's count; None without prices.

    Args:
      query: the content of the call.
      tokenizer: of the client.
      terms: with the prices.
    """
    prompts = num_prompt_tokens(query, tokenizer, style=terms.style)
    return _at_price(prompts, len(query.texts) * query.max_tokens, terms)


def settle(
    bill: Bill, replies: Sequence[Reply], query: Query, *, tokenizer: Any, terms: Terms
) -> Bill:
    """Returns the bill of an answer, with each number at least the client's own.

    Args:
      bill: by the provider.
      replies: to the query.
      query: the content of the call.
      tokenizer: of the client.
      terms: with the prices.
    """
    lengths = [
        min(num_answer_tokens(text, tokenizer) + ended, query.max_tokens)
        for text, ended, _ in replies
    ]
    prompts = max(bill.prompt_tokens, num_prompt_tokens(query, tokenizer, style="completions"))
    answers = max(bill.completion_tokens, sum(lengths))
    costs = [cost for cost in (bill.cost, _at_price(prompts, answers, terms)) if cost is not None]
    return bill._replace(
        prompt_tokens=prompts, completion_tokens=answers, cost=max(costs, default=None)
    )


def _at_price(prompts: int, answers: int, terms: Terms) -> float | None:
    if terms.price_prompt is None or terms.price_completion is None:
        return None
    return (prompts * terms.price_prompt + answers * terms.price_completion) / 1e6
