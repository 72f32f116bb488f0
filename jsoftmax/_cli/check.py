"""Check the installation: compare maps, losses and divergences with float64 on the device JAX finds.

NumPy computes the reference, so neither jax_enable_x64 nor a CPU beside the device is needed. The
reference gradients are complex steps, Im f(x + ih)/h: without a subtraction, exact to float64's rounding.

Errors are in ulp, the spacing of float32 at the exact result. The bounds:

- a value: 4 ulp; for a probability |x - max| ulp more, because exp amplifies the rounding error of its
  argument; for the logarithm of a probability near 1, its lead over the next class more;
- a gradient: 4 ulp, and the distance from the largest other logit more. If it is a difference of terms
  that may cancel, the ulp is the one at the sum of their magnitudes.
"""

import platform
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

import jsoftmax
from jsoftmax._cli import accuracy, definitions
from jsoftmax._cli.functions import FUNCTIONS, INFORMATION, Function, Rows
from jsoftmax._cli.other_functions import OTHERS

Reals = NDArray[np.floating[Any]]

ULPS = 4
CANCELLING_ULPS = 8  # for a difference of sums, which has more roundings
STEP = 1e-30  # of the complex step: its square is negligible in float64
TINY = np.finfo(np.float32).tiny
UNDERFLOW = 8 * float(TINY)  # what a few terms lose on a device that flushes subnormals to zero


class Regime(NamedTuple):
    """One kind of logits."""

    name: str
    rows: Rows
    temperature: float | None = None


class Line(NamedTuple):
    """The result for one function: over regimes and modes, the error that is nearest to its bound."""

    quantity: str
    ulp: float
    bound: float
    where: str

    @property
    def ok(self) -> bool:
        return self.ulp <= self.bound  # False for NaN


def run() -> int:
    """Print the versions and one line for each comparison; return 1 if any fails, else 0."""
    device = jax.devices()[0]
    print(f"jsoftmax {jsoftmax.__version__} on {device.platform} ({device.device_kind})")
    print(
        f"jax {jax.__version__}, jaxlib {version('jaxlib')}, NumPy {np.__version__}, "
        f"Python {platform.python_version()}\n"
    )
    print(f"{'':52}{'error':>8}{'bound':>8}  at")
    failures = 0
    for line in lines():
        verdict = "ok" if line.ok else "FAILED"
        print(f"{line.quantity:52}{line.ulp:8.2f}{line.bound:8.2f}  {line.where:22}{verdict}")
        failures += not line.ok
    print("\nErrors in float32 ulp, at the entry nearest its bound.")
    print(f"{failures} comparisons FAILED." if failures else "All within their bounds.")
    print()
    for row in accuracy.table():
        print(row)
    return 1 if failures else 0


def regimes() -> tuple[Regime, ...]:
    """Seeded logits, labels and targets of every kind."""
    random = np.random.default_rng(0)

    def rows(scale: float = 1, offset: float = 0, count: int = 32, classes: int = 100) -> Rows:
        logits = (scale * random.normal(size=(count, classes)) + offset).astype(np.float32)
        targets = random.dirichlet(np.ones(classes), count).astype(np.float32)
        return Rows(logits, random.integers(classes, size=count), targets)

    masked = rows()
    where = random.random(masked.logits.shape) < 0.7
    where[np.arange(len(where)), masked.labels] = True
    masked = masked._replace(where=where, targets=masked.targets * where)
    confident = rows(scale=20)
    return (
        Regime("unit", rows()),
        Regime("peaked", rows(scale=20)),
        Regime("confident", confident._replace(labels=confident.logits.argmax(axis=-1))),
        Regime("offset", rows(offset=1e4)),
        Regime("masked", masked),
        Regime("temperature", rows(scale=3), 0.7),
    )


def lines() -> Iterator[Line]:
    """Compare every function, in value and gradient, over all regimes and transformations."""
    for function in (*FUNCTIONS, *INFORMATION, *OTHERS):
        modes = _modes(function)
        values, gradients = [], []
        for regime in regimes():
            if regime.temperature is None or function.has_temperature:
                for value, gradient in _compare(function, regime, modes):
                    values.append(value)
                    gradients.append(gradient)
        yield _nearest_its_bound(values)
        yield _nearest_its_bound(gradients)


