"""H3 and H9 can be supported, refuted or left undecided: either side's scores at equal budgets."""

import pytest
from ladders import CENTRAL, CLOSED, MANUAL, OPEN, PROMPTS, cell, control, judge, ladder

from fedjax_post.report.position.contenders import without_weights
from fedjax_post.report.position.controls import best_of
from fedjax_post.report.position.gains import gains
from fedjax_post.report.position.rules import gate
from fedjax_post.report.position.verdicts import (
    NOT_SUPPORTED,
    SUPPORTED,
    TOO_FEW,
    UNDECIDED,
)

ALONE = control("one_client", 0.5, 0.5, 0.5)
REST = [CENTRAL, MANUAL, *PROMPTS]
HOST = cell("host", "closed", (0.9, 0.92, 0.91), tier="FINETUNE", asked=7.0)
FULL = cell("lora", "open", (1.0, 0.99, 1.0))


def test_a_rival_at_the_ceiling_can_be_worse_to_be_behind_only():
    """Nothing is ahead of 100 %: 'no advantage' must be a lag, and not lie within the margin."""
    rest = [ALONE, CENTRAL, MANUAL, *PROMPTS]
    rival = cell("x", "closed", (0.99, 1.0, 1.0), asked=7.0)
    near = cell("lora", "open", (0.97, 0.99, 0.97))
    assert judge("H3", ladder([near, rival, *rest])).verdict == UNDECIDED
    assert judge("H3", ladder([OPEN, rival, *rest])).verdict == NOT_SUPPORTED


def test_an_advantage_below_the_margin_is_none_and_no_equality():
    rival = (0.70, 0.72, 0.71, 0.71, 0.71)
    ours = cell("lora", "open", [score + 0.01 for score in rival])
    alone = control("one_client", 0.5, 0.5, 0.5, 0.5, 0.5)
    cells = [ours, cell("x", "closed", rival, asked=7.0), alone, CENTRAL, MANUAL, *PROMPTS]
    assert judge("H3", ladder(cells)).told == "undecided: its advantage is below 2 points"


def test_open_methods_that_learn_nothing_are_behind_those_that_do():
    """Who has no gain to show cannot be ahead; where a rival learned, that is no excuse."""
    idle = cell("lora", "open", (0.40, 0.41, 0.40))
    alone = control("one_client", 0.5, 0.5, 0.5)
    for key, tier in (("H3", "LOGITS"), ("H9", "FINETUNE")):
        of = lambda *scores, key=key, tier=tier: judge(
            key, ladder([idle, cell("x", "closed", scores, tier=tier, asked=7.0), alone, *REST])
        )
        finding = of(0.9, 0.92, 0.91)
        assert finding.verdict == NOT_SUPPORTED
        assert any("so that none can be ahead" in line for line in finding.numbers)
        why = "no open method was shown to gain over one client alone and over its start"
        assert of(0.40, 0.41, 0.40).told == f"undecided: {why}"  # nor did the rival learn
        assert of(0.20, 0.21, 0.20).told == f"undecided: {why}"  # ahead, by nothing learned


def spending(one, tokens):
    runs = {
        s: r._replace(summary=r.summary | {"model_tokens": tokens}) for s, r in one.runs.items()
    }
    return one._replace(runs=runs)


@pytest.mark.parametrize(
    ("held", "hosted", "budget", "expected"),
    [
        (1000, 1000, 1000, SUPPORTED),
        (2000, 1000, 1000, "undecided: unequal budgets: Lora"),
        (1000, 500, 1000, "undecided: unequal budgets: Host"),
        (500, 2000, 1000, SUPPORTED),  # the open side leads with less
        (500, 1000, 1000, SUPPORTED),
        (2000, 1000, None, "undecided: unequal budgets: none was stated, and the open side spent "
         "more"),
        (1000, 1000, None, SUPPORTED),
    ],
)  # fmt: skip
def test_equal_budgets_are_a_condition(held, hosted, budget, expected):
    for key, tier in (("H3", "LOGITS"), ("H9", "FINETUNE")):
        host = cell("host", "closed", (0.7, 0.72, 0.71), tier=tier, asked=7.0)
        cells = [spending(OPEN, held), spending(host, hosted), ALONE, MANUAL, *PROMPTS]
        assert judge(key, ladder(cells, budget=budget)).told == expected


