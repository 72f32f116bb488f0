"""The converters: their versions, and how each converts a function.

Each takes a function and its arguments, and returns a function that runs the converted program, or None if
there is no runtime for Linux.
"""

import tempfile
from collections.abc import Callable
from typing import NamedTuple

JAX = "0.10.2"
SHARED = {"flatbuffers": "25.12.19", "ml_dtypes": "0.6.0", "numpy": "2.4.6", "optax": "0.2.8"}


def exported(function, arguments):
    import jax

    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arguments]
    return jax.export.export(jax.jit(function, keep_unused=True), platforms=["cpu"])(*shapes)


def names(arguments):
    return [f"input_{i}" for i in range(len(arguments))]


def jax_export(function, arguments):
    import jax

    read = jax.export.deserialize(exported(function, arguments).serialize())
    return read.call


def saved_model(function, arguments):
    import tensorflow as tf
    from jax.experimental import jax2tf

    module = tf.Module()
    shapes = [tf.TensorSpec(a.shape, a.dtype) for a in arguments]
    module.run = tf.function(jax2tf.convert(function), autograph=False, input_signature=shapes)
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder)
        return tf.saved_model.load(folder).run


def interpreted(flatbuffer, interpreter, arguments, outputs):
    """A flatbuffer in an interpreter of TFLite; its signature names the outputs in order."""
    made = interpreter(model_content=flatbuffer)
    made.allocate_tensors()
    runner = made.get_signature_runner()

    def run(*values):
        found = runner(**dict(zip(names(arguments), values, strict=True)))
        return [found[name] for name in outputs]

    return run


def tflite(function, arguments):
    import tensorflow as tf
    from jax.experimental import jax2tf

    converted = jax2tf.convert(function)

    def named(*values):
        return {f"output_{i}": value for i, value in enumerate(converted(*values))}

    shapes = [tf.TensorSpec(a.shape, a.dtype, n) for a, n in zip(arguments, names(arguments), strict=True)]
    module = tf.Module()
    module.run = tf.function(named, autograph=False, input_signature=shapes)
    concrete = module.run.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
    outputs = sorted(concrete.structured_outputs)
    return interpreted(converter.convert(), tf.lite.Interpreter, arguments, outputs)


def litert(function, arguments):
    from ai_edge_litert.interpreter import Interpreter
    from litert_converter import converter_api_ext as api
    from litert_converter.mlir import ir, passmanager

    program = exported(function, arguments)
    outputs = [f"output_{i}" for i in range(len(program.out_avals))]
    context = ir.Context()
    api.prepare_mlir_context(context)
    with context:
        module = ir.Module.parse(program.mlir_module())
        api.set_signature(module.operation, "serving_default", names(arguments), outputs)
        config = api.ConvertToTFLConfig()
        config.canonicalizing_inf_as_min_max_float = False
        api.run_convert_to_tfl_passes(module, passmanager.PassManager(), config)
        flatbuffer = api.export_flatbuffer_to_bytes(module.operation)
    return interpreted(flatbuffer, Interpreter, arguments, outputs)


def core_ml(function, arguments):
    import coremltools as ct
    from jax._src.interpreters import mlir
    from jax._src.lib.mlir import ir
    from stablehlo_coreml import build_pass_pipeline, convert

    text = exported(function, arguments).mlir_module()
    target = ct.target.iOS18
    ct.convert(
        convert(ir.Module.parse(text, context=mlir.make_ir_context()), minimum_deployment_target=target),
        source="milinternal",
        minimum_deployment_target=target,
        pass_pipeline=build_pass_pipeline(),
        compute_precision=ct.precision.FLOAT32,
    )


def iree(function, arguments):
    from iree import compiler, runtime

    compiled = compiler.compile_str(
        exported(function, arguments).mlir_module(),
        input_type="stablehlo",
        target_backends=["llvm-cpu"],
        extra_args=["--iree-llvmcpu-target-cpu=host"],
    )
    return runtime.load_vm_flatbuffer(compiled, driver="local-sync").main


def jax_to_onnx(function, arguments):
    import jax
    import jax2onnx
    import onnxruntime

    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arguments]
    model = jax2onnx.to_onnx(function, shapes, input_names=names(arguments))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return lambda *values: session.run(None, dict(zip(names(arguments), values, strict=True)))


class Route(NamedTuple):
    convert: Callable
    heading: str  # the heading above its example in .docs/pages/deployment.md
    versions: dict[str, str]


TENSORFLOW = {"tensorflow-cpu": "2.21.0"}

ROUTES = {
    "jax.export": Route(jax_export, "jax.export", {}),
    "saved_model": Route(saved_model, "TensorFlow", TENSORFLOW),
    "tflite": Route(tflite, "TFLite", TENSORFLOW),
    "litert": Route(litert, "LiteRT", {"litert-converter": "0.5.0", "ai-edge-litert": "2.3.0"}),
    "coreml": Route(core_ml, "Core ML", {"stablehlo-coreml": "0.1.6", "coremltools": "9.0"}),
    "iree": Route(iree, "IREE", {"iree-base-compiler": "3.13.0", "iree-base-runtime": "3.13.0"}),
    "onnx": Route(jax_to_onnx, "ONNX", {"jax2onnx": "0.17.1", "onnxruntime": "1.32.0"}),
}
