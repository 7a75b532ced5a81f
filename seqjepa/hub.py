"""A model's way in and out: state dicts, folders and the Hugging Face Hub; safetensors for weights, JSON for parts."""

from __future__ import annotations

import functools
import inspect
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from seqjepa._checks import is_compiled, unwrap
from seqjepa.actions import ActionEmbedder, NoActions, RawActions
from seqjepa.aggregator import SequenceAggregator, SinusoidalPositions
from seqjepa.encoders import timm_encoder
from seqjepa.functional import CosineSchedule, WarmupCosineSchedule
from seqjepa.loss import CosineDistance, MSEDistance, SeqJEPALoss, SmoothL1Distance, VarianceCovariance
from seqjepa.predictor import ConditionedPredictor
from seqjepa.target import EMATarget, StopGradientTarget

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["PretrainedModule"]

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
COMPILED = "_orig_mod."
FORMAT = 1
# Options of timm that read a file or the network: a folder someone sent us shall not.
REACHING_OUT = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
PARTS = ("encoder", "embedder", "aggregator", "predictor", "target", "loss")
KNOWN: dict[str, type] = {
    part.__name__: part
    for part in (
        ActionEmbedder, NoActions, RawActions, SequenceAggregator, SinusoidalPositions, ConditionedPredictor,
        EMATarget, StopGradientTarget, SeqJEPALoss, CosineDistance, SmoothL1Distance, MSEDistance, VarianceCovariance,
        CosineSchedule, WarmupCosineSchedule,
    )
}  # fmt: skip


