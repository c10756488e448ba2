"""A folder that others can use: weights, config, a sheet of samples and a model card. Nothing is uploaded."""

from pathlib import Path

from ggcn import files, image_grid
from ggcn.applications.export import MODEL, write_file
from ggcn.applications.model_card import Publication, card, config_json, evaluation
from ggcn.config.compose import public
from ggcn.errors import UserError
from ggcn.run.directory import RunDir
from ggcn.sampling import sampler
from ggcn.sampling.sampler import Sampler, check_finite

SHEET = 32
"""samples on the sheet"""
COLUMNS, SIDE = 8, 128
"""in a row, and the size in pixels up to which each is enlarged"""


def publish(run: Path, folder: Path, publication: Publication, step: int | None = None) -> Sampler:
    """Writes README.md, model.safetensors, config.json and samples.png of a run to `folder`, README.md last.

    Raises UserError when `run` is no run directory, has no such checkpoint, or when `folder` holds something else.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MODEL).is_file():
        raise UserError(f"{folder} holds something else; name a new folder by --out")
    if (folder / "config.yaml").exists():
        raise UserError(f"{folder} is a run directory; name a new folder by --out")
    trained = sampler.load(run, step)
    images = trained.sample(SHEET, seed=0)
    check_finite(images, trained)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(trained, folder / MODEL)
    files.write_text(folder / "config.json", config_json(trained, public(trained.config)))
    scale = max(1, SIDE // images.shape[-1])
    image_grid.save(image_grid.make_grid(images, COLUMNS, scale), folder / "samples.png")
    measured = evaluation(RunDir(run), int(trained.metadata["step"]))
    files.write_text(folder / "README.md", card(trained, publication, measured))
    return trained