@pytest.mark.parametrize(
    ("held", "hosted", "expected"),
    [
        (1000, 1000, NOT_SUPPORTED),
        (500, 1000, "undecided: unequal budgets: Lora"),
        (1000, 2000, "undecided: unequal budgets: Host"),
        (2000, 500, NOT_SUPPORTED),  # the closed side leads with less
    ],
)
def test_budgets_count_for_a_closed_side_that_is_ahead_too(held, hosted, expected):
    for key, tier in (("H3", "LOGITS"), ("H9", "FINETUNE")):
        host = cell("host", "closed", (0.9, 0.92, 0.91), tier=tier, asked=7.0)
        cells = [spending(OPEN, held), spending(host, hosted), ALONE, MANUAL, *PROMPTS]
        assert judge(key, ladder(cells, budget=1000)).told == expected


def test_a_better_open_method_whose_gain_is_not_shown_is_not_behind():
    """The one that gains is behind the rival, and another one is ahead of it by nothing shown."""
    wild = cell("soft_prompt", "open", (0.95, 0.5, 0.96))
    low = cell("lora", "open", (0.60, 0.61, 0.60))
    alone = control("one_client", 0.5, 0.5, 0.5)
    for key, tier in (("H3", "LOGITS"), ("H9", "FINETUNE")):
        rival = cell("x", "closed", (0.66, 0.67, 0.66), tier=tier, asked=7.0)
        assert judge(key, ladder([low, rival, alone, *REST])).told == NOT_SUPPORTED
        finding = judge(key, ladder([low, wild, rival, alone, *REST]))
        assert finding.verdict == UNDECIDED
        assert finding.why in (
            TOO_FEW,
            "an open method that was not shown to gain may not be behind",
        )


def test_a_small_advantage_is_small_beside_a_better_method_that_gained_nothing():
    rival = (0.70, 0.72, 0.71, 0.71, 0.71)
    ours = cell("lora", "open", [score + 0.01 for score in rival])
    idle = cell("soft_prompt", "open", [score + 0.03 for score in rival], base=0.75)
    alone = control("one_client", 0.5, 0.5, 0.5, 0.5, 0.5)
    for more in ([], [idle]):
        cells = [ours, *more, cell("x", "closed", rival, asked=7.0), alone, *REST]
        assert judge("H3", ladder(cells)).told == "undecided: its advantage is below 2 points"


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([OPEN, CLOSED, ALONE, *REST], SUPPORTED),
        ([OPEN, cell("x", "closed", (0.9, 0.92, 0.91), asked=7.0), ALONE, *REST],
         NOT_SUPPORTED),
        ([OPEN, CLOSED, cell("y", "baseline", (0.9, 0.92, 0.91)), ALONE, *REST],
         NOT_SUPPORTED),
        ([OPEN, CLOSED, ALONE, CENTRAL, MANUAL],
         "undecided: control missing: the best of ten manual prompts (there are 1)"),
        ([OPEN, CLOSED, *REST],
         "undecided: control missing: one client alone, without a federation, for as many steps"),
        ([OPEN, CLOSED, control("one_client", 0.8, 0.82, 0.81), *REST],
         "undecided: no open method was shown to gain over one client alone and over its start"),
        ([FULL, cell("x", "closed", (0.98, 0.98, 0.98), asked=7.0), ALONE, *REST],
         "undecided: both sides reach 98 %"),
        ([FULL, cell("x", "closed", (0.96, 0.95, 0.96), asked=7.0), ALONE, *REST],
         SUPPORTED),
        ([OPEN, ALONE], "undecided: no scored cell of one side"),
        ([cell("lora", "open", (0.8, 0.82, 0.81), base=0.8), CLOSED, ALONE, *REST],
         "undecided: no open method was shown to gain over one client alone and over its start"),
        ([OPEN, CLOSED, HOST, ALONE, *REST], SUPPORTED),  # that is H9
        ([OPEN, CLOSED, cell("ahead", "closed", (0.9, 0.9), asked=7.0), ALONE,
          *REST], "undecided: seeds are missing of Ahead, ahead on those it has"),
        ([OPEN, CLOSED, cell("behind", "closed", (0.3, 0.3), asked=7.0), ALONE,
          *REST], SUPPORTED),
    ],
)  # fmt: skip
def test_utility_is_judged_both_ways(cells, expected):
    assert judge("H3", ladder(cells)).told == expected


