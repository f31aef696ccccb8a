"""Machines that programs can be compiled for on any machine, by their own compilers.

Nothing here needs the devices, and nothing runs on them. TPUs need libtpu and GPUs the CUDA wheels.
"""

import importlib.util
import os
from typing import NamedTuple

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

from metajax.errors import InputError, reason_of

_GB, _TB = 1e9, 1e12
# Of a GPU, the share that JAX takes by default (docs.jax.dev, "GPU memory allocation").
_SHARE = 0.75

# Otherwise libtpu asks a service that only TPU VMs have, warns of what it does not find there, and
# refuses a second process.
_OFF_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class GPU(NamedTuple):
    """What XLA's GPU compiler asks of a device: fields of XLA's GpuTargetConfigProto.

    Attributes:
        name: the device's name.
        capability: CUDA compute capability.
        cores: streaming multiprocessors.
        fpus: float32 units of each.
        shared_memory: bytes of each.
        l2_cache: bytes.
        clock: GHz.
    """

    name: str
    capability: int
    cores: int
    fpus: int
    shared_memory: int
    l2_cache: int
    clock: float


class Chip(NamedTuple):
    """The published numbers of a device, as JAX counts devices.

    Attributes:
        memory: bytes.
        bandwidth: bytes per second of its memory.
        bfloat16: dense products, FLOP/s.
        float32: the same at JAX's default precision for float32, which rounds the operands: to
            TF32 on a GPU, to bfloat16 on a TPU.
        single: the topology of one chip.
        gpu: the details of a GPU; None for a TPU.
        megacore: whether two cores of a TPU are one device.
    """

    memory: float
    bandwidth: float
    bfloat16: float
    float32: float
    single: str = "1"
    gpu: GPU | None = None
    megacore: bool = False

    @property
    def platform(self) -> str:
        """What JAX calls it: `gpu` or `tpu`."""
        return "gpu" if self.gpu else "tpu"

    @property
    def available(self) -> float:
        """The bytes that programs can use by JAX's default."""
        return _SHARE * self.memory if self.gpu else self.memory

    def seconds(self, flops: float, size: float, dtype: str) -> float:
        """Estimate a time from products and traffic, one after the other.

        Args:
            flops: floating-point operations of matrix products.
            size: bytes moved through memory.
            dtype: `bfloat16` or `float32`.
        """
        return flops / getattr(self, dtype) + size / self.bandwidth


def _tpu(memory: float, bandwidth: float, flops: float, single: str, *, megacore: bool) -> Chip:
    return Chip(memory, bandwidth, flops, flops, single, megacore=megacore)


CHIPS = {
    # cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e and /tpu7x. A chip of tpu7x is two devices.
    "v4": _tpu(32 * _GB, 1228 * _GB, 275 * _TB, "1x1x1", megacore=True),
    "v5e": _tpu(16 * _GB, 819 * _GB, 197 * _TB, "1x1", megacore=False),
    "v5p": _tpu(95 * _GB, 2765 * _GB, 459 * _TB, "1x1x1", megacore=False),
    "v6e": _tpu(32 * _GB, 1640 * _GB, 918 * _TB, "1x1", megacore=False),
    "tpu7x": _tpu(96 * _GB, 3690 * _GB, 1153.5 * _TB, "1x1x1", megacore=False),
    # NVIDIA's data sheets of A100 80GB SXM, H100 SXM, H200 SXM and HGX B200 (products without
    # sparsity), and the specifications of devices in XLA's sources
    # (xla/backends/gpu/target_config/specs).
    "a100": Chip(
        80 * _GB,
        2039 * _GB,
        312 * _TB,
        156 * _TB,
        gpu=GPU("NVIDIA A100-SXM4-80GB", 8, 108, 64, 167936, 41943040, 1.41),
    ),
    "h100": Chip(
        80 * _GB,
        3350 * _GB,
        989 * _TB,
        494 * _TB,
        gpu=GPU("NVIDIA H100 80GB HBM3", 9, 132, 128, 233472, 52428800, 1.98),
    ),
    "h200": Chip(
        141 * _GB,
        4800 * _GB,
        989 * _TB,
        494 * _TB,
        gpu=GPU("NVIDIA H200 141GB HBM3e", 9, 132, 128, 233472, 52428800, 1.98),
    ),
    "b200": Chip(
        180 * _GB,
        7700 * _GB,
        2250 * _TB,
        1100 * _TB,
        gpu=GPU("NVIDIA B200", 10, 148, 128, 233472, 132644864, 1.965),
    ),
}


