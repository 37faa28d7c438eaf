"""The tables of bundles and the runtime, by hand."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from runtime_figures import FIGURES

pytestmark = pytest.mark.deciding

TABLES: dict[str, list[str]] = {
    "runtime-speed": [
        "| cascade, batch 32, threads 1 | 9 | 8 | eager nhwc | 1.125 | 1.000–1.250 | 0.562 |",
        "",
        "| cascade |  | MAC gain | rows sent on | wall-clock gain | quartiles | wall-clock ÷ MAC gain |",
        "|---|---|---|---|---|---|---|",
        "| cascade, batch 32, threads 1 | stream | 1.50 × | 25 % | 1.25 × | 1.00–1.50 | 0.833 |",
        "",
        "| overhead of a call | stages | µs | quartiles | bare sessions, µs |",
        "|---|---|---|---|---|",
        "| mlp, threads 1 | 2 | 61 | 60–62 | 20 |",
    ],
    "runtime-load": [
        "| single | 2.0 | 2.0 | 2.0 | 2.0 | 2.0 | 1.0 | 4.0 | 2.000 / 0.500 | 375 |",
        "",
        "| memory, MB |  | bundle | bare, from files | bare, from bytes | bundle ÷ bare | own pages ÷ bare's |",
        "|---|---|---|---|---|---|---|",
        "| single | imported | 2.0 | 1.0 | 4.0 | 2.000 / 0.500 | 2.000 / 0.500 |",
        "|  | loaded | 2.0 | 1.0 | 4.0 | 2.000 / 0.500 | 2.000 / 0.500 |",
        "|  | predicted | 2.0 | 1.0 | 4.0 | 2.000 / 0.500 | 2.000 / 0.500 |",
    ],
    "runtime-size": ["| net | 3 tickets | 4.00 | 1.00 | 2.50 | 0.50 | 3 M | 0.400 |"],
    "runtime-precision": [
        "| fp32 | 50.00 % ± 25.00 | 0.5000 ± 0.2500 | – | – | – | – | – | 2 M | 0.5 ± 0.2 | – | – | 0.500 ± 0.250 |",
        "",
        "int8-dynamic is refused: stage 'a' has none.",
    ],
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    for script in ("render_distilled", "render_runtime"):
        monkeypatch.delitem(sys.modules, script, raising=False)
    module = importlib.import_module("render_runtime")
    result = {"figures": FIGURES[name]}
    assert module.TABLES[name][1](result).splitlines()[2:] == TABLES[name]
    assert module.COMMANDS.keys() == module.TABLES.keys() >= module.IN_README.keys()
    if name in module.IN_README:
        assert module.IN_README[name](result) in module.TABLES[name][1](result)