def test_only_the_prompt_that_is_best_in_the_search_is_a_rival():
    ahead = control("manual", 0.9, 0.92, 0.91, name="ahead")
    prompts = [*PROMPTS[:-1], ahead]
    cells = [OPEN, CLOSED, ALONE, MANUAL, *prompts]
    tried = {prompt.method: 0.5 for prompt in [MANUAL, *prompts]}
    verdict = lambda **last: judge("H3", ladder(cells, search={"prompts": tried | last})).verdict
    assert verdict(ahead=0.6) == NOT_SUPPORTED
    assert verdict(ahead=0.4) == SUPPORTED


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([CENTRAL], SUPPORTED),
        ([control("central", 0.9, 0.92, 0.91)], NOT_SUPPORTED),
        ([], "undecided: control missing: fine-tuning by the host, or LoRA on the same rows in one "
         "place, without a federation"),
        ([HOST, CENTRAL], NOT_SUPPORTED),
        ([cell("host", "closed", (0.7, 0.72, 0.71), tier="FINETUNE", asked=7.0),
          control("central", 0.9, 0.92, 0.91)], SUPPORTED),  # one that was run stands for itself
        ([cell("host", "closed", (), tier="FINETUNE"), CENTRAL],
         "undecided: rivals without a score: Host"),
    ],
)  # fmt: skip
def test_tuning_by_the_host_is_judged_both_ways(cells, expected):
    assert judge("H9", ladder([OPEN, CLOSED, ALONE, MANUAL, *PROMPTS, *cells])).told == expected


@pytest.mark.parametrize("when", ["base", "final"])
def test_ranks_that_a_host_leaves_open_decide_nothing(when):
    """They count as wrong, which a model in this process cannot lose by."""
    host = cell("host", "closed", (0.7, 0.72, 0.71), tier="FINETUNE", asked=7.0)
    cells = lambda one: [OPEN, CLOSED, one, ALONE, MANUAL, *PROMPTS]
    assert judge("H9", ladder(cells(host))).verdict == SUPPORTED
    some = {when: {"accuracy_undecided": 0.08}}
    runs = {seed: run._replace(summary=run.summary | some) for seed, run in host.runs.items()}
    told = "undecided: a host left the rank of labels open: Host, 8.0 % of the rows"
    assert judge("H9", ladder(cells(host._replace(runs=runs)))).told == told


def test_a_method_that_learned_nothing_gains_over_one_client_that_lost_something():
    """It is ahead of one client alone, and behind nobody else: only its start tells that."""
    idle = cell("idle", "open", (0.7, 0.71, 0.7), base=0.7)
    assert "Idle" not in held_of(idle)
    assert "Idle" in held_of(idle._replace(runs=cell("idle", "open", (0.7, 0.71, 0.7)).runs))


def held_of(one):
    """The open methods that count beside LoRA, as they are told."""
    sides = without_weights(ladder([OPEN, one, CLOSED, ALONE, *REST]))
    return [cell.label for cell in sides.held]


def test_a_closed_method_that_its_proxy_does_alone_is_no_rival():
    silent = cell("fed_pt", "closed", (0.9, 0.91, 0.92), asked=0.0)
    cells = [OPEN, CLOSED, silent, ALONE, CENTRAL, MANUAL, *PROMPTS]
    with_proxy = lambda *scores: ladder([*cells, control("proxy", *scores)])
    finding = judge("H3", with_proxy(0.9, 0.91, 0.92))
    assert finding.verdict == SUPPORTED
    assert "not counted as using the target: Fed_Pt" in finding.numbers
    assert judge("H3", with_proxy(0.5, 0.51, 0.52)).verdict == NOT_SUPPORTED
    assert "the proxy alone" in judge("H3", ladder(cells)).why


