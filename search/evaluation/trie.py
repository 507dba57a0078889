"""The walk of placements through the blocks of a supernet: what they share runs once, what is alike in one call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from models import Placement, Supernet
from models.rack.choice import Choice
from models.spec.placement import check_placement

Key = tuple[str, ...]
LeafStates = list[tuple[Placement, Tensor]]


@dataclass
class _Frame:
    """Nodes of one level whose hidden states are held, and those of their children that are still to be computed."""

    level: int
    states: list[Tensor]
    todo: list[tuple[int, tuple[int, int]]]
    """Children, in order: the index of the parent, and the leaves first to last that lie below the child."""


class PlacementTrie:
    """The trie of some placements over the blocks of a supernet.

    A node is a prefix of placements; its key is what its block's slots hold. Nodes of a level that have the same key differ in
    their input alone, so they are computed in one call, concatenated along the batch. `n_nodes` is the number of block
    evaluations that a walk takes, `n_alone` what one pass a placement takes. `peak` is the number of hidden states that the walk
    level by level holds at most; `least` what the walk depth first, node by node, does with.

    Raises:
        ConfigError: for a placement that does not fit the slots.
    """

    def __init__(self, supernet: Supernet, placements: Sequence[Placement]) -> None:
        self._blocks = supernet.rack.blocks()
        self._choices: list[list[Choice]] = [[] for _ in self._blocks]
        places: list[list[int]] = [[] for _ in self._blocks]
        for index, (slot, choice) in enumerate(zip(supernet.slots, supernet.choices, strict=True)):
            self._choices[slot.layer].append(choice)
            places[slot.layer].append(index)
        self.placements = sorted({check_placement(placement, supernet.slots) for placement in placements})
        self._keys = [[tuple(placement[index] for index in own) for own in places] for placement in self.placements]
        self._measure()

    def _measure(self) -> None:
        nodes = [(0, len(self.placements))]
        self.n_alone = len(self.placements) * len(self._blocks)
        self.n_nodes, self.peak = 0, 1
        branches = []
        for level in range(len(self._blocks)):
            children = self._children(level, nodes)
            self.n_nodes += len(children)
            self.peak = max(self.peak, len(nodes) + len(children))
            branches.append(len(children) > len(nodes))
            nodes = [child for _, child in children]
        # One state for the child of a node, and one that waits at every level where a node has several children.
        self._reserves = [1 + sum(branches[level:]) for level in range(len(branches))] + [0, 0]
        self.least = 1 + self._reserves[0]

    def keys(self) -> list[list[Key]]:
        """The distinct keys of each block."""
        return [list(dict.fromkeys(keys[level] for keys in self._keys)) for level in range(len(self._blocks))]

    def run(self, state: Tensor, take: Callable[[LeafStates], None], *, n_states: int, n_at_once: int) -> None:
        """Take a batch's embeddings [rows, time, d_model] through all blocks.

        Level by level as long as that fits; where it does not, the children that fit go first, down to the leaves.

        Args:
            state: what the first block gets; the caller must not keep it, or it counts twice.
            take: is given placements with what their last block put out, some at a time, each placement once.
            n_states: how many hidden states may be held at once, at least `least`.
            n_at_once: the most nodes of one call.
        """
        nodes = [(0, len(self.placements))]
        stack, n_held = [_Frame(0, [state], self._children(0, nodes))], 1
        del state
        while stack:
            level = stack[-1].level
            size = self._chunk(stack[-1], n_states - n_held)
            chunk, stack[-1].todo = stack[-1].todo[:size], stack[-1].todo[size:]
            states = self._advance(stack[-1], chunk, n_at_once)
            n_held += size
            if not stack[-1].todo:
                n_held -= len(stack.pop().states)
            nodes = [node for _, node in chunk]
            if level + 1 < len(self._blocks):
                stack.append(_Frame(level + 1, states, self._children(level + 1, nodes)))
                del states
            else:
                take([(self.placements[first], last) for (first, _), last in zip(nodes, states, strict=True)])
                del states
                n_held -= size

    def activate(self, level: int, key: Key) -> None:
        """Make one block's choices those of a key."""
        for choice, name in zip(self._choices[level], key, strict=True):
            choice.active = name

    def block(self, level: int) -> Callable[[Tensor], Tensor]:
        """A block, which runs what was activated last."""
        return self._blocks[level]

    def _children(self, level: int, nodes: Sequence[tuple[int, int]]) -> list[tuple[int, tuple[int, int]]]:
        children = []
        for index, (start, end) in enumerate(nodes):
            for _, group in groupby(range(start, end), key=lambda leaf: self._keys[leaf][level]):
                leaves = list(group)
                children.append((index, (leaves[0], leaves[-1] + 1)))
        return children

    def _alike(self, level: int, children: Sequence[tuple[int, tuple[int, int]]]) -> dict[Key, list[int]]:
        """Positions among the children, by key."""
        alike: dict[Key, list[int]] = {}
        for position, (_, (first, _)) in enumerate(children):
            alike.setdefault(self._keys[first][level], []).append(position)
        return alike

    def _chunk(self, frame: _Frame, n_free: int) -> int:
        """How many of a frame's children can go next, so that all below them can still be computed."""
        below, after = self._reserves[frame.level + 1 : frame.level + 3]
        reserve = max(below, 1 + after) if below else 0  # several nodes may have to wait while one of their children goes on
        n_children = len(frame.todo)
        if n_children <= n_free and n_free - n_children + len(frame.states) >= (below if n_children == 1 else reserve):
            return n_children
        return max(1, min(n_children - 1, n_free - reserve))

    def _advance(self, frame: _Frame, chunk: Sequence[tuple[int, tuple[int, int]]], n_at_once: int) -> list[Tensor]:
        """The states of the children; those of one call are views of one tensor, which go when all have gone."""
        states: dict[int, Tensor] = {}
        for key, positions in self._alike(frame.level, chunk).items():
            self.activate(frame.level, key)
            for start in range(0, len(positions), n_at_once):
                call = positions[start : start + n_at_once]
                parents = [frame.states[chunk[position][0]] for position in call]
                n_rows = len(parents[0])
                together = self.block(frame.level)(parents[0] if len(parents) == 1 else torch.cat(parents))
                states |= zip(call, together.split(n_rows), strict=True)
        return [states[position] for position in range(len(chunk))]
