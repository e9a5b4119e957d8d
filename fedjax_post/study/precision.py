"""The dtype of an experiment that does not give one."""

from fedjax_post.hub.precision import choose_dtype
from fedjax_post.study import hosting
from fedjax_post.study.spec import Spec


def fill_default(spec: Spec) -> Spec:
    """Returns the experiment with a dtype: that of `choose_dtype` where no weight is trained.

    It depends on this machine, so that a run writes it down and keeps it when it is resumed.
    """
    if spec.model.dtype is not None:
        return spec
    chosen = "float32"
    if is_chosen(spec):
        chosen = choose_dtype(spec.model.name, quantize=spec.model.quantize)
    return spec.put({"model.dtype": chosen})


def is_chosen(spec: Spec) -> bool:
    """Returns whether the machine decides: no dtype is given, and no weight is trained."""
    trained = spec.adapter.kind == "full" or hosting.is_hosted(spec)
    return spec.model.dtype is None and not trained
