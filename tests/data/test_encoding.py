import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pix2pixhd.data import encode_input, instance_edges, one_hot


@given(st.integers(1, 6), st.integers(1, 7), st.integers(1, 7), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_one_hot_matches_a_loop_over_pixels(label_nc, height, width, seed):
    ids = np.random.default_rng(seed).integers(0, label_nc, (2, height, width))
    expected = np.zeros((2, label_nc, height, width))
    for n in range(2):
        for y in range(height):
            for x in range(width):
                expected[n, ids[n, y, x], y, x] = 1
    for dtype in (torch.uint8, torch.int32, torch.int64):
        np.testing.assert_array_equal(one_hot(torch.from_numpy(ids).to(dtype), label_nc).numpy(), expected)


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_instance_edges_match_a_loop_over_pixels(height, width, seed):
    ids = np.random.default_rng(seed).integers(0, 3, (2, height, width)) + 65533
    expected = np.zeros((2, 1, height, width))
    for n in range(2):
        for y in range(height):
            for x in range(width):
                neighbours = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
                inside = [p for p in neighbours if 0 <= p[0] < height and 0 <= p[1] < width]
                expected[n, 0, y, x] = any(ids[(n, *p)] != ids[n, y, x] for p in inside)
    np.testing.assert_array_equal(instance_edges(torch.from_numpy(ids).int()).numpy(), expected)


def test_more_than_256_classes_are_encoded():
    ids = torch.tensor([[[299, 43]]], dtype=torch.int32)
    encoded = one_hot(ids, 300)
    assert encoded.sum() == 2
    assert encoded[0, 299, 0, 0] == encoded[0, 43, 0, 1] == 1


def test_ids_outside_the_classes_are_encoded_as_zeros():
    assert one_hot(torch.tensor([[[255]]], dtype=torch.uint8), 35).sum() == 0
    assert one_hot(torch.tensor([[[44]]], dtype=torch.uint8), 300)[0, 44] == 1


def test_encode_input_concatenates_labels_and_edges():
    ids = torch.randint(0, 5, (2, 4, 6))
    both = encode_input(ids, ids, 5)
    assert both.shape == (2, 6, 4, 6)
    torch.testing.assert_close(both[:, :5], one_hot(ids, 5))
    torch.testing.assert_close(both[:, 5:], instance_edges(ids))
    image = torch.rand(2, 3, 4, 6)
    torch.testing.assert_close(encode_input(image, None, 0), image)
    assert encode_input(image, ids, 0).shape == (2, 4, 4, 6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_encode_input_has_the_requested_dtype(dtype):
    ids = torch.randint(0, 5, (1, 4, 6))
    assert encode_input(ids, ids, 5, dtype).dtype == dtype
