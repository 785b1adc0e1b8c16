"""What makes a task the same task: data, network and settings, in hashes that do not depend on where they are made.

Results are comparable, and base networks and runs can be used again, only where all of it is equal. How text is shown
(colours of a terminal, a notebook, its width) is no part of it, and neither are the versions of libraries, as far as
they run the same operations.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TypedDict

import jax
from flax import nnx

from jaxprune.datasets.dataset import Dataset
from jaxprune.structure.groups import Structure
from jaxprune.structure.model_state import split_model
from jaxprune.structure.program import trace_program
from jaxprune.structure.program_text import program_text
from jaxprune.tasks.tasks import Task
from jaxprune.training.loop import split_network

_UNIMPORTANT = ("name", "weight", "bases", "extra_bases", "final_bases")
"""Settings that do not change the result of a fine-tuning."""


class Identity(TypedDict):
    """What a task's fingerprint is made of: hashes of its data and its network, and its settings by name."""

    data: str
    network: str
    settings: dict[str, object]


def identity_of(task: Task, model: nnx.Module, structure: Structure) -> Identity:
    """Returns what distinguishes a task from others.

    Args:
      task: the task.
      model: a network of the task; its weights are not read.
      structure: its groups, traced in evaluation mode.
    """
    training = trace_program(*split_model(model), structure.example, "training")
    network = [structure.fingerprint, program_text(structure.program), program_text(training)]
    settings = {name: value for name, value in task.settings.items() if name not in _UNIMPORTANT}
    data = str(settings.pop("data_fingerprint"))
    return {"data": data, "network": _hash("\n".join(network)), "settings": json.loads(json.dumps(settings))}


def fingerprint_of(identity: Identity) -> str:
    """Returns sixteen hexadecimal digits for an identity; only results with equal ones are comparable.

    Example:
      >>> fingerprint_of({"data": "d", "network": "n", "settings": {"rounds": 1}})
      'f4934529bd45d7cc'
    """
    return _hash(json.dumps(identity, sort_keys=True))


def earlier_fingerprints(task: Task, model: nnx.Module, structure: Structure) -> tuple[str, ...]:
    """Returns the fingerprints that jaxprune gave the task before, with the JAX that is installed.

    The first versions hashed JAX's text of the network, which has colours if standard output is a terminal. Later ones
    still hashed 8-bit images after standardising them, which rounded the last digit of some otherwise than today.

    Args:
      task, model, structure: as for `identity_of`.

    Returns:
      That of a run without a terminal, that of a run on one, and for a task of 8-bit images the later one.
    """
    data = task.data_fingerprint
    if task.scaling is not None:
        data = Dataset.from_arrays(task.name, train=task.train, validation=task.validation).fingerprint
    network, weights = split_network(model)
    program = jax.make_jaxpr(network.logits)(weights, structure.example.first)
    settings = {name: value for name, value in task.settings.items() if name not in _UNIMPORTANT}
    settings["data_fingerprint"] = data
    texts = [re.sub(r"0x[0-9a-f]+", "", program.pretty_print(use_color=color)) for color in (False, True)]
    settings_text = json.dumps(settings, sort_keys=True)
    first = tuple(_hash("\n".join([data, structure.fingerprint, text, settings_text])) for text in texts)
    if data == task.data_fingerprint:
        return first
    return (*first, fingerprint_of({**identity_of(task, model, structure), "data": data}))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
