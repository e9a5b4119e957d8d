"""Laws of attention: every kernel, also with stacked clients, equals the plain masked sum."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post.adapters.lora import add_lora
from fedjax_post.adapters.prompt import add_soft_prompt
from fedjax_post.model import attention
from fedjax_post.model.attention import (
    Device,
    attend,
    attend_causal,
    attend_grouped,
    find_device,
    fuses,
    read_facts,
)
from fedjax_post.objectives.sft import sft_loss
from fedjax_post.testing.models import tiny_config, tiny_model

H100, A100 = Device("cuda", (9, 0), True), Device("cuda", (8, 0), True)
WINDOW, LENGTH, CLIENTS = 3, 7, 3
HALF = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "dtype": "bfloat16"}
SLIDING = {"sliding_window": WINDOW, "sliding_layers": (1,)}


def random_qkv(dtype=jnp.float32):
    """Queries of four heads, keys and values of two, `[clients, B, L, heads, 8]`."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(CLIENTS, 2, LENGTH, heads, 8) for heads in (4, 2, 2)]
    return [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]


def visible(rule):
    """Which key each query may see, `[clients, B, 1, L, L]`, from the words of the rule."""
    row, column = np.arange(LENGTH)[:, None], np.arange(LENGTH)[None]
    mask = np.broadcast_to(column <= row, (CLIENTS, 2, 1, LENGTH, LENGTH)).copy()
    if rule == "window":
        mask &= row - column < WINDOW
    if rule == "segments":
        segments = np.sort(np.random.default_rng(0).integers(0, 3, (CLIENTS, 2, LENGTH)))
        mask &= (segments[..., :, None] == segments[..., None, :])[:, :, None]
    return mask


def summed_by_hand(q, k, v, mask, scale):
    """Attention from its definition, one query at a time."""
    out = np.zeros(q.shape)
    for *at, row, head in np.ndindex(q.shape[:-1]):
        at = tuple(at)
        keys = np.flatnonzero(mask[at][0, row])
        group = head // (q.shape[-2] // k.shape[-2])
        weights = np.exp(k[at][keys, group] @ q[at][row, head] * scale)
        out[at][row, head] = weights / weights.sum() @ v[at][keys, group]
    return out


def record_calls(monkeypatch):
    """Runs what is meant for cuDNN by the library's own XLA implementation; returns the calls."""
    library, calls = jax.nn.dot_product_attention, []

    def call(*args, **kwargs):
        calls.append(kwargs)
        return library(*args, **{**kwargs, "implementation": "xla"})

    monkeypatch.setattr(jax.nn, "dot_product_attention", call)
    return calls


@pytest.mark.parametrize("rule", ["causal", "window", "segments"])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_masked_attention_is_the_sum_by_hand(monkeypatch, rule, platform):
    monkeypatch.setattr(attention, "find_device", lambda: Device(platform))
    (q, k, v), mask = random_qkv(), visible(rule)
    mapped = jax.jit(jax.vmap(functools.partial(attend_with_mask, cap=None)))(q, k, v, mask)
    np.testing.assert_allclose(mapped, summed_by_hand(q, k, v, mask, 0.5), atol=1e-5)


@pytest.mark.parametrize("rule", ["causal", "window", "segments"])
@pytest.mark.parametrize("strip", [1, 2, 3])
def test_strips_of_queries_read_the_keys_up_to_their_end(monkeypatch, rule, strip):
    monkeypatch.setattr(attention, "STRIP", strip)
    grouped, widths = attention.attend_grouped, []

    def count(q, k, v, **how):
        widths.append((q.shape[1], k.shape[1]))
        return grouped(q, k, v, **how)

    monkeypatch.setattr(attention, "attend_grouped", count)
    (q, k, v), mask = random_qkv(), visible(rule)
    attend_fn = functools.partial(attend_with_mask, cap=None, causal=True)
    mapped = jax.jit(jax.vmap(attend_fn))(q, k, v, mask)
    np.testing.assert_allclose(mapped, summed_by_hand(q, k, v, mask, 0.5), atol=1e-5)
    first = {1: [(2, 2), (2, 4), (2, 6), (1, 7)], 2: [(3, 3), (3, 6), (1, 7)], 3: [(4, 4), (3, 7)]}
    assert widths == first[strip]


def attend_with_mask(q, k, v, mask, *, cap, causal=False):
    return attend(q, k, v, mask=mask, scale=0.5, cap=cap, causal=causal)


