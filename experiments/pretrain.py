"""Trains a built-in base model on a corpus generated in code, and writes it as a folder.

    python -m experiments.pretrain --output_dir=/tmp/base

The defaults are exactly what made `fedjax_post/hub/builtin`. The cards of `builtin_instruct`
and `builtin_small` beside it state theirs: `--corpus=instruct` trains on instructions and
examples, `--init=builtin` starts from existing weights. The same in a notebook:
`fedjax_post.study.pretrain`.
"""

from typing import Any

from absl import app, flags

from fedjax_post.study.pretrain import CORPORA, pretrain
from fedjax_post.study.pretrain_card import Recipe

FLAGS = flags.FLAGS
_USUAL = Recipe()
# name -> help, and the least value of a number
_ABOUT = {
    "corpus": ("the text to train on", None),
    "init": ("a model to start from, such as builtin; its shape is kept", None),
    "seed": ("of weights, corpus and checks", None),
    "num_steps": ("optimizer steps", 1),
    "batch_size": ("rows in a step", 1),
    "length": ("tokens in a row", 8),
    "learning_rate": ("peak of a warm-up and cosine schedule", 0),
    "chance_weight": ("weight of tokens outside answers", 0),
    "hidden_size": ("width of the residual stream", 2),
    "intermediate_size": ("width of the gated layer", 1),
    "num_layers": ("decoder layers", 1),
    "num_heads": ("query heads", 1),
    "num_kv_heads": ("key and value heads", 1),
    "num_checks": ("held-out formulas for the skill table", 1),
}


def _define() -> None:
    flags.DEFINE_string("output_dir", None, "folder to write, made if missing", required=True)
    for name, (about, low) in _ABOUT.items():
        usual = getattr(_USUAL, name)
        if name == "corpus":
            flags.DEFINE_enum(name, usual, list(CORPORA), about)
        elif name == "init":
            flags.DEFINE_string(name, usual, about)
        else:
            define = flags.DEFINE_float if isinstance(usual, float) else flags.DEFINE_integer
            define(name, usual, about, lower_bound=low)


def main(argv):
    """Trains, measures, and writes the folder."""
    del argv
    given: dict[str, Any] = {name: FLAGS[name].value for name in Recipe._fields}
    recipe = Recipe(**given)
    changed = [name for name in Recipe._fields if getattr(recipe, name) != getattr(_USUAL, name)]
    flagged = [f"--{name}={getattr(recipe, name)}" for name in changed]
    command = f"python -m experiments.pretrain --output_dir={FLAGS.output_dir}"
    found = pretrain(recipe, FLAGS.output_dir, command=" ".join([command, *flagged]))
    for name, value in found.skills.items():
        print(f"{name:10} {100 * value:5.1f} %")
    print(f"loss {found.loss:.4f}, {found.minutes:.1f} minutes, wrote {FLAGS.output_dir}")


if __name__ == "__main__":
    _define()
    app.run(main)
