"""draft"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax import online, rules
from jsoftmax.backends._accelerators import Part, merged, one_pass

_HALF_LOG2_E = math.log2(math.e) / 2


class Tiles(NamedTuple):
    rows: int = 64
    classes: int = 256
    depth: int = 64
    stages: int = 4
    cluster: int = 2
    multiprocessors: int = 132


class Plan(NamedTuple):
    blocks: int
    tiles: int
    run: int
    runs: int
    programs: int


def plan(n: int, v: int, tiles: Tiles) -> Plan:
    blocks = -(-n // (2 * tiles.rows * tiles.cluster))
    columns = -(-v // tiles.classes)
    programs = tiles.multiprocessors // tiles.cluster
    steps = {run: -(-blocks * -(-columns // run) // programs) * run for run in range(1, columns + 1)}
    run = max(run for run, count in steps.items() if count <= 1.01 * min(steps.values()))
    runs = -(-columns // run)
    return Plan(blocks, columns, run, runs, min(programs, blocks * runs))


def head_state(
    hidden: Array, weight: Array, labels: Array, *, vocab_axis: int, interpret: Any = None, tiles: Tiles = Tiles()
) -> tuple[Array, Array, Array]:
    from jax.experimental.pallas import mosaic_gpu as plgpu
    n, v = hidden.shape[0], weight.shape[vocab_axis]
    p = plan(n, v, tiles)
    rows = p.blocks * 2 * tiles.rows * tiles.cluster
    labels = jnp.where((labels >= 0) & (labels < v), labels, -1)[:, 0]
    labels = jnp.pad(labels, (0, rows - n), constant_values=-1)
    out = _kernel(hidden.shape, weight.shape, hidden.dtype, vocab_axis % 2, p, tiles, interpret)(hidden, weight, labels)
    top, rest, label = out[:, 0, :n], out[:, 1, :n], out[:, 2, :n]
    part = one_pass(_part(top, rest, label), (0,))
    return tuple(jnp.reshape(a, (n, 1)) for a in (part.top, part.rest, part.label_logit))


def _part(top, rest, label) -> Part:
    return Part(top, None, None, rest, None, (), label)


def tile_state(z: Array, label: Array, live: Array | None) -> Part:
    from jax.experimental.pallas import mosaic_gpu as plgpu

    spread = partial(lax.broadcast_in_dim, shape=z.shape, broadcast_dimensions=(0,))
    column = plgpu.broadcasted_iota(jnp.int32, z.shape, 1, layout=plgpu.Layout.WGMMA)
    of_label = jnp.sum(jnp.where(column == spread(label), z, 0.0), 1)
    if live is not None:
        z = jnp.where(column < live, z, -jnp.inf)
    top = jnp.max(z, 1)
    half = jnp.exp2((z - spread(jnp.where(top == -jnp.inf, 0.0, top))) * _HALF_LOG2_E)
    total = jnp.sum(half * half, 1)
    scaled_rest = jnp.sum(jnp.where(half < 1, half * (half * rules.SCALE), 0.0), 1)
    state = online.from_sums(top, total, scaled_rest)
    return _part(state.max, state.rest, of_label)


def _kernel(shape_h, shape_w, dtype, vocab_axis, plan, tiles, interpret):
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import mosaic_gpu as plgpu

    n, d = shape_h
    v = shape_w[vocab_axis]
    slabs = d // tiles.depth
    height = 2 * tiles.rows
    span = 8  # blocks of rows whose hidden ... stays in L2
    by_row = plgpu.Layout.WGMMA.reduce(1)

    def place(unit):
        group = unit // (span * plan.runs)
        size = jnp.minimum(span, plan.blocks - group * span)
        unit = unit - group * span * plan.runs
        return group * span + unit % size, unit // size

    def body(hidden, weight, labels, out, a, b, state, full, consumed):
        group = lax.axis_index("group")
        program, rank = lax.axis_index("program"), lax.axis_index("rank")
        units = plan.blocks * plan.runs
        mine = (units - program + plan.programs - 1) // plan.programs

        def over_units(function, carry):
            def unit(i, carry):
                block, run = place(program + i * plan.programs)
                row = (block * tiles.cluster + rank) * height
                first = run * plan.run
                return function(row, run, first, jnp.minimum(first + plan.run, plan.tiles), carry)

            return lax.fori_loop(0, mine, unit, carry)

        @pl.when(group == 2)
        def _load():
            plgpu.set_max_registers(40, action="decrease")

            def unit(row, run, first, last, step):
                def tile(c, step):
                    def slab(k, step):
                        slot = lax.rem(step, tiles.stages)
                        deep, wide = pl.ds(k * tiles.depth, tiles.depth), pl.ds(c * tiles.classes, tiles.classes)
                        plgpu.barrier_wait(consumed.at[slot])
                        plgpu.copy_gmem_to_smem(hidden.at[pl.ds(row, height), deep], a.at[slot], full.at[slot])
                        part = weight.at[wide, deep] if vocab_axis == 0 else weight.at[deep, wide]
                        plgpu.copy_gmem_to_smem(part, b.at[slot], full.at[slot], collective_axes="rank" if tiles.cluster > 1 else None)
                        return step + 1

                    return lax.fori_loop(0, slabs, slab, step)

                return lax.fori_loop(first, last, tile, step)

            over_units(unit, jnp.int32(0))
            for slot in range(tiles.stages):
                plgpu.barrier_wait(consumed.at[slot])

        @pl.when(group < 2)
        def _compute():
            plgpu.set_max_registers(232, action="increase")
            for slot in range(tiles.stages):
                plgpu.barrier_arrive(consumed.at[slot])

            def product(step):
                def slab(k, acc):
                    slot = lax.rem(step + k, tiles.stages)
                    plgpu.barrier_wait(full.at[slot])
                    right = b.at[slot]
                    plgpu.wgmma(
                        acc,
                        a.at[slot, pl.ds(group * tiles.rows, tiles.rows)],
                        right.transpose((1, 0)) if vocab_axis == 0 else right,
                    )

                def later(k, acc):
                    slab(k, acc)
                    plgpu.wgmma_wait(1)
                    plgpu.barrier_arrive(consumed.at[lax.rem(step + k - 1, tiles.stages)])
                    return acc

                def scope(acc):
                    slab(0, acc)
                    lax.fori_loop(1, slabs, later, acc)
                    return acc[...]

                z = pl.run_scoped(scope, plgpu.ACC((tiles.rows, tiles.classes), jnp.float32))
                plgpu.barrier_arrive(consumed.at[lax.rem(step + slabs - 1, tiles.stages)])
                return z

            def unit(row, run, first, last, step):
                row = row + group * tiles.rows
                label = plgpu.load(labels.at[pl.ds(row, tiles.rows)], layout=by_row, optimized=False)

                def tile(c, carry):
                    step, part = carry
                    z = product(step)
                    live = v - c * tiles.classes if v % tiles.classes else None
                    return step + slabs, merged(part, tile_state(z, label - c * tiles.classes, live))

                def full_of(value):
                    return plgpu.layout_cast(jnp.full((tiles.rows,), value, jnp.float32), by_row)

                empty = _part(full_of(-jnp.inf), full_of(-1), full_of(0))
                step, part = lax.fori_loop(first, last, tile, (step, empty))
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                for i, value in enumerate((part.top, part.rest, part.label_logit)):
                    state[group, i] = value
                plgpu.commit_smem()
                plgpu.copy_smem_to_gmem(state.at[group], out.at[run, :, pl.ds(row, tiles.rows)])
                return step

            over_units(unit, jnp.int32(0))
            plgpu.wait_smem_to_gmem(0)

    swizzle = plgpu.find_swizzle(tiles.depth * 16)
    packed = (plgpu.TilingTransform((8, swizzle // 2)), plgpu.SwizzleTransform(swizzle))
    part = (tiles.classes, tiles.depth) if vocab_axis == 0 else (tiles.depth, tiles.classes)
    barrier = partial(plgpu.ClusterBarrier, collective_axes=("rank",)) if tiles.cluster > 1 else plgpu.Barrier
    return plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((plan.runs, 3, plan.blocks * height * tiles.cluster), jnp.float32),
        scratch_types=[
            plgpu.SMEM((tiles.stages, height, tiles.depth), dtype, transforms=packed),
            plgpu.SMEM((tiles.stages, *part), dtype, transforms=packed),
            plgpu.SMEM((2, 3, tiles.rows), jnp.float32),
            plgpu.Barrier(num_arrivals=2, num_barriers=tiles.stages),
            barrier(num_arrivals=2, num_barriers=tiles.stages),
        ],
        grid=(plan.programs,),
        grid_names=("program",),
        cluster=(tiles.cluster,),
        cluster_names=("rank",),
        num_threads=3,
        thread_name="group",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )
