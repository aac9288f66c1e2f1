"""Checkpoints with damaged bytes are not loaded: ``torch.load`` itself ignores the checksums of a file."""

import random
import zipfile

import pytest
import torch

from pix2pixhd.checkpoints.format import read_checkpoint
from pix2pixhd.errors import InputError


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position // 8] ^= 1 << position % 8
    path.write_bytes(content)


@pytest.mark.parametrize("mapped", [False, True])
def test_a_flipped_bit_in_a_weight_is_detected(make_checkpoint, mapped):
    path = make_checkpoint()
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    flip(path, 8 * (largest.header_offset + len(largest.filename) + largest.file_size))
    torch.load(path, weights_only=True)  # loads wrong weights without an error
    with pytest.raises(InputError, match=rf"damaged: {largest.filename} does not match its checksum; copy another"):
        read_checkpoint(path, "copy another", mapped)


def test_a_flipped_bit_is_detected_or_changes_nothing(make_checkpoint):
    path = make_checkpoint()
    whole, weights = path.read_bytes(), read_checkpoint(path).weights
    rng = random.Random(0)
    detected = 0
    for _ in range(60):
        flip(path, rng.randrange(8 * len(whole)))
        try:
            changed = read_checkpoint(path).weights
        except InputError:
            detected += 1
        else:
            assert all(torch.equal(changed[name], value) for name, value in weights.items())
        path.write_bytes(whole)
    assert detected > 30


def test_files_without_checksums_are_read(make_checkpoint):
    path = make_checkpoint()
    content = torch.load(path, weights_only=True)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(content, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(path).weights.keys() == content["state_dict"].keys()


def test_an_unreadable_checkpoint_is_not_called_damaged(make_checkpoint, monkeypatch):
    path = make_checkpoint()

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(zipfile, "is_zipfile", refuse)
    with pytest.raises(InputError, match=r"cannot be read: .*Permission denied; make it .* readable \(chmod u\+r\)"):
        read_checkpoint(path)
