"""The compiled outer step of eight LoRA tasks at once has one base, as for one task."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest

import metajax
from metajax.algorithms import lora
from metajax.models import Transformer, TransformerConfig, causal_lm_loss

# A task has a text of three tokens, and the rank is 1: nearly all memory is the base's part, and
# no other array has the sizes of a kernel. Nothing of this size is run.
TASKS, BLOCKS, WIDTH, KEYS, INNER, WORDS = 8, 3, 1180, 590, 1740, 97
KERNELS = [(WIDTH, WIDTH), (WIDTH, KEYS), (WIDTH, INNER), (WORDS, WIDTH)]
TARGETS = ("layers/query/kernel", "layers/gate/kernel")
CONFIG = TransformerConfig(
    vocab_size=WORDS,
    hidden_size=WIDTH,
    num_hidden_layers=BLOCKS,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=INNER,
    type_vocab_size=0,
    model_type="llama",
    tie_word_embeddings=True,
)
MODEL = Transformer(CONFIG, head="causal_lm")


def compiled_step(combine, count, **engine):
    """A step of `outer_loop` with all tasks under one vmap."""
    loss_fn = lora.loss(causal_lm_loss(MODEL), lora.freeze(combine))
    algorithm = metajax.maml(loss_fn, optax.sgd(0.1), 2, trainable=lora.is_adapter, **engine)
    outer = metajax.outer_loop(algorithm, optax.adam(1e-3), chunk_size=count, frozen=lora.is_base)

    def begin(key):
        params = lora.init(MODEL.init(key), rank=1, target=TARGETS.__contains__, rng=key)
        return outer.init(params, key)

    ids = jnp.ones((count, 1, 3), int)
    tasks = metajax.Task(*({"input_ids": ids, "attention_mask": ids},) * 2)
    return outer.lower(jax.eval_shape(begin, jax.random.key(0)), tasks).compile()


def repeated(program):
    """The shapes with the number of tasks and both sizes of a kernel, in any order."""
    text = program.as_text()
    shapes = {tuple(map(int, sizes.split(","))) for sizes in re.findall(r"f32\[([\d,]+)\]", text)}
    kernels = [[*stack, *kernel] for kernel in KERNELS for stack in ((), (1,), (BLOCKS,))]
    forbidden = [sorted([TASKS, *sizes]) for sizes in kernels]
    forbidden += [sorted(flat) for a, b in KERNELS for flat in ((TASKS * a, b), (a, TASKS * b))]
    return [shape for shape in shapes if sorted(shape) in forbidden]


def megabytes(program):
    memory = program.memory_analysis()
    return (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 1e6


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param({}, marks=pytest.mark.slow, id="second order"),
        pytest.param({"low_memory": True}, marks=pytest.mark.slow, id="low memory"),
        pytest.param({"first_order": True}, id="first order"),
    ],
)
def test_eight_tasks_share_one_base(engine):
    eight, one = (compiled_step(lora.attach, count, **engine) for count in (TASKS, 1))
    assert not repeated(eight)
    # All memory, so the base's part has to be less still.
    assert megabytes(eight) < 1.3 * megabytes(one)


@pytest.mark.slow
def test_merged_kernels_are_repeated():
    """By the same measures."""
    eight, one = (compiled_step(lora.merge, count, first_order=True) for count in (TASKS, 1))
    assert (TASKS, WIDTH, INNER) in map(tuple, map(sorted, repeated(eight)))
    assert megabytes(eight) > 3 * megabytes(one)
