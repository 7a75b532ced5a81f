"""A model's way in and out: state dicts, folders and the Hugging Face Hub; safetensors for weights, JSON for parts."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from seqjepa._checks import plain_names, unwrap
from seqjepa._files import move_into_place, staging_folder
from seqjepa._shards import gathered, is_sharded, plain_type, sharded_as
from seqjepa.actions import ActionEmbedder, NoActions, RawActions
from seqjepa.aggregator import SequenceAggregator, SinusoidalPositions
from seqjepa.causal import CausalAggregator
from seqjepa.distributed import on_rank_0, rank
from seqjepa.encoders import timm_encoder
from seqjepa.functional import CosineSchedule, WarmupCosineSchedule
from seqjepa.loss import CosineDistance, MSEDistance, SeqJEPALoss, SIGReg, SmoothL1Distance, VarianceCovariance
from seqjepa.predictor import ConditionedPredictor
from seqjepa.target import EMATarget, OnlineTarget, StopGradientTarget

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["PretrainedModule"]

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
FORMAT = 1
DEEPEST = 20  # a distance in a loss in a model is three
# Options of timm that read a file or the network: a folder someone sent us shall not.
REACHING_OUT = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
PARTS = ("encoder", "embedder", "aggregator", "predictor", "target", "loss")
KINDS: dict[str, tuple[type, ...]] = {  # of the parts that can be described but the encoder
    "embedder": (ActionEmbedder, NoActions, RawActions),
    "aggregator": (SequenceAggregator, CausalAggregator),
    "predictor": (ConditionedPredictor,),
    "target": (EMATarget, StopGradientTarget, OnlineTarget),
    "loss": (SeqJEPALoss,),
}
KNOWN: dict[str, type] = {
    part.__name__: part
    for part in (
        *(kind for kinds in KINDS.values() for kind in kinds),
        SinusoidalPositions, CosineDistance, SmoothL1Distance, MSEDistance, VarianceCovariance, SIGReg, CosineSchedule,
        WarmupCosineSchedule,
    )
}  # fmt: skip


class PretrainedModule(nn.Module):
    """Save a model made of parts, and get it back with the same bits.

    A part of this package is written down by its constructor's arguments, each kept as an attribute. A part of the
    user's own is saved by its weights alone, and handed to `from_pretrained` by name. Saved weights, and those that are
    loaded, need not tell whether a part was compiled or parallel.
    """

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights if all of them fit; otherwise raise, with nothing loaded.

        Args:
            state_dict: from `state_dict()`. Where torch.compile or DistributedDataParallel wrapped the model or a part
                of it then or now, the names they add (`module.`, `_orig_mod.`) make no difference. Nor does it whether
                `fully_shard` shards the model then or now.
            strict: whether every weight must be there, and no other.
            assign: take the tensors themselves instead of copying them: for a model built on the meta device.

        Returns:
            The missing and the unexpected keys, as `torch.nn.Module.load_state_dict` does.

        Raises:
            RuntimeError: a weight of another shape or kind or, if strict, one missing or unknown. A parent module loads
                its children by itself, with PyTorch's own guarantees.
        """
        ours, given = self.state_dict(), self._under_our_names(state_dict)
        theirs = _upgraded(self, given)
        shared = sorted(ours.keys() & theirs.keys())
        problems = [f"{key}: {problem}" for key in shared if (problem := _misfit(ours[key], theirs[key], assign))]
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
        for key in shared:
            if key in given and (is_sharded(ours[key]) or is_sharded(given[key])):
                given[key] = sharded_as(ours[key], given[key])
        return super().load_state_dict(given, strict, assign)

    def _under_our_names(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """The same values, each under the name that its weight has here, whatever wrapped the parts then and now."""
        known = set(self.state_dict())
        places: dict[str, list[str]] = {}
        for name, _ in self.named_modules(remove_duplicate=False):
            places.setdefault(_bare(name), []).append(name)  # wrappers before what they wrap

        def here(name: str) -> str:
            head, tail = _bare(name), ""
            while head not in places:  # up to a module that we have: of an older layout it may know the rest
                head, _, last = head.rpartition(".")
                tail = f".{last}{tail}"
            candidates = [f"{place}{tail}".lstrip(".") for place in reversed(places[head])]
            return next((candidate for candidate in candidates if candidate in known), candidates[0])

        found: OrderedDict[str, Any] = OrderedDict()
        for key, value in state_dict.items():
            name = str(key) if key in known else here(str(key))
            found[str(key) if name in found else name] = value
        versions = getattr(state_dict, "_metadata", None)  # where a module finds the version its weights were saved by
        if versions is not None:
            found._metadata = {here(name): version for name, version in versions.items()}  # type: ignore[attr-defined]
        return found

    def describe(self) -> dict[str, Any]:
        """The parts as plain JSON values, `config.json`: what `from_pretrained` builds the model from.

        Returns:
            A dictionary with one entry a part; None for a part that JSON cannot describe, such as your own encoder.
        """
        return {"format": FORMAT} | {name: _describe(getattr(self, name)) for name in PARTS}

    def save_pretrained(self, save_directory: str | os.PathLike[str], **hub_options: Any) -> str | None:
        """Write `model.safetensors`, `config.json` and a model card into a folder.

        At every moment the folder holds a model that loads, the old one or the new: files are written whole, beside the
        old ones, and then take their places. A save that fails or is interrupted leaves what was there, and the next
        one clears away what it left. With `push_to_hub=True` the folder is whole before anything is uploaded.

        Of several processes rank 0 writes, whoever calls; the others return at once. A model that is sharded over them
        is gathered first: call it on all ranks then, and all return when the folder is there.

        Args:
            save_directory: the folder; made if missing.
            hub_options: handed to `huggingface_hub.ModelHubMixin`: `push_to_hub`, `repo_id` (the folder's name by
                default), and what its `push_to_hub` takes.

        Returns:
            The address of the commit if `push_to_hub=True`, else None.

        Raises:
            OSError: it could not be written; what was there still is.

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
        push = hub_options.pop("push_to_hub", False)
        repo_id = hub_options.pop("repo_id", folder.name)

        def save(hub_model: Any) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            with staging_folder(folder) as new:
                hub_model.save_pretrained(new, repo_id=repo_id, **({} if push else hub_options))
                os.chmod(new / WEIGHTS, (new / CONFIG).stat().st_mode)  # safetensors keeps it from everyone else
                if (folder / CARD).exists():
                    (new / CARD).unlink()
                move_into_place(new, folder)

        self._on_one_rank(save)
        return self.push_to_hub(repo_id, **hub_options) if push else None

    def push_to_hub(self, repo_id: str, **hub_options: Any) -> str:
        """Upload the model to the Hugging Face Hub; of several processes rank 0 does, as in `save_pretrained`.

        Args:
            repo_id: such as "me/seqjepa-3diebench".
            hub_options: handed to `huggingface_hub.ModelHubMixin.push_to_hub`: `private`, `token`, …

        Returns:
            The address of the commit.
        """
        return self._on_one_rank(lambda hub_model: hub_model.push_to_hub(repo_id, **hub_options))

    def _on_one_rank(self, act: Callable[[Any], Any]) -> Any:
        """Act on the whole model on rank 0. Where that takes all ranks, the others wait; else they go on at once."""
        state = self.state_dict()
        if not any(is_sharded(value) for value in state.values()):
            return act(_hub_class()(self, state)) if rank() == 0 else None
        whole = {}
        for name, value in state.items():  # one after another: only rank 0 keeps them, where memory is not scarce
            tensor = gathered(value)
            if rank() == 0:
                whole[name] = tensor.cpu()
        return on_rank_0(lambda: act(_hub_class()(self, whole)))

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
        def __init__(self, model: Any, state: Mapping[str, Tensor]) -> None:
            self.model = model
            # A clone each: safetensors takes neither shared storage nor other layouts.
            self.tensors = {
                name: tensor.detach().clone(memory_format=torch.contiguous_format)
                for name, tensor in zip(plain_names(model, state), state.values(), strict=True)
            }
            self._hub_mixin_config = model.describe() | {"weights": _digest(self.tensors)}

        def _save_pretrained(self, save_directory: Path) -> None:
            from safetensors import SafetensorError
            from safetensors.torch import save_file

            config = json.dumps(self._hub_mixin_config)
            try:
                save_file(self.tensors, save_directory / WEIGHTS, metadata={"format": "pt", "config": config})
            except SafetensorError as error:  # on a full disk, which is an OSError like those of other files
                raise OSError(f"{WEIGHTS} could not be written: {error}") from error

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
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    config = _read_config(config_file)
    if not weights_file.is_file():
        raise FileNotFoundError(f"A saved model is a folder with {CONFIG} and {WEIGHTS}; {weights_file} is missing.")
    unknown = sorted(set(given) - set(PARTS))
    if unknown:
        raise TypeError(f"from_pretrained takes the parts {', '.join(PARTS)} by name; got {', '.join(unknown)}.")
    try:
        with torch.device("cpu"), safe_open(weights_file, framework="pt") as file:
            written_with = (file.metadata() or {}).get("config")
            state = load_file(weights_file)
    except SafetensorError as error:
        raise ValueError(f"{weights_file} is no safetensors file: {error}. Is it whole?") from error
    if written_with is not None:
        beside = _parsed(written_with, weights_file)
        if beside["weights"] != config.get("weights"):  # a save was cut off between its two files
            config = beside
    with torch.device("cpu"):
        return _assemble(model_class, config, state, given).eval()


def _assemble(model_class: Any, config: Mapping[str, Any], state: dict[str, Tensor], given: dict[str, Any]) -> Any:
    parts: dict[str, Any] = {}
    for name in PARTS:
        parts[name] = given.get(name)
        if parts[name] is None:
            parts[name] = _build(name, config.get(name), encoder=parts.get("encoder"))
    model = model_class(**parts)
    upgraded = _upgraded(model, state)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        saved = upgraded.get(name)
        if saved is not None and saved.is_floating_point() and tensor.is_floating_point():
            tensor.data = tensor.data.to(saved.dtype)  # in place: weights that were shared stay shared
    model.load_state_dict(state)
    return model


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"A saved model is a folder with {CONFIG} and {WEIGHTS}; {file} is missing.")
    return _parsed(file.read_text(encoding="utf-8", errors="replace"), file)


def _parsed(text: str, file: Path) -> dict[str, Any]:
    """The description of a model in a file, if it is one."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}. Is the file whole?") from error
    if _depth(config) > DEEPEST:
        raise ValueError(f"{file} describes parts nested more than {DEEPEST} deep, as no model's are. Who made it?")
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(
            f"{file} must describe a model's parts in format {FORMAT}; this one does not. Was it saved by another "
            "library, or by a newer seqjepa? Then upgrade it."
        )
    return config