class PretrainedModule(nn.Module):
    """Save a model made of parts, and get it back with the same bits.

    A part of this package is written down by its constructor's arguments, each kept as an attribute. A part of the
    user's own is saved by its weights alone, and handed to `from_pretrained` by name. State dicts do not tell whether a
    part was compiled or parallel.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_state_dict_post_hook(_strip_wrappers)
        self.register_load_state_dict_pre_hook(_find_wrapped_parts)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights if all of them fit; otherwise raise, with nothing loaded.

        Args:
            state_dict: from `state_dict()`, of a model with compiled parts or without.
            strict: whether every weight must be there, and no other.
            assign: take the tensors themselves instead of copying them.

        Returns:
            The missing and the unexpected keys, as `torch.nn.Module.load_state_dict` does.

        Raises:
            RuntimeError: a weight of another shape or kind or, if strict, one missing or unknown. A parent module loads
                its children by itself, with PyTorch's own guarantees.
        """
        ours, theirs = self.state_dict(), {str(k).replace(COMPILED, ""): v for k, v in state_dict.items()}
        shared = sorted(ours.keys() & theirs.keys())
        problems = [f"{key}: {problem}" for key in shared if (problem := _misfit(ours[key], theirs[key]))]
        if strict:
            problems = [
                *(f"{key}: unknown" for key in sorted(theirs.keys() - ours.keys())[:10]),
                *problems,
                *(f"{key}: missing" for key in sorted(ours.keys() - theirs.keys())),
            ]
        if problems:
            shown = "\n  ".join(problems[:20]) + ("\n  …" if len(problems) > 20 else "")
            raise RuntimeError(
                f"These weights are for another model; nothing was loaded. {len(shared)} of {len(ours)} names are "
                f"known here, {len(theirs)} were given.\n  {shown}"
            )
        return super().load_state_dict(state_dict, strict, assign)

    def config(self) -> dict[str, Any]:
        """The parts as plain JSON values: what `from_pretrained` builds the model from.

        Returns:
            A dictionary with one entry a part; None for a part that JSON cannot describe, such as your own encoder.
        """
        return {"format": FORMAT} | {name: _describe(getattr(self, name)) for name in PARTS}

    def save_pretrained(self, save_directory: str | os.PathLike[str], **hub_options: Any) -> str | None:
        """Write `model.safetensors`, `config.json` and a model card into a folder.

        The files are written to a folder within it first and moved when all are whole: a save that fails leaves what
        was there.

        Args:
            save_directory: the folder; made if missing.
            hub_options: handed to `huggingface_hub.ModelHubMixin.save_pretrained`: `push_to_hub`, `repo_id`, …

        Returns:
            The address of the commit if `push_to_hub=True`, else None.

        Examples:
            >>> import tempfile
            >>> from seqjepa import SeqJEPA
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     SeqJEPA.from_timm("resnet18", action_dim=4).save_pretrained(folder)
            ...     model = SeqJEPA.from_pretrained(folder)
            >>> model.embedder.action_dim
            4
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        hub_options.setdefault("repo_id", folder.name)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
            new, old = Path(temporary, "new"), Path(temporary, "old")
            old.mkdir()
            address = _hub_class()(self).save_pretrained(new, **hub_options)
            os.chmod(new / WEIGHTS, (new / CONFIG).stat().st_mode)  # safetensors keeps it from everyone else
            if (folder / CARD).exists():
                (new / CARD).unlink()
            _replace_all(new, folder, old)
        return address

    def push_to_hub(self, repo_id: str, **hub_options: Any) -> str:
        """Upload the model to the Hugging Face Hub.

        Args:
            repo_id: such as "me/seqjepa-3diebench".
            hub_options: handed to `huggingface_hub.ModelHubMixin.push_to_hub`: `private`, `token`, …

        Returns:
            The address of the commit.
        """
        return _hub_class()(self).push_to_hub(repo_id, **hub_options)

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str], **options: Any) -> Self:
        """Load a model from a folder or from the Hub, in eval mode, with the bits it was saved with.

        Args:
            name_or_path: a folder written by `save_pretrained`, or the name of a repository on the Hub.
            options: the parts that were your own when it was saved, by name (`encoder=`, `embedder=`, …; built alike,
                their weights are replaced), and what `huggingface_hub.ModelHubMixin.from_pretrained` takes:
                `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`.

        Returns:
            The model, on the CPU.

        Raises:
            FileNotFoundError: a folder without weights or config.
            ValueError: a file that cannot be read, an unknown part, or a part that must be given and was not.
            RuntimeError: weights that do not fit the parts.
        """
        folder = Path(name_or_path)
        if folder.is_dir():
            _read_config(folder / CONFIG)  # before the mixin reads it without a word on what is wrong
        elif folder.is_absolute() or len(folder.parts) != 2:
            raise FileNotFoundError(f"{name_or_path} is no folder here, and no name on the Hub, such as 'me/my-model'.")
        return _hub_class().from_pretrained(name_or_path, model_class=cls, **options)


@functools.cache
def _hub_class() -> Any:
    """The adapter between a model and huggingface_hub's mixin, which is imported when it is first needed."""
    from huggingface_hub import ModelHubMixin

    class HubModel(
        ModelHubMixin, library_name="seqjepa", license="mit", tags=["seq-jepa", "world-model"],
        paper_url="https://arxiv.org/abs/2505.03176",
    ):  # fmt: skip
        def __init__(self, model: Any = None) -> None:
            self.model = model
            self._hub_mixin_config = model.config()

        def _save_pretrained(self, save_directory: Path) -> None:
            from safetensors.torch import save_file

            state = self.model.state_dict()
            # A clone each: safetensors takes neither shared storage nor other layouts.
            tensors = {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in state.items()}
            save_file(tensors, save_directory / WEIGHTS, metadata={"format": "pt"})

        @classmethod
        def _from_pretrained(  # type: ignore[override]
            cls, *, model_id: str, revision: Any, cache_dir: Any, force_download: bool, local_files_only: bool,
            token: Any, model_class: Any,
            proxies: Any = None, resume_download: Any = None,  # of huggingface_hub before 1.0
            **parts: Any,
        ) -> Any:  # fmt: skip
            from huggingface_hub import hf_hub_download

            def fetch(file: str) -> Path:
                if os.path.isdir(model_id):
                    return Path(model_id, file)
                return Path(
                    hf_hub_download(
                        model_id, file, revision=revision, cache_dir=cache_dir, force_download=force_download,
                        local_files_only=local_files_only, token=token,
                    )
                )  # fmt: skip

            return _load(model_class, fetch(CONFIG), fetch(WEIGHTS), parts)

    return HubModel


def _load(model_class: Any, config_file: Path, weights_file: Path, given: dict[str, Any]) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = _read_config(config_file)
    if not weights_file.is_file():
        raise FileNotFoundError(f"A saved model is a folder with {CONFIG} and {WEIGHTS}; {weights_file} is missing.")
    unknown = sorted(set(given) - set(PARTS))
    if unknown:
        raise TypeError(f"from_pretrained takes the parts {', '.join(PARTS)} by name; got {', '.join(unknown)}.")
    try:
        state = load_file(weights_file)
    except SafetensorError as error:
        raise ValueError(f"{weights_file} is no safetensors file: {error}. Is it whole?") from error
    parts: dict[str, Any] = {}
    for name in PARTS:
        parts[name] = given.get(name)
        if parts[name] is None:
            parts[name] = _build(name, config.get(name), encoder=parts.get("encoder"))
    model = model_class(**parts)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        saved = state.get(name)
        if saved is not None and saved.is_floating_point() and tensor.is_floating_point():
            tensor.data = tensor.data.to(saved.dtype)  # in place: weights that were shared stay shared
    model.load_state_dict(state)
    return model.eval()


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"A saved model is a folder with {CONFIG} and {WEIGHTS}; {file} is missing.")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}. Is the file whole?") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(
            f"{file} must describe a model's parts in format {FORMAT}; this one does not. Was it saved by another "
            "library, or by a newer seqjepa? Then upgrade it."
        )
    return config


