"""Saving and loading: every bit and every part comes back, or nothing is loaded."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seqjepa import (
    ActionEmbedder,
    CausalAggregator,
    CosineSchedule,
    EMATarget,
    NoActions,
    OnlineTarget,
    RawActions,
    SeqJEPA,
    SeqJEPALoss,
    SequenceAggregator,
    SIGReg,
    StopGradientTarget,
    VarianceCovariance,
)
from seqjepa._files import staging_folder
from seqjepa.aggregator import SinusoidalPositions
from seqjepa.encoders import timm_encoder, with_cifar_stem
from seqjepa.loss import MSEDistance, SmoothL1Distance
from tests.builders import TinyEncoder, joint, randomise, sequence, tiny_model
from tests.disks import room_for


def assert_same_bits(ours: SeqJEPA, theirs: SeqJEPA) -> None:
    state, other = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(other)
    for key, value in state.items():
        assert value.dtype == other[key].dtype, key
        assert torch.equal(value, other[key]), key
    assert ours.describe() == theirs.describe()


def timm_model(**options: Any) -> SeqJEPA:
    return randomise(SeqJEPA.from_timm("resnet18", action_dim=3, **options))


def test_a_trained_model_comes_back_with_every_bit_config_and_step(tmp_path: Path) -> None:
    model = timm_model(cifar_stem=True, in_chans=3, momentum=CosineSchedule(0.9, 1.0, 7))
    model(*sequence()).loss.backward()
    model.update_target()
    assert model.save_pretrained(tmp_path / "model") is None
    loaded = SeqJEPA.from_pretrained(tmp_path / "model")
    assert_same_bits(model, loaded)
    assert loaded.target.step == 1
    assert loaded.target.momentum == CosineSchedule(0.9, 1.0, 7)
    assert isinstance(loaded.encoder.maxpool, nn.Identity)
    assert not any(m.training for m in loaded.modules())
    assert torch.equal(loaded(*sequence()).prediction, model.eval()(*sequence()).prediction)
    loaded.train()(*sequence()).loss.backward()
    assert all(p.requires_grad != name.startswith("target.") for name, p in loaded.named_parameters())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["README.md", "config.json", "model.safetensors"]


def variant(name: str) -> SeqJEPA:
    encoder = timm_encoder("resnet10t")
    base: dict[str, Any] = {"encoder": encoder, "dim": 512, "heads": 4}
    if name == "embedder":
        return tiny_model(**base, embedder=ActionEmbedder(3, 4, hidden_dim=5, norm="rms"))
    if name == "raw":
        return tiny_model(**base, embedder=RawActions(4))
    if name == "ablation":
        return tiny_model(**base, embedder=NoActions(), loss=SeqJEPALoss(SmoothL1Distance(0.5)))
    if name == "aggregator":
        other = SequenceAggregator(
            516, depth=1, heads=2, mlp_ratio=2, dropout=0.2, norm_first=True, positions=SinusoidalPositions(516)
        )
        return tiny_model(**base, aggregator=other)
    if name == "causal":
        causal = CausalAggregator(
            516, depth=1, heads=2, mixing="none", window=5, rotary=100.0, mlp_ratio=2, dropout=0.2, norm_first=True
        )
        return tiny_model(**base, aggregator=causal)
    if name == "no-ema":
        loss = SeqJEPALoss(MSEDistance(), VarianceCovariance(2.0, 0.5, std=0.5, eps=1e-3))
        return tiny_model(**base, target=StopGradientTarget(encoder), loss=loss)
    if name == "online":
        loss = SeqJEPALoss(MSEDistance(), SIGReg(0.2, 32, knots=9, t_max=4.0))
        return tiny_model(**base, target=OnlineTarget(encoder), loss=loss)
    if name == "ema":
        return tiny_model(**base, target=EMATarget(encoder, 0.5, buffers="ema"))
    return tiny_model(**base).to(torch.bfloat16).to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "name", ["embedder", "raw", "ablation", "aggregator", "causal", "no-ema", "online", "ema", "half"]
)
def test_every_part_of_the_package_is_written_down(name: str, tmp_path: Path) -> None:
    model = variant(name)
    model.save_pretrained(tmp_path)
    loaded = SeqJEPA.from_pretrained(str(tmp_path))
    assert_same_bits(model, loaded)
    for part in ("embedder", "aggregator", "predictor", "target", "loss"):
        assert type(getattr(loaded, part)) is type(getattr(model, part))
        assert repr(getattr(loaded, part)) == repr(getattr(model, part).eval())
    if name in ("no-ema", "online"):
        assert torch.equal(loaded.target(torch.ones(1, 3, 32, 32)), loaded.encoder(torch.ones(1, 3, 32, 32)))


def test_parts_of_the_user_s_own_are_given_again(tmp_path: Path) -> None:
    class Twice(nn.Module):
        embed_dim = 4

        def forward(self, actions: Tensor) -> Tensor:
            return nn.functional.pad(2 * actions, (0, 1))

    encoder = TinyEncoder()
    aggregator = SequenceAggregator(12, heads=2, positions=nn.Embedding(8, 12))
    model = tiny_model(
        encoder=encoder, embedder=Twice(), aggregator=aggregator, target=EMATarget(encoder, lambda s: 0.5)
    )
    config = model.describe()
    assert [name for name, part in config.items() if part is None] == ["encoder", "embedder", "aggregator", "target"]
    model.save_pretrained(tmp_path)
    own: dict[str, Any] = {
        "encoder": TinyEncoder(),
        "embedder": Twice(),
        "aggregator": SequenceAggregator(12, heads=2, positions=nn.Embedding(8, 12)),
    }
    own["target"] = EMATarget(own["encoder"], 0.5)
    loaded = SeqJEPA.from_pretrained(tmp_path, **own)
    assert loaded.encoder is own["encoder"]
    assert torch.equal(loaded(*sequence()).prediction, model.eval()(*sequence()).prediction)
    for missing in own:
        rest = {name: part for name, part in own.items() if name != missing}
        with pytest.raises(
            ValueError, match=rf"The {missing} of this model was the user's own.*from_pretrained\(\.\.\., {missing}="
        ):
            SeqJEPA.from_pretrained(tmp_path, **rest)


def test_compiled_parts_are_described_as_the_parts_themselves() -> None:
    model, plain = timm_model(), timm_model()
    model.encoder = torch.compile(model.encoder)
    assert model.describe() == plain.describe()


def test_timm_options_that_json_cannot_hold_make_the_encoder_the_user_s_own() -> None:
    assert timm_model(act_layer=nn.SiLU).describe()["encoder"] is None


def test_saving_again_replaces_weights_and_config_and_keeps_the_card(tmp_path: Path) -> None:
    timm_model().save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    second = randomise(timm_model(embedder=NoActions()), seed=9)
    second.save_pretrained(tmp_path)
    assert_same_bits(second, SeqJEPA.from_pretrained(tmp_path))
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_save_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = timm_model()
    first.save_pretrained(tmp_path / "model")

    def full_disk(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(OSError, match="no space left"):
        timm_model(embedder=NoActions()).save_pretrained(tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert_same_bits(first, SeqJEPA.from_pretrained(tmp_path / "model"))


def test_wherever_in_a_file_the_disk_is_full_the_model_that_was_there_stays(saved: Path) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    other, size = timm_model(embedder=NoActions()), len(before["model.safetensors"])
    for room in (0, 100, 5000, size // 2, size // 4 * 3):
        with room_for(room), pytest.raises(OSError, match="File too large"):
            other.save_pretrained(saved)
        assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    other.save_pretrained(saved)
    assert_same_bits(other, SeqJEPA.from_pretrained(saved))


def test_pushing_goes_through_the_hub_s_mixin(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import ModelHubMixin

    calls: list[Any] = []

    def push(self: Any, repo_id: str, **options: Any) -> str:
        calls.append((self.model, repo_id, options))
        return "https://hub/commit"

    monkeypatch.setattr(ModelHubMixin, "push_to_hub", push)
    model = tiny_model()
    assert model.push_to_hub("me/digits", private=True) == "https://hub/commit"
    assert calls == [(model, "me/digits", {"private": True})]


def test_a_name_on_the_hub_is_fetched_through_the_hub_s_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    model = timm_model()
    model.save_pretrained(tmp_path)
    fetched: list[Any] = []

    def download(repo_id: str, filename: str, **options: Any) -> str:
        fetched.append((repo_id, filename, options.get("revision")))
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", lambda **options: str(tmp_path / "config.json"))
    assert_same_bits(model, SeqJEPA.from_pretrained("me/digits", revision="v1"))
    assert fetched == [("me/digits", "config.json", "v1"), ("me/digits", "model.safetensors", "v1")]


@pytest.fixture
def two_saves(tmp_path: Path) -> Any:
    """A folder that holds a first model, and a save of another one into it."""
    first, second = timm_model(), randomise(timm_model(embedder=NoActions()), seed=9)
    first.save_pretrained(tmp_path / "model")
    return tmp_path / "model", first, second


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, OSError])
@pytest.mark.parametrize("stop", [0, 1])
def test_a_save_that_is_interrupted_leaves_what_was_there(
    two_saves: Any, monkeypatch: pytest.MonkeyPatch, raised: Any, stop: int
) -> None:
    folder, first, second = two_saves
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    replace, moves = os.replace, itertools.count()

    def cut_off(source: Any, target: Any) -> None:
        if next(moves) == stop:
            raise raised("cut off")
        replace(source, target)

    monkeypatch.setattr(os, "replace", cut_off)
    with pytest.raises(raised, match="cut off"):
        second.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert_same_bits(first, SeqJEPA.from_pretrained(folder))


def test_at_every_moment_of_a_save_a_model_loads(two_saves: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, first, second = two_saves
    replace, found = os.replace, []

    def look(source: Any, target: Any) -> None:
        replace(source, target)
        loaded = SeqJEPA.from_pretrained(folder)  # what is left if the process is killed here
        found.append("new" if isinstance(loaded.embedder, NoActions) else "old")
        assert_same_bits(second if found[-1] == "new" else first, loaded)

    monkeypatch.setattr(os, "replace", look)
    second.save_pretrained(folder)
    assert found == ["old", "new"]  # the config, then the weights, which bring their own description along


def test_a_config_finds_the_weights_it_was_written_with(two_saves: Any, tmp_path: Path) -> None:
    folder, first, second = two_saves
    second.save_pretrained(tmp_path / "other")
    os.replace(tmp_path / "other" / "config.json", folder / "config.json")  # as after a save that was cut off
    assert_same_bits(first, SeqJEPA.from_pretrained(folder))


def test_what_a_killed_save_left_is_cleared_away_and_what_a_living_one_needs_is_not(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom seqjepa._files import staging_folder\n"
        "with staging_folder(Path(sys.argv[1])) as new:\n"
        "    (new / 'model.safetensors').write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    (tmp_path / ".saving-of-an-older-version").mkdir()
    assert len(list(tmp_path.glob(".saving-*"))) == 2
    with staging_folder(tmp_path) as mine:
        timm_model().save_pretrained(tmp_path)
        assert list(tmp_path.glob(".saving-*")) == [mine.parent]
    assert not list(tmp_path.glob(".saving-*"))


def test_a_folder_is_whole_before_anything_is_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm_model()

    def offline(self: Any, repo_id: str, **options: Any) -> str:
        assert (repo_id, options) == ("model", {"private": True})
        raise ConnectionError("no network")

    monkeypatch.setattr(SeqJEPA, "push_to_hub", offline)
    with pytest.raises(ConnectionError, match="no network"):
        model.save_pretrained(tmp_path / "model", push_to_hub=True, private=True)
    assert_same_bits(model, SeqJEPA.from_pretrained(tmp_path / "model"))


def test_a_model_with_compiled_parts_is_saved_as_a_plain_one(tmp_path: Path) -> None:
    model, plain = timm_model(), timm_model()
    model.encoder = torch.compile(model.encoder)
    plain.load_state_dict(model.state_dict())
    model.save_pretrained(tmp_path)
    assert_same_bits(plain, SeqJEPA.from_pretrained(tmp_path))


def test_a_model_saved_before_queries_had_a_projection_of_their_own_comes_back(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = timm_model().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(joint(load_file(file)), file, metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    del config["weights"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same_bits(model, SeqJEPA.from_pretrained(tmp_path))


def test_a_loaded_model_is_on_the_cpu_whatever_the_default_device(tmp_path: Path) -> None:
    model = timm_model()
    model.save_pretrained(tmp_path)
    with torch.device("meta"):
        loaded = SeqJEPA.from_pretrained(tmp_path)
    assert_same_bits(model, loaded)


# --- bad input ---


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    timm_model().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_folder_without_its_files_is_refused(saved: Path, file: str) -> None:
    (saved / file).unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"folder with config\.json and model\.safetensors; .*{file} is missing"
    ):
        SeqJEPA.from_pretrained(saved)


def test_truncated_weights_are_refused(saved: Path) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.safetensors is no safetensors file.*Is it whole\?"):
        SeqJEPA.from_pretrained(saved)


def test_weights_of_another_model_are_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"for another model; nothing was loaded(.|\n)*embedder"):
        SeqJEPA.from_pretrained(saved, embedder=RawActions(128))


def test_a_failed_load_leaves_a_given_encoder_untouched(saved: Path) -> None:
    encoder = TinyEncoder(512)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    with pytest.raises(RuntimeError, match="nothing was loaded"):
        SeqJEPA.from_pretrained(saved, encoder=encoder)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_unknown_keywords_are_refused(saved: Path) -> None:
    with pytest.raises(TypeError, match=r"takes the parts encoder, .* by name; got encodr"):
        SeqJEPA.from_pretrained(saved, encodr=TinyEncoder())


@pytest.mark.parametrize(("change", "message"), [
    ({"loss": {"type": "HingeLoss"}}, r"a part `loss` that this version of seqjepa cannot build.*HingeLoss.*pass loss"),
    ({"predictor": {"type": "ConditionedPredictor", "size": 3}}, r"a part `predictor` that this version"),
    ({"loss": {"type": "SeqJEPALoss", "distance": {"type": "os.system"}}}, r"a part `distance` that this version"),
    ({"embedder": {"type": "CosineSchedule", "start": 0.0, "end": 1.0, "total_steps": 2}}, r"CosineSchedule is none"),
    ({"loss": {"type": "MSEDistance"}}, r"a part `loss` that .*MSEDistance is none"),
    ({"embedder": {"type": "ActionEmbedder", "action_dim": 10**18}}, r"a part `embedder` that this version"),
    ({"target": None}, r"The target of this model was the user's own"),
    ({"encoder": "resnet18"}, r"The encoder of this model was the user's own"),
])  # fmt: skip
def test_a_config_that_names_unknown_parts_is_refused(saved: Path, change: dict[str, Any], message: str) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        SeqJEPA.from_pretrained(saved)


def test_a_config_that_is_no_json_is_refused(saved: Path) -> None:
    (saved / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON.*Is the file whole\?"):
        SeqJEPA.from_pretrained(saved)


@pytest.mark.parametrize("depth", [100, 1000, 100_000])
def test_a_deeply_nested_config_is_refused(saved: Path, depth: int) -> None:
    nested = '{"type": "SeqJEPALoss", "distance": ' * depth + "null" + "}" * depth
    (saved / "config.json").write_text(f'{{"format": 1, "encoder": {nested}}}')
    with pytest.raises(ValueError, match=r"config\.json .*(is not JSON|nested)"):
        SeqJEPA.from_pretrained(saved)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": 2}'])
def test_another_library_s_config_is_refused(saved: Path, content: str) -> None:
    (saved / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"must describe a model's parts in format 1; this one does not"):
        SeqJEPA.from_pretrained(saved)


@pytest.mark.parametrize("name", ["/nowhere/model", "model", "runs/a/model"])
def test_a_folder_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{name} is no folder here, and no name on the Hub"):
        SeqJEPA.from_pretrained(name)


class Armed:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_config_from_a_stranger_reads_no_other_file_and_no_network(saved: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": Armed(tmp_path / "ran")}, tmp_path / "weights.pth")
    config = json.loads((saved / "config.json").read_text())
    for trap in (
        {"checkpoint_path": str(tmp_path / "weights.pth")},
        {"pretrained": True},
        {"pretrained_cfg_overlay": {"url": "http://localhost:9/"}},
        {"cache_dir": str(tmp_path)},
        {"name": "hf-hub:someone/a-model"},
    ):
        (saved / "config.json").write_text(json.dumps(config | {"encoder": config["encoder"] | trap}))
        with pytest.raises(ValueError, match=r"may read other files or the network.*from_pretrained\(\.\.\., encoder="):
            SeqJEPA.from_pretrained(saved)
    assert not (tmp_path / "ran").exists()


def test_an_encoder_that_reached_out_is_saved_as_the_user_s_own() -> None:
    model = timm_model()
    model.encoder.timm_spec = model.encoder.timm_spec | {"name": "hf-hub:someone/a-model"}
    assert model.describe()["encoder"] is None


def test_weights_that_were_shared_stay_shared(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        first, second = nn.Linear(8, 8), nn.Linear(8, 8)
        second.weight = first.weight
        return nn.Sequential(first, second)

    model = SeqJEPA.from_encoder(tied(), action_dim=2, view_shape=(8,)).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = SeqJEPA.from_pretrained(tmp_path, encoder=tied())
    assert loaded.encoder[0].weight is loaded.encoder[1].weight
    assert loaded.encoder[0].weight.dtype == torch.bfloat16
    assert_same_bits(model, loaded)


def test_a_stem_swapped_by_hand_comes_back(tmp_path: Path) -> None:
    model = SeqJEPA.from_encoder(with_cifar_stem(timm_encoder("resnet18")), action_dim=2)
    model.save_pretrained(tmp_path)
    assert_same_bits(model, SeqJEPA.from_pretrained(tmp_path))


def test_saved_files_can_be_read_by_whoever_reads_the_folder(saved: Path) -> None:
    assert (saved / "model.safetensors").stat().st_mode == (saved / "config.json").stat().st_mode


def test_a_move_that_fails_puts_the_old_files_back(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    replace = os.replace

    def fails_at_the_weights(source: Any, target: Any) -> None:
        if "new" in Path(source).parts and Path(source).name == "model.safetensors":
            raise OSError("disk gone")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_at_the_weights)
    with pytest.raises(OSError, match="disk gone"):
        timm_model(embedder=NoActions()).save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
