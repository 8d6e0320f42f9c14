"""Linear sketches of an adapter: a few numbers from which anyone who has every node's can tell the consensus error.

For each module, `u_k' B A v_k` with random signs u_k and v_k (E of its square is `||B A||_F^2`, whatever B A is), and for
some of the pairs the vectors `u_k' B` and `A v_k`, which hold the errors of the factors and the cross term. Every node
draws the same signs from the federation's seed, so sketches of different nodes may be subtracted (DESIGN 2.7).
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from conlora.core.consensus import NOTHING, Consensus, Factors, Sums
from conlora.core.schema import Schema, Vector

PAIRS = 128  # of the product: the standard error of one module's norm is 6-12 %, of many modules' together much less
FACTOR_PAIRS = 16  # of these, how many also carry the factors' vectors
BAR = 2.0  # error bars are this many standard errors, about 95 %

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Module:
    """One adapted module: B is `(d, r)`, A is `(r, k)`. `has_b`, `has_a`: whether the rule exchanges that factor."""

    name: str
    d: int
    r: int
    k: int
    has_b: bool
    has_a: bool

    @property
    def factor_size(self) -> int:
        """Numbers of one factor's vectors."""
        return FACTOR_PAIRS * self.r

    @property
    def size(self) -> int:
        """Numbers in this module's part of a sketch."""
        return PAIRS + (self.has_b + self.has_a) * self.factor_size


@dataclass(frozen=True)
class SketchLayout:
    """What a sketch contains, module by module: PAIRS products, then `u'B` and `A v` where these factors are exchanged.

    A factor that the rule freezes is the same on all nodes: it has no part, and no error, not even an estimated one.
    """

    modules: tuple[Module, ...]

    @classmethod
    def of(cls, full: Schema, shared: Schema) -> "SketchLayout":
        """The layout for a full adapter's schema and the part of it that is exchanged."""
        exchanged = {spec.name for spec in shared.tensors}
        return cls(
            tuple(
                Module(name, b.shape[0], b.shape[1], a.shape[1], b.name in exchanged, a.name in exchanged)
                for name, a, b in full.modules()
                if a is not None and b is not None
            )
        )

    @cached_property
    def size(self) -> int:
        """Numbers in a sketch."""
        return sum(module.size for module in self.modules)

    @cached_property
    def products(self) -> NDArray[np.intp]:
        """Where in a sketch the products of all modules are."""
        starts = np.cumsum([0, *(module.size for module in self.modules)])[:-1]
        return (starts[:, None] + np.arange(PAIRS)).ravel()

    def parts(self, sketches: Array) -> Iterator[tuple[Module, Array, Array, Array]]:
        """Splits sketches, shape `(n, size)`, into each module's products `(n, PAIRS)`, `u'B` and `A v`.

        The last two have shape `(n, FACTOR_PAIRS, r)`, zeros for a frozen factor.
        """
        at = 0
        for module in self.modules:
            products = sketches[:, at : at + PAIRS]
            at += PAIRS
            shape = (len(sketches), FACTOR_PAIRS, module.r)
            ub = va = np.zeros(shape)
            if module.has_b:
                ub = sketches[:, at : at + module.factor_size].reshape(shape)
                at += module.factor_size
            if module.has_a:
                va = sketches[:, at : at + module.factor_size].reshape(shape)
                at += module.factor_size
            yield module, products, ub, va


class Sketcher:
    """Makes sketches of one layout, with the signs of one federation."""

    def __init__(self, layout: SketchLayout, seed: int) -> None:
        """seed: the federation's."""
        self._layout = layout
        self._signs = [_signs(seed, module) for module in layout.modules]

    def sketch(self, *nodes: Factors) -> list[Vector]:
        """One sketch, shape `(layout.size,)`, fp32, for each given set of factors; `4 PAIRS r (d + k)` flops a module."""
        parts: list[list[NDArray[np.float32]]] = [[] for _ in nodes]
        for module, packed in zip(self._layout.modules, self._signs, strict=True):
            u, v = _unpacked(packed, module)
            for factors, part in zip(nodes, parts, strict=True):
                b, a = (np.asarray(x, np.float32) for x in factors[module.name])
                ub, va = u @ b, v @ a.T  # (PAIRS, r) each
                part.append(np.einsum("kr,kr->k", ub, va))
                part += [x[:FACTOR_PAIRS].ravel() for x, there in ((ub, module.has_b), (va, module.has_a)) if there]
        return [np.concatenate(part) if part else np.zeros(0, np.float32) for part in parts]


