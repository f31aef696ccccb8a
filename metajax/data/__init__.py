"""Data: tasks and text to arrays, and arrays to batches, all a function of (seed, step).

Plain NumPy: nothing here needs JAX, models or algorithms.
"""

from metajax.data.batches import supervised_batch, supervised_eval_batches
from metajax.data.episodes import (
    Episodes,
    EpisodeSpec,
    bucket_lengths,
    check_episodes,
    gather,
    sample_episodes,
)
from metajax.data.masking import (
    MaskRule,
    held_out,
    mask_rule,
    mask_tokens,
    pretraining_batch,
    take,
)
from metajax.data.tasks import TaskData, fingerprint, load_tasks
from metajax.data.text import (
    Blocks,
    TokenizedTask,
    Tokens,
    pack_blocks,
    read_lines,
    tokenize,
    tokenize_task,
)

__all__ = [
    "Blocks",
    "EpisodeSpec",
    "Episodes",
    "MaskRule",
    "TaskData",
    "TokenizedTask",
    "Tokens",
    "bucket_lengths",
    "check_episodes",
    "fingerprint",
    "gather",
    "held_out",
    "load_tasks",
    "mask_rule",
    "mask_tokens",
    "pack_blocks",
    "pretraining_batch",
    "read_lines",
    "sample_episodes",
    "supervised_batch",
    "supervised_eval_batches",
    "take",
    "tokenize",
    "tokenize_task",
]
