"""What every key of the configuration means: for the terminal, and as docs/configuration.md.

python cluster/launch.py --help-config [KEY or GROUP]
python -m ggcn.cli.help_config --markdown > docs/configuration.md
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from math import inf
from pathlib import Path
from textwrap import fill
from types import NoneType
from typing import Any, get_args, get_origin

import yaml

from ggcn.config.fields import Choices, Range
from ggcn.config.folders import config_folders, groups, options, shipped_configs
from ggcn.config.keys import Key, flatten_mapping, keys, sections, unknown
from ggcn.config.renamed import RENAMED, RENAMED_VALUES
from ggcn.console import run_cli
from ggcn.errors import UserError

WIDTH = 100
TYPES = {int: "whole number", float: "number", str: "text", bool: "true or false"}


def text(prefix: str = "") -> str:
    """All keys, or those that are `prefix` or inside that group, for a terminal of 100 columns.

    Raises UserError when no key has this name.
    """
    presets, lines = _presets(config_folders()), []
    for section, inside in _sections(prefix):
        heading = f"{section}: {_first_paragraph(section)}" if section else "Keys of a run"
        lines += [_wrapped(heading), ""]
        for key in inside:
            lines.append(f"  {key.name} = {shown(key.default)}    {_form(key)}")
            for paragraph in (key.doc, *presets.get(key.name, [])):
                lines.append(_wrapped(paragraph, " " * 6))
        lines.append("")
    return "\n".join(lines).rstrip()


def markdown() -> str:
    """docs/configuration.md."""
    presets = _presets([shipped_configs()])
    parts = [MARKDOWN_HEAD]
    for section, inside in _sections(""):
        parts.append(f"\n## {section or 'Keys of a run'}\n")
        if section:
            parts.append(f"{_escaped(_paragraphs(sections()[section]))}\n")
        parts += ["| key | default | values | meaning |", "|---|---|---|---|"]
        for key in inside:
            meaning = "<br>".join(map(_escaped, (key.doc, *presets.get(key.name, []))))
            cells = (f"`{key.name}`", f"`{shown(key.default)}`", _escaped(_form(key)), meaning)
            parts.append(f"| {' | '.join(cells)} |")
    parts += [
        "\n## Renamed keys\n",
        "The old name is refused with the new one.\n",
        "| was | is |",
        "|---|---|",
    ]
    parts += [f"| `{old}` | `{new}` |" for old, new in RENAMED.items()]
    for key_name, values in RENAMED_VALUES.items():
        parts += [f"| `{key_name}={old}` | `{key_name}={new}` |" for old, new in values.items()]
    return "\n".join(parts)


def shown(value: Any) -> str:
    """A value as it is typed in an override or in YAML."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float) and abs(value) == inf:
        return str(value)
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return str(value) if value != "" else '""'


def _sections(prefix: str) -> Iterator[tuple[str, list[Key]]]:
    """The groups with keys that `prefix` names, and those keys."""
    chosen = [key for key in keys().values() if not prefix or f"{key.name}.".startswith(f"{prefix}.")]
    if not chosen:
        raise UserError(unknown(prefix))
    for section in ["", *sections()]:
        if inside := [key for key in chosen if key.section == section]:
            yield section, inside


def _form(key: Key) -> str:
    """The type of a key and what its values may be, in brackets."""
    if isinstance(key.allowed, Choices):
        return f"one of {key.allowed}"
    kinds = [kind for kind in get_args(key.type) if kind is not NoneType] or [key.type]
    optional = NoneType in get_args(key.type)
    is_list = get_origin(key.type) is list
    kind = f"list of {TYPES[kinds[0]]}s" if is_list else TYPES.get(kinds[0], OTHER.get(key.name, "value"))
    if get_origin(key.type) is dict:
        kind = "{folder: weight}"
    bounds = f", each in {key.allowed}" if is_list else f" in {key.allowed}"
    return kind + (bounds if isinstance(key.allowed, Range) else "") + (", or null" if optional else "")


OTHER = {"cluster.nodes": "whole number, or a list of whole numbers"}


def _wrapped(paragraph: str, indent: str = "") -> str:
    return fill(paragraph, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _first_paragraph(section: str) -> str:
    return " ".join(sections()[section].split("\n\n")[0].split())


def _paragraphs(doc: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in doc.split("\n\n"))


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("$", "\\$").replace("*", "\\*")


def _presets(folders: list[Path]) -> dict[str, list[str]]:
    """{key: [a line with what each preset sets it to]}, the presets first that configs/train.yaml chooses."""
    chosen, settings = _chosen(), defaultdict[str, list[str]](list)
    for group in groups():
        for name, path in sorted(
            options(group, folders).items(), key=lambda item: chosen.get(group) != item[0]
        ):
            mark = " (chosen by default)" if chosen.get(group) == name else ""
            for key, value in _settings(group, path).items():
                if value != name:  # as in model.name
                    settings[key].append(f"{group}={name} {shown(value)}{mark}")
    return {key: [f"Presets: {', '.join(values)}."] for key, values in settings.items()}


def _chosen() -> dict[str, str]:
    """{group: name} of the files that configs/train.yaml chooses."""
    train = _read_yaml(shipped_configs() / "train.yaml")
    entries = [entry for entry in train["defaults"] if isinstance(entry, dict)]
    return {group: name for entry in entries for group, name in entry.items()}


def _settings(group: str, path: Path) -> dict[str, Any]:
    """{dotted key: value} of a preset's file."""
    tree = _read_yaml(path)
    is_global = path.read_text(encoding="utf-8").startswith("# @package _global_")
    settings = flatten_mapping(tree if is_global else {group: tree})
    return {key: value for key, value in settings.items() if key in keys()}


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from None


MARKDOWN_HEAD = """# Configuration

<!-- Written by `python -m ggcn.cli.help_config --markdown > docs/configuration.md` from ggcn/config/schema.py. -->

Every key of a run, with its default, the values that it allows and what it means. On the command line a key is set by
`KEY=VALUE`, for example `train.steps=5000`; a preset is chosen by `GROUP=NAME`, for example `model=gcn` or
`experiment=faces64`. What a preset sets counts before the default, what the command line sets before both.
`python cluster/launch.py --help-config model.chain` shows the keys of a group in the terminal.

Presets of your own lie in a folder that `--config-dir DIR` or the environment variable `GGCN_CONFIG_DIR` names, as
`DIR/GROUP/NAME.yaml`: `DIR/cluster/mysite.yaml` is `cluster=mysite`. Of two files with one name yours counts. A run's
frozen `config.yaml` holds all values, so that its jobs need neither folder.
"""


def main() -> int:
    """The command line of this module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prefix", nargs="?", default="", help="a key or a group of keys, such as model.chain")
    parser.add_argument("--markdown", action="store_true", help="print docs/configuration.md")
    args = parser.parse_args()
    print(markdown() if args.markdown else text(args.prefix))
    return 0


if __name__ == "__main__":
    run_cli(main)
