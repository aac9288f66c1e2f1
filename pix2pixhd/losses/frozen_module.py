"""Base class of the losses that own a frozen network."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from pix2pixhd.losses.frozen_gradient import Evaluation
from pix2pixhd.ops import frozen_features

if TYPE_CHECKING:
    from typing_extensions import Self


def _omit_network(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    assert isinstance(module, FrozenNetworkLoss)
    prefix = f"{prefix}{module.network_name}."
    for name in [name for name in state if name.startswith(prefix)]:
        del state[name]


def _restore_network(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Adds the weights that were omitted when saving, so that strict loading succeeds."""
    assert isinstance(module, FrozenNetworkLoss)
    prefix = f"{prefix}{module.network_name}."
    for name, value in module.frozen_network().state_dict(prefix=prefix).items():
        state.setdefault(name, value)


class OperatorLoss(nn.Module):
    """A loss that the operator ``pix2pixhd::frozen_feature_loss`` evaluates through a handle.

    Subclasses define ``evaluation`` and call ``_register`` in their constructor.

    Attributes:
        dtype: Compute dtype of the network, or None for that of autocast or of the network.
    """

    _handle: int
    dtype: torch.dtype | None

    def _register(self) -> None:
        """Takes a handle. Copies take one of their own."""
        self._handle = frozen_features.register(self)

    def evaluation(self) -> Evaluation:
        """Returns how the loss is evaluated with its current options."""
        raise NotImplementedError

    def evaluate(
        self,
        fake: Tensor,
        real: Tensor | None,
        targets: Sequence[Tensor],
        weight_map: Tensor | None,
        autocast: torch.dtype | None,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Evaluates the loss for the operator."""
        return self.evaluation().run(fake, real, targets, weight_map, autocast, with_gradient)

    def _through_operator(
        self,
        network: nn.Module,
        fake: Tensor,
        real: Tensor | None,
        targets: Sequence[Tensor],
        weight_map: Tensor | None,
    ) -> Tensor:
        """Returns the losses ``[N]``; the operator keeps no activations."""
        return frozen_features.frozen_feature_loss(
            self, self._handle, network, fake, real, targets=targets, weight_map=weight_map, dtype=self.dtype
        )

    def _precision(self, images: Tensor) -> contextlib.AbstractContextManager[Any]:
        """Returns the autocast context in which the network runs without the operator."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(images.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._register()

    def _replicate_for_data_parallel(self) -> Self:
        replica: Self = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        replica._register()
        return replica


class FrozenNetworkLoss(OperatorLoss):
    """A loss with a frozen network in evaluation mode, which is not part of ``state_dict()``.

    Attributes:
        network_name: Name of the attribute that holds the network.
    """

    network_name: ClassVar[str] = "network"

    def _own(self, network: nn.Module) -> None:
        """Takes a network, freezes it and sets it to evaluation mode."""
        setattr(self, self.network_name, network.requires_grad_(False).eval())
        self._register()
        self.register_state_dict_post_hook(_omit_network)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_restore_network)  # type: ignore[no-untyped-call]

    def frozen_network(self) -> nn.Module:
        """Returns the network."""
        network: nn.Module = getattr(self, self.network_name)
        return network

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of this module. The network stays in evaluation mode."""
        super().train(mode)
        self.frozen_network().eval()
        return self
