"""Distances between feature maps. A new one is a file with a registered class, imported here."""

from pix2pixhd.losses.distances.base import CallableDistance, Distance, DistanceSpec, make, make_all, register
from pix2pixhd.losses.distances.elementwise import L1Distance, MSEDistance
from pix2pixhd.losses.distances.gram import GramDistance, gram_matrix
from pix2pixhd.losses.distances.normalized import CosineDistance, LPIPSDistance

__all__ = [
    "CallableDistance",
    "CosineDistance",
    "Distance",
    "DistanceSpec",
    "GramDistance",
    "L1Distance",
    "LPIPSDistance",
    "MSEDistance",
    "gram_matrix",
    "make",
    "make_all",
    "register",
]
