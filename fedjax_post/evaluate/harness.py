"""A language model as lm-eval asks one: text in, log-probabilities and text out.

What a text becomes, and what is cut, is what the harness's own Hugging Face backend
(`lm_eval.models.huggingface.HFLM`, 0.4.13) does with the same tokenizer:

| request | tokens |
| --- | --- |
| a continuation | of both as one text, cut where those of the context alone end |
| spaces at the end of a context | belong to the continuation |
| an empty context | is bos, or the end token without a bos |
| a whole text | follows the same token, in windows of the model's context |
| what is too long | loses tokens on the left |

A prompt in `params` takes its places away from the context.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fedjax_post.evaluate.continuations import (
    Continuation,
    Scored,
    continue_greedily,
    score_continuations,
)
from fedjax_post.hub.tokenizer import pad_id_of
from fedjax_post.model.views import LanguageModel

PyTree = Any
_LOG = logging.getLogger(__name__)
MAX_NEW_TOKENS = 256  # of an answer, where the task does not say
# What tasks call the length of an answer, the first of several counts
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_IDLE = ("top_p", "top_k", "min_p")  # without an effect on greedy decoding


@dataclasses.dataclass(frozen=True)
class Harness:
    """An `lm_eval.api.model.LM` by its methods; `LM.register(Harness)` makes it one by name too.

    Attributes:
      model: the frozen model.
      params: merged over the model: an adapter, a prompt, one client's own parameters.
      tokenizer: its Hugging Face tokenizer.
    """

    model: LanguageModel
    params: PyTree
    tokenizer: Any
    rank = 0
    world_size = 1

    @property
    def max_length(self) -> int:
        """Number of tokens that the model reads at most."""
        return self.model.config.max_positions - self.model.prompt_length(self.params)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context."""
        begin = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if begin is None else begin

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer."""
        return self.tokenizer.name_or_path

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Returns the tokenizer's chat template, "" if it has none or none is wanted."""
        wanted = chat_template and self.tokenizer.chat_template
        return self.tokenizer.get_chat_template() if wanted else ""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Returns turns as a text; the last one is unfinished without a `generation_prompt`."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Returns each continuation's log-probability, nats, and whether it is the greedy one.

        Args:
          requests: with `args`: context and continuation.
        """
        pairs = [self._encode_pair(*request.args) for request in requests]
        return [(log_prob, is_greedy) for log_prob, is_greedy in self._score(pairs)]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Returns each text's log-probability, nats.

        Args:
          requests: with `args`: the text.
        """
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows, owners = [], []
        for number, request in enumerate(requests):
            rolling = get_rolling_token_windows(
                self._encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            own = [Continuation(*make_disjoint_window(window)) for window in rolling]
            windows += own
            owners += [number] * len(own)
        totals = [0.0] * len(requests)
        for number, scored in zip(owners, self._score(windows), strict=True):
            totals[number] += scored.log_prob
        return totals

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Returns each context's greedy answer, up to the first text that ends it.

        Args:
          requests: with `args`: context and settings, of which `check_greedy` allows these.
        """
        groups: dict[tuple, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(_limits(request.args[1]), []).append(number)
        found: dict[int, str] = {}
        for (ends, most), numbers in groups.items():
            prompts = [self._encode_prompt(requests[i].args[0], most) for i in numbers]
            found.update(zip(numbers, self._generate(prompts, ends, most), strict=True))
        return [found[number] for number in range(len(requests))]

    def _generate(self, prompts: list[list[int]], ends: tuple[str, ...], most: int) -> list[str]:
        eos = self.tokenizer.eos_token_id
        read = lambda row: self.tokenizer.decode(row, skip_special_tokens=True)
        ends = (*(end for end in ends if end), self.tokenizer.decode(eos))
        rows = continue_greedily(
            self.model,
            self.params,
            prompts,
            max_new_tokens=most,
            is_done=lambda row: eos in row or any(end in read(row) for end in ends),
            pad_id=pad_id_of(self.tokenizer),
        )
        answers = []
        for row in rows:
            answer = read(row[: row.index(eos)] if eos in row else row)
            for end in ends:
                answer = answer.split(end)[0]
            answers.append(answer)
        return answers

    def _score(self, asked: Sequence[Continuation]) -> list[Scored]:
        room = self.max_length
        kept = []
        for context, tokens in asked:
            if not 0 < len(tokens) <= room:
                raise ValueError(
                    f"a continuation of {len(tokens)} tokens cannot be scored by a model that "
                    f"reads {room}; leave its row out"
                )
            kept.append(Continuation(context[-(room + 1 - len(tokens)) :], tokens))
        self._tell_cut(asked, kept)
        return score_continuations(self.model, self.params, kept)

    def _tell_cut(self, asked: Sequence[Any], kept: Sequence[Any]) -> None:
        cut = sum(len(a[0]) > len(b[0]) for a, b in zip(asked, kept, strict=True))
        if cut:
            _LOG.warning(
                "%d of %d contexts are longer than the model reads; their beginnings are left out",
                *(cut, len(asked)),
            )

    def _encode(self, text: str, *, special: bool | None = None) -> list[int]:
        """Returns a text's tokens, by default with what the tokenizer puts around a text."""
        if special is None and text.startswith(self.tokenizer.decode(self.prefix_token_id)):
            special = False
        given = {} if special is None else {"add_special_tokens": special}
        return self.tokenizer.encode(text, **given)

    def _encode_prompt(self, text: str, max_new_tokens: int) -> list[int]:
        room = self.max_length - max_new_tokens
        if room < 1:
            raise ValueError(
                f"the task asks for answers of up to {max_new_tokens} tokens, and the model reads "
                f"{self.max_length}; give the task a lower max_gen_toks"
            )
        begin = self.tokenizer.bos_token
        has_begin = begin is not None and text.startswith(begin)
        return self.tokenizer.encode(text, add_special_tokens=not has_begin)[-room:]

    def _encode_pair(self, context: str, continuation: str) -> Continuation:
        if not context:
            tokens = self._encode(continuation, special=False)
            if tokens[:1] == [self.prefix_token_id]:
                return Continuation(tokens[:1], tokens[1:])
            return Continuation([self.prefix_token_id], tokens)
        kept = context.rstrip()
        whole = self._encode(context + continuation)
        before = self._encode(kept)
        return Continuation(before or [self.prefix_token_id], whole[len(before) :])


def check_greedy(settings: Mapping[str, Any]) -> None:
    """Checks that answers with the settings of a task are greedy.

    Args:
      settings: the `generation_kwargs` of a task.

    Raises:
      ValueError: for settings that sample, or change what is greedy, with their values.
    """
    known = {"until", "temperature", "do_sample", *_LENGTHS, *_IDLE}
    changed = {name: value for name, value in settings.items() if name not in known}
    samples = settings.get("do_sample")
    if samples or (samples is None and float(settings.get("temperature", 0)) > 0):
        changed |= {k: settings[k] for k in ("do_sample", "temperature") if k in settings}
    if changed:
        told = ", ".join(f"{name}: {value}" for name, value in changed.items())
        raise ValueError(
            f"its answers are generated with {told}, and only greedy ones are supported; remove "
            "these from its generation_kwargs"
        )


def _limits(settings: Mapping[str, Any]) -> tuple[tuple[str, ...], int]:
    """Returns the texts that end an answer, and its largest number of tokens."""
    until = settings.get("until") or []
    lengths = [settings[name] for name in _LENGTHS if settings.get(name) is not None]
    most = int(lengths[0]) if lengths else MAX_NEW_TOKENS
    return (until,) if isinstance(until, str) else tuple(until), most
