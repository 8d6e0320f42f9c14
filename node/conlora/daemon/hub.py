"""Sends an exported adapter to a model hub, with the user's own token."""

import re
from pathlib import Path

from conlora.errors import ConfigError, UploadFailed


def check_name(name: str) -> None:
    """Raises ConfigError unless `name` is OWNER/NAME as hubs have them."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+", name):
        raise ConfigError(
            f"--hub: {name!r} is not OWNER/NAME in letters, digits and `. _ -`; correct it, as in mercy/notes"
        )


def upload(directory: Path, name: str, message: str) -> str:
    """Sends the files of an export; a repository that is not there yet becomes a private one. Returns its address.

    Raises UploadFailed, with the directory as it was.
    """
    import huggingface_hub

    try:
        if huggingface_hub.get_token() is None:
            raise PermissionError("there is no token: set HF_TOKEN, or log in with `hf auth login`")
        address = huggingface_hub.create_repo(name, private=True, exist_ok=True)
        huggingface_hub.upload_folder(repo_id=name, folder_path=directory, commit_message=message)
    except Exception as error:  # also those of the HTTP library below, as they come
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UploadFailed(
            f"{directory} is written, but the hub has not got it as {name} ({reason}); mend that, export again with --overwrite"
        ) from error
    return str(address)
