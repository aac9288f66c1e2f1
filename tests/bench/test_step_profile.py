"""The profile of a step counts operations as PyTorch's own counter does, and puts operators into the right category."""

import pytest
import step_profile
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

CONVOLUTIONS = {
    "strided": lambda: torch.nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "dilated": lambda: torch.nn.Conv2d(4, 6, (3, 5), padding=2, dilation=2),
    "transposed": lambda: torch.nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
}


def events_of(run):
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        run()
    return profiler.events()


@pytest.mark.parametrize("with_input_gradient", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_operations_of_convolutions_equal_those_of_the_flop_counter(name, with_input_gradient):
    layer = CONVOLUTIONS[name]()
    x = torch.randn(2, 4, 9, 11, requires_grad=with_input_gradient)

    def run():
        layer(x).sum().backward()

    with FlopCounterMode(display=False) as counter:
        run()
    found = step_profile.summarize(events_of(run), "cpu", steps=1)
    assert found["convolution_flops"] == counter.get_total_flops() > 0


def test_every_operator_counts_in_its_category():
    layer = torch.nn.Conv2d(3, 4, 3)
    norm = torch.nn.BatchNorm2d(4)
    optimizer = torch.optim.Adam([*layer.parameters(), *norm.parameters()])
    x = torch.randn(1, 3, 16, 16)

    def run():
        y = torch.relu(norm(layer(x)))
        (torch.cat([y, y.bfloat16().float()]) @ torch.randn(14, 2)).sum().backward()
        optimizer.step()

    found = step_profile.summarize(events_of(run), "cpu", steps=1)
    where = {}
    for category, operator, _ in found["operators"]:
        where.setdefault(operator, set()).add(category)
    assert {category for name in where if "convolution" in name and "::" in name for category in where[name]} <= {
        "convolutions",
        "rest",  # nodes of autograd
    }
    assert where["aten::convolution_backward"] == {"convolutions"}
    assert where["aten::native_batch_norm"] == where["aten::relu"] == {"elementwise"}
    assert where["aten::cat"] == {"copies and casts"}
    assert where["aten::_to_copy"] == {"copies and casts", "optimizers"}
    assert where["aten::mm"] == {"rest"}
    assert "optimizers" in where["aten::sqrt"] or "optimizers" in where["aten::_foreach_sqrt"]
    assert sum(found["categories"].values()) == pytest.approx(found["seconds"])


def test_copies_made_by_a_convolution_are_counted_apart_from_other_copies():
    x = torch.randn(1, 8, 16, 16).transpose(2, 3)

    def run():
        torch.conv2d(x, torch.ones(8, 8, 3, 3))  # copies its input, which is neither contiguous nor channels-last
        x.contiguous()

    found = step_profile.summarize(events_of(run), "cpu", steps=1)
    categories = [category for category, operator, _ in found["operators"] if operator == "aten::copy_"]
    assert sorted(categories) == ["copies and casts", "copies of convolutions"]
