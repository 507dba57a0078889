"""The base of the guide's configuration sections: typed attributes that may be changed, from and to YAML."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, Self

import yaml
from pydantic import ConfigDict, ValidationError

from configs.errors import ConfigError, config_error, known_names, yaml_path
from configs.growth import Problem
from configs.load import load, validate
from configs.spec import Spec


class BaseConfig(Spec):
    """A section of the configuration: like a spec closed and typed, but every value may be set anew.

    Each value is checked as it is set. Whether values fit each other is for `validate` to say, since they come one by one.
    """

    model_config = ConfigDict(frozen=False, validate_assignment=True)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Self:
        """The configuration in plain values; ConfigError with all that is wrong, each with its path and the nearest name."""
        return validate(cls, tree, cls.__name__)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """The configuration in a YAML file; ConfigError as above, and for a key that is given twice."""
        return load(cls, path)

    def to_yaml(self, path: str | Path) -> None:
        """Write a file that `from_yaml` reads; ConfigError for what does not fit together."""
        self.validate()
        Path(path).write_text(yaml.safe_dump(self.to_dict(), sort_keys=False), encoding="utf-8")

    def validate(self) -> None:  # type: ignore[override]
        """Check that what is said here and in the sections below fits together; ConfigError with all that does not."""
        found = [f"{type(self).__name__}: {yaml_path(location)}: {message}" for location, message in self._all_misfits()]
        if found:
            raise ConfigError("\n".join(found))

    def problems(self) -> list[Problem]:
        """What does not fit together in this section."""
        return []

    def __setattr__(self, name: str, value: Any) -> None:
        fields = type(self).model_fields
        if name not in fields:
            raise ConfigError(f"{type(self).__name__}: unknown key '{name}'; {known_names(name, fields)}")
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            raise config_error(type(self).__name__, error) from None

    def __hash__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} may change, and has no hash")

    def _all_misfits(self) -> Iterator[Problem]:
        yield from self.problems()
        for name in type(self).model_fields:
            if isinstance(section := getattr(self, name), BaseConfig):
                yield from (((name, *location), message) for location, message in section._all_misfits())  # noqa: SLF001
