"""Damaged ticket files: each damage is named in one line, and no damage ends in anything but a refusal or a ticket."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

from quorate.files import load_arrays, save_arrays
from quorate.tickets.files import load_ticket, load_ticket_, save_ticket
from quorate.tickets.masks import apply_, draw


class Net(nn.Module):
    """Sparse weights, of which one is shared, a norm with a scalar buffer, and truth values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.fc, self.out = nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
        self.out.weight = self.fc.weight
        self.register_buffer("flags", torch.tensor([True, False]))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A ticket file with a bitmask (conv) and places (fc), as a path, its arrays and its header."""
    path = tmp_path_factory.mktemp("written") / "t.safetensors"
    torch.manual_seed(0)
    model, rng = Net().bfloat16(), np.random.default_rng(0)
    masks = {"conv.weight": draw((8, 3, 3, 3), 65, rng), "fc.weight": draw((8, 8), 1, rng)}
    apply_([model.conv.weight, model.fc.weight], list(masks.values()))
    save_ticket(model, masks, path, {"k": 1})
    arrays, header = load_arrays(path, "")
    assert {"bits:conv.weight", "places:fc.weight"} <= arrays.keys()
    return path, arrays, header


def put(key, value):
    """Damage: one array other than it was; None removes it."""

    def damage(arrays, header):
        if value is None:
            del arrays[key]
        else:
            arrays[key] = value(arrays[key]) if callable(value) else value
        return arrays, header

    return damage


def say(key, value):
    """Damage: one entry of the header other than it was."""

    def damage(arrays, header):
        header[key] = value(header[key]) if callable(value) else value
        return arrays, header

    return damage


def both(*damages):
    def damage(arrays, header):
        for each in damages:
            arrays, header = each(arrays, header)
        return arrays, header

    return damage


TWO = put("live:fc.weight", np.array([1, 2], np.uint16))
INT = np.int32
DAMAGED = {
    "another format": (say("format", "quorate-outputs/1"), r"is no ticket file: expected format quorate-ticket/1, got 'quorate-outputs/1'"),
    "no format": (lambda a, _: (a, {}), r"is no ticket file: .* got None; see save_ticket"),
    "a newer format": (say("format", "quorate-ticket/2"), r"has format 'quorate-ticket/2': expected quorate-ticket/1; read it with"),
    "no version": (say("format", "quorate-ticket"), r"has format 'quorate-ticket': expected"),
    "header": (say("shapes", []), r"damaged ticket file: its header holds"),
    "header keys": (say("more", {}), r"its header holds .*'more'"),
    "shape": (say("shapes", lambda s: s | {"fc.weight": [8, True]}), r"the shape of 'fc.weight' is \[8, True\]"),
    "negative shape": (say("shapes", lambda s: s | {"fc.weight": [-8, -8]}), r"the shape of 'fc.weight' is \[-8, -8\]"),
    "many dimensions": (say("shapes", lambda s: s | {"fc.weight": [1] * 65}), r"the shape of 'fc.weight' is \[1, 1"),
    "strange shape": (say("shapes", lambda s: s | {"q": [1]}), r"shapes name 'q', of which there is no array"),
    "no shape": (say("shapes", {}), r"'\S+' has the parts \w+, \w+ and no shape"),
    "scalar": (say("shapes", lambda s: s | {"conv.bias": []}), r"'conv.bias' has shape \(8,\), which is no scalar"),
    "whole with a shape": (say("shapes", lambda s: s | {"norm.num_batches_tracked": [1]}), r"which is no scalar, but shape \[1\]"),
    "dtype": (say("dtypes", lambda d: d | {"fc.weight": "float4"}), r"the dtype of 'fc.weight' is 'float4', expected one of bfloat16"),
    "dtype no text": (say("dtypes", lambda d: d | {"fc.weight": ["bfloat16"]}), r"the dtype of 'fc.weight' is \['bfloat16'\]"),
    "strange dtype": (say("dtypes", lambda d: d | {"q": "bfloat16"}), r"dtypes name 'q', of which"),
    "wrong bits": (say("dtypes", lambda d: d | {"conv.weight": "float8_e5m2"}), r"'conv.weight' holds uint16 where the bits of float8"),
    "shared": (say("shared", {"out.weight": "q"}), r"'out.weight' is said to be 'q', which does not fit"),
    "shared with itself": (say("shared", {"fc.weight": "fc.weight"}), r"'fc.weight' is said to be 'fc.weight'"),
    "shared with a number": (say("shared", {"out.weight": 3}), r"'out.weight' is said to be 3, expected a name"),
    "strange array": (put("dead:q", np.zeros(1)), r"array 'dead:q' is no part of a ticket"),
    "nameless array": (put("whole:", np.zeros(1)), r"array 'whole:' is no part"),
    "no values": (put("live:fc.weight", None), r"'fc.weight' has the parts places"),
    "no mask": (put("bits:conv.weight", None), r"'conv.weight' has the parts live"),
    "two masks": (put("bits:fc.weight", np.zeros(8, np.uint8)), r"'fc.weight' has the parts bits, live, places"),
    "values of two dimensions": (put("live:fc.weight", lambda a: a[None]), r"live values of 'fc.weight' have shape \(1, 1\)"),
    "value count": (put("live:conv.weight", lambda a: a[1:]), r"'conv.weight' has 64 values for 65 live places"),
    "bit count": (put("bits:conv.weight", lambda a: a | 255), r"'conv.weight' has 65 values for 216 live places"),
    "bitmask length": (put("bits:conv.weight", lambda a: a[1:]), r"the mask of 'conv.weight': "),
    "bitmask dtype": (put("bits:conv.weight", lambda a: a.astype(np.int8)), r"the mask of 'conv.weight': "),
    "places beyond": (put("places:fc.weight", np.array([64], INT)), r"live places of 'fc.weight' are not ascending in 0 … 63"),
    "negative place": (put("places:fc.weight", np.array([-1], INT)), r"not ascending in 0 … 63"),
    "places twice": (both(TWO, put("places:fc.weight", np.array([3, 3], INT))), r"not ascending"),
    "places falling": (both(TWO, put("places:fc.weight", np.array([4, 3], INT))), r"not ascending"),
    "far places": (both(TWO, put("places:fc.weight", np.array([2**31 - 1, -(2**31)], INT))), r"not ascending"),
    "place dtype": (put("places:fc.weight", np.array([3.0], np.float32)), r"are float32 \(1,\) for shape \[8, 8\], expected int32"),
    "place count": (put("places:fc.weight", np.array([3, 4], INT)), r"'fc.weight' has 1 values for 2 live places"),
    "huge": (say("shapes", lambda s: s | {"fc.weight": [2**20, 2**20]}), r"for shape \[1048576, 1048576\], expected int32"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_named(tmp_path, written, name):
    damage, message = DAMAGED[name]
    arrays, header = damage(dict(written[1]), copy.deepcopy(written[2]))
    save_arrays(tmp_path / "damaged.safetensors", arrays, header)
    for load in (load_ticket, lambda path: load_ticket_(Net().bfloat16(), path)):
        with pytest.raises(ValueError, match=message) as error:
            load(tmp_path / "damaged.safetensors")
        assert "\n" not in str(error.value)
        assert str(tmp_path / "damaged.safetensors") in str(error.value)


def test_truth_values_are_0_or_1(tmp_path, written):
    data = bytearray(written[0].read_bytes())
    end = 8 + int.from_bytes(data[:8], "little")
    at = json.loads(data[8:end])["whole:flags"]["data_offsets"][0]
    data[end + at] = 7
    (tmp_path / "t").write_bytes(data)
    with pytest.raises(ValueError, match="'flags' has truth values that are neither 0 nor 1"):
        load_ticket(tmp_path / "t")


def test_missing_and_cut_files(tmp_path, written):
    with pytest.raises(FileNotFoundError, match="expected a ticket file"):
        load_ticket(tmp_path / "none")
    data = written[0].read_bytes()
    for length in (0, 1, 7, 8, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(ValueError, match="cut is not a readable safetensors file") as error:
            load_ticket(tmp_path / "cut")
        assert "\n" not in str(error.value)


def test_flipped_bytes_never_crash(tmp_path, written):
    data, rng = written[0].read_bytes(), np.random.default_rng(0)
    header = 8 + int.from_bytes(data[:8], "little")
    path, refused = tmp_path / "flipped", []
    for case in range(300):
        flipped = bytearray(data)
        for _ in range(rng.integers(1, 4)):  # two in three in the header, where most can go wrong
            at = rng.integers(0, header if case % 3 else len(data))
            flipped[at] = rng.integers(32, 127) if 8 <= at < header and case % 2 else rng.integers(256)
        path.write_bytes(flipped)
        try:
            found = load_ticket(path)
        except (ValueError, OSError) as error:
            refused.append(str(error))
        else:
            assert all(isinstance(tensor, torch.Tensor) for tensor in found.tensors.values())
            assert all(not found.tensors[name][~mask].float().any() for name, mask in found.masks.items())
    assert 100 < len(refused) < 300
    assert not any("\n" in message for message in refused)
