"""Nothing asked can be read off where it must not be: no model looks ahead, no task gives its answers away."""

import math

import numpy as np
import pytest
import torch

from models import RackSpec
from search.jobs.mad.spec import MadSpec
from search.jobs.mad.task_files import task_names
from tasks import IGNORED, TASKS, draw
from tests.models.cases import MIXER_CASES

SMALL = {
    "compression": {"seq_len": 24},
    "fuzzy_in_context_recall": {"seq_len": 24, "k_motif_size": 2, "v_motif_size": 2},
    "in_context_recall": {"seq_len": 24},
    "memorization": {"seq_len": 24},
    "noisy_in_context_recall": {"seq_len": 24},
    "selective_copying": {"seq_len": 24, "n_tokens_to_copy": 4},
    "state_tracking": {"seq_len": 24},
    "needle": {"seq_len": 24},
    "addition": {"seq_len": 24},
}
CAUSAL_TASKS = [kind for kind in TASKS if kind != "text" and TASKS[kind]().read_out == "language_model"]


def task_of(kind):
    return TASKS[kind](**SMALL.get(kind, {}))


def logits_after_changes(rack, inputs, vocab_size):
    """For each position, the logits when every input after it is another one."""
    for position in range(inputs.shape[1]):
        changed = inputs.clone()
        changed[:, position + 1 :] = (changed[:, position + 1 :] + 1) % vocab_size
        yield position, rack(changed)


@pytest.mark.parametrize(
    ("kind", "mixer"),
    [
        *(("in_context_recall", mixer) for mixer in MIXER_CASES),
        *((kind, mixer) for kind in CAUSAL_TASKS for mixer in ("attention", "mamba")),
    ],
)
def test_no_model_looks_ahead(kind, mixer):
    task = task_of(kind)
    block = {"mixer": MIXER_CASES[mixer], "mlp": {"kind": "moe", "n_experts": 2}}
    spec = RackSpec(d_model=32, vocab_size=task.vocab_size, max_length=task.seq_len, stacks=[{"n_blocks": 2, "block": block}])
    rack = spec.build().eval().double()  # where rounding cannot be taken for a leak
    inputs = torch.tensor(draw(task, 2, seed=0, split="test").inputs)
    with torch.no_grad():
        logits = rack(inputs)
        for position, after in logits_after_changes(rack, inputs, task.vocab_size):
            torch.testing.assert_close(after[:, : position + 1], logits[:, : position + 1], rtol=0, atol=1e-9)
            assert position == inputs.shape[1] - 1 or not torch.allclose(after[:, position + 1 :], logits[:, position + 1 :])


def test_the_compression_model_sees_the_whole_sequence_through_its_last_position():
    (trial,) = MadSpec(
        architectures={"a": [{"kind": "attention", "n_heads": 2}]},
        tasks={"compression": {"task": {"seq_len": 12}}},
        changes="none",
        d_model=16,
        lrs=[1e-3],
        weight_decays=[0],
        seeds=[0],
    ).trials()
    rack = trial.spec.rack.build()
    inputs = torch.tensor(draw(trial.spec.setting.instance(), 2, seed=0, split="test").inputs)
    encoded = []
    rack.stacks[-1].register_forward_hook(lambda *arguments: encoded.append(arguments[-1]))
    logits = rack(inputs)
    with torch.no_grad():
        elsewhere = torch.cat((encoded[0][:, :-1] + 1, encoded[0][:, -1:]), dim=1)
        assert torch.equal(rack.head(elsewhere), logits)
        assert not torch.allclose(rack.head(encoded[0] + torch.randn(16)), logits)
    for position in range(12):
        changed = inputs.clone()
        changed[:, position] = (changed[:, position] + 1) % 16
        assert not torch.equal(rack(changed)[:, 0], logits[:, 0])


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("kind", CAUSAL_TASKS)
def test_no_target_stands_at_its_own_position(kind, split):
    """But in training, where all next tokens are asked, noise or pads may follow themselves; digits and products by chance."""
    task = TASKS[kind]()
    examples = draw(task, 500, seed=0, split=split)
    repeated = examples.inputs[(examples.targets != IGNORED) & (examples.targets == examples.inputs)]
    if split == "train" and kind in ("noisy_in_context_recall", "fuzzy_in_context_recall"):
        assert (repeated >= task._n_symbols).all()
    elif kind in ("addition", "state_tracking"):
        assert len(repeated) < 0.2 * (examples.targets != IGNORED).sum()
    else:
        assert len(repeated) == 0


def test_compression_asks_its_own_input_and_recall_the_next():
    examples = draw(TASKS["compression"](), 50, seed=0, split="train")
    np.testing.assert_array_equal(examples.inputs, examples.targets)
    for kind in ("in_context_recall", "noisy_in_context_recall", "fuzzy_in_context_recall"):
        examples = draw(TASKS[kind](), 50, seed=0, split="train")
        np.testing.assert_array_equal(examples.inputs[:, 1:], examples.targets[:, :-1])


@pytest.mark.parametrize("kind", ["memorization", "selective_copying"])
def test_answers_depend_on_more_than_the_asking_token(kind):
    examples = draw(TASKS[kind](), 200, seed=0, split="test")
    supervised = examples.targets != IGNORED
    assert len(np.unique(examples.inputs[supervised])) == 1
    assert len(np.unique(examples.targets[supervised])) > 10


def ideal_losses(inputs, n_keys):
    """In nats, of a predictor that knows the rules of in-context recall, at every position of one sequence.

    A key that was shown has its value; a new one any of the values; what comes after a value is any key, and at the
    end any of those that were shown.
    """
    losses, shown = [], set()
    for position, token in enumerate(inputs):
        if position % 2:
            is_query = position == len(inputs) - 2
            losses.append(math.log(len(shown) if is_query else n_keys))
        else:
            losses.append(0.0 if token in shown else math.log(n_keys))
            shown.add(token)
    return losses


def test_no_model_can_go_under_the_floor_of_in_context_recall():
    """71 ln 8 / 127 = 1.1625 nats in training, 0 in evaluation."""
    task, n_examples = TASKS["in_context_recall"](), 3000
    train = draw(task, n_examples, seed=0, split="train")
    losses = np.array([ideal_losses(inputs, 8) for inputs in train.inputs.tolist()])
    floor = 71 * math.log(8) / 127
    assert floor == pytest.approx(1.1625, abs=1e-4)
    assert losses.mean() == pytest.approx(floor, abs=4 * losses.mean(1).std() / math.sqrt(n_examples) + 1e-4)
    test = draw(task, 500, seed=0, split="test")
    for inputs, targets in zip(test.inputs.tolist(), test.targets.tolist(), strict=True):
        supervised = [loss for loss, target in zip(ideal_losses(inputs, 8), targets, strict=True) if target != IGNORED]
        assert supervised == [0.0] * len(supervised)


def test_every_causal_task_of_the_suite_is_covered():
    assert {name.replace("-", "_") for name in task_names()} - set(CAUSAL_TASKS) == {"compression"}
