"""The configs that ship with cl-bench: in an installed package beside the code, in a checkout at its top."""

from __future__ import annotations

from pathlib import Path

__all__ = ["shipped_configs"]


def shipped_configs() -> dict[str, Path]:
    """Every shipped YAML file by its name, ``suite/quickstart``, ``run/split_digits_codyra``, ...; sorted."""
    package = Path(__file__).resolve().parents[1]
    home = next((folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()), package)
    return {str(file.relative_to(home).with_suffix("")): file for file in sorted(home.rglob("*.yaml"))}
