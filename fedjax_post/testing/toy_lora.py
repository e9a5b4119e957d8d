"""A toy federation over adapters: two stacked linear layers, adapted like those of a decoder.

The layers are independent, each with its own inputs and targets, so that the
least loss over all changes of the weights has a closed form. The clients' best
changes share a part of rank `RANK` and differ in the rest.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.core.access import Access, opaque
from fedjax_post.core.algorithm import PyTree
from fedjax_post.data.batches import ArrayClients
from fedjax_post.model.views import LanguageModel, merge_collections
from fedjax_post.objectives.sft import sft_loss
from fedjax_post.testing.toy_language import adapted_model, language_clients

NUM_CLIENTS, LAYERS, INPUTS, OUTPUTS, RANK, ALPHA = 6, 2, 6, 5, 2, 3.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ToyLoraModel:
    """Frozen stacked maps `[LAYERS, INPUTS, OUTPUTS]`, in the collections of a decoder."""

    variables: dict[str, PyTree]
    lora_dropout: float = dataclasses.field(default=0.0, metadata={"static": True})
    access: Access = dataclasses.field(default=Access.GRADIENTS, metadata={"static": True})
    lora_layers: tuple[int, int] | None = dataclasses.field(  # the range of adapted layers: all
        default=(0, LAYERS), metadata={"static": True}
    )

    def restrict(self, tier: Access) -> "ToyLoraModel":
        """Returns the same model, restricted to `tier`."""
        return dataclasses.replace(self, access=tier)

    def predict(self, params: PyTree, inputs: jax.Array) -> jax.Array:
        """Returns outputs `[B, LAYERS, OUTPUTS]` for inputs `[B, LAYERS, INPUTS]`."""
        held = merge_collections(self.variables, params)
        layer = lambda name: held[name]["layers"]["mix"]
        product = lambda x, w: jnp.einsum("bni,nio->bno", x, w)
        outputs = product(inputs, layer("params")["kernel"])
        if "residual" in held:
            outputs = outputs + product(inputs, layer("residual")["kernel"])
        low = product(inputs, layer("lora")["a"]) * layer("lora_scale")["scale"][None]
        outputs = outputs + product(low, layer("lora")["b"])
        return outputs if Access.DIFFERENTIATE in self.access else opaque(outputs)


def toy_model(rank: int = RANK) -> ToyLoraModel:
    """Returns a fixed toy model, adapted at a given rank."""
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(size=(LAYERS, INPUTS, OUTPUTS)), jnp.float32)
    scale = jnp.full((LAYERS, rank), ALPHA / rank)
    return ToyLoraModel(
        {
            "params": {"layers": {"mix": {"kernel": kernel}}},
            "lora_scale": {"layers": {"mix": {"scale": scale}}},
        }
    )


def toy_params(rank: int = RANK) -> PyTree:
    """Returns the initial parameters: A is random, B is zero."""
    a = np.random.default_rng(7).uniform(-0.8, 0.8, size=(LAYERS, INPUTS, rank))
    pair = {"a": jnp.asarray(a, jnp.float32), "b": jnp.zeros((LAYERS, rank, OUTPUTS))}
    return {"lora": {"layers": {"mix": pair}}}


def toy_language() -> tuple[LanguageModel, PyTree, ArrayClients]:
    """Returns a language model, the initial values of its adapter, and clients with text."""
    return *adapted_model(), language_clients()


def toy_loss(params: PyTree, model: ToyLoraModel | LanguageModel, batch: PyTree, key: jax.Array):
    """Returns half the mean squared error, or the loss of a language model, and metrics.

    Args:
      params: the trained parameters.
      model: the toy model, or a language model.
      batch: "x" `[B, LAYERS, INPUTS]` and "y" `[B, LAYERS, OUTPUTS]`, or rows of tokens.
      key: for dropout of a language model.
    """
    if isinstance(model, LanguageModel):
        return sft_loss(params, model, batch, key)
    error = model.predict(params, batch["x"]) - batch["y"]
    loss = 0.5 * jnp.mean(jnp.sum(error**2, axis=(-2, -1)))
    return loss, {"loss": loss}


def toy_arrays(num_clients: int = NUM_CLIENTS) -> list[PyTree]:
    """Returns the clients' arrays: 4 to 8 examples each, of a different map for each client."""
    clients = []
    base = np.asarray(toy_model().variables["params"]["layers"]["mix"]["kernel"])
    rng = np.random.default_rng(3)
    common = rng.normal(size=(LAYERS, INPUTS, RANK)) @ rng.normal(size=(LAYERS, RANK, OUTPUTS))
    for k in range(num_clients):
        rng = np.random.default_rng((1, k))
        x = rng.normal(size=(4 + k % 5, LAYERS, INPUTS))
        own = base + 0.5 * common + 0.1 * rng.normal(size=base.shape)
        y = np.einsum("bni,nio->bno", x, own)
        clients.append({"x": x.astype(np.float32), "y": y.astype(np.float32)})
    return clients


def toy_clients(num_clients: int = NUM_CLIENTS, *, batch_size: int = 4, local_steps: int = 3):
    """Returns the toy population, of full rank.

    Args:
      num_clients: number of clients.
      batch_size: see `ArrayClients`.
      local_steps: see `ArrayClients`.
    """
    return ArrayClients(toy_arrays(num_clients), batch_size=batch_size, local_steps=local_steps)


def toy_mean_loss(params: PyTree, model: ToyLoraModel) -> float:
    """Returns the mean over the clients of their mean losses."""
    key = jax.random.key(0)
    return float(np.mean([toy_loss(params, model, arrays, key)[0] for arrays in toy_arrays()]))


def toy_best_loss(factor_a: np.ndarray | None = None) -> float:
    """Returns the least `toy_mean_loss` of any change to the weights, in closed form.

    Args:
      factor_a: `[LAYERS, INPUTS, R]`; if given, only changes A B with this A and any B count.
    """
    arrays = toy_arrays()
    base = np.asarray(toy_model().variables["params"]["layers"]["mix"]["kernel"], np.float64)
    scale = [np.sqrt(0.5 / len(c["x"]) / NUM_CLIENTS) for c in arrays]
    total = 0.0
    for layer in range(LAYERS):
        x, y = (
            np.concatenate([s * c[n][:, layer] for s, c in zip(scale, arrays, strict=True)])
            for n in "xy"
        )
        seen = x if factor_a is None else x @ factor_a[layer]
        change = np.linalg.lstsq(seen, y - x @ base[layer], rcond=None)[0]
        total += float(np.sum((x @ base[layer] + seen @ change - y) ** 2))
    return total