class Target(NamedTuple):
    """A machine to compile for.

    Attributes:
        chip: its numbers.
        devices: descriptions of its devices. They form meshes, but hold no arrays.
    """

    chip: Chip
    devices: list[jax.Device]

    @property
    def num_processes(self) -> int:
        """How many processes a run on it has: one per host."""
        return len({device.process_index for device in self.devices})


def find_target(text: str) -> Target:
    """Return the machine `CHIP` or `CHIP:TOPOLOGY`.

    If JAX has not been used yet, the process can then use only the CPU.

    Args:
        text: a chip of `CHIPS`, and how many of them: a number of GPUs (`h100:8`), or the shape of
            a TPU slice (`v5e:2x4`). By default one.

    Raises:
        InputError: there is no such machine, or its compiler is not installed.
    """
    name, _, topology = text.partition(":")
    chip = CHIPS.get(name)
    if chip is None:
        raise InputError(f"--target {text}: is not a known chip; choose from {', '.join(CHIPS)}")
    _check_installed(text, chip)
    describe = _describe_gpus if chip.gpu else _describe_tpus
    # JAX finds the plugins at its first call. Without this, they would look for their devices.
    jax.config.update("jax_platforms", "cpu")
    jax.devices()
    try:
        return Target(chip, describe(name, chip, topology or chip.single))
    except (ValueError, RuntimeError) as error:
        example = f"{name}:{'8' if chip.gpu else '2x2x1' if 'x1x' in chip.single else '2x4'}"
        raise InputError(
            f"--target {text}: is not a machine ({reason_of(error)}); give one such as {example}"
        ) from error


def compile_for_target(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compile a program for devices that are not there.

    Raises:
        jax.errors.JaxRuntimeError: the compiler refuses it, on a TPU also if it does not fit.
    """
    # JAX's persistent cache could not load the program again. JAX reads the setting only once.
    cached = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        return lowered.compile()
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
        compilation_cache.reset_cache()


def _check_installed(text: str, chip: Chip) -> None:
    extra, what, modules = (
        ("plan-cuda", "JAX's CUDA wheels", ("jax_cuda13_plugin", "jax_cuda12_plugin"))
        if chip.gpu
        else ("plan-tpu", "libtpu", ("libtpu",))
    )
    if not any(importlib.util.find_spec(module) for module in modules):
        raise InputError(f"--target {text}: needs {what}; install metajax[{extra}]")


def _describe_gpus(name: str, chip: Chip, topology: str) -> list[jax.Device]:
    """Describe GPUs of one host."""
    assert chip.gpu is not None
    count = int(topology)
    if count < 1:
        raise ValueError("no GPUs")
    described = topologies.get_topology_desc(
        name, "cuda", topology=f"1x1x{count}", target_config=_gpu_config(chip, chip.gpu)
    )
    return list(described.devices)


def _gpu_config(chip: Chip, gpu: GPU) -> str:
    """Return XLA's GpuTargetConfigProto in text form."""
    device = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49152,
        "shared_memory_per_core": gpu.shared_memory,
        "shared_memory_per_block_optin": gpu.shared_memory - 1024,
        "threads_per_core_limit": 2048,
        "core_count": gpu.cores,
        "fpus_per_core": gpu.fpus,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "memory_bandwidth": round(chip.bandwidth),
        "device_memory_size": round(chip.memory),
        "l2_cache_size": gpu.l2_cache,
        "clock_rate_ghz": gpu.clock,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
    }
    fields = " ".join(f"{key}: {value}" for key, value in device.items())
    return (
        f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: {gpu.capability} }} }} "
        'platform_name: "CUDA" dnn_version_info { major: 9 minor: 12 } '
        f'device_description_str: "{gpu.name}"'
    )


def _describe_tpus(name: str, chip: Chip, topology: str) -> list[jax.Device]:
    """Describe a slice of TPUs. Up to eight chips of v5e and v6e are one host, else four."""
    for variable, value in _OFF_TPU.items():
        os.environ.setdefault(variable, value)
    options: dict[str, object] = {"chip_config_name": "megacore"} if chip.megacore else {}
    if topology in ("1x1", "1x1x1", "2x4"):
        sides = [int(side) for side in topology.split("x")]
        options["chips_per_host_bounds"] = (*sides, 1)[:3]
    return list(topologies.get_topology_desc(f"{name}:{topology}", "tpu", **options).devices)
