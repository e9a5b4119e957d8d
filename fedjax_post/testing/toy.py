"""A toy federation with a known optimum: heterogeneous clients and one linear model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.core.access import Access, opaque
from fedjax_post.core.algorithm import PyTree
from fedjax_post.data.batches import ArrayClients
from fedjax_post.testing.toy_language import ToyLanguage, adapted_model, language_clients

NUM_CLIENTS, INPUTS, OUTPUTS = 6, 4, 3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ToyModel:
    """A frozen linear map, which grants the tier `access`."""

    weights: jax.Array  # [INPUTS, OUTPUTS]
    access: Access = dataclasses.field(default=Access.GRADIENTS, metadata={"static": True})

    def restrict(self, tier: Access) -> "ToyModel":
        """Returns the same model, restricted to `tier`."""
        return dataclasses.replace(self, access=tier)

    def predict(self, params: PyTree, inputs: jax.Array) -> jax.Array:
        """Returns outputs `[B, OUTPUTS]` of the map plus the trained change to it."""
        outputs = inputs @ (self.weights + params["change"]) + params["bias"][None]
        return outputs if Access.DIFFERENTIATE in self.access else opaque(outputs)


def toy_model() -> ToyModel:
    """Returns a fixed toy model."""
    rng = np.random.default_rng(0)
    return ToyModel(jnp.asarray(rng.normal(size=(INPUTS, OUTPUTS)), jnp.float32))


def toy_params() -> PyTree:
    """Returns the initial parameters, which are zero."""
    return {"change": jnp.zeros((INPUTS, OUTPUTS)), "bias": jnp.zeros(OUTPUTS)}


def toy_language() -> tuple[ToyLanguage, PyTree, ArrayClients]:
    """Returns a language model with the same parameters, their initial values, and text clients."""
    return ToyLanguage(*adapted_model()), toy_params(), language_clients()


def toy_loss(params: PyTree, model: ToyModel | ToyLanguage, batch: PyTree, key: jax.Array):
    """Returns half the mean squared error, or the loss of a language model, and metrics.

    Args:
      params: the trained parameters.
      model: the toy model, or a language model.
      batch: "x" `[B, INPUTS]` and "y" `[B, OUTPUTS]`, or rows of tokens.
      key: for dropout of a language model.

    Example:
      >>> loss, metrics = toy_loss(toy_params(), toy_model(), toy_arrays()[0], jax.random.key(0))
      >>> bool(loss > 0), list(metrics)
      (True, ['loss'])
    """
    if isinstance(model, ToyLanguage):
        return model.loss(params, batch, key)
    error = model.predict(params, batch["x"]) - batch["y"]
    loss = 0.5 * jnp.mean(jnp.sum(error**2, axis=-1))
    return loss, {"loss": loss}


def toy_arrays(num_clients: int = NUM_CLIENTS) -> list[PyTree]:
    """Returns the clients' arrays: 4 to 8 examples each, of a different map for each client."""
    clients = []
    base = np.asarray(toy_model().weights)
    for k in range(num_clients):
        rng = np.random.default_rng((1, k))
        x = rng.normal(size=(4 + k % 5, INPUTS)) * np.exp(0.3 * rng.normal(size=INPUTS))
        own = base + 0.5 + 0.2 * rng.normal(size=base.shape)
        y = x @ own + 0.1 * rng.normal(size=(len(x), OUTPUTS))
        clients.append({"x": x.astype(np.float32), "y": y.astype(np.float32)})
    return clients


def toy_clients(num_clients: int = NUM_CLIENTS, *, batch_size: int = 4, local_steps: int = 3):
    """Returns the toy population.

    Args:
      num_clients: number of clients.
      batch_size: see `ArrayClients`.
      local_steps: see `ArrayClients`.
    """
    return ArrayClients(toy_arrays(num_clients), batch_size=batch_size, local_steps=local_steps)


def toy_mean_loss(params: PyTree, model: ToyModel) -> float:
    """Returns the mean over the clients of their mean losses."""
    key = jax.random.key(0)
    return float(np.mean([toy_loss(params, model, arrays, key)[0] for arrays in toy_arrays()]))


def toy_best_loss() -> float:
    """Returns the least `toy_mean_loss` of any parameters, in closed form."""
    scale = [np.sqrt(0.5 / len(c["x"]) / NUM_CLIENTS) for c in toy_arrays()]
    with_bias = [np.pad(c["x"], ((0, 0), (0, 1)), constant_values=1) for c in toy_arrays()]
    x = np.concatenate([s * x for s, x in zip(scale, with_bias, strict=True)])
    y = np.concatenate([s * c["y"] for s, c in zip(scale, toy_arrays(), strict=True)])
    best = np.linalg.lstsq(x, y, rcond=None)[0]
    return float(np.sum((x @ best - y) ** 2))
