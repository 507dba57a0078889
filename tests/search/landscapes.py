"""Spaces to search, and scores made of numbers, so that a search takes milliseconds and the best placement is known."""

import itertools

import numpy as np

from models import RackSpec
from search.budget.coding import Coding
from search.samplers.shared.sampler import generator

MIXERS = {
    "attention": {"kind": "attention", "n_heads": 2},
    "window": {"kind": "attention", "n_heads": 2, "window": 32},
    "gdn": {"kind": "gated_delta_net", "n_heads": 2},
    "linear": {"kind": "linear_attention", "n_heads": 2},
}
CHOICE_OF_WIDTHS = {
    "kind": "stochastic",
    "main": "wide",
    "mixers": {"wide": {"kind": "swiglu", "d_ff": 32}, "narrow": {"kind": "swiglu", "d_ff": 8}, "none": None},
}


def stack(n_layers, names, mlp=None):
    """Searchable layers; the first name is the main one."""
    mixer = {"kind": "stochastic", "main": names[0], "mixers": {name: MIXERS[name] for name in names}}
    return {"n_blocks": n_layers, "block": {"mixer": mixer, "mlp": mlp or {"kind": "swiglu", "d_ff": 16}}}


def space(n_layers=6, names=("attention", "linear"), mlp=None):
    """A space of one stack."""
    return RackSpec(d_model=16, vocab_size=32, stacks=[stack(n_layers, names, mlp)])


def mixed_space():
    """Fixed layers, slots that offer different names, and channel mixers that are a choice."""
    fixed = {"n_blocks": 1, "block": {"mixer": MIXERS["attention"], "mlp": {"kind": "mlp", "d_ff": 16}}}
    stacks = [stack(3, ("attention", "linear"), CHOICE_OF_WIDTHS), fixed, stack(2, ("attention", "window", "gdn"))]
    return RackSpec(d_model=16, vocab_size=32, stacks=stacks)


def everything(slots):
    """All placements."""
    return list(itertools.product(*(slot.names for slot in slots)))


class Landscape:
    """An evaluator: a random number a slot and name, and one a pair of names up to `reach` slots apart."""

    def __init__(self, slots, seed=0, interaction=0.0, reach=3):
        random = generator("landscape", seed)
        self.coding = Coding(slots)
        n_slots, n_names = self.coding.offered.shape
        self.single = random.normal(size=(n_slots, n_names))
        self.pairs = random.normal(size=(reach, n_slots, n_names, n_names)) * interaction
        self.asked = []

    def __call__(self, placements):
        self.asked += placements
        return self.scores(self.coding.encode(placements)).tolist()

    def scores(self, codes):
        """Scores of codes [n, n_slots]."""
        each = np.arange(codes.shape[1])
        total = self.single[each, codes].sum(1)
        for distance, pairs in enumerate(self.pairs, start=1):
            total = total + pairs[each[distance:], codes[:, :-distance], codes[:, distance:]].sum(1)
        return total

    def best(self, budget):
        """The highest score within a budget, by looking at every placement."""
        numbers = [np.flatnonzero(offered) for offered in self.coding.offered]
        codes = np.array(np.meshgrid(*numbers)).reshape(len(numbers), -1).T
        return self.scores(codes[budget.admits_all(codes)]).max()
