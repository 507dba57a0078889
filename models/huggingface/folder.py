"""A folder with config.json and safetensors, one file or several, read one tensor at a time."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from configs import ConfigError
from configs.limits import MOST_JSON_BYTES

CONFIG_JSON, ONE_FILE, SEVERAL_FILES = "config.json", "model.safetensors", "model.safetensors.index.json"
STORED_TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""What is read, by safetensors' own names."""
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth", "model.pt", "model.pth")


def read_json_file(path: Path) -> dict[str, Any]:
    """The object in a JSON file that is not ours; ConfigError that names the file for anything else."""
    try:
        n_bytes = path.stat().st_size
        value = json.loads(path.read_bytes()) if n_bytes <= MOST_JSON_BYTES else None
    except FileNotFoundError:
        raise ConfigError(f"{path}: is missing") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is no JSON: {error}") from None
    if n_bytes > MOST_JSON_BYTES:
        raise ConfigError(f"{path}: {n_bytes:,} bytes, more than {MOST_JSON_BYTES:,}")
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: an object is expected, found {type(value).__name__}")
    return value


class ModelFolder:
    """A trained model in a folder. Nothing in it is run, and nothing outside of it is read.

    `shapes` and `dtypes` are by name; tensors are read when they are asked for.
    """

    def __init__(self, path: Path) -> None:
        """Look at config and headers.

        Raises:
            ConfigError: naming the file, for what is no such folder: weights missing, pickled, cut off, or of a type that is
                not read.
        """
        self.path = path
        self.config = read_json_file(path / CONFIG_JSON)
        self._files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        index = self._index()
        for file in sorted(set(index.values())) if index is not None else [ONE_FILE]:
            self._look_at(file)
        if index is not None and (absent := sorted(name for name, file in index.items() if self._file_of(name) != file)):
            raise ConfigError(f"{path / SEVERAL_FILES}: {absent[0]} is not in {index[absent[0]]} ({len(absent)} such tensors)")

    def _index(self) -> dict[str, str] | None:
        """Tensor name -> file name, where the weights are in several files."""
        if (self.path / ONE_FILE).exists():
            return None
        if not (self.path / SEVERAL_FILES).exists():
            pickled = [name for name in PICKLES if (self.path / name).exists()]
            text = (
                f"only {pickled[0]}, a pickle, which is never opened: save the model as safetensors" if pickled else "is missing"
            )
            raise ConfigError(f"{self.path / ONE_FILE}: {text}")
        files = read_json_file(self.path / SEVERAL_FILES).get("weight_map")
        if not isinstance(files, dict) or not files:
            raise ConfigError(f"{self.path / SEVERAL_FILES}: weight_map must name a file for each tensor")
        for name, file in files.items():
            if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
                raise ConfigError(f"{self.path / SEVERAL_FILES}: {name}: {file!r} is no safetensors file of this folder")
        return files

    def _look_at(self, file: str) -> None:
        path = self.path / file
        try:
            with safe_open(path, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a mapping
                    part = opened.get_slice(name)
                    if name in self._files:
                        raise ConfigError(f"{path}: {name} is in {self._files[name].name} too")
                    self._files[name], self.shapes[name] = path, tuple(part.get_shape())
                    self.dtypes[name] = STORED_TYPES.get(part.get_dtype(), part.get_dtype())
        except FileNotFoundError:
            raise ConfigError(f"{path}: is missing") from None
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{path}: damaged or cut off: {error}") from None

    def _file_of(self, name: str) -> str | None:
        path = self._files.get(name)
        return None if path is None else path.name

    def place_of(self, name: str) -> str:
        """Which file a tensor is in; the folder, if it is in none."""
        return str(self._files.get(name, self.path))

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is read: the config, what says where tensors are, and the weights."""
        index = self.path / SEVERAL_FILES
        indices = [] if (self.path / ONE_FILE).exists() else [index]
        return (self.path / CONFIG_JSON, *indices, *sorted(set(self._files.values())))

    def read(self, name: str) -> Tensor:
        """A tensor, on the CPU, of its own type, as it lies in the file: copy what is kept, it changes with that."""
        try:
            with safe_open(self._files[name], framework="pt") as opened:
                return opened.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{self._files[name]}: {name}: cannot be read: {error}") from None
