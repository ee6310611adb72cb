"""The Hugging Face hub and its local cache: look up a checkpoint, and download the files that loading needs.

The cache location and access to the hub are configured by huggingface_hub's environment variables: HF_HOME, HF_HUB_CACHE,
HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE.
"""

import errno
from pathlib import Path

from harness.errors import UserError
from harness.models import checkpoint

WANTED = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
"""Repository files that loading needs. Not `*.safetensors`: some repositories contain their weights twice."""


def cached_snapshot(hub_id: str) -> Path | None:
    """The cached snapshot of a hub id's main branch, complete or not; None if there is none.

    Raises:
        UserError: for an invalid hub id.
    """
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        config = try_to_load_from_cache(hub_id, "config.json")
    except errors.HFValidationError as error:
        raise UserError(f"{hub_id} is not a hub id: {error}", fix="source: a local folder or owner/name") from None
    return Path(config).parent if isinstance(config, str) else None


def snapshot(hub_id: str) -> Path:
    """The folder of a hub model; a complete snapshot is never looked up again, so a model cannot change between runs.

    Raises:
        UserError: if the model does not exist or access, network or disk space is missing.
    """
    cached = cached_snapshot(hub_id)
    if cached is not None and _is_whole(cached):
        return cached
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(WANTED)))
    except errors.GatedRepoError:
        raise UserError(f"{hub_id} needs its licence to be accepted and a login", fix="hf auth login") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"the hub has no model {hub_id}", fix="source: a local folder or another hub id") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise UserError(
            f"{hub_id} is not on this machine and the hub cannot be reached",
            fix=f"hf download {hub_id} (on a machine with network, then copy it and name the folder as source)",
        ) from None
    except errors.HfHubHTTPError as error:
        raise UserError(
            f"downloading {hub_id} failed: {str(error).splitlines()[0]}", fix=f"hf download {hub_id}"
        ) from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(f"no space left for {hub_id}", fix="set HF_HOME to a larger disk") from None
        raise


def _is_whole(folder: Path) -> bool:
    try:
        checkpoint.inspect(folder)
    except UserError:
        return False
    return True
