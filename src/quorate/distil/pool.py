"""Which students a round may try: classes that grow from round to round, each containing the ones before.

Source: Dennis et al. 2023 (arXiv 2302.10093), §4: the search of a round goes from plain students of one size over links to earlier
students' activations to larger students. With sizes s_0 < s_1 < … and kinds of links, the levels are

    (s_0, none) · (s_0, last) · (s_0, all) · (s_1, all) · (s_2, all) · …

    none    no links
    last    one, from the last tap of the student before that fits
    all     from every earlier student to every tap, from the tap of theirs that matches it

Which taps match says :mod:`quorate.distil.matching`. Gates start at 0, so a linked student begins as the unlinked one. With ``stem``
students also try to start from the student before's first features instead of computing their own.

A round's candidates come from ``breadth`` levels, from the one that the class has grown to, with seeds and learning rates of their own.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from quorate import cost
from quorate.distil.cutting import Cut, Ladder, cut
from quorate.distil.matching import LINKS, Links, feature_tap, first_features, joints
from quorate.distil.redrawing import redraw_
from quorate.distil.student import ChainStudent, run
from quorate.graphs.modes import ByMode
from quorate.graphs.segments import Boundary, Chain, chain

Make = Callable[[int], Chain]
"""A chain with weights drawn from a seed."""


@dataclass(frozen=True)
class Candidate:
    """A student that a round may train: plain values, from which it can be made again.

    Attributes:
        size: index of its size. links: their kind. stem: whether it starts from the student before's features.
        seed: of weights, order and dropout. lr: factor on the learning rate.
    """

    size: int
    links: Links = "none"
    stem: bool = False
    seed: int = 0
    lr: float = 1.0

    def as_json(self) -> dict[str, Any]:
        """Its values by name."""
        return asdict(self)


class Pool:
    """Students of growing sizes, made from seeds.

    Args:
        names: of the sizes, small to large. makes: a chain of each, from a seed.
        links: the kinds of links that are tried, in this order.
        stem: also try students that start from the student before's first features.
        breadth: levels that one search takes its candidates from.
        warm: students begin with the weights of the latest earlier one of their size, where there is one.

    Attributes:
        notes: what can't be had, in words.
    """

    fixed = False

    def __init__(
        self,
        names: Sequence[str],
        makes: Sequence[Make],
        links: Sequence[Links] = LINKS,
        stem: bool = False,
        warm: bool = False,
        breadth: int = 1,
        notes: Sequence[str] = (),
    ) -> None:
        if not makes:
            raise ValueError("expected at least one student class, got none")
        if not links or any(kind not in LINKS for kind in links) or len(set(links)) != len(links):
            raise ValueError(
                f"links={list(links)}: expected some of {', '.join(LINKS)}, each once, in the order in which they are tried"
            )
        if len(names) != len(makes):
            raise ValueError(f"{len(names)} names for {len(makes)} student classes: expected one for each")
        self.names, self.makes, self.links, self.stem, self.warm = tuple(names), tuple(makes), tuple(links), stem, warm
        self.breadth = breadth
        self.notes = list(notes)
        first = [(0, kind) for kind in self.links]
        self.levels: list[tuple[int, Links]] = [*first, *((size, self.links[-1]) for size in range(1, len(makes)))]

    @classmethod
    def cut_from(cls, model: nn.Module, example: Tensor, ladder: Ladder, dropout: bool = False, **options: Any) -> Pool:
        """Students cut from a model (:mod:`quorate.distil.cutting`), the sizes of a ladder; with its ``dropout``, or without any."""

        def make(size: Cut) -> Make:
            def made(seed: int) -> Chain:
                found = cut(model, example, size, seed)
                return found if dropout else without_dropout_(found)

            return made

        names = [name_of(size.cut) for size in ladder.sizes]
        return cls(names, [make(size.cut) for size in ladder.sizes], notes=ladder.skipped, **options)

    @classmethod
    def listed(cls, students: Sequence[nn.Module | Callable[[], nn.Module]], example: Tensor, **options: Any) -> Pool:
        """The user's own students, small to large: modules, whose weights are drawn anew, or functions that make one.

        A module that can't be traced is a student without links; a note says so.

        Raises:
            ValueError: what makes no module, or one that does not give outputs (B, L) for the example, with the same L for all.
        """
        notes: list[str] = []
        names, makes, first = [], [], 0
        for k, given in enumerate(students):
            built = _built(given, 0).to(example.device)
            names.append(f"{type(built).__name__} {k + 1}")
            width = _outputs(names[-1], built, example)
            if width != (first := first or width):
                raise ValueError(
                    f"{names[-1]} gives {width} outputs per row, {names[0]} {first}: expected as many, those of the teacher"
                )
            try:
                chain(built, example)
            except ValueError as error:
                notes.append(f"{names[-1]} can't have links: {error}")
            makes.append(_maker(given, example))
        return cls(names, makes, notes=notes, **options)

    def described(self, candidate: Candidate) -> str:
        """A candidate in a few words."""
        parts = [self.names[candidate.size], f"links {candidate.links}", *(["stem reused"] if candidate.stem else [])]
        return ", ".join([*parts, f"seed {candidate.seed % 10_000}", *([f"lr × {candidate.lr:g}"] if candidate.lr != 1 else [])])

    def candidates(self, place: int, level: int, attempt: int, count: int, lrs: Sequence[float], seed: int) -> list[Candidate]:
        """``count`` students for the student number ``place`` (from 0) under the classes from ``level`` on, ``breadth`` of them.

        Where there is room the level before has one, too.
        """
        configs = self.levels[level : level + self.breadth] if place else [(0, LINKS[0])]
        if place and level and count > len(configs):
            configs.append(self.levels[level - 1])
        variants = [(s, kind, stem) for s, kind in configs for stem in ((False, True) if self.stem and place else (False,))]
        found = []
        for i, (variant, lr) in enumerate(
            zip(itertools.cycle(variants), itertools.cycle(_spread(lrs, len(variants))), strict=False)
        ):
            if i == count:
                break
            drawn = int(np.random.SeedSequence([seed, place, attempt, level, i]).generate_state(1, np.uint32)[0])
            found.append(Candidate(*variant, seed=drawn, lr=lr))
        return found

    def level_of(self, candidate: Candidate) -> int:
        """The level that a candidate is of; the first one for round 1's students without links, which ``links`` may leave out."""
        kind = candidate.size, candidate.links
        return self.levels.index(kind) if kind in self.levels else 0

    def build(self, candidate: Candidate, place: int, earlier: Sequence[Any], like: Tensor) -> nn.Module:
        """The candidate as student number ``place``, with links to the earlier ones; raises Incompatible if it can't have its stem."""
        made = self.makes[candidate.size](candidate.seed)
        before = [student.boundaries if isinstance(student, ChainStudent) else () for student in earlier]
        first = [feature_tap(student) if isinstance(student, ChainStudent) else 0 for student in earlier]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(candidate.seed)  # of the CPU, where links are made
            start = first_features(made, before, first) if candidate.stem else None
            least = feature_tap(made) if start is None else start.at
            links = [joint for joint in joints(candidate.links, made.boundaries, before, first, least) if joint != start]
            student = ChainStudent(made, place, links, start, before).to(like.device)
        if self.warm:
            _take_over_(student, earlier)
        return student


