"""The functions of a user's model, differentiated and compiled: once for each process, for tiles of one shape.

    log p(x | u) = log sum_z p(x, z | u)      u : parameters without constraints, (p,)
    d log p(x | u) / du = sum_z q(z) d log p(x, z | u) / du      q : posterior of the label [Fisher's identity]

Gradients are by reverse mode, or by forward mode where parameters are few; second derivatives are p Hessian-vector products, forward over
reverse mode. [Baydin et al. 2018] Everything is float64, on one thread, whatever the settings of JAX in this process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.arrays.tiles import TILE_BYTES
from pipeline.errors import InputError
from pipeline.models.autodiff import faults
from pipeline.models.autodiff.declare import JaxModel, Layout, has

FORWARD = 4  # parameters: up to so many, forward mode takes no longer than reverse mode
LEAST_ROWS, MOST_ROWS = 64, 2048  # of a tile
ONE_THREAD = {"xla_cpu_multi_thread_eigen": False}

Function = Callable[..., dict[str, Array]]
_LOCK = Lock()
_COMPILED: dict[Any, Any] = {}


class Shapes(NamedTuple):
    """n_labels : values of the latent label; 0 without one.  statistics : shapes of the sums by name, sorted."""

    n_labels: int
    statistics: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def n_sums(self) -> int:
        """Numbers in all sums of statistics."""
        return sum(int(np.prod(shape)) for _, shape in self.statistics)

    def named(self, flat: Array) -> dict[str, Array]:
        """Return sums by name. flat : (n_sums,)."""
        found, start = {}, 0
        for name, shape in self.statistics:
            stop = start + int(np.prod(shape))
            found[name] = flat[start:stop].reshape(shape)
            start = stop
        return found


@contextmanager
def float64() -> Iterator[Any]:
    """Context in which JAX has 64 bits in this thread; yields `jax`. Raises InputError where it is not installed."""
    try:
        import jax
    except ImportError as error:
        raise InputError(f"models in JAX: {error}. Install it: pip install 'em-pipeline[autodiff]'.") from error
    with jax.enable_x64(True):
        yield jax


@lru_cache(64)
def layout_of(model: JaxModel, n_features: int) -> Layout:
    """Return the layout of a model for rows of so many features."""
    return Layout(model, n_features)


@lru_cache(64)
def shapes_of(model: JaxModel, n_features: int) -> Shapes:
    """Return what the user's functions return, found without computing it.

    Raises
    ------
    InputError
        Naming the user's line, if a function fails or returns another shape than it should.
    """
    layout = layout_of(model, n_features)
    with float64() as jax:
        x = jax.ShapeDtypeStruct((n_features,), np.float64)
        p = layout.named({name: jax.ShapeDtypeStruct(shape, np.float64) for name, shape in layout.shapes.items()})
        if has(model, "e_step"):
            found = _traced(jax, model, "e_step", p, x)
            if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping)):
                raise faults.wrong(model, "e_step", "a pair of log p(x) and a dict of statistics", found)
            if found[0].shape != ():
                raise faults.wrong(model, "e_step", "one number for log p(x) of one row", found[0])
            return Shapes(0, tuple(sorted((name, tuple(each.shape)) for name, each in found[1].items())))
        joint = _traced(jax, model, "log_joint", p, x)
        if not hasattr(joint, "shape") or len(joint.shape) > 1 or joint.shape == (0,):
            raise faults.wrong(model, "log_joint", "shape () or (k,) for one row, with k values of the label", joint)
        k = joint.shape[0] if joint.shape else 0
        if not has(model, "statistics"):
            return Shapes(k, ())
        found = _traced(jax, model, "statistics", x)
        if not isinstance(found, Mapping) or not found:
            raise faults.wrong(model, "statistics", "a dict of arrays", found)
        for name, each in found.items():
            if k and each.shape[:1] != (k,):
                raise faults.wrong(model, "statistics", f"{name} of shape ({k}, ...), one for each label", each)
        return Shapes(k, tuple(sorted((name, tuple(each.shape)) for name, each in found.items())))


def _traced(jax: Any, model: JaxModel, method: str, *arguments: Any) -> Any:
    with faults.named(model, method):
        return jax.eval_shape(lambda *each: _arrays(jax, getattr(model, method)(*each)), *arguments)


def _arrays(jax: Any, found: Any) -> Any:
    """Plain numbers and lists of a result as arrays; dicts and tuples stay."""
    if isinstance(found, Mapping):
        return {str(name): jax.numpy.asarray(each, dtype=float) for name, each in found.items()}
    if isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping):
        return jax.numpy.asarray(found[0], dtype=float), _arrays(jax, found[1])
    return jax.numpy.asarray(found, dtype=float)


def tile_rows(model: JaxModel, n_features: int, second: bool) -> int:
    """Return the rows of a tile, a power of two. second : whether second derivatives are computed."""
    k, p = max(1, shapes_of(model, n_features).n_labels), layout_of(model, n_features).size
    row_bytes = 8 * (n_features + k * ((p if second else 0) + 8))
    return int(np.clip(1 << int(np.log2(max(1, TILE_BYTES / row_bytes))), LEAST_ROWS, MOST_ROWS))


class _Model:
    """The functions of one row, and of a tile, in JAX. All are traced inside of `float64`."""

    def __init__(self, jax: Any, model: JaxModel, n_features: int) -> None:
        self.jax, self.jnp, self.model = jax, jax.numpy, model
        self.layout, self.shapes = layout_of(model, n_features), shapes_of(model, n_features)
        self.own = has(model, "e_step")

    def joint(self, u: Any, x: Any, label: Any) -> Any:
        """log p(x, z), (k,); -inf for all but a known label."""
        p = self.layout.named(self.layout.from_real(u, self.jnp))
        with faults.named(self.model, "log_joint"):
            found = self.jnp.atleast_1d(self.jnp.asarray(self.model.log_joint(p, x), dtype=float))
        z = self.jnp.arange(len(found))
        return self.jnp.where((label < 0) | (label == z), found, -self.jnp.inf)

    def density(self, u: Any, x: Any, label: Any) -> Any:
        """log p(x), ()."""
        return self._e_step(u, x)[0] if self.own else self.jax.nn.logsumexp(self.joint(u, x, label))

    def _e_step(self, u: Any, x: Any) -> Any:
        with faults.named(self.model, "e_step"):
            found = self.model.e_step(self.layout.named(self.layout.from_real(u, self.jnp)), x)  # type: ignore[attr-defined]
            return _arrays(self.jax, found)

    def total(self, u: Any, x: Any, w: Any, label: Any) -> Any:
        """Sum of w log p(x) of a tile, and log p(x), (t,)."""
        each = self.jax.vmap(self.density, (None, 0, 0))(u, x, label)
        return (w * each).sum(), each

    def gradient(self, u: Any, x: Any, w: Any, label: Any) -> Any:
        """Gradient of the total, and log p(x), (t,)."""
        mode = self.jax.jacfwd if self.layout.size <= FORWARD else self.jax.jacrev
        return mode(self.total, has_aux=True)(u, x, w, label)

    def hessian(self, function: Callable[[Any], Any], u: Any) -> Any:
        """Second derivatives by Hessian-vector products, (p, p)."""
        gradient = self.jax.grad(function)

        def product(v: Any) -> Any:
            return self.jax.jvp(gradient, (u,), (v,))[1]

        return self.jax.vmap(product)(self.jnp.eye(self.layout.size))

    def posterior(self, u: Any, x: Any, label: Any) -> Any:
        """q(z), (t, k)."""
        joint = self.jax.vmap(self.joint, (None, 0, 0))(u, x, label)
        norm = self.jax.nn.logsumexp(joint, axis=1, keepdims=True)
        return self.jnp.where(norm > -self.jnp.inf, self.jnp.exp(joint - norm), 0.0)

    def expected(self, u: Any, q: Any, x: Any, w: Any, label: Any) -> Any:
        """Sum of w q(z) log p(x, z) of a tile."""
        joint = self.jax.vmap(self.joint, (None, 0, 0))(u, x, label)
        return (w[:, None] * self.jnp.where(q > 0, q * joint, 0.0)).sum()

    def sums(self, u: Any, q: Any, x: Any, w: Any) -> Any:
        """Expected statistics of a tile in one vector, (n_sums,)."""
        if self.own:
            found = self.jax.vmap(self._e_step, (None, 0))(u, x)[1]
            share = w
        else:
            with faults.named(self.model, "statistics"):
                found = self.jax.vmap(lambda row: _arrays(self.jax, self.model.statistics(row)))(x)  # type: ignore[attr-defined]
            share = w[:, None] * q if self.shapes.n_labels else w
        parts = []
        for name, shape in self.shapes.statistics:
            each = self.jnp.reshape(found[name], (*share.shape, -1))
            each = self.jnp.where(share[..., None] > 0, share[..., None] * each, 0.0).sum(axis=0)
            parts.append(self.jnp.reshape(each, (int(np.prod(shape)),)))
        return self.jnp.concatenate(parts)


def _program(of: _Model, wanted: tuple[str, ...]) -> Any:
    """The function of a tile that returns what is wanted by name."""
    jnp, labels = of.jnp, of.shapes.n_labels > 0

    def function(u: Any, reference: Any, x: Any, w: Any, label: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        q: Any
        if "gradient" in wanted:
            found["gradient"], found["score"] = of.gradient(u, x, w, label)
        else:
            found["score"] = of.total(u, x, w, label)[1]
        q = None if of.own else of.posterior(u, x, label)
        if labels:
            found["entropy"] = -(w[:, None] * jnp.where(q > 0, q * jnp.log(jnp.where(q > 0, q, 1.0)), 0.0)).sum()
        if "posterior" in wanted and labels:
            found["posterior"] = q
        if "sums" in wanted:
            found["sums"] = of.sums(u, q, x, w)
        if "counts" in wanted:
            found["counts"] = (w[:, None] * q).sum(axis=0)
            found["constant"] = of.expected(reference, q, x, w, label)
        if "observed" in wanted:
            found["observed"] = of.hessian(lambda v: of.total(v, x, w, label)[0], u)
        if "complete" in wanted:
            found["complete"] = of.hessian(lambda v: of.expected(v, q, x, w, label), u)
        if "gradients" in wanted:
            found["gradients"] = of.jax.vmap(of.jax.grad(of.density), (None, 0, 0))(u, x, label)
        if "joint" in wanted:
            found["joint"] = of.jax.vmap(of.joint, (None, 0, 0))(u, x, label)
        return found

    return function


def on_tile(model: JaxModel, n_features: int, wanted: tuple[str, ...], rows: int) -> Function:
    """Return the compiled function of a tile of so many rows: (u, reference, x, w, label) -> arrays by name.

    wanted : of gradient (p,), sums (n_sums,), counts (k,), observed (p, p), complete (p, p), posterior (t, k), gradients (t, p), joint
    (t, k); always score (t,), log p(x).
    """
    layout = layout_of(model, n_features)
    vector, real = (layout.size,), np.float64
    arguments = [(vector, real), (vector, real), ((rows, n_features), real), ((rows,), real), ((rows,), np.int64)]

    def build(jax: Any) -> Any:
        return _program(_Model(jax, model, n_features), wanted)

    return compiled((model, n_features, wanted, rows), build, arguments)


def compiled(key: Any, build: Callable[[Any], Any], arguments: Sequence[tuple[tuple[int, ...], Any]]) -> Function:
    """Return a function that is compiled the first time that this process asks for its key.

    Parameters
    ----------
    key : hashable
    build : callable
        Returns the function to compile, which returns arrays by name.
    arguments : list of (shape, dtype)
    """
    with _LOCK:
        if key not in _COMPILED:
            with float64() as jax:
                shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in arguments]
                _COMPILED[key] = (
                    jax.jit(build(jax), keep_unused=True).lower(*shapes).compile(compiler_options=ONE_THREAD)
                )
        program = _COMPILED[key]

    def call(*values: Any) -> dict[str, Array]:
        with float64():
            return {name: np.array(value) for name, value in program(*values).items()}

    return call
