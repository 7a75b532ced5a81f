"""The shapes in the signatures are true: every public call runs once with jaxtyping and beartype checking them."""

import subprocess
import sys
import textwrap

PREAMBLE = """
import torch
from jaxtyping import install_import_hook
with install_import_hook("seqjepa", "beartype.beartype"):
    import seqjepa
    from seqjepa import *
    from seqjepa import aggregator, encoders, functional, hub, loss, target
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PREAMBLE + textwrap.dedent(code)], capture_output=True, text=True)


def test_every_public_call_keeps_the_shapes_it_promises() -> None:
    result = run(
        """
        from tests.builders import TinyEncoder, sequence, tiny_model
        def models():
            encoder = TinyEncoder()
            yield tiny_model(encoder=encoder)
            yield tiny_model(embedder=NoActions())
            yield tiny_model(embedder=RawActions(4), target=StopGradientTarget(encoder), encoder=encoder)
            embedding = torch.nn.Embedding(9, 12)
            yield tiny_model(norm="rms", aggregator=SequenceAggregator(12, heads=2, positions=embedding),
                             loss=SeqJEPALoss(loss.SmoothL1Distance(), VarianceCovariance()))
            yield tiny_model(loss=SeqJEPALoss(loss.MSEDistance()),
                             aggregator=SequenceAggregator(12, heads=2, positions=aggregator.SinusoidalPositions(12)))
        for model in models():
            for t in (1, 3):
                views, actions = sequence(observed=t)
                for mask in (None, torch.ones(4, t, dtype=torch.bool)):
                    model(views, actions, mask).loss.backward()
                model.update_target()
                model.imagine(views[:, :t], actions[:, :t - 1], actions[:, t - 1:])
                model.aggregator.attention(torch.randn(2, t, model.aggregator.dim))
        ViewSequence(*sequence())
        functional.cosine_distance(torch.randn(3), torch.randn(3))
        assert encoders.feature_width(TinyEncoder(), (3, 8, 8)) == 8
        print("checked")
        """
    )
    assert result.stdout == "checked\n", result.stderr


def test_the_checks_are_on() -> None:
    result = run("functional.cosine_distance(torch.randn(3, 4), torch.randn(2, 4))")
    assert "TypeCheckError" in result.stderr
