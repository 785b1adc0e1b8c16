"""FLOPs and memory of one data-parallel training step of large networks, and whether it lowers for TPU and CUDA.

    python benchmarks/training_step.py [--networks resnet56,vgg19,resnet50,mobilenet_v2] [--batches 4,8]

Nothing is trained. FLOPs are those that XLA counts in the program before it is optimised. Memory is that of the
compiled program on the machine where this runs, at two batch sizes: the difference is what an image takes, the rest
is the network's (weights, optimiser, gradients). On a TPU or GPU the compiler lays memory out in another way.
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp

from jaxprune.datasets.input_pipeline import Batch
from jaxprune.nets.factories import find_network
from jaxprune.training.data_parallel import Pixels, training_step
from jaxprune.training.loop import split_network
from jaxprune.training.recipes import RECIPES, Recipe

CASES = {
    "resnet56": ("paper_resnet", (32, 32, 3), 100),
    "vgg19": ("cifar_finetune", (32, 32, 3), 100),
    "resnet50": ("imagenet_finetune", (224, 224, 3), 1000),
    "mobilenet_v2": ("imagenet_mobilenet", (224, 224, 3), 1000),
}
"""Network -> its recipe, the shape of an image and the number of classes."""

MIB = 2**20


def lowered_step(name: str, recipe: Recipe, batch_size: int) -> tuple[jax.stages.Traced, float]:
    """Traces one step of a network; also returns the size of the state in MiB."""
    _, shape, num_classes = CASES[name]
    network, weights = split_network(
        find_network(name, image_shape=shape, num_classes=num_classes, has_weights=False)
    )
    init, step = training_step(network, recipe, 1000, Pixels((0.5,), (0.25,)))
    state = jax.eval_shape(init, weights)
    batch = Batch(
        jax.ShapeDtypeStruct((batch_size, *shape), jnp.uint8),
        jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        jax.ShapeDtypeStruct((batch_size,), jnp.float32),
    )
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) / MIB
    traced = jax.jit(step, donate_argnums=0).trace(state, batch, jax.ShapeDtypeStruct((), jnp.int32))
    return traced, size


def main() -> None:
    """Prints one line per network and precision."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default=",".join(CASES))
    parser.add_argument("--batches", default="4,8", help="two batch sizes")
    parser.add_argument("--precisions", default="float32,bfloat16")
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.batches.split(",")]
    print(f"jax {jax.__version__}, {jax.default_backend()}, batches of {sizes}")
    print(
        "network       precision  lowers for   GFLOP/image  state MiB  step MiB/image  step MiB fixed  seconds"
    )
    for name in arguments.networks.split(","):
        for precision in arguments.precisions.split(","):
            start = time.perf_counter()
            recipe = RECIPES[CASES[name][0]].replace(compute=precision)
            used = []
            for size in sizes:
                traced, state = lowered_step(name, recipe, size)
                lowered = traced.lower()
                flops = lowered.cost_analysis()["flops"] / size / 1e9
                used.append(lowered.compile().memory_analysis().temp_size_in_bytes / MIB)
            platforms = ("tpu", "cuda")
            traced.lower(lowering_platforms=platforms)
            slope = (used[1] - used[0]) / (sizes[1] - sizes[0])
            print(
                f"{name:13} {precision:10} {'+'.join(platforms):12} {flops:11.3f} {state:10.1f} {slope:15.2f} "
                f"{used[0] - slope * sizes[0]:15.1f} {time.perf_counter() - start:8.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
