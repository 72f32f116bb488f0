"""The kernels' body: what a warpgroup does with its rows, from their loads to their stores."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import online, rules
from jsoftmax.backends import _mosaic_gpu_moves as moves
from jsoftmax.backends import _mosaic_gpu_passes as passes
from jsoftmax.backends._kernel_rows import class_and_unused
from jsoftmax.backends._mosaic_gpu_moves import Place, pl_slice
from jsoftmax.backends._mosaic_gpu_passes import Passes, Slots, across
from jsoftmax.backends._mosaic_gpu_plan import WARPS, Plan
from jsoftmax.logits import _scaling
from jsoftmax.logits._scaling import Scaling

LARGE = ("x", "where", "g")


def run(task: str, plgpu: Any, plan: Plan, refs: dict[str, Any]) -> None:
    """The body of the kernel for `task`; `refs` are its arrays, scratch memory and barriers, by name."""
    from jax.experimental import pallas as pl

    place = Place(plgpu, plan, lax.axis_index("block"), lax.axis_index("warpgroup"))
    first = lax.axis_index("cluster")
    engine = [moves.by_engine(plan.classes, refs[name].dtype.itemsize) for name in LARGE if name in refs]

    def barrier(stage: Array | int) -> Any:
        return refs["loaded"].at[stage * plan.warpgroups + place.warpgroup] if any(engine) else None

    def begin(group: Array, stage: Array | int) -> None:
        for name in LARGE:
            if name in refs:
                target = refs[f"{name}_parts"].at[stage, place.warpgroup]
                moves.loads(place, refs[name], target, group, barrier(stage))

    def finish(group: Array, stage: Array | int) -> None:
        if any(engine):
            plgpu.barrier_wait(barrier(stage))
        if not all(engine):
            plgpu.commit_smem()
        Group(task, place, refs, group, stage).run()

    if plan.stages == 1:
        begin(first, 0)
        finish(first, 0)
    else:
        groups = -(-plan.rows // WARPS)
        begin(first, 0)

        def step(i: Array, _: None) -> None:
            group, stage = first + i * plan.grid, i % 2
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            if not all(engine):
                plgpu.commit_smem()  # the threads have read the other stage
            following = group + plan.grid
            pl.when(following < groups)(lambda: begin(following, 1 - stage))
            pl.when(group < groups)(lambda: finish(group, stage))

        lax.fori_loop(0, -(-groups // plan.grid), step, None)
    plgpu.wait_smem_to_gmem(0)
    if plan.cluster > 1:
        passes.meet(place, Slots((), refs["met"]))  # until the other blocks have read the slots of this one


class Label(NamedTuple):
    """The label of a row."""

    id: Array
    is_unused: Array  # whether the row is unused
    logit: Array  # −inf if masked
    ordered: Array  # the same in the order of z


class Group:
    """One row or four short ones, in shared memory."""

    def __init__(self, task: str, place: Place, refs: dict[str, Any], group: Array, stage: Any) -> None:
        self.task, self.place, self.refs, self.group = task, place, refs, group
        parts = {name: refs[f"{name}_parts"].at[stage, place.warpgroup] for name in LARGE if name in refs}
        self.passes = Passes(place, **parts, temperature=self.number("temperature"))
        stand_in = refs["stand_in"].at[lax.axis_index("cluster")] if "stand_in" in refs else None
        slots = tuple(refs[name] for name in ("slot0", "slot1") if name in refs)
        self.slots = Slots(slots, refs.get("met"), stand_in)

    def run(self) -> None:
        if self.task.endswith("backward"):
            self.backward(self.task.removesuffix(" backward"))
        else:
            self.forward()
        if "out" in self.refs:
            self.place.plgpu.commit_smem()
            moves.stores(self.place, self.passes.x, self.refs["out"], self.group)

    def number(self, name: str) -> Array | None:
        """A number of the row, or a vector of those of four rows."""
        if name not in self.refs:
            return None
        ref = self.refs[name]
        if self.place.plan.short:
            return self.vector(ref.at[pl_slice(self.group * WARPS, WARPS)])
        return ref[self.group]

    def vector(self, ref: Any) -> Array:
        layout = passes.tile_layout(self.place.plgpu, self.refs["x"].dtype).reduce(1)
        return self.place.plgpu.load(ref, layout=layout, optimized=False)

    def give(self, name: str, number: Array) -> None:
        """Stores a number of the row."""
        from jax.experimental import pallas as pl

        ref = self.refs[name]
        if self.place.plan.short:
            return moves.store(self.place.plgpu, ref.at[pl_slice(self.group * WARPS, WARPS)], number)

        def write() -> None:
            ref[self.group] = number

        pl.when(self.place.first_part() == 0)(write)

    def forward(self) -> None:
        part = self.passes.state(self.passes.top())
        state = passes.merged(self.place, self.slots, part, self.passes.temperature)
        self.give("top", state.max)
        self.give("rest", state.rest)
        label = self.label() if "labels" in self.refs else None
        if label is not None:
            self.give("label", label.logit)
        if self.task == "softmax":
            self.softmax(state)
        elif self.task == "log_softmax":
            self.log_softmax(state)
        elif self.task == "loss" and label is not None:
            self.gradient(state, label)

    def softmax(self, state: online.State) -> None:
        inverse = passes.reciprocal_total(state.rest)

        def step(i: Array, _: None) -> None:
            u = self.passes.shifted(i, state.max)
            self.passes.store(self.passes.x, i, self.passes.exp(u) * across(u)(inverse))

        self.passes.each(step)

    def log_softmax(self, state: online.State) -> None:
        log_total = passes.log_total(state.rest)

        def step(i: Array, _: None) -> None:
            u = self.passes.shifted(i, state.max)
            self.passes.store(self.passes.x, i, u - across(u)(log_total))

        self.passes.each(step)

    def gradient(self, state: online.State, label: Label) -> None:
        """``scale·(p − e_y)/T``."""
        scale, temperature = self.number("scale"), self.passes.temperature
        assert scale is not None
        is_valid = (label.id >= 0) & (label.id < self.place.plan.classes)
        scale = jnp.where(is_valid, scale, jnp.nan)
        if temperature is not None:
            scale, _ = rules.temperature_vjp(scale, scale, temperature)
        has_none = jnp.where((state.rest < 0) | label.is_unused, 1.0, 0.0)
        of_others = passes.reciprocal_total(state.rest) * scale
        at_label = passes.label_gradient(state, label.ordered, temperature) * scale
        ids = self.passes.class_ids()

        def step(i: Array, _: None) -> None:
            u = self.passes.shifted(i, state.max)
            p = self.passes.exp(u) * across(u)(of_others)
            hit = ids + i * u.shape[1] == across(u)(label.id)
            dz = jnp.where(across(u)(has_none) > 0, 0.0, jnp.where(hit, across(u)(at_label), p))
            self.passes.store(self.passes.x, i, self.unmasked(i, dz))

        self.passes.each(step)

    def unmasked(self, i: Array, dz: Array) -> Array:
        """A cotangent, 0 at the masked classes, also in a row with NaN."""
        if self.passes.where is None:
            return dz
        return jnp.where(self.passes.load(self.passes.where, i).astype(jnp.int32) != 0, dz, 0.0)

    def backward(self, rule: str) -> None:
        """The cotangent of a map, by `rules` from sums over the leading class and over the others."""
        top, rest = self.number("top"), self.number("rest")
        assert top is not None
        assert rest is not None
        inverse = passes.reciprocal_total(rest)
        # u of a class with p > 1/2 is 0; it is never 1.
        lead = jnp.where((rest >= 0) & (rest < 1), 0.0, 1.0)
        own = self.passes.own()

        def tile(i: Array) -> tuple[Array, Array, Array]:
            u = self.passes.shifted(i, top)
            p = self.passes.exp(u) * across(u)(inverse)
            return p, self.passes.load(self.passes.g, i).astype(p.dtype), u == across(u)(lead)

        def add(i: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
            self.passes.masked(i, own)
            p, g, leads = tile(i)
            term = p * g if rule == "softmax" else g
            return sums[0] + jnp.where(leads, term, 0.0), sums[1] + jnp.where(leads, 0.0, term)

        zero = self.passes.filled(0)
        of_parts = (jnp.sum(a, axis=1) for a in self.passes.each(add, (zero, zero)))
        of_lead, of_others = passes.summed(self.place, self.slots, *of_parts)
        sums = rules.RowSums(jnp.where(rest < 0, 0.0, rest) * inverse, of_lead + of_others, of_others)
        is_empty = jnp.where(rest < 0, 1.0, 0.0)
        apply = rules.softmax_product if rule == "softmax" else rules.log_softmax_vjp

        def step(i: Array, _: None) -> None:
            p, g, leads = tile(i)
            dz = apply(p, g, sums=rules.RowSums(*map(across(p), sums)), leads=leads)
            if self.passes.temperature is not None:
                dz = rules.temperature_vjp(p, dz, across(p)(self.passes.temperature))[0]
            dz = jnp.where(across(p)(is_empty) > 0, 0.0, dz)
            self.passes.store(self.passes.x, i, self.unmasked(i, dz))

        self.passes.each(step)

    def label(self) -> Label:
        ids = self.number("labels")
        assert ids is not None
        if not self.place.plan.short:
            return Label(*class_and_unused(ids), *self.label_of(self.group))
        arrays = self.refs["label_logits"], self.refs["ordered_logits"]
        self.place.plgpu.commit_smem()  # the threads have read those of the last rows
        for warp in range(WARPS):
            for array, value in zip(arrays, self.label_of(self.place.row_of(self.group, warp)), strict=True):
                array[warp] = value
        self.place.plgpu.commit_smem()
        return Label(*class_and_unused(ids), *map(self.vector, arrays))

    def label_of(self, row: Array) -> tuple[Array, Array]:
        """The logit of a row's label, as it is and in the order of z; both 0 if it is no class."""
        last = self.place.plan.classes - 1
        given, _ = class_and_unused(self.refs["labels"][row])
        at = jnp.clip(given, 0, last)
        logit = self.refs["x"][row, at].astype(jnp.float32)
        where: Array | None = None
        if "where" in self.refs:
            mask = self.refs["where"]
            where = mask[0 if mask.shape[0] == 1 else row, at].astype(jnp.int32) != 0
        logit = ordered = _scaling.live(logit, Scaling(where))
        if "temperature" in self.refs:
            ordered = _scaling.times_sign(logit, self.refs["temperature"][row])
        is_class = given == at
        return jnp.where(is_class, logit, 0.0), jnp.where(is_class, ordered, 0.0)
