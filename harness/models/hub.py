"""The Hugging Face hub and its local cache: look up a checkpoint, and download the files that loading needs.

The cache location and access to the hub are configured by huggingface_hub's environment variables: HF_HOME, HF_HUB_CACHE,
HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE.
"""

import errno
import fnmatch
from collections.abc import Sequence
from pathlib import Path

from harness.errors import UnavailableError, UserError
from harness.models import checkpoint

DESCRIBING = ("config.json", *checkpoint.READ_BY_TOKENIZERS)
"""Repository files that describe a model."""
WANTED = (*DESCRIBING, "generation_config.json", "model*.safetensors", checkpoint.WEIGHT_INDEX)
"""Repository files that loading needs. Not `*.safetensors`: some repositories contain their weights twice."""
MAIN = "main"


def cached_snapshot(hub_id: str, revision: str = "") -> Path | None:
    """The cached snapshot of a hub id, complete or not, in a folder named after its commit; None if there is none.

    Args:
        hub_id: `owner/name`.
        revision: commit, branch or tag; by default the main branch, as it was when it was downloaded.

    Raises:
        UserError: for an invalid hub id or revision.
    """
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        config = try_to_load_from_cache(hub_id, "config.json", revision=revision or MAIN)
    except errors.HFValidationError as error:
        raise UserError(f"{hub_id} is not a hub id: {error}", fix="source: a local folder with the model") from None
    return Path(config).parent if isinstance(config, str) else None


def complete_snapshot(hub_id: str, revision: str = "") -> Path | None:
    """The cached snapshot, as `cached_snapshot`; None if files are missing.

    Raises:
        UserError: if its files are damaged or no checkpoint that can be loaded.
    """
    folder = cached_snapshot(hub_id, revision)
    try:
        return checkpoint.inspect(folder).folder if folder else None
    except checkpoint.IncompleteError:
        return None


def snapshot(hub_id: str, revision: str = "") -> Path:
    """The folder of a hub model, named after its commit; cached files are never looked up again.

    Args:
        hub_id, revision: as for `cached_snapshot`.

    Raises:
        UserError: if the model or revision does not exist, its files are no checkpoint that can be loaded, or access,
            network or disk space is missing.
    """
    if cached := complete_snapshot(hub_id, revision):
        return cached
    folder = _downloaded(hub_id, revision, WANTED)
    if not any(folder.glob("*.safetensors")) and (pickles := _pickles(hub_id, folder.name)):
        raise UserError(
            f"{hub_id} publishes its weights as pickles ({pickles[0]}), which are never loaded",
            fix=f"python -m harness.models.convert {hub_id}{f'@{revision}' if revision else ''}",
        )
    return checkpoint.inspect(folder).folder


def description(hub_id: str, revision: str = "") -> Path:
    """A folder with configuration and tokenizer of a hub model, downloaded if they are not in the cache; weights need not be.

    Args:
        hub_id, revision: as for `cached_snapshot`.

    Raises:
        UnavailableError: if they cannot be had.
    """
    cached = cached_snapshot(hub_id, revision)
    if cached and any((cached / name).is_file() for name in checkpoint.TOKENIZER_FILES):
        return cached
    try:
        return _downloaded(hub_id, revision, DESCRIBING)
    except UserError as error:
        raise UnavailableError(error.message, fix=error.fix) from None


def pickled_snapshot(source: str) -> Path:
    """The folder of a hub model whose weights are pickles, downloaded with them.

    Args:
        source: `owner/name`, or `owner/name@revision`.

    Raises:
        UserError: as `snapshot`.
    """
    hub_id, _, revision = source.partition("@")
    return _downloaded(hub_id, revision, (*WANTED, checkpoint.PICKLES))


def _pickles(hub_id: str, revision: str) -> list[str]:
    """Names of the pickled weights in a repository; none if the hub cannot be asked."""
    from huggingface_hub import HfApi, errors

    try:
        names = HfApi().list_repo_files(hub_id, revision=revision)
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, OSError):
        return []
    return sorted(name for name in names if fnmatch.fnmatchcase(name, checkpoint.PICKLES))


def _downloaded(hub_id: str, revision: str, wanted: Sequence[str]) -> Path:
    from huggingface_hub import errors, snapshot_download

    at = f" --revision {revision}" if revision else ""
    try:
        return Path(snapshot_download(hub_id, revision=revision or MAIN, allow_patterns=list(wanted)))
    except errors.GatedRepoError:
        raise UserError(f"{hub_id} needs its licence to be accepted and a login", fix="hf auth login") from None
    except errors.RevisionNotFoundError:
        raise UserError(
            f"{hub_id} has no revision '{revision}'", fix=f"revision: one of https://huggingface.co/{hub_id}/commits"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"the hub has no model {hub_id}", fix="source: a local folder with the model") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise UserError(
            f"{hub_id} is not on this machine and the hub cannot be reached",
            fix=f"hf download {hub_id}{at} (on a machine with network, then copy it and name the folder as source)",
        ) from None
    except errors.HfHubHTTPError as error:
        raise UserError(
            f"downloading {hub_id} failed: {str(error).splitlines()[0]}", fix=f"hf download {hub_id}{at}"
        ) from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(f"no space left for {hub_id}", fix="set HF_HOME to a larger disk") from None
        raise
