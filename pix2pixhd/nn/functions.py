"""Autograd Functions of lean chains: what they save for backward, and what they recompute.

The layers ``norm → activation → padding → convolution`` are two Functions. ``_NormAct`` computes the convolution's
input and saves only its own input. ``_RebuiltConv`` does not save its input either: it saves a ``Recipe``, whose
tensors ``_NormAct`` saves too, and rebuilds its input in the backward with one elementwise pass. Two Functions instead
of one free the gradient of the convolution's output before the gradient of the norm's input is allocated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from pix2pixhd.ops import norm_act_reference
from pix2pixhd.ops.autograd import below_autograd, requested, transformed
from pix2pixhd.ops.norm_act import NONE, ZERO, norm_act, norm_act_backward, norm_statistics
from pix2pixhd.ops.norm_act_reference import memory_format_of

__all__ = ["ConvSpec", "NormSpec", "Recipe", "Statistics", "conv_forward", "conv_gradients", "convolve", "normalise"]
__all__ += ["recall", "remember", "saved_tensors", "versions_of"]


class Statistics(enum.Enum):
    """Source of mean and variance."""

    NONE = enum.auto()  # no normalisation
    IMAGE = enum.auto()  # of each channel of each image: instance norm
    BATCH = enum.auto()  # of each channel: batch norm in training
    CONSTANT = enum.auto()  # running statistics: batch norm in evaluation


@dataclasses.dataclass(frozen=True)
class NormSpec:
    """Constants of ``pad(act(norm(x)))``.

    Attributes:
        statistics: Source of mean and variance.
        eps: Added to the variance.
        activation: See ``norm_act``.
        slope: Slope of leaky ReLU.
        padding: ``(left, right, top, bottom)``.
        padding_mode: See ``norm_act``.
        keep_output: Whether to save the result instead of the input. Only for leaky ReLU without affine parameters and
            padding: dividing by a weight that is zero cannot recover the normalised input.
    """

    statistics: Statistics = Statistics.NONE
    eps: float = 1e-5
    activation: int = NONE
    slope: float = 0.2
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    padding_mode: int = ZERO
    keep_output: bool = False

    @property
    def constants(self) -> tuple[Any, ...]:
        """The last arguments of ``norm_act``."""
        return self.activation, self.slope, self.padding, self.padding_mode

    @property
    def reads_input(self) -> bool:
        """Whether gradients depend on the values of the input."""
        return self.statistics is not Statistics.NONE or self.activation != NONE

    @property
    def through_statistics(self) -> bool:
        """Whether the statistics are functions of the input."""
        return self.statistics in (Statistics.IMAGE, Statistics.BATCH)


class Recipe(NamedTuple):
    """How to rebuild ``pad(act(norm(source)))``."""

    source: Tensor
    mean: Tensor | None
    rstd: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    spec: NormSpec

    def rebuild(self, residual: Tensor | None = None) -> Tensor:
        """Compute the result in one pass, without a graph; a residual is added before the padding."""
        tensors = (self.source, self.mean, self.rstd, self.weight, self.bias, residual)
        with below_autograd():
            return norm_act(*tensors, *self.spec.constants)

    def differentiable(self) -> Recipe:
        """Return a recipe whose statistics depend on the source, for second derivatives."""
        if not self.spec.through_statistics:
            return self
        per_image = self.spec.statistics is Statistics.IMAGE
        mean, rstd, _ = norm_act_reference.norm_statistics(self.source, per_image, self.spec.eps)
        return self._replace(mean=mean, rstd=rstd)

    def compose(self) -> Tensor:
        """Compute the result from PyTorch's operations, with a graph."""
        recipe = self.differentiable()
        tensors = (recipe.source, recipe.mean, recipe.rstd, recipe.weight, recipe.bias, None)
        return norm_act_reference.norm_act(*tensors, *self.spec.constants)


def saved_tensors(ctx: Any) -> tuple[Any, ...]:
    """Return the saved tensors; explain the error if one was modified in place."""
    try:
        return cast("tuple[Any, ...]", ctx.saved_tensors)
    except RuntimeError as error:
        if "inplace operation" not in str(error):
            raise
        raise RuntimeError(
            f"{error} A lean network saves the input of a padding or normalisation layer, where the plain network "
            "saves a copy. Do not modify this tensor in place, or use the plain network: "
            "pix2pixhd.nn.lean(module, enabled=False), or compute.lean: false in the configuration."
        ) from error


class _Entry(NamedTuple):
    """Recipe of a result that left its chain. It keeps neither the result nor the source alive."""

    versions: tuple[int | None, ...]
    source: TensorWeakRef
    rest: tuple[Any, ...]


_RESULTS = WeakTensorKeyDictionary()


def versions_of(*tensors: Tensor | None) -> tuple[int | None, ...]:
    """Return numbers that change when one of the tensors is modified in place."""
    return tuple(None if x is None else x._version for x in tensors)


