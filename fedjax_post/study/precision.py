"""The dtype of an experiment that does not give one."""

from fedjax_post.hub.precision import choose_dtype
from fedjax_post.study.spec import Spec


def fill_default(spec: Spec) -> Spec:
    """Returns the experiment with a dtype: that of `choose_dtype` where a frozen model is read.

    It depends on this machine, so that a run writes it down and keeps it when it is resumed.
    """
    if spec.model.dtype is not None:
        return spec
    chosen = "float32"
    if is_chosen(spec):
        chosen = choose_dtype(spec.model.name, quantize=spec.model.quantize)
    return spec.put({"model.dtype": chosen})


def is_chosen(spec: Spec) -> bool:
    """Returns whether the machine decides: no dtype is given, and the model is frozen and here.

    A host in this process, which tunes an adapter of it, computes in the same dtype as a client
    that holds the weights, so that the two can be compared.
    """
    frozen_here = spec.adapter.kind != "full" and spec.hosting.url is None
    return spec.model.dtype is None and frozen_here
