"""Read tasks and text, turn them into arrays, and arrays into batches.

Everything random is a function of (seed, step). This package uses NumPy only: it does not need JAX,
models or algorithms.
"""

from metajax.data.batches import (
    packed_parts,
    plan_batches,
    supervised_batch,
    supervised_eval_batches,
)
from metajax.data.documents import (
    Documents,
    document_batch,
    next_token_batch,
    pack_documents,
)
from metajax.data.draws import Draws, fixed_episodes, join_draws
from metajax.data.duplicates import Duplicates, find_duplicates
from metajax.data.episode_batches import fit_episodes, gather, plan_drawn, plan_episodes
from metajax.data.episodes import Episodes, EpisodeSpec, check_episodes, sample_episodes
from metajax.data.hub import has_split
from metajax.data.masking import (
    MaskRule,
    held_out,
    mask_rule,
    mask_tokens,
    pretraining_batch,
    take,
)
from metajax.data.packing import Shape, Shapes
from metajax.data.readers import read_lines
from metajax.data.tasks import TaskData, fingerprint, load_tasks
from metajax.data.text import (
    Blocks,
    TokenizedTask,
    Tokens,
    pack_blocks,
    tokenize,
    tokenize_task,
)

__all__ = [
    "Blocks",
    "Documents",
    "Draws",
    "Duplicates",
    "EpisodeSpec",
    "Episodes",
    "MaskRule",
    "Shape",
    "Shapes",
    "TaskData",
    "TokenizedTask",
    "Tokens",
    "check_episodes",
    "document_batch",
    "find_duplicates",
    "fingerprint",
    "fit_episodes",
    "fixed_episodes",
    "gather",
    "has_split",
    "held_out",
    "join_draws",
    "load_tasks",
    "mask_rule",
    "mask_tokens",
    "next_token_batch",
    "pack_blocks",
    "pack_documents",
    "packed_parts",
    "plan_batches",
    "plan_drawn",
    "plan_episodes",
    "pretraining_batch",
    "read_lines",
    "sample_episodes",
    "supervised_batch",
    "supervised_eval_batches",
    "take",
    "tokenize",
    "tokenize_task",
]