def _depth(value: Any) -> int:
    """How many lists and objects stand in one another, counted level by level: no nesting is too deep to count."""
    depth, level = 0, [value]
    while level := [v for v in level if isinstance(v, dict | list)]:
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]
        depth += 1
    return depth


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """What tells one set of weights from another: by it a config finds its weights."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _describe(part: Any) -> Any:
    """A part as JSON values; None where it has no such description."""
    part = unwrap(part) if isinstance(part, nn.Module) else part
    if part is None or isinstance(part, bool | int | float | str):
        return part
    if isinstance(part, nn.Module) and isinstance(spec := getattr(part, "timm_spec", None), Mapping):
        return {"type": "timm", **spec} if _is_json(spec) and not _reaches_out(spec) else None
    kind = plain_type(part)
    if KNOWN.get(kind.__name__) is not kind:
        return None
    described: dict[str, Any] = {"type": kind.__name__}
    for name in _arguments(kind):
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
        if part not in KINDS.get(name, (part,)):
            raise TypeError(f"{kind} is none")
        arguments = {k: _build(k, v, None) if isinstance(v, Mapping) else v for k, v in arguments.items()}
        return part(encoder, **arguments) if part in KINDS["target"] else part(**arguments)
    except (KeyError, TypeError, RuntimeError, MemoryError, OverflowError) as error:
        raise ValueError(
            f"config.json describes a part `{name}` that this version of seqjepa cannot build: {dict(described)} "
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


def _bare(name: str) -> str:
    """A weight's name without what torch.compile and the parallel wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _upgraded(model: nn.Module, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """What the modules' own load hooks make of weights, such as those of an older layout. Nothing is loaded."""
    upgraded = dict(state_dict)
    for name, module in model.named_modules():
        for hook in module._load_state_dict_pre_hooks.values():
            hook(upgraded, f"{name}." if name else "", {}, True, [], [], [])
    return upgraded


def _misfit(ours: Tensor, theirs: Any, assign: bool) -> str | None:
    """Why a value cannot take the place of one of our tensors; None if it can."""
    if not isinstance(theirs, Tensor):
        return f"{type(theirs).__name__} given, a tensor needed"
    if theirs.shape != ours.shape:
        return f"{tuple(theirs.shape)} given, {tuple(ours.shape)} needed"
    if theirs.is_floating_point() != ours.is_floating_point() or theirs.is_complex():
        return f"{theirs.dtype} given, {ours.dtype} needed"
    if ours.is_meta and not (assign or theirs.is_meta):
        return "a weight on the meta device has no values to copy to; load with assign=True, or call to_empty() first"
    if theirs.layout != torch.strided or (theirs.is_meta and not ours.is_meta):
        return f"a {theirs.layout} tensor on {theirs.device} given, a plain one with values needed"
    return None
