"""The exported form of a trained model: plain transformers classes and the conversion to them.

Importing this package registers the classes, so that ``AutoModelForMaskedLM.from_pretrained(DIR)`` and the
others load an export without ``trust_remote_code``. It also makes ``save_pretrained`` copy the two source
files beside the weights, so that what was loaded or fine-tuned here still loads elsewhere.
"""

import transformers
from transformers import AutoConfig

from pipeline.export.configuration_narrowbert import NarrowBertConfig
from pipeline.export.modeling_narrowbert import (
    NarrowBertForMaskedLM,
    NarrowBertForQuestionAnswering,
    NarrowBertForSequenceClassification,
    NarrowBertForTokenClassification,
    NarrowBertModel,
)

__all__ = [
    "AUTO_CLASSES",
    "NarrowBertConfig",
    "NarrowBertForMaskedLM",
    "NarrowBertForQuestionAnswering",
    "NarrowBertForSequenceClassification",
    "NarrowBertForTokenClassification",
    "NarrowBertModel",
]

AUTO_CLASSES = {
    "AutoModel": NarrowBertModel,
    "AutoModelForMaskedLM": NarrowBertForMaskedLM,
    "AutoModelForQuestionAnswering": NarrowBertForQuestionAnswering,
    "AutoModelForSequenceClassification": NarrowBertForSequenceClassification,
    "AutoModelForTokenClassification": NarrowBertForTokenClassification,
}
"""The class of transformers that loads each of ours."""

AutoConfig.register(NarrowBertConfig.model_type, NarrowBertConfig)
NarrowBertConfig.register_for_auto_class("AutoConfig")
for _name, _class in AUTO_CLASSES.items():
    getattr(transformers, _name).register(NarrowBertConfig, _class)
    _class.register_for_auto_class(_name)
