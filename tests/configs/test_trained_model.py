"""Where a trained model lies: a path, or a file of an installed package."""

from pathlib import Path

import pytest

from configs import ConfigError
from configs.trained_model import model_path


def test_what_is_no_package_is_a_path_as_it_stands():
    assert model_path("runs/model.gguf") == Path("runs/model.gguf")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("package:", "a package has a name"),
        ("package:no-such-package", "the package no-such-package is not installed: pip install --no-deps no-such-package"),
        ("package:pytest", "the package has 0 GGUF files, not one"),
    ],
)
def test_a_package_without_the_one_file_is_told(text, told):
    with pytest.raises(ConfigError, match=f"^model: {text}: {told}"):
        model_path(text)


def test_a_package_may_be_absent_where_nothing_is_read():
    assert not model_path("package:no-such-package", must_be_there=False).exists()
