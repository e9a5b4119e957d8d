"""The stored numbers of every case equal those of PyTorch and peft now; needs [oracle]."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.oracle
HERE = Path(__file__).parent / "golden"
CASES = sorted(path.stem for path in HERE.glob("*.npz"))


@pytest.fixture(scope="module")
def make():
    """The script that wrote them."""
    spec = importlib.util.spec_from_file_location("make", HERE / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_case_is_stored(make):
    assert sorted(make.CASES) == CASES


@pytest.mark.parametrize("case", CASES)
def test_stored_numbers_are_pytorchs(make, case):
    import torch

    golden = np.load(HERE / f"{case}.npz")
    model = make.build(*make.CASES[case])
    ids = golden["ids"].astype(np.int64)
    greedy = torch.from_numpy(golden["greedy"].astype(np.int64))[None]
    close = {"rtol": 1e-5, "atol": 1e-5}  # another processor sums float32 in another order
    with torch.no_grad():
        np.testing.assert_allclose(model(torch.from_numpy(ids)).logits, golden["logits"], **close)
        best = model(greedy).logits[0, 3:-1].topk(2)
    assert (best.indices[:, 0] == greedy[0, 4:]).all()
    assert (best.values[:, 0] - best.values[:, 1] > make.GAP / 2).all()
    gradient, adapted = make.gradients(model, ids)
    np.testing.assert_allclose(gradient, golden["gradient"], **close)
    np.testing.assert_allclose(adapted, golden["adapted"], **close)
