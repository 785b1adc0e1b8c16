"""Exports a network in evaluation mode, with its weights, to one file that runs without jaxprune and Flax.

StableHLO by `jax.export` runs wherever JAX does; ONNX, by jax2onnx, in ONNX Runtime and others; TFLite, by JAX's own
jax2tf and TensorFlow's converter, in LiteRT on phones and small devices.
"""

from __future__ import annotations

import importlib.util
import os
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

import flax
import jax
from flax import nnx
from jax import export as jax_export
from jax.extend import core as jex

from jaxprune import structure
from jaxprune.deploy.evaluation_call import evaluation_call
from jaxprune.files import atomic_file
from jaxprune.nets.inputs import Batch, Example, arrays_of
from jaxprune.structure.program import Operation
from jaxprune.types import is_whole

ExportFormat = Literal["stablehlo", "onnx", "tflite"]
Function: TypeAlias = Callable[..., Any]

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_FOLDERS = tuple(os.path.dirname(module.__file__ or "") for module in (jax, flax, structure)) + (
    os.path.dirname(__file__),
)
"""Where no code of a network is."""
_MAX_BYTES = 2**31 - 2**20
"""What each of the formats holds in one file."""
_PACKAGES = {
    "stablehlo": ("flatbuffers", "deploy"),
    "onnx": ("jax2onnx", "onnx"),
    "tflite": ("tensorflow", "tflite"),
}
"""Format -> the package that writes it, and the extra that installs that."""


def export(
    model: nnx.Module,
    example: Batch,
    path: str | os.PathLike[str] | None = None,
    *,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    batch: int | Literal["symbolic"] = "symbolic",
    format: ExportFormat = "stablehlo",
) -> bytes:
    """Returns a network as one self-contained file: its computation in evaluation mode, with the weights in it.

    To run it, a program needs JAX and the package flatbuffers, and neither jaxprune nor Flax:

        from pathlib import Path
        import jax.export
        network = jax.export.deserialize(bytearray(Path("network.stablehlo").read_bytes()))
        logits = network.call(images)          # jax.jit(network.call) inside a larger program

    It is called as the network is, with arrays of the example's dtypes and shapes but for the batch, and returns what
    the network returns: arrays, tuples, lists and dicts. Keywords without an array (`train=False`) are part of the file
    and left out of the call. On a TPU, products of float32 are of lower precision unless
    `jax.default_matmul_precision` says otherwise, as in the network itself. A later JAX reads the file for at least six
    months.

    With `format="onnx"` (`pip install "jaxprune[onnx]"`), ONNX Runtime and others run it. With `format="tflite"`
    (`pip install "jaxprune[tflite]"`, which brings TensorFlow), LiteRT does, for one batch size. In both, images stay
    [N, H, W, C].

    Args:
      model: the network, dense or slim; it is not changed.
      example: a batch as the network takes it, or its shapes and dtypes, as for `trace_structure`. The other formats
        take its arrays one by one, in the order of `jax.tree.leaves`.
      path: the file to write, replaced in one step; None writes none.
      platforms: what StableHLO is lowered for, of "cpu", "cuda", "rocm" and "tpu"; the devices need not be there. The
        other formats know no platforms.
      batch: "symbolic" for a file that takes any number of examples, or that number.
      format: "stablehlo", "onnx" or "tflite".

    Returns:
      The content of the file.

    Raises:
      ValueError: if an operation cannot be exported, with any batch size or to a platform; the message names it with
        its line, and what to change. Also for unknown platforms, and for more than 2 GiB of weights.
      ImportError: if the package that writes the format is not installed.
      OSError: if the file cannot be written, or its folder does not exist; what was there before is still there.

    Example:
      >>> import jax.numpy as jnp
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> network = jax_export.deserialize(bytearray(export(model, jnp.ones((1, 2)))))
      >>> network.in_avals, network.call(jnp.ones((5, 2))).shape
      ((ShapedArray(float32[b,2]),), (5, 3))
    """
    _check_arguments(platforms, batch, format)
    if path is not None and not Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(
            f"the file to write needs to be in a folder that exists, got {path}. Make it first."
        )
    forward, arrays, taken = evaluation_call(model, example)
    num_bytes = sum(array.nbytes for array in arrays)
    if num_bytes > _MAX_BYTES:
        raise ValueError(
            f"one file holds less than 2 GiB of weights, got {num_bytes / 2**30:.1f} GiB. Save the network with "
            "jaxprune.save, or cast it to bfloat16 first."
        )

    def run(*inputs: Any, **others: Any) -> Any:  # noqa: ANN401 - pytrees of arrays
        return forward(arrays, arrays_of((inputs, others)))

    if format == "stablehlo":
        content = _to_stablehlo(run, taken, batch, platforms)
    else:
        content = _converted(run, taken, batch, format)
    if path is not None:
        with atomic_file(Path(path)) as temporary:
            temporary.write_bytes(content)
    return content