def _modes(function: Function) -> dict[str, Callable[..., Any]]:
    """Functions of rows and a cotangent g that return the value and the gradient, by mode."""

    def compute(rows: Rows, g: Any, **temperature: float) -> Any:
        def at(logits: Any) -> Any:
            return function.ours(rows._replace(logits=logits), **temperature)

        _, pull = jax.vjp(at, rows.logits)
        (gradient,) = pull(g)
        return at(rows.logits), gradient

    def compute_each(rows: Rows, g: Any, **temperature: float) -> Any:
        return jax.vmap(lambda row, g: compute(row, g, **temperature))(rows, g)

    jit = partial(jax.jit, static_argnames="temperature")
    if function.has_one_program:
        return {"jit": jit(compute)}
    return {"jit": jit(compute), "vmap": jit(compute_each)}


def _nearest_its_bound(candidates: list[Line]) -> Line:
    return max(candidates, key=lambda line: line.ulp / line.bound if line.ok else np.inf)


def _compare(
    function: Function, regime: Regime, modes: dict[str, Callable[..., Any]]
) -> Iterator[tuple[Line, Line]]:
    """The value and the gradient of one function in one regime, a pair of lines for each mode."""
    rows, temperature, options, roundings = regime.rows, np.float64(1), {}, 1
    if function.has_one_program and rows.where is None:
        rows = rows._replace(where=np.ones(rows.logits.shape, bool))
    if regime.temperature is not None:
        # The function gets the float32 temperature. The division by it rounds x - max a second time.
        temperature = np.float64(np.float32(regime.temperature))
        options, roundings = {"temperature": regime.temperature}, 2

    # A divergence takes the targets as logits too: NumPy must compute their exponentials in float64.
    fine = rows._replace(targets=rows.targets.astype(np.float64))

    def exact(logits: Any) -> Any:
        return function.definition(np, fine._replace(logits=logits / temperature))

    logits = rows.logits.astype(np.float64)
    value = exact(logits)
    g = np.random.default_rng(1).normal(size=value.shape).astype(np.float32)
    gradient = _complex_step(exact, logits, g)
    gap, lead = _gap_and_lead(rows, roundings * logits / temperature)
    terms, ulps = np.abs(gradient), ULPS
    if function.cancels:
        ulps = CANCELLING_ULPS
        p = definitions.softmax(np, logits / temperature, rows.entries)
        terms = function.terms(np, fine, p, g.astype(np.float64)) / temperature
    value_bound = ULPS + function.amplified(rows, gap, lead)
    underflow = UNDERFLOW * function.lost_logarithms
    for mode, outcome in modes.items():
        place = f"{regime.name}, {mode}"
        our_value, our_gradient = outcome(rows, g, **options)
        yield (
            _line(function.name, place, our_value, value, np.abs(value), value_bound, UNDERFLOW),
            _line("  gradient", place, our_gradient, gradient, terms, ulps + gap + lead, underflow),
        )


def _complex_step(f: Callable[[Any], Any], x: Reals, g: Reals) -> Reals:
    """The gradient of sum(g * f(x)), one column of x at a time: the rows are independent."""
    gradient = np.empty_like(x)
    for column in range(x.shape[-1]):
        stepped = x.astype(np.complex128)
        stepped[:, column] += 1j * STEP
        derivative = f(stepped).imag / STEP
        gradient[:, column] = (g * derivative).reshape(len(x), -1).sum(axis=-1)
    return gradient


def _gap_and_lead(rows: Rows, x: Reals) -> tuple[Reals, Reals]:
    """max - x, and the lead of the maximum over the next class; at each entry one of the two is 0."""
    live = np.where(rows.entries, x, -np.inf)
    second, first = np.split(np.sort(live, axis=-1)[:, -2:], 2, axis=-1)
    return np.where(rows.entries, first - x, 0), np.where(live == first, first - second, 0)


def _line(
    quantity: str, place: str, ours: Any, exact: Reals, scale: Reals, bound: Reals, underflow: float
) -> Line:
    """The entry whose error, in ulp of `scale`, is nearest to its bound."""
    ours, bound = np.asarray(ours, np.float64), np.broadcast_to(bound, exact.shape)
    if ours.shape != exact.shape:
        raise ValueError(f"{quantity}: shape {ours.shape}, expected {exact.shape}")
    ulp = np.spacing(np.where(np.isfinite(scale), np.maximum(scale, TINY), 1).astype(np.float32))
    equal = ours == exact  # infinities are equal or wrong
    error = np.abs(np.where(equal, 0, ours) - np.where(equal, 0, exact))
    error = np.maximum(error - underflow, 0) / ulp
    worst = np.unravel_index(np.argmax(error / bound), error.shape)  # NaN counts as largest
    return Line(quantity, float(error[worst]), float(bound[worst]), place)