def _replace_all(new: Path, folder: Path, old: Path) -> None:
    """Move the new files into the folder; if one cannot be, put the old ones back."""
    files = sorted(path.name for path in new.iterdir())
    try:
        for name in files:
            if (folder / name).exists():
                os.replace(folder / name, old / name)
            os.replace(new / name, folder / name)
    except OSError:
        for path in old.iterdir():
            os.replace(path, folder / path.name)
        raise


def _describe(part: Any) -> Any:
    """A part as JSON values; None where it has no such description."""
    part = unwrap(part) if isinstance(part, nn.Module) else part
    if part is None or isinstance(part, bool | int | float | str):
        return part
    if isinstance(part, nn.Module) and isinstance(spec := getattr(part, "timm_spec", None), Mapping):
        return {"type": "timm", **spec} if _is_json(spec) and not _reaches_out(spec) else None
    if KNOWN.get(type(part).__name__) is not type(part):
        return None
    described: dict[str, Any] = {"type": type(part).__name__}
    for name in _arguments(type(part)):
        value = getattr(part, "buffer_mode" if name == "buffers" else name)  # nn.Module owns the name `buffers`
        described[name] = _describe(value)
        if described[name] is None and value is not None:
            return None
    return described


def _build(name: str, described: Any, encoder: Any) -> Any:
    """A part from its description."""
    if not isinstance(described, Mapping):
        raise ValueError(
            f"The {name} of this model was the user's own and config.json does not describe it. Build it as it was "
            f"built for training and pass it: from_pretrained(..., {name}=...)."
        )
    arguments = {k: v for k, v in described.items() if k != "type"}
    kind = str(described.get("type"))
    try:
        if kind == "timm":
            if _reaches_out(arguments):
                raise ValueError(
                    f"config.json asks timm for {dict(described)}, which may read other files or the network; a saved "
                    "model does not. Build the encoder yourself and pass it: from_pretrained(..., encoder=...)."
                )
            return timm_encoder(**arguments)
        part = KNOWN[kind]
        arguments = {k: _build(k, v, None) if isinstance(v, Mapping) else v for k, v in arguments.items()}
        return part(encoder, **arguments) if issubclass(part, EMATarget | StopGradientTarget) else part(**arguments)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"config.json describes a {name} that this version of seqjepa cannot build: {dict(described)} "
            f"({error}). Upgrade seqjepa, or pass {name}= yourself."
        ) from error


def _reaches_out(spec: Mapping[str, Any]) -> bool:
    return ":" in str(spec.get("name")) or any(option in spec for option in REACHING_OUT)


def _arguments(part: type) -> list[str]:
    parameters = inspect.signature(part).parameters.values()
    return [p.name for p in parameters if p.name != "encoder" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def _wrappers(model: nn.Module) -> list[str]:
    """What compiled and parallel parts put into a weight's name, outer parts first: such as `encoder._orig_mod.`."""
    return [
        f"{name}.{'_orig_mod' if is_compiled(module) else 'module'}."
        for name, module in model.named_modules()
        if name and unwrap(module) is not module
    ]


def _strip_wrappers(model: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    """State-dict hook: a compiled or parallel part saves under the names of the part itself."""
    wrappers = [prefix + wrapper for wrapper in _wrappers(model)][::-1]
    for key in list(state_dict):
        name = key
        for wrapper in wrappers:
            if name.startswith(wrapper):
                name = wrapper[: wrapper.rindex(".", 0, -1) + 1] + name[len(wrapper) :]
        state_dict[name] = state_dict.pop(key)


def _find_wrapped_parts(model: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Load hook: weights under the names of the parts find them compiled, parallel or neither."""
    for key in [key for key in state_dict if key.startswith(prefix)]:
        name = key[len(prefix) :].replace(COMPILED, "")
        for wrapper in _wrappers(model):
            part = wrapper[: wrapper.rindex(".", 0, -1) + 1]
            if name.startswith(part):
                name = wrapper + name[len(part) :]
        state_dict[prefix + name] = state_dict.pop(key)


def _misfit(ours: Tensor, theirs: Any) -> str | None:
    """Why a value cannot take the place of one of our tensors; None if it can."""
    if not isinstance(theirs, Tensor):
        return f"{type(theirs).__name__} given, a tensor needed"
    if theirs.shape != ours.shape:
        return f"{tuple(theirs.shape)} given, {tuple(ours.shape)} needed"
    if theirs.is_floating_point() != ours.is_floating_point() or theirs.is_complex():
        return f"{theirs.dtype} given, {ours.dtype} needed"
    if theirs.layout != torch.strided or theirs.is_meta != ours.is_meta:
        return f"a {theirs.layout} tensor on {theirs.device} given, a plain one with values needed"
    return None
