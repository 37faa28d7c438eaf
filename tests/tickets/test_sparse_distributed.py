"""Two data-parallel processes with different data hold the same masks, those of one process with the data of both; neither ever hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import distributed

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="gloo is not available"
)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("two_ranks.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize(
    "way",
    [
        "gradient, before",
        "gradient, after",
        "gradient of two",
        "micro, no_sync",
        "micro, sync",
        "random, before",
        "random, after",
    ],
)
def test_masks_are_the_same_after_five_moves(ranks: list[dict[str, Any]], way: str) -> None:
    first, second = (rank[way] for rank in ranks)
    assert first == second
    assert (first["moves"], first["dead"], first["seed"]) == (5, False, 7)


@pytest.mark.parametrize(
    ("way", "single"),
    [("gradient, before", "gradient"), ("gradient, after", "gradient"), ("micro, no_sync", "micro"), ("micro, sync", "micro")],
)
def test_two_processes_train_as_one_with_the_data_of_both(ranks: list[dict[str, Any]], way: str, single: str) -> None:
    for rank in ranks:
        assert rank[way]["digest"] == ranks[0]["single"][single]["digest"]
        assert rank[way]["norms"] == pytest.approx(ranks[0]["single"][single]["norms"], rel=1e-9)


def test_resumed_from_the_first_process_state_in_the_middle_of_a_window(ranks: list[dict[str, Any]]) -> None:
    whole, again = ranks[0]["resumed"]
    assert whole == again
    assert ranks[1]["resumed"] == [whole, again]


def test_a_branch_that_one_process_uses(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["unused"] == ranks[1]["unused"]
    assert ranks[0]["unused"]["moved"]
    assert ranks[0]["unused"]["moves"] == 3


def test_what_is_not_alike_is_refused_on_both(ranks: list[dict[str, Any]]) -> None:
    differs = "RuntimeError: process {}: {} differs between data-parallel processes, or one of them refused it; build SparseTraining alike"
    network, state = "the network, a setting or whether a state is given", "the state"
    expected = [
        ("ValueError: density 7.0: expected a share", differs.format(1, network)),
        (differs.format(0, network), differs.format(1, network)),
        (differs.format(0, network), differs.format(1, network)),
        ("TypeError: 'int' object is not iterable", differs.format(1, network)),
        (differs.format(0, state), differs.format(1, state)),
        (differs.format(0, state), "ValueError: the state is of a training with another every (there 9, here 3)"),
        (differs.format(0, state), differs.format(1, state)),
    ]
    assert [len(rank["refused"]) for rank in ranks] == [len(expected)] * 2
    for messages, starts in zip(zip(ranks[0]["refused"], ranks[1]["refused"], strict=True), expected, strict=True):
        for message, start in zip(messages, starts, strict=True):
            assert message.startswith(start)
            assert "\n" not in message
