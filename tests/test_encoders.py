"""Encoders from timm and from the user."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from seqjepa.encoders import encode_views, feature_width, timm_encoder, with_cifar_stem
from tests.builders import TinyEncoder


@pytest.mark.parametrize(("name", "img_size", "width"), [
    ("resnet18", None, 512), ("resnet50", 64, 2048), ("vit_tiny_patch16_224", 48, 192), ("convnext_atto", 32, 320),
    ("mobilenetv3_small_050", None, 1024), ("resnet18.a1_in1k", None, 512),
])  # fmt: skip
def test_timm_encoders_give_vectors_whose_width_is_discovered(name: str, img_size: int | None, width: int) -> None:
    encoder: Any = timm_encoder(name, img_size=img_size)
    side = img_size or 32
    assert feature_width(encoder, (3, side, side)) == width
    assert encode_views(encoder, torch.rand(2, 2, 3, side, side)).shape == (2, 2, width)


def test_timm_options_reach_timm() -> None:
    encoder: Any = timm_encoder("resnet18", in_chans=1)
    assert encoder.conv1.in_channels == 1


def test_names_options_and_sizes_are_handed_to_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    calls: list[Any] = []

    def create(name: str, **options: Any) -> nn.Module:
        calls.append((name, options))
        return nn.Identity()

    monkeypatch.setattr(timm, "create_model", create)
    timm_encoder("resnet18", pretrained=True, img_size=64, in_chans=2)
    timm_encoder("vit_tiny_patch16_224", img_size=48)
    timm_encoder("vit_tiny_patch16_224")
    timm_encoder("hf-hub:someone/a-model", img_size=48)
    assert calls == [
        ("resnet18", {"pretrained": True, "num_classes": 0, "in_chans": 2}),
        ("vit_tiny_patch16_224", {"pretrained": False, "num_classes": 0, "img_size": 48}),
        ("vit_tiny_patch16_224", {"pretrained": False, "num_classes": 0}),
        ("hf-hub:someone/a-model", {"pretrained": False, "num_classes": 0}),
    ]


def test_the_encoder_remembers_how_it_was_made() -> None:
    spec = timm_encoder("resnet18", cifar_stem=True, in_chans=1).timm_spec
    assert spec == {"name": "resnet18", "cifar_stem": True, "img_size": None, "in_chans": 1}
    assert timm_encoder("resnet10t", img_size=64).timm_spec == {
        "name": "resnet10t",
        "cifar_stem": False,
        "img_size": 64,
    }


def test_the_resnet_starts_with_zero_initialised_residuals() -> None:
    encoder: Any = timm_encoder("resnet18")
    assert not encoder.layer1[0].bn2.weight.any()


def test_the_cifar_stem_keeps_the_resolution() -> None:
    encoder: Any = timm_encoder("resnet18", cifar_stem=True)
    assert (encoder.conv1.kernel_size, encoder.conv1.stride, encoder.conv1.padding) == ((3, 3), (1, 1), (1, 1))
    assert encoder.conv1.bias is None
    assert isinstance(encoder.maxpool, nn.Identity)
    sizes = []
    encoder.layer1.register_forward_hook(lambda module, args, out: sizes.append(out.shape[-2:]))
    encoder(torch.rand(1, 3, 32, 32))
    assert sizes == [(32, 32)]
    fan_out = 64 * 3 * 3
    assert encoder.conv1.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


def test_the_stem_takes_the_encoder_s_dtype_and_channels() -> None:
    encoder: Any = with_cifar_stem(timm_encoder("resnet18", in_chans=4).double())
    assert encoder.conv1.weight.dtype == torch.float64
    assert encoder.conv1.weight.shape == (64, 4, 3, 3)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.sampled_from([torch.float32, torch.float64]))
def test_every_view_is_encoded_by_itself_whatever_its_axes(b: int, t: int, d: int, dtype: torch.dtype) -> None:
    encoder = nn.Linear(7, d).to(dtype)
    views = torch.randn(b, t, 7, dtype=dtype)
    z = encode_views(encoder, views)
    assert z.shape == (b, t, d)
    for i in range(b):
        for j in range(t):
            torch.testing.assert_close(z[i, j], encoder(views[i, j]))


def test_all_views_go_in_one_call() -> None:
    class Counting(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            assert x.shape == (6, 3, 4, 4)
            return x.mean((2, 3))

    encoder = Counting()
    encode_views(encoder, torch.rand(2, 3, 3, 4, 4))
    assert encoder.calls == 1


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("made", ["views", "encoder", "neither"])
def test_channels_last_views_or_weights_bring_views_in_that_layout(made: str, cut: bool) -> None:
    seen: list[Tensor] = []

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return self.conv(x).mean((2, 3))

    views = torch.rand(2, 4, 3, 8, 8)
    plain = Encoder()
    expected = encode_views(plain, views[:, :-1] if cut else views)
    encoder = plain.to(memory_format=torch.channels_last) if made == "encoder" else plain
    if made == "views":
        views = views.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (2, 4))
    got = encode_views(encoder, views[:, :-1] if cut else views)
    torch.testing.assert_close(got, expected)
    assert seen[-1].is_contiguous(memory_format=torch.channels_last) == (made != "neither")
    assert (seen[-1].data_ptr() == views.data_ptr()) == (not cut and made != "encoder")  # not copied without need


def test_finding_the_width_leaves_no_trace() -> None:
    encoder = TinyEncoder(8)
    encoder.bn2.eval()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    assert feature_width(encoder, (3, 8, 8)) == 8
    assert encoder.training
    assert encoder.bn1.training
    assert not encoder.bn2.training
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert feature_width(TinyEncoder(5).double(), (3, 8, 8)) == 5


def test_the_modes_come_back_even_if_the_encoder_fails() -> None:
    encoder = TinyEncoder(8)
    with pytest.raises(
        ValueError, match=r"cannot encode one of shape \(1, 8, 8\): .* 3 channels, .*view_shape=\(C, H, W\)"
    ):
        feature_width(encoder, (1, 8, 8))
    assert all(module.training for module in encoder.modules())


def test_an_encoder_that_small_views_are_nothing_to_is_tried_with_its_own_size() -> None:
    from seqjepa import SeqJEPA

    assert SeqJEPA.from_timm("inception_v3", action_dim=2).predictor.dim == 2048
    with pytest.raises(ValueError, match=r"InceptionV3 cannot encode one of shape \(3, 32, 32\): .*img_size="):
        SeqJEPA.from_timm("inception_v3", action_dim=2, img_size=32)


def test_an_encoder_may_convert_to_lower_precision_by_itself() -> None:
    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(7, 2).bfloat16()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x.bfloat16()).float()

    assert encode_views(Casting(), torch.rand(2, 3, 7)).dtype == torch.float32


def test_an_empty_batch_is_encoded_as_one() -> None:
    assert encode_views(nn.Linear(7, 2), torch.rand(0, 3, 7)).shape == (0, 3, 2)


def test_an_encoder_without_weights_will_do() -> None:
    assert feature_width(nn.Flatten(), (3, 4, 4)) == 48


def test_the_stem_is_remembered_when_it_is_swapped_by_hand() -> None:
    encoder: Any = with_cifar_stem(timm_encoder("resnet18"))
    assert encoder.timm_spec["cifar_stem"] is True


def test_the_stem_is_swapped_in_an_encoder_from_elsewhere() -> None:
    import timm

    encoder: Any = with_cifar_stem(timm.create_model("resnet18", num_classes=0))
    assert encoder.conv1.kernel_size == (3, 3)
    assert not hasattr(encoder, "timm_spec")


# --- bad input ---


def test_a_classifier_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^An encoder has no classifier, num_classes is always 0; got it as an option\. Leave it out"
    ):
        timm_encoder("resnet18", num_classes=10)


def test_near_matches_are_found_behind_tags_and_owners() -> None:
    with pytest.raises(ValueError, match=r"Near matches: resnet18"):
        timm_encoder("somebody-with-a-long-name/resnet1.a1_in1k")


def test_unknown_names_are_answered_with_near_matches() -> None:
    with pytest.raises(
        ValueError,
        match=r"timm [\d.a-z]+ has no model 'resnet81'\. Near matches: resnet\d+\w*, resnet\w+, resnet\w+\.$",
    ):
        timm_encoder("resnet81")
    with pytest.raises(ValueError, match=r"has no model '@@@'\. timm\.list_models\(\) names them all"):
        timm_encoder("@@@")


def test_a_stem_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"VisionTransformer has no such pair\. Use a ResNet such as 'resnet18'"):
        timm_encoder("vit_tiny_patch16_224", cifar_stem=True)
    with pytest.raises(ValueError, match=r"TinyEncoder has no such pair"):  # a conv1, but no maxpool
        with_cifar_stem(TinyEncoder())
    with pytest.raises(ValueError, match=r"ResNet has no such pair"):  # a deep stem
        timm_encoder("resnet26d", cifar_stem=True)


def test_a_pretrained_stem_is_not_thrown_away_unasked() -> None:
    with pytest.raises(
        ValueError,
        match=r"^cifar_stem=True .* pretrained weights would be lost; got both\. Drop one, or .*knowingly\.$",
    ):
        timm_encoder("resnet18", cifar_stem=True, pretrained=True)


def test_feature_maps_and_odd_outputs_are_refused() -> None:
    views = torch.rand(2, 3, 3, 8, 8)
    with pytest.raises(
        ValueError,
        match=r"map 6 views to vectors of shape \(6, D\); got \(6, 4, 6, 6\)\. .* add pooling: nn\.Seq.*\(\)\)\.$",
    ):
        encode_views(nn.Conv2d(3, 4, 3), views)
    with pytest.raises(ValueError, match=r"vectors of shape \(6, D\); got \(12, 96\)"):
        encode_views(nn.Sequential(nn.Flatten(), nn.Unflatten(1, (2, 96)), nn.Flatten(0, 1)), views)

    class Tuple(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(TypeError, match=r"one tensor of shape \(6, D\); got tuple\. Wrap it in a module that picks"):
        encode_views(Tuple(), views)


def test_wrong_views_are_refused() -> None:
    with pytest.raises(ValueError, match=r"axes \(B, T, …\), for images \(B, T, C, H, W\); got shape \(2, 7\)"):
        encode_views(nn.Linear(7, 2), torch.rand(2, 7))
    with pytest.raises(TypeError, match=r"views must be a torch\.Tensor; got list"):
        encode_views(nn.Linear(7, 2), [[1.0]])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"floating point; got torch\.int64\. Convert with views\.float\(\)\.$"):
        encode_views(nn.Linear(7, 2), torch.zeros(2, 3, 7, dtype=torch.long))
    with pytest.raises(TypeError, match=r"floating point; got torch\.uint8\. Convert with views\.float\(\) / 255\.$"):
        encode_views(nn.Linear(7, 2), torch.zeros(2, 3, 7, dtype=torch.uint8))
    with pytest.raises(
        TypeError, match=r"views must have the dtype of the weights, torch\.float32; got torch\.float64"
    ):
        encode_views(nn.Linear(7, 2), torch.rand(2, 3, 7).double())
    with pytest.raises(ValueError, match=r"views must lie where the weights do, on cpu; got meta"):
        encode_views(nn.Linear(7, 2), torch.rand(2, 3, 7, device="meta"))


def test_timm_is_imported_when_it_is_used() -> None:
    code = "import sys, seqjepa.encoders; assert 'timm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
