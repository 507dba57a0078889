"""Reports: who hears them, what becomes of several by one name, and how they get out of a mapped function."""

import threading

import pytest
import torch
from torch import nn

from models.rack.reports import collecting, is_collecting, pass_on, report

ONE, TWO = torch.tensor(1.0), torch.tensor(2.0)


def test_nothing_is_heard_where_nobody_collects():
    assert not is_collecting()
    report("nothing", ONE, weight=1.0)
    with collecting() as found:
        assert is_collecting()
    report("too late", ONE, weight=1.0)
    assert (found.losses, found.metrics) == ({}, {})


def test_losses_are_weighted_and_summed_and_metrics_are_means():
    with collecting() as found:
        report("balance", ONE, weight=0.5)
        report("balance", TWO, weight=0.25)
        report("share", TWO)
    assert found.losses == {"balance": 1.0}
    assert found.metrics == {"balance": 1.5, "share": 2.0}


def test_only_the_innermost_collection_hears():
    with collecting() as outer:
        with collecting() as inner:
            report("inside", ONE)
        report("outside", TWO)
    assert list(inner.metrics) == ["inside"]
    assert list(outer.metrics) == ["outside"]


def test_an_error_ends_the_collection():
    with pytest.raises(ValueError, match="scalar"), collecting():
        report("pair", torch.ones(2))
    assert not is_collecting()


def test_another_thread_is_not_heard():
    with collecting() as found:
        thread = threading.Thread(target=report, args=("elsewhere", ONE))
        thread.start()
        thread.join()
    assert not found.metrics


def test_a_loss_without_reports_is_the_same_tensor():
    loss = torch.ones(3, requires_grad=True)
    with collecting() as found:
        report("metric", ONE)
    assert found.added_to(loss) is loss


def test_reported_losses_are_added_by_their_share_with_gradients_and_metrics_have_none():
    x = torch.tensor(3.0, requires_grad=True)
    with collecting() as found:
        report("square", x.square(), weight=0.5)
        report("cube", x**3, weight=2.0)
    assert found.added_to(x, share=0.1).item() == pytest.approx(3 + 0.1 * (0.5 * 9 + 2 * 27))
    found.added_to(x).backward()
    assert x.grad.item() == pytest.approx(1 + 0.5 * 2 * 3 + 2 * 3 * 9)
    assert not any(value.requires_grad for value in found.metrics.values())


def test_a_value_that_is_no_scalar_is_refused():
    with collecting(), pytest.raises(ValueError, match=r"'balance' must be a scalar, not of shape \[2\]"):
        report("balance", torch.ones(2))


class Reporting(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        y = self.linear(x)
        report("size", y.square().mean(), weight=0.1)
        return y


def test_reports_in_a_mapped_function_are_collected_inside_and_passed_on():
    models, x = [Reporting() for _ in range(3)], torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    parameters, _ = torch.func.stack_module_state(models)

    def run(single):
        with collecting() as inner:
            y = torch.func.functional_call(models[0], single, (x,))
        return y, inner.losses, inner.metrics

    with collecting() as found:
        y, *reports = torch.vmap(run)(parameters)
        pass_on(*reports)
    gradients = torch.autograd.grad(found.added_to(y.mean((1, 2))).sum(), list(parameters.values()))
    for index, model in enumerate(models):
        with collecting() as alone:
            own = model(x)
        for kind in ("losses", "metrics"):
            torch.testing.assert_close(getattr(found, kind)["size"][index], getattr(alone, kind)["size"])
        expected = torch.autograd.grad(alone.added_to(own.mean()), list(model.parameters()))
        for gradient, other in zip(gradients, expected, strict=True):
            torch.testing.assert_close(gradient[index], other)