@pytest.mark.parametrize("form", ["whole", "segments", "prompt"])
def test_every_mask_without_a_cache_is_causal_by_place(monkeypatch, form):
    """So that strips lose nothing: what a model computes in strips is what it computes whole."""
    model = tiny_model(max_positions=256)
    params, more = {}, {}
    if form == "prompt":
        params = add_soft_prompt(model, jax.random.key(1), length=5)
    if form != "whole":
        more = {"segments": jnp.repeat(jnp.arange(4, dtype=jnp.int32), 40)[None]}
    tokens = jax.random.randint(jax.random.key(0), (1, 160), 3, model.config.vocab_size)
    mask = jnp.ones((1, 160), bool)

    def loss(params):
        return model.total_loss(params, tokens, mask, **more).nats

    in_strips = loss(params)
    jax.clear_caches()
    monkeypatch.setattr(attention, "MOST_STRIPS", 1)
    np.testing.assert_allclose(in_strips, loss(params), rtol=1e-6)
    jax.clear_caches()


@pytest.mark.parametrize(
    ("rule", "changes", "is_sliding"),
    [
        ("causal", {}, None),
        ("causal", SLIDING, False),
        ("window", SLIDING, True),
        ("window", {**SLIDING, "sliding_layers": (0, 1)}, True),
        ("causal", {**SLIDING, "sliding_window": LENGTH}, True),
    ],
)
def test_the_fused_kernels_arguments_mean_the_sum_by_hand(monkeypatch, rule, changes, is_sliding):
    calls = record_calls(monkeypatch)
    q, k, v = random_qkv()
    config = tiny_config(**{**HALF, **changes})
    sliding = None if is_sliding is None else jnp.bool_(is_sliding)

    def one(q, k, v, sliding):
        return attend_causal(q, k, v, config=config, is_sliding=sliding)

    mapped = jax.jit(jax.vmap(one, in_axes=(0, 0, 0, None)))(q, k, v, sliding)
    expected = summed_by_hand(q, k, v, visible(rule), config.softmax_scale)
    np.testing.assert_allclose(mapped, expected, atol=1e-5)
    assert all(call["implementation"] == "cudnn" and "mask" not in call for call in calls)


def test_soft_caps_bend_the_logits():
    (q, k, v), mask = random_qkv(), visible("causal")
    capped = attend_grouped(q[0], k[0], v[0], mask=mask[0], scale=0.5, cap=1e-9)
    mean = np.stack([v[0][:, : i + 1].mean(axis=1) for i in range(LENGTH)], axis=1)
    np.testing.assert_allclose(capped, mean.repeat(2, axis=2), atol=1e-5)


@pytest.mark.parametrize(
    ("device", "changes", "fused"),
    [
        (H100, {}, True),
        (A100, {}, True),
        (H100, {"dtype": "float16"}, True),
        (H100, SLIDING, True),
        (H100, {"head_dim": 256}, True),
        (A100, {"head_dim": 256}, False),
        (A100, {"head_dim": 128}, True),
        (H100, {"head_dim": 12}, False),
        (H100, {"dtype": "float32"}, False),
        (H100, {"attention_softcap": 50.0}, False),
        (Device("cuda", (7, 5), True), {}, False),
        (Device("cuda", (9, 0), False), {}, False),
        (Device("rocm"), {}, False),
        (Device("tpu"), {}, False),
        (Device("cpu"), {}, False),
    ],
)
def test_who_fuses(device, changes, fused):
    assert fuses(device, tiny_config(**{**HALF, **changes})) == fused


class FakeDevice:
    """A device as jax describes one."""

    def __init__(self, platform, capability=None):
        self.platform, self.compute_capability = platform, capability


def test_facts_are_read_from_jaxs_devices(monkeypatch):
    assert read_facts(FakeDevice("tpu")) == Device("tpu")
    assert read_facts(FakeDevice("gpu", "gfx90a")) == Device("rocm")
    version = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
    monkeypatch.setattr(version, lambda: 91800)
    assert read_facts(FakeDevice("gpu", "9.0")) == H100

    def absent():
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr(version, absent)
    assert read_facts(FakeDevice("gpu", "8.0")) == A100._replace(has_cudnn=False)
    with jax.default_device("cpu"):
        assert find_device() == Device("cpu")


def adapted(**changes):
    model, params = add_lora(tiny_model(**changes), jax.random.key(1), rank=2, alpha=2)
    return model, jax.tree.map(lambda leaf: leaf + 0.1, params)


def halved(model, params):
    """The same in bfloat16."""
    model, params = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), (model, params))
    config = dataclasses.replace(model.config, dtype="bfloat16")
    return dataclasses.replace(model, config=config), params


