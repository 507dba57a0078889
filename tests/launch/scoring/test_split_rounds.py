"""Shards of a round: the same placements, prefixes kept together, work shared out evenly."""

from itertools import chain, combinations, pairwise, product

import numpy as np
import pytest
import torch

from launch.scoring.shared_tensors import to_arrays, to_tensors
from launch.scoring.split_rounds import split

ALL = list(product("abc", repeat=4))


def nodes(part):
    return len({placement[:length] for placement in part for length in range(1, 5)})


def random_round(seed, n):
    generator = np.random.default_rng(seed)
    return [ALL[index] for index in generator.permutation(len(ALL))[:n]]


@pytest.mark.parametrize("n_workers", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("n_placements", [1, 2, 9, 40, len(ALL)])
def test_shards_are_runs_of_the_sorted_round(n_placements, n_workers):
    placements = random_round(0, n_placements)
    shards = split(placements, n_workers)
    assert list(chain(*shards)) == sorted(placements)
    assert 1 <= len(shards) <= min(n_workers, n_placements)
    assert all(shards)


@pytest.mark.parametrize("seed", range(5))
def test_no_other_cut_gives_the_busiest_worker_fewer_trie_nodes(seed):
    placements = sorted(random_round(seed, 12))
    cuts = [(0, *inner, 12) for inner in combinations(range(1, 12), 2)]
    best = min(max(nodes(placements[start:end]) for start, end in pairwise(cut)) for cut in cuts)
    assert max(map(nodes, split(placements, 3))) == best


def test_a_round_of_nothing_has_no_shards():
    assert split([], 2) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_tensors_come_back_over_read_only_arrays_without_a_copy_or_a_warning(dtype):
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    arrays = to_arrays({"weight": tensor, "scalar": tensor[1, 1], "columns": tensor.T})
    for array, _ in arrays.values():
        array.flags.writeable = False
    found = to_tensors(arrays)
    assert torch.equal(found["weight"], tensor)
    assert torch.equal(found["scalar"], tensor[1, 1])
    assert torch.equal(found["columns"], tensor.T)
    assert found["weight"].dtype is dtype
    assert found["weight"].data_ptr() == arrays["weight"][0].ctypes.data


def test_tied_tensors_are_one_array():
    tensor = torch.ones(3)
    arrays = to_arrays({"embedding": tensor, "output": tensor.detach()})
    assert arrays["embedding"][0] is arrays["output"][0]
