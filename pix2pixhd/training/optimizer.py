"""Adam for weights in channels-last memory format."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Adam"]


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
