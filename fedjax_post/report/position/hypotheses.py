"""The hypotheses H1 to H9, as data: what each claims, what is measured, and what would decide it.

Agrawal, Mayer and Mertel, "Federated foundation language model post-training should focus on
open-source models", 2025, arXiv:2505.23593, argue from openness to privacy, autonomy and
heterogeneity, without experiments. Places are those of version 3: its abstract, its introduction
(section 1) and its Table 1, the latter as public summaries condense it, since the rest of the text
was not at hand. H3, H9, and the part of H7 on updates, go beyond the paper.

Verdicts use the measured part alone. What is so by definition is shown beside it, and is no
evidence. These rules were written on 2026-11-29, after the ladders of docs/results.md had been run
and read; those ladders are judged by them again. On 2026-11-30 'exact match' became 'score', which
a ladder's file may set to the rank of labels, and a hostile reading changed rules that could come
out wrong, or by construction: H1 counts methods that learned; H2 and H8 compare pairs of faults; H3
asks for a rival that the host fine-tunes, for equal budgets and complete seeds; H6 for a search of
the whole corpus; H7 takes a spread of at least one token; an advantage below the margin is none.
On the same day a first ladder on a real task showed that a method of each client, scored on that
client's own rows, gains from their mixture of labels: it is compared with no method that is scored
on all rows. On 2026-12-01 another hostile reading found that H3 could hardly be supported, since
its rival was the same base, tuned by its host on the same rows: that comparison is H9 now. It also
found that one client alone may end below where it began, so that an open method must gain over its
start too. A third one, on that day, found that H7 was decided on a wire that no cell trained on:
since then only cells that learned count, and one that sends such updates was added to the ladder. A
fourth one found that H2 compared a host that trains again within its notice with an open method
that must not, and one closed method with all: since then both sides have the same remedy in a pair,
and H2 and H8 have a contrast for each way of use, of the best method that was drilled of it.
On that day too, a host that trains its model was run on a real task, ahead of open methods that
were not shown to gain there, and H9 read undecided for that reason: a rule that spared one side.
Since then such methods cannot be ahead, and can be behind a rival whose score is above theirs
before training. Budgets are compared for either side that is ahead, where they had been for the
open one alone. H2 and H8 ask for all faults, in each way of use, before they say that there is no
advantage.
"""

from typing import NamedTuple


class Hypothesis(NamedTuple):
    """A hypothesis in words."""

    key: str
    claim: str
    paper: str  # where the paper claims it
    supported: str  # what would support it
    refuted: str  # what would refute it
    defined: str  # the part that is so by definition; "" if there is none
    measured: str  # the contrast: which cells, in which unit; "" if nothing is measured
    limits: str  # what the evidence does not show


METHOD = (
    "A score is the share of held-out rows that are right: by exact match of the answer, or by the "
    "rank of the labels' log-probabilities, as the ladder's file says. "
    "The unit is a seed, which sets the split, the clients, the cohorts and the start. Two cells "
    "are compared on the same held-out rows of a seed, so that items are paired within it; their "
    "difference has a mean, a 95 % interval and a p by Student's t over the seeds. A contrast "
    "shows an advantage if its mean lies above 0, and none if it lies below the margin, each at "
    "the level that Holm's correction over the hypotheses measured here leaves. The best of "
    "several cells is chosen, for each seed, by the other seeds; that of the manual prompts by the "
    "seed of the search, where they were tried on it. Power is the chance of finding a "
    "true difference of five points at that level, given the spread that was observed; with less "
    "than one half, the verdict is undecided whatever the interval. The spread is taken to be at "
    "least one held-out row. A contrast of which both sides reach the ceiling shows nothing."
)