def _signs(seed: int, module: Module) -> NDArray[np.uint8]:
    """The signs of a module, a bit each: PCG64's raw output, seeded by federation seed and module name."""
    digest = hashlib.sha256(f"sketch/{seed}/{module.name}".encode()).digest()
    words = -(-PAIRS * (module.d + module.k) // 64)
    return np.asarray(np.random.PCG64(int.from_bytes(digest, "big")).random_raw(words), "<u8").view(np.uint8)


def _unpacked(signs: NDArray[np.uint8], module: Module) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """u `(PAIRS, d)` and v `(PAIRS, k)`, +1 or -1."""
    values = np.unpackbits(signs, count=PAIRS * (module.d + module.k)).astype(np.float32)
    values *= 2
    values -= 1
    return values[: PAIRS * module.d].reshape(PAIRS, -1), values[PAIRS * module.d :].reshape(PAIRS, -1)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Figures over all sketched nodes, and the half-width of each figure's error bar (BAR standard errors)."""

    figures: Consensus
    bars: Consensus
    layers: dict[str, Consensus]


def estimate(layout: SketchLayout, sketches: Sequence[Vector]) -> Estimate:
    """The consensus of the nodes that these sketches (at least one, each `(layout.size,)`) come from.

    `Pbar` is linear in the sketches, so V is too. D is measured from `Bbar Abar = Pbar - C`; the inner products of
    `P_i - Pbar` with C are zero on average over nodes and left out, which only a C as large as V would show.
    """
    stack = np.stack(sketches).astype(np.float64)
    modules: dict[str, Sums] = {}
    samples = _Samples()
    for module, products, ub, va in layout.parts(stack):
        modules[module.name] = _module_sums(products, ub, va, samples)
    together = sum(modules.values(), start=NOTHING)
    figures = together.consensus()
    return Estimate(
        figures, samples.bars(together, figures), {name: sums.consensus() for name, sums in modules.items()}
    )


def _module_sums(products: Array, ub: Array, va: Array, samples: "_Samples") -> Sums:
    """One module's estimated sums; what each pair of signs said goes to `samples`."""
    p_mean, ub_mean, va_mean = products.mean(axis=0), ub.mean(axis=0), va.mean(axis=0)
    dp, db, da = products - products[0], ub - ub[0], va - va[0]  # exactly zero where nodes agree
    dp, db, da = dp - dp.mean(axis=0), db - db.mean(axis=0), da - da.mean(axis=0)
    cross = np.einsum("nkr,nkr->k", db, da) / len(products)  # u'(mean dB dA)v of the first pairs
    v, b, a = (dp**2).mean(axis=0), (db**2).sum(axis=2).mean(axis=0), (da**2).sum(axis=2).mean(axis=0)
    c = cross**2
    # ||Bbar Abar||^2 = ||Pbar - C||^2: all pairs tell ||Pbar||^2, the first ones what C changes about it.
    correction = (p_mean[:FACTOR_PAIRS] - cross) ** 2 - p_mean[:FACTOR_PAIRS] ** 2
    distances = np.sqrt((dp**2).mean(axis=1) + c.mean())  # of each node's product from Bbar Abar
    safe = np.where(distances > 0, distances, 1.0)[:, None]
    samples.add(d=(dp**2 / (2 * safe)).mean(axis=0), v=v, c=c, a=a, b=b, mean=p_mean**2 + correction.mean())
    return Sums(
        d=float(distances.mean()),
        v=float(v.mean()),
        c=float(c.mean()),
        a=float(a.mean()),
        b=float(b.mean()),
        mean=float((p_mean**2).mean() + correction.mean()),
        size=float((ub_mean**2).sum() + (va_mean**2).sum()) / FACTOR_PAIRS,
    )


class _Samples:
    """Each pair's own estimate of every sum, added up over modules: their scatter is what the error bars come from.

    Modules have signs of their own, so the k-th pairs of all modules together are one sample, independent of the next.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Array] = {}

    def add(self, **samples: Array) -> None:
        """One module's samples."""
        for name, values in samples.items():
            self._sums[name] = self._sums.get(name, 0) + values

    def bars(self, sums: Sums, figures: Consensus) -> Consensus:
        """BAR standard errors of each figure; ratios by adding relative errors as if they were independent."""
        if not self._sums:
            return NOTHING.consensus()
        errors = {f.name: 0.0 for f in fields(Sums)}
        for name, values in self._sums.items():
            errors[name] = BAR * float(np.std(values, ddof=1) / np.sqrt(len(values)))
        half = {name: _relative(errors[name], getattr(sums, name)) / 2 for name in errors}  # of the root of a square
        spread = _relative(errors["a"] + errors["b"], sums.a + sums.b) / 2
        return Consensus(
            D=errors["d"],
            V=figures.V * half["v"],
            C=figures.C * half["c"],
            E_A=figures.E_A * half["a"],
            E_B=figures.E_B * half["b"],
            amplification=figures.amplification * float(np.hypot(half["v"], spread)),
            relative=figures.relative * float(np.hypot(half["v"], half["mean"])),
        )


def _relative(error: float, value: float) -> float:
    return error / value if value > 0 else 0.0


def motion(layout: SketchLayout, before: Vector, after: Vector) -> Consensus:
    """How far one node has gone between two sketches of it: V, E_A and E_B hold the distances in BA, A and B.

    D holds the sum of the modules' distances in BA. The other figures have no meaning here and are 0.
    """
    halves = estimate(layout, [before, after]).figures  # of two points, each is half their distance from the mean
    return Consensus(2 * halves.D, 2 * halves.V, 0.0, 2 * halves.E_A, 2 * halves.E_B, 0.0, 0.0)


def widened(estimate: Estimate, moved: Consensus) -> Estimate:
    """The estimate with bars that allow for sketches of different times.

    moved: how far nodes go (see `motion`) in the time by which the sketches differ. What nodes go beside what keeps them
    apart adds up in squares: of a spread V that is seen, sqrt(V^2 - moved^2) is there without the difference in time.
    """
    seen, bars = estimate.figures, estimate.bars
    d, v, a, b = (_excess(getattr(seen, name), getattr(moved, name)) for name in ("D", "V", "E_A", "E_B"))
    of_v = _relative(v, seen.V)
    factors = _relative(a, seen.E_A), _relative(b, seen.E_B)
    return replace(
        estimate,
        bars=Consensus(
            D=float(np.hypot(bars.D, d)),
            V=float(np.hypot(bars.V, v)),
            C=float(np.hypot(bars.C, seen.C * sum(factors))),
            E_A=float(np.hypot(bars.E_A, a)),
            E_B=float(np.hypot(bars.E_B, b)),
            amplification=float(np.hypot(bars.amplification, seen.amplification * max(of_v, *factors))),
            relative=float(np.hypot(bars.relative, seen.relative * of_v)),
        ),
    )


def _excess(seen: float, moved: float) -> float:
    return seen - float(np.sqrt(max(seen**2 - moved**2, 0.0)))


def distance(layout: SketchLayout, one: Vector | Array, other: Vector | Array) -> float:
    """The estimated `||P_i - P_j||_F` of two nodes; cheap, since whoever shows a federation asks it for every edge."""
    difference = np.subtract(one[layout.products], other[layout.products], dtype=np.float64)
    return float(np.sqrt(np.sum(difference**2) / PAIRS))
