import pytest
import torch

from gsv_core.checkpoints.base import load_base
from tests.gsv_core.made_items import made_items


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def base():
    return load_base("nano")


@pytest.fixture(scope="session")
def items(base):
    return made_items(base)
