"""A published folder -> a repository on the Hugging Face hub, or on a server that ``HF_ENDPOINT`` names."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from kexue_train.foundation.errors import ConfigError, ResourceError

_REFUSED = (401, 403)
_NoAnswer: type[Exception] = HfHubHTTPError.__mro__[1]
"""What the HTTP library of this version of huggingface_hub raises; which library that is has changed twice."""


def check_repository(name: str) -> None:
    """Refuse a name that no repository can have.

    Raises:
        ConfigError: Says what a name looks like.
    """
    owner, _, repository = name.partition("/")
    if not (owner and repository) or "/" in repository:
        raise ConfigError(f"--push {name}: expected OWNER/NAME, such as eva/small-chinese-encoder")


def push_folder(folder: Path, repository: str, *, private: bool) -> str:
    """Upload a folder as one commit; the repository is made if it is not there.

    Args:
        folder: What ``publish_run`` made.
        repository: ``OWNER/NAME``.
        private: Whether a new repository is private.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: If the hub does not take the name, or the user may not write there.
        ResourceError: If the hub cannot be reached or fails.
    """
    check_repository(repository)
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            folder_path=folder, repo_id=repository, commit_message="Publish the model with its provenance"
        )
    except HFValidationError as error:
        raise ConfigError(f"--push {repository}: {error}") from None
    except LocalTokenNotFoundError:
        raise ConfigError(_who_are_you(repository, "no token was found")) from None
    except HfHubHTTPError as error:
        if error.response.status_code in _REFUSED:
            raise ConfigError(
                _who_are_you(repository, f"{api.endpoint} answers {error.response.status_code}")
            ) from None
        raise ResourceError(
            f"--push {repository}: {api.endpoint} answers: {_in_one_line(error)}; run the same command later"
        ) from None
    except (_NoAnswer, OSError) as error:
        raise ResourceError(
            f"--push {repository}: {api.endpoint} cannot be reached ({_in_one_line(error)}); the folder {folder} is "
            "whole: run the same command later, or upload it by hand"
        ) from None
    return str(commit)


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _who_are_you(repository: str, reason: str) -> str:
    return (
        f"--push {repository}: {reason}; log in with 'hf auth login', or set HF_TOKEN to a token that may write to "
        f"{repository.partition('/')[0]}"
    )
