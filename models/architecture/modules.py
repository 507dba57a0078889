"""The guide's Block, Stack and Rack: built by keywords, the same modules and specs underneath."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from configs.load import validate
from models.architecture.block_options import block_of, validated
from models.assembly.assemble import without_memory
from models.assembly.initialise import freeze
from models.assembly.parameter_settings import ParameterSettings
from models.assembly.quantise import memory_bytes, stored_numbers
from models.rack import modules as base
from models.rack_spec import RackSpec
from models.spec.backbone import stack_uids
from models.spec.block import BlockSpec
from models.spec.stack import StackSpec

NORM = "layernorm"
"""Of the head, where nothing is said."""


class Block(base.Block):
    """A block of attention and SwiGLU, `x + f(norm(x))` twice; options are those of `BlockOptions`.

    Without a seed its weights are drawn from torch's own generator, as those of any module.
    """

    spec: BlockSpec
    d_model: int

    def __init__(self, *, d_model: int, seed: int | None = None, **options: Any) -> None:
        spec = block_of(validated({"d_model": d_model, **options}, "Block"))
        built = alone(StackSpec(blocks=(spec,)), d_model, "Block").build(_seed(seed)).blocks()[0]
        mixer_norm, mlp_norm = built.mixer_norm, built.mlp_norm
        super().__init__(built.mixer, built.mlp, mixer_norm=mixer_norm, mlp_norm=mlp_norm, dropout=spec.dropout)
        self.spec, self.d_model = spec, d_model

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[batch, time, d_model] -> [batch, time, d_model]; `mask` [batch, time] is 0 or false at pads."""
        return super().forward(x, _kept(mask, x))


