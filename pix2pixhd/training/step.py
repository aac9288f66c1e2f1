"""Gradients of one training step, without redundant work."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from pix2pixhd.losses import DiscriminatorLoss, GeneratorLoss
from pix2pixhd.nn.concatenation import concatenate
from pix2pixhd.training.image_pool import ImagePool
from pix2pixhd.training.losses import perceptual_name

__all__ = ["compute_gradients"]


@contextlib.contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Computes no gradients for the weights of a network within the block."""
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def compute_gradients(
    netG: nn.Module,
    netD: nn.Module,
    generator_loss: GeneratorLoss,
    discriminator_loss: DiscriminatorLoss,
    condition: Tensor,
    real: Tensor,
    backward: Callable[..., None] = torch.autograd.backward,
    on_gradients: Callable[[nn.Module], None] | None = None,
    pool: ImagePool | None = None,
    features: Tensor | None = None,
) -> dict[str, Tensor]:
    """Adds the gradients of both networks for one step to their ``.grad``.

    G runs once, and D runs once on the generated and once on the real image. Both losses use the same D. The
    generator's backward computes no gradients of D's weights, and the discriminator's backward stops at the generated
    image; both share D's forward on the generated image. Generated and real images are not concatenated into one batch,
    because the generator's backward would then include the real half.

    Args:
        netG: The generator.
        netD: The discriminator.
        generator_loss: Computes the generator's loss terms from predictions and images.
        discriminator_loss: Computes the discriminator's loss terms from predictions.
        condition: The encoded input ``[N, C, H, W]``.
        real: Real images ``[N, 3, H, W]`` in [−1, 1].
        backward: Runs a backward pass, like ``torch.autograd.backward``; Lightning's scales losses under float16.
        on_gradients: Called with each network when its gradients are complete; with D before G's backward.
        pool: Pool of generated images for the discriminator's loss. With a pool, D runs a third time, on the images
            that the pool returns.
        features: An encoder's features ``[N, F, H, W]``. They are concatenated to the condition for the generator, not
            for D. The generator's backward continues into the encoder.

    Returns:
        The detached loss terms: ``D_real``, ``D_fake``, ``G_GAN``, ``G_GAN_Feat``, ``G_VGG`` (``G_LPIPS`` if the
        perceptual loss is LPIPS) and ``G_total``.

    Example:
        >>> from pix2pixhd.models import define_D, define_G
        >>> netG, netD = define_G(4, 3, 4, "global", 1, 1), define_D(7, 4, 2, getIntermFeat=True)
        >>> x, real = torch.zeros(1, 4, 16, 16), torch.zeros(1, 3, 16, 16)
        >>> terms = compute_gradients(netG, netD, GeneratorLoss(lambda_vgg=0.0), DiscriminatorLoss(), x, real)
    """
    generated = netG(condition if features is None else torch.cat([condition, features], dim=1))
    # The losses are computed from this leaf, whose gradient then starts the backward through G.
    fake = generated.detach().requires_grad_()
    # Free each stage's memory before the next allocates: VGG's activations before those of D, and those of D before the
    # gradients of G.
    perceptual = generator_loss.perceptual(fake, real)
    if perceptual.requires_grad:
        backward(perceptual, inputs=[fake])
    pooled = pool is not None and pool.size > 0
    # With a pool, only the generator's loss uses this forward, so it needs no gradient of D's weights.
    with _frozen(netD) if pooled else contextlib.nullcontext():
        pred_fake = netD(concatenate(condition, fake))
    pred_real = netD(concatenate(condition, real))
    gan, feat = generator_loss.adversarial(pred_fake, pred_real)
    through_D = gan + feat
    if pool is not None and pooled:
        if through_D.requires_grad:
            backward(through_D, inputs=[fake])
        pred_fake = netD(pool.query(torch.cat([condition, fake.detach()], dim=1)))
        loss_D = discriminator_loss(pred_fake, pred_real)
    else:
        loss_D = discriminator_loss(pred_fake, pred_real)
        if through_D.requires_grad:
            backward(through_D, inputs=[fake], retain_graph=True)
    del pred_fake, pred_real
    backward(loss_D.total, inputs=list(netD.parameters()))
    if on_gradients is not None:
        on_gradients(netD)
    generated.backward(fake.grad)
    if on_gradients is not None:
        on_gradients(netG)
    terms = {
        "D_real": loss_D.real,
        "D_fake": loss_D.fake,
        "G_GAN": gan,
        "G_GAN_Feat": feat,
        perceptual_name(generator_loss): perceptual,
        "G_total": gan + feat + perceptual,
    }
    return {name: term.detach() for name, term in terms.items()}
