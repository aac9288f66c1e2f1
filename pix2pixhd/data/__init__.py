"""Paired datasets in NVIDIA's folder layout, with validation of all files before training."""

from pix2pixhd.config.schema import DataOptions
from pix2pixhd.data.check import check_pairs, survey
from pix2pixhd.data.dataset import EpochSampler, PairedDataset, Sample
from pix2pixhd.data.encoding import encode_input, instance_edges, one_hot
from pix2pixhd.data.folders import Pair, find_inputs, find_pairs, input_folders, list_images
from pix2pixhd.data.images import read_image, read_index_map, save_image
from pix2pixhd.data.problems import DataError, Problem
from pix2pixhd.errors import InputError

__all__ = [
    "DataError",
    "DataOptions",
    "EpochSampler",
    "InputError",
    "Pair",
    "PairedDataset",
    "Problem",
    "Sample",
    "check_pairs",
    "encode_input",
    "find_inputs",
    "find_pairs",
    "input_folders",
    "instance_edges",
    "list_images",
    "one_hot",
    "read_image",
    "read_index_map",
    "save_image",
    "survey",
]
