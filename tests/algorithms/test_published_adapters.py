"""Results of public codes of adapter aggregation on fixed factors, and their errors.

Every code was run once on a CPU (torch 2.13) on the factors below, which are sines, so
that anybody can run it again; numbers are rounded to six digits.

| code | commit | what was run |
| --- | --- | --- |
| ATP-1010/FederatedLLM | 7bea158 | `FedAvg` of FLoRA: stacks, zero padding, FedIT |
| alibaba/FederatedScope, branch FlexLoRA | 1cb1ab7 | `FlexLoRA`, `distribute_weight_fast` |
| RaghavSinghal10/fedex-lora | 683a3f3 | `aggregate_models_ours` |
| seanie12/fed-svd | 36650e2 | `reinit_lora`, `_agg_flora` and `_agg_fedex` with unequal weights |
| nclabteam/FedProC | 91f81c7 | LoRA-FAIR's server step, `l2`, 40,000 steps of SGD |
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_post import algorithms
from fedjax_post.adapters.factors import Factors


def assert_published(found, published):
    np.testing.assert_allclose(found, np.array(published), atol=4e-6)


SIZE_IN, SIZE_OUT, SIZES = 3, 4, [10.0, 20.0, 30.0]
sines = lambda seed, *shape: np.sin(seed + 1.3 * np.arange(np.prod(shape))).reshape(shape)
# as PEFT keeps them, A [r, in] and B [out, r]; three clients
UNEQUAL = [(sines(k, r, SIZE_IN), sines(10 + k, SIZE_OUT, r)) for k, r in enumerate((1, 2, 1))]
EQUAL = [(sines(20 + k, 2, SIZE_IN), sines(30 + k, SIZE_OUT, 2)) for k in range(3)]
SQUARE = [(sines(60 + k, 1, 2), sines(70 + k, 2, 1)) for k in range(3)]


def uploads(pairs, *, rank, alpha_over_rank=False):
    """Factors as clients send them, zeros beyond their ranks: leaves [clients, 1 layer, ..]."""
    a, b = [], []
    for held_a, held_b in pairs:
        own = held_a.shape[0]
        scale = rank / own if alpha_over_rank else 1.0  # alpha / own in units of alpha / rank
        a.append(np.pad(held_a.T, ((0, 0), (0, rank - own)))[None])
        b.append(np.pad(scale * held_b.T, ((0, rank - own), (0, 0)))[None])
    return Factors({"q": jnp.asarray(a, jnp.float32)}, {"q": jnp.asarray(b, jnp.float32)})


def served(name, values, weights, **options):
    """What the server shares after a round in which clients sent these factors."""
    algorithm = algorithms.ALGORITHMS[name](None, optax.sgd(1.0), **options)
    like = jax.tree.map(lambda x: x[0], values)
    zeros = jax.tree.map(jnp.zeros_like, {"lora": {"q": {"a": like.a["q"], "b": like.b["q"]}}})
    shared = algorithm.init(zeros)
    total = algorithm.aggregate.init(like, len(weights))
    total = algorithm.aggregate.add(total, values, jnp.asarray(weights, jnp.float32))
    value = algorithm.aggregate.finish(total)
    return algorithm.server.update(value, algorithm.server.init(shared), shared)[0]


def transposed(leaf):
    """One layer's matrix as PEFT keeps it."""
    return np.asarray(leaf)[0].T


def test_flora_is_its_authors_stack():
    published = [
        [-0.438236, -0.28632, 0.285055], [0.308673, -0.012481, -0.31535],
        [0.593808, -0.155583, -0.677044], [-0.411491, 0.132551, 0.482406],
    ]  # fmt: skip
    values = uploads(UNEQUAL, rank=2)
    shared = served("flora", values, SIZES)
    assert_published(transposed(shared.residual["q"]), published)
    assert int(shared.folded[0]) == 4  # rows of their stack
    assert_published(transposed(served("florist", values, SIZES).residual["q"]) @ np.eye(3),
                     best_of_energy(np.array(published), 0.9))  # fmt: skip


def best_of_energy(matrix, energy):
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    p = int((np.cumsum(s**2) < energy * (s**2).sum()).sum()) + 1
    assert p < len(s)
    return u[:, :p] * s[:p] @ v[:p]


def test_het_lora_without_its_terms_is_zero_padding():
    a = [[0.735139, 0.330289, -0.558435], [-0.327484, -0.027696, 0.312667]]
    b = [[-0.692287, -0.087744], [0.462169, 0.24096], [0.295525, -0.325209], [0.05006, 0.316375]]
    shared = served("het_lora", uploads(UNEQUAL, rank=2), SIZES, sparsity_weights=False)
    assert_published(transposed(shared.a["q"]), a)
    assert_published(transposed(shared.b["q"]), b)


