"""LoRA-FAIR: both factors are averaged, then B is corrected towards the mean of products.

Bian et al., "LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and
Initialization Refinement", ICCV 2025, arXiv:2411.14961.

    A = sum p_k A_k,   B = sum p_k B_k
    D = argmin |sum p_k A_k B_k - A (B + D)|^2 + penalty |D|^2;   B <- B + D

Clients start from the corrected pair, so that nothing is drawn anew.

Deviations: equation 8 of the paper (known from two summaries; its text and code were not
available) adds penalty |D| to a similarity of the two products, in its experiments their cosine,
and minimises it by SGD. A cosine ignores lengths, which averaging the factors distorts most, and
its slope grows as the products shrink, so that no step size fits all adapters. The squared
distance here counts both, has a closed form in matrices of size R,
D = (A'A + penalty I)^-1 A' (sum p_k A_k B_k - A B), and needs no step size. It equals the point
to which an independent implementation (FedProC, its choice `l2`, a mean over in x out entries)
converges. A client of rank r counts with zeros beyond r, and starts from the first r components.
"""

import jax
import jax.numpy as jnp

from fedjax_post.adapters import factors, products
from fedjax_post.core import aggregates, algorithm, local, world


def lora_fair(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    penalty: float = 0.01,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """Federated averaging of A and B with a correction of B on the server.

    The correction never increases the aggregation error; with an infinite penalty there is
    no correction, which is FedIT. A round sends both factors down and both up, the
    components of the client's rank. Clients keep no state; the server needs memory for
    the factors of a whole cohort.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the local optimizer, fresh at every visit.
      penalty: weight of |D|^2, positive.
      weigh_fn: `(ClientData) -> ()`, the weight of a client.

    Returns:
      An algorithm that shares `Factors`.

    Raises:
      ValueError: if `penalty` is not positive; at the start of a run, if anything but
        an adapter is to be trained.
    """
    if isinstance(penalty, int | float) and not penalty > 0:
        raise ValueError(f"penalty must be positive, got {penalty}; inf corrects nothing")

    def update(model, replica, state, data, ctx):
        _, end, metrics = factors.train(loss_fn, client_tx, replica, model, data, ctx)
        bill = factors.bill_by_rank(replica, replica, data.rank)
        return algorithm.Upload(end, weigh_fn(data), bill), state, metrics

    def correct(a_k, b_k, shares):
        share = shares.reshape(-1, 1, 1, 1)
        a, b = (a_k * share).sum(0), (b_k * share).sum(0)
        aligned = jnp.einsum("nir,knis->knrs", a, a_k * share)  # A' p_k A_k
        target = jnp.einsum("knrs,knso->nro", aligned, b_k)
        gram = jnp.einsum("nir,nis->nrs", a, a)
        ridge = gram / penalty + jnp.eye(gram.shape[-1])[None]
        missing = (target - gram @ b) / penalty
        return a, b + products.over_layers(jnp.linalg.solve, ridge, missing)

    def serve(cohort, state, shared):
        values, shares = cohort[0], products.shares_of(cohort[1])
        pairs = jax.tree.map(lambda a, b: correct(a, b, shares), *values)
        return factors.Factors(*products.unzip(pairs, shared.a)), state

    return algorithm.Algorithm(
        client=algorithm.Client(algorithm.stateless, update),
        server=algorithm.Server(lambda shared: (), serve),
        aggregate=aggregates.stack(),
        init=factors.split,
        deploy=factors.deploy,
        read=factors.read_end,
        refuses=dict.fromkeys(
            (algorithm.Around.MEMORY, algorithm.Around.SCALE),
            "clients send their factors, not a change of them",
        ),
        ranked=True,
    )
