"""What is not a placement of the supernet, or is none at all, and the walk that is given along."""

import pytest
import torch

from configs import ConfigError
from search.evaluation.score_batches import score_batches
from search.evaluation.supernet_evaluator import SupernetEvaluator
from search.evaluation.trie import PlacementTrie
from tests.search import spaces


@pytest.mark.parametrize("wrong", [("atention",) * 4, ("linear",) * 6, ("linear",) * 3, ()])
def test_what_is_no_placement_of_the_supernet_is_refused_instead_of_scored(wrong):
    net = spaces.supernet()
    with pytest.raises(ConfigError, match=r"no 'atention'|names for 4 searchable slots"):
        score_batches(net, [net.main, wrong], {"task": spaces.batches()})


def test_no_placements_have_no_scores():
    found = score_batches(spaces.supernet(), [], {"short": spaces.batches(3), "long": spaces.batches(3, seq_len=20)})
    assert {task: values.shape for task, values in found.items()} == {"short": (0, 3), "long": (0, 3)}


def test_an_evaluator_builds_the_trie_once(monkeypatch):
    net, built = spaces.supernet(), []
    measure = PlacementTrie._measure
    monkeypatch.setattr(PlacementTrie, "_measure", lambda trie: (built.append(trie), measure(trie)))
    evaluate = SupernetEvaluator(net, {"task": spaces.batches()}, {"task": 1.0}, data_fingerprint="data")
    evaluate(spaces.placements(net.slots, 5))
    assert len(built) == 1


@pytest.mark.parametrize("name", ["atention", ""])
def test_a_choice_has_no_part_of_another_name(name):
    choice = spaces.supernet(mlp="stochastic").choices[1]
    assert choice.get("none") is None
    choice.active = name
    with pytest.raises(ValueError, match="is none of the mixers: wide, none"):
        choice(torch.zeros(1, 2, 16))
