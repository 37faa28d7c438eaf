"""Certificates as data: strict JSON and back, and every field checked."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from quorate.cascade.guarantee import Certificate, Part

pytestmark = pytest.mark.deciding

GOOD: dict[str, Any] = {
    "kind": "selective risk", "feasible": True, "target": 0.05, "delta": 0.05, "method": "fixed-sequence", "rows": 100, "tau": 0.3,
    "coverage": 0.6, "accepted": 60, "errors": 1.0, "observed": 1 / 60, "bound": 0.049, "tested": 7, "needed": 0,
    "assumption": "independent draws", "exits": (Part("a", 70, 50, 1.0, 0.02, 0.1), Part("b", 30, 10)), "classes": (), "outliers": (),
}  # fmt: skip


@pytest.mark.parametrize("costs", [[], [-1.0], [[[1.0]]], [float("nan")], "many", [[1.0], [1.0, 2.0]]])
def test_costs_that_are_none(costs: Any) -> None:
    good = Certificate(**GOOD).to_dict()
    assert Certificate.from_dict(good | {"costs": [[0.0, 1.0], [2.0, 0.0]]}).costs == ((0.0, 1.0), (2.0, 0.0))
    with pytest.raises(ValueError, match="expected finite numbers ≥ 0 per class, or rows of them"):
        Certificate.from_dict(good | {"costs": costs})


def test_json_and_back() -> None:
    certificate = Certificate(**GOOD)
    text = json.dumps(certificate.to_dict(), allow_nan=False)
    assert Certificate.from_dict(json.loads(text)) == certificate
    assert json.loads(text) == certificate.to_dict()


def test_numpy_numbers_become_pythons() -> None:
    numbers = {
        "rows": np.int64(100),
        "coverage": np.float32(0.5),
        "tau": np.float64(3),
        "exits": [Part("a", np.int32(3), np.int64(2))],
    }
    certificate = Certificate(**(GOOD | numbers))
    json.dumps(certificate.to_dict(), allow_nan=False)
    assert isinstance(certificate.exits, tuple)
    assert type(certificate.tau) is float


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"kind": "magic"}, "kind='magic', expected one of selective risk"),
        ({"method": "hope"}, "method='hope'"),
        ({"feasible": 1}, "feasible=1"),
        ({"assumption": ""}, "expected a sentence"),
        ({"rows": 0}, "rows=0, expected a whole number ≥ 1"),
        ({"accepted": 101}, "accepted=101, expected a whole number from 0 to 100"),
        ({"accepted": True}, "accepted=True"),
        ({"tested": 1.5}, r"tested=1\.5"),
        ({"needed": -1}, "needed=-1, expected a whole number ≥ 0 or None"),
        ({"coverage": 1.1}, r"coverage=1\.1"),
        ({"coverage": None}, "coverage=None"),
        ({"errors": "1"}, "errors='1'"),
        ({"tau": math.inf}, "tau=inf, expected a finite number or None"),
        ({"bound": math.nan}, "bound=nan"),
        ({"delta": 1.0}, r"delta=1\.0"),
        ({"delta": None}, "None for a deviation alone"),
        ({"kind": "deviation"}, "None for a deviation alone"),
        ({"exits": "ab"}, "exits is str"),
    ],
)
def test_fields_are_checked(changed: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        Certificate(**(GOOD | changed))
    assert "\n" not in str(caught.value)


def test_parts_are_checked() -> None:
    with pytest.raises(ValueError, match="its name as text"):
        Part("", 3, 2)
    with pytest.raises(ValueError, match="accepted=4"):
        Part("a", 3, 4)
    with pytest.raises(ValueError, match="bound=-1"):
        Part("a", 3, 2, bound=-1)


def test_from_dict_wants_just_what_to_dict_gives() -> None:
    data = Certificate(**GOOD).to_dict()
    with pytest.raises(ValueError, match="a certificate is list"):
        Certificate.from_dict([data])
    with pytest.raises(ValueError, match=r"missing \['tau'\], unknown \['tao'\]"):
        Certificate.from_dict({key: value for key, value in data.items() if key != "tau"} | {"tao": 1})
    with pytest.raises(ValueError, match="exits is dict, expected a list"):
        Certificate.from_dict(data | {"exits": {}})
    with pytest.raises(ValueError, match=r"a part in exits: missing \[\], unknown \['x'\]"):
        Certificate.from_dict(data | {"exits": [asdict(Part("a", 1, 1)) | {"x": 1}]})


def test_the_mix_of_a_certificate() -> None:
    mixed = Certificate(**(GOOD | {"kind": "scod", "alpha": np.float64(0.75), "beta": 2}))
    assert Certificate.from_dict(json.loads(json.dumps(mixed.to_dict()))) == mixed
    before = {key: value for key, value in Certificate(**GOOD).to_dict().items() if key not in ("alpha", "beta")}
    assert Certificate.from_dict(before) == Certificate(**GOOD)  # written before there was a mix in it
    for changed, match in (({"alpha": 1.5}, r"alpha=1\.5"), ({"beta": -1.0}, r"beta=-1\.0"), ({"beta": math.inf}, "beta=inf")):
        with pytest.raises(ValueError, match=match):
            Certificate(**(GOOD | changed))