class Fixed:
    """Students that are given for each round, such as those of the parts of a sequence; only seeds and learning rates are searched.

    Args:
        makes: for each round a function from a seed to its student.
        names: of the students, for logs.
    """

    fixed = True

    def __init__(self, makes: Sequence[Callable[[int], nn.Module]], names: Sequence[str] = ()) -> None:
        if not makes:
            raise ValueError("expected at least one student, got none")
        self.makes, self.notes = tuple(makes), list[str]()
        self.names = tuple(names) or tuple(f"student {k + 1}" for k in range(len(makes)))
        if len(self.names) != len(self.makes):
            raise ValueError(f"{len(self.names)} names for {len(self.makes)} students: expected one for each")
        self.levels: list[tuple[int, Links]] = [(0, "none")]

    def described(self, candidate: Candidate) -> str:
        """A candidate in a few words."""
        lr = [f"lr × {candidate.lr:g}"] if candidate.lr != 1 else []
        return ", ".join([self.names[candidate.size], f"seed {candidate.seed % 10_000}", *lr])

    def candidates(self, place: int, level: int, attempt: int, count: int, lrs: Sequence[float], seed: int) -> list[Candidate]:
        """The round's student from ``count`` seeds."""
        if place >= len(self.makes):
            return []
        draw = np.random.SeedSequence([seed, place, attempt, level]).generate_state(count, np.uint32)
        return [Candidate(place, seed=int(s), lr=lr) for s, lr in zip(draw, itertools.cycle(lrs), strict=False)]

    def build(self, candidate: Candidate, place: int, earlier: Sequence[Any], like: Tensor) -> nn.Module:  # noqa: ARG002
        """The round's student."""
        return self.makes[candidate.size](candidate.seed).to(like.device)


