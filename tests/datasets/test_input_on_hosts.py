"""Two processes with two devices each get the rows of one batch, each device its own, as one process with four does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap

import pytest

SCRIPT = textwrap.dedent(
    """
    import json, sys
    host, hosts, port = map(int, sys.argv[1:])
    import jax, numpy as np
    if hosts > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", hosts, host)
    from images_in_memory import some_images
    from jax.sharding import NamedSharding, PartitionSpec
    from jaxprune.datasets.input_pipeline import evaluation_batches, train_batches

    sharding = NamedSharding(jax.make_mesh((4,), ("data",)), PartitionSpec("data"))
    where = {"batch_size": 8, "image_size": 8, "sharding": sharding, "shard": (host, hosts)}
    found = []
    for batches in (
        train_batches(some_images(20), seed=1, num_steps=3, **where), evaluation_batches(some_images(20), **where)
    ):
        for number, batch in enumerate(batches):
            assert batch.images.shape == (8, 8, 8, 3)
            for images, labels in zip(batch.images.addressable_shards, batch.labels.addressable_shards):
                sums = np.asarray(images.data).sum(axis=(1, 2, 3)).tolist()
                found.append([number, images.index[0].start, sums, np.asarray(labels.data).tolist()])
    print(json.dumps(found))
    """
)


def start(root, host, hosts, port):
    paths = os.pathsep.join(str(root / place) for place in (".", "tests/support"))
    devices = f"--xla_force_host_platform_device_count={4 // hosts}"
    environment = os.environ | {"PYTHONPATH": paths, "XLA_FLAGS": devices, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SCRIPT, *map(str, (host, hosts, port))]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def result(process):
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1])


@pytest.mark.slow
def test_two_hosts_get_what_one_gets(root):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    whole = result(start(root, 0, 1, port))
    pair = [start(root, host, 2, port) for host in range(2)]
    together = [rows for process in pair for rows in result(process)]
    assert sorted(together) == sorted(whole)
    assert len(whole) == 4 * 3 + 4 * 3