def test_floras_fed_it_keeps_the_first_client_alone():
    """A slip in a name: what it returns is p_0 A_0 and p_0 B_0; ours is the mean."""
    published = [[0.152158, 0.106237, -0.095321], [-0.157234, 0.011201, 0.163226]]
    assert_published(EQUAL[0][0] * SIZES[0] / sum(SIZES), published)
    shared = served("het_lora", uploads(EQUAL, rank=2), SIZES, sparsity_weights=False)
    mean = sum(w * a for w, (a, _) in zip(SIZES, EQUAL, strict=True)) / sum(SIZES)
    np.testing.assert_allclose(transposed(shared.a["q"]), mean, atol=1e-6)
    assert np.abs(mean - published).max() > 0.1


def test_flex_lora_hands_out_its_authors_products():
    """alpha 16: what clients of rank 1 and 2 hold, (16 / r) B A."""
    published = {
        1: [[-4.219306, 0.748235, 4.619609], [5.205232, -0.923075, -5.699074],
            [8.123545, -1.440596, -8.89426], [-4.575574, 0.811414, 5.009678]],
        2: [[-5.457502, -2.650921, 4.039266], [4.904739, -1.748001, -5.839915],
            [8.004989, -1.766063, -8.949828], [-3.986119, 2.429615, 5.285956]],
    }  # fmt: skip
    shared = served("flex_lora", uploads(UNEQUAL, rank=2, alpha_over_rank=True), SIZES)
    for rank, products in published.items():
        a, b = transposed(shared.a["q"])[:rank], transposed(shared.b["q"])[:, :rank]
        np.testing.assert_allclose(16 / 2 * b @ a, products, atol=2e-5)


@pytest.mark.parametrize(
    ("weights", "published"),
    [
        ([1.0, 1.0, 1.0],  # fedex-lora, an adapted layer of GPT-2
         [[0.121804, -0.917537, -0.612684], [-0.99227, 0.075193, 1.032498],
          [1.578726, 0.788672, -1.156788], [-1.713316, -1.426803, 0.94998]]),
        (SIZES,  # fed-svd's baseline
         [[-0.188513, -0.91756, -0.30238], [-0.624426, 0.319228, 0.795212],
          [1.258639, 0.370474, -1.060437], [-1.532602, -0.954138, 1.022141]]),
    ],
    ids=["equal", "unequal"],
)  # fmt: skip
def test_fed_ex_lora_folds_its_authors_residual(weights, published):
    shared = served("fed_ex_lora", uploads(EQUAL, rank=2), weights)
    np.testing.assert_allclose(4 * transposed(shared.residual["q"]), published, atol=1e-5)


def test_fed_ex_loras_authors_transpose_the_residual_of_a_linear_layer():
    """Right for GPT-2's [in, out] weights, wrong for [out, in]; seen only where in = out."""
    published = np.array([[-0.043987, 0.989512], [-1.186989, -3.243434]])
    shared = served("fed_ex_lora", uploads(SQUARE, rank=1), [1.0, 1.0, 1.0])
    found = 8 * transposed(shared.residual["q"])
    assert_published(found.T, published)
    assert np.abs(found - published).max() > 1


def test_fed_svd_turns_as_its_authors_up_to_signs():
    a = [[0.734759, 0.128399, -0.666066], [-0.150754, -0.926455, -0.344897]]
    b = [[-0.965381, 0.554385], [0.232836, -0.649279], [0.566353, 0.558334], [-1.203438, -0.307581]]
    algorithm = algorithms.fed_svd(None, optax.sgd(1.0))
    pair = {"a": jnp.asarray(EQUAL[0][0].T[None]), "b": jnp.asarray(EQUAL[0][1].T[None])}
    shared = algorithm.init({"lora": {"q": pair}})
    shared, _ = algorithm.server.update({"q": jnp.zeros((1, 2, SIZE_OUT))}, (), shared)
    found_a, found_b = transposed(shared.a["q"]), transposed(shared.b["q"])
    assert_published(np.abs(found_a), np.abs(a))
    assert_published(np.abs(found_b), np.abs(b))
    assert_published(found_b @ found_a, np.array(b) @ a)


def test_lora_fair_is_where_descent_on_the_squared_distance_comes_to_rest():
    """FedProC's distance is a mean over in x out entries, so that its weight of 1e-3 is this."""
    b = [[-0.041712, 0.078726, -0.093207, 0.08101], [0.400401, -0.596921, 0.62259, -0.470059]]
    penalty = 1e-3 * SIZE_IN * SIZE_OUT
    shared = served("lora_fair", uploads(EQUAL, rank=2), SIZES, penalty=penalty)
    np.testing.assert_allclose(np.asarray(shared.b["q"])[0], b, atol=5e-5)
