"""The model card of an exported sentence encoder."""

from collections.abc import Mapping
from typing import Any

_TEMPLATE = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, feature-extraction, metajax]
---

# {name}

A sentence encoder of type {model_type}, trained by metajax ({stage}). A text of at most
{max_length} tokens becomes a vector of {width} numbers: {pooling}{dense}{normalized}.{prompt}

## Load

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}")
vectors = model.encode(["Where is my parcel?", "I want a refund."])
```
{classifier}
## Data, settings and lineage

The last run comes first. A hash is the beginning of a sha256.

```text
{lineage}
```
{results}"""
_HEAD = """
`classifier.safetensors` {purpose}. metajax reads both:

```python
import metajax

model, params = metajax.from_pretrained("{name}", head="classification")
text = model.prompt + "Where is my parcel?"  # Of a pair, the prompt is put before the first text.
batch = model.tokenizer([text], return_tensors="np", return_token_type_ids=True)
print({answer})
```
"""
_HEAD_OF_PAIRS = """
`classifier.safetensors` {verb} pairs of texts by `|u - v|` and `u * v` of their vectors `u` and
`v`, scaled to the length `feature_norm` of `config.json`. metajax reads both:

```sh
metajax predict --model {name} --input pairs.csv
```
"""
_CLASSIFIER = {
    "verb": "labels",
    "purpose": "is a classifier of these vectors, scaled to the length `feature_norm` of\n"
    "`config.json` if it has one, with the classes of `config.json`",
    "answer": "model.label_names[0][model(params, dict(batch)).logits[0].argmax()]",
}
_REGRESSION = {
    "verb": "scores",
    "purpose": "predicts a number from these vectors, scaled to the length `feature_norm`\n"
    "of `config.json` if it has one",
    "answer": "float(model(params, dict(batch)).logits[0, 0])",
}
# Results of a checkpoint that is not exported if its run kept the start.
_OF_BEST = ("best_step", "kept_step", "gain", "gain_ci95")
_START = (
    "- The weights are those from before meta-training, because no checkpoint was better on the "
    "validation tasks."
)
_POOLINGS = {
    "mean": "the mean over its tokens",
    "cls": "its first token",
    "last": "its last token",
    "weighted-mean": "the mean over its tokens, in which later ones count more",
}


def model_card(
    name: str,
    *,
    model_type: str,
    stage: str,
    pooling: str,
    width: int,
    dense: str | None,
    prompt: str,
    max_length: int,
    normalized: bool,
    classifier: bool,
    regression: bool,
    siamese: bool,
    lineage: str,
    results: Mapping[str, Any] | None,
) -> str:
    """Return README.md of a sentence encoder.

    Args:
        name: the directory.
        model_type: the family of the network.
        stage: the command of its last run.
        pooling: see `Transformer`.
        width: features of a vector.
        dense: the activation of the layer on the pooled vector. None: there is none.
        prompt: what is put before each text, if anything.
        max_length: largest number of tokens of a text.
        normalized: whether vectors have unit length.
        classifier: whether a classifier is in the directory.
        regression: whether it predicts numbers.
        siamese: whether it compares the two texts of a pair.
        lineage: the runs that led to the model, as text.
        results: results of the last run, if it has any.
    """
    results = results or {}
    keeps_start = results.get("kept_step") == 0
    measured = {
        key: value
        for key, value in results.items()
        if _is_plain(value) and not (keeps_start and key in _OF_BEST)
    }
    lines = [f"- {key}: {value}" for key, value in measured.items()]
    lines += [_START] * keeps_start + _choice(results)
    listed = "\n".join(lines)
    described = _REGRESSION if regression else _CLASSIFIER
    head = _HEAD_OF_PAIRS if siamese else _HEAD
    return _TEMPLATE.format(
        name=name,
        model_type=model_type,
        stage=stage,
        max_length=max_length,
        width=width,
        pooling=_POOLINGS[pooling],
        dense="" if dense is None else f", through a dense layer with the activation {dense}",
        prompt=f" `{prompt}` is put before each text." if prompt else "",
        normalized=", scaled to unit length" if normalized else "",
        classifier=head.format(name=name, **described) if classifier else "",
        lineage=lineage,
        results=f"\n## Results of the last run\n\n{listed}\n" if listed else "",
    )


def _choice(results: Mapping[str, Any]) -> list[str]:
    """Return lines about the choice of the method and of the weights, if there was one."""
    if "choice" not in results:
        return []
    choice, weights = results["choice"], []
    if "weights" in choice:
        weights = [f"- chosen weights: {choice['weights']} ({choice['verdict']})"]
    if not choice["folds"]:
        method = f"- chosen method: {choice['chosen']} (no class has a second example)"
        return weights or [method]
    return [
        *weights,
        f"- chosen method: {choice['chosen']}, by {choice['folds']}-fold cross-validation on "
        f"{choice['examples']} examples",
        *(
            f"    - {name}: log-likelihood {row['log_likelihood']:.4f}, accuracy "
            f"{row['accuracy']:.4f}"
            for name, row in choice["candidates"].items()
        ),
        *(f"    - {name}: not tried, because of the time limit" for name in choice["cut"]),
    ]


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | float | str)
