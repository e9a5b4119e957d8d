"""From ``mesh`` to the devices of a run: which it uses, and what cannot be distributed."""

from typing import Any, TypeVar

from jax.sharding import Mesh

import fedjax_post
from fedjax_post.model.config import DecoderConfig
from fedjax_post.simulate.mesh import CLIENTS, MODEL, check_divides, weight_sharding
from fedjax_post.study.spec import Spec

Tree = TypeVar("Tree")


def find_mesh(spec: Spec, config: DecoderConfig) -> Mesh | None:
    """Returns the mesh of an experiment; None for one device.

    Raises:
      ValueError: for a mesh that does not match the devices, the model's heads or width, or
        other fields.
    """
    if not spec.execution.mesh:
        return None
    given = f"mesh={spec.execution.mesh}"
    if spec.execution.executor == "host":
        raise ValueError(f"{given}: executor=host computes on one device; leave one of them out")
    if spec.execution.chunk_size == "auto":
        raise ValueError(f"{given}: chunk_size=auto knows one device's memory; give a number")
    mesh = fedjax_post.make_mesh(spec.execution.mesh)
    if spec.method.baseline == "central" and mesh.shape[CLIENTS] > 1:
        raise ValueError(
            f"{given}: baseline=central trains one client; give {MODEL}:{mesh.size}, or "
            "leave `mesh` out"
        )
    if spec.adapter.kind == "full" and mesh.shape[MODEL] > 1:
        raise ValueError(
            f"{given} splits the frozen base, and adapter=full freezes nothing; give "
            f"{CLIENTS}:{mesh.size}, or use adapter=lora"
        )
    check_divides(config, mesh)
    return mesh


def plan_of(mesh: Mesh | None, spec: Spec) -> dict[str, Any]:
    """Returns the field `executor` of `Plan`."""
    if mesh is not None:
        return {"executor": fedjax_post.on_mesh(mesh)}
    return {
        "executor": fedjax_post.host if spec.execution.executor == "host" else fedjax_post.device
    }


def loading(mesh: Mesh | None) -> dict[str, Any]:
    """Returns arguments for `load_model` with which no device ever holds the whole base."""
    return {} if mesh is None else {"sharding_fn": weight_sharding(mesh)}


def place(tree: Tree, mesh: Mesh | None) -> Tree:
    """Returns a tree on the mesh; unchanged without one."""
    return tree if mesh is None else fedjax_post.put_on_mesh(tree, mesh)
