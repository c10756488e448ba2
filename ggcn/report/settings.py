"""How a run was configured, and what of it is unlike the defaults."""

from pathlib import Path

from ggcn.config.compose import PUBLIC, parse, public
from ggcn.config.grids import fill_defaults
from ggcn.config.keys import flatten
from ggcn.config.schema import Config
from ggcn.report import page


def configuration(config: Config) -> str:
    """What is unlike the defaults, and the config, both without what is private to who trains it."""
    text = public(config)
    usual = Config()
    fill_defaults(usual)
    plain = flatten(usual)
    rows = [
        [name, str(value), str(plain[name])]
        for name, value in flatten(parse(text, Path("config.yaml"))).items()
        if value != plain[name] and name.startswith(PUBLIC)
    ]
    unlike = page.table(["key", "here", "default"], rows)
    summary = f"{page.count(len(rows), 'setting')} unlike the defaults"
    return page.fold(summary, unlike) + page.fold("config.yaml", page.verbatim(text))
