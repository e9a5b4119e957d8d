"""A short run on the toy clients, which tests of noise look at."""

import fedjax_post as fp
from fedjax_post.testing import toy_clients, toy_model, toy_params


def play(algorithm, rounds=3, **plan):
    """The state after the last round."""
    steps = fp.run(
        algorithm, toy_model(), toy_clients(), params=toy_params(), rounds=rounds,
        plan=fp.Plan(**plan),
    )  # fmt: skip
    return list(steps)[-1][0]