@torch.no_grad()
def _take_over_(student: ChainStudent, earlier: Sequence[Any]) -> None:
    """The weights of the latest earlier student of the same size, of the segments that both have; links stay as they are."""
    for other in reversed(earlier):
        if isinstance(other, ChainStudent) and other.boundaries == student.boundaries:
            first = max(student.first, other.first)
            own, theirs = (nn.ModuleList(list(s.segments)[first - s.first :]) for s in (student, other))
            if _sizes(own) == _sizes(theirs):
                own.load_state_dict(theirs.state_dict())
                return


def _sizes(segments: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in segments.state_dict().items()}


def without_dropout_(chain: Chain) -> Chain:
    """The chain, with every dropout in it at probability 0."""
    for module in chain.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        elif isinstance(module, nn.RNNBase | nn.MultiheadAttention):
            module.dropout = 0.0
        elif isinstance(module, ByMode) and module.target is F.scaled_dot_product_attention:
            module.constants = {place: value for place, value in module.constants.items() if place not in (4, "dropout_p")}
    return chain


def name_of(size: Cut) -> str:
    """A size in words."""
    said = [f"depth {size.depth:g}", f"width {size.width:g}"]
    return " ".join([*said, *([f"resolution 1/{size.resolution}"] if size.resolution != 1 else [])])


def _spread(lrs: Sequence[float], variants: int) -> list[float]:
    """Every variant meets a learning rate before one meets the next."""
    return [lr for lr in lrs for _ in range(variants)]


def drawn(module: nn.Module, seed: int) -> nn.Module:
    """A copy of a module with weights from a seed."""
    made = copy.deepcopy(module)
    redraw_(made, seed)
    return made


def _built(given: nn.Module | Callable[[], nn.Module], seed: int) -> nn.Module:
    """A module of its own with weights from the seed."""
    if isinstance(given, nn.Module):
        return drawn(given, seed)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
        torch.manual_seed(seed)
        made = given()
    if not isinstance(made, nn.Module):
        raise ValueError(f"a student was made that is a {type(made).__name__}: expected a function that gives an nn.Module")
    return made


def _maker(given: nn.Module | Callable[[], nn.Module], example: Tensor) -> Make:
    def make(seed: int) -> Chain:
        built = _built(given, seed).to(example.device)
        try:
            return chain(built, example)
        except ValueError:
            return Chain([copy.deepcopy(built)], (), Boundary(tuple(example.shape[1:]), None))

    return make


def _outputs(name: str, student: nn.Module, example: Tensor) -> int:
    """How many outputs L a module gives. A ValueError unless they are (B, L)."""
    try:
        with cost.counting.evaluating(student), torch.no_grad():
            found = student(example.clone())
    except Exception as error:  # whatever a user's code raises
        told = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{name} does not run on inputs {tuple(example.shape)}: expected a module of raw inputs, got {type(error).__name__}: {told}"
        ) from error
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(example):
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"{name} gives {got} for {len(example)} rows: expected outputs (B, L) alone")
    return found.shape[1]


def student_macs(student: Any, earlier: Sequence[Any], example: Tensor) -> int:
    """MACs per input that a student newly executes, links included, counted on one raw input (1, *shape)."""
    with torch.no_grad():
        carry = run(earlier, example, frozenset(student.reads))[1]
    return cost.macs(student, (example, carry))


def spec_of(candidate: Candidate | Mapping[str, Any]) -> Candidate:
    """A candidate from its JSON values."""
    return candidate if isinstance(candidate, Candidate) else Candidate(**candidate)
