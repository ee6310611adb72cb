"""Launch profiles: where and how a suite runs. One YAML file each; its key `launcher` names the launcher that reads the rest."""

import inspect
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from harness import registry
from harness.commands import harness_command
from harness.errors import UserError, did_you_mean
from harness.yaml_source import read_yaml, validate

if TYPE_CHECKING:
    from harness.api import Launcher

FOLDER = "profiles"
"""Name of the folders that hold profiles: next to the module of each launcher, and in the working directory."""


class Form(BaseModel):
    """Base of all parts of a profile: unknown keys are errors, no type coercion, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class LaunchProfile(Form):
    """Base of the profiles of all launchers."""

    launcher: str


class _AnyProfile(BaseModel):
    """The one key that is read before the launcher is known."""

    launcher: str


def profile_names() -> list[str]:
    """Names of all profiles, sorted."""
    return sorted(_files())


def load_profile(name: str, at: str = "") -> "Launcher":
    """The launcher that a profile describes.

    Args:
        name: of a profile, or the path of a file (`./mine.yaml`).
        at: where the name was written, for the message.

    Raises:
        UserError: for an unknown name, or one line with file, line, key and a suggestion for a mistake in the file.
    """
    known = _files()
    file = Path(name) if name.endswith((".yaml", ".yml")) else known.get(name)
    if file is None or not file.is_file():
        raise UserError(
            f"{f'{at}: ' if at else ''}unknown launch profile '{name}'{did_you_mean(name, set(known))}; "
            f"there are {', '.join(sorted(known))}",
            fix=f"{harness_command('list', 'profiles')}, or name a file: --launch ./mine.yaml",
        )
    document = read_yaml(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)
    launcher = validate(_AnyProfile, document).launcher
    launchers = registry.launchers.all()
    if launcher not in launchers:
        raise UserError(
            f"{document.at(('launcher',)).where}: launcher: '{launcher}' is not one of {', '.join(sorted(launchers))}"
            f"{did_you_mean(launcher, set(launchers))}"
        )
    found = launchers[launcher]
    return found(validate(found.Profile, document))


def described(name: str) -> str:
    """What a profile is for: the comment on the first line of its file; empty without one."""
    first, _, _ = _files()[name].read_text(encoding="utf-8").partition("\n")
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _files() -> dict[str, Path]:
    """Profile files by name; one in the working directory goes before one of the same name that comes with a launcher."""
    modules = [Path(inspect.getfile(launcher)) for launcher in registry.launchers.all().values()]
    folders = [*(module.parent / FOLDER for module in modules), Path.cwd() / FOLDER]
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.y*ml"))}
