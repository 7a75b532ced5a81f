"""Command lines: one made from a dataclass, an option for each field, and what the small examples have in common."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
import typing
from dataclasses import field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def setting(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    most: float = sys.float_info.max,
    fixed: bool = False,
    **options: Any,
) -> Any:
    """A field of a dataclass with a line for `--help`. A fixed one stays what it is while a run goes on."""
    metadata = {"help": help, "least": least, "most": most, "fixed": fixed, "options": options}
    return field(default=default, metadata=metadata)


def parse(kind: type[T], description: str | None) -> T:
    """The dataclass from the command line; what an option says holds before what `--config file.json` says."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings in JSON, such as a run's config.json")
    hints, known = typing.get_type_hints(kind), fields(kind)  # type: ignore[arg-type]
    for f in known:
        hint, default = hints[f.name], f.default
        how: dict[str, Any] = {"type": hint, "metavar": getattr(hint, "__name__", "").upper()}
        if hint is bool:
            how = {"action": argparse.BooleanOptionalAction}
            default = "yes" if default else "no"
        elif typing.get_origin(hint) is typing.Literal:
            how = {"choices": typing.get_args(hint), "metavar": None}
        how |= f.metadata.get("options", {})
        option = f"--{f.name.replace('_', '-')}"
        parser.add_argument(option, default=argparse.SUPPRESS, help=f"{f.metadata['help']} [{default}]", **how)
    given = vars(parser.parse_args())
    file = given.pop("config", None)
    try:
        values = {} if file is None else _read(file, {f.name: hints[f.name] for f in known})
        values |= given
        for f in known:
            least, most, value = f.metadata["least"], f.metadata["most"], values.get(f.name, f.default)
            if least is not None and not least <= value <= most:  # nor NaN, which is not less than anything
                end = "finite" if most == sys.float_info.max else f"at most {most}"
                raise ValueError(f"--{f.name.replace('_', '-')} must be at least {least}, and {end}; got {value}")
        return kind(**values)
    except ValueError as error:
        parser.error(str(error))


def parser_of(doc: str | None, *, output: str, threads: int | None = None) -> argparse.ArgumentParser:
    """Of a small example: seed, threads, device, and the folder of its files; the example adds its own."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    threads = torch.get_num_threads() if threads is None else threads
    found = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--seed", type=int, default=0, help="one seed, one result [%(default)s]")
    parser.add_argument("--threads", type=int, default=threads, help="a small net gains little by more [%(default)s]")
    parser.add_argument("--device", type=_device, default=found, help="to train and to measure on [%(default)s]")
    parser.add_argument("--output", type=Path, default=Path(output), help="folder of all files [%(default)s]")
    return parser


def parsed(parser: argparse.ArgumentParser, **least: int) -> argparse.Namespace:
    """What was asked for, or an error where a number is below the least that makes sense; threads are set."""
    settings = parser.parse_args()
    for name, number in {"threads": 1, **least}.items():
        value = getattr(settings, name)
        if value is not None and value < number:
            parser.error(f"--{name} must be at least {number}; got {value}")
    torch.set_num_threads(settings.threads)
    return settings


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{name!r} is not here: {str(error).splitlines()[0]}") from None


def _read(file: Path, hints: dict[str, Any]) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--config {file} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"--config {file} holds a {type(values).__name__}; settings are an object of names and values")
    for name, value in values.items():
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=3)
            raise ValueError(
                f"--config {file} has an unknown setting {name!r}" + (f"; near: {', '.join(near)}" if near else "")
            )
        hint = hints[name]
        literal = typing.get_origin(hint) is typing.Literal
        fits = value in typing.get_args(hint) if literal else isinstance(value, hint | int if hint is float else hint)
        if not fits or isinstance(value, bool) != (hint is bool):
            raise ValueError(f"--config {file}: {name} cannot be {value!r}")
    return values
