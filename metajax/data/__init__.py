"""Read tasks and text, turn them into arrays, and arrays into batches.

Everything random is a function of (seed, step). This package uses NumPy only: it does not need JAX,
models or algorithms.
"""

from metajax.data.batches import (
    packed_eval_batches,
    packed_parts,
    plan_batches,
    supervised_batch,
    supervised_eval_batches,
    take_examples,
)
from metajax.data.chunks import (
    Chunks,
    StreamSpec,
    count_chunks,
    cut_chunks,
    sample_streams,
    split_documents,
    stream_tasks,
    support_chunks,
)
from metajax.data.document_files import load_documents
from metajax.data.documents import (
    Documents,
    TokenizedDocument,
    document_batch,
    next_token_batch,
    pack_documents,
    tokenize_documents,
)
from metajax.data.draws import Draws, fixed_episodes, join_draws
from metajax.data.duplicates import Duplicates, find_duplicates
from metajax.data.episode_batches import fit_episodes, gather, plan_drawn, plan_episodes
from metajax.data.episodes import (
    Episodes,
    EpisodeSpec,
    check_episodes,
    draw_sources,
    sample_episodes,
)
from metajax.data.fingerprints import fingerprint
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
from metajax.data.pairs import tokenize_apart
from metajax.data.readers import read_lines
from metajax.data.tasks import TaskData, load_tasks
from metajax.data.text import (
    Blocks,
    TokenizedTask,
    pack_blocks,
    tokenize,
    tokenize_task,
)
from metajax.data.tokens import Tokens
from metajax.data.validation import HeldOut, hold_out_tasks

__all__ = [
    "Blocks",
    "Chunks",
    "Documents",
    "Draws",
    "Duplicates",
    "EpisodeSpec",
    "Episodes",
    "HeldOut",
    "MaskRule",
    "Shape",
    "Shapes",
    "StreamSpec",
    "TaskData",
    "TokenizedDocument",
    "TokenizedTask",
    "Tokens",
    "check_episodes",
    "count_chunks",
    "cut_chunks",
    "document_batch",
    "draw_sources",
    "find_duplicates",
    "fingerprint",
    "fit_episodes",
    "fixed_episodes",
    "gather",
    "has_split",
    "held_out",
    "hold_out_tasks",
    "join_draws",
    "load_documents",
    "load_tasks",
    "mask_rule",
    "mask_tokens",
    "next_token_batch",
    "pack_blocks",
    "pack_documents",
    "packed_eval_batches",
    "packed_parts",
    "plan_batches",
    "plan_drawn",
    "plan_episodes",
    "pretraining_batch",
    "read_lines",
    "sample_episodes",
    "sample_streams",
    "split_documents",
    "stream_tasks",
    "supervised_batch",
    "supervised_eval_batches",
    "support_chunks",
    "take",
    "take_examples",
    "tokenize",
    "tokenize_apart",
    "tokenize_documents",
    "tokenize_task",
]