def test_the_best_cell_is_chosen_on_other_seeds():
    first = cell("a", "open", (0.9, 0.1, 0.1))
    second = cell("b", "open", (0.2, 0.8, 0.8))
    found = best_of("best", [first, second])
    assert found.scores == {0: 0.2, 1: 0.1, 2: 0.1}  # each time the winner of the other two seeds
    assert best_of("best", [first]).scores == {0: 0.9, 1: 0.1, 2: 0.1}
    assert best_of("best", [cell("c", "open", [0.5]), cell("d", "open", [0.6])]).scores == {}


def longer(one, *more):
    """A cell with further seeds."""
    runs = dict(one.runs)
    for score in more:
        runs[len(runs)] = runs[0]._replace(right=score)
    return one._replace(runs=runs)


def test_further_seeds_of_some_cells_put_no_others_out_of_the_comparison():
    """A control with more seeds than a method's start must not take its place, nor the reverse."""
    weaker = cell("soft_prompt", "open", (0.6, 0.62, 0.61), base=0.55)
    cells = [OPEN, weaker, CLOSED, ALONE, CENTRAL, MANUAL, *PROMPTS]
    before = judge("H3", ladder(cells))
    assert before.verdict == SUPPORTED
    more = {"lora": (0.81, 0.8), "one_client": (0.52, 0.5)}
    for names in (["lora"], ["one_client"], ["lora", "one_client"]):
        found = [longer(c, *more[c.method]) if c.method in names else c for c in cells]
        finding = judge("H3", ladder(found))
        assert (finding.verdict, finding.why) == (before.verdict, before.why), names


def test_a_better_prompt_is_no_worse_rival_because_a_worse_one_has_more_seeds():
    good = control("manual", 0.7, 0.72, 0.71, name="manual_2")
    cells = [OPEN, CLOSED, ALONE, CENTRAL, longer(MANUAL, 0.4, 0.4), good, *PROMPTS[1:]]
    found = {"measure": "exact_match", "gate": {"manual_prompt": 0.4, "chance": 0.2}}
    found["gate"] |= {"soft_prompt_share": 0.1, "gain": 0.41, "seeds": [0, 1, 2]}
    told = gate(ladder(cells, **found))
    assert told.passed
    assert "the best manual prompt 75.6 %" in told.told
    without = found["gate"] | {"seeds": [0, 1, 2, 3, 4]}  # of which the better prompts lack two
    assert not gate(ladder(cells, **found | {"gate": without})).passed
    (row,) = [row for row in gains(ladder(cells))[1].rows if row[0] == "Lora"]
    assert row[4].startswith("+10.0")
    more = longer(OPEN, 0.8, 0.8)
    (row,) = [row for row in gains(ladder([more, *cells[1:]]))[1].rows if row[0] == "Lora"]
    assert "missing: seeds are missing of Manual_2" in row[4]


def test_a_method_scored_on_each_clients_own_rows_is_compared_with_none():
    """A client with one label is right on its own rows whatever it is asked."""

    def own(rows, kind="baseline"):
        made = cell("own", kind, (0.9, 0.92, 0.91))._replace(score="personal")
        clients = {"clients": {"personal": {"rows": rows}}}
        runs = {s: r._replace(summary=r.summary | clients) for s, r in made.runs.items()}
        return made._replace(runs=runs)

    rest = [OPEN, CLOSED, ALONE, CENTRAL, MANUAL, *PROMPTS]
    finding = judge("H3", ladder([*rest, own("own")]))
    assert finding.verdict == SUPPORTED
    assert "scored on each client's own rows, and not compared: Own" in finding.numbers
    assert judge("H3", ladder([*rest, own("labels")])).verdict == SUPPORTED
    assert judge("H3", ladder([*rest, own("all")])).verdict == NOT_SUPPORTED
    lone = [own("own", "open"), CLOSED, ALONE, CENTRAL, MANUAL, *PROMPTS]
    assert judge("H3", ladder(lone)).why == "no scored cell of one side"