class Stack(base.Stack):
    """Blocks in a row. `stack_id` is its number in the rack; with `freeze_blocks` nothing in it trains until `unfreeze`.

    `trainable` is its spec where it is not frozen, `around` a rack that says of it what its own rack does.
    """

    spec: StackSpec
    trainable: StackSpec
    around: RackSpec
    d_model: int
    stack_id: int

    def __init__(self, blocks: Iterable[Block], stack_id: int = 0, *, freeze_blocks: bool = False) -> None:
        super().__init__(blocks, uid=stack_id)
        made = [block for block in self.blocks if isinstance(block, Block)]
        if not made or len(made) < len(self.blocks):
            raise ValueError("a stack is made of one or more blocks, each a models.architecture.Block, which knows its spec")
        widths = sorted({block.d_model for block in made})
        if len(widths) > 1:
            raise ValueError(f"the blocks of a stack have one d_model; these have {', '.join(map(str, widths))}")
        _check_apart([self])
        tree = {"blocks": [block.spec.to_dict() for block in made], "uid": stack_id}
        self.spec = self.trainable = validate(StackSpec, tree, "Stack")
        self.d_model, self.stack_id = widths[0], stack_id
        self.around = alone(self.spec, self.d_model, "Stack")
        if freeze_blocks:
            self.freeze()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[batch, time, d_model] -> [batch, time, d_model]; `mask` [batch, time] is 0 or false at pads."""
        return super().forward(x, _kept(mask, x))

    def freeze(self) -> None:
        """Let nothing in it train."""
        set_trainable(self, is_trainable=False)

    def unfreeze(self) -> None:
        """Let train what its spec means to train: what is frozen by design (`freeze_up_proj`) stays so."""
        set_trainable(self, is_trainable=True)

    def memory_bytes(self) -> int:
        """What its weights take, measured."""
        return memory_bytes(self)


class Rack(base.Rack):
    """A whole model of stacks, with an embedding and a head of its own; `spec.build()` makes one like it anew."""

    _spec: RackSpec

    def __init__(
        self,
        *,
        stacks: Sequence[Stack],
        vocab_size: int,
        d_model: int,
        tie_embeddings: bool = True,
        max_seq_len: int | None = None,
        seed: int | None = None,
    ) -> None:
        for stack in stacks:
            if stack.d_model != d_model:
                raise ValueError(f"stack {stack.stack_id} has d_model = {stack.d_model}, but the rack has d_model = {d_model}")
        ends = {"vocab_size": vocab_size, "d_model": d_model, "tie_embeddings": tie_embeddings, "norm": NORM}
        ends["max_length"] = max_seq_len
        spec = validate(RackSpec, {**ends, "stacks": [stack.spec.to_dict() for stack in stacks]}, "Rack")
        _check_apart(stacks)
        shell = validate(RackSpec, {**ends, "stacks": [{"blocks": [{}]}]}, "Rack").build(_seed(seed))
        super().__init__(shell.embedding, stacks, shell.head, tie_embeddings=tie_embeddings)
        self._spec = spec

    @classmethod
    def of(cls, rack: base.Rack, spec: RackSpec) -> Rack:
        """A rack that a spec has built, as one of these: the same modules, to which their specs and methods are given.

        Their classes change in place: a builder's stacks have to stay the same objects while a trainer grows and trains the rack.
        """
        for module, stack_spec in zip(rack.stacks, spec.stacks, strict=True):
            for block, block_spec in zip(module.blocks, stack_spec.expanded(), strict=True):  # type: ignore[arg-type]
                block.__class__ = Block
                block.spec, block.d_model = block_spec, spec.d_model
            module.__class__ = Stack
            module.spec = module.trainable = stack_spec  # type: ignore[assignment]
            module.d_model, module.stack_id, module.around = spec.d_model, module.uid, spec  # type: ignore[assignment]
        rack.__class__ = cls
        assert isinstance(rack, cls)  # for the type checker
        rack._spec = spec  # noqa: SLF001 - one of these now
        return rack

    @property
    def spec(self) -> RackSpec:
        """What it is, with what has been frozen since."""
        return self._spec.model_copy(update={"stacks": tuple(stack.spec for stack in self.stacks)})

    def forward(self, tokens: Tensor | None, mask: Tensor | None = None, **given: Any) -> Tensor:
        """Tokens [batch, time] -> logits [batch, time, vocab_size]; `mask` [batch, time] is 0 or false at pads.

        Raises:
            ValueError: for more positions than `max_seq_len`, and as in `models.rack.modules.Rack`.
        """
        hidden = given.get("hidden")
        x, limit = tokens if hidden is None else hidden, self._spec.max_length
        if x is not None and limit is not None and x.shape[1] > limit:
            raise ValueError(f"the input has {x.shape[1]} positions, but the rack has max_seq_len = {limit}")
        return (
            super().forward(tokens, **given) if mask is None else super().forward(tokens, attention_mask=_kept(mask, x), **given)
        )

    def get_parameter_count(self, *, trainable_only: bool = False) -> int:
        """All parameters, each once, those that are stored in few bits too; or those that train."""
        parameters = sum(each.numel() for each in self.parameters() if each.requires_grad or not trainable_only)
        return parameters + (0 if trainable_only else stored_numbers(self))


def set_trainable(stack: Stack, *, is_trainable: bool) -> None:
    """Freeze a stack, or let train what its spec and its rack's mean to train: the one place where either is done.

    Raises:
        ValueError: for a stack that shares a block with another one, which would be frozen with it.
    """
    place = stack_uids(stack.around).index(stack.uid)
    names = [{block.share for block in each.expanded() if block.share is not None} for each in stack.around.stacks]
    for other in range(len(names)):
        if shared := names[place] & names[other] if other != place else None:
            text = f"shares '{min(shared)}' with the stack at place {other}: either can only train, or not, with the other"
            raise ValueError(f"the stack at place {place} {text}")
    spec = stack.trainable if is_trainable else stack.trainable.model_copy(update={"lr_scale": 0.0})
    named = without_memory(stack.around)
    stacks = [stack if index == place else each for index, each in enumerate(named.stacks)]
    specs = [spec if index == place else each for index, each in enumerate(stack.around.stacks)]
    shell = base.Rack(named.embedding, stacks, named.head, time_embedding=named.time_embedding)  # type: ignore[arg-type]
    freeze(ParameterSettings(shell, stack.around.model_copy(update={"stacks": tuple(specs)}), below=f"stacks.{place}"))
    stack.spec = spec


def alone(stack: StackSpec, d_model: int, source: str) -> RackSpec:
    """The smallest rack that has this stack; ConfigError, which names the source, if there can be none."""
    return validate(RackSpec, {"vocab_size": 1, "d_model": d_model, "norm": NORM, "stacks": [stack.to_dict()]}, source)


def _check_apart(stacks: Sequence[Stack]) -> None:
    """ValueError where a block stands at two places: what is built or saved by the specs would have two."""
    blocks = [block for stack in stacks for block in stack.blocks]
    if len(set(map(id, blocks))) < len(blocks):
        raise ValueError("a block stands at two places: make one for each")


def _seed(seed: int | None) -> int:
    return int(torch.randint(2**31, ())) if seed is None else seed


def _kept(mask: Tensor | None, x: Tensor | None) -> Tensor | None:
    """The mask as the mixers take it: [batch, time] bool."""
    if mask is not None and (x is None or mask.shape != x.shape[:2]):
        shape = None if x is None else list(x.shape[:2])
        raise ValueError(f"mask must be [batch, time] = {shape}, with 0 or false at pads; got the shape {list(mask.shape)}")
    return None if mask is None else mask.bool()
