"""The data of an experiment: its clients, the sampler of cohorts, and the held-out rows."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fedjax_post
from fedjax_post.core.access import Access
from fedjax_post.data.columns import Columns
from fedjax_post.data.load import Loaded, Text, load_clients
from fedjax_post.data.pairs import load_pairs
from fedjax_post.data.population import Population, count_clients
from fedjax_post.data.source import check_source
from fedjax_post.data.table import TokenTable, common_start
from fedjax_post.evaluate.choices import Choices
from fedjax_post.evaluate.heldout import HeldOut, choose_rows
from fedjax_post.simulate.cohort import Sampler, draw
from fedjax_post.study import labels, partitions, prompts
from fedjax_post.study.spec import Spec

_SHORT = 32  # tokens; answers up to this length are generated and compared by default
_MOSTLY = 0.9  # the share of held-out responses that are this short, if any are compared


def load_data(spec: Spec, tokenizer: Any, *, context_length: int) -> Loaded:
    """Returns the clients and the held-out rows of an experiment.

    Args:
      spec: the experiment.
      tokenizer: of the target.
      context_length: maximum number of tokens in a row.

    Raises:
      ValueError, OSError: for data that cannot be read or used, or without held-out rows.
    """
    load = load_clients
    if spec.objective.name == "dpo":
        load = partial(load_pairs, rejected=spec.data.rejected_column or "rejected")
    data = load(
        spec.data.source,
        tokenizer,
        batch_size=spec.training.batch_size,
        local_steps=spec.training.local_steps,
        local_epochs=spec.training.local_epochs,
        split=spec.data.split,
        text=Text(
            columns=Columns(**{role: spec.at(f"data.{role}_column") for role in Columns._fields}),
            template=prompts.template_of(spec),
            max_length=spec.data.max_length,
            context_length=context_length,
            pack_length=spec.data.pack_length,
            response_words=spec.data.response_words or None,
        ),
        population=population_of(spec),
    )
    if data.heldout is None:
        raise ValueError(
            f"heldout_fraction={spec.data.heldout_fraction:g} leaves no rows to score on, and "
            f"data={spec.data.source} has no held-out split; raise it"
        )
    return data


def population_of(spec: Spec) -> Population:
    """Returns how the rows of an experiment are divided among clients.

    Raises:
      ValueError: for a partition that is no rule, naming the field.
    """
    return Population(
        partition=partitions.rule_of(spec),
        num_clients=spec.data.num_clients,
        heldout_fraction=spec.data.heldout_fraction,
        heldout_clients=spec.data.heldout_clients,
        max_examples=spec.data.max_examples,
        seed=spec.seed,
    )


def check(spec: Spec) -> None:
    """Checks that the data exist and the cohort is not too large, before anything is loaded.

    Raises:
      ValueError, OSError: naming the field and the remedy.
    """
    partitions.check(spec)
    if isinstance(spec.data.source, str | Path):
        check_source(str(spec.data.source))
    population = count_clients(spec.data.source, population_of(spec))
    if population is not None:
        make_sampler(spec, population)


def make_sampler(spec: Spec, population: int) -> Sampler:
    """Returns the sampler of an experiment, after a first draw that checks the cohort's size.

    Raises:
      ValueError: if the cohort is larger than the population.
    """
    if spec.training.sampling == "full":
        return fedjax_post.full()
    samplers: dict[str, Callable[[int], Sampler]] = {
        "uniform": fedjax_post.uniform,
        "poisson": fedjax_post.poisson,
        "cyclic": partial(fedjax_post.cyclic, groups=spec.privacy.bands or 1),
    }
    sampler = samplers[spec.training.sampling](cohort_size(spec, population))
    draw(sampler, population, seed=spec.seed, round=0)
    return sampler


def make_heldout(
    spec: Spec, data: Loaded, tokenizer: Any, *, room: int, granted: Access | None
) -> HeldOut:
    """Returns the held-out rows that a model is scored on, and how.

    Args:
      spec: the experiment.
      data: as returned by `load_data`.
      tokenizer: of the target.
      room: tokens that a row may take in the model's context.
      granted: what the model's provider grants; None if it is in this process.
    """
    table, known = data.heldout, labels.find_labels(spec, data, tokenizer)
    assert table is not None  # guaranteed by `load_data`
    is_compared = spec.scoring.exact_match == "on" or (
        spec.scoring.exact_match == "auto" and not why_no_match(table)
    )
    return HeldOut(
        table=table,
        rows=choose_rows(len(table.length), spec.scoring.examples, seed=spec.seed),
        decode_fn=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        eos_id=tokenizer.eos_token_id,
        exact_match=is_compared,
        loss=granted is None,
        labels=tuple(spec.data.labels),
        rejected=data.rejected,
        batch_size=spec.scoring.batch_size,
        choices=known,
        longest=_SHORT if spec.scoring.exact_match == "auto" else None,
        room=room,
        prefix=shared_tokens(data),
        ranked=not why_no_ranks(known, granted, is_compared=is_compared),
    )


def shared_tokens(data: Loaded) -> tuple[int, ...]:
    """Returns the tokens with which all prompts begin, of held-out and of clients' rows."""
    return tuple(common_start(labels.tables_of(data)).tolist())


def why_no_match(table: TokenTable) -> str:
    """Returns why answers to held-out rows are not compared by default; "" if they are."""
    is_short = table.length - table.prompt_length <= _SHORT
    if table.is_cut is not None:
        is_short &= ~table.is_cut
    if is_short.mean() >= _MOSTLY:
        return ""
    return (
        f"only {is_short.sum():,} of {len(is_short):,} held-out responses are whole and have at "
        f"most {_SHORT} tokens"
    )


def why_no_ranks(known: Choices | None, granted: Access | None, *, is_compared: bool) -> str:
    """Returns why labels are not ranked; "" if they are, or if there are none.

    Without a provider they always are.

    Args:
      known: the labels.
      granted: as for `make_heldout`.
      is_compared: whether answers are generated and compared.
    """
    if known is None or granted is None:
        return ""
    if Access.SCORES not in granted:
        return "the provider grants no log-probabilities"
    if (longest := int(known.length.max())) > 1:
        text = known.texts[int(known.length.argmax())]
        return f"a host scores next tokens alone, and {text!r} has {longest} tokens"
    if is_compared:
        return "each question would be asked twice; exact_match=off ranks labels instead"
    return ""


def cohort_size(spec: Spec, population: int) -> int:
    """Returns the number of clients in a round; with poisson sampling the expected number."""
    if spec.training.sampling == "full":
        return population
    return spec.training.buffer_size or spec.training.cohort_size or min(16, population)
