"""Which library multiplies matrices."""

import pytest
import torch

from policies import precision


@pytest.fixture
def decided(monkeypatch):
    """Sets the answer to whether oneDNN is faster."""

    def decide(answer):
        monkeypatch.setattr(precision, "_onednn_is_faster", lambda: answer)

    return decide


def current():
    return torch.backends.mkldnn.matmul.fp32_precision


def test_large_products_are_as_exact_as_float32():
    """Forward and both gradients, batched and not; whatever this processor's library is."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((128, 256), (4, 128, 256)):
        x = torch.randn(*shape, generator=generator, requires_grad=True)
        w = torch.randn(*shape[:-2], 256, 64, generator=generator, requires_grad=True)
        exact_x, exact_w = (v.detach().double().requires_grad_() for v in (x, w))
        (exact_x @ exact_w).square().mean().backward()
        with precision.large_products():
            product = x @ w
            product.square().mean().backward()
        torch.testing.assert_close(product.double(), exact_x @ exact_w, rtol=1e-4, atol=1e-4)
        for ours, exact in ((x, exact_x), (w, exact_w)):
            torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="this torch has no such switch")
def test_acting_keeps_torchs_own_library(decided):
    before = current()
    decided(True)
    with precision.large_products():
        assert current() == "bf16"  # what torch calls it; the test above is about what it computes
    assert current() == before
    decided(False)
    with precision.large_products():
        assert current() == before


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="this torch has no such switch")
def test_two_threads_leave_the_switch_as_they_found_it(decided):
    """The first to come need not be the last to go."""
    before = current()
    decided(True)
    first, second = precision.large_products(), precision.large_products()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert current() == "bf16"
    second.__exit__(None, None, None)
    assert current() == before


def test_intels_processors_keep_mkl(monkeypatch):
    """MKL uses all of their vectors, and oneDNN might round to bf16 there."""
    monkeypatch.setattr(precision.Path, "read_text", lambda path: "vendor_id : GenuineIntel")
    assert not precision._onednn_is_faster.__wrapped__()
