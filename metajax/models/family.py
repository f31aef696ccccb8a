"""What a family of models is: how its settings, tensors and layers differ from BERT's.

`*` in the name of a tensor stands for the number of a layer.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Family(NamedTuple):
    """How a model type of transformers differs from BERT.

    Attributes:
        classes: prefix of its class names in transformers.
        prefix: of the encoder's tensors in a model with a head.
        settings: names of settings in config.json, from BERT's names to the family's.
        fixed: settings that have only one value in the family.
        defaults: of settings, if they differ from BERT's, by the family's names.
        derived: settings that, if null, are a multiple of another, by the family's names.
        demanded: the only supported values of settings that change the network, by the family's
            names.
        tensors: names of tensors (without `.weight` or `.bias`, unless they differ), from BERT's to
            the family's. If several in a block have the same name there, that tensor is split along
            the axis of its outputs; elsewhere, it is each of them.
        aliases: other names that tensors have in files, from the family's to BERT's.
        transposed: whether the kernels of the layers are `[in, out]`, like those of metajax.
        classifier: like `tensors`, for a model with a classification head.
        classifier_bias: whether that head has a bias.
        pooler: whether the encoder alone has a pooler.
        pooler_act: the activation of the pooler, or of the layer that replaces it in a classifier.
        lm_act: the activation of the masked-LM head; None is the encoder's.
        masked_lm: whether the family has a masked-LM head.
        positions_after_padding: whether the first token's position is `pad_token_id` + 1.
        decoder: whether attention is causal, norms come before their layers (and not after
            the embeddings), and classifiers read the last token without a pooler.
        causal_lm: the ending of the class with a causal-LM head; None: there is no such class.
        block: whose blocks: "bert", "mpnet", "deberta", "gpt2", "llama" or "modernbert".
        numbered: whether blocks differ by their number.
        position_table: whether the embeddings have a table of positions.
        final_norm: whether there is a norm after the last block.
        first_norm: whether the first block normalizes what its attention reads.
        rotary: whether positions are rotations.
        query_key_norm: whether Llama's blocks normalize queries and keys.
        one_block: whether all blocks share their parameters.
        projects_embeddings: whether a dense layer projects the embeddings, however wide they are.
        relative: whether all blocks share parameters about relative positions.
        output_bias: whether `attention_bias` is also about the output layer of attention.
    """

    classes: str
    prefix: str
    settings: Mapping[str, str] = {}
    fixed: Mapping[str, Any] = {}
    defaults: Mapping[str, Any] = {}
    derived: Mapping[str, tuple[int, str]] = {}
    demanded: Mapping[str, Any] = {}
    tensors: Mapping[str, str] = {}
    aliases: Mapping[str, str] = {}
    transposed: bool = False
    classifier: Mapping[str, str] = {}
    classifier_bias: bool = True
    pooler: bool = True
    pooler_act: str = "tanh"
    lm_act: str | None = None
    masked_lm: bool = True
    positions_after_padding: bool = False
    decoder: bool = False
    causal_lm: str | None = None
    block: str = "bert"
    numbered: bool = False
    position_table: bool = True
    final_norm: bool = False
    first_norm: bool = True
    rotary: bool = False
    query_key_norm: bool = False
    one_block: bool = False
    projects_embeddings: bool = False
    relative: bool = False
    output_bias: bool = True
