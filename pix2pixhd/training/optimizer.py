"""Adam for weights in channels-last memory format, and for steps within the backward pass."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from pix2pixhd.config.schema import OptimizerOptions
from pix2pixhd.errors import InputError

__all__ = ["Adam", "can_step_in_backward", "stepping_in_backward"]


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


class Adam(torch.optim.Adam):
    """``torch.optim.Adam`` with a fused step that processes channels-last weights in memory order.

    On the CPU PyTorch's fused step copies weight, gradient and both moments to the contiguous format and back, which
    takes ten times as long as the step itself. Results and ``state_dict`` are the same.

    Example:
        >>> optimizer = Adam(torch.nn.Conv2d(3, 8, 3).parameters(), lr=1e-3, fused=True)
    """

    def _init_group(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
        max_exp_avg_sqs: list[Tensor],
        state_steps: list[Tensor],
    ) -> bool:
        """Collects the tensors of the step, and replaces channels-last tensors by contiguous views."""
        has_complex: bool = super()._init_group(  # type: ignore[no-untyped-call]
            group, params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, state_steps
        )
        lists = [params, grads, exp_avgs, exp_avg_sqs, *([max_exp_avg_sqs] if group["amsgrad"] else [])]
        # The step is elementwise, so any element order is correct that all tensors of a weight share.
        for k in range(len(params)):
            if all(_is_channels_last(tensors[k]) for tensors in lists):
                for tensors in lists:
                    tensors[k] = tensors[k].detach().permute(0, 2, 3, 1)
        return has_complex

    def load_state_dict(self, state_dict: Any) -> None:
        """Loads a state, and converts the moments to the strides of the weights."""
        super().load_state_dict(state_dict)
        for param, state in self.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == param.shape and value.stride() != param.stride():
                    state[name] = torch.empty_like(param).copy_(value)

    @torch.no_grad()
    def step_one(self, group: dict[str, Any], parameter: Tensor) -> None:
        """Updates one parameter as ``step`` does, and frees its gradient.

        Args:
            group: The parameter's group in ``param_groups``.
            parameter: The parameter, with its gradient.
        """
        groups = self.param_groups
        self.param_groups = [{**group, "params": [parameter]}]
        try:
            # Not the instance's attribute, which a learning-rate schedule replaces to count whole steps.
            type(self).step(self)
        finally:
            self.param_groups = groups
        parameter.grad = None


@contextlib.contextmanager
def stepping_in_backward(optimizers: Iterable[Adam]) -> Iterator[None]:
    """Updates each weight within the backward pass, as soon as its gradient is complete, and frees the gradient.

    At the end of a backward pass, the gradients of all weights would otherwise need as much memory as the weights.
    Biases and the weights of norms are small, so they keep their gradients for ``step``, which must still be called.
    Both together give the bits of ``step`` alone, provided that each gradient is complete after one backward pass.

    Args:
        optimizers: The optimizers of all weights that the backward passes of the block reach.

    Example:
        >>> layer = torch.nn.Linear(64, 64)
        >>> optimizer = Adam(layer.parameters(), fused=True)
        >>> with stepping_in_backward([optimizer]):
        ...     layer(torch.ones(1, 64)).sum().backward()
        >>> optimizer.step()
        >>> print(layer.weight.grad)
        None
    """
    with contextlib.ExitStack() as stack:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                update = functools.partial(optimizer.step_one, group)
                for parameter in group["params"]:
                    if parameter.requires_grad and parameter.dim() > 1:
                        stack.callback(parameter.register_post_accumulate_grad_hook(update).remove)
        yield


def can_step_in_backward(wanted: bool | None, options: OptimizerOptions, precision: str, processes: int) -> bool:
    """Returns whether a step with ``stepping_in_backward`` gives the same result as one without.

    Args:
        wanted: ``compute.optimizer_in_backward``.
        options: Options of the optimizer.
        precision: ``trainer.precision``.
        processes: Number of processes that train together.

    Raises:
        InputError: If it is wanted and does not.
    """
    obstacle = None
    if options.accumulate > 1:
        obstacle = f"optimizer.accumulate: {options.accumulate} sums the gradients of several batches before a step"
    elif options.gradient_clip_val is not None:
        obstacle = "optimizer.gradient_clip_val clips by the norm of all gradients"
    elif precision == "16-mixed":
        obstacle = "trainer.precision: 16-mixed skips a step if any gradient is not finite"
    elif processes > 1:
        obstacle = f"gradients are averaged between the {processes} processes before a step"
    if wanted and obstacle is not None:
        raise InputError(f"compute.optimizer_in_backward is not possible here: {obstacle}; remove one of the two")
    return obstacle is None
