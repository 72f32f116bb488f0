"""The kernel of `_mosaic_gpu_head`: a product on tensor cores, of which each tile is reduced in registers.

A block has three warpgroups. One loads slabs of both operands into a ring in shared memory. The other two
multiply their rows of a slab by all its classes, and reduce their tile of logits in registers while the slabs
of the next tile arrive. A slab of the weight is loaded once for both blocks of a cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jsoftmax.backends._accelerators import Part, merged
from jsoftmax.backends._mosaic_gpu_head_tiles import Plan, Sizes, pallas, part, per_row, tile_part


class References(NamedTuple):
    """The arrays in device memory, then those in shared memory."""

    hidden: Any
    weight: Any
    labels: Any  # [rows]
    label_tiles: Any  # [rows / rows of a warpgroup, tiles]: 1 where some of these rows has its label
    top: Any  # [runs, rows], as are the next two
    rest: Any
    label_logit: Any
    left: Any  # slabs of hidden
    right: Any  # slabs of the weight
    results: Any  # of a run, on their way to device memory
    full: Any  # barriers of the slabs
    free: Any
    turn: Any  # barrier that keeps the lead


class Product(NamedTuple):
    """The kernel for one problem."""

    plan: Plan
    sizes: Sizes
    depth: int
    classes: int
    classes_first: bool  # the weight is [classes, depth]

    @property
    def height(self) -> int:
        """Rows of a block of threads."""
        return 2 * self.sizes.rows

    @property
    def rows(self) -> int:
        """The number of rows, rounded up to whole blocks."""
        return self.plan.row_blocks * self.sizes.cluster * self.height

    @property
    def slabs(self) -> int:
        """The number of slabs of a tile."""
        return self.depth // self.sizes.depth

    def kernel(self, dtype: Any, interpret: Any) -> Callable[..., list[Array]]:
        """The function of `References` up to `label_tiles` that returns the three next."""
        _, plgpu = pallas()
        sizes, row_bytes = self.sizes, 2 * self.sizes.depth
        packed = (plgpu.TilingTransform((8, sizes.depth)), plgpu.SwizzleTransform(row_bytes))
        slab = (sizes.classes, sizes.depth) if self.classes_first else (sizes.depth, sizes.classes)
        per_slab = {"num_arrivals": 2, "num_barriers": sizes.stages}
        of_cluster = partial(plgpu.ClusterBarrier, collective_axes=("block",))
        return plgpu.kernel(
            lambda *refs: self._block(References(*refs)),
            out_type=[jax.ShapeDtypeStruct((self.plan.runs, self.rows), jnp.float32)] * 3,
            scratch_types=[
                plgpu.SMEM((sizes.stages, self.height, sizes.depth), dtype, transforms=packed),
                plgpu.SMEM((sizes.stages, *slab), dtype, transforms=packed),
                plgpu.SMEM((2, 3, sizes.rows), jnp.float32),
                plgpu.Barrier(**per_slab),
                (of_cluster if sizes.cluster > 1 else plgpu.Barrier)(**per_slab),
                plgpu.Barrier(),
            ],
            grid=(self.plan.clusters,),
            grid_names=("cluster",),
            cluster=(sizes.cluster,),
            cluster_names=("block",),
            num_threads=3,
            thread_name="warpgroup",
            compiler_params=plgpu.CompilerParams(approx_math=True),  # the exponential of the hardware
            interpret=interpret,
            kernel_name="jsoftmax_head_state",
        )

    def _block(self, refs: References) -> None:
        pl, _ = pallas()
        warpgroup = lax.axis_index("warpgroup")
        pl.when(warpgroup == 2)(lambda: self._load(refs))
        pl.when(warpgroup < 2)(lambda: self._reduce(refs, warpgroup))

    def _over_runs(self, of_run: Callable[..., Array]) -> None:
        """Calls ``slab = of_run(slab, run, row, tile, end)`` for every run: its first row, and its tiles.

        `slab` counts the slabs that this block has used.
        """
        plan = self.plan
        cluster, block = lax.axis_index("cluster"), lax.axis_index("block")

        def of_index(i: Array, slab: Array) -> Array:
            run, row_block = plan.place(cluster + i * plan.clusters)
            row = (row_block * self.sizes.cluster + block) * self.height
            tile = run * plan.length
            return of_run(slab, run, row, tile, jnp.minimum(tile + plan.length, plan.tiles))

        count = (plan.row_blocks * plan.runs - cluster + plan.clusters - 1) // plan.clusters
        lax.fori_loop(0, count, of_index, jnp.int32(0))

    def _load(self, refs: References) -> None:
        """What the warpgroup that loads does."""
        pl, plgpu = pallas()
        sizes = self.sizes
        plgpu.set_max_registers(40, action="decrease")

        def of_slab(i: Array, slab: Array, row: Array, tile: Array) -> Array:
            slot = lax.rem(slab, sizes.stages)
            deep = pl.ds(i * sizes.depth, sizes.depth)
            wide = pl.ds(tile * sizes.classes, sizes.classes)
            hidden = refs.hidden.at[pl.ds(row, self.height), deep]
            weight = refs.weight.at[(wide, deep) if self.classes_first else (deep, wide)]
            shared = "block" if sizes.cluster > 1 else None
            plgpu.barrier_wait(refs.free.at[slot])
            plgpu.copy_gmem_to_smem(hidden, refs.left.at[slot], refs.full.at[slot])
            plgpu.copy_gmem_to_smem(weight, refs.right.at[slot], refs.full.at[slot], collective_axes=shared)
            return slab + 1

        def of_run(slab: Array, run: Array, row: Array, tile: Array, end: Array) -> Array:
            def of_tile(tile: Array, slab: Array) -> Array:
                return lax.fori_loop(0, self.slabs, partial(of_slab, row=row, tile=tile), slab)

            return lax.fori_loop(tile, end, of_tile, slab)

        self._over_runs(of_run)
        for slot in range(sizes.stages):  # a block does not end before all that arrives in its barriers
            plgpu.barrier_wait(refs.free.at[slot])

    def _reduce(self, refs: References, warpgroup: Array) -> None:
        """What the two warpgroups that multiply do."""
        pl, plgpu = pallas()
        sizes = self.sizes
        plgpu.set_max_registers(232, action="increase")
        for slot in range(sizes.stages):
            plgpu.barrier_arrive(refs.free.at[slot])

        def of_run(slab: Array, run: Array, row: Array, tile: Array, end: Array) -> Array:
            rows = pl.ds(row + warpgroup * sizes.rows, sizes.rows)
            labels = plgpu.load(refs.labels.at[rows], layout=plgpu.Layout.WGMMA.reduce(1), optimized=False)

            def of_tile(tile: Array, carry: tuple[Array, Part]) -> tuple[Array, Part]:
                slab, before = carry
                has_label = refs.label_tiles[lax.div(row, sizes.rows) + warpgroup, tile] > 0
                z = self._tile(refs, warpgroup, slab)
                first = tile * sizes.classes
                live = self.classes - first if self.classes % sizes.classes else None
                return slab + self.slabs, merged(before, tile_part(z, labels - first, has_label, live))

            nothing = part(*(per_row((sizes.rows,), value) for value in (-jnp.inf, -1, 0)))
            slab, whole = lax.fori_loop(tile, end, of_tile, (slab, nothing))
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            for i, value in enumerate((whole.top, whole.rest, whole.label_logit)):
                refs.results[warpgroup, i] = value
            plgpu.commit_smem()
            for i, out in enumerate((refs.top, refs.rest, refs.label_logit)):
                plgpu.copy_smem_to_gmem(refs.results.at[warpgroup, i], out.at[run, rows])
            return slab

        self._over_runs(of_run)
        plgpu.wait_smem_to_gmem(0)

    def _tile(self, refs: References, warpgroup: Array, slab: Array) -> Array:
        """The logits of the rows of a warpgroup and of a tile of classes."""
        pl, plgpu = pallas()
        sizes = self.sizes
        # The second warpgroup must wait for its turn before the first gives it again, one tile later.
        lead = sizes.lead if self.slabs >= sizes.stages else 0

        def multiply(i: Array | int, sums: Any) -> None:
            slot = lax.rem(slab + i, sizes.stages)
            plgpu.barrier_wait(refs.full.at[slot])
            left = refs.left.at[slot, pl.ds(warpgroup * sizes.rows, sizes.rows)]
            right = refs.right.at[slot]
            plgpu.wgmma(sums, left, right.transpose((1, 0)) if self.classes_first else right)

        def free(i: Array | int) -> None:
            plgpu.barrier_arrive(refs.free.at[lax.rem(slab + i, sizes.stages)])

        def of_slab(i: Array, sums: Any) -> Any:
            multiply(i, sums)
            plgpu.wgmma_wait(1)  # for all products but this one
            free(i - 1)
            return sums

        def of_tile(sums: Any) -> Array:
            if lead:
                pl.when(warpgroup == 1)(lambda: plgpu.barrier_wait(refs.turn))
            multiply(0, sums)
            if lead:
                lax.fori_loop(1, lead, of_slab, sums)
                pl.when(warpgroup == 0)(lambda: plgpu.barrier_arrive(refs.turn))
            lax.fori_loop(max(lead, 1), self.slabs, of_slab, sums)
            return sums[...]

        z = pl.run_scoped(of_tile, plgpu.ACC((sizes.rows, sizes.classes), jnp.float32))
        free(self.slabs - 1)
        return z
