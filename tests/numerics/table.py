"""All operators and losses that are compared with PyTorch."""

from . import losses, multi_tensor, networks, norm_act, perceptual

OPERATORS = [
    *multi_tensor.OPERATORS,
    *losses.OPERATORS,
    *norm_act.OPERATORS,
    *perceptual.OPERATORS,
    *networks.OPERATORS,
]
