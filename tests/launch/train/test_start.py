"""What a training run on Ray starts from: nothing that Train has kept of a driver that was killed."""

from contextlib import nullcontext

import pytest

from launch.train import trainer
from tests.search.supernets import supernet_spec


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Makes a run without workers; what there was of Train's state when it began."""
    seen = []
    monkeypatch.setattr(trainer, "cluster", lambda: nullcontext({"CPU": 1.0}))
    monkeypatch.setattr(trainer, "_trainer", lambda *_: seen.append((tmp_path / trainer.TRAIN).exists()))
    monkeypatch.setattr(trainer, "_fit", lambda *_: False)
    return lambda: (trainer._train(supernet_spec(), tmp_path, print, is_done=lambda: True), seen.pop())[1]


def test_the_state_of_a_driver_that_was_killed_is_not_gone_on_from(tmp_path, trained):
    (tmp_path / trainer.TRAIN / "train").mkdir(parents=True)
    (tmp_path / trainer.TRAIN / "train/snapshot.json").touch()
    assert trained() is False
    assert list(tmp_path.iterdir()) == []


def test_what_lies_behind_a_link_is_left_alone(tmp_path, trained):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine").touch()
    (tmp_path / trainer.TRAIN).symlink_to(elsewhere)
    assert trained() is False
    assert (elsewhere / "mine").exists()
