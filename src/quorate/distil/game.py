"""The two-player game of B-DISTIL on arrays: students against weights on where the ensemble errs.

Source: Dennis et al. 2023 (arXiv 2302.10093). For N samples, L outputs, a teacher g and students f_1, f_2, …

    d_t = f_t − g      S_t = d_1 + … + d_t      F_t = (f_1 + … + f_t) / t      F_t − g = S_t / t
    K⁺ ← K⁺ e^(−ηd) / Z_j,   K⁻ ← K⁻ e^(ηd) / Z_j,   Z_j = Σ_i (K⁺ e^(−ηd) + K⁻ e^(ηd)),   both 1/(2N) at first

With a constant η the weights have a closed form, so S is all that is kept and K is computed where it is needed:

    K^± = e^(∓ηS) / C_j,    C_j = Σ_i 2 cosh(ηS_ij) = 2N · Π_t Z_j,    in logarithms, which do not overflow

A student is of use where its edge e_j = Σ_i (K⁺ − K⁻) d is positive. The paper's condition is the split form, Σ_i K⁺ d > 0 and
Σ_i K⁻ (−d) > 0, whose sum the edge is; the proof of convergence needs the sum alone. One term of C_j is at most all of it, which is
the certificate

    η · max_i |S_ij| ≤ ln C_j = ln 2N + Σ_t ln Z_j

whatever the students are. The *joint* game is one over all (i, j, ±): Z, C and the edge are sums over j too, and N becomes N·L.

Shapes: S, d, K⁺, K⁻ (N, L); e, ln Z, ln C (L,), in the joint game (1,). S is float32, all else float64; a round adds to S what rounds off
in float32, at most 2⁻²⁴ |S|, and ln Z is that of S as it is kept, so that the identities above hold to float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from quorate._validation import check_index
from quorate.distil.rows import Rows, block_rows, blocks, number, sliced, some, whole
from quorate.distil.weighing import Floats, LogCosh, LogNormaliser, weigh
from quorate.files import atomic

TOLERANCE = 1e-9  # relative, between ln C of given scores and that of given rounds


@dataclass(frozen=True, eq=False)
class Certificate:
    """How far the mean of the students is from the teacher, per output, in the outputs' units.

    rounds: t.
    bound: (L,) ln C / (ηt), which |F_t − g| exceeds on no sample; of the joint game the same for all outputs.
    max_error, mean_error: (L,) of |F_t − g| = |S| / t over the samples, as measured.
    """

    rounds: int
    bound: Floats
    max_error: Floats
    mean_error: Floats


class Game:
    """S in float32 and what follows from it; the arguments are attributes of the same names, not to be changed.

    Results do not depend on the size of the row blocks but for the rounding of float64 sums.

    Args:
        samples: N ≥ 1.
        outputs: L ≥ 1.
        eta: the step η, constant, 1e-100 … 1e100; :func:`~quorate.distil.bounds.best_eta` has the one that theory likes best.
        joint: one game over (i, j, ±) with one edge, for many classes.
        block: rows read at a time; by default as many as make 1 MiB of float64.

    Raises:
        ValueError: a value outside its range.
    """

    def __init__(self, samples: int, outputs: int, eta: float, *, joint: bool = False, block: int | None = None) -> None:
        shape = whole("samples", samples), whole("outputs", outputs)
        self._start(np.zeros(shape, np.float32), None, eta, joint, block)

    @classmethod
    def stored(
        cls, path: str | Path, samples: int, outputs: int, eta: float, *, joint: bool = False, block: int | None = None
    ) -> Game:
        """A new game whose S is mapped, read-only, from an ``.npy`` file, which takes 4·N·L bytes, twice that during an update.

        An update writes a new file and moves it over the old one: a kill or a full disk leaves the S of one round or of the next.

        Raises:
            ValueError: as the class; a path that exists.
            OSError: the file can't be written.
        """
        shape = whole("samples", samples), whole("outputs", outputs)
        path = Path(path)
        if path.exists():
            raise ValueError(f"{path} exists: go on with it by Game.of, or give another path")
        game = cls.__new__(cls)
        _check_eta(eta)
        block_rows(shape[1], block)
        with atomic(path) as temporary, temporary.open("wb") as file:
            _write_header(file, shape)
            for _ in range(shape[0]):
                file.write(bytes(4 * shape[1]))
        game._start(_mapped(path), path, eta, joint, block)
        return game

    @classmethod
    def of(
        cls,
        scores: NDArray | str | Path,
        rounds: int,
        eta: float,
        *,
        joint: bool = False,
        log_z: Sequence[ArrayLike] | None = None,
        block: int | None = None,
    ) -> Game:
        """Go on from a stored S: ``Game.of(scores, **game.state())``.

        Args:
            scores: S (N, L) float32, writable, which updates change in place; or the path of an ``.npy`` file, as :meth:`stored`.
            rounds: t, the number of students in S.
            eta, joint, block: as the class; η and the form of the game as they were.
            log_z: ln Z of the rounds so far, (L,) or (1,) each, by which it is seen that S is of this round and η; not known if not given.

        Raises:
            ValueError: scores of another kind, NaN or infinities in them, no rounds but scores other than 0, or a log_z that these scores
                do not have.
            FileNotFoundError: no such file.
        """
        path = Path(scores) if isinstance(scores, str | Path) else None
        array = scores if path is None else _mapped(path)
        if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype != np.float32 or 0 in array.shape:
            had = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise ValueError(f"scores are {had}: expected a float32 array (samples, outputs)")
        if path is None and not array.flags.writeable:
            raise ValueError("scores are read-only: give a copy, or the path of their .npy file")
        game = cls.__new__(cls)
        game._start(array, path, eta, joint, block)
        game._go_on(whole("rounds", rounds, 0), [] if log_z is None else list(log_z))
        return game

    def _start(self, scores: NDArray[np.float32], path: Path | None, eta: float, joint: bool, block: int | None) -> None:
        self._scores, self._path = scores, path
        self.eta, self.joint = _check_eta(eta), bool(joint)
        self.samples, self.outputs = scores.shape
        self.block = block_rows(self.outputs, block)
        self._rounds = 0
        self._log_z: list[Floats] = []
        most = np.zeros(1 if joint else self.outputs)
        self._normaliser = LogNormaliser(most, np.full_like(most, self.log_entries))

    def _go_on(self, rounds: int, log_z: list[Any]) -> None:
        total = LogCosh(self.outputs)
        for rows, u in self.scaled():
            if not np.isfinite(u).all():
                bad = rows.start + np.flatnonzero(~np.isfinite(u).all(axis=1))
                raise ValueError(f"scores have NaN or infinite values in rows {some(bad)}: take those of a finished round")
            total.add_(u)
        normaliser = total.value(self.joint)
        found = normaliser.total
        known = [np.array(z, np.float64) for z in log_z]
        if len(known) > rounds or any(z.shape != found.shape or not np.isfinite(z).all() for z in known):
            had = [z.shape for z in known]
            raise ValueError(
                f"log_z has entries {had}: expected at most {rounds}, one per round, finite and of shape {found.shape}"
            )
        if len(known) == rounds:
            expected = self.log_entries + np.sum(known, axis=0)
            if not np.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
                worst = float(np.abs(found - expected).max())
                raise ValueError(
                    f"scores are not those of round {rounds} at eta={self.eta:g} (ln C is off by {worst:.3g}): take the scores, "
                    "rounds, eta and log_z of one state"
                )
        self._rounds, self._log_z, self._normaliser = rounds, known, normaliser

    def __repr__(self) -> str:
        form = "joint, " if self.joint else ""
        return f"Game({self.samples} × {self.outputs}, {form}eta={self.eta:g}, round {self.rounds})"

    @property
    def scores(self) -> NDArray[np.float32]:
        """S (N, L); an update changes it in place, but that of a path is to be taken anew: the old one shows the round before."""
        return self._scores

    @property
    def rounds(self) -> int:
        """t, the updates so far."""
        return self._rounds

    @property
    def log_entries(self) -> float:
        """ln 2N, of the joint game ln 2NL: ln C before the first round."""
        return float(np.log(2.0 * self.samples * (self.outputs if self.joint else 1)))

    @property
    def log_normaliser(self) -> Floats:
        """ln C (L,), of the joint game (1,)."""
        return self._normaliser.total

    @property
    def normaliser(self) -> LogNormaliser:
        """ln C in two parts, for :func:`~quorate.distil.weighing.weigh`."""
        return self._normaliser

    @property
    def log_z(self) -> list[Floats]:
        """ln Z (L,) or (1,) of every round; of a game that went on without them those since then."""
        return [z.copy() for z in self._log_z]

    def state(self) -> dict[str, Any]:
        """What :meth:`of` needs beside the scores, as plain values that JSON can hold."""
        return {"rounds": self.rounds, "eta": self.eta, "joint": self.joint, "log_z": [z.tolist() for z in self._log_z]}

    def scaled(self) -> Iterator[tuple[slice, Floats]]:
        """(rows, ηS (n, L)) by row blocks; the arrays are the caller's to change."""
        for start in range(0, self.samples, self.block):
            part = self._scores[start : start + self.block]
            yield slice(start, start + len(part)), np.multiply(part, self.eta, dtype=np.float64)

    def update(self, d: Rows) -> Floats:
        """Add a student's d = f − g to S; a refused d leaves the game as it was.

        Args:
            d: (N, L) floats, in memory or mapped, or their row blocks (n, L) in order, from an iterable or a callable that returns one. Row
                blocks are read once; S is then for a while held twice.

        Returns:
            ln Z of this round, (L,) or (1,).

        Raises:
            ValueError: another shape or dtype, NaN or infinities (the rows are named), a sum beyond float32.
        """
        array = sliced(d)
        if self._path is not None:
            total = self._update_file(d, self._path)
        elif array is None or (isinstance(array, np.ndarray) and np.may_share_memory(array, self._scores)):
            new = np.empty_like(self._scores)
            total = self._sum(d, new.__setitem__)
            self._scores[...] = new
        else:
            for _ in self._added(array):  # seen to be right, whole, before anything changes
                pass
            total = self._sum(array, self._scores.__setitem__)
        if self._path is None and isinstance(self._scores, np.memmap):
            self._scores.flush()
        found = total.value(self.joint)
        log_z = found.since(self._normaliser)
        self._normaliser, self._rounds = found, self._rounds + 1
        self._log_z.append(log_z)
        return log_z.copy()

    def _update_file(self, d: Rows, path: Path) -> LogCosh:
        with atomic(path) as temporary, temporary.open("wb") as file:  # not mapped: a full disk is then an error, not a signal
            _write_header(file, self._scores.shape)
            total = self._sum(d, lambda _, new: file.write(new.tobytes()))
        self._scores = _mapped(path)
        return total

    def _added(self, d: Rows) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """(rows, S + d) by row blocks, checked."""
        for rows, part in blocks("d", d, (self.samples, self.outputs), self.block):
            with np.errstate(over="ignore"):
                new = np.add(self._scores[rows], part, dtype=np.float64).astype(np.float32)
            if not np.isfinite(new).all():
                bad = rows.start + np.flatnonzero(~np.isfinite(new).all(axis=1))
                raise ValueError(f"d takes the scores beyond float32 in rows {some(bad)}: scale or clip the outputs")
            yield rows, new

    def _sum(self, d: Rows, put: Callable[[slice, NDArray[np.float32]], object]) -> LogCosh:
        """Σ 2 cosh η(S + d), whose row blocks are handed to ``put`` in order."""
        total = LogCosh(self.outputs)
        for rows, new in self._added(d):
            put(rows, new)
            total.add_(np.multiply(new, self.eta, dtype=np.float64))
        return total

    def log_z_of(self, d: Rows) -> Floats:
        """The ln Z that :meth:`update` would return, with nothing changed: the fall of the potential; d and errors as there."""
        return self._sum(d, lambda *_: None).value(self.joint).since(self._normaliser)

    def edge(self, d: Rows) -> Floats:
        """The summed edge e_j = Σ_i (K⁺ − K⁻) d of a student, in the outputs' units, (L,); of the joint game over j too, (1,).

        d and errors: as :meth:`update`. Under the uniform weights of the first round every edge is 0.
        """
        plus, minus = self.split_edge(d)
        summed: Floats = plus + minus
        return summed

    def split_edge(self, d: Rows) -> tuple[Floats, Floats]:
        """The paper's split form, Σ_i K⁺ d and Σ_i K⁻ (−d), which it wants both positive; shapes and errors as :meth:`edge`."""
        plus, minus = np.zeros(self.outputs), np.zeros(self.outputs)
        for rows, part in blocks("d", d, (self.samples, self.outputs), self.block):
            above, below = self._weigh(self._scores[rows])
            plus += np.multiply(above, part, out=above).sum(axis=0)
            minus -= np.multiply(below, part, out=below).sum(axis=0)
        return (plus.sum(keepdims=True), minus.sum(keepdims=True)) if self.joint else (plus, minus)

    def _weigh(self, scores: NDArray) -> tuple[Floats, Floats]:
        return weigh(np.multiply(scores, self.eta, dtype=np.float64), self._normaliser)

    def weights(self, rows: slice | ArrayLike | None = None, dtype: DTypeLike = np.float64) -> tuple[NDArray, NDArray]:
        """K⁺ and K⁻, (n, L) each: large where the mean of the students is below, above the teacher.

        Args:
            rows: a slice, (n,) integers or a mask (N,); all by default.
            dtype: float64 or float32, in which what is below 1e-45 becomes 0.

        Raises:
            ValueError: rows out of range or of another form; another dtype.
        """
        index = self.chosen(rows)
        plus, minus = (np.empty((len(index), self.outputs), check_dtype(dtype)) for _ in range(2))
        for start in range(0, len(index), self.block):
            part = slice(start, start + self.block)
            plus[part], minus[part] = self._weigh(self._scores[index[part]])
        return plus, minus

    def weight_blocks(self, dtype: DTypeLike = np.float64) -> Iterator[tuple[slice, NDArray, NDArray]]:
        """(rows, K⁺, K⁻) of all rows, block by block; dtype as :meth:`weights`."""
        kind = check_dtype(dtype)
        for rows, u in self.scaled():
            plus, minus = weigh(u, self._normaliser)
            yield rows, plus.astype(kind, copy=False), minus.astype(kind, copy=False)

    def chosen(self, rows: slice | ArrayLike | None) -> NDArray[np.int64]:
        """The numbers of the rows meant by a slice, integers, a mask, or None for all; ValueError as :meth:`weights`."""
        if rows is None or isinstance(rows, slice):
            return np.arange(self.samples)[rows if rows is not None else slice(None)]
        index = check_index(rows, self.samples)
        return np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)

    def certificate(self) -> Certificate:
        """The bound on |F_t − g| that needs no assumption, and the error as measured. ValueError before the first round."""
        if not self.rounds:
            raise ValueError(
                "no student is in the game yet: update it with the first one's d = f − g, then ask for the certificate"
            )
        most, total = np.zeros(self.outputs), np.zeros(self.outputs)
        for start in range(0, self.samples, self.block):
            size = np.abs(self._scores[start : start + self.block])
            np.maximum(most, size.max(axis=0), out=most)
            total += size.sum(axis=0, dtype=np.float64)
        bound = np.broadcast_to(self._normaliser.total / (self.eta * self.rounds), (self.outputs,)).copy()
        return Certificate(self.rounds, bound, most / self.rounds, total / self.rounds / self.samples)


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    descr = np.lib.format.dtype_to_descr(np.dtype(np.float32))
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})


def _mapped(path: Path) -> NDArray[np.float32]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected the scores of a game, an .npy file")
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is not a readable .npy file ({reason}): expected float32 scores (samples, outputs)") from error


def _check_eta(eta: float) -> float:
    return number("eta", eta, 1e-100, 1e100, "a step from 1e-100 to 1e100")


def check_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """float32 or float64 as a dtype; ValueError for another."""
    if dtype not in (np.float32, np.float64, "float32", "float64"):
        raise ValueError(f"dtype={dtype!r}: expected float32 or float64")
    return np.dtype(dtype)
