"""`FewShotClassifier`: few-shot classification in memory, with scikit-learn's conventions."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, Unpack

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from metajax.config.groups import ModelSettings
from metajax.config.inner import DEFAULT_METHOD, METHODS, InnerSettings, MethodSettings
from metajax.config.settings import MetatrainSettings
from metajax.errors import InputError, StoppedError
from metajax.models import save_pretrained
from metajax.runs.choice import Calibration
from metajax.runs.classifier import (
    SAVED,
    Classifier,
    open_classifier,
    probabilities,
    write_settings,
)
from metajax.runs.few_shot import FewShot, open_few_shot
from metajax.runs.labels import check_sizes, plain, read_examples, read_labels, read_texts
from metajax.runs.memory_tasks import MetaFitSettings, Tasks, without_run, write_tasks
from metajax.runs.method_choice import adapt_by
from metajax.runs.methods import with_several_labels
from metajax.runs.original import prepare_weights
from metajax.runs.task_data import tokenized
from metajax.runs.workdir import read_json

_NUMBERS = ("max_length", "batch_size", "seed")
_HOW = ("weights", "class_weight", "calibrate", "time_limit")  # Settings of the method.


class FewShotClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # Has no types.
    """Classify texts after a few examples of each class, with scikit-learn's conventions.

    Texts are a list, array or pandas column of strings. For pairs of texts, each is a tuple of two.
    With `linear` and `finetune`, a text can have any number of labels.

    Args:
        model: hub id, Hugging Face directory, or workdir of an earlier stage.
        method: how to adapt to the examples; see `metajax adapt --method`. "choose" chooses it by
            cross-validation on the examples.
        weights: "checkpoint" (those of the model), "original" (those that its run started from) or
            "choose" (one of the two, by cross-validation on the examples).
        class_weight: "balanced": each class has the same weight in the loss, however many examples
            it has; not for texts with several labels.
        calibrate: whether to calibrate the probabilities by cross-validation on the examples, which
            trains four more times (with "choose" none); not for texts with several labels.
        time_limit: seconds after which "choose" tries no more.
        label_names: for each label, its name or a description, which counts as one more example.
            `fit` then needs no other examples: zero-shot classification.
        max_length: longer texts are truncated to this many tokens.
        batch_size: texts per batch of a prediction.
        seed: seed of the adaptation.

    Attributes:
        classes_: [C], the labels in sorted order; 0..C-1 for an indicator matrix.
        choice_: how the method and the weights were chosen (see `metajax adapt`). None if they were
            not.
        meta_results_: the results of `meta_fit` (see `metajax metatrain`): with validation, the
            `gain` on held-out tasks, its interval `gain_ci95`, and the `kept_step` (0: the weights
            of the model).
        calibration_: the `temperature` that divides the logits, and the `threshold` that 95% of
            held-out examples reach by their largest probability; both None if nothing can be held
            out. None without `calibrate`.

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
        >>> classifier = metajax.FewShotClassifier(folder, method="linear")
        >>> classifier = classifier.fit(["good film", "bad film"], ["+", "-"])
        >>> classifier.predict(["good book"]).tolist(), classifier.predict_proba(["bad"]).shape
        (['+'], (1, 2))
    """

    _start: tuple[str, FewShot] | None = None  # After `meta_fit`: its `model`, and the result.

    def __init__(
        self,
        model: str = "sentence-transformers/all-MiniLM-L6-v2",
        *,
        method: str = DEFAULT_METHOD,
        weights: str = MethodSettings.weights,
        label_names: Mapping[Any, str] | None = None,
        class_weight: str | None = None,
        calibrate: bool = False,
        time_limit: float = MethodSettings.time_limit,
        max_length: int = 128,
        batch_size: int = 64,
        seed: int = 0,
    ):
        self.model = model
        self.method = method
        self.weights = weights
        self.label_names = label_names
        self.class_weight = class_weight
        self.calibrate = calibrate
        self.time_limit = time_limit
        self.max_length = max_length
        self.batch_size = batch_size
        self.seed = seed

    def meta_fit(
        self,
        tasks: Tasks,
        *,
        algorithm: str = "protonet",
        steps: int = MetatrainSettings.steps,
        learning_rate: float = MetatrainSettings.learning_rate,
        workdir: str | os.PathLike[str] | None = None,
        **settings: Unpack[MetaFitSettings],
    ) -> Self:
        """Meta-train on other labelled data sets; `fit` then adapts the result.

        This is `metajax metatrain`: it validates on data sets or classes that it holds out, and
        keeps the weights of the model if no checkpoint is significantly better on them. A clone, or
        what `load` returns, is not meta-trained: to use the weights there, keep the `workdir` and
        give it as `model`.

        Args:
            tasks: `(texts, labels)` of each data set by its name, or a list of `(name, (texts,
                labels))`. Each text has one label.
            algorithm: see `metajax metatrain --algorithm`.
            steps: number of outer steps.
            learning_rate: peak learning rate of AdamW.
            workdir: directory of the run, which resumes if it exists. By default a temporary one.
            **settings: other settings of `metajax metatrain`, such as `ways` and `logit_scale`.

        Raises:
            InputError: the model, the data sets or the settings cannot be used.
            StoppedError: an interrupt has stopped it, or its loss is not finite.
        """
        from metajax.commands.metatrain import metatrain  # Slow to import, because of Orbax.

        with tempfile.TemporaryDirectory() as folder:
            own: dict[str, Any] = {
                "model": os.fspath(self.model),
                "tasks": write_tasks(Path(folder), tasks),
                "workdir": os.path.join(folder, "run") if workdir is None else os.fspath(workdir),
                **{"seed": int(self.seed), "max_length": int(self.max_length)},
                **{"algorithm": algorithm, "steps": steps, "learning_rate": learning_rate},
            }
            try:
                how = MetatrainSettings(**own, **settings)
                results = metatrain(how)
            except InputError as error:
                raise InputError(str(error).replace(folder + os.sep, "")) from None
            except StoppedError as error:
                if workdir is not None:
                    raise
                raise StoppedError(
                    "meta_fit: stopped, and of a temporary run nothing is kept; give a workdir, "
                    "where the same call resumes"
                ) from error
            where = ModelSettings(model=how.workdir, seed=how.seed, max_length=how.max_length)
            few_shot = open_few_shot(how.workdir, where, InnerSettings(), 2)
            self._start = own["model"], without_run(few_shot, own["model"])
        measured_on = results["measured_on"].replace(folder + os.sep, "")
        self.meta_results_ = results | {"measured_on": measured_on}
        return self

    def fit(self, X: Any = None, y: Any = None) -> Self:
        """Adapt to labelled texts.

        Args:
            X: N texts, or pairs of texts. None with `label_names`.
            y: N labels of any kind that NumPy can sort, with at least two classes. None likewise.
                For any number of labels per text: an indicator matrix [N, C] of 0 and 1 (an array
                or a table), or N lists, tuples or sets of labels.

        Raises:
            InputError: the model, the texts or the labels cannot be used.
        """
        how = self._check()
        task, kind, classes = read_examples(X, y, self.label_names or {})
        spec = os.fspath(self.model)
        settings = ModelSettings(model=spec, seed=int(self.seed), max_length=int(self.max_length))
        if self._start is None:
            few_shot = open_few_shot(spec, settings, InnerSettings(), len(classes))
        else:
            trained, start = self._start
            if trained != spec:
                raise InputError("model: has changed since meta_fit; call meta_fit again")
            model = start.model.replace(num_labels=(len(classes),))
            few_shot = start._replace(model=model, seed=settings.seed)
        if kind != "single":
            few_shot = with_several_labels(few_shot, how)
        few_shot, model, original = prepare_weights(few_shot, settings, how, task)
        (examples,) = tokenized([task], model, few_shot.text_length(self.max_length))
        chooses = few_shot.can_choose_rate
        own = self._start is None  # What `meta_fit` has trained stays for other calls.
        adapted = adapt_by(few_shot, examples, how, original=original, chooses=chooses, donate=own)
        params = few_shot.merge(adapted.params)
        self._classifier = Classifier(model, params, 0, self.max_length, task.pairs is not None)
        self.classes_, self._kind = classes, kind
        self.choice_, self.calibration_ = adapted.choice, adapted.calibration
        return self

    def _check(self) -> MethodSettings:
        if self.method not in METHODS:
            raise InputError(f"method is {self.method!r}; it has to be one of {', '.join(METHODS)}")
        if not isinstance(self.label_names or {}, Mapping):
            raise InputError(f"label_names is {self.label_names!r}; give a dict, or None")
        check_sizes(batch_size=self.batch_size, max_length=self.max_length)
        given = {name: getattr(self, name) for name in _HOW}
        return MethodSettings(method=self.method, **given)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class, [N, C] in the order of `classes_`.

        They sum to 1, unless a text can have several labels.

        Raises:
            InputError: the texts cannot be used.
        """
        check_is_fitted(self, "classes_")
        texts, pairs = read_texts(X)
        if not texts:
            return np.empty((0, len(self.classes_)))
        return probabilities(self._classifier, texts, pairs, self.batch_size)

    def predict(self, X: Any) -> Any:
        """Return the labels of each text, in the form of the labels in `fit`.

        Returns:
            The most probable class, [N]. If a text can have several labels, those with a
            probability above 0.5: an indicator matrix int64 [N, C], or a list of N tuples if `fit`
            got lists.

        Raises:
            InputError: the texts cannot be used.
        """
        shares = self.predict_proba(X)
        if self._kind == "single":
            return self.classes_[shares.argmax(1)]
        if self._kind == "indicator":
            return (shares > 0.5).astype(int)
        return [tuple(self.classes_[row > 0.5].tolist()) for row in shares]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the share of texts whose labels are all predicted, and no others.

        Args:
            X: N texts, or pairs of texts.
            y: N labels, in the form of the labels in `fit`.
            sample_weight: [N].

        Raises:
            InputError: the texts or the labels cannot be used.
        """
        check_is_fitted(self, "classes_")
        if self._kind != "lists":
            return float(super().score(X, y, sample_weight))
        predicted = self.predict(X)
        if read_labels(y).kind != "lists" or len(y) != len(predicted):
            raise InputError(f"score: give a list of labels for each of {len(predicted)} texts")
        right = [set(own) == set(found) for own, found in zip(y, predicted)]
        return float(np.average(right, weights=sample_weight))

    def save(self, directory: str | Path) -> None:
        """Write a Hugging Face directory, which `load` and `metajax predict` read."""
        check_is_fitted(self, "classes_")
        folder = Path(directory).expanduser()
        save_pretrained(folder, self._classifier.model, self._classifier.params)
        names = self.label_names or {}
        settings = {
            "settings": {
                "model": os.fspath(self.model),
                "method": self.method,
                **{name: getattr(self, name) for name in _HOW},
                **{name: int(getattr(self, name)) for name in _NUMBERS},
            },
            "label_names": [[plain(label), name] for label, name in names.items()],
            "classes": self.classes_.tolist(),
            "labels": self._kind,
            "choice": self.choice_,
            "calibration": self.calibration_,
            "pairs": self._classifier.pairs,
        }
        write_settings(folder, SAVED, settings)

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            InputError: the directory is not from `save`.
        """
        file = Path(directory).expanduser() / SAVED
        if not file.is_file():
            raise InputError(f"{directory}: has no {SAVED}; give a folder that `save` wrote")
        written = read_json(file)
        names = dict(written["label_names"]) or None
        loaded = cls(**written["settings"] | {"label_names": names})
        loaded._classifier = open_classifier(str(file.parent), None)
        loaded.classes_, loaded._kind = np.array(written["classes"]), written["labels"]
        calibration = written.get("calibration")
        loaded.choice_ = written.get("choice")
        loaded.calibration_ = None if calibration is None else Calibration(*calibration)
        return loaded
