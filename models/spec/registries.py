"""The registries a rack is put together from."""

from configs import Registry
from models.spec.parameters import ModelPart

# What must agree over a whole rack is given by the rack and never written in a part.
MIXERS = Registry("models.mixers", "mixer", ("d_model", "max_length"), named_parts="mixers", base=ModelPart)
CHANNEL_MIXERS = Registry(
    "models.channel_mixers", "channel mixer", ("d_model", "max_length"), named_parts="mixers", base=ModelPart
)
NORMS = Registry("models.parts.norms", "norm", ("d_model",), base=ModelPart)
EMBEDDINGS = Registry(
    "models.parts.embeddings", "embedding", ("d_model", "vocab_size", "max_length", "residual_dtype"), base=ModelPart
)
HEADS = Registry("models.parts.heads", "head", ("d_model", "vocab_size", "max_length", "make_norm"), base=ModelPart)


PARTS = {
    "mixer_norm": NORMS,
    "mixer": MIXERS,
    "mixer_post_norm": NORMS,
    "mlp_norm": NORMS,
    "mlp": CHANNEL_MIXERS,
    "mlp_post_norm": NORMS,
}
"""The parts of a block in the order of the data flow, and the registries that they are of."""
