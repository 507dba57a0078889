"""A mixer file as somebody writes it at first: without types it is one line that says so, without counts it is measured."""

import sys

import pytest
import torch
import yaml
from torch.utils._pytree import tree_leaves

import models.mixers
from configs import ConfigError, load
from models import MIXERS, RackSpec
from models.assembly.cost import cost
from models.mixers.attention import Attention
from models.mixers.linear_attention import LinearAttention
from models.mixers.lru import LRU
from models.mixers.retention import Retention
from models.rack.contracts import Mixer
from models.rack.measured import measured_flops, measured_state

PLAIN = '''
"""A mixer."""
from typing import Annotated, Optional

from annotated_types import MaxLen
from torch import nn
from configs import Spec
from models.rack.contracts import Mixer


class Sizes(Spec):
    width: int = 1


class OwnMixer(Mixer):
    def __init__(self, d_model: int, {argument}) -> None:
        super().__init__()
        self.inner = nn.Linear(d_model, 3 * d_model)
        self.output = nn.Linear(3 * d_model, d_model)

    def forward(self, x):
        return self.output(self.inner(x))
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Puts a file into the folder of mixers, and writes a rack with it."""
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.setattr(models.mixers, "__path__", [*models.mixers.__path__, str(folder)])

    def write(text):
        (folder / "own_mixer.py").write_text(text)
        rack = {"vocab_size": 8, "d_model": 4, "stacks": [{"n_blocks": 2, "block": {"mixer": {"kind": "own_mixer"}}}]}
        (tmp_path / "rack.yaml").write_text(yaml.safe_dump(rack))
        return tmp_path / "rack.yaml"

    yield write
    sys.modules.pop("models.mixers.own_mixer", None)


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("width=3", "class OwnMixer: argument 'width' has no type, .* write width: int, or what it is"),
        ("*, width", "class OwnMixer: argument 'width' has no type"),
        ("**options", "class OwnMixer: argument 'options' is no option by name"),
        ("*options: int", "class OwnMixer: argument 'options' is no option by name"),
        ("width: 'Nowhere' = 3", "class OwnMixer: the types of its constructor cannot be read: name 'Nowhere' is not defined"),
        ("width: nn.Module", "class OwnMixer: argument 'width' has the type .*: an option is a number, text"),
        ("width: int = None", "class OwnMixer: argument 'width' has the default None, which is not of its type"),
        ("_width: int = 3", "class OwnMixer: argument '_width' is called what no option can be"),
        ("width: 'int | \"wide\"' = 3", "class OwnMixer: the types of its constructor cannot be read: unsupported operand"),
        ("width: Optional['Nowhere'] = None", "class OwnMixer: argument 'width' has the type .*: an option is a number, text"),
        ("width: Annotated[int, MaxLen(3)] = 3", "class OwnMixer: argument 'width' has the type .*: an option is a number, text"),
        ("options: int = 3", "class OwnMixer: argument 'options' is called what no option can be"),
        ("model_config: int = 3", "class OwnMixer: argument 'model_config' is called what no option can be"),
        ("kind: int = 3", "class OwnMixer: argument 'kind' is called what no option can be"),
        ("lr_scale: float = 3", "class OwnMixer: argument 'lr_scale' is called what no option can be"),
    ],
)
def test_an_argument_that_no_file_could_set_is_one_line(own, argument, told):
    path = own(PLAIN.format(argument=argument))
    with pytest.raises(ConfigError, match=rf"own_mixer\.py: {told}") as caught:
        load(RackSpec, path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("class Other: pass", r"own_mixer\.py: a mixer by this name must define a class OwnMixer"),
        ("import no_such_thing", r"own_mixer: this mixer cannot be imported: No module named 'no_such_thing'"),
        ("class OwnMixer:\n    width: Nowhere", r"own_mixer: this mixer cannot be imported: name 'Nowhere' is not defined"),
        ("class OwnMixer(:", r"own_mixer: this mixer cannot be imported: invalid syntax \(own_mixer.py, line 1\)"),
    ],
)
def test_a_file_without_its_class_is_one_line(own, text, told):
    with pytest.raises(ConfigError, match=told) as caught:
        load(RackSpec, own(text))
    assert len(str(caught.value).splitlines()) == 1


def test_an_argument_may_be_a_spec(own):
    mixer = load(RackSpec, own(PLAIN.format(argument="sizes: Sizes = Sizes()"))).stacks[0].block.mixer
    assert mixer.to_dict()["sizes"] == {"width": 1}
    assert MIXERS.build(mixer, d_model=4).output.out_features == 4


def test_an_error_of_a_constructor_blames_no_sizes(own):
    path = own(PLAIN.format(argument="*, width: int = 3").replace("super().__init__()", "super().__init__(); None + width"))
    with pytest.raises(ConfigError, match=r"own_mixer cannot be made: unsupported operand type"):
        load(RackSpec, path)


def test_what_is_not_said_is_measured(own):
    rack = load(RackSpec, own(PLAIN.format(argument="*, width: int = 3")))
    mixer = next(part for part in cost(rack, seq_len=10).parts if part.kind == "own_mixer")
    assert mixer.flops == 2 * 2 * 4 * 12
    assert mixer.state == 10 * 4  # without a step form, all inputs
    built = MIXERS["own_mixer"](4)
    assert (built.flops(7), built.state_size(7)) == (7 * 2 * 2 * 4 * 12, 28)
    assert not any(parameter.is_meta for parameter in built.parameters())


def test_what_no_meta_run_can_measure_is_one_line():
    class Odd(Mixer):
        def __init__(self, d_model):
            super().__init__()
            self.width = d_model

        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=r"Odd says no flops, and could not be run on the meta device .*: define flops"):
        Odd(d_model=4).flops(3)


@pytest.mark.parametrize(("kind", "options"), [(LinearAttention, {"n_heads": 2}), (Retention, {"n_heads": 2}), (LRU, {})])
def test_what_is_measured_is_what_is_held(kind, options):
    mixer = kind(16, **options)
    with torch.no_grad():
        held = mixer.initial_state(1)
        for _ in range(9):
            _, held = mixer.step(torch.zeros(1, 16), held)
    assert measured_state(mixer, 9) == sum(part.numel() for part in tree_leaves(held))


class Growing(Mixer):
    """Keeps every input."""

    has_step = True

    def __init__(self, d_model):
        super().__init__()
        self.width = d_model

    def forward(self, x):
        """Nothing."""
        return x

    def initial_state(self, batch_size):
        """Nothing yet."""
        return torch.zeros(batch_size, 0, self.width)

    def step(self, x, state):
        """One more."""
        return x, torch.cat([state, x[:, None]], 1)


def test_a_cache_that_grows_is_measured_as_it_grows():
    assert [Growing(d_model=4).state_size(length) for length in (1, 2, 9)] == [4, 8, 36]


def test_products_are_counted_as_those_count_them_that_do():
    for mixer in (Attention(16, n_heads=2), LinearAttention(16, n_heads=2)):
        assert measured_flops(mixer, 32) == mixer.flops(32)
