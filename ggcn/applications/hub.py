"""Models on the Hugging Face hub, by hf://user/name; only ever read, and only when such an address is given."""

import re
from pathlib import Path

from ggcn.errors import TransientError, UserError

SCHEME = re.compile(r"hf:/{1,2}")
"""a path makes one slash of two"""
MODEL = "model.safetensors"
ADDRESS = re.compile(r"hf://([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")


def is_address(text: str) -> bool:
    """Whether a text names a model on the hub."""
    return bool(SCHEME.match(text))


def download(address: str) -> Path:
    """The model's file in huggingface_hub's cache, downloaded if it is not there. `address`: hf://user/name, or
    hf://user/name@REVISION; HF_ENDPOINT and HF_TOKEN are respected.

    Raises UserError when huggingface_hub is not installed or there is no such model; TransientError when the hub does
    not answer.
    """
    address = SCHEME.sub("hf://", address, count=1)
    match = ADDRESS.fullmatch(address)
    if not match:
        raise UserError(
            f"{address} names no model on the hub; write hf://user/name or hf://user/name@REVISION"
        )
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
        from huggingface_hub.errors import RepositoryNotFoundError as NoRepository
        from huggingface_hub.errors import RevisionNotFoundError as NoRevision
    except ImportError:
        raise UserError(f"{address} needs huggingface_hub; pip install 'ggcn[hub]'") from None
    repository, revision = match.groups()
    try:
        return Path(hf_hub_download(repository, MODEL, revision=revision))
    except LocalEntryNotFoundError as error:
        raise TransientError(
            f"{address} is not in the cache, and the hub does not answer; try again later"
        ) from error
    except NoRepository:
        raise UserError(
            f"there is no {address}, or it is private; check the name, or log in with `hf auth login`"
        ) from None
    except NoRevision:
        raise UserError(f"{address}: there is no revision {revision}") from None
    except EntryNotFoundError:
        raise UserError(f"{address} has no {MODEL}, so it was not written by `ggcn export --card`") from None
