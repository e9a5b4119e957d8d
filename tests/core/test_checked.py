"""Algorithms with wrong functions are refused, by the name of the field, before any computation."""

import traceback

import jax
import jax.numpy as jnp
import optax
import pytest

import fedjax_post as fp
from fedjax_post.algorithms import fed_avg
from fedjax_post.core import Access, Upload, cast
from fedjax_post.core.algorithm import Reading, stateless, unread
from fedjax_post.simulate.host import host
from fedjax_post.simulate.programs import device
from fedjax_post.testing.toy import toy_clients, toy_loss, toy_model, toy_params

BASE = fed_avg(toy_loss, optax.sgd(0.05))
LIKE = toy_params()


def part(name, **functions):
    """FedAvg with other functions in one part of the tuple."""
    return BASE._replace(**{name: getattr(BASE, name)._replace(**functions)})


def client(change, *, init=lambda model, replica, key: {"seen": jnp.zeros(2)}):
    """FedAvg whose clients keep a state, and return what `change` makes of their three values."""

    def update(model, replica, state, data, ctx):
        upload, _, metrics = BASE.client.update(model, replica, (), data, ctx)
        return change(upload, state, metrics)

    return part("client", init=init, update=update)


def server(change):
    """FedAvg whose server returns what `change` makes of its two values."""
    return part("server", update=lambda value, state, shared: change(
        *BASE.server.update(value, state, shared)))  # fmt: skip


def bias_alone(upload, state, metrics):
    return upload._replace(value={"bias": upload.value["bias"]}), state, metrics


half = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float16), tree)
WRONG = {
    "nothing": (None, "algorithm must be an Algorithm, got None; return one from its factory"),
    "part": (
        BASE._replace(server=optax.sgd(1.0)),
        "server must be a Server, got a GradientTransformation",
    ),
    "factory of a link": (
        BASE._replace(uplink=cast),
        "uplink must be an Uplink, got a function",
    ),
    "function": (
        part("client", init=()),
        r"client.init must be a function of \(model, replica, key\), got a tuple",
    ),
    "arguments": (
        part("client", init=lambda model, replica: ()),
        r"client.init must be a function of \(model, replica, key\), "
        r"got one of \(model, replica\)",
    ),
    "arguments of the visit": (
        part("client", update=lambda model, replica, data, ctx: ()),
        r"client.update must be a function of \(model, replica, state, data, ctx\)",
    ),
    "no state of the server": (
        part("server", update=lambda value, shared: shared),
        r"server.update must be a function of \(value, state, shared\)",
    ),
    "two values": (
        client(lambda upload, state, metrics: (upload, state)),
        r"client.update must return \(Upload, state, metrics\); got 2 values",
    ),
    "one value": (
        client(lambda upload, state, metrics: upload),
        r"client.update must return \(Upload, state, metrics\); got an Upload",
    ),
    "value without a weight": (
        client(lambda upload, state, metrics: (upload.value, state, metrics)),
        r"client.update must return .*; the first value is a dict",
    ),
    "weights": (
        client(lambda upload, state, metrics: (Upload(upload.value, jnp.ones(3)), state, metrics)),
        r"client.update must return .*; the weight of the Upload is float32\[3\], not \(\)",
    ),
    "swapped": (
        client(lambda upload, state, metrics: (upload, metrics, state)),
        r"client.update must return .*metrics\['seen'\] is float32\[2\], not one number",
    ),
    "metrics": (
        client(lambda upload, state, metrics: (upload, state, metrics["loss"])),
        r"client.update must return .*; metrics must be a dict of numbers, got a",
    ),
    "state without a leaf": (
        client(lambda upload, state, metrics: (upload, {}, metrics)),
        r"client.update must return state laid out like the state that it is given; "
        r"it has no \['seen'\]",
    ),
    "state of another shape": (
        client(lambda upload, state, metrics: (upload, {"seen": jnp.zeros(())}, metrics)),
        r"client.update .* state .*; \['seen'\] is float32\[\], not float32\[2\]",
    ),
    "state of another dtype": (
        client(lambda upload, state, metrics: (upload, half(state), metrics)),
        r"client.update .* state .*; \['seen'\] is float16\[2\], not float32\[2\]",
    ),
    "stateless that keeps": (
        client(lambda upload, state, metrics: (upload, upload.value, metrics), init=stateless),
        r"client.update .* state .*; it has \['bias'\] besides",
    ),
    "value unlike what is declared": (
        BASE._replace(value_like=lambda shared: shared["bias"]),
        r"value_like must return a tree like the value of an Upload; ",
    ),
    "value that is no change of the replica": (
        client(bias_alone),
        r"client.update must return an Upload whose value .*which as_change reads; "
        r"it has no \['change'\]",
    ),
    "value that the server cannot move": (
        client(bias_alone)._replace(read=unread),
        r"client.update must return an Upload whose value .*that server_optimizer updates; "
        r"it has no \['change'\]",
    ),
    "shared alone": (
        server(lambda shared, state: shared),
        r"server.update must return \(shared, state\); got a dict",
    ),
    "shared of another dtype": (
        server(lambda shared, state: (half(shared), state)),
        r"server.update must return shared laid out .*; \['bias'\] is float16\[3\], "
        r"not float32\[3\]",
    ),
    "shared of another structure": (
        server(lambda shared, state: (list(shared.values()), state)),
        r"server.update must return shared laid out .*; it has no \['bias'\]",
    ),
    "total": (
        part("aggregate", add=lambda total, values, weights: total.value),
        "aggregate.add must return total laid out like the total that it is given; ",
    ),
    "finish": (
        part("aggregate", finish=lambda total: total.weight),
        r"aggregate.finish must return a value laid out like the clients'; it has no \['bias'\]",
    ),
    "encode": (
        part("uplink", encode=lambda value, replica, state, ctx: value),
        r"uplink.encode must return \(message, state\); got a dict",
    ),
    "decode": (
        part("uplink", decode=lambda message, like: jax.tree.map(jnp.ravel, message)),
        r"uplink.decode must return value laid out like the like .*; "
        r"\['change'\] is float32\[12\], not float32\[4, 3\]",
    ),
    "receive": (
        part("downlink", receive=lambda message, replica: message["bias"]),
        r"downlink.receive must return replica laid out .*; it has no \['bias'\]",
    ),
    "deploy": (
        BASE._replace(deploy=lambda model, replica, state=None: replica),
        r"deploy must return \(model, params\); got a dict",
    ),
    "deploy without a state": (
        BASE._replace(deploy=lambda model, replica: (model, replica)),
        r"deploy must be a function of \(model, replica, state\), got one of \(model, replica\)",
    ),
    "read": (
        BASE._replace(read=lambda value, replica: value),
        "read must return a Reading, got a dict",
    ),
    "no roles": (BASE._replace(access={}), "access must map model roles to tiers"),
    "a role alone": (BASE._replace(access=Access.GRADIENTS), "access must map model roles"),
    "a tier in words": (
        BASE._replace(access={"target": "gradients"}),
        r"access\['target'\] must be a tier of Access, got 'gradients'",
    ),
}


def start(algorithm, executor=device):
    plan = fp.Plan(executor=executor)
    return fp.run(algorithm, toy_model(), toy_clients(), params=LIKE, rounds=1, plan=plan)


@pytest.mark.parametrize("executor", [device, host])
@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_named_before_anything_is_compiled(name, executor, monkeypatch):
    algorithm, message = WRONG[name]
    if executor is host:  # it is the same check; this is the proof that both ask for it
        monkeypatch.setattr(jax, "jit", None)
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        start(algorithm, executor)


def test_a_role_that_no_model_has_is_named():
    needed = {"target": Access.GRADIENTS, "proxy": Access.LOGITS}
    with pytest.raises(fp.AccessError, match="in the role 'proxy'"):
        start(BASE._replace(access=needed))


@pytest.mark.parametrize("executor", [device, host])
def test_an_error_of_ones_own_keeps_its_type_and_traceback(executor):
    def update(model, replica, state, data, ctx):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        start(part("client", update=update), executor)
    assert "in stage client.update" in caught.value.__notes__
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert (frames[-1].filename, frames[-1].name) == (__file__, "update")


def test_what_fits_passes_and_defaults_of_ones_own_arguments_are_allowed():
    fits = client(lambda upload, state, metrics: (upload, state, metrics))
    fits = fits._replace(deploy=lambda model, replica, state=None, extra=1: (model, replica))
    fits = fits._replace(read=lambda value, replica: Reading(value))
    list(start(fits))
