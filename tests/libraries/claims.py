"""What works in a library with a `custom_vjp` rule, and what needs forward mode: the table of the page.

    python -m tests.libraries.claims

Every call runs without a mode and within `jsoftmax.forward_mode`; one line for each that is not as claimed.
"""

import contextlib
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxopt
import lineax as lx
import numpyro
import numpyro.distributions as dist
import optimistix as optx
from flax import nnx
from jaxopt import perturbations
from numpyro.infer import HMC, MCMC, NUTS, SVI, Trace_ELBO, autoguide

import jsoftmax
from tests.libraries import REFUSALS

X, V = jnp.array([2.0, 1.0, 0.0]), jnp.array([1.0, 0.0, 0.0])
TARGET, START, UNIFORM = jnp.array([0.5, 0.3, 0.2]), jnp.zeros(2), jnp.full(3, 1 / 3)
KEY = jax.random.key(0)


def softmax(x, *_):
    return jsoftmax.softmax(x)


def loss(x, *_):
    return jsoftmax.cross_entropy(x, 0)


def ridge(x, *_):
    return loss(x) + x @ x


def residuals(free, target):
    return jsoftmax.softmax(jnp.append(free, 0.0)) - target


def squares(solver, **options):
    return lambda: optx.least_squares(residuals, solver(1e-5, 1e-5), START, TARGET, **options).value


def of_squares(target):
    solver = optx.LevenbergMarquardt(1e-5, 1e-5)
    return optx.least_squares(residuals, solver, START, target, options={"jac": "bwd"}).value[0]


def fixed_point(x):
    solver = optx.FixedPointIteration(1e-6, 1e-6)
    return optx.fixed_point(lambda q, x: jsoftmax.softmax(x + q), solver, UNIFORM, x).value[0]


def operator(function=softmax, **options):
    return lx.JacobianLinearOperator(function, X, **options)


def model():
    logits = numpyro.sample("logits", dist.Normal().expand([3]).to_event(1))
    numpyro.factor("label", -jsoftmax.cross_entropy(logits, 0))


def sampled(kernel, **options):
    mcmc = MCMC(kernel(model, **options), num_warmup=2, num_samples=2, progress_bar=False)
    return lambda: (mcmc.run(KEY), mcmc.get_samples())[1]


def guided(guide=autoguide.AutoNormal, **options):
    svi = SVI(model, guide(model), numpyro.optim.Adam(1e-2), Trace_ELBO())
    return lambda: svi.run(KEY, 2, progress_bar=False, **options).losses


def perturbed(x):
    smooth = perturbations.make_perturbed_argmax(softmax, num_samples=10)
    return jsoftmax.cross_entropy(x, smooth(x, KEY))


def fixed_point_of_jaxopt(x):
    return jaxopt.FixedPointIteration(lambda q, x: jsoftmax.softmax(x + q)).run(UNIFORM, x).params[0]


def of_jaxopt(solver):
    return lambda: solver(residuals, maxiter=2).run(START, TARGET).params


@nnx.jit
def logits_of(layer, x):
    return jsoftmax.softmax(nnx.remat(nnx.Linear.__call__)(layer, x))


LAYER = nnx.Linear(3, 3, rngs=nnx.Rngs(0))

