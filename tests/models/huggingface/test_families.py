"""Racks of trained models give the logits of transformers, whatever the family, its sizes and its options."""

import pytest
import torch

from models.huggingface.importing import FAMILIES, import_rack
from tests.models.huggingface.tiny import CASES, saved


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(tmp_path, case):
    model, folder = saved(case, tmp_path)
    spec, rack = import_rack(folder)
    tokens = torch.randint(spec.vocab_size, (2, 23), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(rack(tokens), model(tokens).logits, rtol=1e-4, atol=1e-4)
    state = rack.initial_state(2)
    with torch.inference_mode():
        for position in range(23):
            logits, state = rack.step(tokens[:, position], state)
    torch.testing.assert_close(logits, rack(tokens)[:, -1], rtol=1e-4, atol=1e-4)
    assert all(not tensor.is_meta for tensor in (*rack.parameters(), *rack.buffers()))
    assert (rack.head.output.weight is rack.embedding.weight) == spec.tie_embeddings


def test_every_family_is_tried():
    assert {CASES[case][0].lower() for case in CASES} == {kind.replace("_", "") for kind in FAMILIES}
