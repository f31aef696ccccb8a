# ruff: noqa: E501
"""Bytes, kernels and collectives of compiled programs whose numbers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from metajax.training.traffic import Collective, read_traffic

# In the form that XLA prints for an H100 and a v5e, shortened and simplified by hand.
GPU = """HloModule jit_step, is_scheduled=true

%fused_update (p0: f32[12,768], p1: s32[], p2: f32[1,768]) -> f32[12,768] {
  %p0 = f32[12,768]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = f32[1,768]{1,0} parameter(2)
  %zero = s32[] constant(0)
  ROOT %dus = f32[12,768]{1,0} dynamic-update-slice(%p0, %p2, %p1, %zero)
}

%fused_slice (p0.1: f32[12,768], p1.1: s32[]) -> bf16[768] {
  %p0.1 = f32[12,768]{1,0} parameter(0)
  %p1.1 = s32[] parameter(1)
  %zero.1 = s32[] constant(0)
  %convert = bf16[12,768]{1,0} convert(%p0.1)
  %slice = bf16[1,768]{1,0} dynamic-slice(%convert, %p1.1, %zero.1), dynamic_slice_sizes={1,768}
  ROOT %row = bf16[768]{0} bitcast(%slice)
}

%body (carry: (s32[], f32[12,768])) -> (s32[], f32[12,768]) {
  %carry = (s32[], f32[12,768]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %stack = f32[12,768]{1,0} get-tuple-element(%carry), index=1
  %row.1 = bf16[768]{0} fusion(%stack, %i), kind=kLoop, calls=%fused_slice, metadata={op_name="jit(step)/while/body/slice" stack_frame_id=3}
  %product = (f32[1,768]{1,0}, s8[4194304]{0}) custom-call(%row.1), custom_call_target="__cublas$gemm"
  %result = f32[1,768]{1,0} get-tuple-element(%product), index=0
  %stack.1 = f32[12,768]{1,0} fusion(%stack, %i, %result), kind=kLoop, calls=%fused_update
  ROOT %next = (s32[], f32[12,768]{1,0}) tuple(%i, %stack.1)
}

%condition (carry.1: (s32[], f32[12,768])) -> pred[] {
  %carry.1 = (s32[], f32[12,768]{1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (x: f32[12,768]) -> f32[12,768] {
  %x = f32[12,768]{1,0} parameter(0)
  %one = s32[] constant(0)
  %start = (s32[], f32[12,768]{1,0}) tuple(%one, %x)
  %loop = (s32[], f32[12,768]{1,0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"12"}}
  %y = f32[12,768]{1,0} get-tuple-element(%loop), index=1
  %all-reduce-start = f32[12,768]{1,0} all-reduce-start(%y), channel_id=1, to_apply=%body
  ROOT %all-reduce-done = f32[12,768]{1,0} all-reduce-done(%all-reduce-start)
}
"""
TPU = """HloModule jit_step, is_scheduled=true

%all-reduce-scatter (input: f32[8,128]) -> f32[2,128] {
  %input = f32[8,128]{1,0:T(8,128)} parameter(0)
  %all-reduce = f32[8,128]{1,0:T(8,128)} all-reduce(%input), channel_id=1, to_apply=%sum
  %part = s32[]{:T(128)} partition-id()
  ROOT %slice = f32[2,128]{1,0:T(8,128)} dynamic-slice(%all-reduce, %part), dynamic_slice_sizes={2,128}
}

ENTRY %main.1 (x: f32[8,128]) -> f32[2,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0), metadata={op_name="x"}
  %copy-start = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %copy-done = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %buffer = f32[8,128]{1,0:T(8,128)S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %fusion = f32[8,128]{1,0:T(8,128)} fusion(%copy-done), kind=kLoop, calls=%all-reduce-scatter
  ROOT %out = f32[2,128]{1,0:T(8,128)} fusion(%fusion), kind=kCustom, calls=%all-reduce-scatter
}
"""


def of(function, *arguments):
    return read_traffic(jax.jit(function).lower(*arguments).compile().as_text())


def kernel(traffic, name):
    return next(each for each in traffic.kernels if each.name == name)


def test_elementwise_work_is_one_kernel_that_reads_and_writes_once():
    x = jnp.ones((100, 10))
    traffic = of(lambda x, y: jnp.sin(x) * y + 1, x, x)
    assert traffic.bytes == 3 * 4000
    assert traffic.launches == 1
    assert traffic.collectives == ()


def test_a_product():
    assert of(lambda a, b: a @ b, jnp.ones((300, 200)), jnp.ones((200, 100))).bytes == 4 * (
        300 * 200 + 200 * 100 + 300 * 100
    )


def test_half_precision_is_half_the_bytes():
    traffic = of(lambda x: x.astype(jnp.bfloat16), jnp.ones(1000))
    assert traffic.bytes == 4000 + 2000


def test_of_a_table_only_the_rows_that_are_looked_up_count():
    traffic = of(lambda table, rows: table[rows] * 2, jnp.ones((1000, 16)), jnp.arange(5))
    assert traffic.bytes == 5 * 4 + 2 * 5 * 16 * 4


def test_a_loop_counts_as_often_as_it_runs_and_reads_and_writes_slices_of_its_stacks():
    def scan(xs):
        return jax.lax.scan(lambda c, x: (jnp.sin(c * x), jnp.cos(c) + x), jnp.ones(1000), xs)

    short, long = (of(scan, jnp.ones((count, 1000))) for count in (10, 30))
    # In a step: at most the carry, the slice and both results, each read and written a few times.
    step = (long.bytes - short.bytes) / 20
    assert 4 * 4000 <= step <= 10 * 4000
    assert (long.launches - short.launches) % 20 == 0
    assert {each.times for each in long.kernels} == {1, 30}


def test_a_loop_without_a_known_end_runs_the_given_number_of_times():
    def loop(x, count):
        return jax.lax.fori_loop(0, count, lambda _, x: jnp.sin(x), x)

    text = jax.jit(loop).lower(jnp.ones(1000), 3).compile().as_text()
    once, often = (read_traffic(text, length) for length in (1, 2.5))
    assert often.bytes - once.bytes == pytest.approx(1.5 * 8000, rel=0.01)


def test_of_branches_the_one_with_most_traffic_counts():
    def choose(which, x):
        return jax.lax.cond(which, lambda x: jnp.sort(jnp.sin(x) @ x), lambda x: x, x)

    x = jnp.ones((200, 200))
    assert of(choose, True, x).bytes > of(lambda x: jnp.sin(x) @ x, x).bytes


def test_a_collective_on_devices():
    mesh = Mesh(np.array(jax.devices()[:4]), ("d",))
    spec = PartitionSpec("d")

    def mean(x):
        return jax.lax.pmean(x, "d")

    mapped = jax.shard_map(mean, mesh=mesh, in_specs=spec, out_specs=PartitionSpec())
    assert of(mapped, jnp.ones((4, 100))).collectives == (Collective("all-reduce", 400, 1.0),)


def test_a_program_for_a_gpu():
    traffic = read_traffic(GPU)
    row = 768 * 4
    assert kernel(traffic, "row.1")[2:] == ("jit(step)/while/body/slice", row + 4, row // 2, 12)
    assert kernel(traffic, "product")[3:] == (row // 2, row, 12)  # Not its workspace.
    assert kernel(traffic, "stack.1")[3:] == (row + 4, row, 12)  # In place.
    assert traffic.collectives == (Collective("all-reduce", 12 * row, 1),)
    assert traffic.launches == 3 * 12 + 1


TPU_LOOP = """HloModule jit_step, is_scheduled=true

%body (carry: (s32[], f32[12,8,128])) -> (s32[], f32[12,8,128]) {
  %carry = (s32[]{:T(128)}, f32[12,8,128]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%carry), index=0
  %stack = f32[12,8,128]{2,1,0:T(8,128)} get-tuple-element(%carry), index=1
  %slice-start = ((f32[12,8,128]{2,1,0:T(8,128)}), f32[1,8,128]{2,1,0:T(8,128)S(1)}, s32[1]{0:S(2)}) slice-start(%stack), slice={[0:1], [0:8], [0:128]}
  %slice-done = f32[1,8,128]{2,1,0:T(8,128)S(1)} slice-done(%slice-start)
  ROOT %next = (s32[]{:T(128)}, f32[12,8,128]{2,1,0:T(8,128)}) tuple(%i, %stack)
}

%condition (carry.1: (s32[], f32[12,8,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12), metadata={op_name="jit(step)/while"}
  %carry.1 = (s32[]{:T(128)}, f32[12,8,128]{2,1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%carry.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (x: f32[12,8,128]) -> f32[12,8,128] {
  %x = f32[12,8,128]{2,1,0:T(8,128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, f32[12,8,128]{2,1,0:T(8,128)}) tuple(%zero, %x)
  %loop = (s32[]{:T(128)}, f32[12,8,128]{2,1,0:T(8,128)}) while(%start), condition=%condition, body=%body
  ROOT %y = f32[12,8,128]{2,1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""


def test_a_loop_on_a_tpu_runs_as_often_as_its_condition_says():
    """A slice that is copied to on-chip memory, twelve times; TPUs do not print a trip count."""
    (copied,) = read_traffic(TPU_LOOP, 1.5).kernels
    assert (copied.read, copied.written, copied.times) == (8 * 128 * 4, 0, 12)
    unknown = TPU_LOOP.replace("compare(%i.1, %limit)", "compare(%i.1, %i.1)")
    assert read_traffic(unknown, 1.5).kernels[0].times == 1.5


def test_a_program_for_a_tpu():
    """What is in on-chip memory does not count; a fusion may have a collective inside."""
    traffic, size = read_traffic(TPU), 8 * 128 * 4
    assert kernel(traffic, "copy-start")[3:5] == (size, 0)
    assert kernel(traffic, "fusion").read == 0
    assert kernel(traffic, "out").written == size // 4
    assert set(traffic.collectives) == {Collective("all-reduce", size, 1)}
    assert not [each for each in traffic.kernels if each.name in ("buffer", "copy-done")]


@pytest.mark.parametrize("text", ["", "HloModule nothing", "%a (x: f32[]) -> f32[] {\n}"])
def test_what_is_not_a_program(text):
    with pytest.raises(ValueError, match="not a compiled program"):
        read_traffic(text)
