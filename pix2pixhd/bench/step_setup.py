"""Networks and image of a training step. Without torch, so that the benchmarks' command lines answer at once."""

from __future__ import annotations

import dataclasses

__all__ = ["StepSetup"]


@dataclasses.dataclass
class StepSetup:
    """Networks and image of a step. The defaults are the paper's 512p setting."""

    size: str = "1024x512"
    network: str = "global"
    ngf: int = 64
    ndf: int = 64
    n_downsample: int = 4
    n_blocks: int = 9
    num_D: int = 2
    label_nc: int = 35

    @property
    def width_height(self) -> tuple[int, int]:
        """Width and height in pixels."""
        width, height = (int(side) for side in self.size.split("x"))
        return width, height