def _check_arguments(platforms: Sequence[str], batch: int | str, format: str) -> None:
    """Refuses arguments that no network could be exported with."""
    if format not in get_args(ExportFormat):
        raise ValueError(f"format needs to be one of {', '.join(get_args(ExportFormat))}, got {format!r}.")
    package, extra = _PACKAGES[format]
    if importlib.util.find_spec(package) is None:
        raise ImportError(
            f"exporting to {format} needs the package {package}: pip install 'jaxprune[{extra}]'.",
            name=package,
        )
    unknown = [name for name in platforms if name not in PLATFORMS]
    if isinstance(platforms, str) or unknown or not platforms:
        raise ValueError(f"platforms needs some of {', '.join(PLATFORMS)}, got {platforms!r}.")
    if batch != "symbolic" and not is_whole(batch, smallest=1):
        raise ValueError(f'batch needs to be "symbolic" or a whole number >= 1, got {batch!r}.')
    if format == "tflite" and batch == "symbolic":
        raise ValueError(
            'format="tflite" needs a fixed batch size, got "symbolic": its converter refuses that, or takes minutes. '
            "Pass batch=1."
        )


def _sized(taken: Example, batch: int | str) -> Example:
    """Shapes of the inputs with another batch size, or with one that is a symbol."""
    return taken.with_batch_size(
        cast(int, jax_export.symbolic_shape("b")[0] if batch == "symbolic" else batch)
    )


def _call_of(taken: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a call of the exported network, with None for what is no array."""
    batch = jax.tree.map(lambda leaf: leaf if hasattr(leaf, "shape") else None, taken.batch)
    if taken.call == "inputs":
        return batch.args, {name: value for name, value in batch.kwargs.items() if jax.tree.leaves(value)}
    return (batch if taken.call == "arguments" else (batch,)), {}


def _to_stablehlo(run: Function, taken: Example, batch: int | str, platforms: Sequence[str]) -> bytes:
    """Lowers a function and serialises it."""
    try:
        args, kwargs = _call_of(_sized(taken, batch))
        return bytes(jax_export.export(jax.jit(run), platforms=platforms)(*args, **kwargs).serialize())
    except Exception as error:  # the network's own, and whatever lowering raises for an operation
        place = _refused(run, _sized(taken, batch).arrays, platforms) or _line_of(error)
        size = "any batch size" if batch == "symbolic" else f"batch size {batch}"
        raise ValueError(
            f"needs a network that can be exported for {', '.join(platforms)} with {size}, but it failed "
            f"{f'in {place} ' if place else ''}with {_first_line(error)} "
            f"{_advice(run, taken, batch, platforms)}"
        ) from error


def _advice(run: Function, taken: Example, batch: int | str, platforms: Sequence[str]) -> str:
    """Finds out what would work, and says so."""
    size = taken.batch_size if batch == "symbolic" else batch
    if batch == "symbolic" and _exports(run, _sized(taken, size).arrays, platforms):
        return (
            f"It can be exported with a fixed batch size: pass batch={size}, or write the operation so that it does "
            "not depend on the batch size."
        )
    able = [name for name in platforms if _exports(run, _sized(taken, batch).arrays, [name])]
    if able:
        return f"It can be exported for {', '.join(able)}: pass platforms={tuple(able)}."
    return "Write the network without it; return arrays, tuples, lists or dicts."


def _exports(run: Function, specs: Sequence[jax.ShapeDtypeStruct], platforms: Sequence[str]) -> bool:
    """Tells whether a function can be exported."""
    try:
        jax_export.export(jax.jit(run), platforms=platforms)(*specs).serialize()
    except Exception:  # see `_to_stablehlo`
        return False
    return True


def _refused(run: Function, specs: Sequence[jax.ShapeDtypeStruct], platforms: Sequence[str]) -> str:
    """Names the first operation that cannot be exported by itself; "" if there is none, or the network does not run."""
    try:
        jaxpr = jax.jit(run).trace(*specs).jaxpr.jaxpr
    except Exception:  # then `_line_of` knows the line
        return ""
    return next(_refused_among(jaxpr, (), platforms), "")


def _refused_among(
    jaxpr: jex.Jaxpr, callers: tuple[jex.JaxprEqn, ...], platforms: Sequence[str]
) -> Iterator[str]:
    """Yields the operations of a jaxpr, or those inside of them, that cannot be exported."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dim_as_value":  # a symbol alone: no input declares it
            continue
        variables = list(dict.fromkeys(v for v in equation.invars if isinstance(v, jex.Var)))
        results = [v for v in equation.outvars if type(v).__name__ != "DropVar"]
        alone = jex.Jaxpr((), variables, results, [equation], equation.effects, jaxpr.debug_info)
        specs = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in variables]  # type: ignore[attr-defined]
        if not _exports(partial(_evaluate, alone), specs, platforms):
            inner = [
                part.jaxpr for part in jax.tree.leaves(equation.params) if isinstance(part, jex.ClosedJaxpr)
            ]
            within = (
                name for each in inner for name in _refused_among(each, (equation, *callers), platforms)
            )
            yield next(within, Operation(equation, inputs=(), outputs=(), callers=callers).location)


