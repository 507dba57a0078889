"""Adapters of a placement that is distilled: on the linears that would train, which then stay as they are."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from configs import ConfigError
from models import RackSpec
from models.assembly.assemble import without_memory
from models.spec.parameters import LoraSpec


def with_lora(rack: RackSpec, lora: LoraSpec, globs: Sequence[str]) -> tuple[RackSpec, list[str]]:
    """The rack with adapters on the linears whose weights the globs name, and globs of those adapters alone.

    A linear whose weight is also the embedding's gets none.

    Raises:
        ConfigError: if no linear is named.
    """
    built = without_memory(rack)
    parameters = dict(built.named_parameters())
    linears = [
        name
        for name, module in built.named_modules()
        if isinstance(module, nn.Linear)
        and f"{name}.weight" in parameters
        and any(fnmatchcase(f"{name}.weight", glob) for glob in globs)
        and lora.at(name).apply
    ]
    if not linears:
        named = ", ".join(globs)
        raise ConfigError(f"distil.lora: none of the linears that are its targets is named by distil.trains ({named})")
    tree, said = rack.to_dict(), lora.model_copy(update={"targets": ("*",)}).to_dict()
    for name in linears:
        tree["parameters"][name] = {**tree["parameters"].get(name, {}), "lora": said}
    return RackSpec.model_validate(tree), [f"{name}.adapters.lora.*" for name in linears]
