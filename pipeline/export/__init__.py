"""The exported form of a trained model: plain transformers classes and the conversion to them.

Importing this package registers the classes, so that ``AutoModelForMaskedLM.from_pretrained(DIR)``
loads an export without ``trust_remote_code``. It also makes ``save_pretrained`` copy the two source
files beside the weights, so that what was loaded or fine-tuned here still loads elsewhere.
"""

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from pipeline.export.configuration_narrowbert import NarrowBertConfig
from pipeline.export.modeling_narrowbert import NarrowBertForMaskedLM, NarrowBertModel

__all__ = ["NarrowBertConfig", "NarrowBertForMaskedLM", "NarrowBertModel"]

AutoConfig.register(NarrowBertConfig.model_type, NarrowBertConfig)
AutoModel.register(NarrowBertConfig, NarrowBertModel)
AutoModelForMaskedLM.register(NarrowBertConfig, NarrowBertForMaskedLM)

NarrowBertConfig.register_for_auto_class("AutoConfig")
NarrowBertModel.register_for_auto_class("AutoModel")
NarrowBertForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
