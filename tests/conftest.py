"""Shared settings: deterministic draws, two threads, no network; GPU tests are skipped where there is no GPU."""

import os

import hypothesis
import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"

hypothesis.settings.register_profile(
    "seqjepa",
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)
hypothesis.settings.load_profile("seqjepa")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
