"""The registries a rack is put together from."""

from configs import Registry
from models.parameters import ModelPart

# What must agree over a whole rack is given by the rack and never written in a part.
MIXERS = Registry("models.mixers", "mixer", ("d_model", "max_length"), named_parts="mixers", base=ModelPart)
CHANNEL_MIXERS = Registry(
    "models.channel_mixers", "channel mixer", ("d_model", "max_length"), named_parts="mixers", base=ModelPart
)
NORMS = Registry("models.norms", "norm", ("d_model",), base=ModelPart)
EMBEDDINGS = Registry("models.embeddings", "embedding", ("d_model", "vocab_size", "max_length", "residual_dtype"), base=ModelPart)
HEADS = Registry("models.heads", "head", ("d_model", "vocab_size", "max_length", "make_norm"), base=ModelPart)
