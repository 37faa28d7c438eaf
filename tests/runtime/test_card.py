"""The model card: what it says is what was measured; nothing from elsewhere becomes markup."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from quorate.cascade.guarantee import certify_deviation_policy, certify_policy
from quorate.cascade.policy import Policy
from quorate.outputs import Outputs
from quorate.runtime.card import card, table, text
from quorate.runtime.measuring import measured
from quorate.runtime.program import Port, Ports

pytestmark = pytest.mark.deciding


def drawn(seed: int, n: int = 1500, shift: float = 1.2) -> Outputs:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    values = [rng.normal(size=(2, n, 3)) + shift * np.eye(3)[labels] for _ in range(2)]
    return Outputs(values, labels=labels, costs=[100, 300], names=["a", "b"], classes=["cat", "dog", "owl"])


VAL, CAL, TEST = drawn(0), drawn(1), drawn(2)
X = Port("x", "float32", (3, None))
STAGES = [
    Ports("a", Port("m", "float32", (2, 3)), X, writes={"h": Port("h", "float32", (8,))}, macs=100.0),
    Ports(
        "b",
        Port("m", "float32", (2, 3)),
        None,
        {"h": Port("h", "float32", (8,))},
        drops=("h",),
        macs=300.0,
        precision="int8-dynamic",
    ),
]
POLICY = Policy.fit(VAL, target="coverage@risk=0.1", window="optimal", max_cost=150.0)


def made(**changed: Any) -> str:
    facts: dict[str, Any] = {"name": "birds", "stages": STAGES, "input": X, "policy": POLICY, "classes": VAL.classes}
    return card(**(facts | changed))


def test_the_table_is_what_was_measured() -> None:
    said = made(test=TEST)
    assert "On 1,500 rows given as test rows; the figures are fair if these chose and certified nothing." in said
    for name, found in measured(POLICY, TEST):
        line = next(line for line in said.splitlines() if line.startswith(f"| {name} |") and "%" in line and "float" not in line
                    and line.count("|") == 10)  # fmt: skip
        cells = [cell.strip() for cell in line.split("|")[2:-1]]
        risk = "–" if found["risk"] is None else f"{100 * found['risk']:.2f} %"
        assert cells[0] == f"{100 * (found['accuracy'] or 0):.2f} %"
        assert cells[1] == f"{found['nll']:.4g}"
        assert cells[4] == f"{100 * (found['coverage'] or 0):.2f} %"
        assert cells[5] == risk
        assert cells[6] == f"{100 * (found['cost_share'] or 0):.2f} %"
    assert said == made(test=drawn(2))  # equal facts, equal text


def test_without_test_rows_it_says_so_and_shows_no_figures() -> None:
    said = made()
    assert "**There were no test rows.**" in said
    assert "NLL" not in said


def test_how_it_decides() -> None:
    said = made()
    assert POLICY.stages[0].window is not None
    (low, high), (first, last) = POLICY.stages[0].window, (stage.tau for stage in POLICY.stages)
    both = low is not None and high is not None
    window = f"{low:.4g} ≤ U ≤ {high:.4g}" if both else f"U ≥ {low:.4g}" if low is not None else f"U ≤ {high:.4g}"
    assert f"1. **a**: goes on where {window}; else decided, accepted where U ≤ {first:.4g}." in said
    assert f"2. **b**, joined with the members before: decides, accepted where U ≤ {last:.4g}." in said
    assert "`coverage@risk=0.1`" in said
    assert "`msp`, 1 − the largest probability" in said
    assert "It has no certificate: nothing is guaranteed" in said
    assert "Classes: cat, dog, owl." in said
    assert "float32 (3, any)" in said
    assert "| b | 2 | int8-dynamic | 300 | 75.00 % | h |" in said


@pytest.mark.parametrize(
    ("window", "words"),
    [((0.25, None), "U ≥ 0.25"), ((None, 0.5), "U ≤ 0.5"), ((0.25, 0.5), "0.25 ≤ U ≤ 0.5")],
)
def test_windows_in_words(window: Any, words: str) -> None:
    assert f"goes on where {words}; else decided, always accepted." in made(policy=Policy.of(VAL, windows=[window]))


def test_other_policies_in_words() -> None:
    plain = Policy.of(VAL, windows=[None], temperatures=[1, 2.5], uncertainty="entropy")
    assert "1. **a**: every row goes on.\n" in made(policy=Policy.of(VAL))
    said = made(policy=replace(plain, stages=(plain.stages[0], replace(plain.stages[1], join="replace"))))
    assert "**a**: decides all, no row goes on, always accepted." in said
    assert "**b**, in place of the members before, at temperature 2.5: decides" in said
    assert "never abstains" in said
    random = Policy.fit(VAL, target="accuracy", window="random", max_cost=200.0)
    assert "of the rows, drawn at random, go on; the others are decided" in made(policy=random)


def test_certificates_in_words() -> None:
    certified = certify_policy(POLICY, CAL, delta=0.1)
    assert certified.certificate is not None
    c = certified.certificate
    said = made(policy=certified)
    assert (
        "Certified from 1,500 calibration rows, which chose nothing else: with probability at least 90.00 % over their draw"
        in said
    )
    assert "at most 10.00 % of the accepted inputs are wrong." in said
    assert f"{100 * c['observed']:.2f} %, bound {100 * c['bound']:.2f} %, {100 * c['coverage']:.2f} % accepted." in said
    assert "It ends with any change" in said
    few = certify_policy(replace(POLICY, sequence=((-1.0, -1.0),)), CAL.rows(np.arange(5)))
    assert "Not certified: 5 calibration rows, which chose nothing else, did not show that at most 10.00 %" in made(policy=few)
    tpr = Policy.fit(
        VAL, target="fpr@tpr=0.9", window="paper", cal=CAL, cal_ood={"far": drawn(3, 300, 0.0)}, ood={"far": drawn(4, 300, 0.0)}
    )
    assert "at least 90.00 % of inputs like the calibration rows are accepted" in made(policy=tpr)
    assert "OOD set far:" in made(policy=tpr)
    costs = certify_policy(POLICY, CAL, costs=[1, 2, 3], limits={1: 0.5})
    assert "at most 0.1 is their mean cost of errors, of the accepted inputs" in made(policy=costs)
    assert "Of rows called class 1: at most 0.5." in made(policy=costs)
    accuracy = Policy.fit(VAL, target="accuracy", window="optimal", max_cost=200.0, cal=CAL)
    assert accuracy.certificate is not None
    assert f"at most {100 * accuracy.certificate['bound']:.2f} % of the inputs are wrong" in made(policy=accuracy)
    nested = [Policy.of(VAL, windows=[w], taus=[0.3, 0.3]) for w in (None, (None, None))]
    deviation = certify_deviation_policy(nested, CAL, 0.05)
    assert "in expectation over their draw, at most 5.00 % of inputs are decided otherwise" in made(policy=deviation)


def test_regression() -> None:
    truth = np.zeros((50, 1))
    outputs = Outputs([np.ones((2, 50, 1)), np.ones((2, 50, 1))], kind="values", labels=truth, costs=[100, 300], names=["a", "b"])
    said = made(policy=None, classes=None, test=outputs)
    assert "An ensemble for regression in 2 stages" in said
    assert "| … + b | 1 | 100.00 % |" in said
    assert "How it decides" not in said


CHANGE: dict[str, Any] = {
    "stages": {
        "a": {
            "precision": "int8-static", "bytes_before": 4000, "bytes_after": 1100,
            "latency_ms_before": {"1": 0.5, "32": 2.0}, "latency_ms_after": {"1": 0.25, "32": 1.0},
        }
    },
    "policy": "windows moved",
    "validation": {"rows": 1500, "before": {"accuracy": 0.9, "nll": None}, "after": {"accuracy": 0.89, "nll": 0.4}, "agreement": 0.985},
    "test": None,
}  # fmt: skip


def test_lower_precision() -> None:
    said = made(precision=CHANGE)
    assert "| a | int8-static | 4,000 → 1,100 | 0.5 → 0.25 | 2 → 1 |" in said
    assert "| accuracy | 90.00 % | 89.00 % |" in said
    assert "| same label as fp32 |  | 98.50 % |" in said
    assert "1,500 validation rows, which the new thresholds were chosen on:" in said
    assert "how much was lost on other rows nobody has measured" in said
    tested = made(precision=CHANGE | {"test": CHANGE["validation"] | {"rows": 700}})
    assert "700 test rows:" in tested
    assert "nobody has measured" not in tested
    assert "Stages b take their scales from all rows of a batch" in said


def test_limits_and_provenance() -> None:
    assert "It has no drift watch" in made()
    assert "can watch the share of rows" in made(watch={"format": "quorate-watch/1"})
    said = made(provenance={"run": "runs/3", "seeds": [0, 1]}, preprocessing={"resize": 32})
    assert "- run: runs/3\n- seeds: \\[0, 1\\]" in said
    assert "- resize: 32" in said
    assert "Nobody wrote down where it comes from." in made()
    assert 'load_bundle("BUNDLE", digest="sha256:…")' in said


def test_tickets() -> None:
    assert "live weights" not in made()
    said = made(sparse=["small", "large"])
    assert "Of small, large only live weights are stored" in said
    assert "Where `quorate[sparse]` is installed they run on such kernels on a CPU, unless dense ones are faster" in said


def test_text_from_elsewhere_is_text() -> None:
    nasty = "# <script>|\n`x` [a](b) *b* _c_ \\ ![i]"
    assert text(nasty) == "\\# &lt;script&gt;\\| \\`x\\` \\[a\\](b) \\*b\\* \\_c\\_ \\\\ \\!\\[i\\]"
    said = made(name=nasty, classes=[nasty, "dog", "owl"], provenance={nasty: nasty})
    assert "<script>" not in said
    assert said.count("\n# ") == 0
    assert len(text("x" * 1000)) == 301
    many = made(classes=[f"c{i}" for i in range(30)])
    assert "c19 and 10 more" in many
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n|---|---|\n| 1 | 2 |"


def test_outputs_of_other_stages_are_refused() -> None:
    with pytest.raises(ValueError, match=r"test Outputs are of \['a'\]: expected those of the bundle's stages, \['a', 'b'\]"):
        made(test=TEST.prefix(1))
    unlabelled = Outputs(TEST.values, names=TEST.names)
    with pytest.raises(ValueError, match="no labels"):
        made(test=unlabelled)
