"""The config of a run, and how it differs from the defaults."""

from pathlib import Path

from markupsafe import Markup

from ggcn.config.compose import PUBLIC, parse, public
from ggcn.config.grids import fill_defaults
from ggcn.config.keys import flatten
from ggcn.config.schema import Config
from ggcn.report import page


def configuration(config: Config) -> Markup:
    """The differences from the defaults, and the config, both without private keys such as paths."""
    text = public(config)
    default = Config()
    fill_defaults(default)
    defaults = flatten(default)
    rows = [
        [name, str(value), str(defaults[name])]
        for name, value in flatten(parse(text, Path("config.yaml"))).items()
        if value != defaults[name] and name.startswith(PUBLIC)
    ]
    differences = page.table(["key", "value", "default"], rows)
    summary = f"{page.count(len(rows), 'setting')} other than the default"
    return page.fold(summary, differences) + page.fold("config.yaml", page.verbatim(text))
