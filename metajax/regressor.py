"""`FewShotRegressor`: numbers for texts, in memory, with scikit-learn's conventions."""

import os
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from metajax import data
from metajax.config.groups import ModelSettings
from metajax.config.inner import ANY_LABELS, InnerSettings
from metajax.errors import InputError
from metajax.models import save_pretrained
from metajax.runs.classifier import (
    SAVED_REGRESSOR,
    Classifier,
    logits_of,
    open_classifier,
    write_settings,
)
from metajax.runs.few_shot import open_few_shot
from metajax.runs.labels import check_sizes, read_texts
from metajax.runs.methods import adapt_to, method_of, prepare
from metajax.runs.task_data import tokenized
from metajax.runs.workdir import read_json


class FewShotRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # Has no types.
    """Predict a number for each text after a few examples, with scikit-learn's conventions.

    Texts are a list, array or pandas column of strings. For pairs of texts, each is a tuple of two.
    `score` returns R².

    Args:
        model: hub id, Hugging Face directory, or workdir of an earlier stage.
        method: "linear" (ridge regression on frozen features) or "finetune" (all weights); see
            `metajax adapt --method`.
        max_length: longer texts are truncated to this many tokens.
        batch_size: texts per batch of a prediction.
        seed: seed of the training.

    Examples:
        >>> import tempfile, transformers
        >>> import jax, metajax
        >>> from metajax.models import Transformer, TransformerConfig
        >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "book"]
        >>> folder = tempfile.mkdtemp()
        >>> tokenizer = transformers.BertTokenizer(vocab={w: i for i, w in enumerate(words)})
        >>> _ = tokenizer.save_pretrained(folder)
        >>> config = TransformerConfig(len(words), hidden_size=12, num_hidden_layers=1)
        >>> model = Transformer(config, pooling="mean")
        >>> metajax.save_pretrained(folder, model, model.init(jax.random.key(0)))
        >>> regressor = metajax.FewShotRegressor(folder, method="linear")
        >>> regressor = regressor.fit(["good film", "bad film", "film"], [5.0, 1.0, 3.0])
        >>> regressor.predict(["good book", "bad book"]).shape
        (2,)
    """

    def __init__(
        self,
        model: str = "sentence-transformers/all-MiniLM-L6-v2",
        *,
        method: str = "finetune",
        max_length: int = 128,
        batch_size: int = 64,
        seed: int = 0,
    ):
        self.model = model
        self.method = method
        self.max_length = max_length
        self.batch_size = batch_size
        self.seed = seed

    def fit(self, X: Any, y: Any) -> Self:
        """Adapt to texts with numbers.

        Args:
            X: N texts, or pairs of texts.
            y: N numbers, not all the same.

        Raises:
            InputError: the model, the texts or the numbers cannot be used.
        """
        self._check()
        texts, pairs = read_texts(X)
        numbers = _numbers(y)
        if len(numbers) != len(texts):
            raise InputError(f"fit: {len(texts)} texts have {len(numbers)} numbers; give one each")
        if not texts:
            raise InputError("fit: there are no examples; give texts")
        spec = os.fspath(self.model)
        settings = ModelSettings(model=spec, seed=int(self.seed), max_length=int(self.max_length))
        few_shot = open_few_shot(spec, settings, InnerSettings(), 1)
        task = data.TaskData("the examples", texts, pairs, numbers, ())
        few_shot, model = prepare(few_shot, self.method, task)
        (examples,) = tokenized([task], model, few_shot.text_length(self.max_length))
        method = method_of(self.method)
        adapted = adapt_to(few_shot, examples, method, chooses=False, donate=True)
        params = few_shot.merge(adapted.params)
        self._fitted = Classifier(model, params, 0, self.max_length, pairs is not None)
        return self

    def _check(self) -> None:
        if self.method not in ANY_LABELS:
            allowed = " or ".join(ANY_LABELS)
            raise InputError(f"method is {self.method!r}; it has to be {allowed}")
        check_sizes(batch_size=self.batch_size, max_length=self.max_length)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_fitted")

    def predict(self, X: Any) -> np.ndarray:
        """Return the number of each text, float64 [N].

        Raises:
            InputError: the texts cannot be used.
        """
        check_is_fitted(self)
        texts, pairs = read_texts(X)
        if not texts:
            return np.empty(0)
        numbers = np.stack(list(logits_of(self._fitted, texts, pairs, self.batch_size)))
        return numbers[:, 0].astype(np.float64)

    def save(self, directory: str | Path) -> None:
        """Write a Hugging Face directory, which `load` and `metajax predict` read."""
        check_is_fitted(self)
        folder = Path(directory).expanduser()
        save_pretrained(folder, self._fitted.model, self._fitted.params)
        numbers = {name: int(getattr(self, name)) for name in ("max_length", "batch_size", "seed")}
        settings = {"model": os.fspath(self.model), "method": self.method, **numbers}
        written = {"settings": settings, "pairs": self._fitted.pairs}
        write_settings(folder, SAVED_REGRESSOR, written)

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            InputError: the directory is not from `save`.
        """
        file = Path(directory).expanduser() / SAVED_REGRESSOR
        if not file.is_file():
            raise InputError(f"{directory}: has no {SAVED_REGRESSOR}; give a folder of `save`")
        loaded = cls(**read_json(file)["settings"])
        loaded._fitted = open_classifier(str(file.parent), None)
        return loaded


def _numbers(given: Any) -> np.ndarray:
    """Return numbers as float32 [N].

    Raises:
        InputError: something else is given.
    """
    try:
        numbers = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        raise InputError(
            "labels: are not all numbers; give a number for each text, or use FewShotClassifier "
            "for classes"
        ) from None
    if numbers.ndim != 1:
        raise InputError(
            f"labels: have the shape {numbers.shape}; give a number for each text, such as the "
            'column frame["label"]'
        )
    wrong = np.flatnonzero(~(np.abs(numbers) <= np.finfo(np.float32).max))
    if wrong.size:
        raise InputError(
            f"labels: number {wrong[0]} is {numbers[wrong[0]]}; give finite numbers up to 3.4e38"
        )
    return numbers.astype(np.float32)
