"""The guide's way to a model: blocks, stacks and racks by keywords, and helpers that make whole racks of plain values.

A block, a stack of such blocks, a rack of such stacks:

>>> import torch
>>> blocks = [
...     Block(d_model=32, d_ff=64, n_heads=4, n_kv_heads=2, attention_type="gqa", attention_mode="bidirectional")
...     for _ in range(2)
... ]
>>> rack = Rack(stacks=[Stack(blocks, stack_id=0)], vocab_size=100, d_model=32, tie_embeddings=True)
>>> rack(torch.randint(0, 100, (2, 8))).shape
torch.Size([2, 8, 100])

A simple architecture, 2 stacks of 4 blocks each:

>>> rack = create_simple_rack(n_stacks=2, blocks_per_stack=4, d_model=512, d_ff=2048, n_heads=8, vocab_size=10000)
>>> len(rack.stacks), sum(len(stack.blocks) for stack in rack.stacks)
(2, 8)

Different blocks in different stacks; what is not said of a block is derived from its d_model:

>>> encoder_spec = create_block_spec(d_model=256, attention_mode="bidirectional")
>>> decoder_spec = create_block_spec(d_model=256, attention_mode="causal")
>>> stack_specs = [
...     {"stack_id": 0, "n_blocks": 3, "block_spec": encoder_spec},
...     {"stack_id": 1, "n_blocks": 3, "block_spec": decoder_spec},
... ]
>>> rack = create_rack_from_specs(5000, 256, stack_specs)
>>> [stack.blocks[0].mixer.causal for stack in rack.stacks]
[False, True]

Models of several sizes:

>>> sizes = {"d_model": 32, "d_ff": 64, "n_heads": 2, "vocab_size": 100}
>>> small = create_simple_rack(n_stacks=1, blocks_per_stack=2, **sizes)
>>> medium = create_simple_rack(n_stacks=2, blocks_per_stack=3, **sizes)
>>> large = create_simple_rack(n_stacks=3, blocks_per_stack=4, **sizes)
>>> [len(rack.blocks()) for rack in (small, medium, large)]
[2, 6, 12]

The same blocks grouped for training layer by layer, in groups, or all together:

>>> layerwise = create_simple_rack(n_stacks=8, blocks_per_stack=1, **sizes)
>>> blockwise = create_simple_rack(n_stacks=2, blocks_per_stack=4, **sizes)
>>> stackwise = create_simple_rack(n_stacks=1, blocks_per_stack=8, **sizes)
>>> len({rack.get_parameter_count() for rack in (layerwise, blockwise, stackwise)})
1

Ready for training: shared keys and values, dropout, up projections that stay as they start:

>>> block_spec = create_block_spec(
...     d_model=512, d_ff=2048, n_heads=8, attention_type="gqa", attention_mode="bidirectional", dropout=0.1, freeze_up_proj=True
... )
>>> stack_specs = [
...     {"stack_id": 0, "n_blocks": 4, "block_spec": block_spec, "freeze_blocks": False},
...     {"stack_id": 1, "n_blocks": 4, "block_spec": block_spec, "freeze_blocks": False},
... ]
>>> rack = create_rack_from_specs(10000, 512, stack_specs)
>>> [name for name, parameter in rack.stacks[1].named_parameters() if not parameter.requires_grad]
['blocks.0.mlp.up.weight', 'blocks.1.mlp.up.weight', 'blocks.2.mlp.up.weight', 'blocks.3.mlp.up.weight']

From a configuration, and what it came to:

>>> from configs import StackWiseConfig
>>> config = StackWiseConfig()
>>> config.model.vocab_size, config.model.d_model, config.model.d_ff, config.model.n_heads = 500, 64, 128, 4
>>> rack = create_rack_from_config(config.to_dict())
>>> logits = rack(torch.randint(0, 500, (2, 16)))
>>> print(f"Parameters: {rack.get_parameter_count():,}")
Parameters: 361,856
>>> print(f"Stacks: {len(rack.stacks)}")
Stacks: 2
>>> print(f"Total blocks: {sum(len(stack.blocks) for stack in rack.stacks)}")
Total blocks: 8
>>> stack = create_stack_from_config(stack_id=0, n_blocks=4, config=config)
>>> len(stack.blocks)
4
"""

from models.architecture.helpers import (
    create_block_spec,
    create_rack_from_config,
    create_rack_from_specs,
    create_simple_rack,
    create_stack_from_config,
    create_stack_from_spec,
)
from models.architecture.modules import Block, Rack, Stack

__all__ = [
    "Block",
    "Rack",
    "Stack",
    "create_block_spec",
    "create_rack_from_config",
    "create_rack_from_specs",
    "create_simple_rack",
    "create_stack_from_config",
    "create_stack_from_spec",
]