@pytest.mark.heavy
def test_an_accelerators_attention_equals_the_cpus(monkeypatch):
    """The library's attention under stacked clients, windows, and the cache; shapes of its own."""
    model, params = adapted(vocab_size=29, **SLIDING)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), params)
    tokens = jax.random.randint(jax.random.key(12), (2, 1, 7), 0, 29)

    def both(model):
        mapped = jax.vmap(model.logits)(stacked, tokens)
        mask = jnp.arange(7)[None] >= 2
        last, _ = model.prefill(params, tokens[0], mask=mask, num_slots=9)
        return mapped, last

    ours = jax.jit(both)(model)
    calls = record_calls(monkeypatch)
    monkeypatch.setattr(attention, "find_device", lambda: Device("tpu"))
    theirs = jax.jit(both)(dataclasses.replace(model, lora_dropout=0.1))  # another trace
    assert calls
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)


@pytest.mark.heavy
def test_whole_sequences_are_fused_and_all_else_is_masked(monkeypatch):
    """In bfloat16 on a device with cuDNN; logits as on a CPU to that precision."""
    model, params = halved(*adapted(vocab_size=27, head_dim=8, **SLIDING))
    tokens = jax.random.randint(jax.random.key(13), (2, 9), 0, 27)
    ours = model.logits(params, tokens)
    calls = record_calls(monkeypatch)
    for module in ("attention", "decoder"):
        monkeypatch.setattr(f"fedjax_post.model.{module}.find_device", lambda: H100)
    other = dataclasses.replace(model, lora_dropout=0.1)  # another trace
    theirs = other.logits(params, tokens)
    assert {call["implementation"] for call in calls} == {"cudnn"}
    assert (WINDOW - 1, 0) in [call.get("local_window_size") for call in calls]
    np.testing.assert_allclose(theirs, ours, atol=0.1)
    del calls[:]
    other.logits(params, tokens, segments=jnp.ones((2, 9), jnp.int32))
    other.logits(params, tokens, positions=jnp.arange(9, dtype=jnp.int32)[None])
    other.prefill(params, tokens, mask=tokens >= 0, num_slots=9)
    assert calls
    assert {call["implementation"] for call in calls} == {"xla"}


@pytest.mark.heavy
def test_the_fused_program_lowers_for_cuda_under_stacked_clients(monkeypatch):
    """Forward and backward calls of cuDNN with a causal mask and a window; nothing is run."""
    cudnn = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91800)
    monkeypatch.setattr("fedjax_post.model.decoder.find_device", lambda: H100)
    model, params = halved(*adapted(vocab_size=25, head_dim=8, **SLIDING))
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * CLIENTS), params)
    tokens = jnp.zeros((CLIENTS, 2, 14), jnp.int32)

    def step(params, model, tokens):
        batch = {"tokens": tokens, "loss_mask": jnp.ones(tokens.shape, bool)}
        return jax.grad(lambda p: sft_loss(p, model, batch, None)[0])(params)

    traced = jax.jit(jax.vmap(step, in_axes=(0, None, 0))).trace(stacked, model, tokens)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = [line for line in text.splitlines() if "@__cudnn$fmhaSoftmax" in line]
    assert all(r"mask_type\22: \22CAUSAL\22" in call for call in calls)
    for kernel in ("Softmax(", "SoftmaxBackward("):
        windows = {re.search(r"window_length\\22: (\d+)", c)[1] for c in calls if kernel in c}
        assert windows == {"0", str(WINDOW)}  # a global and a sliding layer
    assert f"{CLIENTS * 2}x14x4x8xbf16" in text  # the queries of all clients in one call
    assert "14x14" not in text  # no mask, no weights of attention


def test_second_derivatives_of_the_fused_kernel_are_refused_by_name(monkeypatch):
    """Its gradient is that of the kernel; an inner gradient that is held fixed is allowed."""
    record_calls(monkeypatch)
    q, k, v = (x[0].astype(jnp.bfloat16) for x in random_qkv())
    config = tiny_config(**HALF)

    def loss(q):
        return attend_causal(q, k, v, config=config).astype(jnp.float32).sum()

    slope = lambda q: jax.grad(loss)(q).astype(jnp.float32).sum()
    assert np.isfinite(slope(q))
    held = lambda q: loss(q + jax.grad(loss)(jax.lax.stop_gradient(q)))
    assert np.isfinite(jax.grad(held)(q).astype(jnp.float32)).all()
    for derivative in (jax.grad(slope), lambda q: jax.jvp(slope, (q,), (q,))):
        with pytest.raises(NotImplementedError, match="cuDNN.* no second derivative; .*float32"):
            derivative(q)
