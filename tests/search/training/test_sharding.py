"""What was shared out is gathered for the main rank alone."""

import torch
from torch import nn

from search.training.ranks import Ranks
from search.training.sharding import gathered, shard
from tests.search.ranks import on_ranks


def gathered_here():
    torch.manual_seed(0)
    model, ranks = nn.Linear(4, 6), Ranks()
    whole = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    shard(model)
    found = gathered({**{name: parameter.detach() for name, parameter in model.named_parameters()}, "count": torch.ones(())})
    return ranks.is_main, whole, found


def test_only_the_main_rank_keeps_what_was_gathered(tmp_path):
    for is_main, whole, found in on_ranks(gathered_here, 2, tmp_path):
        assert sorted(found) == (["bias", "count", "weight"] if is_main else ["count"])
        assert all(torch.equal(found[name], whole[name]) for name in whole if is_main)
