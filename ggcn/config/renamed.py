"""Config keys that had another name before, so that whoever still uses the old one is told the new one."""

from collections.abc import Sequence

RENAMED = {
    "model.start": "model.chain_init",
    "model.start_sd": "model.init_std",
    "model.bank": "model.replay_buffer",
    "model.bank.chains": "model.replay_buffer.chains",
    "model.bank.renewal": "model.replay_buffer.reinit_prob",
    "model.bank.fresh_rounds": "model.replay_buffer.cold_start_factor",
    "model.chain.pace": "model.chain.step_size_scale",
    "model.chain.start": "model.chain.init_from",
    "model.flow.strength": "model.flow.gamma_ratio",
    "model.flow.share": "model.flow.jko_fraction",
    "model.flow.particles": "model.flow.jko_points",
    "model.upsampler.hidden": "model.upsampler.z_dim",
    "model.upsampler.fitted_to": "model.upsampler.fit_images",
    "train.energy.horizon": "train.energy.decay_steps",
    "train.energy.final": "train.energy.final_lr_ratio",
    "train.upsampler.horizon": "train.upsampler.decay_steps",
    "train.upsampler.final": "train.upsampler.final_lr_ratio",
    "cluster.parallel": "cluster.max_concurrent",
    "cluster.lead_s": "cluster.stop_lead_s",
    "checkpoint.budget": "checkpoint.max_overhead",
    "data.block": "data.shuffle_block",
    "data.bad_share": "data.max_bad_fraction",
    "guard.band": "guard.max_ratio",
    "guard.calm": "guard.cooldown_steps",
    "guard.excess": "guard.severity",
    "guard.gap": "guard.energy_gap",
    "guard.gradient": "guard.grad_norm",
    "guard.growth": "guard.weight_growth",
    "log.pictures_every": "log.samples_every",
    "log.pictures": "log.samples",
    "log.pictures_kept": "log.samples_kept",
}
"""{old key or group: new}"""
RENAMED_VALUES = {"model.chain_init": {"bank": "replay_buffer"}}
"""{key: {old value: new}}"""
RENAMED_PRESETS = {"model=transport": "model=ggcn"}
"""{GROUP=NAME of a file that configs/ had: what it is now}"""


def no_preset(choice: str, known: Sequence[str]) -> str:
    """The sentence about GROUP=NAME that is no file of the group, whose files are called `known`."""
    if choice in RENAMED_PRESETS:
        return f"there is no {choice}; it is {RENAMED_PRESETS[choice]} now"
    return f"there is no {choice}" + (f"; choose one of {', '.join(known)}" if known else "")


def reasons(key: str) -> dict[str, str]:
    """{old value: what the error says about it} of a key, see ggcn.config.fields.choice."""
    return {old: f"is {new} now" for old, new in RENAMED_VALUES.get(key, {}).items()}
