"""The gradients of one training step, without work that nobody needs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from pix2pixhd.losses import DiscriminatorLoss, GeneratorLoss
from pix2pixhd.training.image_pool import ImagePool

__all__ = ["compute_gradients"]


@contextlib.contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """No gradients for the weights of a network in what is computed inside."""
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
    """Adds both networks' gradients of one step to their ``.grad``.

    G runs once, D once on the generated and once on the real picture; both losses are taken against the same D. The
    generator's backward leaves out the discriminator's weights, the discriminator's stops at the generated picture, and
    D's pass over the generated picture serves both. Generated and real pictures go through D apart rather than as one
    batch, because the generator's backward would then run through the real half too.

    Args:
        netG: The generator.
        netD: The discriminator.
        generator_loss: From predictions and pictures to the generator's terms.
        discriminator_loss: From predictions to the discriminator's terms.
        condition: The encoded input ``[N, C, H, W]``.
        real: Real pictures ``[N, 3, H, W]`` in [−1, 1].
        backward: What runs a backward; Lightning's, which scales losses under float16.
        on_gradients: Called with each network as soon as its gradients are complete, D's before G's backward.
        pool: Of generated pictures for the discriminator's loss. With one, D runs a third time, on what it gives back.
        features: An encoder's features ``[N, F, H, W]``, which the generator takes behind the condition and D does not
            see; the generator's backward goes on into the encoder.

    Returns:
        The loss terms, detached: ``D_real``, ``D_fake``, ``G_GAN``, ``G_GAN_Feat``, ``G_VGG``, ``G_total``.

    Example:
        >>> from pix2pixhd.models import define_D, define_G
        >>> netG, netD = define_G(4, 3, 4, "global", 1, 1), define_D(7, 4, 2, getIntermFeat=True)
        >>> x, real = torch.zeros(1, 4, 16, 16), torch.zeros(1, 3, 16, 16)
        >>> terms = compute_gradients(netG, netD, GeneratorLoss(lambda_vgg=0.0), DiscriminatorLoss(), x, real)
    """
    generated = netG(condition if features is None else torch.cat([condition, features], dim=1))
    # Everything after the generator starts at this leaf: its gradient is all that G needs to know of the losses.
    fake = generated.detach().requires_grad_()
    # What is done with goes before what comes next needs memory: VGG before D's activations are there, D's before G's
    # gradients are.
    vgg = generator_loss.perceptual(fake, real)
    if vgg.requires_grad:
        backward(vgg, inputs=[fake])
    pooled = pool is not None and pool.size > 0
    # With a pool this pass is the generator's alone, and D's weights need no gradient of it.
    with _frozen(netD) if pooled else contextlib.nullcontext():
        pred_fake = netD(torch.cat([condition, fake], dim=1))
    pred_real = netD(torch.cat([condition, real], dim=1))
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
        "G_VGG": vgg,
        "G_total": gan + feat + vgg,
    }
    return {name: term.detach() for name, term in terms.items()}
