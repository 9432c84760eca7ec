"""A model of transformers on several ranks that share the GPU over NCCL; without a GPU, over gloo on the CPU."""

import pytest

from mimo_role import Topology
from tests.gpu.shared_gpu import DEVICE, run_sharing, run_unjoined

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(240)]

STEPS = 3


def steps(config, folder, fsdp):
    import mimo_role
    from tests.mimo_role.hf.oracle import steps_of

    return steps_of(mimo_role.current(), config, folder, fsdp, steps=STEPS)


def steps_of_one_process(config, folder, device):
    from tests.mimo_role.hf.oracle import oracle

    return oracle(config, folder, steps=STEPS, device=device)


@pytest.mark.parametrize(
    ("language", "fsdp"), [({"tp": 2, "dp": 2}, ("language",)), ({"cp": 2, "pp": 2}, ())], ids=["tp and FSDP2", "cp and pp"]
)
def test_steps_are_those_of_one_process(several_ranks, tmp_path, language, fsdp):
    pytest.importorskip("transformers", minversion="5.20")
    from tests.mimo_role.hf import small_models

    config, folder = small_models.qwen3_vl(), str(tmp_path)
    on_cpu = steps_of_one_process(config, folder, "cpu")
    [expected] = run_unjoined(steps_of_one_process, 1, config, folder, DEVICE)
    # The model computes its rotary embeddings in float32, whose sines differ between devices.
    assert expected == [pytest.approx(step, rel=1e-6) for step in on_cpu]
    ranks = run_sharing(steps, Topology.from_modules({"vision": {}, "language": language}), config, folder, fsdp)
    for found in ranks:
        assert found == [pytest.approx(step, rel=1e-9) for step in expected]
