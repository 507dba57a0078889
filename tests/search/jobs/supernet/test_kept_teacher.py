"""Teacher logits that are kept: equal to the teacher that runs, made once, shared, and made again where they are damaged."""

import threading

import pytest
import torch

from configs import ConfigError
from configs.load import validate
from search.jobs.supernet import kept_teacher as module
from search.jobs.supernet.kept_teacher import KeptLook, KeptTeacher, kept, kept_divergence
from search.jobs.supernet.spec import TeacherSpec
from search.jobs.supernet.teacher import divergence
from search.training import checkpoint
from search.training.ranks import Ranks
from tests.search.supernets import CPU, Steps, gradients, parameters, supernet_member, supernet_spec, train_into

VOCAB_SIZE = 8


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The folder of a run that can teach."""
    out = tmp_path_factory.mktemp("teacher")
    train_into(out, supernet_spec(n_steps=8))
    return out


def taught(source, kept_in, keep=VOCAB_SIZE - 1, weight=0.7, **keys):
    teacher = {"source": str(source), "weight": weight, **({} if keep is None else {"keep": keep, "kept_in": str(kept_in)})}
    return supernet_spec(teacher=teacher, seed=3, **keys)


def some(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def look(logits, keep):
    values, tokens, rest = kept(logits, keep)
    return KeptLook(torch.ones(len(logits), dtype=torch.bool), values, tokens.long(), rest)


@pytest.mark.parametrize("keep", [6, 7])
def test_with_all_but_one_it_is_the_whole_divergence(keep):
    teacher, weights = 3 * some(5, 7), torch.rand(5, generator=torch.Generator().manual_seed(2))
    found, expected = some(5, 7, seed=1).requires_grad_(), some(5, 7, seed=1).requires_grad_()
    ours = kept_divergence(found, look(teacher, keep), weights)
    whole = divergence(expected[None], teacher[None], weights[None], kl="forward", temperature=1.0)
    torch.testing.assert_close(ours, whole)
    ours.backward()
    whole.backward()
    torch.testing.assert_close(found.grad, expected.grad)


def test_all_others_are_one_outcome():
    """Against probabilities that are summed by hand; grouping never adds divergence."""
    teacher, student = some(4, 9), some(4, 9, seed=1)
    chosen = teacher.topk(3, dim=-1).indices

    def grouped(logits):
        own = logits.softmax(-1).gather(-1, chosen)
        return torch.cat([own, 1 - own.sum(-1, keepdim=True)], -1)

    true, other = grouped(teacher), grouped(student)
    expected = (true * (true / other).log()).sum()
    found = kept_divergence(student, look(teacher, 3), torch.ones(4))
    torch.testing.assert_close(found, expected)
    assert found < divergence(student[None], teacher[None], torch.ones(1, 4), kl="forward", temperature=1.0)


def test_a_teacher_that_is_sure_and_one_that_excludes_tokens_give_finite_gradients():
    sure = torch.full((2, 6), -200.0)
    sure[:, 2] = 200.0
    sure[1, 4] = -torch.inf
    student = some(2, 6).requires_grad_()
    loss = kept_divergence(student, look(sure, 2), torch.ones(2))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("keep", [VOCAB_SIZE - 1, VOCAB_SIZE, 100])
@pytest.mark.parametrize("accumulate", [1, 5])
def test_losses_and_gradients_are_those_of_the_teacher_that_runs(source, tmp_path, keep, accumulate, monkeypatch):
    monkeypatch.setattr(module, "FILE_BYTES", 3 * 12 * 24 * (8 * VOCAB_SIZE + 4))  # three steps in a file, or a few more
    runs = Steps(taught(source, tmp_path, keep=None, accumulate=accumulate))
    keeps = Steps(taught(source, tmp_path, keep=keep, accumulate=accumulate))
    assert isinstance(keeps.gradients.teacher, KeptTeacher)
    for step in (0, 1, 4, 2, 11):
        for each in (runs, keeps):
            each.model.zero_grad()
        assert keeps.backward(step) == pytest.approx(runs.backward(step), abs=1e-5)
        ours, theirs = gradients(keeps.model), gradients(runs.model)
        assert ours.keys() == theirs.keys()
        for name, gradient in theirs.items():
            torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3


@pytest.fixture
def calls(monkeypatch):
    """Counts the files that a teacher is run for."""
    found, made = [], KeptTeacher._made
    monkeypatch.setattr(KeptTeacher, "_made", lambda self, first, stop: (found.append((first, stop)), made(self, first, stop))[1])
    return found


def test_the_second_run_does_not_run_the_teacher(source, tmp_path, calls, monkeypatch):
    lines = []
    train_into(tmp_path / "first", taught(source, "run:../kept"), lines)
    assert calls == [(0, 12)]
    assert any("the teacher runs for steps 1 to 12" in line for line in lines)
    monkeypatch.setattr(module, "taught_by", lambda *_: pytest.fail("the teacher was loaded"))
    train_into(tmp_path / "second", taught(source, "run:../kept", lr=3e-3))
    train_into(tmp_path / "shorter", taught(source, "run:../kept", n_steps=6))
    assert calls == [(0, 12)]


def test_more_steps_another_seed_or_another_number_are_made_for_themselves(source, tmp_path, calls):
    Steps(taught(source, tmp_path, n_steps=6)).backward(0)
    longer = Steps(taught(source, tmp_path, n_steps=12)).backward(8)
    Steps(taught(source, tmp_path, n_steps=6)).backward(0)
    assert calls == [(0, 6), (6, 12)]  # what is there is not asked for again
    assert longer == Steps(taught(source, tmp_path / "at once", n_steps=12)).backward(8)
    calls.pop()
    Steps(taught(source, tmp_path, keep=2)).backward(0)
    Steps(taught(source, tmp_path).model_copy(update={"seed": 4})).backward(0)
    assert len(calls) == 4
    assert len(list(tmp_path.rglob("*.safetensors"))) == 4


@pytest.mark.parametrize("damage", ["cut", "a bit", "another file"])
def test_what_is_damaged_is_made_again(source, tmp_path, calls, damage):
    spec = taught(source, "run:../kept")
    train_into(tmp_path / "first", spec)
    (path,) = (tmp_path / "kept").rglob("*.safetensors")
    whole, described = path.read_bytes(), checkpoint.header_of(path)
    other = bytearray(whole)
    other[-20] ^= 1
    path.write_bytes({"cut": whole[:-100], "a bit": bytes(other), "another file": b"{}"}[damage])
    lines = []
    train_into(tmp_path / "second", spec, lines)
    assert any("damaged" in line and "it is made again" in line for line in lines)
    assert len(calls) == 2
    assert checkpoint.header_of(path) == described
    files = [(tmp_path / name / "history.jsonl").read_text() for name in ("first", "second")]
    assert files[0] == files[1]


def test_two_that_begin_at_once_make_it_once(source, tmp_path, calls):
    spec = taught(source, tmp_path)
    steps = [Steps(spec) for _ in range(2)]
    threads = [threading.Thread(target=each.gradients.teacher._open, args=(0,)) for each in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [(0, 12)]
    assert {path.name for path in tmp_path.rglob("*.*")} == {".lock", "00000000.safetensors"}


def test_ranks_take_their_rows(source, tmp_path):
    spec = taught(source, tmp_path)
    whole = supernet_member(spec)
    alone = KeptTeacher(spec, whole.model, CPU, tmp_path, ranks=Ranks())
    seen = alone.look(whole.batches[5], step=5, first=0)
    rows = seen.log_probabilities.split(seen.asked.view_as(whole.batches[5].targets).sum(1).tolist())
    for rank in range(3):
        ranks = Ranks()
        ranks.rank, ranks.n_ranks = rank, 3
        teacher = KeptTeacher(spec, whole.model, CPU, tmp_path, ranks=ranks)
        batch = type(whole.batches[5])(*(tensor[rank::3] for tensor in whole.batches[5]))
        found = teacher.look(batch, step=5, first=0)
        assert torch.equal(found.log_probabilities, torch.cat(rows[rank::3]))


def test_it_goes_on_where_it_was_cut(source, tmp_path):
    spec = taught(source, tmp_path, keep=3, weight=1.0)
    steps, again = Steps(spec), Steps(spec)
    for step in range(6):
        steps(step)
    for step in range(3):
        again(step)
    again.gradients.teacher = KeptTeacher(spec, again.model, CPU, tmp_path, ranks=Ranks())
    for step in range(3, 6):
        again(step)
    ours, theirs = parameters(steps.model), parameters(again.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"source": "main"}, "source: main moves at every step"),
        ({"kl": "reverse"}, "kl: reverse asks for all of the teacher's logits: forward, or leave keep out"),
        ({"temperature": 2.0}, "temperature: 2 asks for all of the teacher's logits: 1, or leave keep out"),
        ({"hidden_weight": 1.0}, "hidden_weight: hidden states are not kept: 0, or leave keep out"),
        ({"keep": 0}, "keep: "),
    ],
)
def test_what_cannot_be_kept_is_refused_by_its_key(keys, message):
    with pytest.raises(ConfigError, match=message):
        validate(TeacherSpec, {"source": "there", "keep": 4, **keys}, "teacher")


def test_a_source_that_does_not_fit_is_told_at_once(source, tmp_path):
    with pytest.raises(ConfigError, match=r"teacher\.source: .*nowhere/weights\.safetensors: is missing"):
        Steps(taught(tmp_path / "nowhere", tmp_path))
    with pytest.raises(ConfigError, match=r"teacher\.source: .*: vocab_size is 8 there, but 9 here"):
        Steps(taught(source, tmp_path, rack={"vocab_size": 9}))
