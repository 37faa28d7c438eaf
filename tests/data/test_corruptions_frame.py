"""Every image corruption: a row is a function of seed, name, severity, id and pixels alone; sizes, channels, white; refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.data.corruptions import CORRUPTIONS
from quorate.data.corruptions import image as frame
from quorate.data.corruptions.image import ImageCorruption, scale

IMAGES = {name: each for name, each in CORRUPTIONS["image"].items() if isinstance(each, ImageCorruption)}
COLOURED = ("snow", "frost", "brightness", "jpeg_compression")
RANDOM = [n for n in IMAGES if n not in ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")]


def pictures(rows: int, channels: int = 3, height: int = 16, width: int = 16, seed: int = 0) -> np.ndarray:
    """Noise with some structure, over all 256 values."""
    rng = np.random.default_rng(seed)
    wave = np.sin(np.arange(width) / 3 + np.arange(height)[:, None] / 5)
    noise = rng.normal(size=(rows, channels, height, width))
    return np.clip(128 + 60 * wave + 40 * noise, 0, 255).astype(np.uint8)


def test_there_are_the_published_fifteen() -> None:
    names = (
        "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur snow frost fog brightness contrast "
        "elastic_transform pixelate jpeg_compression"
    )
    assert " ".join(IMAGES) == names
    assert all(len(each.constants) == 5 for each in IMAGES.values())
    assert tuple(name for name, each in IMAGES.items() if each.colour) == COLOURED


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_same_bytes_in_any_batch_and_order(data: st.DataObject) -> None:
    each = IMAGES[data.draw(st.sampled_from(list(IMAGES)))]
    severity, seed = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 2**64 - 1))
    rows, channels = data.draw(st.integers(1, 7)), data.draw(st.sampled_from([1, 3]))
    height, width = data.draw(st.integers(8, 35)), data.draw(st.integers(8, 35))
    high = data.draw(st.sampled_from([None, 255, 256.0, 1.0, 16]))
    x = pictures(rows, channels, height, width, seed % 1000)
    if isinstance(high, float):
        x = (x / np.float32(255) * np.float32(high)).astype(np.float32)
    elif high == 16:
        x = (x // 16).astype(np.uint8)
    ids = np.array(data.draw(st.lists(st.integers(-5, 10**12), min_size=rows, max_size=rows)), np.int64)
    before = x.copy()
    whole = each(x, severity, seed, ids, high=high)
    assert whole.dtype == x.dtype
    assert whole.shape == x.shape
    assert whole.flags.c_contiguous
    assert whole.min() >= 0
    assert whole.max() <= (high or 255)
    np.testing.assert_array_equal(x, before)
    order = np.array(data.draw(st.permutations(range(rows))))
    np.testing.assert_array_equal(each(x[order], severity, seed, ids[order], high=high), whole[order])
    cut = data.draw(st.integers(0, rows))
    parts = [each(x[part], severity, seed, ids[part], high=high) for part in (slice(0, cut), slice(cut, rows))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("name", list(IMAGES))
def test_rows_at_a_time_are_not_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = pictures(5)
    whole = IMAGES[name](x, 3, 0, np.arange(5))
    monkeypatch.setattr(frame, "VALUES", 2 * x[0].size + 1)
    np.testing.assert_array_equal(IMAGES[name](x, 3, 0, np.arange(5)), whole)


@pytest.mark.parametrize("name", RANDOM)
def test_seed_id_name_and_severity_draw_anew(name: str) -> None:
    each, x = IMAGES[name], np.repeat(pictures(1, height=32, width=32), 4, 0)
    drawn = each(x, 3, 0, np.array([0, 0, 1, 2]))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()
    assert (drawn[2] != drawn[3]).any()
    assert (each(x[:1], 3, 1, np.array([0])) != drawn[0]).any()
    renamed = ImageCorruption("other", each.constants, each.effect)
    assert (renamed(x[:1], 3, 0, np.array([0])) != drawn[0]).any()
    same = ImageCorruption(name, (each.constants[2],) * 5, each.effect)
    assert (same(x[:1], 4, 0, np.array([0])) != drawn[0]).any()


@pytest.mark.parametrize("name", list(IMAGES))
def test_severity_five_is_further_from_clean_than_one(name: str) -> None:
    x = pictures(20, height=32, width=32)
    near, far = (np.abs(IMAGES[name](x, s, 0, np.arange(20)) - x.astype(float)).mean() for s in (1, 5))
    assert near > 0
    if name not in ("elastic_transform", "frost"):  # the published ladders: other mixtures, not simply more
        assert far > near


@pytest.mark.parametrize("name", list(IMAGES))
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 8), (1, 28, 28), (3, 9, 40), (3, 96, 64)])
def test_all_sizes(name: str, shape: tuple[int, ...]) -> None:
    x = pictures(2, *shape)
    for severity in (1, 5):
        assert IMAGES[name](x, severity, 0, np.arange(2)).shape == x.shape


@pytest.mark.slow
@pytest.mark.parametrize("name", list(IMAGES))
def test_the_size_of_imagenet(name: str) -> None:
    x = pictures(2, 3, 224, 224)
    assert (IMAGES[name](x, 5, 0, np.arange(2)) != x).any()


@pytest.mark.parametrize("name", list(IMAGES))
def test_other_channels(name: str) -> None:
    x = pictures(2, 4)
    if name not in COLOURED:
        out = IMAGES[name](x, 2, 0, np.arange(2))
        assert out.shape == x.shape
        return
    with pytest.raises(ValueError, match=rf"{name} works on colours: it needs 1 channel \(grey\) or 3 \(RGB\), got 4"):
        IMAGES[name](x, 2, 0, np.arange(2))


@pytest.mark.parametrize("name", list(IMAGES))
def test_white_scales_the_pixels(name: str) -> None:
    x = pictures(3)
    bytes_, floats = IMAGES[name](x, 3, 0, np.arange(3)), IMAGES[name]((x / 255).astype(np.float32), 3, 0, np.arange(3), high=1)
    assert floats.dtype == np.float32
    off = np.abs(bytes_ - 255 * floats.astype(float))
    assert np.median(off) <= 0.5  # rounding
    assert (off > 1).mean() < 0.01  # a Poisson number or a rounding of 8 bits that fell the other way


def test_no_rows() -> None:
    for each in IMAGES.values():
        assert each(pictures(1)[:0], 1, 0, np.arange(0)).shape == (0, 3, 16, 16)


def test_scale_never_shrinks() -> None:
    assert (scale(32, 32), scale(8, 8), scale(224, 224), scale(64, 48)) == (1, 1, 7, 1.5)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"severity": 0}, r"severity must be a whole number 1 … 5, got 0"),
        ({"severity": 6}, "got 6"),
        ({"severity": 2.0}, "got 2.0"),
        ({"severity": True}, "got True"),
        ({"seed": -1}, "seed must be"),
        ({"ids": np.arange(3)}, r"ids must be 2 integers, one per row of x, got shape \(3,\)"),
        ({"ids": np.arange(2.0)}, "got shape .* of float64"),
        ({"x": pictures(2)[0]}, r"needs images \(B, C, H, W\), got shape"),
        ({"x": pictures(2)[:, :, :7]}, r"at least 8×8 pixels, got shape \(3, 7, 16\)"),
        ({"x": pictures(2).astype(np.int32)}, "needs uint8 or float32 images, got int32"),
        ({"x": pictures(2) / 255}, "got float64"),
        ({"x": pictures(2).astype(np.float32)}, "which value of float images is white: give high="),
        ({"x": pictures(2), "high": 16}, r"pixels in 0 … 16, which is taken for white, got \d+ … 255: give high= \(on"),
        ({"x": -pictures(2).astype(np.float32), "high": 255}, "needs pixels in 0 … 255"),
        ({"x": np.full((2, 3, 8, 8), np.nan, np.float32), "high": 1}, "needs pixels in 0 … 1"),
        ({"high": 0}, r"high= \(on the command line --corruption_high\) must be a positive finite number"),
        ({"high": True}, r"high= \(.*\) must be a positive finite number"),
        ({"high": float("inf")}, r"high= \(.*\) must be a positive finite number"),
        ({"high": 10**400}, r"high= \(.*\) must be a positive finite number"),
        ({"high": "255"}, r"high= \(.*\) must be a positive finite number, .*, got '255'"),
        ({"high": 256}, "whole number in 1 … 255 for uint8"),
        ({"high": 1.5}, "whole number in 1 … 255 for uint8"),
    ],
)
def test_refusals(change: dict, expected: str) -> None:
    given_: dict = {"x": pictures(2), "severity": 1, "seed": 0, "ids": np.arange(2)} | change
    with pytest.raises(ValueError, match=expected) as error:
        IMAGES["contrast" if "seed" not in change else "gaussian_noise"](**given_)
    assert "\n" not in str(error.value)
