"""Models that answer questions: the result of a run, an adapter's folder, or a base model."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.core.access import Access
from fedjax_post.data.columns import Columns
from fedjax_post.data.encoder import make_encoder
from fedjax_post.data.load import Loaded
from fedjax_post.data.template import is_chat_template, read_form
from fedjax_post.hub import artefact
from fedjax_post.hub.adapter_config import CONFIG, read_adapter_config
from fedjax_post.hub.files import check_regular
from fedjax_post.hub.load import load_config, load_model
from fedjax_post.hub.prompt import is_prompt, load_prompt
from fedjax_post.hub.tokenizer import check_tokenizer
from fedjax_post.model.views import LanguageModel
from fedjax_post.study import folder, precision, prompts, rows, trained, uses
from fedjax_post.study.files import read_unsupplied
from fedjax_post.study.learning import Model
from fedjax_post.study.spec import Spec

PyTree = Any
_NONE: Mapping[str, Any] = MappingProxyType({})


class Served(NamedTuple):
    """A model with its parameters, its tokenizer, and the specification with its template."""

    model: Any  # without weights if it is at a provider
    params: PyTree
    tokenizer: Any
    spec: Spec
    use: uses.Use | None = None  # of a run that shows what it is asked to the target's host

    @property
    def is_hosted(self) -> bool:
        """Whether a provider is asked, and not `model`."""
        return self.use is not None and self.use.is_hosted


def serve(what: str | Path, changes: Mapping[str, Any] = _NONE) -> Served:
    """Returns a model that is ready to answer questions; sends nothing yet.

    A run whose target is at a provider is used there, and what a use of a closed target shows is
    counted in the run's ledger, see `uses`.

    Args:
      what: the folder of a finished run, a PEFT folder, or a base model as in `Model.name`. A
        template that a PEFT folder has is used.
      changes: to the run's specification, or to the default one, by path. The base is quantized
        as the specification says; whole weights that a run wrote, and proxies, never are.

    Raises:
      ValueError, OSError: if it is none of these, `changes` quantize what never is, the target is
        at an address that `changes` do not name, or they name one that nothing would be sent to.

    >>> served = serve("builtin")
    >>> answer = "".join(stream(served, [{"role": "user", "content": "hello"}], max_new_tokens=2))
    >>> isinstance(answer, str)
    True
    """
    path = Path(what)
    if (path / folder.SPEC).exists():
        recorded = read_unsupplied(path / folder.SPEC)
        path = folder.adapter_of(path)
    elif (path / CONFIG).exists():
        base = read_adapter_config(path)["base_model_name_or_path"]
        recorded = Spec(model=Model(base)).put(_template_in(path))
    else:
        _check_no_url(what, changes)
        spec = precision.fill_default(Spec(model=Model(str(what))).put(changes))
        tokenizer = _find_tokenizer(spec, spec.model.name)
        name, dtype, quantize = spec.model.name, spec.model.dtype, spec.model.quantize
        return Served(load_model(name, dtype=dtype, quantize=quantize), {}, tokenizer, spec)
    spec = precision.fill_default(recorded.put(changes))
    _check_quantize(spec, recorded, path)
    base, quantize = spec.model.name, spec.model.quantize
    if spec.model.proxy:
        base, quantize = spec.model.proxy, "none"
    tokenizer, use = _find_tokenizer(spec, base), None
    if path != Path(what):
        spec, use = uses.find(Path(what), spec, tokenizer, typed=changes)
    if use is not None and use.is_hosted:
        shape = LanguageModel({}, load_config(base), access=Access.TEXT)
        params = load_prompt(path, shape) if is_prompt(path) else {}
        return Served(shape, params, tokenizer, spec, use)
    _check_no_url(what, changes)
    model, params = artefact.read(path, base=base, dtype=spec.model.dtype, quantize=quantize)
    return Served(model, params, tokenizer, spec, use)


def _check_no_url(what: str | Path, changes: Mapping[str, Any]) -> None:
    """Raises ValueError for the address of a provider that is not asked."""
    url = changes.get("hosting.url")
    if url is not None:
        raise ValueError(
            f"hosting.url={url} would not be asked: {what} is used in this process; leave it out, "
            "or give the run of a method whose target is at a provider"
        )


def _check_quantize(spec: Spec, recorded: Spec, directory: Path) -> None:
    """Raises ValueError for a new quantization of what is served without one."""
    wanted = spec.model.quantize
    if wanted in ("none", recorded.model.quantize):
        return
    if artefact.has_weights(directory):
        raise ValueError(
            f"quantize={wanted} is for a base, and {directory} holds whole weights, served as they "
            f"were trained; leave it out, or give {directory} itself as the base"
        )
    if spec.model.proxy:
        raise ValueError(
            f"quantize={wanted} is for the target, and what was trained adapts its proxy "
            f"{spec.model.proxy}; leave it out"
        )


def _template_in(folder: Path) -> dict[str, str]:
    """Returns the template of prompts in a PEFT folder as a change, or no change."""
    path = folder / artefact.TEMPLATE
    if not path.exists():
        return {}
    check_regular(path)
    return {"data.template": path.read_text(encoding="utf-8")}


def load_rows(served: Served) -> tuple[Spec, Loaded, int]:
    """Returns the specification, its rows, and the tokens that a row may take in the context.

    Raises:
      ValueError, OSError: for rows that cannot be read.
    """
    model, params, tokenizer, spec = served[:4]
    if spec.training.local_steps is None and spec.training.local_epochs is None:
        spec = spec.put({"training.local_steps": 1})  # loading needs a value; nothing is trained
    room = model.config.max_positions - model.prompt_length(params)
    return spec, rows.load_data(spec, tokenizer, context_length=room), room


def _find_tokenizer(spec: Spec, base: str) -> Any:
    tokenizer = trained.find_tokenizer(spec)
    check_tokenizer(tokenizer, load_config(base))
    return tokenizer


def prompt_ids(served: Served, turns: Sequence[Mapping[str, str]]) -> list[int]:
    """Returns the tokens of a prompt, formatted as in training.

    Args:
      served: the model, whose template is used.
      turns: messages with "role" and "content", the last one by the user. A model without a chat
        template takes exactly one.

    Raises:
      ValueError: for several turns without a chat template.
    """
    template = prompts.template_of(served.spec)
    pair = Columns(prompt="prompt", response="response")
    if is_chat_template(served.tokenizer, pair, template):
        columns = Columns(messages="messages")
        row: dict[str, Any] = {"messages": [*turns, {"role": "assistant", "content": "."}]}
    else:
        if len(turns) != 1:
            raise ValueError(
                f"template={template} does not support {len(turns)} turns; use a model with a "
                "chat template, or ask one question"
            )
        field = _field_of(template)
        columns = Columns(prompt=field, response="response")
        row = {field: turns[0]["content"], "response": "."}
    made = make_encoder(served.tokenizer, columns, template=template)(
        {name: [value] for name, value in row.items()}, [0]
    )
    ids = np.asarray(made["tokens"][0])[: made["prompt_length"][0]]
    return np.where(ids < 0, ~ids, ids).tolist()


def _field_of(template: str) -> str:
    """Returns the field that a question fills: the only one of a format string."""
    form = read_form(template)
    fields = ["prompt"] if form is None else list(dict.fromkeys(form.names))
    if len(fields) != 1:
        raise ValueError(
            f"template={template!r} has the fields {', '.join(fields)}, and a question fills one; "
            "give a `template` with one field"
        )
    return fields[0]


def stream(
    served: Served,
    turns: Sequence[Mapping[str, str]],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[str]:
    """Returns an iterator over the pieces of an answer, as they are generated.

    A provider's answer comes as one piece. What the host of a run's target is shown is counted
    before it is sent.

    Args:
      served: the model.
      turns: as for `prompt_ids`.
      max_new_tokens: maximum number of tokens; the model's context limits it further.
      temperature: of sampling; 0 takes the most likely token.
      seed: of sampling.

    Raises:
      ValueError: if the prompt fills the model's context, or a provider is to sample.
      DisclosureError: with `hosting.fail_on_disclosure`, if the question would be shown to a
        provider; it is not sent then.
      ProviderError: if a provider does not answer.
    """
    model, params = served.model, served.params
    if temperature > 0 and served.is_hosted:
        raise ValueError(
            f"temperature={temperature:g} cannot be asked of a provider here, which gives the most "
            "likely answer; leave it out"
        )
    ids = prompt_ids(served, turns)
    room = model.config.max_positions - len(ids) - model.prompt_length(params)
    if room < 1:
        raise ValueError(
            f"the prompt has {len(ids)} tokens and the model reads at most "
            f"{model.config.max_positions}; ask a shorter question"
        )
    steps = min(max_new_tokens, room)
    if served.use is not None:
        answer = _used(served, served.use, ids, steps)
        if answer is not None:
            yield answer
            return
    yield from _generate(served, ids, steps=steps, temperature=temperature, seed=seed)


def _used(served: Served, use: uses.Use, ids: list[int], steps: int) -> str | None:
    """Returns a provider's answer; None if the question was counted and is computed here."""
    tokens = jnp.asarray([ids], jnp.int32)
    mask, eos_id = jnp.ones(tokens.shape, bool), served.tokenizer.eos_token_id
    with uses.opened(use, [ids]) as (hosted, note_fn):
        if note_fn is not None:
            note_fn(served.params, tokens, mask, prefix=None, answer=steps)
        if hosted is None:
            return None
        form = {"max_new_tokens": steps, "eos_id": eos_id, "pad_id": eos_id}
        (row,) = np.asarray(hosted.answer(served.params, tokens, mask, **form)).tolist()
    end = row.index(eos_id) if eos_id in row else len(row)
    return served.tokenizer.decode(row[:end], skip_special_tokens=True)


