"""State tracking: the product, so far, of the elements of a finite group."""

from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import Literal, get_args

import numpy as np

from tasks.checks import check_integers, check_split
from tasks.task import Examples, Split, Task

Group = Literal["A5", "S5", "Z60"]


@dataclass(frozen=True, kw_only=True)
class StateTracking(Task):
    """The word problem of a group: random elements, at each of which the product of all up to here is asked.

    Merrill et al. 2024, arXiv 2404.08819; Liu et al. 2023, arXiv 2210.10749. `S5` are the permutations of five things, `A5` the
    even ones, which no circuit of constant depth multiplies unless TC0 = NC1; `Z60` are the numbers modulo 60, as
    many as A5 has elements, which such circuits do add.

    Tokens: the elements, in the lexicographic order of the permutations, the identity first; `vocab_size` may leave some unused.
    """

    vocab_size: int = 60
    seq_len: int = 32
    group: Group = "A5"

    def __post_init__(self) -> None:
        if self.group not in get_args(Group):
            raise ValueError(f"group must be one of {', '.join(get_args(Group))}; got {self.group!r}")
        check_integers(minimum=1, vocab_size=self.vocab_size, seq_len=self.seq_len)
        n_elements = len(multiplication_table(self.group))
        if self.vocab_size < n_elements:
            raise ValueError(f"vocab_size must be at least {n_elements}, the elements of {self.group}; got {self.vocab_size}")

    @property
    def input_length(self) -> int:
        """All of `seq_len`."""
        return self.seq_len

    def sample(self, rng: np.random.Generator, n_examples: int, split: Split = "train") -> Examples:
        """As the contract says; all splits alike."""
        check_split(split)
        table = multiplication_table(self.group)
        inputs = rng.integers(len(table), size=(n_examples, self.seq_len))
        targets = inputs.copy()
        for place in range(1, self.seq_len):
            targets[:, place] = table[targets[:, place - 1], inputs[:, place]]
        return Examples(inputs=inputs, targets=targets)


@cache
def multiplication_table(group: Group) -> np.ndarray:
    """[n, n]: the element that does what the row's does, and then what the column's does."""
    if group == "Z60":
        return np.add.outer(np.arange(60), np.arange(60)) % 60
    elements = np.array([element for element in permutations(range(5)) if group == "S5" or _is_even(element)])
    # [row, column, i] = column[row[i]]; the five places as digits, in lexicographic order, tell which element that is.
    codes = elements @ 5 ** np.arange(4, -1, -1)
    products = elements[np.arange(len(elements))[None, :, None], elements[:, None, :]]
    return np.searchsorted(codes, products @ 5 ** np.arange(4, -1, -1))


def _is_even(element: tuple[int, ...]) -> bool:
    return sum(element[i] > element[j] for j in range(5) for i in range(j)) % 2 == 0
