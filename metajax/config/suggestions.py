"""Suggestions for unknown names of settings, flags and commands."""

import difflib
from collections.abc import Collection

from metajax.config.fields import flag

_ALIKE = 0.7  # Minimum similarity (difflib's ratio, 0..1) of a name that is suggested.
# Our settings and their names in transformers, SetFit, scikit-learn, PEFT and papers. If several of
# ours are listed, the first one that the command has is suggested.
_ALIASES = {
    "learning_rate inner_lr": "learning_rate lr outer_lr meta_lr body_learning_rate",
    "inner_lr": "alpha inner_rate inner_learning_rate adapt_lr",
    "steps inner_steps": "steps max_steps num_steps num_iterations max_iter",
    "inner_steps": "adaptation_steps adapt_steps num_inner_steps",
    "epochs steps inner_steps": "epochs num_epochs num_train_epochs",
    "batch_size meta_batch_size": "batch_size train_batch_size per_device_train_batch_size",
    "warmup": "warmup_ratio warmup_steps",
    "clip_norm": "max_grad_norm",
    "remat": "gradient_checkpointing",
    "dtype": "bf16 fp16 precision torch_dtype",
    "mask_rate": "mlm_probability",
    "max_length": "max_seq_length max_seq_len model_max_length",
    "model": "model_name model_name_or_path checkpoint encoder",
    "workdir output": "output output_dir out resume_from_checkpoint",
    "tasks text input": "dataset dataset_name data train_file train_data",
    "input tasks text": "tasks file texts",
    "finetune": "train",
    "adapt": "fit",
    "dev held_out": "validation_file eval_file test_file eval_data",
    "classes label_column": "labels",
    "ways": "n_way num_ways num_classes",
    "shots": "k k_shot n_shot num_shots num_samples",
    "queries": "n_query num_queries",
    "episodes": "num_episodes",
    "algorithm": "first_order order",
    "methods algorithm": "method",
    "lora": "r lora_r lora_rank rank",
    "seed": "random_state",
    "save_every": "save_steps",
    "keep": "save_total_limit",
    "track": "report_to",
    "text_column": "text_field column_mapping",
    "label_column": "label_field",
}


def suggestion(name: str, names: Collection[str], help_command: str) -> str:
    """Return the advice for an unknown setting, flag or command.

    Args:
        name: the unknown name: `learning_rate`, `--learning-rate` or `train`.
        names: the known names, in the same notation.
        help_command: the command that lists them.

    Returns:
        A known name of the same meaning (`_ALIASES`) or of similar spelling, if there is one; and
        where to look.
    """
    key, is_flag = name.lstrip("-").replace("-", "_").lower(), name.startswith("--")
    ours = [own for own, others in _ALIASES.items() if key in others.split()]
    same = [flag(own) if is_flag else own for own in " ".join(ours).split()]
    close = difflib.get_close_matches(name, names, n=1, cutoff=_ALIKE)
    match = next((own for own in same + close if own in names), None)
    return f"did you mean {match}? See {help_command}" if match else f"see {help_command}"