def remember(result: Tensor, recipe: Recipe) -> None:
    """Record how to rebuild a result, for a convolution in another chain."""
    if result.requires_grad and not _hooks_save():
        _RESULTS[result] = _Entry(versions_of(result, *recipe[:5]), TensorWeakRef(recipe.source), tuple(recipe[1:]))


def recall(x: Tensor) -> Recipe | None:
    """Return how to rebuild a tensor; None if it is no such result, or if a tensor has been modified in place since."""
    entry: _Entry | None = None if _hooks_save() else _RESULTS.get(x)  # type: ignore[no-untyped-call]
    source = None if entry is None else entry.source()
    if entry is None or source is None:
        return None
    recipe = Recipe(source, *entry.rest)
    return recipe if entry.versions == versions_of(x, *recipe[:5]) else None


def _hooks_save() -> bool:
    """Whether hooks for saved tensors are active, as in ``torch.utils.checkpoint``.

    A source that they save elsewhere may be freed, so that ``recall`` would depend on when that happens. A recomputed
    forward must save the same tensors as the first.
    """
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def _requested_inputs(ctx: Any, given: Sequence[bool]) -> list[bool]:
    """Return which of the first inputs' gradients this backward pass requests; ``given`` marks tensors."""
    needs = [need for need, tensor in zip(ctx.needs_input_grad, given, strict=False) if tensor]
    result = iter(requested(ctx, needs))
    return [tensor and next(result) for tensor in given]


def _saved_recipe(tensors: Sequence[Any], spec: NormSpec) -> Recipe:
    source, mean, rstd, weight, bias = tensors
    return Recipe(source, mean, rstd, weight, bias, spec)


class _NormAct(torch.autograd.Function):
    """``pad(act(norm(x)) + residual)`` that saves only ``x``, or only its output if that determines ``x``.

    The reciprocal deviation is a differentiable output if the output is saved, because second derivatives need it as a
    function of the input. A residual is not saved, and its gradient is that of the output.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mean: Tensor | None,
        rstd: Tensor | None,
        spec: NormSpec,
    ) -> tuple[Tensor | None, ...]:
        ctx.given = [t is not None for t in (x, weight, bias, residual, mean, rstd)]
        var = None
        if spec.through_statistics:
            with below_autograd():
                mean, rstd, var = norm_statistics(x, spec.statistics is Statistics.IMAGE, spec.eps)
        y = Recipe(x, mean, rstd, weight, bias, spec).rebuild(residual)
        ctx.spec = spec
        # The gradient of padding alone depends on the shape, not on the values.
        ctx.layout = None if spec.reads_input else (x.shape, memory_format_of(x))
        source = y if spec.keep_output else x if spec.reads_input else None
        ctx.save_for_backward(source, mean, rstd, weight, bias)
        ctx.set_materialize_grads(False)
        if not spec.through_statistics:
            return y, None, None, None
        assert mean is not None
        assert rstd is not None
        ctx.mark_non_differentiable(*((mean, var) if spec.keep_output else (mean, rstd, var)))
        return y, mean, rstd, var

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None, grad_rstd: Tensor | None, *__: None) -> tuple[Any, ...]:
        recipe = _saved_recipe(saved_tensors(ctx), ctx.spec)
        if grad is not None and ctx.layout is not None:
            shape, memory_format = ctx.layout
            placeholder = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=memory_format)
            recipe = recipe._replace(source=placeholder)
        if grad is None:
            if grad_rstd is None:
                return (None,) * 7
            grad = torch.zeros_like(recipe.source)  # keep_output, without padding: the source has the output's shape
        *needs, need_residual = _requested_inputs(ctx, ctx.given)[:4]
        composed = transformed(grad) or grad_rstd is not None
        if composed and not ctx.spec.keep_output:
            recipe = recipe.differentiable()
        backward: Any = norm_act_reference.norm_act_backward if composed else norm_act_backward
        tensors = (recipe.mean, recipe.rstd, recipe.weight, recipe.bias)
        settings = (*ctx.spec.constants, ctx.spec.through_statistics, needs[0], needs[1] or needs[2], False)
        with contextlib.nullcontext() if composed else below_autograd():
            grads = list(backward(grad, recipe.source, ctx.spec.keep_output, *tensors, *settings)[:3])
        if grad_rstd is not None:
            grads[0] = grads[0] + _through_rstd(grad_rstd, recipe)
        grads = [g if need else None for g, need in zip(grads, needs, strict=True)]
        return *grads, grad if need_residual else None, None, None, None


def _through_rstd(grad_rstd: Tensor, recipe: Recipe) -> Tensor:
    """Gradient of the input through ``rstd``, whose derivative is ``−rstd² · x_hat / M`` for M pixels."""
    y, rstd = recipe.source, cast(Tensor, recipe.rstd)
    x_hat = torch.where(y > 0, y, y / recipe.spec.slope)
    pixels = y.numel() // rstd.numel()
    factor = grad_rstd * rstd.square() / -pixels
    return (factor[:, :, None, None] * x_hat).to(y.dtype)


def normalise(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    spec: NormSpec,
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Recipe, Tensor | None]:
    """Compute ``pad(act(norm(x)))``, or ``act(norm(x)) + residual``.

    Args:
        x: Images ``[N, C, H, W]``.
        weight: ``[C]`` or None.
        bias: ``[C]`` or None.
        spec: Constants.
        mean: ``[1, C]``, for constant statistics only.
        rstd: As ``mean``.
        residual: Added in the same pass; shape and dtype of ``x``. Not with ``keep_output`` or padding.

    Returns:
        The result, the recipe to rebuild it without the residual, and the variance if the statistics are those of
        ``x``.
    """
    y, own_mean, own_rstd, var = _NormAct.apply(x, weight, bias, residual, mean, rstd, spec)
    if spec.through_statistics:
        mean, rstd = own_mean, own_rstd
    return y, Recipe(x, mean, rstd, weight, bias, spec), var


class ConvSpec(NamedTuple):
    """Constants of a convolution.

    Attributes:
        dtype: Dtype of the computation under autocast; None for that of the tensors.
        stride, padding, dilation, transposed, output_padding, groups: As in ``torch.convolution``.
    """

    dtype: torch.dtype | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int

    def cast(self, tensor: Tensor) -> Tensor:
        """Convert as autocast does."""
        return tensor if self.dtype is None else tensor.to(self.dtype)


class _RebuiltConv(torch.autograd.Function):
    """A convolution that saves the recipe of its input instead of its input.

    Under autocast it saves the original weight, not the converted copy.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, recipe: Recipe, spec: ConvSpec) -> Tensor:
        ctx.layout = (x.shape, memory_format_of(x))
        tensors: Sequence[Tensor | None] = ()
        if ctx.needs_input_grad[1]:
            *tensors, ctx.norm_spec = recipe
        ctx.save_for_backward(weight, *tensors)
        return conv_forward(ctx, x, weight, bias, spec)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        weight, *tensors = saved_tensors(ctx)

        def rebuild() -> Tensor:
            recipe = _saved_recipe(tensors, ctx.norm_spec)
            return recipe.compose() if transformed(grad) else recipe.rebuild()

        return *conv_gradients(ctx, grad, weight, weight, rebuild), None, None


