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
        from seqjepa.groups import Translation
        from tests.builders import TinyEncoder, sequence, tiny_model
        def models():
            encoder = TinyEncoder()
            yield tiny_model(encoder=encoder)
            yield tiny_model(embedder=NoActions())
            yield tiny_model(embedder=RawActions(4), target=StopGradientTarget(encoder), encoder=encoder)
            embedding = torch.nn.Embedding(9, 12)
            yield tiny_model(target=OnlineTarget(encoder), encoder=encoder, loss=SeqJEPALoss(regularizer=SIGReg()))
            yield tiny_model(norm="rms", aggregator=SequenceAggregator(12, heads=2, positions=embedding),
                             loss=SeqJEPALoss(loss.SmoothL1Distance(), VarianceCovariance()))
            yield tiny_model(loss=SeqJEPALoss(loss.MSEDistance()),
                             aggregator=SequenceAggregator(12, heads=2, positions=aggregator.SinusoidalPositions(12)))
            yield tiny_model(aggregator=CausalAggregator(12, heads=2, window=2, rotary=10.0))
        for model in models():
            for t in (1, 3):
                views, actions = sequence(observed=t)
                for mask in (None, torch.ones(4, t, dtype=torch.bool)):
                    model(views, actions, mask).loss.backward()
                model.update_target()
                model.imagine(views[:, :t], actions[:, :t - 1], actions[:, t - 1:])
                vectors = Translation(3)
                pair_loss(model, model(views, actions), views, actions, vectors).loss.backward()
                pair_loss(model, model(views, actions, mask), views, actions, vectors, mask=mask)
                rollout_loss(model, views, actions, observed=1, horizon=t).loss.backward()
                random_observed(views, actions)
                z, e = model.encode(views), model.embed(actions)
                model.aggregate_prefixes(z, e), model.aggregate_prefixes(z[:, :t], e[:, 1:], mask)
                tokens = torch.randn(2, t, model.aggregator.dim)
                if isinstance(model.aggregator, CausalAggregator):
                    _, cache = model.aggregator.step(tokens, tokens[:, 0], None)
                    model.aggregator.step(tokens[:, 0], tokens[:, 0], cache, torch.tensor([True, False]))
                else:
                    model.aggregator.attention(tokens)
        for bottleneck in (None, GaussianBottleneck(), VectorQuantizer(3, 2)):
            inverse = InverseModel(8, 4, bottleneck)
            for mask in (None, torch.ones(6, 3, dtype=torch.bool)):
                inverse.infer(torch.randn(6, 3, 8), torch.randn(6, 3, 8), mask).loss
            inverse.exchange(inverse(torch.randn(6, 3, 8), torch.randn(6, 3, 8))).sum().backward()
        ViewSequence(*sequence())
        functional.cosine_distance(torch.randn(3), torch.randn(3))
        assert encoders.feature_width(TinyEncoder(), (3, 8, 8)) == 8
        print("checked")
        """
    )
    assert result.stdout == "checked\n", result.stderr


def test_groups_samplers_and_measures_keep_the_shapes_they_promise() -> None:
    result = run(
        """
        import tempfile
        with install_import_hook("seqjepa", "beartype.beartype"):
            from seqjepa.data import *
            from seqjepa.evaluation import *
            from seqjepa.groups import *
            from seqjepa.planning import *
        from tests.builders import tiny_model
        g = torch.Generator().manual_seed(0)
        images, labels = torch.rand(24, 3, 16, 16, generator=g), torch.arange(24) % 2
        maps = spectral_residual(images)
        samplers = [AugmentedViews(3, 8), AugmentedViews(3, 8, frame="image"), RotatedViews(3, 60.0, 0.1, (0.8, 1.2))]
        sequences = [sampler(images, generator=g, shared=shared) for sampler in samplers for shared in (True, False)]
        for scales in ((1.0,), (1.0, 2.0)):
            saccades = SaccadeViews(num_views=3, fovea=6, scales=scales)
            sequences.append(saccades(images, saliency=maps, generator=g))
        objects = RenderedObjects(24, size=8, actions=("rotation", "light_hue"))
        sequences.append(objects.sample(torch.arange(24), num_views=3, generator=g))
        for sequence in sequences:
            group = sequence.group
            a = sequence.actions
            path, e = group.path_composition(a), group.identity()
            group.compose(path, group.inverse(path)), group.distance(path, e), group.describe(path[0])
            group.log(group.exp(torch.zeros(2, 3, group.local_dim)))
        pool = ViewPool(sequence.views, objects.elements(sequence.parameters), group, num_views=2, labels=labels)
        pool.sample(torch.arange(4), generator=g), pool[3]
        with tempfile.TemporaryDirectory() as folder:
            cache_features(folder + "/f", torch.nn.Flatten(), sequence.views)
        q = Rotation3D.random(5, generator=g)
        Rotation3D.from_6d(Rotation3D.to_6d(q)), Rotation3D.from_matrix(Rotation3D.to_matrix(q))
        check_group(Translation(2), torch.randn(9, 2))
        check_sampler(samplers[2], images)
        check_sampler(SaccadeViews(num_views=3, fovea=6), images, saliency=maps)
        windows = EpisodeWindows([(torch.rand(9, 3, 16, 16), torch.randn(8, 4))], num_views=3, skip=2)
        padded = pad_sequences([windows[0], windows[1]._replace(views=images[:2], actions=torch.randn(1, 4))])
        tiny_model(action_dim=4)(*padded.to("cpu"))
        saccades.fixate(images, saliency=maps, generator=g, shared=True)
        objects.sample(torch.arange(24), num_views=3, generator=g, shared=True)
        inverse, model = InverseModel(8, 4), tiny_model(action_dim=4)
        features = [extract(model, sequence, inverse=inverse) for sequence in sequences[4:6]]
        latent_actions(model, inverse, features[1], features[1], features[0], hidden=(), labels=(3,))
        actions_from_latent(features[1], features[1], hidden=(4,))
        turned = sequences[5]._replace(labels=labels)
        card = evaluate(tiny_model(action_dim=4), turned, turned, hidden=(), progress=False)
        for search in (CEM(4, 2, 2), MPPI(4, 2), GradientSearch(rounds=2)):
            plan(tiny_model(action_dim=4), turned.views[:, :2], turned.actions[:, :1], turned.views[:, 2], horizon=2,
                 group=turned.group, search=search, bounds=torch.ones(turned.group.local_dim), generator=g)
        assert list(card.skipped) == ["pre", "out_of_distribution"]
        print("checked")
        """
    )
    assert result.stdout == "checked\n", result.stderr


def test_baselines_keep_the_shapes_they_promise() -> None:
    result = run(
        """
        with install_import_hook("seqjepa", "beartype.beartype"):
            import seqjepa.baselines
            from seqjepa.baselines import NTXent, ViewPairs
            from seqjepa.groups import Translation
        from tests.baselines.builders import METHODS, PAIRED, A, tiny
        from tests.builders import sequence
        views, actions = sequence(batch=4, observed=3, action_dim=A)
        for name in METHODS:
            policies = ("first", "disjoint", "consecutive", "random") if name in PAIRED else (None,)
            for policy in policies:
                pairs = {} if policy is None else {"pairs": ViewPairs(policy, group=Translation(A))}
                method = tiny(name, **pairs)
                method(views, actions).loss.backward()
                method.update_target()
                z, e = method.encode(views), method.embed(actions)
                for mask in (None, torch.ones(4, 4, dtype=torch.bool)):
                    state = method.aggregate(z, e, mask)
                if hasattr(method, "predict"):
                    method.predict(state, e[:, 0]), method.target(views[:, 1])
        method = tiny("ContextSSL", settings="paper", parts=(2, 1))
        method(views, actions, poses=torch.randn(4, 4, A)).loss.backward()
        reader = method.in_context(views[:, :2], actions[:, :1])
        for part in (method, reader):
            part.contextual(views), part.predict(reader.encode(views)[:, 0], reader.embed(actions)[:, 0])
            part.target(views[:, 1])
        mean = seqjepa.baselines.MeanAggregate(method)
        mean.aggregate(mean.encode(views), mean.embed(actions))
        NTXent(0.5)(torch.randn(4, 3), torch.randn(4, 3))
        print("checked")
        """
    )
    assert result.stdout == "checked\n", result.stderr


def test_the_checks_are_on() -> None:
    result = run("functional.cosine_distance(torch.randn(3, 4), torch.randn(2, 4))")
    assert "TypeCheckError" in result.stderr