WORKS = {
    "JAX": {
        "grad": lambda: jax.grad(loss)(X),
        "vjp": lambda: jax.vjp(softmax, X)[1](V),
        "jacrev": lambda: jax.jacrev(softmax)(X),
        "hessian": lambda: jax.hessian(loss)(X),
        "jvp of grad": lambda: jax.jvp(jax.grad(loss), (X,), (V,)),
        "jvp, optax's name": lambda: jax.jvp(lambda x: jsoftmax.softmax_cross_entropy(x, TARGET), (X,), (V,)),
    },
    "Optimistix": {
        "minimise": lambda: optx.minimise(ridge, optx.BFGS(1e-5, 1e-5), X).value,
        "least_squares, BFGS": squares(optx.BFGS),
        "least_squares, jac=bwd": squares(optx.LevenbergMarquardt, options={"jac": "bwd"}),
        "least_squares, gradient": lambda: jax.grad(of_squares)(TARGET),
        "fixed_point, value": lambda: fixed_point(X),
    },
    "lineax": {
        "JacobianLinearOperator, jac=bwd": lambda: operator(jac="bwd").mv(V),
        "JacobianLinearOperator of a gradient": lambda: operator(jax.grad(loss)).mv(V),
    },
    "NumPyro": {
        "NUTS": sampled(NUTS),
        "HMC": sampled(HMC),
        "SVI": guided(),
        "AutoLaplaceApproximation": guided(autoguide.AutoLaplaceApproximation),
    },
    "JAXopt": {
        "perturbations": lambda: jax.grad(perturbed)(X),
        "FixedPointIteration, gradient": lambda: jax.grad(fixed_point_of_jaxopt)(X),
    },
    "Flax NNX": {
        "nnx.grad, nnx.jit, nnx.remat": lambda: nnx.grad(lambda m: logits_of(m, X)[0])(LAYER)["bias"][...],
    },
    "Equinox": {
        "filter_grad": lambda: eqx.filter_grad(eqx.filter_jit(loss))(X),
        "filter_hessian": lambda: eqx.filter_hessian(loss)(X),
    },
}
NEEDS = {
    "JAX": {
        "jvp": lambda: jax.jvp(softmax, (X,), (V,)),
        "jacfwd": lambda: jax.jacfwd(softmax)(X),
        "linearize": lambda: jax.linearize(softmax, X)[1](V),
        "grad of jvp": lambda: jax.grad(lambda x: jax.jvp(softmax, (x,), (V,))[1][0])(X),
    },
    "Optimistix": {
        "LevenbergMarquardt": squares(optx.LevenbergMarquardt),
        "GaussNewton": squares(optx.GaussNewton),
        "Dogleg": squares(optx.Dogleg),
        "Newton": lambda: (
            optx.root_find(
                lambda x, _: jsoftmax.logsumexp(jnp.append(x, 0.0)) - 1,
                optx.Newton(1e-5, 1e-5),
                jnp.array(0.5),
            ).value
        ),
        "fixed_point, gradient": lambda: jax.grad(fixed_point)(X),
    },
    "lineax": {
        "JacobianLinearOperator": lambda: operator().mv(V),
        "linearise": lambda: lx.linearise(operator()).mv(V),
    },
    "NumPyro": {
        "NUTS, forward": sampled(NUTS, forward_mode_differentiation=True),
        "HMC, forward": sampled(HMC, forward_mode_differentiation=True),
        "SVI, forward": guided(forward_mode_differentiation=True),
    },
    "JAXopt": {
        "LevenbergMarquardt": of_jaxopt(jaxopt.LevenbergMarquardt),
        "GaussNewton": of_jaxopt(jaxopt.GaussNewton),
        "perturbations, jacfwd": lambda: jax.jacfwd(perturbed)(X),
    },
    "Flax NNX": {
        "nnx.jvp": lambda: nnx.jvp(
            lambda layer, x: softmax(layer(x)), (LAYER, X), (nnx.clone(LAYER), V), graph=False
        ),
    },
    "Equinox": {"filter_jvp": lambda: eqx.filter_jvp(softmax, (X,), (V,))},
}


def outcome(call, mode):
    """ "works", "refused", or the error."""
    try:
        with mode():
            found = jax.tree.leaves(call())
    except Exception as error:
        text = str(error)
        return "refused" if any(r in text for r in REFUSALS) else f"{type(error).__name__}: {text[:200]}"
    return "works" if all(jnp.all(jnp.isfinite(a)) for a in found) else "not finite"


def main():
    wrong = 0
    for claims, without in ((WORKS, "works"), (NEEDS, "refused")):
        for library, calls in claims.items():
            for name, call in calls.items():
                got = outcome(call, contextlib.nullcontext), outcome(call, jsoftmax.forward_mode)
                if got != (without, "works"):
                    wrong += 1
                    print(f"{library}, {name}: {got[0]} without a mode, {got[1]} in forward mode")
    count = sum(len(calls) for claims in (WORKS, NEEDS) for calls in claims.values())
    print(f"{count - wrong} of {count} calls are as the page says")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