def _generate(
    served: Served, ids: list[int], *, steps: int, temperature: float, seed: int
) -> Iterator[str]:
    """Returns an iterator over the pieces of an answer that is computed here."""
    model, params, tokenizer = served.model, served.params, served.tokenizer
    tokens = jnp.asarray([ids], jnp.int32)
    logits, cache = model.prefill(params, tokens, mask=tokens >= 0, num_slots=len(ids) + steps)
    step = jax.jit(partial(_step, model))
    key, answer, shown = jax.random.key(seed), [], ""
    for position in range(len(ids), len(ids) + steps):
        chosen = _choose(logits[0], jax.random.fold_in(key, position), temperature)
        if chosen == tokenizer.eos_token_id:
            break
        answer.append(chosen)
        text = tokenizer.decode(answer, skip_special_tokens=True)
        if not text.endswith("\ufffd"):  # one character may span several tokens
            yield text[len(shown) :]
            shown = text
        logits, cache = step(params, jnp.asarray([[chosen]]), jnp.asarray([[position]]), cache)


def _step(model, params, tokens, positions, cache):
    mask = jnp.ones(tokens.shape, bool)
    return model.step(params, tokens, positions=positions, mask=mask, cache=cache)


def _choose(logits: jax.Array, key: jax.Array, temperature: float) -> int:
    if temperature <= 0:
        return int(jnp.argmax(logits))
    return int(jax.random.categorical(key, logits / temperature))
