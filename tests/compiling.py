"""How the programs of the tests are compiled. Most run once on small arrays, so optimising takes longest.

`conftest` compiles all programs quickly: the same operations, in machine code that is not optimised.
`jit_in_full` compiles as users do, for tests of digits, of memory and of fusion. The caller's XLA_FLAGS take
precedence: ``XLA_FLAGS=$(python tests/compiling.py) pytest`` compiles all programs in full.
"""

from functools import partial

import jax

QUICKLY = {"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1}
IN_FULL = {"xla_backend_optimization_level": 3, "xla_cpu_parallel_codegen_split_count": 32}
if jax.__version_info__ < (0, 11):  # later there is one emitter, a quick one
    QUICKLY["xla_cpu_use_fusion_emitters"] = False
    IN_FULL["xla_cpu_use_fusion_emitters"] = True

jit_in_full = partial(jax.jit, compiler_options=IN_FULL)


def flags(options):
    return " ".join(f"--{name}={value}".lower() for name, value in options.items())


if __name__ == "__main__":
    print(flags(IN_FULL))
