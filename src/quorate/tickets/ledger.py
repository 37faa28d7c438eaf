"""What sparse training and its tickets cost, as a share of what the dense network costs, counted from the masks a run really had.

Source: Evci et al. 2020 (Rigging the Lottery, arXiv 1911.11134), appendix on FLOPs; Liu et al. 2022 (arXiv 2106.14568), tables 1 and 2.

    f_S(live) = rest + Σ_w macs_w · live_w / N_w        MACs of one forward pass of one input; f_D is f_S with every weight live
    a step on one input costs    3 f_S                  forward, gradient of the inputs, gradient of the weights
                                 2 f_S + f_D            where growth needs the gradient of the dead weights too

These are the MACs of kernels that skip dead weights. Training itself runs dense kernels on masked weights: it takes as many MACs and
as long as dense training; what is saved in earnest is in the files and in the runtime for sparse inference.
Sums are exact integers (rows · live weights, per weight); only what is handed out is rounded or divided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NoReturn

import torch
from torch import nn

from quorate.cost.counting import Example, count
from quorate.tickets.masks import Masks, overlap

State = dict[str, Any]


class Ledger:
    """The cost of one run, step by step, and of tickets of its network.

    Args:
        macs: multiply-adds per input of the dense layer of each sparse weight, by the weight's name.
        rest: multiply-adds per input of everything else: dense layers, attention's own products.
        sizes: N, the number of elements of each sparse weight.
        parameters: scalars in all parameters of the network, the sparse weights among them.

    Raises:
        ValueError: other names in `macs` than in `sizes`, a number that is no int of at least 0 (a size: 1), or fewer parameters
            than the sparse weights have.
    """

    def __init__(self, macs: Mapping[str, int], rest: int, sizes: Mapping[str, int], parameters: int) -> None:
        if odd := sorted(set(macs) ^ set(sizes)):
            raise ValueError(
                f"macs and sizes: expected the same weights in both, got {', '.join(odd)} in one alone; name them in both"
            )
        for what, numbers, least in (("macs", macs, 0), ("sizes", sizes, 1), ("", {"rest": rest, "parameters": parameters}, 0)):
            for name, number in numbers.items():
                _whole(f"{what}[{name!r}]" if what else name, number, least)
        self._macs, self._sizes = {name: macs[name] for name in sizes}, dict(sizes)
        self._rest, self._parameters = rest, parameters
        if parameters < sum(sizes.values()):
            raise ValueError(
                f"parameters: expected at least the {sum(sizes.values())} of the sparse weights, got {parameters}; count all of the model's"
            )
        self._rows = 0
        self._forward = dict.fromkeys(self._sizes, 0)  # Σ rows · live
        self._gradient = dict.fromkeys(self._sizes, 0)  # Σ rows · live, where the weight gradient was dense Σ rows · N
        self._live: dict[str, int] | None = None  # of the steps that are not in the sums yet
        self._sparse_rows = self._dense_rows = 0

    @classmethod
    def of_model(cls, model: nn.Module, example: Example, names: Sequence[str]) -> Ledger:
        """The empty ledger of a model whose sparse weights are `names`, by :func:`quorate.cost.count` on `example`.

        A weight that enters products only through a computation (weight standardisation) has its products in `rest`, as dense ones.

        Warns:
            UnknownOperatorWarning: operators without a formula; what they cost is missing in every number.

        Raises:
            ValueError: a name that is no parameter or comes twice, or a model or example that can't be counted.
        """
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        if unknown := [name for name in names if name not in sizes]:
            raise ValueError(f"names: expected parameters of the model, got {unknown[0]!r}; see model.named_parameters()")
        if len(set(names)) != len(names):
            raise ValueError(
                f"names: expected each weight once, got {len(names)} names of {len(set(names))} weights; drop the repeats"
            )
        cost = count(model, example)
        cost.warn_if_incomplete(stacklevel=2)
        macs = {name: cost.by_parameter.get(name, 0) for name in names}
        return cls(macs, cost.macs - sum(macs.values()), {name: sizes[name] for name in names}, cost.parameters)

    @property
    def macs(self) -> dict[str, int]:
        """Multiply-adds per input of the dense layer of each sparse weight."""
        return dict(self._macs)

    @property
    def dense_macs(self) -> int:
        """f_D: multiply-adds per input of the dense network's forward pass."""
        return self._rest + sum(self._macs.values())

    @property
    def rows(self) -> int:
        """Inputs trained on so far, each as often as it came."""
        return self._rows + self._sparse_rows + self._dense_rows

    def step_(self, live: Mapping[str, int], rows: int, dense_gradient: bool = False) -> None:
        """Enter one optimiser step.

        Args:
            live: live count of every sparse weight during the step. Steps in a row with equal counts cost one comparison each.
            rows: inputs of the step, over all micro-batches and ranks.
            dense_gradient: whether the gradient of the dead weights was computed too.

        Raises:
            ValueError: other weights than the ledger's, a count outside 0 … N, or rows that are no int of at least 0.
        """
        _whole("rows", rows, 0)
        if live != self._live:
            self._check(live)
            self._flush_()
            self._live = dict(live)
        if dense_gradient:
            self._dense_rows += rows
        else:
            self._sparse_rows += rows

    def add_(self, other: Ledger) -> None:
        """Enter all that another run of the same network cost, such as each run of a DST ensemble. ValueError for another network."""
        state = self._read(other.state_dict())
        self._rows += state["rows"]
        for name in self._sizes:
            self._forward[name] += state["forward"][name]
            self._gradient[name] += state["gradient"][name]

    def _flush_(self) -> None:
        sparse, dense = self._sparse_rows, self._dense_rows
        if self._live is not None and (sparse or dense):
            for name, live in self._live.items():
                self._forward[name] += (sparse + dense) * live
                self._gradient[name] += sparse * live + dense * self._sizes[name]
        self._rows += sparse + dense
        self._sparse_rows = self._dense_rows = 0

    def _training(self) -> Fraction:
        self._flush_()
        products = (
            Fraction(macs * (2 * self._forward[name] + self._gradient[name]), self._sizes[name])
            for name, macs in self._macs.items()
        )
        return sum(products, Fraction(3 * self._rest * self._rows))

    @property
    def training_macs(self) -> int:
        """Multiply-adds of all steps so far."""
        return round(self._training())

    @property
    def training_ratio(self) -> float:
        """Training MACs to those of the dense network on the same rows. ValueError before the first row."""
        return self.ratio_to(self.rows)

    def ratio_to(self, rows: int) -> float:
        """Training MACs to those of a dense run over so many rows (epochs · rows of an epoch). ValueError unless `rows` is at least 1."""
        _whole("rows", rows, 1)
        return _share(self._training(), 3 * rows * self.dense_macs)

    def _inference(self, live: Mapping[str, int]) -> Fraction:
        self._check(live)
        return sum((Fraction(macs * live[name], self._sizes[name]) for name, macs in self._macs.items()), Fraction(self._rest))

    def inference_macs(self, live: Mapping[str, int]) -> int:
        """f_S: multiply-adds of one input with these live counts. ValueError as in :meth:`step_`."""
        return round(self._inference(live))

    def inference_ratio(self, live: Mapping[str, int]) -> float:
        """f_S / f_D. ValueError as in :meth:`step_`."""
        return _share(self._inference(live), self.dense_macs)

    def live_parameters(self, live: Mapping[str, int]) -> int:
        """Live weights and everything that is not sparse: biases, norms, dense layers. ValueError as in :meth:`step_`."""
        self._check(live)
        return self._parameters - sum(self._sizes.values()) + sum(live.values())

    def facts(self, tickets: Sequence[Masks], ever: Masks | None = None, dense_rows: int | None = None) -> dict[str, Any]:
        """All of it for a file of JSON; ratios are to one dense network.

        Args:
            tickets: the masks of each ticket, by weight.
            ever: True where a weight was live at any time of the run; without it the exploration rate is None.
            dense_rows: rows of the dense run to compare the training with; by default those of the ledger's own steps.

        Returns:
            training_macs, training_ratio, training_rows, dense_rows; inference_macs and live_parameters, each as {"tickets": one per
            ticket, "total", "ratio": total to the dense network's}; exploration_rate, the share of the sparse weights ever live (the
            in-time over-parametrisation rate of Liu et al. 2021, arXiv 2102.02887); overlap, the Jaccard index |A∩B| / |A∪B| of any
            two tickets' masks.

        Raises:
            ValueError: no tickets, masks of other weights than the ledger's or of another size, or no rows to compare with.
        """
        if not tickets:
            raise ValueError("tickets: expected the masks of at least one ticket, got none; enter the masks of what was kept")
        lives = [self._counts(masks, f"tickets[{m}]") for m, masks in enumerate(tickets)]
        explored = None if ever is None else Fraction(sum(self._counts(ever, "ever").values()), max(1, sum(self._sizes.values())))
        macs = sum((self._inference(live) for live in lives), Fraction(0))
        scalars = [self.live_parameters(live) for live in lives]
        dense_rows = self.rows if dense_rows is None else dense_rows
        indices = range(len(tickets))
        pairs = {(i, j): overlap(tickets[i], tickets[j]) for i in indices for j in indices[i:]}
        return {
            "training_macs": self.training_macs,
            "training_ratio": self.ratio_to(dense_rows),
            "training_rows": self.rows,
            "dense_rows": dense_rows,
            "inference_macs": {
                "tickets": [self.inference_macs(live) for live in lives],
                "total": round(macs),
                "ratio": _share(macs, self.dense_macs),
            },
            "live_parameters": {
                "tickets": scalars,
                "total": sum(scalars),
                "ratio": _share(Fraction(sum(scalars)), self._parameters),
            },
            "exploration_rate": None if explored is None else float(explored),
            "overlap": [[pairs[min(i, j), max(i, j)] for j in indices] for i in indices],
        }

    def state_dict(self) -> State:
        """Ints and dicts alone, JSON-able: the sums, and the network they belong to."""
        self._flush_()
        network = {"macs": dict(self._macs), "rest": self._rest, "sizes": dict(self._sizes), "parameters": self._parameters}
        return {"network": network, "rows": self._rows, "forward": dict(self._forward), "gradient": dict(self._gradient)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state. ValueError for one of another network or of another form; nothing is changed then."""
        state = self._read(state)
        self._rows, self._forward, self._gradient = state["rows"], dict(state["forward"]), dict(state["gradient"])
        self._live = None

    def _read(self, state: Any) -> Mapping[str, Any]:
        """A state of this network, checked. What is pending is in the sums afterwards."""
        own = self.state_dict()
        if not isinstance(state, Mapping) or set(state) != set(own):
            got = ", ".join(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(f"state: expected {', '.join(own)}, got {got}; pass what Ledger.state_dict gave")
        if state["network"] != own["network"]:
            raise ValueError(
                "state: expected sums of this network, got those of one with other macs, rest, sizes or parameters; make the ledger of "
                "the model, the example and the sparse weights that the state was saved with"
            )
        _whole("state['rows']", state["rows"], 0)
        for what in ("forward", "gradient"):
            sums = state[what]
            if not isinstance(sums, Mapping) or set(sums) != set(self._sizes):
                raise ValueError(
                    f"state[{what!r}]: expected one sum per sparse weight, got {_brief(sums)}; pass what Ledger.state_dict gave"
                )
            for name, number in sums.items():
                _whole(f"state[{what!r}][{name!r}]", number, 0)
        return state

    def _check(self, live: Mapping[str, int]) -> None:
        """Refuse live counts that are not the network's. Raises ValueError."""
        if live.keys() != self._sizes.keys():
            self._odd("live", live)
        for name, number in live.items():
            _whole(f"live[{name!r}]", number, 0)
            if number > self._sizes[name]:
                raise ValueError(
                    f"live[{name!r}]: expected at most the weight's {self._sizes[name]} elements, got {number}; count its mask"
                )

    def _counts(self, masks: Masks, what: str) -> dict[str, int]:
        """Live counts of masks of this network. Raises ValueError."""
        if masks.keys() != self._sizes.keys():
            self._odd(what, masks)
        for name, mask in masks.items():
            if mask.dtype != torch.bool or mask.numel() != self._sizes[name]:
                got = f"{mask.dtype} of shape {tuple(mask.shape)}"
                raise ValueError(
                    f"{what}[{name!r}]: expected a bool mask of {self._sizes[name]} elements, got {got}; pass the weight's mask"
                )
        return {name: int(mask.sum()) for name, mask in masks.items()}

    def _odd(self, what: str, given: Mapping[str, object]) -> NoReturn:
        name = sorted(given.keys() ^ self._sizes.keys())[0]
        had = f"{name!r}, which is none of them" if name in given else f"nothing for {name!r}"
        raise ValueError(
            f"{what}: expected an entry for each of the {len(self._sizes)} sparse weights, got {had}; use their names"
        )


def _share(part: Fraction, whole: int) -> float:
    """The ratio to a dense network's number. Raises ValueError where that is 0."""
    if not whole:
        raise ValueError(
            "the dense network: expected some MACs and parameters, got 0, to which nothing has a ratio; count another model"
        )
    return float(part / whole)


def _whole(what: str, number: object, least: int) -> None:
    """Refuse what is no int of at least `least`. Raises ValueError."""
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        raise ValueError(f"{what}: expected an int of at least {least}, got {_brief(number)}; pass a whole number")


def _brief(value: object) -> str:
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 60 else f"{text[:57]}…"
