"""The installed DeepSpeed has what is used of it beyond its documented interface."""

import inspect

import deepspeed.ops

from ggcn.engine import zero  # noqa: F401 (chooses the accelerator before DeepSpeed does)
from ggcn.engine.deepspeed_internals import skip_compilation


def test_the_zero_optimizer_has_the_private_names() -> None:
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    assert callable(DeepSpeedZeroOptimizer._lazy_init_hp_params_optimizer_state)
    source = inspect.getsource(DeepSpeedZeroOptimizer.__init__)
    assert "self.single_partition_of_fp32_groups = " in source
    assert "self.optimizer = init_optimizer" in source


def test_the_collective_that_takes_a_minute_is_not_compiled() -> None:
    assert "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__
    skip_compilation()
    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False