HYPOTHESES = (
    Hypothesis(
        "H1",
        "Black-box use breaks privacy.",
        "Abstract; Table 1, weights and privacy: without weights, clients must use a provider "
        "that they may not trust.",
        "Every closed-side method that shows the host nothing in training gains nothing over its "
        "control, which does without the target: privacy costs what the target is worth. Methods "
        "that learned nothing, or whose control is at the ceiling, do not count.",
        "A closed-side method that shows the host nothing in training gains over its control.",
        "A method that asks a hosted target shows it every question, in training and in use; one "
        "that holds the weights asks nobody. This follows from the access that a method declares, "
        "and the counts say only how much.",
        "Score of each closed-side method that asks nothing in training, less that of its "
        "control: the proxy alone, or the better stand-in alone.",
        "Tokens are counted while methods learn. In use, every question goes to whoever hosts the "
        "model, with any method. Where inference runs decides what is shown: a target that the "
        "clients hold discloses nothing. What updates reveal is H7. A provider's promise not to "
        "look or keep is not measured.",
    ),
    Hypothesis(
        "H2",
        "Black-box use breaks autonomy.",
        "Abstract; Table 1, weights and autonomy: without weights, clients control less.",
        "A fault of the host costs the best closed-side method of a way of use, asking or tuning "
        "by the host, more score than its like costs the best open one.",
        "No fault does, of all of them, each drilled in every way of use, and at least one costs "
        "a side the margin.",
        "A shutdown ends training and use with a hosted target, and what was learned is useless "
        "without it. A method that asks nobody runs the same with and without a host's fault, so "
        "that its loss is 0. Weights that are held can be kept when their maker goes on to a next "
        "version or withdraws them: then nothing is lost. A host's model cannot be kept.",
        "Loss of score by a host that changes its model or refuses clients, less that by what "
        "corresponds to it where clients hold the weights and take the next version, which nobody "
        "has to, or where a checkpoint is withdrawn. Both sides have the same remedy: none, which "
        "is the loss at once; or a notice, within which both train again on the next version for "
        "as many rounds as at first. What that takes is in the table of drills. Of several methods "
        "of a way of use, the best without a fault is taken, chosen by other seeds.",
        "How often providers stop, change or refuse is not measured, nor what contracts promise.",
    ),
    Hypothesis(
        "H3",
        "Open weights give better utility at equal budget than a model that can only be asked.",
        "Not in the paper: it claims no utility.",
        "The best open method that gains over one client alone, and over its start, leads the best "
        "rival that uses the target without its weights.",
        "No open method leads it, those that gain nothing included. If none gains, this counts "
        "only if the rival's score is above that of the open methods before their training.",
        "",
        "Score of the best open method that gains over one client alone and over its start, less "
        "that of the best rival: closed-side methods that ask the target, those that gain over "
        "their control, in-context examples that are scored on all rows, and the best of ten "
        "manual prompts. The side that is ahead must not have spent more than the budget, nor the "
        "other one less. A host that fine-tunes its model is H9.",
        "Other tasks, larger models, and hosted models that are better than any open one: both "
        "sides have the same base here.",
    ),
    Hypothesis(
        "H4",
        "Access to architecture and code widens the set of methods.",
        "Table 1, architecture and code: without them, fewer ways of use.",
        "Nothing measured could: it is so by definition.",
        "Nothing measured could: it is so by definition.",
        "Each tier of access contains the lower ones, so that more access never allows fewer "
        "methods. The counts depend on which methods this library has.",
        "",
        "More methods need not be better ones. Weights and architecture come together in these "
        "tiers: neither was opened alone.",
    ),
    Hypothesis(
        "H5",
        "The licence limits autonomy, not privacy.",
        "Table 1, licence: no effect on privacy; limits use and redistribution of the tuned model.",
        "Nothing measured could: it is read in the terms.",
        "Nothing measured could: it is read in the terms.",
        "Terms limit what they say that they limit, and which models have a passport here is this "
        "library's choice. No licence enters the ledger of what is disclosed.",
        "",
        "Terms were read, not tested in court. A licence that keeps a client from the weights may "
        "drive it to a provider, and then privacy is touched after all.",
    ),
    Hypothesis(
        "H6",
        "Whether pre-training data are open hardly matters.",
        "Table 1, pre-training data: minimal effect, since clients tune on their own data.",
        "The score of each method that learned lies within five points on a base of other data.",
        "That of one tuned method lies further away.",
        "Only an open corpus can be searched for the evaluation's rows. What the search finds is "
        "a condition for reading the scores, and no evidence: all of the corpus must be searched.",
        "Score of each tuned method on this base, less that on a base of another producer, "
        "which shares no training data.",
        "Other data are not hidden data: if both corpora are open, the contrast shows only that "
        "other data do not matter.",
    ),
    Hypothesis(
        "H7",
        "Openness does not by itself secure the updates.",
        "Version 3, keywords and its analysis of security; that updates leak goes beyond it.",
        "An attack on an open method's updates recovers more private text than guessing.",
        "None of the attacks that were tried does.",
        "Updates of open methods travel to the federation's server.",
        "Share of the private tokens of questions that each attack recovers from the updates of a "
        "cell that learned, without a protection, less that of guessing.",
        "Attacks that were not tried may succeed. Runs with noise and secure sums, and wires that "
        "no cell trains on, are shown beside these, and decide nothing.",
    ),
    Hypothesis(
        "H8",
        "Closed models add to the harm of heterogeneity.",
        "Table 1, weights and heterogeneity: limited and indirect, some clients are shut out.",
        "A reason that shuts clients out of a closed model costs the federation more score than "
        "one that shuts them out of open weights.",
        "No reason does, of all of them, each drilled in every way of use, and at least one costs "
        "a side the margin.",
        "Who is shut out can neither train nor be served. An open method shuts nobody out by "
        "region, price or terms of use, so that its loss in those drills is 0.",
        "Loss of score on all held-out rows by what shuts clients out of a closed model, less that "
        "by what corresponds to it where they hold the weights: price and memory; region or "
        "licence, and the licence of the weights. Closed methods that ask and those that their "
        "host tunes are compared apart, the best of each, as for H2.",
        "How many clients a provider's price, region or terms would shut out in practice.",
    ),
    Hypothesis(
        "H9",
        "Open weights give better utility at equal budget than fine-tuning by the host.",
        "Not in the paper: it claims no utility.",
        "The best open method that gains over one client alone, and over its start, leads the best "
        "method whose host fine-tunes its model.",
        "No open method leads it, as for H3.",
        "",
        "Score of the best open method that gains over one client alone and over its start, less "
        "that of the best method whose host trains. Where none was run, LoRA on all rows in one "
        "place stands for it. Budgets are compared as for H3.",
        "Both sides train the same base on rows of the same clients, so that a federation leads "
        "only a service that is limited in rows, epochs or settings: that it does not lead is "
        "what to expect. What such a host is shown is H1.",
    ),
)