def _evaluate(jaxpr: jex.Jaxpr, *values: Any) -> list[Any]:  # noqa: ANN401 - arrays
    """Runs a jaxpr."""
    return jex.jaxpr_as_fun(jex.ClosedJaxpr(jaxpr, ()))(*values)


def _line_of(error: Exception) -> str:
    """Returns the innermost line of the network's own code in the error's traceback."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_ours(frame.filename)]
    return f"{frames[-1].filename}:{frames[-1].lineno} ({frames[-1].name})" if frames else ""


def _is_ours(file_name: str) -> bool:
    """Tells whether a source file is of a library, of Python itself, or of what runs networks here."""
    is_of_python = file_name.startswith(sysconfig.get_path("stdlib")) and "site-packages" not in file_name
    return is_of_python or file_name.startswith(_FOLDERS)


def _first_line(error: Exception) -> str:
    """Returns the first line of an error's text, as a sentence."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}." if lines else f"{type(error).__name__}."


def _converted(run: Function, taken: Example, batch: int | str, format: Literal["onnx", "tflite"]) -> bytes:
    """Converts a function to another format."""
    try:
        return (
            _to_onnx(run, taken, batch) if format == "onnx" else _to_tflite(run, _sized(taken, batch).arrays)
        )
    except Exception as error:  # whatever a converter raises for an operation that it does not know
        size = " Pass a fixed batch size (batch=1), or export" if batch == "symbolic" else " Export"
        raise ValueError(
            f"needs a network whose operations the converter to {format} knows, but it failed with "
            f"{_first_line(error)}{size} to stablehlo."
        ) from error


def _to_onnx(run: Function, taken: Example, batch: int | str) -> bytes:
    """Converts a function by jax2onnx."""
    from jax2onnx import to_onnx

    specs = taken.with_batch_size(cast(int, "B" if batch == "symbolic" else batch)).arrays
    with jax.numpy_rank_promotion("allow"):  # the converter's own code adds [C] to [N, H, W, C]
        return bytes(to_onnx(run, specs).SerializeToString())


def _to_tflite(run: Function, specs: Sequence[jax.ShapeDtypeStruct]) -> bytes:
    """Converts a function by jax2tf and TensorFlow's converter."""
    import tensorflow as tf
    from jax.experimental import jax2tf

    signature = [tf.TensorSpec(each.shape, each.dtype) for each in specs]
    function = tf.function(jax2tf.convert(run), input_signature=signature, autograph=False)
    concrete = function.get_concrete_function()
    return bytes(tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module()).convert())