def conv_forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
    """Convolve, and record in ``ctx`` what ``conv_gradients`` needs besides ``ctx.layout``."""
    ctx.spec, ctx.bias_dtype = spec, None if bias is None else bias.dtype
    converted = None if bias is None else spec.cast(bias)
    return cast(Tensor, torch.ops.aten.convolution(spec.cast(x), spec.cast(weight), converted, *spec[1:]))


def conv_gradients(
    ctx: Any, grad: Tensor, weight: Tensor, input_weight: Tensor, rebuild: Callable[[], Tensor]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Compute the gradients of input, weight and bias that are requested.

    Args:
        ctx: Context of the Function after ``conv_forward``. ``ctx.layout`` is the input's shape and memory format.
        grad: Gradient of the convolution's output.
        weight: The weight.
        input_weight: The channels of the weight that the input's gradient depends on.
        rebuild: Recomputes the input. Called only for the weight's gradient, and freed before the input's is allocated.
    """
    spec: ConvSpec = ctx.spec
    needs = _requested_inputs(ctx, [True, True, ctx.bias_dtype is not None])
    grad_x = grad_weight = grad_bias = None
    if needs[1]:
        # The gradient of a weight depends on its shape, not on its values, so the weight need not be converted.
        shape = weight if spec.dtype is None else torch.empty_like(weight, dtype=spec.dtype)
        _, grad_weight, grad_bias = _conv_backward(grad, spec.cast(rebuild()), shape, spec, [False, True, needs[2]])
        grad_weight = grad_weight.to(weight.dtype)
    elif needs[2]:
        grad_bias = grad.sum((0, 2, 3))
    if needs[0]:
        grad_x = _conv_backward(grad, _shape_only(grad, *ctx.layout), input_weight, spec, [True, False, False])[0]
    return grad_x, grad_weight, None if grad_bias is None else grad_bias.to(ctx.bias_dtype)


def _shape_only(grad: Tensor, shape: torch.Size, memory_format: torch.memory_format) -> Tensor:
    """Return a substitute for a convolution's input: the input's gradient depends on its shape, not on its values."""
    if grad.device.type != "cpu" or transformed(grad):
        return grad.new_empty(1).expand(shape)
    # oneDNN would copy an expanded tensor. The memory of an empty one is never accessed, so the system provides none.
    return torch.empty(shape, dtype=grad.dtype, memory_format=memory_format)


def _conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, spec: ConvSpec, mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of input, weight and bias for which ``mask`` is True, in the dtype of the convolution."""
    channels = [grad.shape[1]] if mask[2] else None
    result = torch.ops.aten.convolution_backward(grad, x, spec.cast(weight), channels, *spec[1:], mask)
    return cast("tuple[Tensor, Tensor, Tensor]", result)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, recipe: Recipe, spec: ConvSpec) -> Tensor:
    """Convolve ``x``, which is rebuilt from its recipe in the backward."""
    return cast(Tensor, _RebuiltConv.apply(x, weight, bias, recipe, spec))
