"""How a run was configured, and what of it is unlike the defaults."""

from ggcn.compose import flatten, to_yaml
from ggcn.config import Config, resolve
from ggcn.report import page


def configuration(config: Config) -> str:
    """What is unlike the defaults, and the whole config."""
    usual = Config()
    resolve(usual)
    plain = flatten(usual)
    rows = [
        [name, str(value), str(plain[name])]
        for name, value in flatten(config).items()
        if value != plain[name]
    ]
    unlike = page.table(["key", "here", "default"], rows)
    summary = f"{page.count(len(rows), 'setting')} unlike the defaults"
    return page.fold(summary, unlike) + page.fold("config.yaml", page.verbatim(to_yaml(config)))
