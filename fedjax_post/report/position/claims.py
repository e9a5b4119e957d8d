"""The claims, the rule by which each is judged, and the limits of the evidence.

Agrawal, Mayer and Mertel, "Federated foundation language model post-training should focus on
open-source models", 2025, arXiv:2505.23593, argue from openness to privacy, autonomy and
heterogeneity, without experiments. H3, and the part of H7 on updates, go beyond their claims. The
rules were written before the ladders that they judge were run, and each can lead to either
verdict.
"""

from typing import NamedTuple

MARGIN = 0.02  # exact match: an advantage below two points counts as none
ALIKE = 0.05  # exact match: two base models within five points of each other count as equal
CEILING = 0.98  # exact match: if both sides reach it, neither can be ahead
RARE = 0.01  # contamination of at most one row in a hundred counts as none

SPREAD = (
    "A gain, a lead or a loss of score counts if its 95 % interval over the seeds (Student's t) "
    f"lies above 0; it is none if the interval reaches 0 and ends below {100 * MARGIN:.0f} points; "
    "otherwise, and with one seed, it is undecided. What does not vary with the seed decides by "
    "itself. Closed-side scores are read only on a base that passes the gate."
)


class Claim(NamedTuple):
    """A hypothesis in words."""

    key: str
    claim: str
    rule: str
    limits: str  # what the evidence does not show
    needed: str  # what would decide it if it is undecided


CLAIMS = (
    Claim(
        "H1",
        "Black-box use breaks privacy.",
        "Supported if no open method shows a private token to an outside party, with any seed, "
        "while closed-side methods show them to whoever hosts the target, save such as gain "
        "nothing on the base. Not supported if an open method shows some, if no closed-side "
        "method does, or if one that shows none gains on the base.",
        "Tokens are counted while methods learn. In use, every question goes to whoever hosts "
        "the model, with any method. A target that the clients hold discloses nothing at any "
        "tier: where inference runs decides, and access only decides where it can run. What "
        "updates reveal is H7. A provider's promise not to look or keep is not measured.",
        "finished closed-side and open cells with their token counts; for a method that asks "
        "nothing, at least two seeds, on a base that can be prompted",
    ),
    Claim(
        "H2",
        "Black-box use breaks autonomy.",
        "Supported if each closed-side method that was drilled lost something in a drill (it "
        "could no longer train, no longer serve, or lost score) and no open method did. Not "
        "supported if a closed-side method lost nothing in any drill, or an open one lost "
        "something.",
        "An open method asks nobody, so that its run is the same with and without a fault. How "
        "often providers stop, change or refuse is not measured, nor what contracts promise. "
        "Open weights can depend on others too, for hardware for example.",
        "drills of closed-side and open methods; for a loss of score, at least two seeds, on a "
        "base that can be prompted",
    ),
    Claim(
        "H3",
        "Open weights give better utility at equal budget.",
        "Supported if the best open method's exact match leads that of the best method without "
        "the weights, the manual prompt and in-context examples included, seed by seed; not "
        "supported if there is no lead. Undecided where both sides reach "
        f"{100 * CEILING:.0f} %: no lead of either could show.",
        "This claim goes beyond the paper. Other tasks, larger models, and hosted models that "
        "are better than any open one: both sides have the same base here. The best of a side "
        "is chosen on the rows that it is scored on, which favours the side with more methods.",
        "a finished open cell and a finished one without weights, at least two seeds, a base that "
        "passes the gate, and a task that is not solved by both sides",
    ),
    Claim(
        "H4",
        "Access to architecture and code widens the set of methods.",
        "Supported if more registered methods run with weights, architecture and code "
        "(GRADIENTS) than on the widest interface without them (EMBEDDINGS), not supported if "
        "not. Counted, not sampled.",
        "Which methods are registered is this library's choice, and more methods need not mean "
        "better ones. Weights and architecture come together in these tiers: neither was "
        "opened alone.",
        "the number of registered methods that run at EMBEDDINGS and at GRADIENTS",
    ),
    Claim(
        "H5",
        "The licence limits autonomy, not privacy.",
        "Supported if the terms of at least one model whose weights are open limit who may use "
        "the tuned model, for what, or on what terms it is passed on; not supported if all "
        "terms are known and none does. That privacy is untouched holds by construction: no "
        "licence enters the ledger.",
        "Terms were read, not tested in court. A licence that keeps a client from the weights "
        "may drive it to a provider, and then privacy is touched after all.",
        "passports with licence rules for models whose weights are open",
    ),
    Claim(
        "H6",
        "Whether pre-training data are open hardly matters.",
        "Supported if each tuned method's exact match on both bases differs by less than "
        f"{100 * ALIKE:.0f} points (the 95 % interval over seeds lies within) and at most "
        f"{100 * RARE:.0f} % of the evaluation rows stand in the corpus, question and answer. "
        "Not supported if an interval lies outside, or more rows do: then only an open corpus "
        "tells how scores are to be read.",
        "Both corpora are open here: the comparison shows what other data do, not what hiding "
        "them does. That the audit needs an open corpus is itself a difference, whatever it "
        "finds.",
        "the same cells on a second base, with at least two seeds, and an audit of the corpus",
    ),
    Claim(
        "H7",
        "Openness does not by itself secure the updates.",
        "Supported if an attack on an open method's updates recovers more private text than "
        "guessing; not supported if none of those tried does.",
        "Updates of open methods travel to the federation's server; bytes say that they do, "
        "not what they reveal. Attacks that were not tried may succeed.",
        "attacks on the updates: inversion, canaries, membership, with and without noise or "
        "masking",
    ),
    Claim(
        "H8",
        "Closed models add to the harm of heterogeneity.",
        "Supported if shutting clients out costs a closed-side method score, on the held-out "
        "rows or on those of the clients shut out, and costs no open method that was drilled; "
        "not supported if it costs the closed side nothing, or an open method as well. That "
        "who is shut out can neither train nor be served is so by definition, and does not "
        "count.",
        "How many clients a provider's price, region or terms would shut out in practice. Open "
        "models shut out those without the hardware, which is not measured here.",
        "drills that shut clients out, with at least two seeds, on a base that can be prompted",
    ),
)
