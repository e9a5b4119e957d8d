"""Logistic regression for the comparisons of overhead: the data of both sides, in numpy."""

import numpy as np


def make_clients(num_clients, *, features, classes, sizes, seed=0):
    """Returns arrays {"x": [n, features], "y": [n]} of each client, from a noisy linear teacher.

    Args:
      num_clients: number of clients.
      features: numbers in an example.
      classes: number of classes.
      sizes: examples of each client, repeated if there are more clients.
      seed: of the teacher and the data.
    """
    rng = np.random.default_rng(seed)
    teacher = rng.normal(size=(features, classes))
    arrays = []
    for size in np.resize(sizes, num_clients):
        x = rng.normal(size=(size, features)).astype(np.float32)
        noisy = x @ teacher + rng.gumbel(size=(size, classes))
        arrays.append({"x": x, "y": noisy.argmax(1).astype(np.int32)})
    return arrays


def uneven_sizes(count, *, unit, seed=0):
    """Returns log-normal sizes, multiples of `unit`: at least one, and 6 of them on average.

    Args:
      count: number of sizes.
      unit: what they are multiples of.
      seed: of the draw.
    """
    drawn = np.random.default_rng(seed).lognormal(np.log(4.5), 0.75, count)
    return np.maximum(1, np.round(drawn)).astype(int) * unit


def gradient(w, x, y):
    """Returns the gradient of the mean cross-entropy, `[features, classes]`.

    Args:
      w: weights `[features, classes]`.
      x: examples `[n, features]`.
      y: classes `[n]`, int32.
    """
    logits = x @ w
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return x.T @ p / len(y)


def mean_loss(w, arrays):
    """Returns the mean cross-entropy over all clients' examples, nats."""
    x, y = (np.concatenate([a[name] for a in arrays]) for name in ("x", "y"))
    logits = np.asarray(x @ np.asarray(w), np.float64)
    top = logits.max(1)
    return float(
        np.mean(top + np.log(np.exp(logits - top[:, None]).sum(1)) - logits[np.arange(len(y)), y])
    )


# The workload of FLUTE's comparison with others: MNIST's shape, batches of 10, one epoch.
FLUTE = {"features": 784, "classes": 10}
FLUTE_CLIENTS, FLUTE_COHORT, FLUTE_BATCH, FLUTE_RATE = 1000, 10, 10, 0.03
# A job with almost no arithmetic, whose time is overhead. All clients take part and every step
# uses all of a client's examples, so that both sides compute the same numbers.
SMALL = {"features": 16, "classes": 4, "sizes": [20]}
SMALL_CLIENTS, SMALL_STEPS, SMALL_RATE = 32, 5, 0.1


def flute_clients():
    """Returns the clients of the FLUTE workload."""
    sizes = uneven_sizes(FLUTE_CLIENTS, unit=FLUTE_BATCH)
    return make_clients(FLUTE_CLIENTS, sizes=sizes, **FLUTE)


def small_clients():
    """Returns the clients of the job that is all overhead."""
    return make_clients(SMALL_CLIENTS, **SMALL)
